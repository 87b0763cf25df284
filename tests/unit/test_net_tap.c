// SPDX-License-Identifier: Apache-2.0
// virtio-net over real taps, in a network namespace of our own where the host allows one.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <sched.h>
#include <sys/ioctl.h>

#include "tests/unit/vio_net.h"

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
        printf("SKIP: %s: no network namespace or no /dev/net/tun: %m\n", test);
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
    Suite *s = suite_create("net_tap");
    TCase *tc = tcase_create("net_tap");
    suite_add_tcase(s, tc);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, tap_setup);
    tcase_add_test(tc, tap_traffic_and_removal);
    return run_suite(s);
}
