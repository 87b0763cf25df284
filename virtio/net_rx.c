// SPDX-License-Identifier: Apache-2.0
// Reception: one readv per frame, straight into guest buffers; mergeable buffers (5.1.6.4).
#include "virtio/net_priv.h"

#define SIGNAL_EVERY 16u
#define ERRORS_MAX   16u               // reads that fail in a row before the tap counts as gone
#define HOLD_NS      (10 * 1000000ULL) // how long a frame waits for the rest of its buffers
#define SMALL_RUN    64u               // small frames in a row before fewer buffers are staged

enum rx_step { RX_OK, RX_STOP, RX_FAULT };

// ---- staging

static bool can_stage(const struct net *n)
{
    const struct net_rx *r = &n->rx;
    if (!net_has(n, NET_F_MRG_RXBUF))
        return r->chains == 0; // one chain is one frame
    return r->segs + VIO_SEG_MAX <= RX_SEGS && r->chains < n->d.queue[NET_RXQ].s.size;
}

// Pops chains until `bytes` are staged or no more can be. -EINVAL: the ring is broken.
static int stage(struct net *n, uint32_t bytes)
{
    struct net_rx *r = &n->rx;
    struct vchain c;
    while (r->bytes < bytes && can_stage(n)) {
        const int rc = virtq_pop(&n->d.queue[NET_RXQ], &c);
        if (rc <= 0)
            return rc;
        // 5.1.6.3: room for the header at least. Beyond 2 GiB our sums would not fit 32 bits.
        if (c.nr > 0 || c.wbytes < NET_HDR_LEN || c.wbytes > INT32_MAX)
            return -EINVAL;
        memcpy(&r->iov[r->segs], c.iov, c.nw * sizeof(c.iov[0]));
        r->chain[r->chains].head = c.head;
        r->chain[r->chains].segs = c.nw;
        r->chain[r->chains].bytes = c.wbytes;
        r->chains++;
        r->segs += c.nw;
        r->bytes += c.wbytes;
    }
    return 0;
}

static void consume(struct net_rx *r, unsigned chains, unsigned segs)
{
    for (unsigned i = 0; i < chains; i++)
        r->bytes -= r->chain[i].bytes;
    r->chains -= chains;
    r->segs -= segs;
    memmove(r->chain, r->chain + chains, r->chains * sizeof(r->chain[0]));
    memmove(r->iov, r->iov + segs, r->segs * sizeof(r->iov[0]));
}

void net_rx_unstage(struct net *n)
{
    struct net_rx *r = &n->rx;
    struct vchain c = {.nr = 0};
    if (r->held)
        net_count(&n->m.rx_dropped, 1);
    while (r->chains > 0) { // last popped, first returned
        c.head = r->chain[--r->chains].head;
        virtq_unpop(&n->d.queue[NET_RXQ], &c);
    }
    r->segs = 0;
    r->bytes = r->held = 0;
    r->give_up = 0;
}

// ---- reading

// #syscalls:device preadv2(0)
static enum rx_step read_failed(struct net *n, int code)
{
    struct net_rx *r = &n->rx;
    if (code == EAGAIN || code == EINTR) {
        r->wait = NET_WAIT_TAP;
        n->d.host->poll_in(n->d.host->ctx, n->d.slot, n->file);
        return RX_STOP;
    }
    net_count(&n->m.rx_fails, 1);
    if (code == EBADFD || ++r->errors >= ERRORS_MAX) {
        net_tap_gone(n);
        return RX_STOP;
    }
    return RX_OK;
}

// Stages for small frames until a large one shows up, and for large ones until none does.
static void adapt(struct net_rx *r, uint32_t len)
{
    if (len > RX_SMALL) {
        r->want = RX_LARGE;
        r->small_run = 0;
    } else if (r->want > RX_SMALL && ++r->small_run >= SMALL_RUN) {
        r->want = RX_SMALL;
        r->small_run = 0;
    }
}

static enum rx_step starved(struct net *n)
{
    struct net_rx *r = &n->rx;
    r->kicks_on = true;
    if (virtq_enable_kick(&n->d.queue[NET_RXQ]))
        return RX_OK; // buffers came meanwhile
    net_count(&n->m.rx_no_buffers, 1);
    r->wait = NET_WAIT_QUEUE; // the tap is not polled: what does not fit its queue it drops
    return RX_STOP;
}

static enum rx_step read_frame(struct net *n)
{
    struct net_rx *r = &n->rx;
    if (stage(n, r->want) < 0)
        return RX_FAULT;
    if (r->chains == 0)
        return starved(n);
    r->iov[r->segs] = (struct iovec){.iov_base = r->scratch, .iov_len = RX_SCRATCH};
    const ssize_t len = preadv2(n->s.tap_fd, r->iov, (int)r->segs + 1, -1, 0);
    if (len <= 0) // a tap has no end of file
        return read_failed(n, len < 0 ? errno : EIO);
    r->errors = 0;
    // A read that fills everything may have been cut short.
    if (len < NET_HDR_LEN + NET_ETH_LEN || len > RX_LARGE) {
        net_count(&n->m.rx_dropped, 1);
        return RX_OK;
    }
    r->held = (uint32_t)len;
    r->direct = MIN(r->held, r->bytes);
    r->held_paid = limiter_is_off(&n->rx_limit);
    adapt(r, r->held);
    return RX_OK;
}

