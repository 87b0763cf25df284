// SPDX-License-Identifier: Apache-2.0
// Memory files and hostile states: files as they should be, files that were not, and values under a right
// checksum that only an enemy writes, against the real KVM.
#include <check.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "api-socket/ctl/merge.h"
#include "snapshot/memfile.h"
#include "tests/unit/host.h"
#include "tests/unit/snap_blob.h"
#include "vmm/vm_priv.h"

#define MEM (4 * MIB)

static struct guest_mem m;
static struct err e;
static uint64_t bits[MEM / PAGE_SIZE / 64];

static void setup(void)
{
    ck_assert_int_eq(mem_reserve(&m, MEM, &e), 0);
    ck_assert_int_eq(mem_back_anon(&m, false, &e), 0);
    memset(bits, 0, sizeof(bits));
}

static void teardown(void)
{
    mem_free(&m);
}

static int temp_file(void)
{
    char name[] = "/tmp/mayfly-unit-XXXXXX";
    int fd = mkstemp(name);
    ck_assert_int_ge(fd, 0);
    unlink(name);
    return fd;
}

static uint8_t *page(uint64_t n)
{
    uint64_t len;
    return pages_at(&m, n * PAGE_SIZE, &len);
}

static void fill(uint64_t n, uint8_t v)
{
    memset(page(n), v, PAGE_SIZE);
}

static int save(int fd, enum memfile_kind kind, uint8_t id, uint8_t parent)
{
    struct memfile_head h = {.kind = kind, .id = {id}, .parent = {parent}, .mem_size = MEM};
    if (kind == MEMFILE_FULL)
        memfile_drop_zeros(&m, bits);
    int rc = memfile_pages(fd, &m, bits, &e);
    return rc ? rc : memfile_trailer(fd, bits, &h, &e);
}

static uint64_t count(const uint64_t *b)
{
    uint64_t n = 0;
    for (size_t i = 0; i < ARRAY_SIZE(bits); i++)
        n += (uint64_t)__builtin_popcountll(b[i]);
    return n;
}

START_TEST(runs)
{
    static const struct {
        uint64_t first, n;
    } want[] = {{0, 1}, {5, 59}, {64, 64}, {129, 200}, {1023, 1}};
    for (size_t i = 0; i < ARRAY_SIZE(want); i++) {
        memset(bits, 0, sizeof(bits));
        pages_set(bits, want[i].first, want[i].n);
        ck_assert_uint_eq(count(bits), want[i].n);
        uint64_t at = 0;
        ck_assert_uint_eq(pages_run(bits, MEM / PAGE_SIZE, &at), want[i].n);
        ck_assert_uint_eq(at, want[i].first);
        at += want[i].n;
        ck_assert_uint_eq(pages_run(bits, MEM / PAGE_SIZE, &at), 0);
    }
    // A run ends where the caller says that memory does.
    uint64_t at = 1000;
    memset(bits, 0xff, sizeof(bits));
    ck_assert_uint_eq(pages_run(bits, 1010, &at), 10);
    ck_assert_uint_eq(pages_run_max(bits, 1010, &at, 10), 10);
    for (uint64_t max = 1; max < 10; max++) {
        ck_assert_uint_eq(pages_run_max(bits, 1010, &at, max), max);
        ck_assert_uint_eq(at, 1000);
    }
}
END_TEST

START_TEST(own_pages)
{
    int maps[] = {open("/proc/self/pagemap", O_RDONLY), -1};
    fill(3, 1);
    fill(700, 1);
    ck_assert_uint_eq(page(9)[5], 0); // read, never written: the zero page
    ck_assert_int_eq(pages_own(&m, maps[0], bits, &e), 0);
    ck_assert_uint_eq(count(bits), 2);
    ck_assert(bits[0] & 8 && bits[700 / 64] & 1ULL << 700 % 64);
    // Without a page map every page may be ours.
    ck_assert_int_eq(pages_own(&m, maps[1], bits, &e), 0);
    ck_assert_uint_eq(count(bits), MEM / PAGE_SIZE);
    close(maps[0]);
}
END_TEST

