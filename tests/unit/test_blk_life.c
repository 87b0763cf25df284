// SPDX-License-Identifier: Apache-2.0
// The block device over time: live swap, pause, reset with I/O in flight, dirty tracking, and every
// host call failing once.
#define FX_DEFINE
#include "tests/unit/blk_fixture.h"
#include "tests/unit/vio_fake.h"

#define DISK (64 * KIB)

static struct fx f;
static int fd;

static void setup(void)
{
    fd = fx_file("/tmp", DISK, O_RDWR);
    const struct blk_backing k = {.fd = fd, .cow_fd = -1, .bytes = DISK, .writeback = true};
    ck_assert_int_eq(fx_init(&f, &k, NULL), 0);
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

static struct blk_backing other(uint64_t bytes)
{
    return (struct blk_backing){
        .fd = fx_file("/tmp", bytes, O_RDWR), .cow_fd = -1, .bytes = bytes, .writeback = true};
}

START_TEST(swap_idle_and_busy)
{
    const char id[20] = "second";
    struct blk_backing k = other(128 * KIB);
    fx_calls.block_reads = true;
    offer_reads(0, 1);
    fx_kick(&f);
    ck_assert_int_eq(blk_swap(f.b, &k, id, NULL), 1);
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100, 8), DISK / 512); // not yet
    offer_reads(1, 1);
    fx_kick(&f);
    ck_assert_uint_eq(f.nring, 1); // the second waits for the new image
    const uint32_t gen = rd(f.d, 0xfc);
    wr(f.d, 0x64, 3);
    fx_land(&f, 0, 0, 0);
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100, 8), 2 * DISK / 512);
    ck_assert_uint_ne(rd(f.d, 0xfc), gen);
    ck_assert_uint_eq(rd(f.d, 0x60) & VIO_INT_CONFIG, VIO_INT_CONFIG);
    ck_assert_int_eq(fcntl(fd, F_GETFD), -1); // the old one is closed
    fx_pump(&f);
    check_reads(0, 2);
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 255, FX_DATA, 512), ST_OK);
    ck_assert_uint_eq(fx_ask(&f, REQ_GETID, 0, FX_DATA, 20), ST_OK);
    ck_assert_mem_eq(fx_at(&f, FX_DATA), id, 20);
    ck_assert_uint_eq(f.b->m.config_changes, 1);
    k = other(4096);
    ck_assert_int_eq(blk_swap(f.b, &k, id, NULL), 0); // at once
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100, 8), 8);
}
END_TEST

START_TEST(swap_refused_or_repeated)
{
    struct err e;
    struct blk_backing k = other(4096);
    const char id[20] = "x";
    k.read_only = true;
    ck_assert_int_eq(blk_swap(f.b, &k, id, &e), -EINVAL);
    k.read_only = false;
    k.writeback = false;
    ck_assert_int_eq(blk_swap(f.b, &k, id, &e), -EINVAL);
    k.writeback = true;
    k.cow_fd = k.fd;
    ck_assert_int_eq(blk_swap(f.b, &k, id, &e), -EINVAL);
    k.cow_fd = -1;
    k.bytes = 100;
    ck_assert_int_eq(blk_swap(f.b, &k, id, &e), -EINVAL);
    ck_assert_int_ge(fcntl(k.fd, F_GETFD), 0); // refused: still the caller's
    ck_assert_uint_eq(f.b->swapping, false);
    k.bytes = 4096;
    fx_calls.block_reads = true;
    offer_reads(0, 1);
    fx_kick(&f);
    ck_assert_int_eq(blk_swap(f.b, &k, id, &e), 1);
    struct blk_backing l = other(8192);
    ck_assert_int_eq(blk_swap(f.b, &l, id, &e), 1); // replaces the one that waits
    ck_assert_int_eq(fcntl(k.fd, F_GETFD), -1);
    fx_pump(&f);
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100, 8), 16);
    offer_reads(0, 1);
    fx_kick(&f);
    k = other(4096);
    ck_assert_int_eq(blk_swap(f.b, &k, id, &e), 1); // and one still waits at the end
}
END_TEST

START_TEST(pausing)
{
    fx_calls.block_reads = true;
    offer_reads(0, 3);
    fx_kick(&f);
    ck_assert_uint_eq(f.nring, 3);
    fx_land(&f, 0, 0, 0); // finished, and the driver not told yet
    ck_assert(!vio_quiesce(f.d, true));
    ck_assert_uint_eq(fx_used(&f), 1);
    offer_reads(3, 2);
    fx_kick(&f);
    ck_assert_uint_eq(f.nring, 2);
    fx_land(&f, 0, 0, 0);
    ck_assert(!vio_quiesce(f.d, true));
    fx_land(&f, 0, 0, 0);
    ck_assert(vio_quiesce(f.d, true));
    check_reads(0, 3);
    ck_assert_uint_eq(fx_used(&f), 3); // what a snapshot holds agrees with the ring
    struct vio_state st;
    vio_save(f.d, &st);
    ck_assert_uint_eq(st.q[0].next_used, 3);
    ck_assert_uint_eq(st.q[0].next_avail, 3);
    f.again = 0;
    ck_assert(vio_quiesce(f.d, false));
    ck_assert_uint_eq(f.again, 1);
    fx_pump(&f);
    check_reads(3, 2);
}
END_TEST

