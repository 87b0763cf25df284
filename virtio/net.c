// SPDX-License-Identifier: Apache-2.0
// The network device: features, configuration space, control queue, timers, announcements.
#include "virtio/net_priv.h"

#include <sys/uio.h>

enum { S_LINK_UP = 1, S_ANNOUNCE = 2 };            // 5.1.4
enum { CTRL_ANNOUNCE = 3, CTRL_ANNOUNCE_ACK = 0 }; // 5.1.6.5.4
enum { CTRL_OK = 0, CTRL_ERR = 1 };                // 5.1.6.5

static struct net *net_of(struct vio_dev *d)
{
    return (struct net *)d;
}

static uint64_t net_features(const struct vio_dev *d)
{
    const struct net *n = (const struct net *)d;
    return n->offloads | NET_F_MRG_RXBUF | NET_F_STATUS | NET_F_CTRL_VQ | NET_F_GUEST_ANNOUNCE |
           (n->s.has_mac ? NET_F_MAC : 0) | (n->s.mtu ? NET_F_MTU : 0);
}

static void net_config_read(struct vio_dev *d, uint32_t off, void *buf, uint32_t len)
{
    const struct net *n = net_of(d);
    uint8_t cfg[12] = {0}; // mac, status, max_virtqueue_pairs, mtu (5.1.4)
    if (n->s.has_mac)
        memcpy(cfg, n->s.mac, 6);
    le16_put(cfg + 6, n->status);
    le16_put(cfg + 8, 1);
    le16_put(cfg + 10, n->s.mtu);
    memset(buf, 0, len);
    if (off < sizeof(cfg))
        memcpy(buf, cfg + off, MIN(len, (uint32_t)sizeof(cfg) - off));
}

static void net_config_write(struct vio_dev *d, uint32_t off, const void *buf, uint32_t len)
{
    (void)d, (void)off, (void)buf, (void)len; // 5.1.4.1: read-only for a modern driver
}

// Both directions start over; what the tap must be told waits for the device thread.
static void start_over(struct net *n)
{
    n->rx.want = RX_SMALL;
    n->rx.kicks_on = true;
    n->rx_at = n->tx_at = 0;
    if (n->rx.wait != NET_GONE)
        n->rx.wait = n->tx_wait = NET_RUN;
}

static int net_activate(struct vio_dev *d)
{
    net_of(d)->offload_due = true;
    start_over(net_of(d));
    return 0;
}

static void net_reset(struct vio_dev *d)
{
    struct net *n = net_of(d);
    net_rx_unstage(n); // the queues are gone already, so this only forgets
    n->status &= (uint16_t)~S_ANNOUNCE;
    // A timer that is armed finds nothing due: it is the device thread's to disarm, this may be a vCPU's.
}

static void net_quiesce(struct vio_dev *d, bool on)
{
    if (on)
        net_rx_unstage(net_of(d));
    else
        start_over(net_of(d));
}

// ---- control queue

static uint8_t control(struct net *n, const uint8_t cmd[2], uint32_t len)
{
    if (len < 2 || cmd[0] != CTRL_ANNOUNCE || cmd[1] != CTRL_ANNOUNCE_ACK ||
        !net_has(n, NET_F_GUEST_ANNOUNCE))
        return CTRL_ERR;
    n->status &= (uint16_t)~S_ANNOUNCE;
    return CTRL_OK;
}

static void ctrl_run(struct net *n)
{
    struct virtq *q = &n->d.queue[NET_CTRLQ];
    struct vchain c;
    unsigned done = 0;
    int rc = 0;
    while (done < q->s.size) {
        rc = virtq_pop(q, &c);
        if (rc == 0 && !virtq_enable_kick(q))
            break;
        done++;
        if (rc == 0)
            continue;
        if (rc < 0 || c.nw == 0) {
            vio_fault(&n->d, "broken control queue");
            return;
        }
        uint8_t cmd[2];
        const uint32_t len = vchain_read(&c, 0, cmd, sizeof(cmd));
        uint8_t *ack = c.iov[c.nr].iov_base;
        *ack = control(n, cmd, len);
        mem_dirty(n->d.mem, ack, 1);
        virtq_push(q, c.head, 1);
    }
    vio_signal(&n->d, q);
    if (rc != 0)
        n->d.host->again(n->d.host->ctx, n->d.slot);
}

// ---- events

static void run(struct net *n, bool rx, bool tx)
{
    if (n->offload_due) {
        n->offload_due = false;
        if (n->offloads && n->rx.wait != NET_GONE &&
            net_tap_set_offloads(n->s.tap_fd, n->d.s.drv_features) < 0)
            n->d.host->note(n->d.host->ctx, n->d.slot, "the tap refuses the negotiated offloads");
    }
    if (tx)
        net_tx_run(n);
    if (rx && n->d.active)
        net_rx_run(n);
}

static void net_kick(struct vio_dev *d)
{
    struct net *n = net_of(d);
    net_count(&n->m.tx_events, 1);
    if (n->rx.wait == NET_WAIT_QUEUE)
        n->rx.wait = NET_RUN;
    run(n, n->rx.wait == NET_RUN, n->tx_wait == NET_RUN || n->tx_wait == NET_GONE);
    if (d->active)
        ctrl_run(n);
}

static void net_readable(struct vio_dev *d)
{
    struct net *n = net_of(d);
    net_count(&n->m.rx_events, 1);
    if (n->rx.wait != NET_WAIT_TAP)
        return; // of a poll from before a reset or a pause
    n->rx.wait = NET_RUN;
    run(n, true, false);
}

static void arm_timer(struct net *n)
{
    uint64_t at = n->rx_at;
    if (n->tx_at && (!at || n->tx_at < at))
        at = n->tx_at;
    n->d.host->timer(n->d.host->ctx, n->d.slot, at);
}

