// SPDX-License-Identifier: Apache-2.0
// virtio-net: reception into single and merged buffers, starvation, frames that do not fit.
#include "tests/unit/vio_net.h"

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

int main(void)
{
    Suite *s = suite_create("net_rx");
    TCase *tc = tcase_create("net_rx");
    suite_add_tcase(s, tc);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, receive_one_buffer);
    tcase_add_test(tc, receive_flags_need_negotiation);
    tcase_add_test(tc, receive_merged);
    tcase_add_test(tc, receive_adapts);
    tcase_add_test(tc, n3_chain_too_small);
    tcase_add_test(tc, n4_full_queue_and_recovery);
    tcase_add_test(tc, frame_waits_for_more_buffers);
    tcase_add_test(tc, received_bytes_are_dirty);
    return run_suite(s);
}
