// SPDX-License-Identifier: Apache-2.0
// ACPI tables (ACPI 6.3): RSDP, XSDT, FADT of a hardware-reduced machine, MADT, DSDT.
#include "vmm/boot/aml.h"
#include "vmm/boot/load.h"
#include "vmm/dev/platform.h"

#define TABLE_MAX  8192 // 16 devices make a DSDT of less than 3 KiB
#define HEADER_LEN 36
#define FADT_LEN   276
#define ACPI_ID    "MAYFLY" // OEM id, 6 bytes

// Where the next table goes; tables follow the RSDP, 16-byte aligned.
struct place {
    const struct guest_mem *m;
    uint64_t next;
};

static uint8_t checksum(const uint8_t *p, size_t n)
{
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += p[i];
    return (uint8_t)-sum;
}

static void gas_io(uint8_t *p, uint16_t port) // Generic Address Structure, section 5.2.3.2
{
    p[0] = 1; // system I/O space
    p[1] = 8; // bits wide
    p[3] = 1; // byte access
    le64_put(p + 4, port);
}

// Starts a table in t: header with the length still open.
static struct aml table(uint8_t t[TABLE_MAX], const char *sig, uint8_t revision)
{
    memset(t, 0, HEADER_LEN);
    memcpy(t, sig, 4);
    t[8] = revision;
    memcpy(t + 10, ACPI_ID "MAYFLYVM", 14); // OEM id and table id
    le32_put(t + 24, 1);
    memcpy(t + 28, "MAYF", 4); // creator
    le32_put(t + 32, 1);
    return (struct aml){.p = t, .n = HEADER_LEN, .cap = TABLE_MAX};
}

// Completes a table and writes it; returns its address, or 0 when there is no room.
static uint64_t emit(struct place *at, struct aml *a)
{
    const uint64_t addr = at->next;
    if (a->overflow || addr + a->n > BOOT_ACPI_END)
        return 0;
    le32_put(a->p + 4, (uint32_t)a->n);
    a->p[9] = checksum(a->p, a->n);
    at->next = ALIGN_UP(addr + a->n, 16ULL);
    return mem_write(at->m, addr, a->p, a->n) < 0 ? 0 : addr;
}

// Processors and the interrupt controller. No PC/AT PIC (flag 0 clear), so no overrides: a GSI is
// an IOAPIC pin.
static uint64_t madt(struct place *at, unsigned vcpus)
{
    uint8_t t[TABLE_MAX];
    struct aml a = table(t, "APIC", 5);
    uint8_t head[8] = {0};
    le32_put(head, (uint32_t)PLAT_LAPIC);
    aml_bytes(&a, head, sizeof(head));
    for (unsigned i = 0; i < vcpus; i++) { // type 0: processor uid, APIC id, enabled
        const uint8_t cpu[8] = {0, 8, (uint8_t)i, (uint8_t)i, 1};
        aml_bytes(&a, cpu, sizeof(cpu));
    }
    uint8_t ioapic[12] = {1, 12, 0}; // type 1: id 0, first GSI 0
    le32_put(ioapic + 4, (uint32_t)PLAT_IOAPIC);
    aml_bytes(&a, ioapic, sizeof(ioapic));
    return emit(at, &a);
}

static uint64_t fadt(struct place *at, uint64_t dsdt)
{
    uint8_t t[TABLE_MAX];
    struct aml a = table(t, "FACP", 6);
    memset(t + HEADER_LEN, 0, FADT_LEN - HEADER_LEN);
    a.n = FADT_LEN;
    le16_put(t + 109, 1 << 1 | 1 << 2 | 1 << 5); // boot flags: 8042 present, no VGA, no CMOS clock
    // WBINVD, C1 works, no fixed power or sleep button, reset register, hardware-reduced.
    le32_put(t + 112, 1U << 0 | 1U << 2 | 1U << 4 | 1U << 5 | 1U << 10 | 1U << 20);
    gas_io(t + 116, PLAT_I8042_CMD); // reset: pulse the CPU reset line
    t[128] = 0xfe;
    t[131] = 3; // minor version
    le64_put(t + 140, dsdt);
    gas_io(t + 244, PLAT_ACPI_SLEEP);
    gas_io(t + 256, PLAT_ACPI_SLEEP + 1);
    memcpy(t + 268, "MAYFLYVM", 8); // hypervisor vendor identity
    return emit(at, &a);
}

static void virtio_device(struct aml *a, unsigned i, const struct boot_dev *d)
{
    char seg[8];
    snprintf(seg, sizeof(seg), "V%03u", i % 1000);
    const size_t dev = aml_device(a, seg, "LNRO0005");
    aml_name_int(a, "_UID", i);
    aml_name_int(a, "_CCA", 1); // DMA is coherent
    const size_t crs = aml_crs_open(a);
    aml_crs_memory(a, d->mmio, PAGE_SIZE);
    aml_crs_irq(a, d->gsi);
    aml_crs_close(a, crs);
    aml_close(a, dev);
}

