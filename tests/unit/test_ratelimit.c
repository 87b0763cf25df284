// SPDX-License-Identifier: Apache-2.0
// Token buckets: burst first, even refill, debt, refund, hostile numbers; the clock is ours.
#include "tests/unit/vio_fake.h"

#include "virtio/ratelimit.h"

#define MS  1000000ULL
#define T0  (5 * NSEC_PER_SEC)
#define TOP UINT64_MAX

static struct limiter l;

static struct bucket_cfg bucket(uint64_t size, uint64_t burst, uint64_t ms)
{
    return (struct bucket_cfg){.set = true, .size = size, .one_time_burst = burst, .refill_ms = ms};
}

static void bytes_only(uint64_t size, uint64_t burst, uint64_t ms)
{
    const struct limiter_cfg c = {.set = true, .bandwidth = bucket(size, burst, ms)};
    limiter_init(&l, &c, T0);
}

START_TEST(off)
{
    limiter_init(&l, NULL, T0);
    ck_assert(limiter_is_off(&l));
    struct limiter_cfg c = {.set = true, .bandwidth = bucket(0, 9, 9), .ops = bucket(9, 9, 0)};
    limiter_init(&l, &c, T0);
    ck_assert(limiter_is_off(&l));
    c.ops = bucket(9, 9, 9);
    c.set = false;
    limiter_init(&l, &c, T0);
    ck_assert(limiter_is_off(&l));
    for (unsigned i = 0; i < 100; i++)
        ck_assert_uint_eq(limiter_take(&l, TOP, T0), 0);
    limiter_refund(&l, TOP);
    limiter_rebase(&l, 0);
    ck_assert_uint_eq(limiter_take(&l, TOP, 0), 0);
}
END_TEST

START_TEST(full_then_even_refill)
{
    bytes_only(1000, 0, 100); // 10 tokens a millisecond
    ck_assert(!limiter_is_off(&l));
    ck_assert_uint_eq(limiter_take(&l, 600, T0), 0);
    ck_assert_uint_eq(limiter_take(&l, 600, T0), T0 + 20 * MS);
    ck_assert_uint_eq(limiter_take(&l, 400, T0), 0);
    ck_assert_uint_eq(limiter_take(&l, 1, T0), T0 + MS / 10);
    ck_assert_uint_eq(limiter_take(&l, 1, T0 + MS / 10 - 1), T0 + MS / 10);
    ck_assert_uint_eq(limiter_take(&l, 1, T0 + MS / 10), 0);
    ck_assert_uint_eq(limiter_take(&l, 1000, T0 + NSEC_PER_SEC), 0); // never above its size
    ck_assert_uint_gt(limiter_take(&l, 1, T0 + NSEC_PER_SEC), 0);
    ck_assert_uint_gt(limiter_take(&l, 1, T0), 0); // a clock that goes back
}
END_TEST

START_TEST(frequent_calls_lose_no_time)
{
    bytes_only(3, 0, 1000); // one token in 333 ms
    ck_assert_uint_eq(limiter_take(&l, 3, T0), 0);
    unsigned granted = 0;
    for (uint64_t t = T0; t <= T0 + 10 * NSEC_PER_SEC; t += MS)
        granted += limiter_take(&l, 1, t) == 0;
    ck_assert_uint_eq(granted, 30);
}
END_TEST

START_TEST(burst_is_spent_first_and_once)
{
    bytes_only(100, 50, 100);
    ck_assert_uint_eq(limiter_take(&l, 120, T0), 0); // 50 of burst, 70 tokens
    ck_assert_uint_eq(limiter_take(&l, 30, T0), 0);
    ck_assert_uint_eq(limiter_take(&l, 100, T0 + NSEC_PER_SEC), 0);
    ck_assert_uint_gt(limiter_take(&l, 1, T0 + NSEC_PER_SEC), 0); // no second burst
}
END_TEST

START_TEST(larger_than_the_bucket)
{
    bytes_only(100, 0, 100);
    ck_assert_uint_eq(limiter_take(&l, 1, T0), 0);
    ck_assert_uint_eq(limiter_take(&l, 1000, T0), T0 + MS); // waits for a full bucket
    ck_assert_uint_eq(limiter_take(&l, 1000, T0 + MS), 0);
    const uint64_t t = T0 + MS;
    ck_assert_uint_eq(limiter_take(&l, 1, t), t + 901 * MS); // 900 of debt, then one token
    ck_assert_uint_eq(limiter_take(&l, 1, t + 900 * MS), t + 901 * MS);
    ck_assert_uint_eq(limiter_take(&l, 1, t + 901 * MS), 0);
}
END_TEST

