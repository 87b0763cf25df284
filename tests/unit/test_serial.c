// SPDX-License-Identifier: Apache-2.0
// Serial port: what Linux's 8250 driver probes for, interrupts, loss without blocking, hostile
// state.
#include <check.h>

#include "vmm/dev/dev.h"

static struct serial s;
static unsigned irqs, wakes;

static void on_irq(void *ctx)
{
    (void)ctx;
    irqs++;
}

static void on_wake(void *ctx)
{
    (void)ctx;
    wakes++;
}

static void setup(void)
{
    irqs = wakes = 0;
    serial_init(&s, on_irq, on_wake, NULL);
}

// The steps of autoconfig() in Linux's 8250 driver, in its order.
START_TEST(linux_finds_a_16550a)
{
    serial_write(&s, 1, 0);
    ck_assert_uint_eq(serial_read(&s, 1), 0);
    serial_write(&s, 1, 0xff);
    ck_assert_uint_eq(serial_read(&s, 1), 0x0f); // no more bits: not an XScale UART
    serial_write(&s, 1, 0);
    serial_write(&s, 4, 0x1a); // loopback, OUT2, RTS
    ck_assert_uint_eq(serial_read(&s, 6) & 0xf0, 0x90);
    serial_write(&s, 4, 0);
    serial_write(&s, 3, 0xbf); // no EFR behind this window
    ck_assert_uint_ne(serial_read(&s, 2), 0);
    serial_write(&s, 3, 0);
    serial_write(&s, 2, 0x01);
    ck_assert_uint_eq(serial_read(&s, 2) >> 6, 3);
    serial_write(&s, 3, 0x80);
    serial_write(&s, 2, 0x21); // the 64-byte FIFO of a 16750 must not answer
    ck_assert_uint_eq(serial_read(&s, 2) & 0x20, 0);
    serial_write(&s, 3, 0);
    serial_write(&s, 7, 0x5a);
    ck_assert_uint_eq(serial_read(&s, 7), 0x5a);
    ck_assert_uint_eq(serial_read(&s, 6), 0xb0); // carrier, ready, clear to send
}
END_TEST

START_TEST(divisor_hides_data)
{
    serial_write(&s, 3, 0x83);
    serial_write(&s, 0, 0x01);
    serial_write(&s, 1, 0x02);
    ck_assert_uint_eq(serial_read(&s, 0), 0x01);
    ck_assert_uint_eq(serial_read(&s, 1), 0x02);
    serial_write(&s, 3, 0x03);
    ck_assert_uint_eq(serial_read(&s, 1), 0);
    uint8_t b;
    ck_assert_uint_eq(serial_tx_take(&s, &b, 1, false), 0); // a divisor byte is no output
}
END_TEST

START_TEST(thr_empty_interrupts)
{
    serial_write(&s, 1, 0x02);
    ck_assert_uint_eq(irqs, 1); // at once: the transmitter is empty
    ck_assert_uint_eq(serial_read(&s, 2), 0x02);
    ck_assert_uint_eq(serial_read(&s, 2), 0x01); // reading took it
    serial_write(&s, 0, 'a');
    ck_assert_uint_eq(irqs, 2);
    serial_write(&s, 0, 'b'); // line is still high: no second edge
    ck_assert_uint_eq(irqs, 2);
    // Linux's THRE test: off and on again must show it a second time.
    ck_assert_uint_eq(serial_read(&s, 2), 0x02);
    serial_write(&s, 1, 0);
    serial_write(&s, 1, 0x02);
    ck_assert_uint_eq(serial_read(&s, 2), 0x02);
    ck_assert_uint_eq(serial_read(&s, 5), 0x60);
}
END_TEST

