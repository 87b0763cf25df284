// SPDX-License-Identifier: Apache-2.0
// A network device over a socket pair that keeps message borders as a tap does, for tests.
#ifndef TESTS_UNIT_VIO_NET_H
#define TESTS_UNIT_VIO_NET_H

#include <pthread.h>
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

static inline void make(const struct net_setup *s)
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

static inline void setup(void)
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

static inline void teardown(void)
{
    net_free(net);
    mem_free(&mem);
    close(wire);
}

static inline void live(uint64_t features)
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

static inline void frame(uint8_t *p, const uint8_t src[6],
                         size_t len) // header and frame of len bytes
{
    memset(p, 0, NET_HDR_LEN);
    for (size_t i = 0; i < len; i++)
        p[NET_HDR_LEN + i] = (uint8_t)(i * 7);
    if (len >= 12)
        memcpy(p + NET_HDR_LEN + 6, src, 6);
}

static inline void offer_tx(const void *p, uint32_t len)
{
    const uint16_t d = txq.idx % QSIZE;
    put(&mem, TXBUF, p, len);
    drv_desc(&txq, d, TXBUF, len, 0, 0);
    drv_offer(&txq, d);
}

static inline void send_tx(const void *p, uint32_t len)
{
    offer_tx(p, len);
    vio_kick(dev);
}

static inline ssize_t from_wire(void *p, size_t len)
{
    return recv(wire, p, len, MSG_DONTWAIT);
}

static inline void to_wire(size_t len) // a frame of len bytes, with header
{
    frame(big, other, len);
    ck_assert_int_eq(send(wire, big, NET_HDR_LEN + len, 0), (ssize_t)(NET_HDR_LEN + len));
}

static inline void offer_rx(uint16_t d, uint32_t len)
{
    drv_desc(&rxq, d, RXBUF(d), len, D_WRITE, 0);
    drv_offer(&rxq, d);
}

static inline uint16_t rx_num_buffers(uint16_t d)
{
    return get16(&mem, RXBUF(d) + 10);
}

static inline void expect_data(uint16_t d, uint32_t buf_off, uint32_t frame_off, uint32_t len)
{
    uint8_t p[70000];
    if (len == 0) // a first buffer that the header fills
        return;
    frame(big, other, sizeof(big) - 12);
    ck_assert_int_eq(mem_read(&mem, RXBUF(d) + buf_off, p, len), 0);
    ck_assert_int_eq(memcmp(p, big + 12 + frame_off, len), 0);
}

#endif
