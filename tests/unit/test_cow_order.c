// SPDX-License-Identifier: Apache-2.0
// The copy-on-write layer: in which order it writes, and what is left when a call fails or the
// monitor dies.
#include "tests/unit/cow_fixture.h"

static const char *calls(void)
{
    fx_calls.log[fx_calls.nlog] = 0;
    fx_calls.nlog = 0;
    return fx_calls.log;
}

START_TEST(order_unsafe)
{
    do_write(0, 8, 1);
    ck_assert_str_eq(calls(), "wb");
    do_write(0, 8, 2);
    ck_assert_str_eq(calls(), "w");
    do_write(8, 1, 3);
    ck_assert_str_eq(calls(), "rwwb"); // base, copied up, data, bit
}
END_TEST

START_TEST(order_writeback)
{
    teardown();
    setup_with(true);
    do_write(0, 8, 1);
    ck_assert_str_eq(calls(), "w");
    ck_assert_uint_eq(fx_ask(&f, REQ_FLUSH, 0, 0, 0), ST_OK);
    ck_assert_str_eq(calls(), "sbs"); // data on the disk before the bit that names it
    ck_assert_uint_eq(fx_ask(&f, REQ_FLUSH, 0, 0, 0), ST_OK);
    ck_assert_str_eq(calls(), "s");
    check_after_kill();
    // Written between the two steps of a flush: belongs to the next one.
    do_write(8, 8, 2);
    fx_req(&f, 1, REQ_FLUSH, 0, 0, 0);
    fx_kick(&f);
    calls();
    offer_write(0, 16, 8, 3);
    fx_kick(&f);
    ck_assert_uint_eq(fx_status(&f, 0), ST_OK);
    fx_pump(&f);
    ck_assert_str_eq(calls(), "wbs");
    uint8_t map;
    ck_assert_int_eq(pread(layer, &map, 1, 4096), 1);
    ck_assert_uint_eq(map, 3);
    ck_assert(vio_quiesce(f.d, true)); // a snapshot may be taken now: nothing may be missing
    check_after_kill();
}
END_TEST

START_TEST(flushes_that_fail_or_wait)
{
    static const uint8_t want[] = {3, 3, 7};
    teardown();
    setup_with(true);
    for (unsigned i = 0; i < 3; i++) {
        do_write(8 * i, 8, 0xd0);
        for (unsigned r = 1; r < 4; r++)
            fx_req(&f, r, REQ_FLUSH, 0, 0, 0);
        fx_kick(&f);
        ck_assert_uint_eq(f.nring, 1); // one after the other
        calls();
        if (i == 1) // the bitmap cannot be written
            fx_calls.nth = 1;
        fx_land(&f, 0, i == 0 ? -EIO : 0, 0);
        fx_kick(&f);
        ck_assert_uint_eq(fx_status(&f, 1), i < 2 ? ST_IOERR : FX_NOBODY);
        fx_pump(&f);
        ck_assert_uint_eq(fx_status(&f, 2) | fx_status(&f, 3), ST_OK);
        uint8_t map;
        ck_assert_int_eq(pread(layer, &map, 1, 4096), 1);
        ck_assert_uint_eq(map | 2, want[i] | (i == 2 ? 4 : 0));
        check_after_kill();
    }
}
END_TEST

// Whatever call fails, once: what a write does not touch stays as it was.
START_TEST(every_call_fails_once)
{
    for (unsigned mode = 0; mode < 4; mode++)
        for (unsigned nth = 1; nth < 10; nth++) {
            teardown();
            setup_with(mode & 1);
            fx_calls.block_reads = true;
            fx_calls.nth = mode & 2 ? 0 : nth;
            f.nth_io = mode & 2 ? nth : 0;
            uint8_t before[SECTORS];
            memcpy(before, model, sizeof(before));
            offer_write(0, 3, 20, 0xe0);
            fx_req(&f, 1, REQ_FLUSH, 0, 0, 0);
            fx_range(&f, 2, REQ_ZERO, 60, 20, 0);
            fx_pump(&f);
            for (unsigned i = 0; i < 3; i++)
                ck_assert_uint_ne(fx_status(&f, i), FX_NOBODY);
            ck_assert_uint_eq(f.b->inflight, 0);
            fx_calls.nth = f.nth_io = 0;
            memset(model + 60, 0, 20);
            ck_assert_uint_eq(fx_ask(&f, REQ_IN, 0, FX_DATA, DISK), ST_OK);
            for (unsigned s = 0; s < SECTORS; s++) {
                const uint8_t *p = fx_at(&f, FX_DATA + 512 * s);
                ck_assert(fx_filled(p, before[s], 512) || fx_filled(p, model[s], 512));
            }
        }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("cow order");
    TCase *t = tcase_create("order");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, order_unsafe);
    tcase_add_test(t, order_writeback);
    tcase_add_test(t, flushes_that_fail_or_wait);
    tcase_add_test(t, every_call_fails_once);
    suite_add_tcase(s, t);
    return run_suite(s);
}
