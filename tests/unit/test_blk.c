// SPDX-License-Identifier: Apache-2.0
// Block requests one by one: every shape a driver may cut them into, every way they may be wrong
// (B1 to B7), and every way the host may fail them.
#define FX_DEFINE
#include "tests/unit/blk_fixture.h"
#include "tests/unit/vio_fake.h"

#define DISK (64 * KIB)

static struct fx f;
static int fd;

static void setup_with(bool ro, bool writeback)
{
    fd = fx_file("/tmp", DISK, ro ? O_RDONLY : O_RDWR);
    ck_assert_int_ge(fd, 0);
    const struct blk_backing k = {
        .fd = fd, .cow_fd = -1, .bytes = DISK, .read_only = ro, .writeback = writeback};
    ck_assert_int_eq(fx_init(&f, &k, NULL), 0);
    ck_assert_uint_eq(rd(f.d, 0x70), 15);
}

static void setup(void)
{
    setup_with(false, true);
}

static void teardown(void)
{
    fx_end(&f);
}

START_TEST(config_space)
{
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100, 8), DISK / 512);
    ck_assert_uint_eq(rd(f.d, 0x100 + 12), 128);
    ck_assert_uint_eq(rd(f.d, 0x100 + 20), 512);
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100 + 24, 1), 3);
    ck_assert_uint_eq(rd(f.d, 0x100 + 40), 1);
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100 + 56, 1), 1);
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100 + 59, 8), 0);
    ck_assert_uint_eq(vio_mmio_read(f.d, 0xff8, 8), 0);
    vio_mmio_write(f.d, 0x100, 8, 1);
    ck_assert_uint_eq(vio_mmio_read(f.d, 0x100, 8), DISK / 512);
    const uint64_t want = 1ULL << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 14;
    ck_assert_uint_eq(f.d->ops->features(f.d), want);
    teardown();
    setup_with(true, false);
    ck_assert_uint_eq(f.d->ops->features(f.d), 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10);
}
END_TEST

START_TEST(read_and_write)
{
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 2, FX_DATA, 4096), ST_OK);
    ck_assert_uint_eq(fx_used_len(&f, 0), 4097);
    for (unsigned i = 0; i < 8; i++)
        ck_assert(fx_filled(fx_at(&f, FX_DATA + 512 * i), (uint8_t)(3 + i), 512));
    memset(fx_at(&f, FX_DATA), 0xaa, 1024);
    ck_assert_uint_eq(fx_ask(&f, REQ_OUT, 127, FX_DATA, 512), ST_OK);
    ck_assert_uint_eq(fx_used_len(&f, 1), 1);
    ck_assert_int_eq(fx_sector(fd, 127), 0xaa);
    ck_assert_int_eq(fx_sector(fd, 126), 127);
    ck_assert_uint_eq(f.b->m.reads, 1);
    ck_assert_uint_eq(f.b->m.read_bytes, 4096);
    ck_assert_uint_eq(f.b->m.write_bytes, 512);
    ck_assert_uint_eq(f.b->m.failed, 0);
    ck_assert_uint_eq(f.ios, 0); // all of it by direct calls
}
END_TEST

// 2.7.4.1: the header in three pieces, data in odd ones, the status byte at the end of one of them.
START_TEST(any_cut)
{
    for (unsigned i = 0; i < 4; i++) {
        fx_calls.block_reads = i & 1;
        fx_calls.short_to = i & 2 ? 100 : 0;
        memset(fx_at(&f, FX_DATA), 0, 0x1000);
        const uint64_t h = fx_hdr(&f, 0, REQ_IN, 4);
        const struct seg in[] = {
            {h, 1, false},      {h + 1, 8, false},         {h + 9, 7, false},
            {FX_DATA, 3, true}, {FX_DATA + 3, 1000, true}, {FX_DATA + 1003, 22, true}};
        fx_offer(&f, in, 6);
        fx_pump(&f);
        ck_assert_uint_eq(*fx_at(&f, FX_DATA + 1024), ST_OK);
        ck_assert(fx_filled(fx_at(&f, FX_DATA), 5, 512));
        ck_assert(fx_filled(fx_at(&f, FX_DATA + 512), 6, 512));
    }
    const uint64_t h = fx_hdr(&f, 0, REQ_OUT, 9);
    memset(fx_at(&f, h + 16), 0x77, 8);
    memset(fx_at(&f, FX_DATA), 0x77, 512);
    const struct seg out[] = {{h, 20, false}, {FX_DATA, 508, false}, {h + 32, 1, true}};
    ck_assert_uint_eq(fx_ask_segs(&f, out, 3), ST_OK);
    ck_assert_int_eq(fx_sector(fd, 9), 0x77);
}
END_TEST

