// SPDX-License-Identifier: Apache-2.0
// Flush, discard and write-zeroes: what reaches the host, and what is refused.
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

START_TEST(flush)
{
    fx_req(&f, 0, REQ_FLUSH, 0, 0, 0);
    fx_kick(&f);
    ck_assert_uint_eq(f.nring, 1);
    ck_assert_uint_eq(f.ring[0]->op, VIO_IO_FSYNC);
    ck_assert_uint_eq(f.ring[0]->flags, 1); // IORING_FSYNC_DATASYNC
    ck_assert_uint_eq(fx_status(&f, 0), FX_NOBODY);
    fx_pump(&f);
    ck_assert_uint_eq(fx_status(&f, 0), ST_OK);
    fx_req(&f, 0, REQ_FLUSH, 0, 0, 0);
    fx_kick(&f);
    fx_land(&f, 0, -EIO, 0);
    fx_kick(&f);
    ck_assert_uint_eq(fx_status(&f, 0), ST_IOERR);
    ck_assert_uint_eq(fx_ask(&f, REQ_FLUSH, 0, FX_DATA, 512), ST_IOERR);
    ck_assert_uint_eq(f.b->m.flushes, 1);
    teardown();
    setup_with(false, false);
    ck_assert_uint_eq(fx_ask(&f, REQ_FLUSH, 0, 0, 0), ST_UNSUPP);
}
END_TEST

START_TEST(discard_and_zeroes)
{
    static const int no[] = {0, -EOPNOTSUPP};
    ck_assert_uint_eq(fx_ask_range(&f, REQ_TRIM, 8, 8, 0), ST_OK);
    ck_assert_int_eq(fx_sector(fd, 8), 0);
    ck_assert_int_eq(fx_sector(fd, 16), 17);
    for (unsigned i = 0; i < 2; i++)
        for (uint32_t unmap = 0; unmap < 2; unmap++) {
            const uint64_t at = 20 + 20 * i + 10 * unmap;
            fx_range(&f, 0, REQ_ZERO, at, 9, unmap);
            fx_kick(&f);
            ck_assert_uint_eq(f.ring[0]->op, VIO_IO_FALLOCATE);
            ck_assert_uint_eq(f.ring[0]->flags, unmap ? 3 : 0x11); // PUNCH_HOLE or ZERO_RANGE
            fx_land(&f, 0, no[i], 0);
            fx_pump(&f);
            ck_assert_uint_eq(fx_status(&f, 0), ST_OK);
            for (uint64_t s = at - 1; s <= at + 9; s++)
                ck_assert_int_eq(fx_sector(fd, s), s < at || s == at + 9 ? (int)s + 1 : 0);
        }
    fx_range(&f, 0, REQ_TRIM, 0, 8, 0);
    fx_kick(&f);
    fx_land(&f, 0, -EOPNOTSUPP, 0);
    fx_kick(&f);
    ck_assert_uint_eq(fx_status(&f, 0), ST_UNSUPP);
    fx_range(&f, 0, REQ_ZERO, 0, 128, 0); // by hand, in uneven parts, and then the host fails
    fx_kick(&f);
    fx_land(&f, 0, -EOPNOTSUPP, 0);
    fx_land(&f, 0, 0, 5000);
    fx_land(&f, 0, -ENOSPC, 0);
    fx_kick(&f);
    ck_assert_uint_eq(fx_status(&f, 0), ST_IOERR);
}
END_TEST

START_TEST(bad_ranges)
{
    ck_assert_uint_eq(fx_ask_range(&f, REQ_TRIM, 0, 8, 1), ST_UNSUPP);
    ck_assert_uint_eq(fx_ask_range(&f, REQ_ZERO, 0, 8, 2), ST_UNSUPP);
    ck_assert_uint_eq(fx_ask_range(&f, REQ_ZERO, 0, 8, UINT32_MAX), ST_UNSUPP);
    ck_assert_uint_eq(fx_ask_range(&f, REQ_ZERO, 0, 0, 0), ST_IOERR);
    ck_assert_uint_eq(fx_ask_range(&f, REQ_ZERO, 128, 1, 0), ST_IOERR);
    ck_assert_uint_eq(fx_ask_range(&f, REQ_TRIM, 127, 2, 0), ST_IOERR);
    ck_assert_uint_eq(fx_ask_range(&f, REQ_TRIM, UINT64_MAX, 2, 0), ST_IOERR);
    ck_assert_uint_eq(fx_ask_range(&f, REQ_TRIM, 0, UINT32_MAX, 0), ST_IOERR);
    const uint64_t h = fx_hdr(&f, 0, REQ_ZERO, 0);
    const struct seg two[] = {{h, 16, false}, {FX_DATA, 32, false}, {h + 32, 1, true}};
    ck_assert_uint_eq(fx_ask_segs(&f, two, 3), ST_IOERR);
    const struct seg none[] = {{h, 16, false}, {h + 32, 1, true}};
    fx_hdr(&f, 0, REQ_ZERO, 0);
    ck_assert_uint_eq(fx_ask_segs(&f, none, 2), ST_IOERR);
    ck_assert_uint_eq(f.ios, 0);
    ck_assert_int_eq(fx_sector(fd, 0), 1);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {flush, discard_and_zeroes, bad_ranges};
    Suite *s = suite_create("blk change");
    TCase *t = tcase_create("requests");
    tcase_add_checked_fixture(t, setup, teardown);
    for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
        tcase_add_test(t, tests[i]);
    suite_add_tcase(s, t);
    return run_suite(s);
}
