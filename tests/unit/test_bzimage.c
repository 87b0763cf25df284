// SPDX-License-Identifier: Apache-2.0
// bzImage loader: header checks, placement by preferred address and init_size, the zero page.
#include "boot_util.h"

static uint8_t img[64 * KIB];
static size_t len;
static struct guest_mem m;
static struct kernel_image k;
static struct err e;

static void setup(void)
{
    len = bz_make(img, sizeof(img), 40000);
    ram(&m, 4 * MIB);
    memset(&e, 0, sizeof(e));
}

static void teardown(void)
{
    mem_free(&m);
}

static int run(void)
{
    _cleanup_(close_fdp) int fd = file_of(img, len);
    return bzimage_load(&m, fd, &k, &e);
}

START_TEST(loads)
{
    ck_assert_int_eq(run(), 0);
    ck_assert(k.bzimage && !k.pvh);
    ck_assert_uint_eq(k.entry, 0x100200);
    ck_assert_uint_eq(k.end, 0x180000);
    ck_assert_uint_eq(k.init_size, 0x80000);
    ck_assert_mem_eq(at(&m, 0x100000, 40000), img + 1536, 40000);
    ck_assert_mem_eq(k.setup_hdr, img + 0x1f1, 0x202 + 0x6a - 0x1f1);
    const struct area a = {0x100000, 40000};
    only_written(&m, &a, 1);
}
END_TEST