START_TEST(most_segments)
{
    struct seg s[130];
    const uint64_t h = fx_hdr(&f, 0, REQ_IN, 0);
    s[0] = (struct seg){h, 16, false};
    for (unsigned i = 0; i < 128; i++)
        s[1 + i] = (struct seg){FX_DATA + 4096 * i, 512, true};
    s[129] = (struct seg){h + 32, 1, true};
    fx_calls.block_reads = true; // and one operation lands in uneven parts
    fx_offer(&f, s, 130);
    fx_kick(&f);
    ck_assert_uint_eq(f.nring, 1);
    fx_land(&f, 0, 0, 1000);
    ck_assert_uint_eq(f.nring, 1);
    fx_land(&f, 0, -EINTR, 0);
    fx_land(&f, 0, -EAGAIN, 0);
    fx_pump(&f);
    ck_assert_uint_eq(fx_status(&f, 0), ST_OK);
    for (unsigned i = 0; i < 128; i++)
        ck_assert(fx_filled(fx_at(&f, FX_DATA + 4096 * i), (uint8_t)(i + 1), 512));
}
END_TEST

START_TEST(b1_b2_ranges)
{
    static const struct {
        uint64_t sector;
        uint32_t len;
    } bad[] = {{128, 512},
               {127, 1024},
               {UINT64_MAX, 512},
               {UINT64_MAX / 512, 512},
               {UINT64_MAX / 512 + 1, 512},
               {1ULL << 55, 512},
               {UINT64_MAX - 7, 8192},
               {0, 511},
               {0, 513},
               {0, DISK + 512},
               {0, 1},
               {0, 0}};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        ck_assert_uint_eq(fx_ask(&f, REQ_IN, bad[i].sector, FX_DATA, bad[i].len), ST_IOERR);
        ck_assert_uint_eq(fx_ask(&f, REQ_OUT, bad[i].sector, FX_DATA, bad[i].len), ST_IOERR);
    }
    struct stat st;
    ck_assert_int_eq(fstat(fd, &st), 0);
    ck_assert_int_eq(st.st_size, DISK);
    ck_assert_uint_eq(f.b->m.failed, 2 * ARRAY_SIZE(bad));
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 0, FX_DATA, DISK), ST_OK);
    ck_assert_uint_eq(f.d->active, true);
}
END_TEST

START_TEST(b3_read_only)
{
    teardown();
    setup_with(true, true);
    ck_assert_uint_eq(fx_ask(&f, REQ_OUT, 0, FX_DATA, 512), ST_IOERR);
    ck_assert_uint_eq(fx_ask_range(&f, REQ_TRIM, 0, 8, 0), ST_IOERR);
    ck_assert_uint_eq(fx_ask_range(&f, REQ_ZERO, 0, 8, 0), ST_IOERR);
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 0, FX_DATA, 512), ST_OK);
    ck_assert(fx_filled(fx_at(&f, FX_DATA), 1, 512));
}
END_TEST

