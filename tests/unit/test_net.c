// SPDX-License-Identifier: Apache-2.0
// virtio-net over a socket pair that keeps message borders as a tap does, and over real taps where
// the host lets us make them: headers, sizes, spoofing, buffers, starvation, limits, pause, removal.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "tests/unit/vio_fake.h"
#include "virtio/net_priv.h"

#define RAM    (8 * MIB)
#define QSIZE  16
#define BASE_F (VIO_F_VERSION_1 | VIO_F_EVENT_IDX | NET_F_MAC)
#define OFFLOADS \
    (NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_HOST_TSO4 | NET_F_HOST_TSO6 | NET_F_HOST_UFO)
#define RXBUF(i) (0x100000ULL + (i)*0x10000ULL) // where test i's receive buffers lie
#define TXBUF    0x80000ULL
#define ACK      0x90000ULL

static const uint8_t mac[6] = {2, 1, 2, 3, 4, 5}, other[6] = {2, 9, 9, 9, 9, 9};
static struct guest_mem mem;
static struct fake_host fake;
static struct vio_host host;
static struct net *net;
static struct vio_dev *dev;
static struct drv_queue rxq, txq, ctq;
static int wire; // the other end of the tap
static uint8_t big[80000];

static void make(const struct net_setup *s)
{
    ck_assert_int_eq(mem_reserve(&mem, RAM, NULL), 0);
    ck_assert_int_eq(mem_back_anon(&mem, false, NULL), 0);
    host = fake_vio_host(&fake);
    struct err e = {""};
    net = net_new(&host, &mem, 0, s, NULL, NULL, &e);
    ck_assert_msg(net != NULL, "%s", e.msg);
    dev = net_dev(net);
    rxq = drv_queue(&mem, 0x10000, QSIZE);
    txq = drv_queue(&mem, 0x20000, QSIZE);
    ctq = drv_queue(&mem, 0x30000, 4);
}

static void setup(void)
{
    int fd[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fd), 0);
    const int room = 1 << 21;
    setsockopt(fd[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
    setsockopt(fd[1], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
    wire = fd[1];
    struct net_setup s = {.tap_fd = fd[0], .has_mac = true, .mtu = 1500};
    memcpy(s.mac, mac, 6);
    make(&s);
    ck_assert_uint_eq(net->offloads, 0); // a socket has none; tests that need them lend them
    net->offloads = OFFLOADS;
}

static void teardown(void)
{
    net_free(net);
    mem_free(&mem);
    close(wire);
}

static void live(uint64_t features)
{
    drv_features(dev, features | VIO_F_VERSION_1);
    ck_assert_uint_eq(rd(dev, 0x70), 11);
    rxq.idx = txq.idx = ctq.idx = 0;
    const uint8_t zero[8] = {0};
    put(&mem, rxq.avail, zero, 4), put(&mem, txq.avail, zero, 4), put(&mem, ctq.avail, zero, 4);
    put(&mem, rxq.used, zero, 4), put(&mem, txq.used, zero, 4), put(&mem, ctq.used, zero, 4);
    drv_setup_queue(dev, 0, &rxq);
    drv_setup_queue(dev, 1, &txq);
    if (features & NET_F_CTRL_VQ)
        drv_setup_queue(dev, 2, &ctq);
    wr(dev, 0x70, 15);
    ck_assert(dev->active);
}

static void frame(uint8_t *p, const uint8_t src[6], size_t len) // header and frame of len bytes
{
    memset(p, 0, NET_HDR_LEN);
    for (size_t i = 0; i < len; i++)
        p[NET_HDR_LEN + i] = (uint8_t)(i * 7);
    if (len >= 12)
        memcpy(p + NET_HDR_LEN + 6, src, 6);
}

static void offer_tx(const void *p, uint32_t len)
{
    const uint16_t d = txq.idx % QSIZE;
    put(&mem, TXBUF, p, len);
    drv_desc(&txq, d, TXBUF, len, 0, 0);
    drv_offer(&txq, d);
}

static void send_tx(const void *p, uint32_t len)
{
    offer_tx(p, len);
    vio_kick(dev);
}

static ssize_t from_wire(void *p, size_t len)
{
    return recv(wire, p, len, MSG_DONTWAIT);
}

static void to_wire(size_t len) // a frame of len bytes, with header
{
    frame(big, other, len);
    ck_assert_int_eq(send(wire, big, NET_HDR_LEN + len, 0), (ssize_t)(NET_HDR_LEN + len));
}

static void offer_rx(uint16_t d, uint32_t len)
{
    drv_desc(&rxq, d, RXBUF(d), len, D_WRITE, 0);
    drv_offer(&rxq, d);
}

// ---- identity

START_TEST(features_and_config)
{
    wr(dev, 0x14, 0);
    const uint64_t want = OFFLOADS | NET_F_MAC | NET_F_MTU | NET_F_MRG_RXBUF | NET_F_STATUS |
                          NET_F_CTRL_VQ | NET_F_GUEST_ANNOUNCE | VIO_F_EVENT_IDX |
                          VIO_F_INDIRECT_DESC;
    ck_assert_uint_eq(rd(dev, 0x10), want);
    ck_assert_uint_eq(rd(dev, 8), 1);
    for (unsigned i = 0; i < 6; i++)
        ck_assert_uint_eq(vio_mmio_read(dev, 0x100 + i, 1), mac[i]);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x106, 2), 1);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x10a, 2), 1500);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x10a, 8), 1500); // M2
    ck_assert_uint_eq(vio_mmio_read(dev, 0xffc, 8), 0);
    vio_mmio_write(dev, 0x100, 8, ~0ULL);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x100, 1), mac[0]);
}
END_TEST