// A request that waits for room on a ring filled by others must not hold a pause up for ever.
START_TEST(pause_with_a_full_ring)
{
    fx_calls.block_reads = true;
    f.busy = 4;
    offer_reads(0, 1);
    vio_kick(f.d);
    ck_assert_uint_eq(f.b->inflight, 1);
    for (unsigned i = 0; i < 10 && !f.nring; i++)
        ck_assert(!vio_quiesce(f.d, true));
    ck_assert_uint_eq(f.nring, 1);
    fx_land(&f, 0, 0, 0);
    ck_assert(vio_quiesce(f.d, true));
    check_reads(0, 1);
}
END_TEST

START_TEST(reset_in_flight)
{
    fx_calls.block_reads = true;
    offer_reads(0, 2);
    fx_kick(&f);
    wr(f.d, 0x70, 0);
    ck_assert_uint_ne(rd(f.d, 0x70), 0);
    fx_land(&f, 0, 0, 100); // a part: it must not be followed by another operation
    ck_assert_uint_eq(f.nring, 1);
    ck_assert_uint_ne(rd(f.d, 0x70), 0);
    fx_land(&f, 0, -EIO, 0);
    ck_assert_uint_eq(rd(f.d, 0x70), 0);
    ck_assert_uint_eq(fx_status(&f, 0), FX_NOBODY);
    ck_assert_uint_eq(fx_status(&f, 1), FX_NOBODY);
    ck_assert_uint_eq(fx_used(&f), 0);
    fx_start(&f);
    offer_reads(0, 2);
    fx_pump(&f);
    check_reads(0, 2);
}
END_TEST

// Nothing is on the ring: the reset is over at once, and the request that waited is forgotten.
START_TEST(reset_with_a_full_ring)
{
    fx_calls.block_reads = true;
    f.busy = 1;
    offer_reads(0, 1);
    vio_kick(f.d);
    ck_assert_uint_eq(f.b->inflight, 1);
    wr(f.d, 0x70, 0);
    ck_assert_uint_eq(rd(f.d, 0x70), 0);
    ck_assert_uint_eq(f.b->inflight, 0);
    fx_start(&f);
    offer_reads(1, 1);
    fx_pump(&f);
    check_reads(1, 1);
    ck_assert_uint_eq(fx_status(&f, 0), FX_NOBODY);
}
END_TEST

// The reset comes from a vCPU's thread: what waits to be swapped is closed by the device thread later.
START_TEST(reset_before_a_swap)
{
    static const char name[20] = "next";
    struct blk_backing k = other(2 * DISK);
    fx_calls.block_reads = true;
    f.busy = 1;
    offer_reads(0, 1);
    vio_kick(f.d);
    ck_assert_int_eq(blk_swap(f.b, &k, name, NULL), 1);
    wr(f.d, 0x70, 0);
    ck_assert_uint_eq(rd(f.d, 0x70), 0);
    ck_assert_int_ge(fcntl(fd, F_GETFD), 0);
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100, 8), DISK / 512);
    fx_start(&f);
    offer_reads(1, 1);
    fx_pump(&f);
    check_reads(1, 1);
    ck_assert_int_eq(fcntl(fd, F_GETFD), -1);
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100, 8), 2 * DISK / 512);
}
END_TEST

// 128 segments of 512 KiB, all the same guest memory: 64 MiB with one request.
static void offer_huge(unsigned i, uint32_t type)
{
    static struct seg s[130];
    const uint64_t h = fx_hdr(&f, i, type, 0);
    s[0] = (struct seg){h, 16, false};
    for (unsigned n = 1; n < 129; n++)
        s[n] = (struct seg){2 * MIB, 512 * KIB, type == REQ_IN};
    s[129] = (struct seg){h + 32, 1, true};
    fx_offer(&f, s, 130);
}

