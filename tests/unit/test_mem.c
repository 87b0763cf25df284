// SPDX-License-Identifier: Apache-2.0
// Guest memory: bounds of mem_at, backing and un-backing, copy-on-write files, dirty bitmap.
#include <check.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "vmm/mem/mem.h"

static int make_file(uint64_t size)
{
    int fd = memfd_create("mem", MFD_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, (off_t)size), 0);
    return fd;
}

START_TEST(reserve_rejects)
{
    struct guest_mem m;
    struct err e;
    ck_assert_int_eq(mem_reserve(&m, 0, &e), -EINVAL);
    ck_assert_int_eq(mem_reserve(&m, MIB + PAGE_SIZE, &e), -EINVAL);
    ck_assert_int_eq(mem_reserve(&m, UINT64_MAX & ~(MIB - 1), &e), -EINVAL);
    ck_assert_int_eq(mem_reserve(&m, 1ULL << 50, &e), -ENOMEM); // more than the host's half
    ck_assert_uint_eq(m.n, 0);
    mem_free(&m);
}
END_TEST

START_TEST(bounds_one_region)
{
    struct guest_mem m;
    const uint64_t size = 16 * MIB;
    ck_assert_int_eq(mem_reserve(&m, size, NULL), 0);
    ck_assert_uint_eq(m.n, 1);
    ck_assert_uint_eq((uintptr_t)m.r[0].host % (2 * MIB), 0);
    ck_assert_int_eq(mem_back_anon(&m, false, NULL), 0);
    uint8_t *base = m.r[0].host;
    ck_assert_ptr_eq(mem_at(&m, 0, 1, MEM_READ), base);
    ck_assert_ptr_eq(mem_at(&m, 0, size, MEM_READ), base);
    ck_assert_ptr_null(mem_at(&m, 0, size + 1, MEM_READ));
    ck_assert_ptr_eq(mem_at(&m, size - 1, 1, MEM_READ), base + size - 1);
    ck_assert_ptr_null(mem_at(&m, size - 1, 2, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, size, 1, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, 0, 0, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, UINT64_MAX, 1, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, 1, UINT64_MAX, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, UINT64_MAX - 3, 8, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, MEM_GAP_END, 1, MEM_READ));
    mem_free(&m);
}
END_TEST

START_TEST(bounds_across_the_gap)
{
    struct guest_mem m;
    ck_assert_int_eq(mem_reserve(&m, 4 * GIB, NULL), 0);
    ck_assert_uint_eq(m.n, 2);
    ck_assert_uint_eq(m.r[1].gpa, MEM_GAP_END);
    ck_assert_uint_eq(m.r[1].file_off, MEM_GAP_START);
    ck_assert_int_eq(mem_back_anon(&m, true, NULL), 0);
    ck_assert_ptr_nonnull(mem_at(&m, MEM_GAP_START - 1, 1, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, MEM_GAP_START - 1, 2, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, MEM_GAP_START, 1, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, MEM_GAP_END - 1, 1, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, MEM_GAP_END - 1, 2, MEM_READ));
    ck_assert_ptr_null(mem_at(&m, MEM_GAP_START - 1, MEM_GAP_END - MEM_GAP_START + 2, MEM_READ));
    ck_assert_ptr_eq(mem_at(&m, MEM_GAP_END, GIB, MEM_READ), m.r[1].host);
    ck_assert_ptr_null(mem_at(&m, MEM_GAP_END, GIB + 1, MEM_READ));

    uint64_t v = 0x1122334455667788, got = 0;
    ck_assert_int_eq(mem_write(&m, MEM_GAP_END + GIB - 8, &v, 8), 0);
    ck_assert_int_eq(mem_read(&m, MEM_GAP_END + GIB - 8, &got, 8), 0);
    ck_assert_uint_eq(got, v);
    ck_assert_int_eq(mem_write(&m, MEM_GAP_START - 4, &v, 8), -EFAULT);
    ck_assert_int_eq(mem_read(&m, MEM_GAP_START - 4, &got, 8), -EFAULT);
    mem_free(&m);
}
END_TEST

