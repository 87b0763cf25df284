// SPDX-License-Identifier: Apache-2.0
// Split virtqueues: notification suppression, dirty pages, a racing writer, and all flag and next
// tables of a queue of four.
#include <pthread.h>

#include "tests/unit/vio_queue.h"

START_TEST(unpop_returns_chains_in_order)
{
    start(8, 0);
    struct vchain c[3];
    for (uint16_t i = 0; i < 3; i++) {
        drv_desc(&drv, i, BUF, 16, 0, 0);
        drv_offer(&drv, i);
        ck_assert_int_eq(virtq_pop(&q, &c[i]), 1);
    }
    for (unsigned i = 3; i-- > 1;)
        virtq_unpop(&q, &c[i]);
    virtq_unpop(&q, &c[1]); // twice changes nothing
    ck_assert_int_eq(pop(), 1);
    ck_assert_uint_eq(chain.head, 1);
    ck_assert_int_eq(pop(), 1);
    ck_assert_uint_eq(chain.head, 2);
    ck_assert_int_eq(pop(), 0);
}
END_TEST

START_TEST(deactivated_queue_is_inert)
{
    start(8, VIO_F_EVENT_IDX);
    ck_assert_int_eq(pop_one(BUF, 16, 0, 0), 1);
    drv_offer(&drv, 0);
    virtq_deactivate(&q);
    ck_assert_int_eq(pop(), 0);
    ck_assert(!virtq_has_avail(&q));
    ck_assert(!virtq_enable_kick(&q));
    virtq_push(&q, 0, 4);
    virtq_publish(&q);
    virtq_disable_kick(&q);
    ck_assert(!virtq_want_irq(&q));
    ck_assert_uint_eq(drv_used_idx(&drv), 0);
}
END_TEST

static void complete(unsigned n)
{
    while (n-- > 0) {
        drv_desc(&drv, 0, BUF, 16, 0, 0);
        drv_offer(&drv, 0);
        ck_assert_int_eq(pop(), 1);
        virtq_push(&q, 0, 0);
    }
    virtq_publish(&q);
}

START_TEST(interrupts_by_flag)
{
    start(8, 0);
    ck_assert(!virtq_want_irq(&q)); // nothing published
    complete(1);
    ck_assert(virtq_want_irq(&q));
    ck_assert(!virtq_want_irq(&q));
    put16(&mem, drv.avail, 1); // VIRTQ_AVAIL_F_NO_INTERRUPT
    complete(1);
    ck_assert(!virtq_want_irq(&q));
    put16(&mem, drv.avail, 0);
    drv_used_event(&drv, 1000); // means nothing without EVENT_IDX
    complete(1);
    ck_assert(virtq_want_irq(&q));
}
END_TEST

START_TEST(interrupts_by_event)
{
    start(8, VIO_F_EVENT_IDX);
    put16(&mem, drv.avail, 1); // the flag means nothing with EVENT_IDX
    complete(1);
    ck_assert(virtq_want_irq(&q)); // used_event 0: the first used element
    complete(1);
    ck_assert(!virtq_want_irq(&q)); // it was not moved
    drv_used_event(&drv, 4);
    complete(2);
    ck_assert(!virtq_want_irq(&q)); // 4 used, element 4 is the fifth
    complete(3);
    ck_assert(virtq_want_irq(&q)); // passed it within the batch
    q.s.signalled_valid = 0;       // unknown: rather one too many
    ck_assert(virtq_want_irq(&q));
    ck_assert(!virtq_want_irq(&q));
    for (unsigned i = 0; i < 70000; i++) { // exact across the wrap of all indices
        const bool asked = i % 3 == 0;
        if (asked)
            drv_used_event(&drv, q.s.next_used);
        complete(1);
        ck_assert_int_eq(virtq_want_irq(&q), asked);
    }
}
END_TEST

