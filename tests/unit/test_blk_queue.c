// SPDX-License-Identifier: Apache-2.0
// The block device's queue: batches, a full ring, the rate limit, waiting for the next request.
#define FX_DEFINE
#include "tests/unit/blk_fixture.h"
#include "tests/unit/vio_fake.h"

#define DISK (64 * KIB)

static struct fx f;
static int fd;

static void setup_limited(const struct limiter_cfg *rl)
{
    fd = fx_file("/tmp", DISK, O_RDWR);
    const struct blk_backing k = {.fd = fd, .cow_fd = -1, .bytes = DISK, .writeback = true};
    ck_assert_int_eq(fx_init(&f, &k, rl), 0);
}

static void setup(void)
{
    setup_limited(NULL);
}

static void teardown(void)
{
    fx_end(&f);
}

// Requests first to first + n - 1, each reading sector i into its own page.
static void offer_reads(unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++)
        fx_req(&f, i, REQ_IN, i, FX_DATA + 4096 * i, 512);
}

static void check_reads(unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++) {
        ck_assert_uint_eq(fx_status(&f, i), ST_OK);
        ck_assert(fx_filled(fx_at(&f, FX_DATA + 4096 * i), (uint8_t)(i + 1), 512));
    }
}

START_TEST(batches)
{
    const unsigned irqs = f.irqs;
    offer_reads(0, 20);
    vio_kick(f.d); // one call serves them all and tells of them in batches
    check_reads(0, 20);
    ck_assert_uint_eq(fx_used(&f), 20);
    ck_assert_uint_ge(f.irqs - irqs, 2);
    ck_assert_uint_le(f.irqs - irqs, 4);
    ck_assert_uint_eq(f.b->fresh, 1); // one request object was enough
}
END_TEST

// Waiting for a next request in vain is given up: 20,000 kicks try it a few dozen times, and an idle
// queue never.
START_TEST(waits_in_vain_are_rare)
{
    unsigned waits = 0;
    for (unsigned i = 0; i < 20000; i++) {
        const unsigned skip = f.b->skip;
        f.b->idle_ns = now_ns();
        vio_kick(f.d);
        waits += f.b->skip > skip; // unchanged where this thread lost the processor in between
    }
    ck_assert_uint_ge(waits, 10);
    ck_assert_uint_le(waits, 40);
    f.b->skip = 0;
    f.b->vain = 0;
    f.b->idle_ns = 0; // long ago
    vio_kick(f.d);
    ck_assert_uint_eq(f.b->vain, 0);
}
END_TEST

static void *offer_later(void *arg)
{
    (void)arg;
    usleep(1000);
    fx_req(&f, 0, REQ_IN, 0, FX_DATA, 512);
    return NULL;
}

// A request that comes while the device waits is taken without another kick.
START_TEST(next_request_is_taken)
{
    pthread_t t;
    ck_assert_int_eq(pthread_create(&t, NULL, offer_later, NULL), 0);
    while (fx_used(&f) == 0) {
        f.b->skip = 0;
        f.b->idle_ns = now_ns();
        vio_kick(f.d);
    }
    pthread_join(t, NULL);
    check_reads(0, 1);
}
END_TEST

// Q4: one call serves a queue-full at most, however much the driver refills, and asks for another.
START_TEST(bounded_work)
{
    fx_req(&f, 0, REQ_GETID, 0, FX_DATA, 20);
    for (unsigned i = 1; i < VIO_QUEUE_SIZE; i++) { // the same chain again: it is answered at once
        le16_put(fx_at(&f, FX_AVAIL + 4 + 2 * i), 0);
        le16_put(fx_at(&f, FX_AVAIL + 2), ++f.avail);
    }
    f.again = 0;
    vio_kick(f.d);
    ck_assert_uint_eq(fx_used(&f), VIO_QUEUE_SIZE);
    ck_assert_uint_eq(f.again, 1);
}
END_TEST