START_TEST(input_interrupts_and_order)
{
    serial_write(&s, 2, 0x01);
    serial_write(&s, 1, 0x03);
    ck_assert_uint_eq(serial_rx_put(&s, (const uint8_t *)"xyz", 3), 3);
    ck_assert_uint_eq(serial_read(&s, 5) & 1, 1);
    ck_assert_uint_eq(serial_read(&s, 2), 0xc4); // data before the empty transmitter
    ck_assert_uint_eq(serial_read(&s, 0), 'x');
    ck_assert_uint_eq(serial_read(&s, 0), 'y');
    ck_assert_uint_eq(serial_read(&s, 2), 0xc4);
    ck_assert_uint_eq(serial_read(&s, 0), 'z');
    ck_assert_uint_eq(serial_read(&s, 5) & 1, 0);
    ck_assert_uint_eq(serial_read(&s, 2), 0xc2);
    ck_assert_uint_eq(serial_read(&s, 2), 0xc1);
    irqs = 0;
    serial_rx_put(&s, (const uint8_t *)"x", 1);
    ck_assert_uint_eq(irqs, 1);
    ck_assert_uint_eq(serial_read(&s, 0), 'x');
    ck_assert_uint_eq(serial_read(&s, 0), 0); // empty
}
END_TEST

START_TEST(a_full_ring_loses_and_counts)
{
    for (unsigned i = 0; i < SERIAL_TX_RING + 10; i++)
        serial_write(&s, 0, (uint8_t)i);
    ck_assert_uint_eq(wakes, 1); // only when it was empty
    ck_assert_uint_eq(s.lost, 10);
    static uint8_t out[SERIAL_TX_RING + 10];
    ck_assert_uint_eq(serial_tx_take(&s, out, 100, false), 100);
    ck_assert_uint_eq(serial_tx_take(&s, out + 100, sizeof(out) - 100, false),
                      SERIAL_TX_RING - 100);
    for (unsigned i = 0; i < SERIAL_TX_RING; i++)
        ck_assert_uint_eq(out[i], (uint8_t)i);
    serial_write(&s, 0, '!');
    ck_assert_uint_eq(wakes, 2);
}
END_TEST

START_TEST(a_watched_ring_wakes_when_half_full)
{
    static uint8_t out[SERIAL_TX_RING];
    ck_assert_uint_eq(serial_tx_take(&s, out, 1, true), 0);
    for (unsigned i = 0; i < SERIAL_TX_RING / 2 - 1; i++)
        serial_write(&s, 0, 'a');
    ck_assert_uint_eq(wakes, 0);
    serial_write(&s, 0, 'a');
    ck_assert_uint_eq(wakes, 1);
    serial_write(&s, 0, 'a');
    ck_assert_uint_eq(wakes, 1);
    ck_assert_uint_eq(serial_tx_take(&s, out, sizeof(out), false), SERIAL_TX_RING / 2 + 1);
    serial_write(&s, 0, 'a'); // what was taken says nothing of who looks when there is no more
    ck_assert_uint_eq(wakes, 1);
    ck_assert_uint_eq(serial_tx_take(&s, out, sizeof(out), true), 1);
    ck_assert_uint_eq(serial_tx_take(&s, out, sizeof(out), false), 0);
    serial_write(&s, 0, 'a'); // nobody looks any more
    ck_assert_uint_eq(wakes, 2);
}
END_TEST

START_TEST(full_input_waits_and_wakes)
{
    uint8_t buf[SERIAL_RX_FIFO + 5] = {0};
    ck_assert_uint_eq(serial_rx_room(&s), SERIAL_RX_FIFO);
    ck_assert_uint_eq(serial_rx_put(&s, buf, sizeof(buf)), SERIAL_RX_FIFO);
    ck_assert_uint_eq(serial_rx_room(&s), 0);
    serial_read(&s, 5);
    ck_assert_uint_eq(wakes, 0);
    serial_read(&s, 0);
    ck_assert_uint_eq(wakes, 1); // room again, told once
    serial_read(&s, 0);
    ck_assert_uint_eq(wakes, 1);
    serial_write(&s, 2, 0x02); // FIFO cleared
    ck_assert_uint_eq(serial_rx_room(&s), SERIAL_RX_FIFO);
}
END_TEST

