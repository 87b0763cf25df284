// SPDX-License-Identifier: Apache-2.0
// Split virtqueues against a hostile driver: every way to break a ring, notification suppression,
// a racing writer, and all flag and next tables of a queue of four.
#include <pthread.h>

#include "tests/unit/vio_fake.h"

#define RAM  (4 * MIB)
#define BASE 0x10000ULL
#define BUF  0x40000ULL // where data lies
#define ITAB 0x30000ULL // where indirect tables lie

static struct guest_mem mem; // one per forked test
static struct virtq q;
static struct drv_queue drv;
static struct vchain chain;

static void start(uint16_t size, uint64_t features)
{
    memset(&q, 0, sizeof(q));
    ck_assert_int_eq(mem_reserve(&mem, RAM, NULL), 0);
    ck_assert_int_eq(mem_back_anon(&mem, false, NULL), 0);
    drv = drv_queue(&mem, BASE, size);
    q.s = (struct virtq_state){.size = size,
                               .ready = 1,
                               .signalled_valid = 1,
                               .desc = drv.desc,
                               .avail = drv.avail,
                               .used = drv.used};
    ck_assert_int_eq(virtq_activate(&q, &mem, features), 0);
}

static int pop(void)
{
    return virtq_pop(&q, &chain);
}

static int pop_one(uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    drv_desc(&drv, 0, addr, len, flags, next);
    drv_offer(&drv, 0);
    return pop();
}

START_TEST(chain_is_translated)
{
    start(8, 0);
    ck_assert_int_eq(pop(), 0);
    drv_desc(&drv, 5, BUF, 16, D_NEXT, 2);
    drv_desc(&drv, 2, BUF + 100, 512, D_NEXT | D_WRITE, 7);
    drv_desc(&drv, 7, BUF + 5000, 1, D_WRITE, 0);
    put(&mem, BUF, "0123456789abcdef", 16);
    drv_offer(&drv, 5);
    ck_assert_int_eq(pop(), 1);
    ck_assert_uint_eq(chain.head, 5);
    ck_assert_uint_eq(chain.nr, 1);
    ck_assert_uint_eq(chain.nw, 2);
    ck_assert_uint_eq(chain.rbytes, 16);
    ck_assert_uint_eq(chain.wbytes, 513);
    ck_assert_ptr_eq(chain.iov[1].iov_base, mem.r[0].host + BUF + 100);
    ck_assert_uint_eq(chain.iov[2].iov_len, 1);
    char b[32];
    ck_assert_uint_eq(vchain_read(&chain, 4, b, 32), 12);
    ck_assert_int_eq(memcmp(b, "456789abcdef", 12), 0);
    ck_assert_uint_eq(vchain_read(&chain, 16, b, 1), 0);
    ck_assert_int_eq(pop(), 0);
    virtq_push(&q, 5, 513);
    ck_assert_uint_eq(drv_used_idx(&drv), 0); // not before publish
    virtq_publish(&q);
    ck_assert_uint_eq(drv_used_idx(&drv), 1);
    ck_assert_uint_eq(drv_used_id(&drv, 0), 5);
    ck_assert_uint_eq(drv_used_len(&drv, 0), 513);
}
END_TEST

START_TEST(q1_head_and_next_out_of_range)
{
    static const uint16_t bad[] = {8, 9, 0x7fff, 0x8000, 0xffff};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        start(8, 0);
        drv_offer(&drv, bad[i]);
        ck_assert_int_eq(pop(), -EINVAL);
        start(8, 0);
        ck_assert_int_eq(pop_one(BUF, 16, D_NEXT, bad[i]), -EINVAL);
    }
}
END_TEST

START_TEST(q2_loops)
{
    start(8, 0);
    ck_assert_int_eq(pop_one(BUF, 16, D_NEXT, 0), -EINVAL);
    start(8, 0);
    for (uint16_t i = 0; i < 8; i++)
        drv_desc(&drv, i, BUF, 16, D_NEXT, (uint16_t)((i + 1) % 8));
    drv_offer(&drv, 3);
    ck_assert_int_eq(pop(), -EINVAL);
    drv_desc(&drv, 2, BUF, 16, 0, 0); // the same without the loop: exactly queue size is legal
    ck_assert_int_eq(pop(), 1);
    ck_assert_uint_eq(chain.nr, 8);

    start(256, 0); // longer than a device takes, though not longer than the queue
    for (uint16_t i = 0; i < VIO_SEG_MAX; i++)
        drv_desc(&drv, i, BUF, 16, D_NEXT, (uint16_t)(i + 1));
    drv_desc(&drv, VIO_SEG_MAX, BUF, 16, 0, 0);
    drv_offer(&drv, 0);
    ck_assert_int_eq(pop(), -EINVAL);
    drv_desc(&drv, VIO_SEG_MAX - 1, BUF, 16, 0, 0);
    ck_assert_int_eq(pop(), 1);
    ck_assert_uint_eq(chain.nr, VIO_SEG_MAX);
}
END_TEST

