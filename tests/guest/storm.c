// SPDX-License-Identifier: Apache-2.0
// Reads and writes every port and the MMIO hole in every width, rounds=N times (0: for ever); pstep= and
// step= thin it out. No value written
// means anything to a device that ends the machine, so the storm must pass with a bounded log and no harm.
#include "guest.h"

#define HOLE     0xc0000000u
#define HOLE_END 0xfec00000u
#define TOP      0xff000000u

static void ports(uint64_t round, uint32_t step)
{
    for (uint32_t p = 0; p < 0x10000; p += step) {
        uint32_t v = 0;
        uint16_t port = (uint16_t)p;
        switch ((p + round) % 3) { // in three rounds each port is met in each width
        case 0:
            (void)inb(port);
            outb(port, 0);
            break;
        case 1:
            __asm__ volatile("inw %w1, %w0" : "+a"(v) : "d"(port));
            __asm__ volatile("outw %w0, %w1" ::"a"(0), "d"(port));
            break;
        default:
            __asm__ volatile("inl %w1, %0" : "+a"(v) : "d"(port));
            __asm__ volatile("outl %0, %w1" ::"a"(0), "d"(port));
            break;
        }
    }
}

static void access(uint64_t pa, unsigned width)
{
    uint64_t v = 0;
    switch (width) {
    case 0:
        __asm__ volatile("movb (%1), %b0\n\tmovb $0, (%1)" : "=&q"(v) : "r"(pa) : "memory");
        break;
    case 1:
        __asm__ volatile("movw (%1), %w0\n\tmovw $0, (%1)" : "=&r"(v) : "r"(pa) : "memory");
        break;
    case 2:
        __asm__ volatile("movl (%1), %k0\n\tmovl $0, (%1)" : "=&r"(v) : "r"(pa) : "memory");
        break;
    default:
        __asm__ volatile("movq (%1), %0\n\tmovq $0, (%1)" : "=&r"(v) : "r"(pa) : "memory");
        break;
    }
}

void guest_main(void)
{
    uint64_t rounds = arg_u64("rounds", 1), step = arg_u64("step", 0x3f007);
    uint32_t pstep = (uint32_t)MAX(arg_u64("pstep", 1), 1);
    announce_ready();
    say("storm: begins\n");
    for (uint64_t n = 0; !rounds || n < rounds; n++) {
        ports(n, pstep);
        for (uint64_t pa = HOLE + n; pa < HOLE_END; pa += step)
            access(pa, (unsigned)(pa + n) % 4);
        for (uint64_t pa = TOP; pa < 0xfffffff0u; pa += step)
            access(pa, (unsigned)(pa + n) % 4);
    }
    say("storm: done\n");
}