static void legacy_devices(struct aml *a)
{
    size_t dev = aml_device(a, "COM1", "PNP0501");
    aml_name_int(a, "_UID", 0);
    size_t crs = aml_crs_open(a);
    aml_crs_io(a, PLAT_COM1, 8);
    aml_crs_irq(a, PLAT_COM1_GSI);
    aml_crs_close(a, crs);
    aml_close(a, dev);

    dev = aml_device(a, "PS2_", "PNP0303");
    crs = aml_crs_open(a);
    aml_crs_io(a, PLAT_I8042_DATA, 1);
    aml_crs_io(a, PLAT_I8042_CMD, 1);
    aml_crs_irq(a, PLAT_I8042_GSI);
    aml_crs_close(a, crs);
    aml_close(a, dev);
}

// If (Arg0 == gsi) { Notify (device, 0x80) }
static void notify_on(struct aml *a, uint32_t gsi, const char *seg)
{
    const size_t cond = aml_open(a, AML_IF);
    aml_bytes(a, (const uint8_t[]){0x93, 0x68}, 2); // LEqual (Arg0,
    aml_int(a, gsi);
    aml_u8(a, 0x86); // Notify
    aml_bytes(a, seg, 4);
    aml_int(a, 0x80);
    aml_close(a, cond);
}

// What tells a guest that it has been cloned: the Generation ID (Microsoft's specification) and the
// VMClock page, with the generic event device (section 5.6.9) whose interrupts say "look again".
static void identity_devices(struct aml *a)
{
    size_t dev = aml_device(a, "VGEN", "MAYF0001");
    aml_name(a, "_CID");
    size_t pkg = aml_open(a, AML_PACKAGE);
    aml_u8(a, 2);
    aml_string(a, "VM_Gen_Counter"); // the specification's, longer than ACPI allows
    aml_string(a, "VMGENCTR");       // Hyper-V's, which older Linux needs
    aml_close(a, pkg);
    aml_name_string(a, "_DDN", "VM_Gen_Counter");
    aml_name(a, "ADDR");
    pkg = aml_open(a, AML_PACKAGE);
    aml_u8(a, 2);
    aml_int(a, PLAT_VMGENID & UINT32_MAX);
    aml_int(a, PLAT_VMGENID >> 32);
    aml_close(a, pkg);
    aml_close(a, dev);

    dev = aml_device(a, "VCLK", "AMZNC10C");
    aml_name_string(a, "_CID", "VMCLOCK");
    aml_name_string(a, "_DDN", "VMCLOCK");
    size_t crs = aml_crs_open(a);
    aml_crs_memory(a, PLAT_VMCLOCK, PAGE_SIZE);
    aml_crs_close(a, crs);
    aml_close(a, dev);

    dev = aml_device(a, "GED_", "ACPI0013");
    crs = aml_crs_open(a);
    aml_crs_irq(a, PLAT_GED_GSI);
    aml_crs_irq(a, PLAT_VMCLOCK_GSI);
    aml_crs_close(a, crs);
    const size_t method = aml_open(a, AML_METHOD);
    aml_bytes(a, "_EVT\x09", 5); // one argument, serialized
    notify_on(a, PLAT_GED_GSI, "VGEN");
    notify_on(a, PLAT_VMCLOCK_GSI, "VCLK");
    aml_close(a, method);
    aml_close(a, dev);
}

static uint64_t dsdt(struct place *at, const struct boot_request *rq)
{
    uint8_t t[TABLE_MAX];
    struct aml a = table(t, "DSDT", 2); // 2: integers are 64 bits
    aml_name(&a, "_S5_");
    const size_t pkg = aml_open(&a, AML_PACKAGE);
    aml_u8(&a, 4);
    aml_int(&a, PLAT_ACPI_S5);
    aml_int(&a, PLAT_ACPI_S5);
    aml_bytes(&a, "\0\0", 2); // reserved: two ZeroOp
    aml_close(&a, pkg);
    const size_t scope = aml_open(&a, AML_SCOPE);
    aml_bytes(&a, "\\_SB_", 5);
    for (unsigned i = 0; i < rq->ndevs; i++)
        virtio_device(&a, i, &rq->dev[i]);
    legacy_devices(&a);
    identity_devices(&a);
    aml_close(&a, scope);
    return emit(at, &a);
}

static uint64_t xsdt(struct place *at, uint64_t first, uint64_t second)
{
    uint8_t t[TABLE_MAX];
    struct aml a = table(t, "XSDT", 1);
    aml_bytes(&a, &first, sizeof(first));
    aml_bytes(&a, &second, sizeof(second));
    return emit(at, &a);
}

int acpi_write(const struct boot_request *rq, struct err *e)
{
    struct place at = {.m = rq->mem, .next = BOOT_RSDP + 64};
    uint8_t rsdp[36] = "RSD PTR ";
    uint64_t d = dsdt(&at, rq), f = d ? fadt(&at, d) : 0, c = f ? madt(&at, rq->vcpus) : 0;
    uint64_t x = c ? xsdt(&at, f, c) : 0;

    memcpy(rsdp + 9, ACPI_ID, 6);
    rsdp[15] = 2; // revision: has an XSDT, no RSDT
    le32_put(rsdp + 20, sizeof(rsdp));
    le64_put(rsdp + 24, x);
    rsdp[8] = checksum(rsdp, 20);
    rsdp[32] = checksum(rsdp, sizeof(rsdp));
    if (!x || mem_write(rq->mem, BOOT_RSDP, rsdp, sizeof(rsdp)) < 0)
        return err_set(e, EFBIG, "ACPI tables do not fit below 1 MiB");
    return 0;
}