// Each ends in NEEDS_RESET and the device works again after a reset.
START_TEST(b4_no_status)
{
    const uint64_t h = fx_hdr(&f, 0, REQ_IN, 0);
    const struct seg readable[] = {{h, 16, false}, {FX_DATA, 512, false}, {h + 32, 1, false}};
    const struct seg none[] = {{h, 16, false}};
    const struct seg zero[] = {{h, 16, false}, {FX_DATA, 512, true}, {h + 32, 0, true}};
    const struct seg outside[] = {{h, 16, false}, {FX_DATA, 512, true}, {FX_MEM, 1, true}};
    const struct {
        const struct seg *s;
        unsigned n;
    } bad[] = {{readable, 3}, {none, 1}, {zero, 3}, {outside, 3}};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        const unsigned irqs = f.irqs;
        fx_offer(&f, bad[i].s, bad[i].n);
        fx_pump(&f);
        ck_assert_uint_eq(rd(f.d, 0x70) & VIO_ST_NEEDS_RESET, VIO_ST_NEEDS_RESET);
        ck_assert_uint_eq(f.d->faults, i + 1);
        ck_assert_uint_eq(f.irqs, irqs + 1);
        ck_assert_uint_eq(f.b->inflight, 0);
        fx_start(&f);
        ck_assert_uint_eq(rd(f.d, 0x70), 15);
        ck_assert_uint_eq(fx_ask(&f, REQ_IN, 0, FX_DATA, 512), ST_OK);
    }
}
END_TEST

START_TEST(b4_status_in_the_way)
{
    const uint64_t h = fx_hdr(&f, 0, REQ_IN, 8);
    const struct seg over_data[] = {{h, 16, false}, {h, 512, true}, {h + 32, 1, true}};
    ck_assert_uint_eq(fx_ask_segs(&f, over_data, 3), ST_OK); // written last, so it is the status
    fx_hdr(&f, 0, REQ_IN, 8);
    const struct seg over_header[] = {{h, 16, false}, {FX_DATA, 512, true}, {h, 1, true}};
    fx_offer(&f, over_header, 3);
    fx_pump(&f);
    ck_assert_uint_eq(*fx_at(&f, h), ST_OK);
    fx_hdr(&f, 0, REQ_IN, 8);
    const struct seg short_header[] = {{h, 15, false}, {FX_DATA, 512, true}, {h + 32, 1, true}};
    ck_assert_uint_eq(fx_ask_segs(&f, short_header, 3), ST_IOERR);
    fx_hdr(&f, 0, REQ_IN, 8);
    const struct seg no_header[] = {{h + 32, 1, true}};
    ck_assert_uint_eq(fx_ask_segs(&f, no_header, 1), ST_IOERR);
    const struct seg wrong_way[] = {{h, 16, false}, {FX_DATA, 512, false}, {h + 32, 1, true}};
    fx_hdr(&f, 0, REQ_IN, 8);
    ck_assert_uint_eq(fx_ask_segs(&f, wrong_way, 3), ST_IOERR);
    const struct seg wrong_out[] = {{h, 16, false}, {FX_DATA, 512, true}, {h + 32, 1, true}};
    fx_hdr(&f, 0, REQ_OUT, 8);
    ck_assert_uint_eq(fx_ask_segs(&f, wrong_out, 3), ST_IOERR);
    ck_assert_int_eq(fx_sector(fd, 8), 9);
}
END_TEST

START_TEST(b5_types_and_id)
{
    static const uint32_t types[] = {2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 24, 0x80000000u, UINT32_MAX};
    for (unsigned i = 0; i < ARRAY_SIZE(types); i++)
        ck_assert_uint_eq(fx_ask(&f, types[i], 0, FX_DATA, 512), ST_UNSUPP);
    for (uint32_t len = 1; len <= 24; len++) {
        memset(fx_at(&f, FX_DATA), 0x55, 64);
        const uint16_t n = fx_used(&f);
        ck_assert_uint_eq(fx_ask(&f, REQ_GETID, 0, FX_DATA, len), ST_OK);
        ck_assert_mem_eq(fx_at(&f, FX_DATA), "drive-one-12345678.", MIN(len, 20u));
        ck_assert_uint_eq(*fx_at(&f, FX_DATA + MIN(len, 20u)), 0x55);
        ck_assert_uint_eq(fx_used_len(&f, n), len <= 20 ? len + 1 : 20);
    }
    ck_assert_uint_eq(fx_ask(&f, REQ_GETID, 0, FX_DATA, 0), ST_IOERR);
}
END_TEST

