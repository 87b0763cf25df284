// SPDX-License-Identifier: Apache-2.0
// What every guest stands on: ports, MMIO, text, command line, platform, time, sleep. Freestanding.
//
// All C here runs at CPL 3 on one vCPU; interrupts only count, set `wake` and return (see boot.S),
// so there is no locking: the main loop polls, and sleeps only when `wake` stayed clear since it
// last looked.
#ifndef TESTS_GUEST_GUEST_H
#define TESTS_GUEST_GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)     ((a) < (b) ? (a) : (b))
#define MAX(a, b)     ((a) > (b) ? (a) : (b))
#define BARRIER()     __asm__ volatile("" ::: "memory")
#define MFENCE()      __asm__ volatile("mfence" ::: "memory")

static inline void outb(uint16_t port, uint8_t v)
{
    __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static inline uint64_t rdtsc(void)
{
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi)::"memory");
    return (uint64_t)hi << 32 | lo;
}

static inline void cpuid(uint32_t leaf, uint32_t r[4])
{
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(0));
}

// MMIO and raw memory by physical address (identity mapped). Plain moves only: an emulator reads
// them.
static inline void *at(uint64_t pa)
{
    return (void *)pa;
}

static inline uint32_t rd32(uint64_t pa)
{
    uint32_t v;
    __asm__ volatile("movl (%1), %0" : "=r"(v) : "r"(pa) : "memory");
    return v;
}

static inline void wr32(uint64_t pa, uint32_t v)
{
    __asm__ volatile("movl %0, (%1)" ::"r"(v), "r"(pa) : "memory");
}

static inline uint8_t rd8(uint64_t pa)
{
    uint8_t v;
    __asm__ volatile("movb (%1), %0" : "=q"(v) : "r"(pa) : "memory");
    return v;
}

static inline void wr8(uint64_t pa, uint8_t v)
{
    __asm__ volatile("movb %0, (%1)" ::"q"(v), "r"(pa) : "memory");
}

// boot.S
extern volatile uint32_t irqs[32]; // [0] timer, [16 + n] device n
extern volatile uint8_t wake;
extern uint64_t boot_info;
extern uint8_t boot_pvh;
extern uint64_t pdpt[512];
extern uint8_t image_end[];
void *memcpy(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
#define memcpy(d, s, n) \
    __builtin_memcpy(d, s, n) // small constant sizes become moves, freestanding or not
#define memset(d, c, n) __builtin_memset(d, c, n)
void start_c(void);
void fault_c(uint64_t vec, uint64_t code, uint64_t rip, uint64_t cr2);

// lib.c: text and the command line
size_t vfmt(char *buf, size_t n, const char *f,
            va_list ap); // always terminated; returns what was written
__attribute__((format(printf, 3, 4))) size_t fmt(char *buf, size_t n, const char *f, ...);
__attribute__((format(printf, 1, 2))) void say(const char *f, ...); // to COM1
size_t str_len(const char *s);
bool str_eq(const char *a, const char *b);
bool str_starts(const char *s, const char *prefix);
bool mem_eq(const void *a, const void *b, size_t n);
uint64_t str_u64(const char **p); // decimal or 0x hex; leaves *p behind the number
extern char cmdline[2048];        // copied before anything else can overwrite it
const char *arg(const char *key); // text behind "key=", or NULL
const char *arg_next(const char *key,
                     const char *after); // the next one behind `after` (NULL: the first)
uint64_t arg_u64(const char *key, uint64_t def);
bool arg_is(const char *key, const char *value);
bool parse_ip(const char **p, uint32_t *ip); // dotted quad to host order

// plat.c: boot information, interrupts, time, power
struct mem_range {
    uint64_t base, size;
};
extern struct mem_range ram[16]; // usable RAM above the image, 1 MiB grain
extern unsigned ram_n;
void plat_init(void);
void map_ram(uint64_t pa, uint64_t len);  // beyond the boot mapping (1 to 3 GiB, above 4 GiB)
void irq_route(uint32_t gsi, unsigned n); // GSI -> irqs[16 + n]
void *arena(size_t size, size_t align);   // static, zeroed, never freed
void cpu_sleep(void);                     // until an interrupt since the last `wake = 0`
void timer_at(uint64_t tsc);              // one interrupt at `tsc`; 0 disarms
bool msr_write(uint32_t msr, uint64_t v);
_Noreturn void power_off(void);
_Noreturn void reboot(void);
_Noreturn void triple_fault(void);
void announce_again(void); // by a clone that knows who it is
void announce_ready(void); // the clocks of monitors: see README.md

// TSC arithmetic
extern uint64_t tsc_khz;
uint64_t tsc_ns(uint64_t cycles);
static inline uint64_t us_tsc(uint64_t us)
{
    return us * tsc_khz / 1000;
}

// rand.c: own generator, reseeded when the generation identifier changes
void rand_seed(void);
uint64_t rand64(void);
bool generation_changed(void); // true once per change; also bumps `generation`
extern uint32_t generation;
extern uint64_t boot_id;

void guest_main(void); // each guest's own, called by start_c after plat_init

#endif