START_TEST(q3_avail_jump_and_wrap)
{
    start(8, 0);
    put16(&mem, drv.avail + 2, 9);
    ck_assert_int_eq(pop(), -EINVAL);
    put16(&mem, drv.avail + 2, 0xffff); // backwards is a jump too
    ck_assert_int_eq(pop(), -EINVAL);
    start(8, 0);
    drv_desc(&drv, 0, BUF, 16, 0, 0);
    for (unsigned i = 0; i < 70000; i++) { // past 65,535
        drv_offer(&drv, 0);
        ck_assert_int_eq(pop(), 1);
        ck_assert_int_eq(pop(), 0);
        virtq_push(&q, 0, 0);
        virtq_publish(&q);
        ck_assert_uint_eq(drv_used_idx(&drv), (uint16_t)(i + 1));
    }
}
END_TEST

START_TEST(q5_duplicate_head_in_flight)
{
    start(8, 0);
    ck_assert_int_eq(pop_one(BUF, 16, 0, 0), 1);
    drv_offer(&drv, 0);
    ck_assert_int_eq(pop(), -EINVAL);
    virtq_push(&q, 0, 0);
    ck_assert_int_eq(pop(), 1); // done with: may come again
    virtq_push(&q, 0, 0);
    virtq_push(&q, 0, 0); // a device's mistake changes nothing
    virtq_push(&q, 9, 0);
    virtq_publish(&q);
    ck_assert_uint_eq(drv_used_idx(&drv), 2);
}
END_TEST

static int pop_indirect(uint64_t features, uint64_t table, uint32_t len, uint16_t flags)
{
    start(8, features);
    put_desc(&mem, ITAB, 0, BUF, 16, D_NEXT, 1);
    put_desc(&mem, ITAB, 1, BUF, 32, D_WRITE, 0);
    return pop_one(table, len, flags, 1);
}

START_TEST(q6_indirect)
{
    const uint64_t on = VIO_F_INDIRECT_DESC;
    ck_assert_int_eq(pop_indirect(on, ITAB, 32, D_INDIRECT), 1);
    ck_assert_uint_eq(chain.nr, 1);
    ck_assert_uint_eq(chain.nw, 1);
    ck_assert_int_eq(pop_indirect(on, ITAB, 32, D_INDIRECT | D_WRITE), 1); // flag is ignored
    ck_assert_int_eq(pop_indirect(0, ITAB, 32, D_INDIRECT), -EINVAL);
    ck_assert_int_eq(pop_indirect(on, ITAB, 0, D_INDIRECT), -EINVAL);
    ck_assert_int_eq(pop_indirect(on, ITAB, 33, D_INDIRECT), -EINVAL);
    ck_assert_int_eq(pop_indirect(on, ITAB, 16, D_INDIRECT), -EINVAL); // next past the table
    ck_assert_int_eq(pop_indirect(on, ITAB, 16 * 256, D_INDIRECT), 1);
    ck_assert_int_eq(pop_indirect(on, ITAB, 16 * 257, D_INDIRECT), -EINVAL);
    ck_assert_int_eq(pop_indirect(on, ITAB, 0xfffffff0, D_INDIRECT), -EINVAL);
    ck_assert_int_eq(pop_indirect(on, RAM - 16, 32, D_INDIRECT), -EINVAL);
    ck_assert_int_eq(pop_indirect(on, UINT64_MAX - 15, 32, D_INDIRECT), -EINVAL);
    ck_assert_int_eq(pop_indirect(on, ITAB, 32, D_INDIRECT | D_NEXT), -EINVAL);
    start(8, on); // a table inside a table
    put_desc(&mem, ITAB, 0, ITAB, 16, D_INDIRECT, 0);
    ck_assert_int_eq(pop_one(ITAB, 16, D_INDIRECT, 0), -EINVAL);
    start(8, on); // a loop inside a table
    put_desc(&mem, ITAB, 0, BUF, 16, D_NEXT, 0);
    ck_assert_int_eq(pop_one(ITAB, 16 * 256, D_INDIRECT, 0), -EINVAL);
    start(8, on); // unaligned tables are legal; direct descriptors may precede one
    put_desc(&mem, ITAB + 3, 0, BUF, 16, D_WRITE, 0);
    drv_desc(&drv, 1, ITAB + 3, 16, D_INDIRECT, 0);
    ck_assert_int_eq(pop_one(BUF, 8, D_NEXT, 1), 1);
    ck_assert_uint_eq(chain.nr, 1);
    ck_assert_uint_eq(chain.nw, 1);
}
END_TEST