// However much the guest asks for, the thread looks after others in between, and what a pause has to
// wait for stays bounded.
START_TEST(huge_requests_take_turns)
{
    static const char name[20] = "huge";
    struct blk_backing k = other(0);
    k.bytes = 64 * MIB;
    ck_assert_int_eq(ftruncate(k.fd, (off_t)k.bytes), 0);
    ck_assert_int_eq(blk_swap(f.b, &k, name, NULL), 0);
    for (unsigned type = REQ_IN; type <= REQ_OUT; type++) {
        offer_huge(0, type);
        f.again = 0;
        vio_kick(f.d);
        ck_assert_uint_eq(fx_status(&f, 0), FX_NOBODY);
        ck_assert_uint_eq(f.nring, 1);
        ck_assert_uint_ge(f.b->pool[0].left, 64 * MIB - BLK_TURN);
        fx_req(&f, 9, REQ_IN, 0, FX_DATA, 512);
        vio_kick(f.d);
        ck_assert_uint_eq(fx_status(&f, 9), FX_NOBODY); // so much is owed that no more is taken
        fx_pump(&f);
        ck_assert_uint_eq(fx_status(&f, 0), ST_OK);
        ck_assert_uint_eq(fx_status(&f, 9), ST_OK);
        ck_assert_uint_eq(f.b->owed, 0);
        f.next_desc = 0;
    }
    for (unsigned i = 0; i < 12; i++)
        fx_req(&f, i, REQ_IN, 0, 0x40000, 3 * MIB);
    f.again = 0;
    vio_kick(f.d);
    ck_assert_uint_gt(f.again, 0);
    ck_assert_uint_eq(fx_status(&f, 0), ST_OK);
    ck_assert_uint_eq(fx_status(&f, 11), FX_NOBODY);
    fx_pump(&f);
    ck_assert_uint_eq(fx_status(&f, 11), ST_OK);
}
END_TEST

START_TEST(fault_in_flight)
{
    fx_calls.block_reads = true;
    offer_reads(0, 1);
    fx_kick(&f);
    const struct seg none[] = {{FX_HDR, 16, false}};
    fx_offer(&f, none, 1);
    fx_kick(&f);
    ck_assert_uint_ne(rd(f.d, 0x70) & VIO_ST_NEEDS_RESET, 0);
    fx_land(&f, 0, 0, 0);
    ck_assert_uint_eq(fx_used(&f), 0);
    fx_start(&f);
    offer_reads(0, 1);
    fx_pump(&f);
    check_reads(0, 1);
}
END_TEST

// The bitmap round that falls between submission and landing must not lose the page.
START_TEST(dirty_pages)
{
    ck_assert_int_eq(mem_track(&f.mem, true, NULL), 0);
    fx_calls.block_reads = true;
    fx_req(&f, 0, REQ_IN, 0, FX_DATA + 512, 8192);
    fx_kick(&f);
    for (size_t w = 0; w < FX_MEM / PAGE_SIZE / 64; w++)
        mem_dirty_take(&f.mem, w);
    fx_pump(&f);
    ck_assert_uint_eq(mem_dirty_take(&f.mem, FX_DATA / PAGE_SIZE / 64), 7);
    ck_assert_uint_eq(mem_dirty_take(&f.mem, 0), 1 << 8 | 1 << 3); // status byte; used ring
}
END_TEST

// Whatever call of the host fails, once, every request is answered and the next one works.
START_TEST(every_call_fails_once)
{
    for (unsigned mode = 0; mode < 4; mode++)
        for (unsigned nth = 1; nth < 12; nth++) {
            fx_calls.block_reads = mode & 1;
            fx_calls.nth = mode & 2 ? 0 : nth;
            f.nth_io = mode & 2 ? nth : 0;
            offer_reads(0, 2);
            fx_req(&f, 2, REQ_OUT, 9, FX_DATA, 1024);
            fx_req(&f, 3, REQ_FLUSH, 0, 0, 0);
            fx_range(&f, 4, REQ_ZERO, 100, 5, 0);
            fx_range(&f, 5, REQ_TRIM, 110, 5, 0);
            fx_pump(&f);
            unsigned bad = 0;
            for (unsigned i = 0; i < 6; i++) {
                ck_assert_uint_le(fx_status(&f, i), ST_IOERR);
                bad += fx_status(&f, i);
            }
            ck_assert_uint_le(bad, 1);
            ck_assert_uint_eq(f.b->inflight, 0);
            fx_calls.nth = f.nth_io = 0;
            ck_assert_uint_eq(fx_ask(&f, REQ_IN, 0, FX_DATA, 512), ST_OK);
        }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {swap_idle_and_busy,
                                  swap_refused_or_repeated,
                                  pausing,
                                  pause_with_a_full_ring,
                                  reset_in_flight,
                                  reset_with_a_full_ring,
                                  fault_in_flight,
                                  dirty_pages,
                                  every_call_fails_once,
                                  reset_before_a_swap,
                                  huge_requests_take_turns};
    Suite *s = suite_create("blk life");
    TCase *t = tcase_create("blk life");
    tcase_add_checked_fixture(t, setup, teardown);
    for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
        tcase_add_test(t, tests[i]);
    suite_add_tcase(s, t);
    return run_suite(s);
}