START_TEST(own_pages_over_a_file)
{
    _cleanup_(close_fdp) int fd = temp_file(), map = open("/proc/self/pagemap", O_RDONLY);
    fill(1, 7);
    pages_set(bits, 0, MEM / PAGE_SIZE);
    ck_assert_int_eq(save(fd, MEMFILE_FULL, 1, 0), 0);
    ck_assert_int_eq(mem_back_file(&m, fd, MEM_PAGES_SMALL, &e), 0);
    memset(bits, 0, sizeof(bits));
    ck_assert_uint_eq(page(1)[0] + page(2)[0], 7); // read
    ck_assert_int_eq(pages_own(&m, map, bits, &e), 0);
    ck_assert_uint_eq(count(bits), 0);
    fill(2, 1);
    ck_assert_int_eq(pages_own(&m, map, bits, &e), 0);
    ck_assert_uint_eq(count(bits), 1);
    ck_assert_uint_eq(bits[0], 4);
}
END_TEST

START_TEST(full)
{
    _cleanup_(close_fdp) int fd = temp_file();
    struct memfile_head h;
    struct stat st;
    fill(3, 1);
    page(9)[4095] = 1; // all zeros but its last byte
    fill(1023, 2);
    pages_set(bits, 0, MEM / PAGE_SIZE);
    ck_assert_int_eq(save(fd, MEMFILE_FULL, 5, 6), 0);
    ck_assert_int_eq(fstat(fd, &st), 0);
    ck_assert_int_le(st.st_blocks * 512, 5 * 4096);
    ck_assert_int_eq(memfile_head(fd, &h, NULL, &e), 0);
    ck_assert(h.kind == MEMFILE_FULL && h.id[0] == 5 && h.parent[0] == 6 && h.mem_size == MEM);
    memset(bits, 0, sizeof(bits));
    ck_assert_int_eq(memfile_data(fd, MEM, bits, &e), 0);
    ck_assert_uint_eq(count(bits), 3);
    ck_assert_int_eq(mem_back_file(&m, fd, MEM_PAGES_SMALL, &e), 0);
    ck_assert(page(3)[7] == 1 && page(9)[4095] == 1 && page(1023)[0] == 2 && page(4)[0] == 0);
}
END_TEST

START_TEST(merge)
{
    _cleanup_(close_fdp) int base = temp_file(), diff = temp_file(), out = temp_file();
    struct memfile_head h;
    struct stat st;
    for (uint64_t i = 10; i < 20; i++)
        fill(i, (uint8_t)i);
    pages_set(bits, 0, MEM / PAGE_SIZE);
    ck_assert_int_eq(save(base, MEMFILE_FULL, 1, 0), 0);
    memset(bits, 0, sizeof(bits));
    fill(10, 0); // became zero
    fill(12, 99);
    fill(500, 98);
    pages_set(bits, 10, 1);
    pages_set(bits, 12, 1);
    pages_set(bits, 500, 1);
    ck_assert_int_eq(save(diff, MEMFILE_DIFF, 2, 1), 0);
    ck_assert_int_eq(memfile_head(diff, &h, NULL, &e), 0);
    ck_assert(h.kind == MEMFILE_DIFF && h.parent[0] == 1);
    ck_assert_int_eq(merge_memory(base, diff, out, &e), 0);
    ck_assert_int_eq(memfile_head(out, &h, NULL, &e), 0);
    ck_assert(h.kind == MEMFILE_FULL && h.id[0] == 2);
    uint8_t *want = malloc(MEM);
    memcpy(want, page(0), MEM);
    ck_assert_int_eq(mem_back_file(&m, out, MEM_PAGES_SMALL, &e), 0);
    ck_assert_int_eq(memcmp(want, page(0), MEM), 0);
    free(want);
    ck_assert_int_eq(fstat(out, &st), 0);
    ck_assert_int_le(st.st_blocks * 512, 12 * 4096); // 9 of base, 1 new, the trailer
    // What does not belong together is not merged.
    ck_assert_int_lt(merge_memory(diff, base, temp_file(), &e), 0);
    ck_assert_int_lt(merge_memory(out, diff, temp_file(), &e), 0);
    ck_assert_ptr_nonnull(strstr(e.msg, "another snapshot"));
    ck_assert_int_lt(merge_memory(base, base, temp_file(), &e), 0);
}
END_TEST

