// SPDX-License-Identifier: Apache-2.0
// The copy-on-write layer: its file against a hostile one, its contents against a model.
#include "tests/unit/cow_fixture.h"

static int reopen(uint64_t bytes)
{
    struct err e = {.msg = ""};
    struct cow *c = NULL;
    int rc = cow_open(&c, layer, base, bytes, &e);
    ck_assert((rc == 0) == (c != NULL));
    ck_assert((rc == 0) == (e.msg[0] == 0));
    cow_free(c);
    return rc;
}

static void poke(uint64_t off, uint64_t v, size_t len)
{
    ck_assert_int_eq(pwrite(layer, &v, len, (off_t)off), (ssize_t)len);
}

static uint64_t sum_of(const uint8_t *h) // FNV-1a, as documented, with the sum itself zero
{
    uint64_t s = 0xcbf29ce484222325ULL;
    for (unsigned i = 0; i < 4096; i++)
        s = (s ^ (i >= 56 && i < 64 ? 0 : h[i])) * 0x100000001b3ULL;
    return s;
}

START_TEST(file_layout)
{
    uint8_t h[4096];
    struct stat st, bs;
    ck_assert_int_eq(fstat(layer, &st) | fstat(base, &bs), 0);
    ck_assert_int_eq(st.st_size, FILE_LEN);
    ck_assert_int_le(st.st_blocks * 512, DATA_OFF);
    ck_assert_int_eq(pread(layer, h, 4096, 0), 4096);
    ck_assert_mem_eq(h, "MAYFLYCW\1\0\0\0\0\x10\0\0", 16);
    ck_assert_uint_eq(le64_get(h + 16), DISK);
    ck_assert_uint_eq(le64_get(h + 24), (uint64_t)bs.st_mtim.tv_sec);
    ck_assert_uint_eq(le64_get(h + 48), DATA_OFF);
    ck_assert_uint_eq(le64_get(h + 56), sum_of(h));
    do_write(9, 1, 0xcc);
    uint8_t map[3];
    ck_assert_int_eq(pread(layer, map, 3, 4096), 3);
    ck_assert_mem_eq(map, "\2\0\0", 3);
    ck_assert_int_eq(fx_sector(layer, DATA_OFF / 512 + 9), 0xcc);
    ck_assert_int_eq(fx_sector(layer, DATA_OFF / 512 + 10), 11); // copied up
    ck_assert_int_eq(fx_sector(base, 9), 10);
}
END_TEST

START_TEST(every_flipped_bit)
{
    uint8_t h[4096];
    ck_assert_int_eq(pread(layer, h, 4096, 0), 4096);
    for (unsigned bit = 0; bit < 4096 * 8; bit++) {
        poke(bit / 8, h[bit / 8] ^ 1u << bit % 8, 1);
        ck_assert_int_eq(reopen(DISK), -EINVAL);
        poke(bit / 8, h[bit / 8], 1);
    }
    ck_assert_int_eq(reopen(DISK), 0);
}
END_TEST

// The checksum is right, the field is not.
START_TEST(hostile_fields)
{
    static const uint64_t odd[] = {0, 1, 511, 512, DISK + 512, 1ULL << 40, 1ULL << 63, UINT64_MAX};
    uint8_t h[4096], was[4096];
    ck_assert_int_eq(pread(layer, was, 4096, 0), 4096);
    for (unsigned at = 8; at < 80; at += at < 16 ? 4 : 8)
        for (unsigned i = 0; i < ARRAY_SIZE(odd); i++) {
            memcpy(h, was, sizeof(h));
            if (at < 16)
                le32_put(h + at, (uint32_t)odd[i]);
            else
                le64_put(h + at, odd[i]);
            if (at != 56)
                le64_put(h + 56, sum_of(h));
            ck_assert_int_eq(pwrite(layer, h, 4096, 0), 4096);
            ck_assert_int_eq(reopen(DISK), memcmp(h, was, 4096) ? -EINVAL : 0);
        }
}
END_TEST

START_TEST(wrong_lengths_and_bases)
{
    static const off_t len[] = {
        1, 8, 4095, 4096, DATA_OFF - 1, DATA_OFF, FILE_LEN - 1, FILE_LEN + 1, FILE_LEN + 4096};
    for (unsigned i = 0; i < ARRAY_SIZE(len); i++) {
        ck_assert_int_eq(ftruncate(layer, len[i]), 0);
        ck_assert_int_eq(reopen(DISK), -EINVAL);
        ck_assert_int_eq(ftruncate(layer, 0), 0);
        ck_assert_int_eq(reopen(DISK), 0); // empty: a fresh one
    }
    ck_assert_int_eq(reopen(DISK + 512), -EINVAL);
    ck_assert_int_eq(reopen(DISK - 512), -EINVAL);
    ck_assert_int_eq(reopen(0), -EINVAL);
    ck_assert_int_eq(reopen(UINT64_MAX - 511), -EINVAL);
    const struct timespec t[2] = {{.tv_sec = 5}, {.tv_sec = 5}};
    ck_assert_int_eq(futimens(base, t), 0); // the base was changed
    ck_assert_int_eq(reopen(DISK), -EINVAL);
    ck_assert_int_eq(cow_format(layer, base, DISK, NULL), -EINVAL); // not empty
}
END_TEST