// ---- transmission

START_TEST(transmit_in_pieces)
{
    live(BASE_F);
    uint8_t p[200], got[300];
    frame(p, mac, 100);
    p[10] = 0xff; // num_buffers means nothing here
    put(&mem, TXBUF, p, 112);
    static const uint32_t cuts[][4] = {{112, 0, 0, 0}, {12, 100, 0, 0}, {12, 14, 86, 0},
                                       {5, 20, 1, 86}, {26, 86, 0, 0},  {1, 1, 1, 109}};
    for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
        uint32_t off = 0;
        for (uint16_t j = 0; j < 4 && cuts[i][j]; off += cuts[i][j++])
            drv_desc(&txq, j, TXBUF + off, cuts[i][j], j < 3 && cuts[i][j + 1] ? D_NEXT : 0,
                     (uint16_t)(j + 1));
        drv_offer(&txq, 0);
        vio_kick(dev);
        ck_assert_int_eq(from_wire(got, sizeof(got)), 112);
        ck_assert_uint_eq(got[10], 0);
        ck_assert_int_eq(memcmp(got + 12, p + 12, 100), 0);
        ck_assert_uint_eq(drv_used_idx(&txq), i + 1);
    }
    ck_assert_uint_eq(atomic_load(&net_metrics(net)->tx_packets), 6);
    ck_assert_uint_eq(atomic_load(&net_metrics(net)->tx_bytes), 600);
    ck_assert_uint_eq(drv_avail_event(&txq), 6); // drained: kick for the next
    ck_assert_uint_eq(fake.irqs, 1);             // used_event stayed 0: one interrupt
}
END_TEST

struct hdr {
    uint8_t flags, type;
    uint16_t hdr_len, gso_size, start, off, num;
};

START_TEST(n1_headers)
{
    static const struct {
        uint64_t features;
        struct hdr h;
        bool good;
    } t[] = {
        {0, {0, 0, 0, 0, 0, 0, 0}, true},
        {0, {0xfe, 0, 99, 99, 99, 99, 99}, true}, // meaningless fields are wiped
        {0, {1, 0, 0, 0, 14, 6, 0}, false},       // not negotiated
        {NET_F_CSUM, {1, 0, 0, 0, 14, 6, 0}, true},
        {NET_F_CSUM, {1, 0, 0, 0, 14, 84, 0}, true}, // the last two bytes
        {NET_F_CSUM, {1, 0, 0, 0, 14, 85, 0}, false},
        {NET_F_CSUM, {1, 0, 0, 0, 0xffff, 0xffff, 0}, false},
        {NET_F_CSUM, {1, 1, 54, 1000, 34, 16, 0}, false}, // TSO4 not negotiated
        {NET_F_CSUM | NET_F_HOST_TSO4, {1, 1, 54, 1000, 34, 16, 0}, true},
        {NET_F_CSUM | NET_F_HOST_TSO4, {0, 1, 54, 1000, 34, 16, 0}, false}, // without checksum
        {NET_F_CSUM | NET_F_HOST_TSO4, {1, 1, 54, 0, 34, 16, 0}, false},
        {NET_F_CSUM | NET_F_HOST_TSO4, {1, 1, 101, 1000, 34, 16, 0}, false},
        {NET_F_CSUM | NET_F_HOST_TSO4, {1, 4, 54, 1000, 34, 16, 0}, false},
        {NET_F_CSUM | NET_F_HOST_TSO4, {1, 0x81, 54, 1000, 34, 16, 0}, false}, // ECN: not offered
        {NET_F_CSUM | NET_F_HOST_TSO6, {1, 4, 54, 1000, 34, 16, 0}, true},
        {NET_F_CSUM | NET_F_HOST_UFO, {1, 3, 42, 1000, 34, 6, 0}, true},
        {OFFLOADS, {1, 2, 54, 1000, 34, 16, 0}, false},
        {OFFLOADS, {1, 5, 54, 1000, 34, 16, 0}, false},
        {OFFLOADS, {1, 0xff, 54, 1000, 34, 16, 0}, false},
    };
    uint8_t p[112], got[200];
    for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
        live(BASE_F | t[i].features);
        frame(p, mac, 100);
        memcpy(p, &t[i].h, 12);
        const uint64_t bad = atomic_load(&net->m.tx_malformed);
        send_tx(p, 112);
        ck_assert_msg((from_wire(got, sizeof(got)) == 112) == t[i].good, "case %zu", i);
        ck_assert_uint_eq(atomic_load(&net->m.tx_malformed), bad + !t[i].good);
        if (t[i].good && !(t[i].h.flags & 1))
            for (unsigned k = 0; k < 12; k++)
                ck_assert_uint_eq(got[k], 0);
        ck_assert_uint_eq(drv_used_idx(&txq), 1);
        ck_assert(dev->active);
    }
}
END_TEST

