// SPDX-License-Identifier: Apache-2.0
// ELF loader: every header field is judged before a byte is copied, and boot_load puts all in
// place.
#include "boot_util.h"

#include <dirent.h>
#include <fcntl.h>

static struct elf_image img;
static struct guest_mem m;
static struct kernel_image k;
static struct err e;

static void setup(void)
{
    elf_make(&img);
    ram(&m, 4 * MIB);
    memset(&e, 0, sizeof(e));
}

static void teardown(void)
{
    mem_free(&m);
}

static int run_len(size_t len)
{
    _cleanup_(close_fdp) int fd = file_of(&img, len);
    return elf_load(&m, fd, &k, &e);
}

static int run(void)
{
    return run_len(sizeof(img));
}

START_TEST(loads_segments)
{
    ck_assert_int_eq(run(), 0);
    ck_assert_uint_eq(k.entry, 0x100010);
    ck_assert(!k.pvh && !k.bzimage);
    ck_assert_uint_eq(k.end, 0x1f8000);
    ck_assert_mem_eq(at(&m, 0x100000, 4096), img.text, 4096);
    ck_assert_mem_eq(at(&m, 0x1f0000, 4000), img.data, 4000);
    ck_assert_uint_eq(at(&m, 0x1f0000, 4096)[4000], 0); // bss, though the file goes on
    const struct area a[] = {{0x100000, 4096}, {0x1f0000, 4000}};
    only_written(&m, a, 2);
}
END_TEST

START_TEST(not_elf)
{
    img.h.e_ident[1] = 'X';
    ck_assert_int_eq(run(), -ENOEXEC);
    ck_assert_int_eq(run_len(0), -ENOEXEC);
    ck_assert_int_eq(run_len(3), -ENOEXEC);
}
END_TEST

START_TEST(header_refused)
{
    img.h.e_ident[EI_CLASS] = ELFCLASS32;
    ck_fails(run(), -EINVAL, "32-bit");
    elf_make(&img);
    img.h.e_ident[EI_DATA] = ELFDATA2MSB;
    ck_fails(run(), -EINVAL, "little-endian");
    elf_make(&img);
    img.h.e_machine = EM_AARCH64;
    ck_fails(run(), -EINVAL, "x86-64");
    elf_make(&img);
    img.h.e_type = ET_REL;
    ck_fails(run(), -EINVAL, "executable");
    elf_make(&img);
    img.h.e_phnum = 0;
    ck_fails(run(), -EINVAL, "program headers");
    img.h.e_phnum = 0xffff;
    ck_fails(run(), -EINVAL, "program headers");
    elf_make(&img);
    img.h.e_phentsize = 32;
    ck_fails(run(), -EINVAL, "program headers");
    elf_make(&img);
    img.h.e_phoff = UINT64_MAX - 8;
    ck_fails(run(), -EINVAL, "outside the file");
    img.h.e_phoff = sizeof(img) - 8;
    ck_fails(run(), -EINVAL, "outside the file");
    only_written(&m, NULL, 0);
}
END_TEST

// Cut at every byte up to the end of the last segment: refused, never a partial success.
START_TEST(truncated_everywhere)
{
    const size_t need = offsetof(struct elf_image, data) + 4000;
    for (size_t len = SELFMAG; len < need; len += len < 300 ? 1 : 97)
        ck_assert_int_eq(run_len(len), -EINVAL);
    ck_assert_int_eq(run_len(need - 1), -EINVAL);
    only_written(&m, NULL, 0); // judged before copying
    ck_assert_int_eq(run_len(need), 0);
}
END_TEST