START_TEST(file_is_private_and_checked)
{
    struct guest_mem m;
    struct err e = {""};
    const uint64_t size = 4 * MIB;
    ck_assert_int_eq(mem_reserve(&m, size, NULL), 0);
    uint8_t *base = m.r[0].host;

    _cleanup_(close_fdp) int small = make_file(size - 1);
    ck_assert_int_eq(mem_back_file(&m, small, MEM_PAGES_SMALL, &e), -EINVAL);
    ck_assert_str_ne(e.msg, "");
    int p[2];
    ck_assert_int_eq(pipe(p), 0);
    ck_assert_int_eq(mem_back_file(&m, p[0], MEM_PAGES_SMALL, &e), -EINVAL);
    _cleanup_(close_fdp) int null = open("/dev/zero", O_RDONLY);
    ck_assert_int_eq(mem_back_file(&m, null, MEM_PAGES_SMALL, &e), -EINVAL);
    ck_assert_int_eq(mem_back_file(&m, -1, MEM_PAGES_SMALL, &e), -EINVAL);

    int fd = make_file(size);
    const uint8_t seven = 7;
    ck_assert_int_eq(pwrite(fd, &seven, 1, 5000), 1);
    ck_assert_int_eq(mem_back_file(&m, fd, MEM_PAGES_SMALL, NULL), 0);
    ck_assert_ptr_eq(m.r[0].host, base);
    uint8_t got = 0, nine = 9;
    ck_assert_int_eq(mem_read(&m, 5000, &got, 1), 0);
    ck_assert_uint_eq(got, 7);
    ck_assert_int_eq(mem_write(&m, 5000, &nine, 1), 0);
    ck_assert_int_eq(pread(fd, &got, 1, 5000), 1);
    ck_assert_uint_eq(got, 7); // the guest's write stayed private

    for (int turn = 0; turn < 2; turn++) { // again, as after a failed load: nothing written is left
        ck_assert_int_eq(mem_write(&m, 3 * MIB, &nine, 1), 0);
        if (turn == 0)
            mem_unback(&m);
        ck_assert_int_eq(mem_back_file(&m, fd, MEM_PAGES_SMALL, NULL), 0);
        ck_assert_int_eq(mem_read(&m, 3 * MIB, &got, 1), 0);
        ck_assert_uint_eq(got, 0);
    }
    close(fd);
    ck_assert_int_eq(mem_read(&m, 5000, &got, 1), 0);
    ck_assert_uint_eq(got, 7);
    mem_free(&m);
    close(p[0]);
    close(p[1]);
}
END_TEST

// Whether the mapping that p lies in has a file behind it.
static bool has_file(const uint8_t *p)
{
    unsigned long from, to, inode;
    char line[512];
    bool file = false;
    FILE *f = fopen("/proc/self/maps", "r");
    ck_assert_ptr_nonnull(f);
    while (fgets(line, sizeof(line), f))
        if (sscanf(line, "%lx-%lx %*s %*s %*s %lu", &from, &to, &inode) == 3 &&
            (uintptr_t)p >= from && (uintptr_t)p < to)
            file = inode != 0;
    fclose(f);
    return file;
}

START_TEST(large_holes_are_anonymous)
{
    struct guest_mem m;
    const uint8_t seven = 7;
    uint8_t got = 1;
    ck_assert_int_eq(mem_reserve(&m, 16 * MIB, NULL), 0);
    int fd = make_file(16 * MIB);
    const off_t data[] = {5000, 4 * MIB, 5 * MIB, 15 * MIB + 4097};
    for (size_t i = 0; i < ARRAY_SIZE(data); i++)
        ck_assert_int_eq(pwrite(fd, &seven, 1, data[i]), 1);
    ck_assert_int_eq(mem_back_file(&m, fd, MEM_PAGES_SMALL, NULL), 0);
    close(fd);
    for (size_t i = 0; i < ARRAY_SIZE(data); i++) {
        ck_assert_int_eq(mem_read(&m, (uint64_t)data[i], &got, 1), 0);
        ck_assert_uint_eq(got, 7);
        ck_assert(has_file(m.r[0].host + data[i]));
    }
    ck_assert(has_file(m.r[0].host + 4 * MIB + 8192)); // a small hole stays the file's
    ck_assert(!has_file(m.r[0].host + 2 * MIB));
    ck_assert(!has_file(m.r[0].host + 8 * MIB));
    ck_assert_int_eq(mem_read(&m, 8 * MIB, &got, 1), 0);
    ck_assert_uint_eq(got, 0);
    ck_assert_int_eq(mem_write(&m, 8 * MIB, &seven, 1), 0);
    mem_free(&m);
}
END_TEST