START_TEST(n2_frame_sizes)
{
    static const struct {
        uint32_t total;
        bool good;
    } t[] = {{1, false},
             {11, false},
             {12, false},
             {12 + 13, false},
             {12 + 14, true},
             {12 + 60, true},
             {12 + NET_FRAME_MAX, true},
             {12 + NET_FRAME_MAX + 1, false}};
    static uint8_t p[70000], got[70000];
    live(BASE_F);
    for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
        frame(p, mac, sizeof(p) - 12);
        send_tx(p, t[i].total);
        ck_assert_int_eq(from_wire(got, sizeof(got)), t[i].good ? (ssize_t)t[i].total : -1);
        ck_assert_uint_eq(drv_used_idx(&txq), i + 1);
    }
    ck_assert(dev->active);
}
END_TEST

START_TEST(spoofed_frames_are_dropped)
{
    live(BASE_F);
    uint8_t p[112], got[200];
    frame(p, other, 100);
    send_tx(p, 112);
    ck_assert_int_eq(from_wire(got, sizeof(got)), -1);
    ck_assert_uint_eq(atomic_load(&net->m.tx_spoofed), 1);
    net->s.allow_spoof = true;
    send_tx(p, 112);
    ck_assert_int_eq(from_wire(got, sizeof(got)), 112);
    net->s.allow_spoof = net->s.has_mac = false;
    send_tx(p, 112);
    ck_assert_int_eq(from_wire(got, sizeof(got)), 112);
}
END_TEST

START_TEST(broken_transmit_chain)
{
    live(BASE_F);
    drv_desc(&txq, 0, TXBUF, 100, D_NEXT, 1);
    drv_desc(&txq, 1, TXBUF, 100, D_WRITE, 0);
    drv_offer(&txq, 0);
    vio_kick(dev);
    ck_assert(!dev->active);
    ck_assert_uint_eq(rd(dev, 0x70), 15 | VIO_ST_NEEDS_RESET);
    live(BASE_F);
    drv_offer(&txq, 77);
    vio_kick(dev);
    ck_assert(!dev->active);
    ck_assert_uint_eq(atomic_load(&dev->faults), 2);
}
END_TEST

static void *refill(void *arg)
{
    _Atomic bool *stop = arg;
    uint16_t *avail = mem_at(&mem, txq.avail, 4, MEM_READ);
    uint16_t *used = mem_at(&mem, txq.used, 4, MEM_READ);
    while (!*stop) // as many as the driver may: all that came back
        __atomic_store_n(&avail[1], (uint16_t)(__atomic_load_n(&used[1], __ATOMIC_ACQUIRE) + QSIZE),
                         __ATOMIC_RELEASE);
    return NULL;
}

START_TEST(q4_work_per_kick_is_bounded)
{
    live(BASE_F);
    const uint8_t junk[4] = {0}; // too short to be sent: what counts is the draining
    put(&mem, TXBUF, junk, 4);
    for (uint16_t i = 0; i < QSIZE; i++) {
        drv_desc(&txq, i, TXBUF, 4, 0, 0);
        put16(&mem, txq.avail + 4 + 2ULL * i, i);
    }
    _Atomic bool stop = false;
    pthread_t t;
    ck_assert_int_eq(pthread_create(&t, NULL, refill, &stop), 0);
    for (unsigned i = 0; i < 20000; i++) {
        const uint64_t before = atomic_load(&net->m.tx_malformed);
        vio_kick(dev);
        const uint64_t done = atomic_load(&net->m.tx_malformed) - before;
        ck_assert_uint_le(done, QSIZE);
    }
    stop = true;
    pthread_join(t, NULL);
    ck_assert(dev->active);
    const unsigned again = fake.again;
    __atomic_store_n((uint16_t *)mem_at(&mem, txq.avail + 2, 2, MEM_READ),
                     (uint16_t)(dev->queue[1].s.next_used + QSIZE), __ATOMIC_RELEASE);
    vio_kick(dev);
    ck_assert_uint_eq(fake.again, again + 1); // full measure: asks to be called again
}
END_TEST

