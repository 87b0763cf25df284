// SPDX-License-Identifier: Apache-2.0
// What the guests' shell cannot do: prints CPUID of every processor, and misbehaves on purpose.
//
//   probe cpuid    probe ports    probe mmio    probe msrs    probe ipis
//
// The misbehaving ones run as root in a guest that may die of it; its monitor may not.
#include <cpuid.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <unistd.h>

static int on_cpu(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    return sched_setaffinity(0, sizeof(set), &set);
}

static void leaf(int cpu, uint32_t n, uint32_t sub)
{
    uint32_t a, b, c, d;
    __cpuid_count(n, sub, a, b, c, d);
    printf("cpuid %d %08x %x: %08x %08x %08x %08x\n", cpu, n, sub, a, b, c, d);
}

static int cpuid(void)
{
    static const uint32_t leaves[] = {0x0,        0x1,        0x6,        0x7,
                                      0x15,       0x40000000, 0x40000001, 0x80000001,
                                      0x80000007, 0x80000008, 0x8000001e};
    long n = sysconf(_SC_NPROCESSORS_CONF);
    for (int cpu = 0; cpu < n; cpu++) {
        if (on_cpu(cpu))
            return 1;
        for (size_t i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++)
            leaf(cpu, leaves[i], 0);
        for (uint32_t sub = 0; sub < 4; sub++) {
            leaf(cpu, 0x4, sub);
            leaf(cpu, 0xb, sub);
            leaf(cpu, 0x8000001d, sub);
        }
    }
    return 0;
}

// Every port, in and out, three widths in turn. Values that rightly end the machine (0xfe to the
// keyboard controller, S5 to the sleep register) are not among them.
static int ports(void)
{
    if (iopl(3))
        return 1;
    for (uint32_t port = 0; port < 0x10000; port++) {
        if (port >= 0x3f8 && port < 0x400)
            continue; // the console this is reported on
        outb(0xff, (uint16_t)port);
        if (port % 2)
            outw(0xffff, (uint16_t)port);
        else
            outl(0x5a5a5a5a, (uint16_t)port);
        (void)inb((uint16_t)port);
    }
    return 0;
}

static int mmio_range(int fd, uint64_t from, uint64_t to, uint64_t step)
{
    for (uint64_t page = from; page < to; page += 0x1000) {
        volatile uint32_t *p =
            mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)page);
        if (p == MAP_FAILED)
            continue;
        for (uint64_t at = 0; at < 0x1000; at += step) {
            p[at / 4] = (uint32_t)(page + at);
            p[at / 4] = 0xffffffff;
            (void)p[at / 4];
            *(volatile uint8_t *)((uintptr_t)p + at + 1) = 0x5a;
        }
        munmap((void *)(uintptr_t)p, 0x1000);
    }
    return 0;
}

static int mmio(void)
{
    int fd = open("/dev/mem", O_RDWR | O_SYNC);
    if (fd < 0)
        return 1;
    mmio_range(fd, 0xc0000000, 0xc0012000, 4); // boot timer and the virtio windows
    mmio_range(fd, 0xfec00000, 0xfec01000, 4); // IOAPIC
    mmio_range(fd, 0xfed00000, 0xfed01000, 64);
    for (uint64_t at = 0xc0012000; at < 0xfec00000; at += 0x80000)
        mmio_range(fd, at, at + 0x1000, 0x800);
    close(fd);
    return 0;
}

static int msr_fd;

static void msr(uint32_t n, uint64_t value)
{
    uint64_t was;
    (void)!pread(msr_fd, &was, sizeof(was), n);
    (void)!pwrite(msr_fd, &value, sizeof(value), n);
}

static int msrs(void)
{
    static const uint32_t ranges[][2] = {{0x0, 0x800},
                                         {0x880, 0x2000},
                                         {0x40000000, 0x40000200},
                                         {0x4b564d00, 0x4b564e00},
                                         {0xc0010000, 0xc0012000},
                                         {0xc0000000, 0xc0000080},
                                         {0xc0000100, 0xc0002000}};
    for (size_t r = 0; r < sizeof(ranges) / sizeof(ranges[0]); r++)
        for (uint32_t n = ranges[r][0]; n < ranges[r][1]; n++) {
            if (n == 0x1b || n == 0x8b || (n >= 0xc0000100 && n <= 0xc0000102))
                continue; // the local APIC's own switch and the segment bases: last
            msr(n, 0);
            msr(n, ~0ULL);
            msr(n, 0x123456789abcdULL);
        }
    return 0;
}

// Every vector and delivery mode to the other processor, to itself and to all, through x2APIC's
// ICR.
static int ipis(void)
{
    for (uint32_t mode = 0; mode < 8; mode++)
        for (uint32_t to = 0; to < 4; to++)
            for (uint32_t vector = 0; vector < 256; vector += mode == 0 ? 1 : 16) {
                if (mode == 0 && (to == 2 || to == 0) && vector >= 32 && vector < 240)
                    continue; // would only be the kernel's own interrupts, once more
                msr(0x830, (1ULL << 32) | (to << 18) | (1 << 14) | (mode << 8) | vector);
            }
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc == 2 ? argv[1] : "";
    int bad = 2;
    if (!strcmp(what, "cpuid"))
        bad = cpuid();
    else if (!strcmp(what, "ports"))
        bad = ports();
    else if (!strcmp(what, "mmio"))
        bad = mmio();
    msr_fd = open("/dev/cpu/0/msr", O_RDWR);
    if (!strcmp(what, "msrs") && msr_fd >= 0)
        bad = msrs();
    else if (!strcmp(what, "ipis") && msr_fd >= 0)
        bad = ipis();
    printf("probe: %s done, %d\n", what, bad);
    return bad;
}