// A copy that filled the holes of a Diff still holds the same pages.
START_TEST(diff_without_holes)
{
    _cleanup_(close_fdp) int base = temp_file(), diff = temp_file(), out = temp_file(),
                             fat = temp_file();
    static uint8_t buf[MEM + 2 * PAGE_SIZE];
    fill(1, 1);
    pages_set(bits, 0, MEM / PAGE_SIZE);
    ck_assert_int_eq(save(base, MEMFILE_FULL, 1, 0), 0);
    memset(bits, 0, sizeof(bits));
    fill(2, 2);
    pages_set(bits, 2, 1);
    ck_assert_int_eq(save(diff, MEMFILE_DIFF, 2, 1), 0);
    ssize_t n = pread(diff, buf, sizeof(buf), 0);
    ck_assert_int_eq(pwrite(fat, buf, (size_t)n, 0), n);
    ck_assert_int_eq(merge_memory(base, fat, out, &e), 0);
    ck_assert_int_eq(mem_back_file(&m, out, MEM_PAGES_SMALL, &e), 0);
    ck_assert(page(1)[0] == 1 && page(2)[0] == 2);
}
END_TEST

START_TEST(damaged_trailers)
{
    for (int kind = MEMFILE_FULL; kind <= MEMFILE_DIFF; kind++) {
        _cleanup_(close_fdp) int fd = temp_file();
        struct memfile_head h;
        struct stat st;
        pages_set(bits, 2, 3);
        fill(2, 2);
        ck_assert_int_eq(save(fd, (enum memfile_kind)kind, 1, 2), 0);
        for (uint64_t bit = 0; bit < 64 * 8; bit++) {
            uint8_t b;
            off_t at = (off_t)(MEM + bit / 8);
            ck_assert_int_eq(pread(fd, &b, 1, at), 1);
            b ^= (uint8_t)(1 << bit % 8);
            ck_assert_int_eq(pwrite(fd, &b, 1, at), 1);
            ck_assert_int_lt(memfile_head(fd, &h, NULL, &e), 0);
            b ^= (uint8_t)(1 << bit % 8);
            ck_assert_int_eq(pwrite(fd, &b, 1, at), 1);
        }
        ck_assert_int_eq(memfile_head(fd, &h, NULL, &e), 0);
        ck_assert_int_eq(fstat(fd, &st), 0);
        for (off_t cut = 1; cut < 6000; cut += 100) {
            ck_assert_int_eq(ftruncate(fd, st.st_size - cut), 0);
            ck_assert_int_lt(memfile_head(fd, &h, NULL, &e), 0);
        }
    }
}
END_TEST

// ---- hostile states

static struct vm *vm;

static void vm_setup(void)
{
    struct vm_opts o = {.id = "unit", .serial_out = -1, .serial_in = -1};
    ck_assert_msg(vm_new(&vm, &o, &e) == 0, "%s", e.msg);
    ck_assert_int_eq(vm_arm(vm, &e), 0);
}

