// SPDX-License-Identifier: Apache-2.0
// i8042: Linux's probes end at once, reset, Ctrl-Alt-Del, hostile state.
#include <check.h>

#include "vmm/dev/dev.h"

static struct i8042 k;
static unsigned irqs, resets;

static void on_irq(void *ctx)
{
    (void)ctx;
    irqs++;
}

static void on_reset(void *ctx)
{
    (void)ctx;
    resets++;
}

static void setup(void)
{
    irqs = resets = 0;
    i8042_init(&k, on_irq, on_reset, NULL);
}

static void cmd(uint8_t v)
{
    i8042_write(&k, 0x64, v);
}

static void put(uint8_t v)
{
    i8042_write(&k, 0x60, v);
}

static uint8_t status(void)
{
    return i8042_read(&k, 0x64);
}

static uint8_t get(void)
{
    ck_assert_uint_eq(status() & 1, 1);
    return i8042_read(&k, 0x60);
}

START_TEST(linux_probes)
{
    ck_assert_uint_eq(status(), 0x14); // empty, unlocked: nothing to flush
    cmd(0xaa);
    ck_assert_uint_eq(get(), 0x55);
    cmd(0x20);
    uint8_t ctrl = get();
    cmd(0x60);
    put((uint8_t)((ctrl | 0x10) & ~1));
    cmd(0x20);
    ck_assert_uint_eq(get(), 0x14);
    cmd(0xab);
    ck_assert_uint_eq(get(), 0);
    cmd(0xd3); // mouse loop: an answer without the mouse flag
    put(0x5a);
    ck_assert_uint_eq(status() & 0x20, 0);
    ck_assert_uint_ne(get(), 0x5a);
    cmd(0xa9); // mouse test: stuck, so not there
    ck_assert_uint_eq(get(), 1);
    cmd(0xae);
    cmd(0x20);
    ck_assert_uint_eq(get(), 0x04);
    ck_assert_uint_eq(status() & 1, 0);
    ck_assert_uint_eq(irqs, 0);
}
END_TEST

START_TEST(keyboard_answers)
{
    put(0xf2);
    ck_assert_uint_eq(irqs, 1);
    ck_assert_uint_eq(get(), 0xfa);
    ck_assert_uint_eq(irqs, 2); // one pulse per byte that waits
    ck_assert_uint_eq(get(), 0xab);
    ck_assert_uint_eq(get(), 0x83);
    ck_assert_uint_eq(irqs, 3);
    put(0xff);
    ck_assert_uint_eq(get(), 0xfa);
    ck_assert_uint_eq(get(), 0xaa);
    put(0xee);
    ck_assert_uint_eq(get(), 0xee);
    put(0xed);
    put(0x02);
    cmd(0xaa); // a controller's answer does not queue behind keys
    ck_assert_uint_eq(get(), 0x55);
    ck_assert_uint_eq(get(), 0xfa);
    ck_assert_uint_eq(get(), 0xfa);
    ck_assert_uint_eq(i8042_read(&k, 0x60), 0);
}
END_TEST

START_TEST(reset_line)
{
    cmd(0xfe);
    ck_assert_uint_eq(resets, 1);
    cmd(0xff); // pulses nothing
    ck_assert_uint_eq(resets, 1);
    cmd(0xd0);
    ck_assert_uint_eq(get() & 1, 1);
    cmd(0xd1);
    put(0xdf);
    ck_assert_uint_eq(resets, 1);
    cmd(0xd1);
    put(0xfe);
    ck_assert_uint_eq(resets, 2);
    ck_assert_uint_eq(k.resets, 2);
}
END_TEST

START_TEST(ctrl_alt_del)
{
    static const uint8_t want[] = {0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0,
                                   0x71, 0xf0, 0x11, 0xf0, 0x14};
    struct err e = {""};
    ck_assert_int_eq(i8042_ctrl_alt_del(&k, &e), 0);
    ck_assert_uint_eq(irqs, 1);
    ck_assert_int_eq(i8042_ctrl_alt_del(&k, &e), -EBUSY);
    ck_assert_str_ne(e.msg, "");
    for (unsigned i = 0; i < ARRAY_SIZE(want); i++)
        ck_assert_uint_eq(get(), want[i]);
    ck_assert_uint_eq(irqs, ARRAY_SIZE(want));
    cmd(0xad);
    ck_assert_int_eq(i8042_ctrl_alt_del(&k, &e), -ENODEV);
    cmd(0xae);
    cmd(0x60);
    put(0);
    ck_assert_int_eq(i8042_ctrl_alt_del(&k, &e), -ENODEV);
}
END_TEST

START_TEST(a_flooded_buffer_stays_in_bounds)
{
    for (unsigned i = 0; i < 1000; i++) {
        put(0xf2);
        cmd(0x20);
    }
    ck_assert_uint_eq(k.s.len, 16);
    ck_assert_uint_gt(k.errors, 0);
    for (unsigned i = 0; i < 16; i++)
        get();
    ck_assert_uint_eq(status() & 1, 0);
    i8042_write(&k, 0x62, 1);
    ck_assert_uint_eq(i8042_read(&k, 0x62), 0xff);
    ck_assert_uint_eq(k.missed_reads + k.missed_writes, 2);
}
END_TEST

START_TEST(state)
{
    struct i8042_state a, b;
    struct err e = {""};
    put(0xf2);
    cmd(0x60);
    i8042_save(&k, &a);
    setup();
    ck_assert_int_eq(i8042_load(&k, &a, &e), 0);
    put(0x00); // is the control byte that was awaited
    ck_assert_uint_eq(k.s.ctrl, 0);
    ck_assert_uint_eq(get(), 0xfa);
#define REFUSED(field, value)                              \
    do {                                                   \
        b = a;                                             \
        b.field = (value);                                 \
        ck_assert_int_eq(i8042_load(&k, &b, &e), -EINVAL); \
        ck_assert_str_ne(e.msg, "");                       \
    } while (0)
    REFUSED(len, 17);
    REFUSED(status, 0x01);
    REFUSED(cmd, 0x20);
}
END_TEST

int main(void)
{
    Suite *su = suite_create("i8042");
    TCase *t = tcase_create("i8042");
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_test(t, linux_probes);
    tcase_add_test(t, keyboard_answers);
    tcase_add_test(t, reset_line);
    tcase_add_test(t, ctrl_alt_del);
    tcase_add_test(t, a_flooded_buffer_stays_in_bounds);
    tcase_add_test(t, state);
    suite_add_tcase(su, t);
    SRunner *r = srunner_create(su);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