START_TEST(segment_refused)
{
    static const struct {
        uint64_t off, paddr, filesz, memsz;
        const char *why;
    } bad[] = {
        {4096, 0x200000, 4096, 4095, "larger in the file"},
        {4096, 0x200000, 1, 0x300000, "does not fit"},
        {4096, 0x400000, 0, 1, "does not fit"},
        {4096, 0x3fffff, 1, 2, "does not fit"},
        {4096, UINT64_MAX, 1, 1, "does not fit"},
        {4096, UINT64_MAX - 4095, 4096, 4096, "does not fit"},
        {4096, 0x200000, 1, UINT64_MAX, "does not fit"},
        {4096, 0x200000, UINT64_MAX, UINT64_MAX, "outside the file"},
        {UINT64_MAX, 0x200000, 1, 1, "outside the file"},
        {UINT64_MAX - 4095, 0x200000, 8192, 8192, "outside the file"},
        {4096, 0xfffff, 1, 1, "below 1 MiB"},
        {4096, 0, 1, 0x200000, "below 1 MiB"},
        {4096, 0x100fff, 1, 1, "overlap"},
        {4096, 0x100000, 0, 0x1000, "overlap"},
        {4096, 0x1f7fff, 1, 1, "overlap"},
        {4096, 0x1ef000, 1, 0x1001, "overlap"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        elf_make(&img);
        img.ph[2] = load(bad[i].off, bad[i].paddr, bad[i].filesz, bad[i].memsz);
        img.h.e_phnum = 3;
        ck_fails(run(), -EINVAL, bad[i].why);
    }
    only_written(&m, NULL, 0);
}
END_TEST

START_TEST(segment_edges)
{
    img.ph[2] = load(4096, 0x101000, 16, 0x10);              // touches the first, does not overlap
    img.ph[3] = load(4096, 4 * MIB - 1, 1, 1);               // last byte of RAM
    img.ph[4] = load(UINT64_MAX, UINT64_MAX, UINT64_MAX, 0); // empty: no segment
    img.h.e_phnum = 5;
    ck_assert_int_eq(run(), 0);
    ck_assert_uint_eq(k.end, 4 * MIB);
}
END_TEST

START_TEST(entry_outside)
{
    img.h.e_entry = 0x101000;
    ck_fails(run(), -EINVAL, "64-bit entry");
    img.h.e_entry = 0xffffffff81000000;
    ck_fails(run(), -EINVAL, "64-bit entry");
    img.h.e_entry = 0x1f7fff; // bss is memory too
    ck_assert_int_eq(run(), 0);
}
END_TEST

START_TEST(pvh_note)
{
    const uint64_t entry = 0x100020;
    uint32_t n = elf_note(&img, 0, "GNU", 3, "0123456789", 10); // a build id before it
    n = elf_note(&img, n, "Xen", 5, "x", 1);
    n = elf_note(&img, n, "XeX", 18, &entry, 8);
    n = elf_note(&img, n, "Xen", 18, &entry, 8);
    elf_notes(&img, n);
    ck_assert_int_eq(run(), 0);
    ck_assert(k.pvh);
    ck_assert_uint_eq(k.entry, entry);

    n = elf_note(&img, 0, "Xen", 18, &entry, 4);
    elf_notes(&img, n + 7); // trailing bytes too short for a header
    ck_assert_int_eq(run(), 0);
    ck_assert_uint_eq(k.entry, entry);
}
END_TEST

START_TEST(pvh_note_malformed)
{
    const uint64_t entry = 0x100020, far = 0x101000;
    uint32_t n = elf_note(&img, 0, "Xen", 18, &entry, 8);
    for (uint64_t cut = 12; cut < n; cut++) {
        elf_notes(&img, cut);
        ck_fails(run(), -EINVAL, "malformed");
    }
    elf_notes(&img, sizeof(img.note) + 1);
    ck_fails(run(), -EINVAL, "outside the file");
    elf_notes(&img, UINT64_MAX);
    ck_fails(run(), -EINVAL, "outside the file");
    img.ph[2].p_offset = UINT64_MAX;
    ck_fails(run(), -EINVAL, "outside the file");
    elf_notes(&img, n);
    le32_put(img.note, UINT32_MAX); // name size
    ck_fails(run(), -EINVAL, "malformed");
    elf_note(&img, 0, "Xen", 18, &entry, 8);
    le32_put(img.note + 4, UINT32_MAX); // descriptor size
    ck_fails(run(), -EINVAL, "malformed");
    elf_notes(&img, elf_note(&img, 0, "Xen", 18, &entry, 6));
    ck_fails(run(), -EINVAL, "not 4 or 8");
    elf_notes(&img, elf_note(&img, 0, "Xen", 18, &far, 8));
    ck_fails(run(), -EINVAL, "PVH entry");
}
END_TEST

START_TEST(notes_too_large)
{
    _cleanup_(close_fdp) int fd = -1;
    elf_notes(&img, 1 << 20);
    fd = file_of(&img, sizeof(img));
    ck_assert_int_eq(ftruncate(fd, 2 << 20), 0);
    ck_fails(elf_load(&m, fd, &k, &e), -EINVAL, "larger than");
}
END_TEST

START_TEST(not_a_file)
{
    int p[2];
    ck_assert_int_eq(pipe(p), 0);
    ck_fails(elf_load(&m, p[0], &k, &e), -EINVAL, "regular file");
    close(p[0]);
    close(p[1]);
    _cleanup_(close_fdp) int dev = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    ck_fails(elf_load(&m, dev, &k, &e), -EINVAL, "regular file");
    ck_fails(elf_load(&m, -1, &k, &e), -EIO, "examined");
}
END_TEST

// --- boot_load over an ELF kernel ---

static int load_all(const struct guest_mem *mem, int initrd, struct boot_entry *out)
{
    _cleanup_(close_fdp) int fd = file_of(&img, sizeof(img));
    const struct boot_request rq = {
        .mem = mem, .kernel_fd = fd, .initrd_fd = initrd, .cmdline = "console=ttyS0", .vcpus = 2};
    return boot_load(&rq, out, &e);
}

static uint64_t map_ram(const struct guest_mem *mem)
{
    struct e820_range r[E820_MAX];
    uint64_t sum = 0, last = 0;
    const unsigned n = boot_e820(mem, r);
    for (unsigned i = 0; i < n; i++) {
        ck_assert_uint_ge(r[i].addr, last); // ascending, no overlap
        last = r[i].addr + r[i].size;
        if (r[i].type == E820_RAM) {
            ck_assert_ptr_nonnull(mem_at(mem, r[i].addr, r[i].size, MEM_READ));
            sum += r[i].size;
        }
    }
    return sum;
}

START_TEST(boot_linux64_sizes)
{
    static const uint64_t sizes[] = {2 * MIB, 3 * MIB, 128 * MIB, 3 * GIB, 3 * GIB + MIB, 6 * GIB};
    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        struct guest_mem g;
        struct boot_entry b;
        uint8_t disk[5000];
        memset(disk, 0x1d, sizeof(disk));
        _cleanup_(close_fdp) int ird = file_of(disk, i ? sizeof(disk) : 3000);
        ram(&g, sizes[i]);
        ck_assert_msg(load_all(&g, ird, &b) == 0, "%s", e.msg);
        ck_assert_int_eq(b.kind, BOOT_ENTRY_LINUX64);
        ck_assert_uint_eq(b.rip, 0x100010);
        ck_assert_uint_eq(b.rsi_or_rbx, BOOT_ZERO_PAGE);
        ck_assert_uint_eq(b.cr3, BOOT_PML4);
        const uint8_t *z = at(&g, BOOT_ZERO_PAGE, 4096);
        ck_assert_uint_eq(z[0x210], 0xff);
        ck_assert_uint_eq(le16_get(z + 0x1fe), 0xaa55);
        ck_assert_uint_eq(le64_get(z + 0x70), BOOT_RSDP);
        ck_assert_str_eq((const char *)at(&g, le32_get(z + 0x228), 64), "console=ttyS0");
        ck_assert_uint_eq(le32_get(z + 0x238), 13);
        const uint64_t addr = le32_get(z + 0x218), len = le32_get(z + 0x21c);
        ck_assert_uint_eq(addr % PAGE_SIZE, 0);
        ck_assert_uint_eq(len, i ? 5000 : 3000);
        ck_assert_uint_eq(ALIGN_UP(addr + len, PAGE_SIZE), MIN(sizes[i], 3 * GIB));
        ck_assert_mem_eq(at(&g, addr, len), disk, len);
        ck_assert_uint_eq(map_ram(&g), sizes[i] - (BOOT_HIMEM - BOOT_EBDA));
        // CR3 -> first GiB -> 2 MiB page 1 maps itself
        const uint64_t pdpt = le64_get(at(&g, b.cr3, 8)),
                       pd = le64_get(at(&g, pdpt & ~0xfffULL, 8));
        ck_assert_uint_eq(le64_get(at(&g, (pd & ~0xfffULL) + 8, 8)), 0x200083);
        const struct area ok[] = {
            {BOOT_GDT, 0x28},     {BOOT_ZERO_PAGE, 4096}, {BOOT_PML4, 3 * 4096}, {BOOT_CMDLINE, 14},
            {BOOT_RSDP, 0x20000}, {0x100000, 4096},       {0x1f0000, 4000},      {addr, len},
            {BOOT_EBDA, 1024}};
        only_written(&g, ok, ARRAY_SIZE(ok));
        mem_free(&g);
    }
}
END_TEST