START_TEST(hostile_bitmap)
{
    poke(4096, UINT64_MAX, 8); // names blocks past the end
    ck_assert_int_eq(reopen(DISK), -EINVAL);
    poke(4096, 0x1ffff, 8);
    poke(8184, 1ULL << 63, 8);
    ck_assert_int_eq(reopen(DISK), -EINVAL);
    poke(8184, 0, 8);
    ck_assert_int_eq(reopen(DISK), 0);
    memset(model, 0, sizeof(model)); // every block is said to be here, and is a hole
    check_after_kill();
}
END_TEST

START_TEST(edges)
{
    for (unsigned i = 0; i < 4; i++) {
        fx_calls.block_reads = i & 1;
        fx_calls.short_to = i & 2 ? 300 : 0;
        do_write(1, 1, 0x91);           // within one block
        do_write(30, 4, 0x92);          // the ends of two
        do_write(50, 30, 0x93);         // both ends partial, whole blocks between
        do_write(SECTORS - 1, 1, 0x94); // the short block, wholly
        do_write(SECTORS - 3, 3, 0x95); // into it
        do_write(0, 8, 0x96);           // exactly one
        do_write(1, 1, 0x97);           // in the layer already
        check_model(&f);
        check_after_kill();
        teardown();
        setup();
    }
}
END_TEST

// Two requests each write a part of one block that must be copied up, and the base is slow.
START_TEST(two_copy_ups_of_one_block)
{
    for (unsigned first = 0; first < 2; first++) {
        fx_calls.block_reads = true;
        offer_write(0, 16, 1, 0xa1);
        offer_write(1, 23, 1, 0xa2);
        fx_kick(&f);
        ck_assert_uint_eq(f.nring, 2);
        fx_land(&f, first, 0, 0);
        fx_land(&f, 0, 0, 0);
        fx_kick(&f);
        ck_assert_uint_eq(fx_status(&f, 0) | fx_status(&f, 1), ST_OK);
        check_model(&f);
        teardown();
        setup();
    }
}
END_TEST

START_TEST(zeroes_and_discards)
{
    for (unsigned i = 0; i < 2; i++) {
        fx_calls.block_reads = i;
        do_write(0, 40, 0xb1);
        do_range(REQ_ZERO, 3, 2);
        do_range(REQ_ZERO, 6, 20);
        do_range(REQ_ZERO, 60, 9);
        do_range(REQ_ZERO, SECTORS - 4, 4);
        check_model(&f);
        do_range(REQ_TRIM, 33, 30);
        do_range(REQ_TRIM, 81, 6);
        do_range(REQ_TRIM, SECTORS - 1, 1);
        do_range(REQ_TRIM, SECTORS - 20, 20);
        check_model(&f);
        check_after_kill();
        teardown();
        setup();
    }
    fx_range(&f, 0, REQ_ZERO, 0, 16, 0); // the layer's file system cannot punch holes
    fx_kick(&f);
    fx_land(&f, 0, -EOPNOTSUPP, 0);
    fx_kick(&f);
    ck_assert_uint_eq(fx_status(&f, 0), ST_UNSUPP);
    check_model(&f);
}
END_TEST

static uint32_t rnd(uint32_t *s)
{
    *s = *s * 1664525 + 1013904223;
    return *s >> 8;
}

// Random requests against the model, several at once where they do not overlap.
START_TEST(against_a_model)
{
    uint32_t seed = (uint32_t)_i + 1;
    teardown();
    setup_with(_i & 1);
    for (unsigned round = 0; round < 300; round++) {
        fx_calls.block_reads = rnd(&seed) & 1;
        fx_calls.short_to = rnd(&seed) % 4 ? 0 : 1000;
        const unsigned half = SECTORS / 2 + 1, what = rnd(&seed) % 8;
        const unsigned a = rnd(&seed) % half, b = half + rnd(&seed) % (SECTORS - half);
        const unsigned n = 1 + rnd(&seed) % (half - a), m = 1 + rnd(&seed) % (SECTORS - b);
        if (what < 5) {
            offer_write(0, a, n, (uint8_t)rnd(&seed));
            offer_write(1, b, m, (uint8_t)rnd(&seed));
            fx_kick(&f);
            while (f.nring) {
                fx_land(&f, rnd(&seed) % f.nring, 0, rnd(&seed) & 1 ? 700 : 0);
                fx_kick(&f);
            }
            ck_assert_uint_eq(fx_status(&f, 0) | fx_status(&f, 1), ST_OK);
        } else if (what < 7) {
            do_range(what == 5 ? REQ_ZERO : REQ_TRIM, a, n);
        } else {
            check_model(&f);
        }
        if (_i & 1)
            ck_assert_uint_eq(fx_ask(&f, REQ_FLUSH, 0, 0, 0), ST_OK);
        if (round % 10 == 0)
            check_after_kill();
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {file_layout,
                                  every_flipped_bit,
                                  hostile_fields,
                                  wrong_lengths_and_bases,
                                  hostile_bitmap,
                                  edges,
                                  two_copy_ups_of_one_block,
                                  zeroes_and_discards};
    Suite *s = suite_create("cow");
    TCase *t = tcase_create("layer");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
        tcase_add_test(t, tests[i]);
    tcase_add_loop_test(t, against_a_model, 0, 12);
    suite_add_tcase(s, t);
    return run_suite(s);
}
