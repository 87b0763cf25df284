// SPDX-License-Identifier: Apache-2.0
// ACPI tables: structure and checksums by walking from the RSDP as a guest does; ACPICA's compiler
// as a second opinion; VMGenID and VMClock.
#include "boot_util.h"

#include <fcntl.h>

#include "vmm/boot/identity.h"
#include "vmm/dev/platform.h"

static struct guest_mem m;
static struct boot_request rq;
static struct err e;

static void setup(void)
{
    ram(&m, 2 * MIB);
    memset(&rq, 0, sizeof(rq));
    rq.mem = &m;
    rq.vcpus = 2;
    rq.ndevs = CFG_MAX_DEVS;
    for (unsigned i = 0; i < CFG_MAX_DEVS; i++)
        rq.dev[i] = (struct boot_dev){PLAT_VIRTIO + i * 0x1000, PLAT_VIRTIO_GSI + i};
}

static void teardown(void)
{
    mem_free(&m);
}

static void sums_to_zero(const uint8_t *p, size_t n)
{
    uint8_t s = 0;
    for (size_t i = 0; i < n; i++)
        s = (uint8_t)(s + p[i]);
    ck_assert_uint_eq(s, 0);
}

// A table with its header checked; *len is its length.
static const uint8_t *table(uint64_t gpa, const char *sig, uint32_t *len)
{
    ck_assert(gpa > BOOT_RSDP && gpa < BOOT_HIMEM);
    *len = le32_get(at(&m, gpa + 4, 4));
    ck_assert(*len >= 36 && gpa + *len <= BOOT_HIMEM);
    const uint8_t *t = at(&m, gpa, *len);
    ck_assert_mem_eq(t, sig, 4);
    sums_to_zero(t, *len);
    return t;
}

struct found {
    const uint8_t *fadt, *madt, *dsdt, *xsdt;
    uint32_t fadt_len, madt_len, dsdt_len, xsdt_len;
};

static void walk(struct found *f)
{
    const uint8_t *r = at(&m, BOOT_RSDP, 36);
    ck_assert_mem_eq(r, "RSD PTR ", 8);
    ck_assert_uint_eq(r[15], 2);
    sums_to_zero(r, 20);
    sums_to_zero(r, 36);
    f->xsdt = table(le64_get(r + 24), "XSDT", &f->xsdt_len);
    ck_assert_uint_eq(f->xsdt_len, 36 + 16);
    f->fadt = table(le64_get(f->xsdt + 36), "FACP", &f->fadt_len);
    f->madt = table(le64_get(f->xsdt + 44), "APIC", &f->madt_len);
    f->dsdt = table(le64_get(f->fadt + 140), "DSDT", &f->dsdt_len);
}

START_TEST(tables_are_whole)
{
    struct found f;
    ck_assert_int_eq(acpi_write(&rq, &e), 0);
    walk(&f);
    ck_assert_uint_eq(f.fadt_len, 276);
    ck_assert_uint_eq(f.fadt[8], 6);
    ck_assert_uint_ne(le32_get(f.fadt + 112) & 1U << 20, 0); // hardware-reduced
    ck_assert_uint_eq(le64_get(f.fadt + 248), PLAT_ACPI_SLEEP);
    ck_assert_uint_eq(le64_get(f.fadt + 260), PLAT_ACPI_SLEEP + 1);
    ck_assert_uint_eq(f.dsdt[8], 2);
    const struct area a[] = {{BOOT_RSDP, BOOT_HIMEM - BOOT_RSDP}, {BOOT_EBDA, 1024}};
    only_written(&m, a, 2);
}
END_TEST