START_TEST(both_or_neither)
{
    const struct limiter_cfg c = {
        .set = true, .bandwidth = bucket(100, 0, 100), .ops = bucket(2, 0, 1000)};
    limiter_init(&l, &c, T0);
    ck_assert_uint_eq(limiter_take(&l, 90, T0), 0);
    ck_assert_uint_eq(limiter_take(&l, 90, T0), T0 + 80 * MS);
    ck_assert_uint_eq(l.ops.tokens, 1); // a refusal takes nothing
    ck_assert_uint_eq(limiter_take(&l, 1, T0), 0);
    ck_assert_uint_eq(limiter_take(&l, 1, T0), T0 + 500 * MS);
    ck_assert_uint_eq(l.bytes.tokens, 9);
    ck_assert_uint_eq(limiter_take(&l, 200, T0), T0 + 500 * MS); // the later of the two
}
END_TEST

START_TEST(refund)
{
    const struct limiter_cfg c = {
        .set = true, .bandwidth = bucket(100, 20, 100), .ops = bucket(2, 0, 1000)};
    limiter_init(&l, &c, T0);
    const struct limiter before = l;
    ck_assert_uint_eq(limiter_take(&l, 60, T0), 0);
    limiter_refund(&l, 60);
    ck_assert_int_eq(memcmp(&l, &before, sizeof(l)), 0);
    ck_assert_uint_eq(limiter_take(&l, 5000, T0), 0);
    ck_assert_uint_eq(l.bytes.debt, 4880);
    limiter_refund(&l, 5000);
    ck_assert_int_eq(memcmp(&l, &before, sizeof(l)), 0);
    limiter_refund(&l, 5000); // a device's mistake makes no tokens
    ck_assert_int_eq(memcmp(&l, &before, sizeof(l)), 0);
}
END_TEST

START_TEST(patch)
{
    const struct limiter_cfg c = {
        .set = true, .bandwidth = bucket(100, 0, 100), .ops = bucket(2, 0, 1000)};
    limiter_init(&l, &c, T0);
    ck_assert_uint_eq(limiter_take(&l, 100, T0), 0);
    struct limiter_cfg p = {.set = true, .ops = bucket(50, 0, 1000)};
    limiter_patch(&l, &p, T0);
    ck_assert_uint_eq(l.bytes.tokens, 0); // absent: stays as it was
    ck_assert_uint_eq(l.ops.tokens, 50);
    p = (struct limiter_cfg){.set = true, .bandwidth = bucket(0, 0, 0)};
    limiter_patch(&l, &p, T0);
    ck_assert_uint_eq(limiter_take(&l, 1u << 30, T0), 0); // taken away
    p.set = false;
    p.ops = bucket(1, 0, 1);
    limiter_patch(&l, &p, T0);
    limiter_patch(&l, NULL, T0);
    ck_assert_uint_eq(l.ops.cfg.size, 50);
}
END_TEST

START_TEST(extremes_do_not_overflow)
{
    static const uint64_t v[] = {1, 2, 1000, UINT32_MAX, TOP / 1000000, TOP - 1, TOP};
    for (size_t i = 0; i < ARRAY_SIZE(v) * ARRAY_SIZE(v) * ARRAY_SIZE(v); i++) {
        const uint64_t size = v[i % 7], ms = v[i / 7 % 7], want = v[i / 49];
        bytes_only(size, i % 2 ? TOP : 0, ms);
        uint64_t now = T0;
        for (unsigned n = 0; n < 20; n++) {
            uint64_t at = limiter_take(&l, want, now);
            ck_assert(at == 0 || at > now);
            ck_assert_uint_le(l.bytes.tokens, size);
            if (at == TOP)
                break;
            if (at > 0) { // the promise holds: at that time it is granted
                ck_assert_uint_eq(limiter_take(&l, want, at), 0);
                now = at;
            }
        }
    }
}
END_TEST

START_TEST(rebase_clamps)
{
    bytes_only(100, 10, 100);
    l.bytes.tokens = l.bytes.burst = l.bytes.debt = l.bytes.last_ns = TOP;
    limiter_rebase(&l, 7);
    ck_assert_uint_eq(l.bytes.tokens, 100);
    ck_assert_uint_eq(l.bytes.burst, 10);
    ck_assert_uint_eq(l.bytes.debt, 100);
    ck_assert_uint_eq(l.bytes.last_ns, 7);
    ck_assert_uint_eq(limiter_take(&l, 110, 7 + 100 * MS), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ratelimit");
    TCase *tc = tcase_create("ratelimit");
    suite_add_tcase(s, tc);
    tcase_add_test(tc, off);
    tcase_add_test(tc, full_then_even_refill);
    tcase_add_test(tc, frequent_calls_lose_no_time);
    tcase_add_test(tc, burst_is_spent_first_and_once);
    tcase_add_test(tc, larger_than_the_bucket);
    tcase_add_test(tc, both_or_neither);
    tcase_add_test(tc, refund);
    tcase_add_test(tc, patch);
    tcase_add_test(tc, extremes_do_not_overflow);
    tcase_add_test(tc, rebase_clamps);
    return run_suite(s);
}