START_TEST(boot_pvh)
{
    const uint64_t entry = 0x100020;
    struct boot_entry b;
    uint8_t disk[4096];
    memset(disk, 0x1d, sizeof(disk));
    _cleanup_(close_fdp) int ird = file_of(disk, sizeof(disk));
    elf_notes(&img, elf_note(&img, 0, "Xen", 18, &entry, 8));
    ck_assert_msg(load_all(&m, ird, &b) == 0, "%s", e.msg);
    ck_assert_int_eq(b.kind, BOOT_ENTRY_PVH);
    ck_assert_uint_eq(b.rip, entry);
    ck_assert_uint_eq(b.rsi_or_rbx, BOOT_PVH_INFO);
    const uint8_t *s = at(&m, BOOT_PVH_INFO, 56);
    ck_assert_uint_eq(le32_get(s), 0x336ec578);
    ck_assert_uint_eq(le32_get(s + 4), 1);
    ck_assert_uint_eq(le32_get(s + 12), 1);
    const uint8_t *mod = at(&m, le64_get(s + 16), 32);
    ck_assert_uint_eq(le64_get(mod), 4 * MIB - 4096);
    ck_assert_uint_eq(le64_get(mod + 8), 4096);
    ck_assert_str_eq((const char *)at(&m, le64_get(s + 24), 64), "console=ttyS0");
    ck_assert_uint_eq(le64_get(s + 32), BOOT_RSDP);
    struct e820_range r[E820_MAX];
    ck_assert_uint_eq(le32_get(s + 48), boot_e820(&m, r));
    for (unsigned i = 0; i < le32_get(s + 48); i++) {
        const uint8_t *t = at(&m, le64_get(s + 40) + i * 24, 24);
        ck_assert_uint_eq(le64_get(t), r[i].addr);
        ck_assert_uint_eq(le64_get(t + 8), r[i].size);
        ck_assert_uint_eq(le32_get(t + 16), (uint32_t)r[i].type);
    }
    ck_assert_uint_eq(r[1].type, E820_RESERVED); // the hole with ACPI, VMGenID and VMClock
    ck_assert(r[1].addr <= 0xd0000 && r[1].addr + r[1].size == BOOT_HIMEM);
    const struct area ok[] = {{BOOT_GDT, 0x28},       {BOOT_PVH_INFO, 256}, {BOOT_CMDLINE, 14},
                              {BOOT_RSDP, 0x20000},   {0x100000, 4096},     {0x1f0000, 4000},
                              {4 * MIB - 4096, 4096}, {BOOT_EBDA, 1024}};
    only_written(&m, ok, ARRAY_SIZE(ok));
}
END_TEST

