// SPDX-License-Identifier: Apache-2.0
// ACPI tables (ACPI 6.3): RSDP, XSDT, FADT of a hardware-reduced machine, MADT, DSDT; MP tables.
#include "vmm/boot/load.h"
#include "vmm/dev/platform.h"

#define TABLE_MAX  4096 // 16 devices make a DSDT of about 2 KiB
#define HEADER_LEN 36
#define FADT_LEN   276
#define OEM  \
    "MAYFLY" \
    "MAYFLYVM" // OEM id and table id

// A table under construction. What does not fit is counted and not written; emit refuses it then.
struct table {
    uint8_t p[TABLE_MAX];
    size_t n;
};

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

static void start(struct table *t, const char *sig, uint8_t revision)
{
    memset(t->p, 0, FADT_LEN); // header, and the FADT's mostly empty body
    memcpy(t->p, sig, 4);
    t->p[8] = revision;
    memcpy(t->p + 10, OEM, 14);
    memcpy(t->p + 28, "MAYF", 4); // creator
    t->n = HEADER_LEN;
}

// Completes a table and writes it; returns its address, or 0 when there is no room.
static uint64_t emit(struct place *at, struct table *t)
{
    const uint64_t addr = at->next;
    if (t->n > TABLE_MAX || addr + t->n > BOOT_HIMEM)
        return 0;
    le32_put(t->p + 4, (uint32_t)t->n);
    t->p[9] = checksum(t->p, t->n);
    at->next = ALIGN_UP(addr + t->n, 16ULL);
    return mem_write(at->m, addr, t->p, t->n) < 0 ? 0 : addr;
}

static void put(struct table *t, const void *p, size_t n)
{
    if (t->n + n <= TABLE_MAX)
        memcpy(t->p + t->n, p, n);
    t->n += n;
}

// ACPI Machine Language, chapter 20: only what our DSDT needs.
enum { OP_SCOPE = 0x10, OP_BUFFER = 0x11, OP_PACKAGE = 0x12, OP_METHOD = 0x14, OP_IF = 0xa0 };
#define OP_DEVICE "\x5b\x82" // two bytes

static void op(struct table *t, int code)
{
    const uint8_t c = (uint8_t)code;
    put(t, &c, 1);
}

static void integer(struct table *t, uint32_t v)
{
    op(t, 0x0c); // DWordPrefix
    put(t, &v, 4);
}

// Name (SEG_, ...: the value follows.
static void name(struct table *t, const char *seg)
{
    op(t, 0x08);
    put(t, seg, 4);
}

static void name_string(struct table *t, const char *seg, const char *s)
{
    name(t, seg);
    op(t, 0x0d);
    put(t, s, strlen(s) + 1);
}

// A package length follows the opcode and counts itself: three bytes always, filled in by pkg_end.
static size_t pkg_begin(struct table *t)
{
    put(t, "\0\0", 3);
    return t->n - 3;
}

static void pkg_end(struct table *t, size_t mark)
{
    const size_t len = t->n - mark;
    if (t->n > TABLE_MAX)
        return;
    t->p[mark] = (uint8_t)(0x80 | (len & 0xf)); // two more bytes follow
    t->p[mark + 1] = (uint8_t)(len >> 4);
    t->p[mark + 2] = (uint8_t)(len >> 12);
}

struct device {
    const char *seg, *hid, *cid; // cid NULL: none
    uint32_t uid, mem;           // mem: one page, 0 for none
    uint16_t io[2], io_len;
    uint32_t gsi[2]; // 0: none
};

// Name (_CRS, ResourceTemplate () {...}), section 6.4: a buffer of descriptors.
static void resources(struct table *t, const struct device *d)
{
    name(t, "_CRS");
    op(t, OP_BUFFER);
    const size_t mark = pkg_begin(t), len = t->n + 1;
    put(t, "\x0b\0", 3);                           // buffer size, a word filled in below
    uint8_t mem[12] = {0x86, 9, 0, 1, [9] = 0x10}; // Memory32Fixed, read-write, 0x1000 bytes
    uint8_t io[8] = {0x47, 1, [6] = 1};            // I/O ports, 16 bits decoded, alignment 1
    uint8_t irq[9] = {0x89, 6, 0, 3, 1};           // consumer, edge, active high, exclusive
    le32_put(mem + 4, d->mem);
    if (d->mem)
        put(t, mem, sizeof(mem));
    for (unsigned i = 0; i < 2 && d->io[i]; i++) {
        le16_put(io + 2, d->io[i]);
        le16_put(io + 4, d->io[i]);
        io[7] = (uint8_t)d->io_len;
        put(t, io, sizeof(io));
    }
    for (unsigned i = 0; i < 2 && d->gsi[i]; i++) {
        le32_put(irq + 5, d->gsi[i]);
        put(t, irq, sizeof(irq));
    }
    put(t, "\x79", 2); // end tag
    if (t->n <= TABLE_MAX)
        le16_put(t->p + len, (uint16_t)(t->n - len - 2));
    pkg_end(t, mark);
}

