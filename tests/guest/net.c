// SPDX-License-Identifier: Apache-2.0
// virtio-net driver: mergeable receive buffers, offloads both ways, announcement (virtio 1.2,
// section 5.1).
#include "net.h"

#define F_CSUM           (1ull << 0)
#define F_GUEST_CSUM     (1ull << 1)
#define F_MTU            (1ull << 3)
#define F_MAC            (1ull << 5)
#define F_GUEST_TSO4     (1ull << 7)
#define F_HOST_TSO4      (1ull << 11)
#define F_MRG_RXBUF      (1ull << 15)
#define F_STATUS         (1ull << 16)
#define F_CTRL_VQ        (1ull << 17)
#define F_GUEST_ANNOUNCE (1ull << 21)
#define S_ANNOUNCE       2

#define QUEUE_MAX 256
#define RX_BUF    2048u
#define BIG_BUF   65536u
#define N_BIG     16u

struct virtio_net_hdr {
    uint8_t flags, gso_type;
    uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};
#define HDR_LEN        ((uint16_t)sizeof(struct virtio_net_hdr))
#define HDR_NEEDS_CSUM 1
#define HDR_DATA_VALID 2
#define HDR_TCPV4      1

struct net net;
static uint8_t *rx_mem, *tx_mem, *big_mem;
static uint8_t *rx_spare[QUEUE_MAX];
static unsigned rx_spare_n;
static bool kept; // the packet being handled stays with its handler
static uint16_t tx_free[QUEUE_MAX], big_free[N_BIG], tx_free_n, big_free_n;

static uint32_t loss; // net.loss=N: of 1000 frames N are dropped, each way

static bool lose(void)
{
    bool lost = loss && rand64() % 1000 < loss;
    net.stats.lost += lost;
    return lost;
}

static void post_rx(void *buf)
{
    struct sg sg = {buf, RX_BUF};
    vq_add(&net.rx, &sg, 0, 1, buf);
}

bool net_start(struct vdev *d)
{
    uint64_t want = F_CSUM | F_GUEST_CSUM | F_MTU | F_MAC | F_HOST_TSO4 | F_MRG_RXBUF | F_STATUS |
                    F_CTRL_VQ | F_GUEST_ANNOUNCE | VIRTIO_F_EVENT_IDX;
    want &= ~arg_u64("net.mask", 0);
    // Large received segments need buffers that merge; without those each buffer would be 64 KiB.
    if (!vdev_start(d, want | F_GUEST_TSO4))
        return false;
    if (!(d->features & F_MRG_RXBUF) && d->features & F_GUEST_TSO4 && !vdev_start(d, want))
        return false;
    net.dev = d;
    net.mtu = d->features & F_MTU ? (uint16_t)(rd32(d->base + MMIO_CONFIG + 8) >> 16) : 0;
    loss = (uint32_t)arg_u64("net.loss", 0);
    net.tx_csum = d->features & F_CSUM;
    net.tso = net.tx_csum && d->features & F_HOST_TSO4;
    uint16_t rx_max = (uint16_t)arg_u64("net.rx", 128);
    if (!vq_setup(&net.rx, d, 0, MIN(rx_max, QUEUE_MAX)) || !vq_setup(&net.tx, d, 1, QUEUE_MAX))
        return false;
    net.ctrl_ok = d->features & F_CTRL_VQ && vq_setup(&net.ctrl, d, 2, 16);
    for (unsigned i = 0; i < 6; i++)
        net.mac[i] = d->features & F_MAC ? rd8(d->base + MMIO_CONFIG + i) : (uint8_t)(i ? i : 2);
    if (!rx_mem) {
        rx_mem = arena((size_t)RX_BUF * QUEUE_MAX, 4096);
        tx_mem = arena((size_t)RX_BUF * QUEUE_MAX, 4096);
        big_mem = arena((size_t)BIG_BUF * N_BIG, 4096);
    }
    tx_free_n = big_free_n = 0;
    for (uint16_t i = QUEUE_MAX; i--;)
        tx_free[tx_free_n++] = i;
    for (uint16_t i = N_BIG; i--;)
        big_free[big_free_n++] = i;
    rx_spare_n = 0;
    for (uint16_t i = QUEUE_MAX; i--;) {
        if (i < net.rx.size)
            post_rx(rx_mem + (size_t)RX_BUF * i);
        else
            rx_spare[rx_spare_n++] = rx_mem + (size_t)RX_BUF * i;
    }
    vdev_ok(d);
    vq_kick(&net.rx);
    net.up = true;
    return true;
}

// ---- receive ----

static void *next_part(uint32_t *len)
{
    // The pieces of one packet are published together; a device that does not is given a moment
    // only.
    for (unsigned i = 0; i < 1000; i++) {
        void *buf = vq_get(&net.rx, len);
        if (buf)
            return buf;
    }
    return NULL;
}