// ---- reception

static uint16_t rx_num_buffers(uint16_t d)
{
    return get16(&mem, RXBUF(d) + 10);
}

static void expect_data(uint16_t d, uint32_t buf_off, uint32_t frame_off, uint32_t len)
{
    uint8_t p[70000];
    if (len == 0) // a first buffer that the header fills
        return;
    frame(big, other, sizeof(big) - 12);
    ck_assert_int_eq(mem_read(&mem, RXBUF(d) + buf_off, p, len), 0);
    ck_assert_int_eq(memcmp(p, big + 12 + frame_off, len), 0);
}

START_TEST(receive_one_buffer)
{
    live(BASE_F);
    for (uint16_t i = 0; i < 4; i++)
        offer_rx(i, 1526);
    vio_kick(dev);
    ck_assert_uint_eq(fake.polls_in, 1);
    to_wire(60);
    to_wire(1514);
    vio_readable(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 2);
    ck_assert_uint_eq(drv_used_len(&rxq, 0), 72);
    ck_assert_uint_eq(drv_used_len(&rxq, 1), 1526);
    ck_assert_uint_eq(rx_num_buffers(0), 1);
    ck_assert_uint_eq(rx_num_buffers(1), 1);
    expect_data(0, 12, 0, 60);
    expect_data(1, 12, 0, 1514);
    ck_assert_uint_eq(fake.polls_in, 2); // re-armed
    ck_assert_uint_eq(fake.irqs, 1);
    ck_assert_uint_eq(atomic_load(&net->m.rx_bytes), 1574);
}
END_TEST

START_TEST(receive_flags_need_negotiation)
{
    for (unsigned i = 0; i < 2; i++) {
        live(BASE_F | (i ? NET_F_GUEST_CSUM : 0));
        offer_rx(0, 1526);
        frame(big, other, 60);
        big[0] = 2; // DATA_VALID
        ck_assert_int_eq(send(wire, big, 72, 0), 72);
        vio_kick(dev);
        ck_assert_uint_eq(drv_used_idx(&rxq), 1);
        ck_assert_uint_eq(get16(&mem, RXBUF(0)) & 0xff, i ? 2 : 0);
    }
}
END_TEST

static void check_merged(uint32_t size, uint32_t len)
{
    const uint16_t first = (uint16_t)(drv_used_idx(&rxq));
    uint32_t left = len + 12;
    const uint16_t want = (uint16_t)((left + size - 1) / size);
    for (uint16_t i = 0; i < want + 1; i++)
        offer_rx((uint16_t)(rxq.idx % QSIZE), size);
    to_wire(len);
    vio_kick(dev);
    if (net->rx.wait == NET_WAIT_TAP)
        vio_readable(dev);
    ck_assert_uint_eq((uint16_t)(drv_used_idx(&rxq) - first), want);
    ck_assert_uint_eq(rx_num_buffers((uint16_t)drv_used_id(&rxq, first)), want);
    uint32_t off = 0;
    for (uint16_t i = 0; i < want; i++, off += size) {
        const uint16_t u = (uint16_t)(first + i);
        const uint32_t n = MIN(left, size), skip = i == 0 ? 12 : 0;
        ck_assert_uint_eq(drv_used_len(&rxq, u), n);
        expect_data((uint16_t)drv_used_id(&rxq, u), skip, off + skip - 12, n - skip);
        left -= n;
    }
}

START_TEST(receive_merged)
{
    static const struct {
        uint32_t size, len;
    } t[] = {{1526, 1514}, {1526, 1515}, {1526, 9000}, {5000, 65553}, {5000, 65536},
             {5000, 60},   {12, 60},     {13, 14},     {60000, 65553}};
    for (size_t i = 0; i < ARRAY_SIZE(t); i++)
        for (int large = 0; large < 2; large++) { // spilt and copied, then straight
            live(BASE_F | NET_F_MRG_RXBUF);
            if (large)
                net->rx.want = RX_LARGE;
            check_merged(t[i].size, t[i].len);
        }
}
END_TEST

START_TEST(receive_adapts)
{
    live(BASE_F | NET_F_MRG_RXBUF);
    check_merged(5000, 60);
    ck_assert_uint_eq(net->rx.want, RX_SMALL);
    live(BASE_F | NET_F_MRG_RXBUF);
    check_merged(5000, 40000);
    ck_assert_uint_eq(net->rx.want, RX_LARGE);
    for (unsigned i = 0; i < 64; i++) {
        to_wire(60);
        offer_rx((uint16_t)drv_used_id(&rxq, (uint16_t)(drv_used_idx(&rxq) - 1)), 5000);
        vio_kick(dev);
        if (net->rx.wait == NET_WAIT_TAP)
            vio_readable(dev);
    }
    ck_assert_uint_eq(net->rx.want, RX_SMALL);
}
END_TEST

