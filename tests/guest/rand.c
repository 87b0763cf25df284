// SPDX-License-Identifier: Apache-2.0
// Random numbers that differ between clones: a splitmix generator mixed anew when the VM generation
// changes.
#include "guest.h"

uint32_t generation;
uint64_t boot_id;
static uint64_t state, gen_addr, gen_seen[2];

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t hardware(void)
{
    uint32_t r[4];
    uint64_t v = 0;
    cpuid(1, r);
    if (r[2] & 1u << 30)
        __asm__ volatile("rdrand %0" : "+r"(v)::"cc");
    return v;
}

uint64_t rand64(void)
{
    state += 0x9e3779b97f4a7c15u;
    return mix(state);
}

void rand_seed(void)
{
    gen_addr = arg_u64("mayfly.vmgenid", 0);
    state = mix(rdtsc()) ^ hardware();
    if (gen_addr)
        memcpy(gen_seen, at(gen_addr), sizeof(gen_seen));
    state ^= mix(gen_seen[0]) ^ gen_seen[1];
    boot_id = rand64();
}

// The identifier is plain memory, so looking costs nothing; the loop asks on every wake.
bool generation_changed(void)
{
    if (!gen_addr || mem_eq(gen_seen, at(gen_addr), sizeof(gen_seen)))
        return false;
    memcpy(gen_seen, at(gen_addr), sizeof(gen_seen));
    state = mix(state ^ gen_seen[0]) ^ mix(gen_seen[1] + rdtsc()) ^ hardware();
    generation++;
    return true;
}
