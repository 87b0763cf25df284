// SPDX-License-Identifier: Apache-2.0
// IOAPIC: registers, entry to MSI, pending while masked, hostile state.
#include <check.h>

#include "vmm/dev/dev.h"

static struct ioapic io;
static unsigned sent;
static uint64_t addr;
static uint32_t data;

static void on_msi(void *ctx, uint64_t a, uint32_t d)
{
    ck_assert_ptr_eq(ctx, &io);
    ck_assert_int_eq(pthread_mutex_trylock(&io.lock), 0); // called without the lock
    pthread_mutex_unlock(&io.lock);
    sent++;
    addr = a;
    data = d;
}

static void setup(void)
{
    sent = 0;
    ioapic_init(&io, on_msi, &io);
}

static uint32_t rd(uint32_t reg)
{
    ioapic_write(&io, 0, 4, reg);
    return ioapic_read(&io, 0x10, 4);
}

static void wr(uint32_t reg, uint32_t v)
{
    ioapic_write(&io, 0, 4, reg);
    ioapic_write(&io, 0x10, 4, v);
}

START_TEST(registers)
{
    ck_assert_uint_eq(rd(1), 0x00170020); // 24 pins, version 0x20
    wr(0, 0xffffffff);
    ck_assert_uint_eq(rd(0), 0x0f000000);
    ck_assert_uint_eq(rd(2), 0x0f000000); // arbitration follows the id
    ck_assert_uint_eq(ioapic_read(&io, 0, 4), 2);
    ck_assert_uint_eq(rd(0x10), 0x10000); // masked after reset
    wr(0x3f, 0xffffffff);
    ck_assert_uint_eq(rd(0x3f), 0xff000000);
    wr(0x3e, 0xffffffff);
    ck_assert_uint_eq(rd(0x3e), 0x1afff); // status and Remote IRR are read-only
    wr(0x40, 0xffffffff);
    ck_assert_uint_eq(rd(0x40), 0);
    ck_assert_uint_eq(rd(0xff), 0);
    ck_assert_uint_eq(ioapic_read(&io, 0x20, 4), 0);
    ioapic_write(&io, 0x40, 4, 0x30); // EOI: nothing to do
    ioapic_write(&io, 0, 4, 0x10);
    ioapic_write(&io, 0x10, 1, 0); // the window ignores a byte
    ck_assert_uint_eq(rd(0x10), 0x10000);
    ck_assert_uint_eq(ioapic_read(&io, 0x10, 2), 0);
}
END_TEST

START_TEST(entry_becomes_msi)
{
    wr(0x10 + 2 * 4 + 1, 0x05000000);
    wr(0x10 + 2 * 4, 0x00000931); // logical, lowest priority, vector 0x31
    ioapic_pulse(&io, 4);
    ck_assert_uint_eq(sent, 1);
    ck_assert_uint_eq(addr, 0xfee05004);
    ck_assert_uint_eq(data, 0x131);
    wr(0x10 + 2 * 4, 0x0000a031); // a level-triggered entry is sent as an edge
    ioapic_pulse(&io, 4);
    ck_assert_uint_eq(addr, 0xfee05000);
    ck_assert_uint_eq(data, 0x31);
    ck_assert_uint_eq(rd(0x10 + 2 * 4) & 0x4000, 0);
}
END_TEST

START_TEST(masked_pulses_wait)
{
    ioapic_pulse(&io, 7);
    ioapic_pulse(&io, 7);
    ck_assert_uint_eq(sent, 0);
    wr(0x10 + 14 + 1, 0);
    ck_assert_uint_eq(sent, 0);
    wr(0x10 + 14, 0x40);
    ck_assert_uint_eq(sent, 1); // many pulses, one interrupt
    wr(0x10 + 14, 0x10040);
    wr(0x10 + 14, 0x40);
    ck_assert_uint_eq(sent, 1);
    ioapic_pulse(&io, PLAT_IOAPIC_PINS);
    ioapic_pulse(&io, ~0u);
    ck_assert_uint_eq(sent, 1);
    ck_assert_uint_eq(io.s.pending, 0);
}
END_TEST

START_TEST(reserved_entries_send_nothing)
{
    static const uint32_t rte[] = {0x0f, 0x10f, 0x340, 0x640};
    for (unsigned i = 0; i < ARRAY_SIZE(rte); i++) {
        wr(0x10, rte[i]);
        ioapic_pulse(&io, 0);
    }
    ck_assert_uint_eq(sent, 0);
    wr(0x10, 0x400); // NMI needs no vector
    ioapic_pulse(&io, 0);
    ck_assert_uint_eq(sent, 1);
}
END_TEST

START_TEST(state)
{
    struct ioapic_state a, b;
    struct err e = {""};
    wr(0x12, 0x55);
    ioapic_pulse(&io, 2);
    ioapic_save(&io, &a);
    setup();
    ck_assert_int_eq(ioapic_load(&io, &a, &e), 0);
    ioapic_save(&io, &b);
    ck_assert_int_eq(memcmp(&a, &b, sizeof(a)), 0);
    wr(0x14, 0x41);
    ck_assert_uint_eq(sent, 1); // the pulse survived
#define REFUSED(field, value)                                \
    do {                                                     \
        b = a;                                               \
        b.field = (value);                                   \
        ck_assert_int_eq(ioapic_load(&io, &b, &e), -EINVAL); \
        ck_assert_str_ne(e.msg, "");                         \
    } while (0)
    REFUSED(id, 1);
    REFUSED(sel, 0x100);
    REFUSED(pending, 1u << 24);
    REFUSED(pending, 2);      // pin 1 is not masked
    REFUSED(rte[23], 0x4000); // Remote IRR
    REFUSED(rte[23], 1ull << 32);
}
END_TEST

int main(void)
{
    Suite *su = suite_create("ioapic");
    TCase *t = tcase_create("ioapic");
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_test(t, registers);
    tcase_add_test(t, entry_becomes_msi);
    tcase_add_test(t, masked_pulses_wait);
    tcase_add_test(t, reserved_entries_send_nothing);
    tcase_add_test(t, state);
    suite_add_tcase(su, t);
    SRunner *r = srunner_create(su);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