START_TEST(madt_lists_processors)
{
    for (rq.vcpus = 1; rq.vcpus <= CFG_MAX_VCPUS; rq.vcpus++) {
        struct found f;
        unsigned cpus = 0, ioapics = 0;
        ck_assert_int_eq(acpi_write(&rq, &e), 0);
        walk(&f);
        ck_assert_uint_eq(le32_get(f.madt + 36), PLAT_LAPIC);
        ck_assert_uint_eq(le32_get(f.madt + 40), 0); // no PC/AT interrupt controllers
        uint32_t i = 44;
        for (; i < f.madt_len; i += f.madt[i + 1]) {
            ck_assert_uint_gt(f.madt[i + 1], 0);
            if (f.madt[i] == 0) {
                ck_assert_uint_eq(f.madt[i + 3], cpus++);
                ck_assert_uint_eq(le32_get(f.madt + i + 4), 1);
            } else {
                ck_assert_uint_eq(f.madt[i], 1);
                ck_assert_uint_eq(le32_get(f.madt + i + 4), PLAT_IOAPIC);
                ck_assert_uint_eq(le32_get(f.madt + i + 8), 0);
                ioapics++;
            }
        }
        ck_assert_uint_eq(i, f.madt_len);
        ck_assert_uint_eq(cpus, rq.vcpus);
        ck_assert_uint_eq(ioapics, 1);
    }
}
END_TEST

// Found and walked as Linux does (arch/x86/kernel/mpparse.c).
START_TEST(mp_tables)
{
    const unsigned size[] = {20, 8, 8, 8, 8}, cpus[] = {1, 2, CFG_MAX_VCPUS};
    for (unsigned k = 0; k < ARRAY_SIZE(cpus); k++) {
        unsigned seen[5] = {0};
        rq.vcpus = cpus[k];
        ck_assert_msg(acpi_write(&rq, &e) == 0, "%s", e.msg);
        const uint8_t *f = at(&m, 639 * 1024, 16);
        ck_assert_mem_eq(f, "_MP_", 4);
        ck_assert_uint_eq(f[8], 1);
        ck_assert_uint_eq(f[11], 0); // not one of the default configurations: there is a table
        sums_to_zero(f, 16);
        const uint32_t gpa = le32_get(f + 4);
        const unsigned len = le16_get(at(&m, gpa, 44) + 4);
        const uint8_t *t = at(&m, gpa, len);
        ck_assert(gpa >= 639 * 1024 + 16 && gpa + len <= 0xa0000);
        ck_assert_mem_eq(t, "PCMP", 4);
        sums_to_zero(t, len);
        ck_assert_uint_eq(le32_get(t + 36), PLAT_LAPIC);
        unsigned off = 44, n = 0;
        for (; off < len; off += size[t[off]], n++) {
            ck_assert_uint_lt(t[off], 5);
            const uint8_t *x = t + off;
            const unsigned i = seen[x[0]]++;
            if (x[0] == 0) {
                ck_assert_uint_eq(x[1], i);
                ck_assert_uint_eq(x[3], i ? 1 : 3);
            } else if (x[0] == 2) {
                ck_assert_uint_eq(x[1], rq.vcpus);
                ck_assert_uint_eq(le32_get(x + 4), PLAT_IOAPIC);
            } else if (x[0] == 3) { // pin for pin
                ck_assert_uint_eq(x[5], i);
                ck_assert_uint_eq(x[6], rq.vcpus);
                ck_assert_uint_eq(x[7], i);
            }
        }
        ck_assert_uint_eq(off, len);
        ck_assert_uint_eq(n, le16_get(t + 34));
        const unsigned want[5] = {cpus[k], 1, 1, PLAT_IOAPIC_PINS, 2};
        ck_assert_mem_eq(seen, want, sizeof(want));
    }
}
END_TEST

START_TEST(any_number_of_devices)
{
    for (rq.ndevs = 0; rq.ndevs <= CFG_MAX_DEVS; rq.ndevs++) {
        struct found f;
        unsigned hids = 0;
        ck_assert_int_eq(acpi_write(&rq, &e), 0);
        walk(&f);
        for (uint32_t i = 36; i + 8 < f.dsdt_len; i++)
            hids += memcmp(f.dsdt + i, "LNRO0005", 8) == 0;
        ck_assert_uint_eq(hids, rq.ndevs);
    }
}
END_TEST

static bool has_iasl(void)
{
    return system("command -v iasl >/dev/null 2>&1") == 0;
}