START_TEST(n3_chain_too_small)
{
    live(BASE_F); // not mergeable: dropped, the buffer serves the next
    offer_rx(0, 100);
    to_wire(60);
    to_wire(89);
    to_wire(88);
    vio_kick(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 1);
    offer_rx(1, 100);
    vio_kick(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 2);
    ck_assert_uint_eq(drv_used_len(&rxq, 1), 100);
    ck_assert_uint_eq(atomic_load(&net->m.rx_dropped), 1);

    live(BASE_F | NET_F_MRG_RXBUF); // the whole queue is too small
    for (uint16_t i = 0; i < QSIZE; i++)
        offer_rx(i, 1000);
    to_wire(QSIZE * 1000 - 11);
    to_wire(QSIZE * 1000 - 12);
    vio_kick(dev);
    ck_assert_uint_eq(atomic_load(&net->m.rx_dropped), 2);
    ck_assert_uint_eq(drv_used_idx(&rxq), QSIZE);
    ck_assert(dev->active);

    for (unsigned i = 0; i < 2; i++) { // no room for a header
        live(BASE_F | (i ? NET_F_MRG_RXBUF : 0));
        offer_rx(0, 11);
        to_wire(60);
        vio_kick(dev);
        ck_assert(!dev->active);
    }
    live(BASE_F); // readable
    drv_desc(&rxq, 0, RXBUF(0), 100, 0, 0);
    drv_offer(&rxq, 0);
    vio_kick(dev);
    ck_assert(!dev->active);
}
END_TEST

START_TEST(n4_full_queue_and_recovery)
{
    live(BASE_F | NET_F_MRG_RXBUF);
    vio_kick(dev);
    ck_assert_uint_eq(fake.polls_in, 0); // no buffers: the tap is not watched
    for (unsigned i = 0; i < 40; i++)
        to_wire(60);
    for (unsigned i = 0; i < 10; i++)
        vio_readable(dev); // of an older poll
    ck_assert_uint_eq(fake.polls_in, 0);
    ck_assert_uint_ge(atomic_load(&net->m.rx_no_buffers), 1);
    ck_assert_uint_eq(drv_avail_event(&rxq), 0);
    for (unsigned round = 0; round < 40; round++) {
        offer_rx((uint16_t)(rxq.idx % QSIZE), 200);
        vio_kick(dev);
        ck_assert_uint_eq(drv_used_idx(&rxq), round + 1);
    }
    offer_rx(0, 200);
    vio_kick(dev);
    ck_assert_uint_eq(fake.polls_in, 1); // all drained and buffers left
    ck_assert_uint_eq(atomic_load(&net->m.rx_dropped), 0);
}
END_TEST

START_TEST(frame_waits_for_more_buffers)
{
    live(BASE_F | NET_F_MRG_RXBUF);
    offer_rx(0, 1000);
    to_wire(2500);
    vio_kick(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 0);
    ck_assert_uint_gt(fake.timer, 0);
    offer_rx(1, 1000);
    vio_kick(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 0);
    offer_rx(2, 1000);
    vio_kick(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 3);
    ck_assert_uint_eq(rx_num_buffers(0), 3);
    expect_data(0, 12, 0, 988);
    expect_data(1, 0, 988, 1000);
    expect_data(2, 0, 1988, 512);

    offer_rx(3, 1000); // and not for ever: a driver that thinks it posted enough gets the next one
    to_wire(2500);
    to_wire(60);
    vio_kick(dev);
    if (net->rx.wait == NET_WAIT_TAP)
        vio_readable(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 3);
    net->rx_at = net->rx.give_up = 1;
    vio_timer(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 4);
    ck_assert_uint_eq(atomic_load(&net->m.rx_dropped), 1);
    ck_assert_uint_eq(drv_used_len(&rxq, 3), 72);
}
END_TEST

START_TEST(received_bytes_are_dirty)
{
    live(BASE_F | NET_F_MRG_RXBUF);
    offer_rx(0, 0x3000);
    vio_kick(dev); // staged
    ck_assert_int_eq(mem_track(&mem, true, NULL), 0);
    to_wire(5000);
    vio_readable(dev);
    const size_t page = RXBUF(0) / PAGE_SIZE;
    ck_assert_uint_eq(mem_dirty_take(&mem, page / 64) >> page % 64, 3); // two pages, not three
}
END_TEST

// ---- limits

