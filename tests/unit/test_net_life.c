// SPDX-License-Identifier: Apache-2.0
// virtio-net: rate limits, control queue, announcement, pause, reset, loss of the tap.
#include <signal.h>

#include "tests/unit/vio_net.h"

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

int main(void)
{
    Suite *s = suite_create("net_life");
    TCase *tc = tcase_create("net_life");
    suite_add_tcase(s, tc);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, limits);
    tcase_add_test(tc, control_queue);
    tcase_add_test(tc, pause_gives_buffers_back);
    tcase_add_test(tc, restore);
    tcase_add_test(tc, reset_forgets_buffers);
    tcase_add_test(tc, queues_left_out);
    tcase_add_test(tc, n5_tap_error);
    return run_suite(s);
}
