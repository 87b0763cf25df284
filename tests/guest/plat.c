// SPDX-License-Identifier: Apache-2.0
// The platform: boot information of either protocol, interrupt controllers, timer, time, power.
#include "guest.h"

#define LAPIC           0xfee00000u
#define IOAPIC          0xfec00000u
#define PVH_MAGIC       0x336ec578u
#define E820_RAM        1
#define MSR_DEADLINE    0x6e0
#define MSR_SYSTEM_TIME 0x4b564d01 // KVM clock: its page tells the TSC frequency
#define TIMER_VECTOR    0x20
#define LVT_DEADLINE    (2u << 17)
#define LVT_MASKED      (1u << 16)
#define HEAP_SIZE       (4u << 20)

struct mem_range ram[16];
unsigned ram_n;
uint64_t tsc_khz;
static uint64_t rsdp, ns_mult;
static bool have_deadline;
static uint64_t heap_at = (uint64_t)image_end; // behind the image, so that no loader ever clears it

static int64_t service(int op, uint32_t msr, uint64_t v)
{
    uint32_t lo = (uint32_t)v, hi = (uint32_t)(v >> 32);
    __asm__ volatile("ud2" : "+S"(op), "+a"(lo), "+d"(hi) : "c"(msr) : "memory", "cc");
    return op;
}

void cpu_sleep(void)
{
    service(0, 0, 0);
}

bool msr_write(uint32_t msr, uint64_t v)
{
    return service(1, msr, v) >= 0;
}

_Noreturn void triple_fault(void)
{
    for (;;)
        service(3, 0, 0);
}

_Noreturn void reboot(void)
{
    outb(0x64, 0xfe);
    triple_fault();
}

void *arena(size_t size, size_t align)
{
    heap_at = (heap_at + align - 1) & ~(align - 1);
    void *p = at(heap_at);
    heap_at += size;
    if (heap_at > (uint64_t)image_end + HEAP_SIZE) {
        say("guest: out of memory\n");
        reboot();
    }
    return p;
}

void fault_c(uint64_t vec, uint64_t code, uint64_t rip, uint64_t cr2)
{
    say("guest: exception %lu code 0x%lx rip 0x%lx cr2 0x%lx\n", vec, code, rip, cr2);
    reboot();
}

static void add_ram(uint64_t base, uint64_t size, uint32_t type)
{
    uint64_t lo = ((uint64_t)image_end + HEAP_SIZE + (1 << 20) - 1) & ~((1ull << 20) - 1);
    uint64_t end = (base + size) & ~((1ull << 20) - 1);
    base = MAX((base + (1 << 20) - 1) & ~((1ull << 20) - 1), lo);
    if (type == E820_RAM && base < end && ram_n < ARRAY_SIZE(ram))
        ram[ram_n++] = (struct mem_range){base, end - base};
}

static void copy_cmdline(const char *s)
{
    size_t n = s ? MIN(str_len(s), sizeof(cmdline) - 1) : 0;
    memcpy(cmdline, s, n);
}

static uint64_t get(uint64_t pa, size_t n)
{
    uint64_t v = 0;
    memcpy(&v, at(pa), n);
    return v;
}

static void read_boot_info(void)
{
    uint64_t b = boot_info;
    if (boot_pvh && get(b, 4) == PVH_MAGIC) { // hvm_start_info
        copy_cmdline(at(get(b + 24, 8)));
        rsdp = get(b + 32, 8);
        uint64_t map = get(b + 40, 8), n = get(b + 4, 4) ? get(b + 48, 4) : 0;
        for (uint64_t e = map; n--; e += 24)
            add_ram(get(e, 8), get(e + 8, 8), (uint32_t)get(e + 16, 4));
    } else { // boot_params
        copy_cmdline(at(get(b + 0x228, 4) | get(b + 0xc8, 4) << 32));
        rsdp = get(b + 0x70, 8);
        uint64_t n = get(b + 0x1e8, 1);
        for (uint64_t e = b + 0x2d0; n--; e += 20)
            add_ram(get(e, 8), get(e + 8, 8), (uint32_t)get(e + 16, 4));
    }
}

void map_ram(uint64_t pa, uint64_t len)
{
    for (uint64_t g = pa >> 30; g <= (pa + len - 1) >> 30 && g < 512; g++) {
        if (pdpt[g])
            continue;
        uint64_t *pd = arena(4096, 4096);
        for (uint64_t i = 0; i < 512; i++)
            pd[i] = g << 30 | i << 21 | 0x87;
        BARRIER(); // from not present to present: no flush is due, but the table must be whole
                   // first
        pdpt[g] = (uint64_t)pd | 7;
    }
}

// ---- time ----

static uint64_t khz_from_cpuid(void)
{
    uint32_t r[4], a[4];
    cpuid(0, r);
    if (r[0] >= 0x15) {
        cpuid(0x15, a);
        if (a[0] && a[1] && a[2])
            return (uint64_t)a[2] * a[1] / a[0] / 1000;
    }
    cpuid(0x40000000, r);
    if (r[0] >= 0x40000010 && r[0] < 0x40001000) {
        cpuid(0x40000010, a);
        return a[0];
    }
    return 0;
}