// ---- delivery

// Copies to offset off of the staged segments.
static void scatter(struct net_rx *r, uint32_t off, const void *buf, uint32_t len)
{
    const uint8_t *p = buf;
    for (unsigned i = 0; i < r->segs && len > 0; i++) {
        const struct iovec *v = &r->iov[i];
        if (off >= v->iov_len) {
            off -= (uint32_t)v->iov_len;
            continue;
        }
        const uint32_t m = MIN(len, (uint32_t)v->iov_len - off);
        memcpy((uint8_t *)v->iov_base + off, p, m);
        p += m;
        len -= m;
        off = 0;
    }
}

// Marks what landed, now that it has: a round of dirty pages may lie between pop and read.
static void landed(const struct net *n, uint32_t len)
{
    const struct net_rx *r = &n->rx;
    if (!n->d.mem->dirty)
        return;
    for (unsigned i = 0; len > 0; i++) {
        const uint32_t m = MIN(len, (uint32_t)r->iov[i].iov_len);
        mem_dirty(n->d.mem, r->iov[i].iov_base, m);
        len -= m;
    }
}

static void deliver(struct net *n)
{
    struct net_rx *r = &n->rx;
    unsigned used = 0, segs = 0;
    uint32_t left = r->held;
    uint8_t count[2];
    if (r->held > r->direct)
        scatter(r, r->direct, r->scratch, r->held - r->direct);
    while (left > 0) {
        const uint32_t m = MIN(left, r->chain[used].bytes);
        virtq_push(&n->d.queue[NET_RXQ], r->chain[used].head, m);
        segs += r->chain[used++].segs;
        left -= m;
    }
    le16_put(count, (uint16_t)used);
    scatter(r, 10, count, 2);            // num_buffers: the tap leaves it alone
    if (!net_has(n, NET_F_GUEST_CSUM))   // 5.1.6.4.1: flags must be 0 then; the kernel may
        scatter(r, 0, &(uint8_t){0}, 1); // still say DATA_VALID
    landed(n, r->held);
    net_count(&n->m.rx_packets, 1);
    net_count(&n->m.rx_bytes, r->held - NET_HDR_LEN);
    consume(r, used, segs);
    r->held = 0;
    r->give_up = 0;
}

static enum rx_step drop(struct net *n)
{
    net_count(&n->m.rx_dropped, 1);
    n->rx.held = 0;
    n->rx.give_up = 0;
    return RX_OK;
}

// The driver should post more soon. If it does not, because it believes its ring to be full enough,
// the frame must not stop all that come after it.
static enum rx_step wait_for_room(struct net *n)
{
    struct net_rx *r = &n->rx;
    const uint64_t now = now_ns();
    if (!r->give_up)
        r->give_up = now + HOLD_NS;
    if (now >= r->give_up)
        return drop(n);
    const enum rx_step s = starved(n);
    if (s == RX_STOP)
        net_wake_at(n, true, r->give_up);
    return s;
}

static enum rx_step place_frame(struct net *n)
{
    struct net_rx *r = &n->rx;
    if (!r->held_paid) {
        const uint64_t at = limiter_take(&n->rx_limit, r->held, now_ns());
        if (at > 0) {
            net_count(&n->m.rx_throttled, 1);
            r->wait = NET_WAIT_TIMER;
            net_wake_at(n, true, at);
            return RX_STOP;
        }
        r->held_paid = true;
    }
    if (stage(n, r->held) < 0)
        return RX_FAULT;
    if (r->bytes >= r->held) {
        deliver(n);
        return RX_OK;
    }
    // Larger than all the driver can offer (N3): no use to wait.
    return can_stage(n) ? wait_for_room(n) : drop(n);
}

void net_rx_run(struct net *n)
{
    struct net_rx *r = &n->rx;
    struct virtq *q = &n->d.queue[NET_RXQ];
    const unsigned limit = 2u * q->s.size; // a step reads or places
    unsigned done = 0;
    enum rx_step step = RX_OK;
    if (!q->desc)
        return;
    if (r->kicks_on)
        virtq_disable_kick(q);
    r->kicks_on = false;
    while (step == RX_OK && done++ < limit) {
        step = r->held ? place_frame(n) : read_frame(n);
        if (done % (2 * SIGNAL_EVERY) == 0)
            vio_signal(&n->d, q);
    }
    vio_signal(&n->d, q);
    if (step == RX_FAULT)
        vio_fault(&n->d, "broken receive queue");
    else if (step == RX_OK)
        n->d.host->again(n->d.host->ctx, n->d.slot);
}
