// SPDX-License-Identifier: Apache-2.0
// Load generators, chosen by mode=blkbench and mode=netbench. Times are TSC cycles until they are
// printed.
#ifndef TESTS_GUEST_BENCH_H
#define TESTS_GUEST_BENCH_H

#include "guest.h"

// Log-linear: 32 steps to each doubling, so a percentile is right to 3 %.
#define HIST_STEPS 32
struct hist {
    uint64_t n, max;
    uint32_t slot[64 * HIST_STEPS];
};
void hist_add(struct hist *h, uint64_t v);
uint64_t hist_at(const struct hist *h, unsigned per_mille); // upper edge of the slot, cycles

struct bench {
    const char *op; // up to a space
    uint64_t secs, depth, size;
    bool poll; // bench.wait=poll: never sleep
    uint64_t until;
};
bool bench_op(const struct bench *b, const char *name);
void bench_wait(const struct bench *b, bool armed); // sleeps, or returns when polling
void bench_main(void);                              // returns at once in every other mode
void bench_blk(const struct bench *b);
void bench_net(const struct bench *b);

#endif