static void dump(const char *dir, const char *name, const uint8_t *p, uint32_t n)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s.dat", dir, name);
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(p, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

// ACPICA reads every table without complaint and compiles what it read from the DSDT again.
START_TEST(acpica_agrees)
{
    struct found f;
    char dir[] = P_tmpdir "/mayfly-acpi-XXXXXX", cmd[1024];
    if (!has_iasl()) {
        printf("SKIP: acpica_agrees: no iasl (package acpica-tools)\n");
        return;
    }
    ck_assert_int_eq(acpi_write(&rq, &e), 0);
    walk(&f);
    ck_assert_ptr_nonnull(mkdtemp(dir));
    dump(dir, "dsdt", f.dsdt, f.dsdt_len);
    dump(dir, "facp", f.fadt, f.fadt_len);
    dump(dir, "apic", f.madt, f.madt_len);
    dump(dir, "xsdt", f.xsdt, f.xsdt_len);
    snprintf(cmd, sizeof(cmd),
             "cd %s && for t in dsdt facp apic xsdt; do iasl -d $t.dat >>log 2>&1 || exit 1; done;"
             "! grep -iE 'warning|error|invalid|unknown' log || exit 2;"
             "! grep -iE 'warning|error|invalid|unknown' *.dsl || exit 3;"
             "iasl dsdt.dsl >compiled 2>&1 || { cat compiled; exit 4; };"
             "grep -q '0 Errors, 0 Warnings' compiled || { cat compiled; exit 5; }",
             dir);
    const int rc = system(cmd);
    ck_assert_msg(rc == 0, "iasl: step %d failed", WEXITSTATUS(rc));
    static const char *const want[] = {"Device (V015)", "\"VM_Gen_Counter\"", "Notify (VCLK",
                                       "0xC0010000", "Name (_S5"};
    for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
        snprintf(cmd, sizeof(cmd), "grep -qF '%s' %s/dsdt.dsl", want[i], dir);
        ck_assert_msg(system(cmd) == 0, "the DSDT does not say: %s", want[i]);
    }
    snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
    ck_assert_int_eq(system(cmd), 0);
}
END_TEST

START_TEST(identity)
{
    static const uint8_t one[16] = {1, 2, 3}, two[16] = {9, 8, 7};
    vmgenid_init(&m, one);
    ck_assert_mem_eq(at(&m, PLAT_VMGENID, 16), one, 16);
    const uint8_t *c = at(&m, PLAT_VMCLOCK, 112);
    ck_assert_mem_eq(c, "VCLK", 4);
    ck_assert_uint_eq(le32_get(c + 4), 4096);
    ck_assert_uint_eq(le16_get(c + 8), 1);
    ck_assert_uint_eq(le64_get(c + 104), 0);

    vmgenid_bump(&m, two);
    ck_assert_mem_eq(at(&m, PLAT_VMGENID, 16), two, 16);
    ck_assert_uint_eq(le32_get(c + 12), 2);
    ck_assert_uint_eq(le64_get(c + 16), 1);
    ck_assert_uint_eq(le64_get(c + 104), 1);

    vmclock_disrupt(&m);
    ck_assert_mem_eq(at(&m, PLAT_VMGENID, 16), two, 16);
    ck_assert_uint_eq(le32_get(c + 12), 4);
    ck_assert_uint_eq(le64_get(c + 16), 2);
    ck_assert_uint_eq(le64_get(c + 104), 1);

    // A guest that scribbled over its page gets a whole one back; the sequence number is even.
    memset(mem_at(&m, PLAT_VMCLOCK, 112, MEM_WRITE), 0xff, 112);
    vmgenid_bump(&m, one);
    ck_assert_mem_eq(c, "VCLK", 4);
    ck_assert_uint_eq(le32_get(c + 12) & 1, 0);
    ck_assert_uint_eq(le64_get(c + 104), 0); // wrapped
    const struct area a[] = {{PLAT_VMGENID, 16}, {PLAT_VMCLOCK, 112}};
    only_written(&m, a, 2);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("acpi");
    TCase *t = tcase_create("acpi");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, tables_are_whole);
    tcase_add_test(t, madt_lists_processors);
    tcase_add_test(t, mp_tables);
    tcase_add_test(t, any_number_of_devices);
    tcase_add_test(t, acpica_agrees);
    tcase_add_test(t, identity);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