START_TEST(limits)
{
    live(BASE_F | NET_F_MRG_RXBUF);
    uint8_t p[112], got[200];
    const struct limiter_cfg two = {.set = true,
                                    .ops = {.set = true, .size = 2, .refill_ms = 1u << 30}};
    const struct limiter_cfg off = {.set = true, .ops = {.set = true}};
    net_limit(net, &two, &two);
    frame(p, mac, 100);
    for (unsigned i = 0; i < 4; i++) {
        offer_rx((uint16_t)i, 200);
        to_wire(60);
        offer_tx(p, 112);
    }
    vio_kick(dev);
    ck_assert_uint_eq(drv_used_idx(&txq), 2);
    ck_assert_uint_eq(drv_used_idx(&rxq), 2);
    ck_assert_uint_eq(atomic_load(&net->m.tx_throttled), 1);
    ck_assert_uint_eq(atomic_load(&net->m.rx_throttled), 1);
    ck_assert_uint_gt(fake.timer, now_ns());
    vio_kick(dev); // a kick does not help, nor does a poll or an early timer
    vio_readable(dev);
    vio_timer(dev);
    ck_assert_uint_eq(drv_used_idx(&txq), 2);
    ck_assert_uint_eq(drv_used_idx(&rxq), 2);
    net_limit(net, &off, &off); // taken away: those who wait go on
    ck_assert_uint_le(fake.timer, now_ns());
    vio_timer(dev);
    ck_assert_uint_eq(drv_used_idx(&txq), 4);
    ck_assert_uint_eq(drv_used_idx(&rxq), 4);
    for (unsigned i = 0; i < 4; i++)
        ck_assert_int_eq(from_wire(got, sizeof(got)), 112);
    ck_assert_uint_eq(atomic_load(&net->m.rx_dropped), 0);
}
END_TEST

// ---- control queue and announcement

static uint8_t command(uint8_t class, uint8_t cmd, uint32_t len)
{
    const uint8_t c[2] = {class, cmd};
    put(&mem, TXBUF, c, 2);
    const uint8_t none = 0xee;
    put(&mem, ACK, &none, 1);
    drv_desc(&ctq, 0, TXBUF, len, D_NEXT, 1);
    drv_desc(&ctq, 1, ACK, 1, D_WRITE, 0);
    drv_offer(&ctq, 0);
    vio_kick(dev);
    return (uint8_t)get16(&mem, ACK);
}

START_TEST(control_queue)
{
    live(BASE_F | NET_F_STATUS | NET_F_CTRL_VQ | NET_F_GUEST_ANNOUNCE);
    const uint32_t gen = rd(dev, 0xfc);
    uint8_t p[100];
    net_announce(net);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x106, 2), 3);
    ck_assert_uint_eq(rd(dev, 0xfc), gen + 1);
    ck_assert_uint_eq(rd(dev, 0x60) & VIO_INT_CONFIG, VIO_INT_CONFIG);
    ck_assert_int_eq(from_wire(p, sizeof(p)), 72); // the RARP
    ck_assert_int_eq(memcmp(p + 12 + 6, mac, 6), 0);
    ck_assert_int_eq(p[12 + 12] << 8 | p[12 + 13], 0x8035);
    ck_assert_uint_eq(command(3, 1, 2), 1);
    ck_assert_uint_eq(command(0, 0, 2), 1);
    ck_assert_uint_eq(command(3, 0, 1), 1);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x106, 2), 3);
    ck_assert_uint_eq(command(3, 0, 2), 0);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x106, 2), 1);
    ck_assert_uint_eq(drv_used_idx(&ctq), 4);
    ck_assert_uint_eq(drv_used_len(&ctq, 3), 1);
    drv_desc(&ctq, 0, TXBUF, 2, 0, 0); // nowhere to answer
    drv_offer(&ctq, 0);
    vio_kick(dev);
    ck_assert(!dev->active);
    live(BASE_F); // a driver without the queue is told by RARP alone
    net_announce(net);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x106, 2), 1);
    ck_assert_int_eq(from_wire(p, sizeof(p)), 72);
}
END_TEST

// ---- pause, reset, removal

START_TEST(pause_gives_buffers_back)
{
    live(BASE_F | NET_F_MRG_RXBUF);
    for (uint16_t i = 0; i < 3; i++)
        offer_rx(i, 1000);
    to_wire(60);
    to_wire(2500); // held when the pause comes
    vio_kick(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 1);
    ck_assert(vio_quiesce(dev, true));
    ck_assert_uint_eq(atomic_load(&net->m.rx_dropped), 1);
    struct vio_state s;
    vio_save(dev, &s);
    ck_assert_uint_eq(s.q[0].next_avail, 1); // all that was popped was pushed or put back
    ck_assert_uint_eq(s.q[0].next_used, 1);
    struct net_limiter_probe {
        struct limiter l;
    } probe = {*net_limiter(net, true)};
    ck_assert(limiter_is_off(&probe.l));
    vio_quiesce(dev, false);
    to_wire(1500);
    vio_kick(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 3);
    ck_assert_uint_eq(drv_used_id(&rxq, 1), 1); // in order
    ck_assert_uint_eq(rx_num_buffers(1), 2);
}
END_TEST