START_TEST(loopback_keeps_to_itself)
{
    serial_write(&s, 4, 0x10);
    serial_write(&s, 1, 0x04);
    ck_assert_uint_eq(serial_rx_room(&s), 0);
    for (unsigned i = 0; i <= SERIAL_RX_FIFO; i++)
        serial_write(&s, 0, 'L');
    uint8_t b;
    ck_assert_uint_eq(serial_tx_take(&s, &b, 1, false), 0);
    ck_assert_uint_eq(irqs, 1); // overrun
    ck_assert_uint_eq(serial_read(&s, 2), 0x06);
    ck_assert_uint_eq(serial_read(&s, 5), 0x63);
    ck_assert_uint_eq(serial_read(&s, 5), 0x61); // reading cleared the overrun
    ck_assert_uint_eq(serial_read(&s, 0), 'L');
    ck_assert_uint_eq(wakes, 0);
    serial_write(&s, 4, 0);
    ck_assert_uint_eq(wakes, 1);
}
END_TEST

START_TEST(state_round_trips_without_a_pulse)
{
    struct serial_state a, b;
    struct err e;
    serial_write(&s, 2, 0x01);
    serial_write(&s, 1, 0x03);
    serial_rx_put(&s, (const uint8_t *)"hi", 2);
    serial_save(&s, &a);
    setup();
    ck_assert_int_eq(serial_load(&s, &a, &e), 0);
    ck_assert_uint_eq(irqs, 0);
    serial_save(&s, &b);
    ck_assert_int_eq(memcmp(&a, &b, sizeof(a)), 0);
    ck_assert_uint_eq(serial_read(&s, 0), 'h');
    ck_assert_uint_eq(serial_read(&s, 0), 'i');
}
END_TEST

START_TEST(hostile_state_is_refused)
{
    struct serial_state good, bad;
    struct err e = {""};
    serial_save(&s, &good);
#define REFUSED(field, value)                                 \
    do {                                                      \
        bad = good;                                           \
        bad.field = (value);                                  \
        ck_assert_int_eq(serial_load(&s, &bad, &e), -EINVAL); \
        ck_assert_str_ne(e.msg, "");                          \
    } while (0)
    REFUSED(rx_len, SERIAL_RX_FIFO + 1);
    REFUSED(ier, 0x10);
    REFUSED(mcr, 0x20);
    REFUSED(fcr, 0x02);
    REFUSED(thr_pending, 2);
    REFUSED(lsr_overrun, 2);
    bad = good;
    bad.rx_len = SERIAL_RX_FIFO;
    ck_assert_int_eq(serial_load(&s, &bad, &e), 0);
    for (unsigned i = 0; i < 8; i++)
        serial_read(&s, i);
    serial_read(&s, 99);
    serial_write(&s, 99, 0);
    ck_assert_uint_eq(s.missed_reads + s.missed_writes, 2);
}
END_TEST

int main(void)
{
    Suite *su = suite_create("serial");
    TCase *t = tcase_create("serial");
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_test(t, linux_finds_a_16550a);
    tcase_add_test(t, divisor_hides_data);
    tcase_add_test(t, thr_empty_interrupts);
    tcase_add_test(t, input_interrupts_and_order);
    tcase_add_test(t, a_full_ring_loses_and_counts);
    tcase_add_test(t, a_watched_ring_wakes_when_half_full);
    tcase_add_test(t, full_input_waits_and_wakes);
    tcase_add_test(t, loopback_keeps_to_itself);
    tcase_add_test(t, state_round_trips_without_a_pulse);
    tcase_add_test(t, hostile_state_is_refused);
    suite_add_tcase(su, t);
    SRunner *r = srunner_create(su);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