START_TEST(b6_host_errors)
{
    fx_calls.fail_read = EIO;
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 0, FX_DATA, 512), ST_IOERR);
    ck_assert_uint_eq(fx_used_len(&f, 0), 0);
    fx_calls.fail_read = 0;
    fx_calls.fail_write = ENOSPC;
    ck_assert_uint_eq(fx_ask(&f, REQ_OUT, 0, FX_DATA, 512), ST_IOERR);
    fx_calls.fail_write = 0;
    fx_calls.block_reads = true;
    for (int e = EIO; e <= ECANCELED; e += ECANCELED - EIO) {
        fx_req(&f, 0, REQ_IN, 0, FX_DATA, 1024);
        fx_kick(&f);
        ck_assert_uint_eq(f.nring, 1);
        fx_land(&f, 0, 0, 512);
        fx_land(&f, 0, -e, 0);
        fx_kick(&f);
        ck_assert_uint_eq(fx_status(&f, 0), ST_IOERR);
        ck_assert_uint_eq(fx_used_len(&f, (uint16_t)(fx_used(&f) - 1)), 512);
    }
    fx_calls.block_reads = false;
    fx_calls.short_to = 700;
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 0, FX_DATA, 4096), ST_OK);
    memset(fx_at(&f, FX_DATA), 0x21, 4096);
    ck_assert_uint_eq(fx_ask(&f, REQ_OUT, 0, FX_DATA, 4096), ST_OK);
    ck_assert_int_eq(fx_sector(fd, 7), 0x21);
    fx_calls.short_to = 0;
    ck_assert_int_eq(ftruncate(fd, 1024), 0);
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 1, FX_DATA, 1024), ST_IOERR);
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 100, FX_DATA, 512), ST_IOERR);
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 1, FX_DATA, 512), ST_OK);
    ck_assert_uint_eq(f.d->active, true);
}
END_TEST

START_TEST(b6_ring_that_only_interrupts)
{
    fx_calls.block_reads = true;
    fx_req(&f, 0, REQ_IN, 0, FX_DATA, 512);
    fx_kick(&f);
    unsigned n = 0;
    for (; f.nring && n < 100; n++)
        fx_land(&f, 0, -EAGAIN, 0);
    fx_kick(&f);
    ck_assert_uint_lt(n, 20);
    ck_assert_uint_eq(fx_status(&f, 0), ST_IOERR);
}
END_TEST

START_TEST(b7_raw)
{
    memcpy(fx_at(&f, FX_DATA), "QFI\xfb\0\0\0\3", 8);
    ck_assert_uint_eq(fx_ask(&f, REQ_OUT, 0, FX_DATA, 512), ST_OK);
    uint64_t bytes;
    ck_assert_int_eq(blk_check(fd, &bytes, NULL), 0);
    ck_assert_uint_eq(bytes, DISK);
    memset(fx_at(&f, FX_DATA), 0, 512);
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 0, FX_DATA, 512), ST_OK);
    ck_assert_mem_eq(fx_at(&f, FX_DATA), "QFI\xfb", 4);
}
END_TEST

START_TEST(without_nowait)
{
    fx_calls.no_nowait = true;
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 0, FX_DATA, 512), ST_OK);
    ck_assert_uint_eq(fx_ask(&f, REQ_IN, 1, FX_DATA, 512), ST_OK);
    ck_assert_uint_eq(fx_calls.blocking, 2);
    ck_assert_uint_eq(fx_calls.nlog, 3); // asked once, remembered then
    ck_assert_uint_eq(f.ios, 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {config_space,
                                  read_and_write,
                                  any_cut,
                                  most_segments,
                                  b1_b2_ranges,
                                  b3_read_only,
                                  b4_no_status,
                                  b4_status_in_the_way,
                                  b5_types_and_id,
                                  b6_host_errors,
                                  b6_ring_that_only_interrupts,
                                  b7_raw,
                                  without_nowait};
    Suite *s = suite_create("blk");
    TCase *t = tcase_create("requests");
    tcase_add_checked_fixture(t, setup, teardown);
    for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
        tcase_add_test(t, tests[i]);
    suite_add_tcase(s, t);
    return run_suite(s);
}