START_TEST(restore)
{
    live(BASE_F | NET_F_MRG_RXBUF);
    offer_rx(0, 1000);
    vio_kick(dev);
    vio_quiesce(dev, true);
    struct vio_state s;
    struct err e = {""};
    vio_save(dev, &s);
    struct net_setup ns = net->s;
    ns.tap_fd = dup(ns.tap_fd);
    struct net *old = net;
    net = net_new(&host, &mem, 0, &ns, NULL, NULL, &e);
    dev = net_dev(net);
    ck_assert_msg(vio_load(dev, &s, &e) == 0, "%s", e.msg);
    vio_quiesce(dev, true);
    vio_quiesce(dev, false);
    to_wire(60);
    vio_kick(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 1);
    net_free(old);
}
END_TEST

START_TEST(reset_forgets_buffers)
{
    live(BASE_F | NET_F_MRG_RXBUF);
    for (uint16_t i = 0; i < 3; i++)
        offer_rx(i, 1000);
    vio_kick(dev);
    wr(dev, 0x70, 0);
    ck_assert_uint_eq(rd(dev, 0x70), 0);
    to_wire(60);
    vio_readable(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 0); // no late write
    live(BASE_F | NET_F_MRG_RXBUF);
    offer_rx(7, 1000);
    vio_kick(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 1);
    ck_assert_uint_eq(drv_used_id(&rxq, 0), 7);
}
END_TEST

START_TEST(queues_left_out)
{
    drv_features(dev, BASE_F | NET_F_CTRL_VQ);
    wr(dev, 0x70, 15); // no queue at all
    ck_assert(dev->active);
    const unsigned again = fake.again;
    to_wire(60);
    vio_kick(dev);
    vio_readable(dev);
    vio_timer(dev);
    ck_assert_uint_eq(fake.again, again);
    ck_assert(dev->active);
}
END_TEST

START_TEST(n5_tap_error)
{
    live(BASE_F | NET_F_STATUS);
    offer_rx(0, 1526);
    vio_kick(dev);
    close(wire);
    const unsigned polls = fake.polls_in, notes = fake.notes;
    vio_readable(dev);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x106, 2), 0); // link down
    ck_assert_uint_eq(fake.notes, notes + 1);
    ck_assert_uint_ge(atomic_load(&net->m.rx_fails), 1);
    ck_assert_uint_eq(fake.polls_in, polls); // no spin
    uint8_t p[112];
    frame(p, mac, 100);
    signal(SIGPIPE, SIG_IGN); // a socket's habit, not a tap's
    for (unsigned i = 0; i < 5; i++)
        send_tx(p, 112);
    ck_assert_uint_eq(drv_used_idx(&txq), 5); // completed, so that the driver does not hang
    ck_assert_uint_eq(atomic_load(&net->m.tx_fails), 5);
    live(BASE_F | NET_F_STATUS); // a reset does not bring it back, nor does it spin
    vio_kick(dev);
    ck_assert_uint_eq(fake.notes, notes + 1);
    wire = dup(0);
}
END_TEST

// ---- real taps, in a network namespace of our own

static int open_tun(void)
{
    return open("/dev/net/tun", O_RDWR | O_CLOEXEC);
}

static bool own_namespace(const char *test)
{
    _cleanup_(close_fdp) int fd = -1;
    if (unshare(CLONE_NEWNET) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)
        fd = open_tun();
    if (fd < 0)
        printf("%s: skipped: no network namespace or no /dev/net/tun: %m\n", test);
    return fd >= 0;
}

static int tap_ifreq(unsigned long req, struct ifreq *r)
{
    _cleanup_(close_fdp) int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return ioctl(s, req, r);
}

static int tap_up(const char *name) // up, with a packet socket on it
{
    struct ifreq r = {.ifr_flags = IFF_UP};
    strcpy(r.ifr_name, name);
    ck_assert_int_eq(tap_ifreq(SIOCSIFFLAGS, &r), 0);
    ck_assert_int_eq(tap_ifreq(SIOCGIFINDEX, &r), 0);
    int s = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, htons(0x88b5));
    struct sockaddr_ll a = {
        .sll_family = AF_PACKET, .sll_protocol = htons(0x88b5), .sll_ifindex = r.ifr_ifindex};
    ck_assert_int_eq(bind(s, (struct sockaddr *)&a, sizeof(a)), 0);
    return s;
}

START_TEST(tap_setup)
{
    if (!own_namespace("tap_setup"))
        return;
    struct err e = {""};
    static const char *const bad[] = {"", "0123456789abcdef", "a/b", "tap%d", "a b", ".."};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        _cleanup_(close_fdp) int fd = open_tun();
        ck_assert_msg(net_tap_setup(fd, bad[i], &e) == -EINVAL, "%s", bad[i]);
        ck_assert_str_ne(e.msg, "");
    }
    _cleanup_(close_fdp) int fd = open_tun(), second = open_tun(), null = open("/dev/null", O_RDWR);
    ck_assert_int_eq(net_tap_setup(fd, NULL, &e), -EINVAL); // not attached
    ck_assert_int_eq(net_tap_setup(null, NULL, &e), -EINVAL);
    ck_assert_int_eq(net_tap_setup(fd, "t0", &e), 0);
    ck_assert_int_ne(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    ck_assert_int_eq(net_tap_setup(fd, NULL, &e), 0);
    ck_assert_int_eq(net_tap_setup(second, "t0", &e), -EBUSY);
    struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI}; // a tap without the header
    ck_assert_int_eq(ioctl(second, TUNSETIFF, &r), 0);
    ck_assert_int_eq(net_tap_setup(second, NULL, &e), -EINVAL);
}
END_TEST