static void poke_unbacked(bool unback)
{
    struct guest_mem m;
    ck_assert_int_eq(mem_reserve(&m, MIB, NULL), 0);
    if (unback) {
        ck_assert_int_eq(mem_back_anon(&m, false, NULL), 0);
        *(volatile uint8_t *)m.r[0].host = 1;
        mem_unback(&m);
    }
    int fd[2];
    ck_assert_int_eq(pipe(fd), 0);
    // The kernel's view of the mapping: a write from it must fail, without a signal to catch.
    ck_assert_int_eq(write(fd[1], m.r[0].host, 1), -1);
    ck_assert_int_eq(errno, EFAULT);
    mem_free(&m);
    close(fd[0]);
    close(fd[1]);
}

START_TEST(unbacked_is_inaccessible)
{
    poke_unbacked(false);
    poke_unbacked(true);
}
END_TEST

START_TEST(dirty_bitmap)
{
    struct guest_mem m;
    ck_assert_int_eq(mem_reserve(&m, 4 * GIB, NULL), 0);
    ck_assert_int_eq(mem_back_anon(&m, false, NULL), 0);
    ck_assert_ptr_nonnull(mem_at(&m, 0, 1, MEM_WRITE)); // untracked: nothing to mark
    ck_assert_uint_eq(mem_dirty_take(&m, 0), 0);
    ck_assert_int_eq(mem_track(&m, true, NULL), 0);

    mem_at(&m, 0, PAGE_SIZE, MEM_READ);
    ck_assert_uint_eq(mem_dirty_take(&m, 0), 0);
    mem_at(&m, PAGE_SIZE - 1, 2, MEM_WRITE); // both sides of a page boundary
    ck_assert_uint_eq(mem_dirty_take(&m, 0), 3);
    ck_assert_uint_eq(mem_dirty_take(&m, 0), 0);
    mem_at(&m, 63 * PAGE_SIZE, 2 * PAGE_SIZE, MEM_WRITE); // across two words
    ck_assert_uint_eq(mem_dirty_take(&m, 0), 1ULL << 63);
    ck_assert_uint_eq(mem_dirty_take(&m, 1), 1);

    const size_t high = MEM_GAP_START / PAGE_SIZE / 64; // the second region follows in the file
    const uint8_t b = 1;
    ck_assert_int_eq(mem_write(&m, MEM_GAP_END, &b, 1), 0);
    ck_assert_uint_eq(mem_dirty_take(&m, high), 1);
    mem_dirty(&m, m.r[1].host + PAGE_SIZE, 1);
    ck_assert_uint_eq(mem_dirty_take(&m, high), 2);
    mem_dirty(&m, m.r[1].host + PAGE_SIZE, 0); // zero length must not underflow (V-gHost)
    mem_dirty(&m, &b, 1);                      // not guest memory
    mem_dirty(&m, m.r[1].host + GIB - 1, 100); // clipped to its region
    ck_assert_uint_eq(mem_dirty_take(&m, high), 0);
    ck_assert_uint_eq(mem_dirty_take(&m, 4 * GIB / PAGE_SIZE / 64 - 1), 1ULL << 63);
    ck_assert_uint_eq(mem_dirty_take(&m, 4 * GIB / PAGE_SIZE / 64), 0); // past the bitmap
    ck_assert_uint_eq(mem_dirty_take(&m, SIZE_MAX), 0);

    mem_at(&m, 0, 1, MEM_WRITE);
    ck_assert_int_eq(mem_track(&m, true, NULL), 0); // a new start is all clean
    ck_assert_uint_eq(mem_dirty_take(&m, 0), 0);
    ck_assert_int_eq(mem_track(&m, false, NULL), 0);
    ck_assert(m.dirty == NULL);
    mem_free(&m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("mem");
    TCase *tc = tcase_create("mem");
    suite_add_tcase(s, tc);
    tcase_add_test(tc, reserve_rejects);
    tcase_add_test(tc, bounds_one_region);
    tcase_add_test(tc, bounds_across_the_gap);
    tcase_add_test(tc, file_is_private_and_checked);
    tcase_add_test(tc, large_holes_are_anonymous);
    tcase_add_test(tc, unbacked_is_inaccessible);
    tcase_add_test(tc, dirty_bitmap);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
