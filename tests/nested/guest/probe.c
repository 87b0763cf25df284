// SPDX-License-Identifier: Apache-2.0
// What the guests' shell cannot do: prints CPUID of every processor and MSRs, and misbehaves on purpose.
//
//   probe cpuid    probe rdmsr NUMBER    probe mmio
//   probe ports [FROM TO]     all but the console's, or just these (TO is the first left out)
//   probe msrs [FROM TO]      all that a guest outlives, or just these
//   probe ipis [MODE]         every vector and destination of all delivery modes, or of one, 0 to 7
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

static void port(uint16_t n)
{
    outb(0xff, n);
    if (n % 2 && n < 0xffff) // an access may not reach past the last port
        outw(0xffff, n);
    else if (n < 0xfffd)
        outl(0x5a5a5a5a, n);
    (void)inb(n);
}

// Ports in and out, three widths in turn. Values that rightly end the machine (0xfe to the keyboard
// controller, S5 to the sleep register) are not among them.
static int ports(uint32_t from, uint32_t to)
{
    if (iopl(3))
        return 1;
    for (uint32_t n = from; n < to; n++)
        port((uint16_t)n);
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
    mmio_range(fd, 0xfee00000, 0xfee01000, 16); // the local APIC's page, which x2APIC leaves empty
    mmio_range(fd, 0xff000000, 0x100000000, 0x800);
    for (uint64_t at = 1ULL << 33; at < 1ULL << 40; at *= 2) // beyond all memory
        mmio_range(fd, at, at + 0x1000, 0x800);
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

static int rdmsr(uint32_t n)
{
    uint64_t value;
    if (pread(msr_fd, &value, sizeof(value), n) != sizeof(value))
        return 1;
    printf("msr %#x: %016llx\n", n, (unsigned long long)value);
    return 0;
}

static int msr_range(uint32_t from, uint32_t to)
{
    for (uint32_t n = from; n < to; n++) {
        msr(n, 0);
        msr(n, ~0ULL);
        msr(n, 0x123456789abcdULL);
    }
    return 0;
}

// Without what ends the guest at once or by chance: the clocks that it waits by, the local APIC's own switch and
// registers, EFER, the entry points of system calls and the segment bases. Those are asked for by number, each in its
// own guest.
static int msrs(void)
{
    static const uint32_t ranges[][2] = {{0x0, 0x10},
                                         {0x13, 0x1b},
                                         {0x1c, 0x3b},
                                         {0x3c, 0x6e0},
                                         {0x6e1, 0x800},
                                         {0x880, 0x2000},
                                         {0x40000000, 0x40000200},
                                         {0x4b564d02, 0x4b564e00},
                                         {0xc0010000, 0xc0012000},
                                         {0xc0000000, 0xc0000080},
                                         {0xc0000085, 0xc0000100},
                                         {0xc0000103, 0xc0002000}};
    for (size_t r = 0; r < sizeof(ranges) / sizeof(ranges[0]); r++)
        msr_range(ranges[r][0], ranges[r][1]);
    return 0;
}

// Every vector, to the other processor, to itself, to all and to all others, through x2APIC's ICR.
static int ipis(uint32_t mode)
{
    for (uint32_t to = 0; to < 4; to++)
        for (uint32_t vector = 0; vector < 256; vector++)
            msr(0x830, (1ULL << 32) | (to << 18) | (1 << 14) | (mode << 8) | vector);
    return 0;
}

static int every_ipi(void)
{
    int bad = 0;
    for (uint32_t mode = 0; mode < 8; mode++)
        bad |= ipis(mode);
    return bad;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    uint32_t n = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : 0;
    uint32_t to = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 0) : 0;
    int bad = 2;
    if (!strcmp(what, "cpuid"))
        bad = cpuid();
    else if (!strcmp(what, "ports") && argc == 4)
        bad = ports(n, to);
    else if (!strcmp(what, "ports"))
        bad = ports(0, 0x3f6) | ports(0x400, 0x10000); // 0x3f6 and up: what is wide reaches it
    else if (!strcmp(what, "mmio"))
        bad = mmio();
    msr_fd = open("/dev/cpu/0/msr", O_RDWR);
    if (!strcmp(what, "rdmsr") && msr_fd >= 0)
        bad = rdmsr(n);
    else if (!strcmp(what, "msrs") && msr_fd >= 0 && argc == 4)
        bad = msr_range(n, to);
    else if (!strcmp(what, "msrs") && msr_fd >= 0)
        bad = msrs();
    else if (!strcmp(what, "ipis") && msr_fd >= 0)
        bad = argc > 2 ? ipis(n) : every_ipi();
    printf("probe: %s done, %d\n", what, bad);
    return bad;
}