START_TEST(initrd_refused)
{
    struct boot_entry b;
    _cleanup_(close_fdp) int ird = file_of("", 0);
    ck_fails(load_all(&m, ird, &b), -EINVAL, "initrd_path: is empty");
    ck_assert_int_eq(ftruncate(ird, 4 * MIB - 0x1f8000), 0); // exactly what is free
    ck_assert_int_eq(load_all(&m, ird, &b), 0);
    ck_assert_int_eq(ftruncate(ird, 4 * MIB - 0x1f8000 + 1), 0);
    ck_fails(load_all(&m, ird, &b), -EFBIG, "initrd_path: ");
    ck_assert_int_eq(ftruncate(ird, INT64_MAX - 4096), 0);
    ck_fails(load_all(&m, ird, &b), -EFBIG, "initrd_path: ");
}
END_TEST

START_TEST(kernel_named)
{
    struct boot_entry b;
    img.h.e_machine = EM_386;
    ck_fails(load_all(&m, -1, &b), -EINVAL, "kernel_image_path: ");
    memset(&img.h, 0, sizeof(img.h));
    ck_fails(load_all(&m, -1, &b), -EINVAL, "kernel_image_path: is neither");
    struct guest_mem tiny;
    ram(&tiny, MIB);
    elf_make(&img);
    ck_fails(load_all(&tiny, -1, &b), -EINVAL, "kernel_image_path: ");
    mem_free(&tiny);
}
END_TEST

