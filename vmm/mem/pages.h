// SPDX-License-Identifier: Apache-2.0
// Guest memory as numbered pages, for those who copy all of it: snapshots and migration.
//
// Page n is the one at offset n * PAGE_SIZE of a memory file. Bitmaps have one bit a page in 64-bit
// words. Control thread or helper; guest bytes may change under the reader's eyes while it runs.
#ifndef VMM_MEM_PAGES_H
#define VMM_MEM_PAGES_H

#include "vmm/mem/mem.h"

static inline size_t pages_words(const struct guest_mem *m)
{
    return (m->size / PAGE_SIZE + 63) / 64;
}

// The bytes at offset `off` of a memory file, and how many follow in one piece.
uint8_t *pages_at(const struct guest_mem *m, uint64_t off, uint64_t *len);

// Sets the bits of pages that are this process's own: anonymous and present or swapped out. Over a
// private map of a file these are the pages written to since it was mapped. pagemap_fd is
// /proc/self/pagemap (-1: every page is named). Errors: -EIO.
int pages_own(const struct guest_mem *m, int pagemap_fd, uint64_t *bits, struct err *e);

// Sets the bits of pages of a mapped file that this process has touched (or were mapped with one that it did).
int pages_shared(const struct guest_mem *m, int pagemap_fd, uint64_t *bits, struct err *e);

// Sets the bits of [first, first + n).
void pages_set(uint64_t *bits, uint64_t first, uint64_t n);

// The next run of set bits at or after *first: its length, or 0. The other looks no further than max: who takes a
// long run in pieces would else walk over all of it for each.
uint64_t pages_run_max(const uint64_t *bits, uint64_t npages, uint64_t *first, uint64_t max);

static inline uint64_t pages_run(const uint64_t *bits, uint64_t npages, uint64_t *first)
{
    return pages_run_max(bits, npages, first, UINT64_MAX);
}

bool page_is_zero(const void *page);
bool page_is_same(const void *a, const void *b);

#endif