static bool receive_one(void)
{
    struct pkt p;
    void *bufs[PKT_PARTS];
    uint32_t len;
    uint8_t *b = vq_get(&net.rx, &len);
    if (!b)
        return false;
    const struct virtio_net_hdr *h = (const void *)b;
    unsigned want = net.dev->features & F_MRG_RXBUF ? h->num_buffers : 1;
    bool bad = len <= HDR_LEN || len > RX_BUF || want < 1 || want > PKT_PARTS;
    p.data = b + HDR_LEN;
    p.len = p.first = bad ? 0 : len - HDR_LEN;
    p.csum_ok = h->flags & (HDR_NEEDS_CSUM | HDR_DATA_VALID);
    p.part[0] = (struct sg){p.data, p.first};
    bufs[0] = b;
    for (p.n = 1; !bad && p.n < want; p.n++) {
        bufs[p.n] = next_part(&len);
        if (!bufs[p.n]) {
            bad = true;
            break;
        }
        p.part[p.n] = (struct sg){bufs[p.n], len};
        p.len += len;
    }
    kept = false;
    net.stats.rx_packets++;
    net.stats.rx_bytes += p.len;
    if (bad)
        net.stats.rx_bad++;
    else if (!lose())
        ip_input(&p);
    for (unsigned i = 0; i < p.n; i++)
        post_rx(kept ? rx_spare[--rx_spare_n] : bufs[i]);
    return true;
}

bool net_keep(const struct pkt *p)
{
    kept = rx_spare_n >= p->n;
    return kept;
}

void net_drop(const struct pkt *p)
{
    for (unsigned i = 0; i < p->n; i++)
        rx_spare[rx_spare_n++] = (uint8_t *)p->part[i].p - (i ? 0 : HDR_LEN);
}

// ---- send ----

static void give_back(const uint8_t *b)
{
    if (b >= big_mem && b < big_mem + (size_t)BIG_BUF * N_BIG)
        big_free[big_free_n++] = (uint16_t)((size_t)(b - big_mem) / BIG_BUF);
    else if (b >= tx_mem && b < tx_mem + (size_t)RX_BUF * QUEUE_MAX)
        tx_free[tx_free_n++] = (uint16_t)((size_t)(b - tx_mem) / RX_BUF);
}

static void reclaim(void)
{
    uint32_t len;
    for (uint8_t *b; (b = vq_get(&net.tx, &len));)
        give_back(b);
}

uint8_t *net_frame(bool big)
{
    uint16_t *n = big ? &big_free_n : &tx_free_n;
    if (!net.up)
        return NULL;
    if (!*n || !net.tx.free)
        reclaim();
    if (!*n || !net.tx.free) {
        net.stats.tx_full++;
        return NULL;
    }
    uint8_t *b =
        big ? big_mem + (size_t)BIG_BUF * big_free[--*n] : tx_mem + (size_t)RX_BUF * tx_free[--*n];
    return b + HDR_LEN;
}

void net_send(uint8_t *frame, uint32_t len, const struct offload *o)
{
    uint8_t *b = frame - HDR_LEN;
    struct virtio_net_hdr h = {0};
    if (o && o->csum_offset) {
        h.flags = HDR_NEEDS_CSUM;
        h.csum_start = o->csum_start;
        h.csum_offset = o->csum_offset;
        h.hdr_len = o->hdr_len;
        h.gso_size = o->gso_size;
        h.gso_type = o->gso_size ? HDR_TCPV4 : 0;
    }
    memcpy(b, &h, sizeof(h));
    struct sg sg = {b, HDR_LEN + len};
    if (lose()) {
        give_back(b);
        return;
    }
    vq_add(&net.tx, &sg, 1, 0, b); // a frame buffer was given only while the ring had room
    net.stats.tx_packets++;
    net.stats.tx_bytes += len;
}

uint64_t net_tx_done(void)
{
    return net.stats.tx_packets - (uint16_t)(net.tx.avail_idx - net.tx.used[1]);
}

bool net_send_ring(void *buf, uint32_t len)
{
    struct sg sg = {buf, len};
    if (!net.tx.free)
        reclaim();
    return vq_add(&net.tx, &sg, 1, 0,
                  &net); // a cookie that reclaim does not take for one of its own
}

void net_flush(void)
{
    if (!net.up)
        return;
    vq_kick(&net.rx);
    vq_kick(&net.tx);
}

bool net_poll(void)
{
    if (!net.up)
        return false;
    bool any = vq_pending(&net.tx) && net.tx.free < net.tx.size / 2;
    if (any)
        reclaim();
    for (unsigned i = 0; i < 64 && receive_one(); i++)
        any = true;
    return any;
}

bool net_arm(void)
{
    if (!net.up)
        return false;
    // Completions of sends wake us only when somebody found the ring or its buffers exhausted.
    uint16_t flying = (uint16_t)(net.tx.size - net.tx.free);
    bool starved = !net.tx.free || !tx_free_n || !big_free_n;
    if (vq_arm(&net.tx, starved ? (uint16_t)(flying / 2 + 1) : 0x7fff))
        return true;
    return vq_arm(&net.rx, 1);
}

// Section 5.1.6.5.4: tell the network where we are, then tell the device that we did.
void net_config_changed(void)
{
    static uint8_t cmd[3];
    if (!net.up || !(net.dev->features & F_STATUS))
        return;
    uint32_t status =
        rd8(net.dev->base + MMIO_CONFIG + 6) | (uint32_t)rd8(net.dev->base + MMIO_CONFIG + 7) << 8;
    if (!(status & S_ANNOUNCE) || !net.ctrl_ok)
        return;
    ip_announce();
    net_flush();
    net.stats.announces++;
    uint32_t len;
    while (vq_get(&net.ctrl, &len))
        ;
    cmd[0] = 3; // VIRTIO_NET_CTRL_ANNOUNCE, ACK
    cmd[1] = 0;
    cmd[2] = 0xff;
    struct sg sg[2] = {{cmd, 2}, {cmd + 2, 1}};
    if (vq_add(&net.ctrl, sg, 2 - 1, 1, cmd))
        vq_kick(&net.ctrl);
}