// Kernels built in this tree, where there are any: each is found, loads and leaves room.
START_TEST(real_kernels)
{
    unsigned seen = 0;
    DIR *d = opendir("build/kernels");
    for (struct dirent *s; d && (s = readdir(d));) {
        static const char *const names[] = {"vmlinux", "bzImage"};
        for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
            char path[512];
            struct guest_mem g;
            struct boot_entry b;
            snprintf(path, sizeof(path), "build/kernels/%s/%s", s->d_name, names[i]);
            _cleanup_(close_fdp) int fd = open(path, O_RDONLY | O_CLOEXEC);
            if (fd < 0)
                continue;
            ram(&g, 256 * MIB);
            const struct boot_request rq = {
                .mem = &g, .kernel_fd = fd, .initrd_fd = -1, .cmdline = "x", .vcpus = 1};
            ck_assert_msg(boot_load(&rq, &b, &e) == 0, "%s: %s", path, e.msg);
            ck_assert_ptr_nonnull(mem_at(&g, b.rip, 16, MEM_READ));
            mem_free(&g);
            seen++;
        }
    }
    if (d)
        closedir(d);
    if (!seen)
        printf("SKIP: real_kernels: no build/kernels/*/{vmlinux,bzImage}\n");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("elf");
    TCase *t = tcase_create("elf");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, loads_segments);
    tcase_add_test(t, not_elf);
    tcase_add_test(t, header_refused);
    tcase_add_test(t, truncated_everywhere);
    tcase_add_test(t, segment_refused);
    tcase_add_test(t, segment_edges);
    tcase_add_test(t, entry_outside);
    tcase_add_test(t, pvh_note);
    tcase_add_test(t, pvh_note_malformed);
    tcase_add_test(t, notes_too_large);
    tcase_add_test(t, not_a_file);
    tcase_add_test(t, boot_linux64_sizes);
    tcase_add_test(t, boot_pvh);
    tcase_add_test(t, initrd_refused);
    tcase_add_test(t, kernel_named);
    tcase_add_test(t, real_kernels);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