static size_t device_begin(struct table *t, const struct device *d)
{
    put(t, OP_DEVICE, 2);
    const size_t mark = pkg_begin(t);
    put(t, d->seg, 4);
    name_string(t, "_HID", d->hid);
    if (d->cid) {
        name_string(t, "_CID", d->cid);
        name_string(t, "_DDN", d->cid);
    }
    name(t, "_UID");
    integer(t, d->uid);
    if (d->mem || d->gsi[0])
        resources(t, d);
    return mark;
}

static void device(struct table *t, const struct device *d)
{
    pkg_end(t, device_begin(t, d));
}

// Name (SEG_, Package () {a, b})
static void name_pair(struct table *t, const char *seg, uint32_t a, uint32_t b)
{
    name(t, seg);
    op(t, OP_PACKAGE);
    const size_t mark = pkg_begin(t);
    op(t, 2);
    integer(t, a);
    integer(t, b);
    pkg_end(t, mark);
}

// If (Arg0 == gsi) { Notify (device, 0x80) }
static void notify_on(struct table *t, uint32_t gsi, const char *seg)
{
    op(t, OP_IF);
    const size_t mark = pkg_begin(t);
    put(t, "\x93\x68", 2); // LEqual (Arg0,
    integer(t, gsi);
    op(t, 0x86); // Notify
    put(t, seg, 4);
    integer(t, 0x80);
    pkg_end(t, mark);
}

// What tells a guest that it has been cloned: the Generation ID (Microsoft's specification) and the
// VMClock page, with the generic event device (section 5.6.9) whose interrupts say "look again".
static void identity_devices(struct table *t)
{
    size_t mark = device_begin(
        t, &(struct device){.seg = "VGEN", .hid = "MAYF0001", .cid = "VM_Gen_Counter"});
    name_pair(t, "ADDR", PLAT_VMGENID & UINT32_MAX, PLAT_VMGENID >> 32);
    pkg_end(t, mark);
    device(t, &(struct device){
                  .seg = "VCLK", .hid = "AMZNC10C", .cid = "VMCLOCK", .mem = PLAT_VMCLOCK});
    mark = device_begin(t, &(struct device){.seg = "GED_",
                                            .hid = "ACPI0013",
                                            .gsi = {PLAT_GED_GSI, PLAT_VMCLOCK_GSI}});
    op(t, OP_METHOD);
    const size_t method = pkg_begin(t);
    put(t, "_EVT\x09", 5); // one argument, serialized
    notify_on(t, PLAT_GED_GSI, "VGEN");
    notify_on(t, PLAT_VMCLOCK_GSI, "VCLK");
    pkg_end(t, method);
    pkg_end(t, mark);
}

static uint64_t dsdt(struct place *at, const struct boot_request *rq)
{
    struct table t;
    char seg[8];
    start(&t, "DSDT", 2); // 2: integers are 64 bits
    name_pair(&t, "_S5_", PLAT_ACPI_S5, PLAT_ACPI_S5);
    op(&t, OP_SCOPE);
    const size_t scope = pkg_begin(&t);
    put(&t, "\\_SB_", 5);
    for (uint32_t i = 0; i < rq->ndevs; i++) {
        snprintf(seg, sizeof(seg), "V%03u", i % 1000);
        device(&t, &(struct device){.seg = seg,
                                    .hid = "LNRO0005",
                                    .uid = i,
                                    .mem = (uint32_t)rq->dev[i].mmio, // below 4 GiB
                                    .gsi = {rq->dev[i].gsi}});
    }
    device(&t, &(struct device){.seg = "COM1",
                                .hid = "PNP0501",
                                .io = {PLAT_COM1},
                                .io_len = 8,
                                .gsi = {PLAT_COM1_GSI}});
    device(&t, &(struct device){.seg = "PS2_",
                                .hid = "PNP0303",
                                .io = {PLAT_I8042_DATA, PLAT_I8042_CMD},
                                .io_len = 1,
                                .gsi = {PLAT_I8042_GSI}});
    identity_devices(&t);
    pkg_end(&t, scope);
    return emit(at, &t);
}

static void gas_io(uint8_t *p, uint16_t port) // Generic Address Structure, section 5.2.3.2
{
    p[0] = 1; // system I/O space
    p[1] = 8; // bits wide
    p[3] = 1; // byte access
    le64_put(p + 4, port);
}

static uint64_t fadt(struct place *at, uint64_t dsdt_addr)
{
    struct table t;
    start(&t, "FACP", 6);
    t.n = FADT_LEN;
    le16_put(t.p + 109, 1 << 1 | 1 << 2 | 1 << 5); // 8042 present, no VGA, no CMOS clock
    // WBINVD, C1 works, no fixed power or sleep button, reset register, hardware-reduced.
    le32_put(t.p + 112, 1U << 0 | 1U << 2 | 1U << 4 | 1U << 5 | 1U << 10 | 1U << 20);
    gas_io(t.p + 116, PLAT_I8042_CMD); // reset: pulse the CPU reset line
    t.p[128] = 0xfe;
    t.p[131] = 3; // minor version
    le64_put(t.p + 140, dsdt_addr);
    gas_io(t.p + 244, PLAT_ACPI_SLEEP);
    gas_io(t.p + 256, PLAT_ACPI_SLEEP + 1);
    return emit(at, &t);
}