START_TEST(kicks)
{
    start(8, 0);
    virtq_disable_kick(&q);
    ck_assert_uint_eq(get16(&mem, drv.used), 1);
    ck_assert(!virtq_enable_kick(&q));
    ck_assert_uint_eq(get16(&mem, drv.used), 0);
    drv_desc(&drv, 0, BUF, 16, 0, 0);
    drv_offer(&drv, 0);
    ck_assert(virtq_enable_kick(&q)); // waiting already
    start(8, VIO_F_EVENT_IDX);
    complete(3);
    virtq_disable_kick(&q);
    ck_assert_uint_eq(get16(&mem, drv.used), 0); // flags stay 0 (2.7.10)
    ck_assert(!virtq_enable_kick(&q));
    ck_assert_uint_eq(drv_avail_event(&drv), 3);
    drv_offer(&drv, 0);
    ck_assert(virtq_has_avail(&q));
    ck_assert(virtq_enable_kick(&q));
}
END_TEST

START_TEST(ring_writes_are_dirty)
{
    start(8, VIO_F_EVENT_IDX);
    const uint64_t used_page = 1ULL << (drv.used / PAGE_SIZE), buf_page = 1ULL << (0x30);
    ck_assert_int_eq(mem_track(&mem, true, NULL), 0);
    drv_desc(&drv, 0, 0x30000, 16, D_WRITE, 0);
    drv_offer(&drv, 0);
    mem_dirty_take(&mem, 0); // what the driver's stand-in wrote
    ck_assert_int_eq(pop(), 1);
    ck_assert_uint_eq(mem_dirty_take(&mem, 0), buf_page);
    virtq_push(&q, 0, 16);
    virtq_publish(&q);
    ck_assert_uint_eq(mem_dirty_take(&mem, 0), used_page);
    virtq_enable_kick(&q);
    ck_assert_uint_eq(mem_dirty_take(&mem, 0), used_page);
    virtq_want_irq(&q);
    ck_assert_uint_eq(mem_dirty_take(&mem, 0), 0);
}
END_TEST

// ---- Q14: a writer races every shared field between a legal and an illegal value

static void *racer(void *arg)
{
    _Atomic bool *stop = arg;
    uint64_t *d = mem_at(&mem, drv.desc, 32, MEM_READ), *t = mem_at(&mem, ITAB, 16, MEM_READ);
    uint16_t *ring = mem_at(&mem, drv.avail + 4, 16, MEM_READ);
    const uint64_t good = 16 | (uint64_t)D_WRITE << 32, ind = 16 | (uint64_t)D_INDIRECT << 32;
    const uint64_t bad[] = {0xffffffff | (uint64_t)D_WRITE << 32, 16 | 0xffff000100000000ULL, ind,
                            (uint64_t)D_INDIRECT << 32 | 0xfffffff0};
    for (unsigned i = 0; !*stop; i++) {
        __atomic_store_n(&d[0], i & 1 ? RAM - 8 : BUF, __ATOMIC_RELAXED);
        __atomic_store_n(&d[1], i & 2 ? bad[i / 4 % 4] : good, __ATOMIC_RELAXED);
        __atomic_store_n(&d[0], i & 1 ? ITAB : BUF, __ATOMIC_RELAXED);
        __atomic_store_n(&t[1], i & 4 ? bad[i / 8 % 4] : good, __ATOMIC_RELAXED);
        __atomic_store_n(&ring[i % 8], i & 8 ? 0xffff : 0, __ATOMIC_RELAXED);
        __atomic_store_n(&ring[i % 8], 0, __ATOMIC_RELAXED);
    }
    return NULL;
}