START_TEST(tap_traffic_and_removal)
{
    if (!own_namespace("tap_traffic_and_removal"))
        return;
    struct net_setup s = {.tap_fd = open_tun(), .has_mac = true};
    memcpy(s.mac, mac, 6);
    struct err e = {""};
    ck_assert_msg(net_tap_setup(s.tap_fd, "t1", &e) == 0, "%s", e.msg);
    net_free(net);
    close(wire);
    mem_free(&mem);
    make(&s);
    wire = tap_up("t1");
    ck_assert_uint_eq(net->offloads & OFFLOADS, OFFLOADS);
    live(BASE_F | NET_F_MRG_RXBUF | NET_F_STATUS | (net->offloads & ~NET_F_HOST_UFO));
    uint8_t p[112], got[200];
    frame(p, mac, 100);
    memset(p + 12, 0xff, 6);
    p[12 + 12] = 0x88, p[12 + 13] = 0xb5;
    send_tx(p, 112);
    ck_assert_int_eq(recv(wire, got, sizeof(got), 0), 100);
    ck_assert_int_eq(memcmp(got, p + 12, 100), 0);
    ck_assert_uint_eq(fake.notes, 0); // the offloads were taken
    offer_rx(0, 1526);
    ck_assert_int_eq(send(wire, p + 12, 100, 0), 100);
    vio_kick(dev);
    for (unsigned i = 0; i < 100 && drv_used_idx(&rxq) == 0; i++) // others' frames may come too
        vio_readable(dev);
    ck_assert_uint_eq(drv_used_idx(&rxq), 1);
    ck_assert_uint_eq(rx_num_buffers(0), 1);

    int ctl = net->s.tap_fd; // pull the interface from under the descriptor
    struct ifreq r = {.ifr_flags = 0};
    ck_assert_int_eq(ioctl(ctl, TUNGETIFF, &r), 0);
    _cleanup_(close_fdp) int nl = socket(AF_NETLINK, SOCK_RAW, 0);
    struct ifreq ix = {.ifr_flags = 0};
    strcpy(ix.ifr_name, "t1");
    ck_assert_int_eq(tap_ifreq(SIOCGIFINDEX, &ix), 0);
    const uint32_t msg[8] = {32, 17 | (1u << 16), 1, 0, 0, (uint32_t)ix.ifr_ifindex, 0, 0};
    ck_assert_int_eq(send(nl, msg, 32, 0), 32); // RTM_DELLINK
    for (unsigned i = 0; i < 5; i++)
        send_tx(p, 112);
    ck_assert_uint_eq(drv_used_idx(&txq), 6);
    ck_assert_uint_eq(atomic_load(&net->m.tx_fails), 5);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x106, 2), 0);
    ck_assert_uint_eq(fake.notes, 1);
    ck_assert(dev->active);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("net");
    TCase *tc = tcase_create("net");
    suite_add_tcase(s, tc);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, features_and_config);
    tcase_add_test(tc, transmit_in_pieces);
    tcase_add_test(tc, n1_headers);
    tcase_add_test(tc, n2_frame_sizes);
    tcase_add_test(tc, spoofed_frames_are_dropped);
    tcase_add_test(tc, broken_transmit_chain);
    tcase_add_test(tc, q4_work_per_kick_is_bounded);
    tcase_add_test(tc, receive_one_buffer);
    tcase_add_test(tc, receive_flags_need_negotiation);
    tcase_add_test(tc, receive_merged);
    tcase_add_test(tc, receive_adapts);
    tcase_add_test(tc, n3_chain_too_small);
    tcase_add_test(tc, n4_full_queue_and_recovery);
    tcase_add_test(tc, frame_waits_for_more_buffers);
    tcase_add_test(tc, received_bytes_are_dirty);
    tcase_add_test(tc, limits);
    tcase_add_test(tc, control_queue);
    tcase_add_test(tc, pause_gives_buffers_back);
    tcase_add_test(tc, restore);
    tcase_add_test(tc, reset_forgets_buffers);
    tcase_add_test(tc, queues_left_out);
    tcase_add_test(tc, n5_tap_error);
    tcase_add_test(tc, tap_setup);
    tcase_add_test(tc, tap_traffic_and_removal);
    return run_suite(s);
}