void net_wake_at(struct net *n, bool rx, uint64_t at)
{
    *(rx ? &n->rx_at : &n->tx_at) = at;
    arm_timer(n);
}

static void net_timer(struct vio_dev *d)
{
    struct net *n = net_of(d);
    const uint64_t now = now_ns();
    const bool rx = n->rx_at && n->rx_at <= now, tx = n->tx_at && n->tx_at <= now;
    if (rx)
        n->rx_at = 0;
    if (tx)
        n->tx_at = 0;
    arm_timer(n);
    if (rx && n->rx.wait != NET_GONE)
        n->rx.wait = NET_RUN;
    if (tx && n->tx_wait != NET_GONE)
        n->tx_wait = NET_RUN;
    run(n, rx && n->rx.wait == NET_RUN, tx);
}

void net_tap_gone(struct net *n)
{
    n->rx.wait = n->tx_wait = NET_GONE;
    n->status &= (uint16_t)~S_LINK_UP;
    vio_config_changed(&n->d);
    n->d.host->note(n->d.host->ctx, n->d.slot, "the tap is gone: link down");
}

// ---- announcement

// #syscalls:device pwritev2(0)
static void send_rarp(struct net *n)
{
    uint8_t p[NET_HDR_LEN + 60] = {0};                                 // smallest Ethernet frame
    static const uint8_t arp[] = {0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3}; // RFC 903, request reverse
    uint8_t *eth = p + NET_HDR_LEN;
    memset(eth, 0xff, 6);
    memcpy(eth + 6, n->s.mac, 6);
    memcpy(eth + 12, arp, sizeof(arp));
    memcpy(eth + 22, n->s.mac, 6);
    memcpy(eth + 32, n->s.mac, 6);
    const struct iovec v = {.iov_base = p, .iov_len = sizeof(p)};
    if (pwritev2(n->s.tap_fd, &v, 1, -1, 0) < 0)
        net_count(&n->m.tx_fails, 1);
}

void net_announce(struct net *n)
{
    pthread_mutex_lock(&n->d.lock);
    if (n->d.active && net_has(n, NET_F_GUEST_ANNOUNCE) && net_has(n, NET_F_CTRL_VQ)) {
        n->status |= S_ANNOUNCE;
        vio_config_changed(&n->d);
    }
    if (n->s.has_mac && n->rx.wait != NET_GONE)
        send_rarp(n);
    pthread_mutex_unlock(&n->d.lock);
}

// #syscalls:device preadv2(0)
void net_drop_waiting(struct net *n)
{
    const struct iovec v = {.iov_base = n->rx.scratch, .iov_len = RX_SCRATCH};

    // A tap holds 1,000 frames unless it was told otherwise; more come while these go.
    for (unsigned i = 0; i < 2000 && preadv2(n->s.tap_fd, &v, 1, -1, 0) > 0; i++)
        ;
}

// ---- making and ending

static const struct vio_ops net_ops = {
    .id = VIO_ID_NET,
    .queues = NET_QUEUES,
    .features = net_features,
    .config_read = net_config_read,
    .config_write = net_config_write,
    .activate = net_activate,
    .reset = net_reset,
    .kick = net_kick,
    .readable = net_readable,
    .timer = net_timer,
    .quiesce = net_quiesce,
};

struct net *net_new(const struct vio_host *host, struct guest_mem *mem, unsigned slot,
                    const struct net_setup *s, const struct limiter_cfg *rx,
                    const struct limiter_cfg *tx, struct err *e)
{
    struct net *n = calloc(1, sizeof(*n));
    uint8_t *scratch = malloc(RX_SCRATCH); // touched by no more than the largest spill
    if (!n || !scratch) {
        err_set(e, ENOMEM, "no memory for a network device");
        goto fail;
    }
    const int file = host->file_add(host->ctx, s->tap_fd);
    if (file < 0) {
        err_set(e, -file, "cannot register the tap: %s", strerror(-file));
        goto fail;
    }
    vio_init(&n->d, &net_ops, host, mem, slot);
    n->s = *s;
    n->file = file;
    n->rx.scratch = scratch;
    n->status = S_LINK_UP;
    n->offloads = net_tap_offloads(s->tap_fd);
    const uint64_t now = now_ns();
    limiter_init(&n->rx_limit, rx, now);
    limiter_init(&n->tx_limit, tx, now);
    return n;
fail:
    free(scratch);
    free(n);
    return NULL;
}

struct vio_dev *net_dev(struct net *n)
{
    return &n->d;
}

void net_free(struct net *n)
{
    if (!n)
        return;
    n->d.host->file_del(n->d.host->ctx, n->file);
    close(n->s.tap_fd);
    pthread_mutex_destroy(&n->d.lock);
    free(n->rx.scratch);
    free(n);
}

void net_limit(struct net *n, const struct limiter_cfg *rx, const struct limiter_cfg *tx)
{
    pthread_mutex_lock(&n->d.lock);
    const uint64_t now = now_ns();
    limiter_patch(&n->rx_limit, rx, now);
    limiter_patch(&n->tx_limit, tx, now);
    if (n->rx_at || n->tx_at) { // whoever waits asks the new limits
        n->rx_at = n->rx_at ? 1 : 0;
        n->tx_at = n->tx_at ? 1 : 0;
        arm_timer(n);
    }
    pthread_mutex_unlock(&n->d.lock);
}

struct net_metrics *net_metrics(struct net *n)
{
    return &n->m;
}

struct limiter *net_limiter(struct net *n, bool rx)
{
    return rx ? &n->rx_limit : &n->tx_limit;
}