START_TEST(q14_double_fetch)
{
    start(8, VIO_F_INDIRECT_DESC);
    drv_desc(&drv, 0, BUF, 16, D_WRITE, 0);
    put_desc(&mem, ITAB, 0, BUF, 16, D_WRITE, 0);
    uint16_t *idx = mem_at(&mem, drv.avail + 2, 2, MEM_READ);
    _Atomic bool stop = false;
    pthread_t t;
    ck_assert_int_eq(pthread_create(&t, NULL, racer, &stop), 0);
    unsigned good = 0, bad = 0;
    for (unsigned i = 0; i < 400000 || (good == 0 && i < 40000000); i++) {
        __atomic_store_n(idx, (uint16_t)(q.s.next_avail + 1), __ATOMIC_RELEASE);
        if (pop() < 0) {
            bad++;
            continue;
        }
        good++;
        // Flags of one write with the next of another may make a longer chain: each part must be sound.
        ck_assert(chain.head < 8 && chain.nr + chain.nw >= 1 && chain.nr + chain.nw <= 8);
        size_t sum = 0;
        for (unsigned k = 0; k < chain.nr + (unsigned)chain.nw; k++) {
            const uint8_t *p = chain.iov[k].iov_base;
            ck_assert(p >= mem.r[0].host && p + chain.iov[k].iov_len <= mem.r[0].host + RAM);
            sum += chain.iov[k].iov_len;
        }
        ck_assert_uint_eq(sum, chain.rbytes + chain.wbytes);
        virtq_push(&q, chain.head, 0);
    }
    stop = true;
    pthread_join(t, NULL);
    ck_assert_uint_gt(good, 0);
    (void)bad; // how many: the scheduler's choice
}
END_TEST

// ---- small-model check: a queue of four, every descriptor any of 8 flags x 5 nexts

// The specification in the fewest words: what a chain from descriptor 0 must come to.
static int oracle(const uint16_t flags[4], const uint16_t next[4], bool indirect, unsigned *nr,
                  unsigned *nw)
{
    bool seen[4] = {false};
    *nr = *nw = 0;
    for (unsigned i = 0; i < 4; i = next[i]) {
        if (seen[i])
            return -EINVAL;
        seen[i] = true;
        if (flags[i] & D_INDIRECT) { // the table is one readable, one writable
            if (!indirect || (flags[i] & D_NEXT) || *nw)
                return -EINVAL;
            ++*nr, ++*nw;
            return 1;
        }
        if (flags[i] & D_WRITE)
            ++*nw;
        else if (*nw)
            return -EINVAL;
        else
            ++*nr;
        if (!(flags[i] & D_NEXT))
            return 1;
    }
    return -EINVAL;
}

START_TEST(small_model)
{
    const bool indirect = _i;
    start(4, indirect ? VIO_F_INDIRECT_DESC : 0);
    put_desc(&mem, ITAB, 0, BUF, 16, D_NEXT, 1);
    put_desc(&mem, ITAB, 1, BUF, 16, D_WRITE, 0);
    for (uint32_t i = 0; i < 4; i++) // as data or as a table of two, the same bytes
        drv_desc(&drv, i, ITAB, 32, 0, 0);
    uint8_t *table = mem_at(&mem, drv.desc, 64, MEM_READ);
    uint16_t *idx = mem_at(&mem, drv.avail + 2, 2, MEM_READ);
    unsigned legal = 0;
    for (unsigned n = 0; n < 40 * 40 * 40 * 40; n++) {
        uint16_t flags[4], next[4];
        for (unsigned i = 0, v = n; i < 4; i++, v /= 40) {
            flags[i] = (uint16_t)(v % 8);
            next[i] = (uint16_t)(v / 8 % 5);
            le16_put(table + 16 * i + 12, flags[i]);
            le16_put(table + 16 * i + 14, next[i]);
        }
        *idx = (uint16_t)(q.s.next_avail + 1);
        unsigned nr, nw;
        const int want = oracle(flags, next, indirect, &nr, &nw), got = pop();
        if (got != want || (got == 1 && (chain.nr != nr || chain.nw != nw)))
            ck_abort_msg("table %u: got %d (%u, %u), want %d (%u, %u)", n, got, chain.nr, chain.nw,
                         want, nr, nw);
        if (got == 1) {
            legal++;
            virtq_push(&q, 0, 0);
        }
    }
    ck_assert_uint_gt(legal, 500000);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("queue_more");
    TCase *tc = tcase_create("queue_more");
    suite_add_tcase(s, tc);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, unpop_returns_chains_in_order);
    tcase_add_test(tc, deactivated_queue_is_inert);
    tcase_add_test(tc, interrupts_by_flag);
    tcase_add_test(tc, interrupts_by_event);
    tcase_add_test(tc, kicks);
    tcase_add_test(tc, ring_writes_are_dirty);
    tcase_add_test(tc, q14_double_fetch);
    tcase_add_loop_test(tc, small_model, 0, 2);
    return run_suite(s);
}
