// SPDX-License-Identifier: Apache-2.0
// Load generators, chosen by mode=blkbench and mode=netbench.
#ifndef TESTS_GUEST_BENCH_H
#define TESTS_GUEST_BENCH_H

void bench_main(void); // returns at once in every other mode

#endif