// A state as this host's KVM makes it, without devices.
static void natural(uint8_t *buf, size_t *len)
{
    struct vm_saved *s = blob_sample(1);
    struct vm_restore_opts o = {.any_cpu = true};
    struct vm *other = vm;
    vm_setup();
    s->ndevs = 0;
    s->machine.smt = false;
    memset(&s->vcpu[0].regs, 0, sizeof(s->vcpu[0].regs));
    s->vcpu[0].nmsrs = 0;
    s->cpuid = vm->cpuid;
    s->serial.rx_len = 0;
    memset(&s->ioapic, 0, sizeof(s->ioapic));
    memset(&s->i8042, 0, sizeof(s->i8042));
    memset(s->vcpu[0].lapic.regs, 0, sizeof(s->vcpu[0].lapic.regs));
    s->vcpu[0].events.sipi_vector = 0;
    memset(s->vcpu[0].xsave, 0, VCPU_XSAVE_MAX);
    s->vcpu[0].xsave_size = 4096;
    int rc = vm_restore_shape(vm, s, &o, &e);
    if (rc == 0)
        rc = mem_back_anon(vm_mem(vm), false, &e);
    if (rc == 0)
        rc = vm_restore(vm, s, &o, &e);
    ck_assert_msg(rc == 0, "%s", e.msg);
    ck_assert_int_eq(vm_save(vm, s, &e), 0);
    *len = blob_make(s, buf);
    vm_saved_free(s);
    vm_free(vm);
    vm = other;
}

static int try_load(const uint8_t *buf, size_t len)
{
    struct vm_restore_opts o = {.new_identity = true};
    struct snap_blob b;
    struct vm_saved *s = NULL;
    int rc = codec_decode(buf, len, &b, &s, &e);
    if (rc)
        return rc;
    rc = vm_restore_shape(vm, s, &o, &e);
    if (rc == 0) {
        rc = mem_back_anon(vm_mem(vm), false, &e);
        if (rc == 0)
            rc = vm_restore(vm, s, &o, &e);
        if (rc)
            vm_restore_undo(vm);
    }
    vm_saved_free(s);
    return rc;
}

// Each byte of each section in turn, under a right checksum: taken or refused, in either case the process
// stands and the next good state loads. Big tables of bytes (XSAVE, LAPIC) are sampled.
START_TEST(hostile_values)
{
    static uint8_t good[SNAP_STATE_MAX], bad[SNAP_STATE_MAX];
    size_t len, taken = 0, refused = 0;
    natural(good, &len);
    vm_setup();
    for (size_t i = SNAP_HEAD + (size_t)_i; i < len; i += 24) {
        memcpy(bad, good, len);
        bad[i] ^= 0xff;
        blob_seal(bad, len);
        e.msg[0] = 0;
        if (try_load(bad, len)) {
            ck_assert_msg(e.msg[0], "byte %zu: refused without a word", i);
            refused++;
            continue;
        }
        taken++;
        vm_free(vm);
        vm_setup();
    }
    ck_assert_uint_gt(taken, 0);
    ck_assert_uint_gt(refused, 0);
    ck_assert_msg(try_load(good, len) == 0, "%s", e.msg);
    ck_assert_int_eq(vm_resume(vm, &e), 0);
    vm_free(vm);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("snapshot");
    TCase *t = tcase_create("memory files");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, runs);
    tcase_add_test(t, own_pages);
    tcase_add_test(t, own_pages_over_a_file);
    tcase_add_test(t, full);
    tcase_add_test(t, merge);
    tcase_add_test(t, diff_without_holes);
    tcase_add_test(t, damaged_trailers);
    suite_add_tcase(s, t);
    TCase *k = tcase_create("hostile states");
    tcase_set_timeout(k, 120);
    if (!kvm_is_ours())
        printf("SKIP: hostile_values: no access to /dev/kvm\n");
    else
        tcase_add_loop_test(k, hostile_values, 0, 6);
    suite_add_tcase(s, k);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int bad = srunner_ntests_failed(r);
    srunner_free(r);
    return bad ? EXIT_FAILURE : EXIT_SUCCESS;
}