static uint64_t khz_from_kvmclock(void)
{
    static volatile uint32_t page[8] __attribute__((aligned(32)));
    uint64_t pa = (uint64_t)page;
    if (!msr_write(MSR_SYSTEM_TIME, pa | 1))
        return 0;
    uint64_t mul = page[6]; // tsc_to_system_mul; the shift is the byte behind it
    int8_t shift = (int8_t)page[7];
    msr_write(MSR_SYSTEM_TIME, 0);
    if (!mul)
        return 0;
    uint64_t khz = (1000000ull << 32) / mul;
    return shift < 0 ? khz << -shift : khz >> shift;
}

// The local APIC's timer counts nanoseconds in KVM: 2 ms against the TSC, when nothing better is
// told.
static uint64_t khz_from_apic(void)
{
    wr32(LAPIC + 0x320, LVT_MASKED | TIMER_VECTOR);
    wr32(LAPIC + 0x380, ~0u);
    uint64_t t = rdtsc();
    while (~0u - rd32(LAPIC + 0x390) < 2000000)
        ;
    t = (rdtsc() - t) / 2;
    wr32(LAPIC + 0x380, 0);
    return t;
}

static void time_init(void)
{
    uint32_t r[4];
    cpuid(1, r);
    wr32(LAPIC + 0x3e0, 0xb); // divide by 1
    tsc_khz = arg_u64("tsc_khz", 0);
    if (!tsc_khz)
        tsc_khz = khz_from_cpuid();
    if (!tsc_khz)
        tsc_khz = khz_from_kvmclock();
    if (!tsc_khz)
        tsc_khz = khz_from_apic();
    ns_mult = (1000000ull << 32) / tsc_khz;
    // CPUID may show the host's bit rather than the one KVM acts on: ask the register itself.
    if (r[2] & 1u << 24) {
        wr32(LAPIC + 0x320, LVT_DEADLINE | TIMER_VECTOR);
        have_deadline = rd32(LAPIC + 0x320) & LVT_DEADLINE;
    }
    if (!have_deadline)
        wr32(LAPIC + 0x320, TIMER_VECTOR);
}

uint64_t tsc_ns(uint64_t cycles)
{
    return (uint64_t)((unsigned __int128)cycles * ns_mult >> 32);
}

void timer_at(uint64_t tsc)
{
    if (have_deadline) {
        msr_write(MSR_DEADLINE, tsc);
        return;
    }
    uint64_t now = rdtsc(), ns = 0;
    if (tsc)
        ns = tsc > now ? MIN(tsc_ns(tsc - now) + 1, 0xffffffffu) : 1;
    wr32(LAPIC + 0x380, (uint32_t)ns);
}

// ---- interrupts ----

void irq_route(uint32_t gsi, unsigned n)
{
    wr32(IOAPIC, 0x10 + 2 * gsi + 1); // destination: local APIC 0
    wr32(IOAPIC + 0x10, 0);
    wr32(IOAPIC, 0x10 + 2 * gsi); // edge, active high, fixed, physical, not masked
    wr32(IOAPIC + 0x10, 0x30 + n);
}

static void lapic_init(void)
{
    wr32(LAPIC + 0x350, LVT_MASKED); // LINT0: an old PIC, where there is one, must stay silent
    wr32(LAPIC + 0x0f0, 0x13f);      // enable, spurious vector 0x3f
}

// ---- power ----

static uint64_t find_rsdp(void)
{
    if (rsdp)
        return rsdp;
    for (uint64_t a = 0xe0000; a < 0x100000; a += 16)
        if (mem_eq(at(a), "RSD PTR ", 8))
            return a;
    return 0;
}

// The sleep control register of a hardware-reduced FADT (ACPI 6, 5.2.9), as the command line or the
// tables tell.
static uint64_t sleep_register(bool *port)
{
    uint64_t reg = arg_u64("mayfly.sleep", 0), r = find_rsdp();
    *port = reg < 0x10000;
    if (reg || !r)
        return reg;
    uint64_t xsdt = get(r + 24, 8);
    if (!xsdt || !mem_eq(at(xsdt), "XSDT", 4))
        return 0;
    for (uint64_t i = 36; i + 8 <= get(xsdt + 4, 4); i += 8) {
        uint64_t t = get(xsdt + i, 8);
        if (!mem_eq(at(t), "FACP", 4) || get(t + 4, 4) < 256)
            continue;
        *port = get(t + 244, 1) == 1;
        return get(t + 248, 8);
    }
    return 0;
}

_Noreturn void power_off(void)
{
    bool port;
    uint64_t reg = sleep_register(&port);
    if (reg && port)
        outb((uint16_t)reg, 5 << 2 | 0x20);
    else if (reg)
        wr8(reg, 5 << 2 | 0x20);
    uint64_t until = rdtsc() + us_tsc(200000); // a monitor may end a moment later
    for (uint64_t now; (now = rdtsc()) < until;) {
        wake = 0;
        timer_at(until);
        cpu_sleep();
    }
    say("guest: no power-off here (register 0x%lx): reset instead\n", reg);
    reboot();
}

// Firecracker's boot timer (123 at 3 GiB) and Mayfly's ready port. Elsewhere both fall into
// nothing.
void announce_ready(void)
{
    wr8(0xc0000000, 0x7b);
    outb(0x0dca, 1);
}

void announce_again(void)
{
    outb(0x0dca, 1);
}

void plat_init(void)
{
    read_boot_info();
    lapic_init();
    time_init();
    rand_seed();
}

void start_c(void)
{
    plat_init();
    guest_main();
    power_off();
}
