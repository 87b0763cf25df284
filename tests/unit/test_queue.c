// SPDX-License-Identifier: Apache-2.0
// Split virtqueues against a hostile driver: every way to break a ring or a chain.
#include "tests/unit/vio_queue.h"

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
    return run_suite(s);
}
