// SPDX-License-Identifier: Apache-2.0
// Transmission: one writev per packet, of a header we copied and judged and of the guest's bytes.
#include "virtio/net_priv.h"

#define SIGNAL_EVERY 32u // packets between looks at whether the driver wants an interrupt

enum { HDR_F_NEEDS_CSUM = 1 };
enum { GSO_NONE = 0, GSO_TCPV4 = 1, GSO_UDP = 3, GSO_TCPV6 = 4 };

// Our copy of what precedes the payload. The tap gets these bytes, not the guest's: the guest could
// change its own between check and use.
struct tx_head {
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
    uint8_t dst[6], src[6], type[2];
};
_Static_assert(sizeof(struct tx_head) == NET_HDR_LEN + NET_ETH_LEN, "5.1.6");

static bool gso_allowed(const struct net *n, uint8_t type)
{
    switch (type) {
    case GSO_TCPV4:
        return net_has(n, NET_F_HOST_TSO4);
    case GSO_TCPV6:
        return net_has(n, NET_F_HOST_TSO6);
    case GSO_UDP:
        return net_has(n, NET_F_HOST_UFO);
    default:
        return false;
    }
}

// 5.1.6.2 without what the tap checks again. Fields that mean nothing for this packet become 0.
static bool head_is_sane(const struct net *n, struct tx_head *h, uint32_t frame)
{
    if (frame < NET_ETH_LEN || frame > NET_FRAME_MAX)
        return false;
    h->flags &= HDR_F_NEEDS_CSUM;
    h->num_buffers = 0;
    if (!h->flags)
        h->csum_start = h->csum_offset = 0;
    else if (!net_has(n, NET_F_CSUM) || (uint32_t)h->csum_start + h->csum_offset + 2 > frame)
        return false;
    if (h->gso_type == GSO_NONE) {
        h->hdr_len = h->gso_size = 0;
        return true;
    }
    return gso_allowed(n, h->gso_type) && h->flags && h->gso_size > 0 && h->hdr_len <= frame;
}

// A small frame is copied whole and written as one buffer: measured 1.1 µs against 1.3 for two segments.
#define TX_SMALL 2048u

union tx_copy {
    struct tx_head h;
    uint8_t frame[TX_SMALL];
};

// pwritev2 would do for both, at offset -1: it costs the small frame 0.1 µs more, a tenth of the rate.
// #syscalls:device write pwritev2(0)
static ssize_t put_frame(struct net *n, union tx_copy *f, const struct vchain *c)
{
    if (c->rbytes <= sizeof(*f))
        return write(n->s.tap_fd, f, c->rbytes);
    // The judged header, and behind it the guest's bytes where they lie.
    n->tx_iov[0] = (struct iovec){.iov_base = f, .iov_len = sizeof(f->h)};
    size_t skip = sizeof(f->h);
    int cnt = 1;
    for (unsigned i = 0; i < c->nr; i++) {
        const struct iovec *v = &c->iov[i];
        const size_t s = MIN(skip, v->iov_len);
        skip -= s;
        if (s < v->iov_len)
            n->tx_iov[cnt++] =
                (struct iovec){.iov_base = (uint8_t *)v->iov_base + s, .iov_len = v->iov_len - s};
    }
    return pwritev2(n->s.tap_fd, n->tx_iov, cnt, -1, 0);
}

static void send_frame(struct net *n, union tx_copy *f, const struct vchain *c)
{
    if (put_frame(n, f, c) >= 0) {
        net_count(&n->m.tx_packets, 1);
        net_count(&n->m.tx_bytes, c->rbytes - NET_HDR_LEN);
        return;
    }
    net_count(&n->m.tx_fails, 1); // dropped, as a wire would: interface down, no memory, refused
    if (errno == EBADFD)
        net_tap_gone(n);
}

// One chain from the queue to the tap, or to the floor with the reason counted.
static void transmit(struct net *n, const struct vchain *c)
{
    union tx_copy f;
    const uint32_t got = vchain_read(c, 0, &f, c->rbytes <= sizeof(f) ? c->rbytes : sizeof(f.h));
    if (got < sizeof(f.h) || !head_is_sane(n, &f.h, c->rbytes - NET_HDR_LEN))
        net_count(&n->m.tx_malformed, 1);
    else if (n->s.has_mac && !n->s.allow_spoof && memcmp(f.h.src, n->s.mac, 6) != 0)
        net_count(&n->m.tx_spoofed, 1);
    else if (n->tx_wait == NET_GONE)
        net_count(&n->m.tx_fails, 1);
    else
        send_frame(n, &f, c);
}

// Asks the limiter; a refused chain goes back to the queue.
static bool admitted(struct net *n, const struct vchain *c)
{
    if (limiter_is_off(&n->tx_limit) || n->tx_wait == NET_GONE)
        return true;
    const uint64_t at = limiter_take(&n->tx_limit, c->rbytes, now_ns());
    if (at == 0)
        return true;
    virtq_unpop(&n->d.queue[NET_TXQ], c);
    net_count(&n->m.tx_throttled, 1);
    n->tx_wait = NET_WAIT_TIMER;
    net_wake_at(n, false, at);
    return false;
}

void net_tx_run(struct net *n)
{
    struct virtq *q = &n->d.queue[NET_TXQ];
    struct vchain c;
    const unsigned limit = q->s.size;
    unsigned done = 0;
    int rc = 0;
    if (!q->desc)
        return;
    virtq_disable_kick(q);
    while (done < limit) {
        rc = virtq_pop(q, &c);
        if (rc == 0 && !virtq_enable_kick(q))
            break;
        if (rc == 0) {
            virtq_disable_kick(q); // chains came while we turned to sleep
            done++;                // counts, lest a driver keep us here without end
            continue;
        }
        if (rc < 0 || c.nw > 0) {
            rc = -EINVAL;
            break;
        }
        if (!admitted(n, &c))
            break;
        transmit(n, &c);
        virtq_push(q, c.head, 0);
        if (++done % SIGNAL_EVERY == 0)
            vio_signal(&n->d, q);
    }
    vio_signal(&n->d, q);
    if (rc < 0)
        vio_fault(&n->d, "broken transmit queue");
    else if (done >= limit)
        n->d.host->again(n->d.host->ctx, n->d.slot);
}