// Operations that land in one round of the loop are answered together, by the kick that follows.
START_TEST(one_answer_for_a_round)
{
    fx_calls.block_reads = true;
    offer_reads(0, 4);
    fx_kick(&f);
    ck_assert_uint_eq(f.nring, 4);
    const unsigned irqs = f.irqs;
    while (f.nring)
        fx_land(&f, f.nring - 1, 0, 0);
    ck_assert_uint_eq(f.irqs, irqs);
    ck_assert_uint_ge(f.again, 1);
    fx_kick(&f);
    ck_assert_uint_eq(f.irqs, irqs + 1);
    ck_assert_uint_eq(fx_used(&f), 4);
    check_reads(0, 4);
}
END_TEST

START_TEST(full_ring)
{
    fx_calls.block_reads = true;
    f.busy = 3;
    f.again = 0;
    offer_reads(0, 6);
    vio_kick(f.d);
    ck_assert_uint_eq(f.nring, 0);
    ck_assert_uint_eq(f.b->inflight, 1); // takes no more while one waits
    ck_assert_uint_ge(f.again, 1);
    fx_pump(&f);
    check_reads(0, 6);
    f.b->m.reads = 0;
    offer_reads(0, 2); // a second step finds it full, and the next landing makes room
    fx_kick(&f);
    f.busy = 1;
    fx_land(&f, 0, 0, 100);
    ck_assert_uint_eq(f.b->inflight, 2);
    fx_pump(&f);
    ck_assert_uint_eq(f.b->m.reads, 2);
    check_reads(0, 2);
}
END_TEST

START_TEST(limit)
{
    const struct limiter_cfg rl = {.set = true,
                                   .ops = {.set = true, .size = 2, .refill_ms = 3600 * 1000}};
    teardown();
    setup_limited(&rl);
    offer_reads(0, 5);
    fx_kick(&f);
    check_reads(0, 2);
    ck_assert_uint_eq(fx_status(&f, 2), FX_NOBODY);
    ck_assert_uint_gt(f.timer, now_ns());
    ck_assert_uint_eq(f.b->m.throttled, 1);
    fx_kick(&f); // a driver that goes on kicking changes nothing
    ck_assert_uint_eq(f.b->m.throttled, 1);
    vio_timer(f.d); // too early: asks for another
    ck_assert_uint_eq(f.b->m.throttled, 2);
    ck_assert_uint_eq(fx_used(&f), 2);
    f.b->limiter.ops.tokens = 2;
    vio_timer(f.d);
    check_reads(2, 2);
    ck_assert_uint_eq(fx_used(&f), 4);
    const struct limiter_cfg none = {.set = true, .ops = {.set = true}};
    blk_limit(f.b, &none);
    fx_kick(&f);
    check_reads(4, 1);
}
END_TEST

// The timer of a throttled device runs out during a pause, when nobody listens.
START_TEST(limit_and_pause)
{
    const struct limiter_cfg rl = {.set = true,
                                   .ops = {.set = true, .size = 1, .refill_ms = 3600 * 1000}};
    teardown();
    setup_limited(&rl);
    offer_reads(0, 2);
    fx_kick(&f);
    ck_assert(vio_quiesce(f.d, true));
    f.b->limiter.ops.tokens = 1;
    vio_timer(f.d);
    ck_assert_uint_eq(fx_used(&f), 1);
    vio_quiesce(f.d, false);
    fx_kick(&f);
    check_reads(0, 2);
}
END_TEST

START_TEST(limit_and_reset)
{
    const struct limiter_cfg rl = {
        .set = true, .bandwidth = {.set = true, .size = 512, .refill_ms = 3600 * 1000}};
    teardown();
    setup_limited(&rl);
    offer_reads(0, 2);
    fx_kick(&f);
    ck_assert_uint_eq(fx_used(&f), 1);
    fx_start(&f);
    blk_limiter(f.b)->bytes.tokens = 512;
    offer_reads(0, 1);
    fx_kick(&f);
    check_reads(0, 1);
    ck_assert_uint_eq(fx_used(&f), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {batches,
                                  bounded_work,
                                  waits_in_vain_are_rare,
                                  next_request_is_taken,
                                  one_answer_for_a_round,
                                  full_ring,
                                  limit,
                                  limit_and_pause,
                                  limit_and_reset};
    Suite *s = suite_create("blk queue");
    TCase *t = tcase_create("blk queue");
    tcase_add_checked_fixture(t, setup, teardown);
    for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
        tcase_add_test(t, tests[i]);
    suite_add_tcase(s, t);
    return run_suite(s);
}