START_TEST(header_refused)
{
    static const struct {
        unsigned off, width;
        uint64_t v;
        const char *why;
    } bad[] = {
        {0x1fe, 2, 0x55aa, "neither"},
        {0x202, 4, 0, "neither"},
        {0x206, 2, 0x20b, "protocol 2.11"},
        {0x206, 2, 0, "protocol 0.00"},
        {0x211, 1, 0, "zImage"},
        {0x236, 2, 2, "XLF_KERNEL_64"},
        {0x201, 1, 0x61, "ends too early"},
        {0x1f1, 1, 255, "truncated"},
        {0x258, 8, 0xfffff, "below 1 MiB"},
        {0x258, 8, 0, "below 1 MiB"},
        {0x258, 8, 0x400000, "do not fit"},
        {0x258, 8, 0x400001, "do not fit"},
        {0x258, 8, UINT64_MAX, "do not fit"},
        {0x258, 8, UINT64_MAX - 0x7ffff, "do not fit"},
        {0x260, 4, 0x300001, "do not fit"},
        {0x260, 4, UINT32_MAX, "do not fit"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        len = bz_make(img, sizeof(img), 40000);
        memcpy(img + bad[i].off, &bad[i].v, bad[i].width);
        ck_fails(run(), -EINVAL, bad[i].why);
    }
    only_written(&m, NULL, 0);
}
END_TEST

START_TEST(truncated_everywhere)
{
    const size_t whole = len;
    for (len = 0; len <= 1536 + 0x200; len += 13)
        ck_assert_int_eq(run(), -EINVAL);
    only_written(&m, NULL, 0);
    len = whole;
    ck_assert_int_eq(run(), 0);
}
END_TEST

START_TEST(placement)
{
    img[0x1f1] = 0; // means 4 sectors
    le64_put(img + 0x258, 0x200000);
    le32_put(img + 0x260, 0x200000); // to the last byte of RAM
    ck_assert_int_eq(run(), 0);
    ck_assert_uint_eq(k.entry, 0x200200);
    ck_assert_uint_eq(k.end, 0x400000);
    ck_assert_mem_eq(at(&m, 0x200000, 16), img + 5 * 512, 16);
    le32_put(img + 0x260, 0); // the file's own size counts when init_size is less
    ck_assert_int_eq(run(), 0);
    ck_assert_uint_eq(k.end, ALIGN_UP(0x200000 + len - 5 * 512, PAGE_SIZE));
    img[0x201] = 0xff; // a header longer than ours: only what the zero page takes is copied
    ck_assert_int_eq(run(), 0);
    ck_assert_mem_eq(k.setup_hdr, img + 0x1f1, sizeof(k.setup_hdr));
}
END_TEST

static int load_all(struct guest_mem *g, int ird, struct boot_entry *b)
{
    _cleanup_(close_fdp) int fd = file_of(img, len);
    const struct boot_request rq = {
        .mem = g, .kernel_fd = fd, .initrd_fd = ird, .cmdline = "quiet", .vcpus = 32};
    return boot_load(&rq, b, &e);
}

START_TEST(zero_page)
{
    struct boot_entry b;
    uint8_t disk[6000];
    memset(disk, 0x1d, sizeof(disk));
    _cleanup_(close_fdp) int ird = file_of(disk, sizeof(disk));
    le64_put(img + 0x250, 0xdead); // setup_data: none of the file's business
    ck_assert_msg(load_all(&m, ird, &b) == 0, "%s", e.msg);
    ck_assert_int_eq(b.kind, BOOT_ENTRY_LINUX64);
    ck_assert_uint_eq(b.rip, 0x100200);
    const uint8_t *z = at(&m, BOOT_ZERO_PAGE, 4096);
    ck_assert_uint_eq(z[0x1f1], 2); // copied
    ck_assert_uint_eq(le32_get(z + 0x22c), 0x7fffffff);
    ck_assert_uint_eq(z[0x210], 0xff); // ours
    ck_assert_uint_eq(le64_get(z + 0x250), 0);
    ck_assert_uint_eq(le32_get(z + 0x218), 4 * MIB - 8192);
    ck_assert_uint_eq(le32_get(z + 0x21c), 6000);
    ck_assert_uint_eq(z[0x1e8], 3);
}
END_TEST

START_TEST(initrd_under_limit)
{
    struct guest_mem g;
    struct boot_entry b;
    _cleanup_(close_fdp) int ird = file_of("initrd", 6);
    ram(&g, 3 * GIB);
    ck_assert_int_eq(load_all(&g, ird, &b), 0);
    ck_assert_uint_eq(le32_get(at(&g, BOOT_ZERO_PAGE + 0x218, 4)), 2 * GIB - 4096);
    le32_put(img + 0x22c, 0x1fffff);
    ck_assert_int_eq(load_all(&g, ird, &b), 0);
    ck_assert_uint_eq(le32_get(at(&g, BOOT_ZERO_PAGE + 0x218, 4)), 0x1ff000);
    le32_put(img + 0x22c, 0x180000); // kernel ends there
    ck_fails(load_all(&g, ird, &b), -EFBIG, "initrd_path: ");
    le32_put(img + 0x22c, 0);
    ck_fails(load_all(&g, ird, &b), -EFBIG, "initrd_path: ");
    mem_free(&g);
}
END_TEST

// A kernel that lies high needs page tables that reach it.
START_TEST(identity_map_reaches)
{
    struct guest_mem g;
    struct boot_entry b;
    ram(&g, 3 * GIB);
    le64_put(img + 0x258, 2 * GIB + 16 * MIB);
    ck_assert_msg(load_all(&g, -1, &b) == 0, "%s", e.msg);
    const uint64_t pdpt = le64_get(at(&g, b.cr3, 8)) & ~0xfffULL;
    const uint64_t pd = le64_get(at(&g, pdpt + 16, 8)) & ~0xfffULL;
    ck_assert_uint_eq(le64_get(at(&g, pd + 8 * 8, 8)), (2 * GIB + 16 * MIB) | 0x83);
    ck_assert_uint_lt(pd, BOOT_CMDLINE);
    mem_free(&g);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bzimage");
    TCase *t = tcase_create("bzimage");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, loads);
    tcase_add_test(t, header_refused);
    tcase_add_test(t, truncated_everywhere);
    tcase_add_test(t, placement);
    tcase_add_test(t, zero_page);
    tcase_add_test(t, initrd_under_limit);
    tcase_add_test(t, identity_map_reaches);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
