// SPDX-License-Identifier: Apache-2.0
// Fuzzes the network device over a socket pair in the tap's place: rings and packets of any
// content, frames of any length, kicks, timers, pauses, resets and limits in any order.
#include <sys/socket.h>

#include "tests/fuzz/fuzz_vio.h"
#include "virtio/net_priv.h"

static void frame_in(int wire, struct in *in)
{
    static uint8_t p[70000];
    const size_t len = take(in, 2) + take(in, 1);
    p[0] = (uint8_t)take(in, 1);
    send(wire, p, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void drain(int wire)
{
    static uint8_t p[70000];
    ssize_t n;
    while ((n = recv(wire, p, sizeof(p), MSG_DONTWAIT)) > 0) // all that was sent was judged
        fz_require(n >= NET_HDR_LEN + NET_ETH_LEN && n <= NET_HDR_LEN + NET_FRAME_MAX &&
                   !(p[0] & ~1) && !p[10] && !p[11] && (p[1] == 0 || p[0] == 1));
}

static void limits(struct net *n, struct in *in)
{
    struct limiter_cfg c = {.set = true,
                            .bandwidth = {.set = true, .size = take(in, 2), .refill_ms = 1},
                            .ops = {.set = true, .size = take(in, 1), .refill_ms = take(in, 1)}};
    net_limit(n, &c, &c);
}

static void step(struct net *n, int wire, struct in *in)
{
    struct vio_dev *d = net_dev(n);
    struct vio_state s;
    const uint8_t op = (uint8_t)take(in, 1);
    switch (op % 14) {
    case 0:
    case 1:
        vio_kick(d);
        break;
    case 2:
    case 3:
        frame_in(wire, in);
        break;
    case 4:
        vio_readable(d);
        break;
    case 5:
        n->rx_at = n->rx_at ? 1 : 0, n->tx_at = n->tx_at ? 1 : 0;
        vio_timer(d);
        break;
    case 6:
        vio_quiesce(d, true);
        vio_save(d, &s);
        for (unsigned i = 0; i < NET_QUEUES; i++) // nothing stays popped over a pause
            fz_require(!d->active || s.q[i].next_avail == s.q[i].next_used);
        vio_quiesce(d, false);
        break;
    case 7:
        fz_bring_up(d, take(in, 4));
        break;
    case 8:
        net_announce(n);
        break;
    case 9:
        limits(n, in);
        break;
    case 10: { // the driver moves on: one ring's index, or any other two bytes
        const uint64_t at = op & 0x80 ? take(in, 2) : 0x102u + 0x400u * (op / 14 % 3);
        const uint16_t v = (uint16_t)take(in, op & 0x80 ? 2 : 1);
        mem_write(d->mem, at, &v, 2);
        break;
    }
    case 11:
    case 12:
        fz_offer(d->mem, in);
        break;
    default:
        n->rx.want = op & 0x80 ? RX_LARGE : RX_SMALL;
        if (n->rx.give_up)
            n->rx.give_up = 1;
    }
    drain(wire);
    fz_require(n->rx.segs <= RX_SEGS && n->rx.chains <= VIO_QUEUE_SIZE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct guest_mem mem;
    struct in in = {data, size};
    int fd[2];
    fz_require(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fd) == 0);
    struct net_setup s = {.tap_fd = fd[0], .has_mac = take(&in, 1) & 1, .mtu = 1500};
    struct net *n = net_new(&fz_host, &mem, 0, &s, NULL, NULL, NULL);
    fz_require(n != NULL);
    n->offloads = NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_HOST_TSO4 | NET_F_HOST_UFO;
    const uint32_t features = (uint32_t)take(&in, 4);
    fz_memory(&mem, &in, 0);
    fz_bring_up(net_dev(n), features & (uint32_t)n->d.ops->features(&n->d));
    while (in.left > 0)
        step(n, fd[1], &in);
    net_free(n);
    close(fd[1]);
    return 0;
}