START_TEST(q7_addresses)
{
    static const struct {
        uint64_t addr;
        uint32_t len;
        int want;
    } t[] = {
        {0, 16, 1},
        {RAM - 1, 1, 1},
        {RAM - 16, 16, 1},
        {RAM - 16, 17, -EINVAL},
        {RAM, 1, -EINVAL},
        {RAM + 1, 1, -EINVAL},
        {MEM_GAP_START, 16, -EINVAL},
        {MEM_GAP_START + 0x1000, 16, -EINVAL},
        {UINT64_MAX, 1, -EINVAL},
        {UINT64_MAX - 15, 16, -EINVAL},
        {UINT64_MAX - 15, 0xffffffff, -EINVAL},
        {BUF, 0, -EINVAL}, // Q8
        {BUF, 0xffffffff, -EINVAL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
        start(8, 0);
        ck_assert_int_eq(pop_one(t[i].addr, t[i].len, 0, 0), t[i].want);
        start(8, 0);
        ck_assert_int_eq(pop_one(t[i].addr, t[i].len, D_WRITE, 0), t[i].want);
    }
}
END_TEST

START_TEST(q7_across_two_regions_and_q8_sums)
{
    ck_assert_int_eq(mem_reserve(&mem, 8 * GIB, NULL), 0);
    ck_assert_int_eq(mem_back_anon(&mem, false, NULL), 0);
    drv = drv_queue(&mem, BASE, 8);
    const struct virtq_state s = {
        .size = 8, .ready = 1, .desc = drv.desc, .avail = drv.avail, .used = drv.used};
    static const struct {
        uint64_t a;
        uint32_t alen;
        uint64_t b;
        uint32_t blen;
        int want;
    } t[] = {
        {MEM_GAP_START - 8, 8, MEM_GAP_END, 8, 1},
        {MEM_GAP_START - 8, 9, MEM_GAP_END, 8, -EINVAL},
        {BUF, 8, MEM_GAP_END - 1, 8, -EINVAL},
        {BUF, 8, MEM_GAP_END - 1, 1, -EINVAL},
        {MEM_GAP_END, 0xffffffff - 8, BUF, 8, 1},
        {MEM_GAP_END, 0xffffffff - 8, BUF, 9, -EINVAL},
        {MEM_GAP_END, 0xffffffff, MEM_GAP_END, 0xffffffff, -EINVAL},
        {MEM_GAP_START - 0x80000000u, 0x80000000u, MEM_GAP_END, 0x80000000u, -EINVAL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(t); i++)
        for (uint16_t w = 0; w <= D_WRITE; w += D_WRITE) {
            memset(&q, 0, sizeof(q));
            q.s = s;
            drv.idx = 0;
            ck_assert_int_eq(virtq_activate(&q, &mem, 0), 0);
            drv_desc(&drv, 1, t[i].b, t[i].blen, w, 0);
            ck_assert_int_eq(pop_one(t[i].a, t[i].alen, D_NEXT, 1), t[i].want);
        }
    mem_free(&mem);
}
END_TEST

START_TEST(q9_readable_after_writable)
{
    start(8, 0);
    drv_desc(&drv, 1, BUF, 16, 0, 0);
    ck_assert_int_eq(pop_one(BUF, 16, D_NEXT | D_WRITE, 1), -EINVAL);
}
END_TEST

static int activate(uint64_t desc, uint64_t avail, uint64_t used, uint16_t size)
{
    memset(&q, 0, sizeof(q));
    q.s =
        (struct virtq_state){.size = size, .ready = 1, .desc = desc, .avail = avail, .used = used};
    int rc = virtq_activate(&q, &mem, 0);
    ck_assert(rc == 0 ? q.desc && q.avail && q.used : !q.desc && !q.avail && !q.used);
    return rc;
}

START_TEST(q10_q11_rings)
{
    start(8, 0);
    const uint64_t d = 0x1000, a = 0x2000, u = 0x3000;
    ck_assert_int_eq(activate(d, a, u, 8), 0);
    static const uint16_t sizes[] = {0, 3, 7, 9, 255, 257, 512, 0x8000, 0xffff};
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
        ck_assert_int_eq(activate(d, a, u, sizes[i]), -EINVAL);
    ck_assert_int_eq(activate(d, a, u, 1), 0);
    ck_assert_int_eq(activate(d, a, u, 256), 0); // the table fills its page exactly
    ck_assert_int_eq(activate(d, a - 2, u, 256), -EINVAL);
    ck_assert_int_eq(activate(d + 8, a, u, 8), -EINVAL);
    ck_assert_int_eq(activate(d, a + 1, u, 8), -EINVAL);
    ck_assert_int_eq(activate(d, a, u + 2, 8), -EINVAL);
    ck_assert_int_eq(activate(d, d, u, 8), -EINVAL);
    ck_assert_int_eq(activate(d, a, a, 8), -EINVAL);
    ck_assert_int_eq(activate(d, a, d + 64, 8), -EINVAL);
    ck_assert_int_eq(activate(d, d + 128, u, 8), 0); // back to back is no overlap
    ck_assert_int_eq(activate(d, d + 126, u, 8), -EINVAL);
    ck_assert_int_eq(activate(RAM - 128, a, u, 8), 0);
    ck_assert_int_eq(activate(RAM - 112, a, u, 8), -EINVAL);
    ck_assert_int_eq(activate(d, RAM - 22, u, 8), 0);
    ck_assert_int_eq(activate(d, RAM - 20, u, 8), -EINVAL);
    ck_assert_int_eq(activate(d, a, RAM - 72, 8), 0); // 70 bytes
    ck_assert_int_eq(activate(d, a, RAM - 68, 8), -EINVAL);
    ck_assert_int_eq(activate(d, a, MEM_GAP_START, 8), -EINVAL);
    ck_assert_int_eq(activate(d, UINT64_MAX - 1, u, 8), -EINVAL);
    ck_assert_int_eq(activate(UINT64_MAX - 15, a, u, 8), -EINVAL);
}
END_TEST

START_TEST(q10_data_over_rings)
{
    start(8, 0); // legal, and only the driver's own loss
    ck_assert_int_eq(pop_one(drv.used, 64, D_WRITE, 0), 1);
    memset(chain.iov[0].iov_base, 0xff, chain.iov[0].iov_len);
    virtq_push(&q, 0, 64);
    virtq_publish(&q);
    ck_assert_uint_eq(drv_used_idx(&drv), 1); // our index is private, the ring is output only
    drv_desc(&drv, 1, drv.avail, 20, D_WRITE, 0);
    drv_offer(&drv, 1);
    ck_assert_int_eq(pop(), 1);
    memset(chain.iov[0].iov_base, 0xff, chain.iov[0].iov_len);
    virtq_push(&q, 1, 20);
    ck_assert_int_eq(pop(), -EINVAL);
}
END_TEST

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
        ck_assert(chain.head < 8 && chain.nr + chain.nw == 1);
        const uint8_t *p = chain.iov[0].iov_base;
        ck_assert(p >= mem.r[0].host && p + chain.iov[0].iov_len <= mem.r[0].host + RAM);
        ck_assert_uint_eq(chain.iov[0].iov_len, chain.rbytes + chain.wbytes);
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
    Suite *s = suite_create("queue");
    TCase *tc = tcase_create("queue");
    suite_add_tcase(s, tc);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, chain_is_translated);
    tcase_add_test(tc, q1_head_and_next_out_of_range);
    tcase_add_test(tc, q2_loops);
    tcase_add_test(tc, q3_avail_jump_and_wrap);
    tcase_add_test(tc, q5_duplicate_head_in_flight);
    tcase_add_test(tc, q6_indirect);
    tcase_add_test(tc, q7_addresses);
    tcase_add_test(tc, q7_across_two_regions_and_q8_sums);
    tcase_add_test(tc, q9_readable_after_writable);
    tcase_add_test(tc, q10_q11_rings);
    tcase_add_test(tc, q10_data_over_rings);
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