// Processors and the interrupt controller. No PC/AT PIC (flag 0 clear), so no overrides: a GSI is
// an IOAPIC pin.
static uint64_t madt(struct place *at, unsigned vcpus)
{
    struct table t;
    uint8_t head[8] = {0}, ioapic[12] = {1, 12}; // type 1: id 0, first GSI 0
    start(&t, "APIC", 5);
    le32_put(head, (uint32_t)PLAT_LAPIC);
    put(&t, head, sizeof(head));
    for (unsigned i = 0; i < vcpus; i++) // type 0: processor uid, APIC id, enabled
        put(&t, (const uint8_t[]){0, 8, (uint8_t)i, (uint8_t)i, 1, 0, 0, 0}, 8);
    le32_put(ioapic + 4, (uint32_t)PLAT_IOAPIC);
    put(&t, ioapic, sizeof(ioapic));
    return emit(at, &t);
}

// The tables of Intel's MultiProcessor Specification 1.4, chapter 4. Who has ACPI needs none, but Linux looks for them all
// the same, and one that finds none goes through the BIOS's 64 KiB, remapping them every 16 bytes: 4.9 million
// instructions in 6.12.
static bool mp_write(const struct boot_request *rq)
{
    struct table t = {.n = 44, .p = "PCMP\0\0\4"}; // header of 44 bytes, specification 1.4
    const uint8_t id = (uint8_t)rq->vcpus;         // of the IOAPIC: the first that no processor has
    uint8_t ioapic[8] = {2, id, 0x20, 1};          // version as it says itself, usable
    uint8_t found[16] = "_MP_\0\0\0\0\1\4";        // 1: length in 16 bytes

    memcpy(t.p + 8, "MAYFLY  MAYFLYVM    ", 20);
    le16_put(t.p + 34, (uint16_t)(rq->vcpus + 2 + PLAT_IOAPIC_PINS + 2));
    le32_put(t.p + 36, (uint32_t)PLAT_LAPIC);
    for (unsigned i = 0; i < rq->vcpus; i++) // type 0: enabled, the first one boots; FPU and APIC
        put(&t, (const uint8_t[20]){0, (uint8_t)i, 0x14, i ? 1 : 3, [8] = 1, [9] = 2}, 20);
    put(&t, "\1\0ISA   ", 8); // bus 0
    le32_put(ioapic + 4, (uint32_t)PLAT_IOAPIC);
    put(&t, ioapic, sizeof(ioapic));
    for (unsigned i = 0; i < PLAT_IOAPIC_PINS; i++) // type 3: as the bus has them, edge and high
        put(&t, (const uint8_t[8]){3, [5] = (uint8_t)i, [6] = id, [7] = (uint8_t)i}, 8);
    put(&t, (const uint8_t[8]){4, 3}, 8);                // ExtINT to LINT0 of the first processor
    put(&t, (const uint8_t[8]){4, 1, [6] = 0xff, 1}, 8); // NMI to LINT1 of all
    le16_put(t.p + 4, (uint16_t)t.n);
    t.p[7] = checksum(t.p, t.n);
    le32_put(found + 4, BOOT_EBDA + sizeof(found));
    found[10] = checksum(found, sizeof(found));
    return mem_write(rq->mem, BOOT_EBDA, found, sizeof(found)) == 0 &&
           mem_write(rq->mem, BOOT_EBDA + sizeof(found), t.p, t.n) == 0;
}

int acpi_write(const struct boot_request *rq, struct err *e)
{
    struct place at = {.m = rq->mem, .next = BOOT_RSDP + 64};
    struct table xsdt;
    uint8_t rsdp[36] = "RSD PTR ";
    const uint64_t d = dsdt(&at, rq), list[2] = {fadt(&at, d), madt(&at, rq->vcpus)};

    start(&xsdt, "XSDT", 1);
    put(&xsdt, list, sizeof(list));
    const uint64_t x = emit(&at, &xsdt);
    memcpy(rsdp + 9, OEM, 6);
    rsdp[15] = 2; // revision: has an XSDT, no RSDT
    le32_put(rsdp + 20, sizeof(rsdp));
    le64_put(rsdp + 24, x);
    rsdp[8] = checksum(rsdp, 20);
    rsdp[32] = checksum(rsdp, sizeof(rsdp));
    if (!d || !list[0] || !list[1] || !x || mem_write(rq->mem, BOOT_RSDP, rsdp, sizeof(rsdp)) < 0 ||
        !mp_write(rq))
        return err_set(e, EFBIG, "ACPI tables do not fit below 1 MiB");
    return 0;
}
