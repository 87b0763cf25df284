// SPDX-License-Identifier: Apache-2.0
// Working sets: which pages a clone touched, so that the next one has them before it asks.
//
// The file (docs/snapshot-format.md) keeps pages written and pages read apart, since the first are copied ahead
// of time and the second only mapped: a page populated for reading would fault again at the first write.
#ifndef SNAPSHOT_WSET_H
#define SNAPSHOT_WSET_H

#include "vmm/mem/pages.h"
#include "vmm/state.h"

#define WSET_HEAD 48u // bytes in front of the bitmaps

// The whole file in one mapping: a head, the bitmap of pages written, the bitmap of pages read.
struct wset {
    uint8_t *p;
    size_t words, size;
    uint64_t *w, *r;
};

// wset_file.c: for any thread, also outside of a monitor. The mapping is the caller's; on failure there is none.
int wset_make(const struct guest_mem *m, const uint8_t id[SNAP_ID], struct wset *s, struct err *e);
void wset_seal(const struct wset *s); // once its bitmaps are whole
// -EINVAL: a file that is none, is damaged, or is of another snapshot than `id`.
int wset_read(const struct guest_mem *m, int fd, const uint8_t id[SNAP_ID], struct wset *s,
              struct err *e);

// After mem_back_file. The helper thread begins to bring the pages in, beside what is left of the load, and goes on
// while the guest runs; what cannot be had comes when it is touched. Refused: a file that is none, is damaged, or is of
// another snapshot than `id`.
int wset_prefetch(struct vm *vm, int fd, const uint8_t id[SNAP_ID], struct err *e);

// The helper is free; what is not here by now comes when it is touched.
void wset_stop(struct vm *vm);
void wset_forget(struct vm *vm); // after a failed load, while memory is as it was for it

// Clears the bits of pages that were copied ahead of time and never written.
int wset_subtract(struct vm *vm, uint64_t *bits, struct err *e);

#endif
