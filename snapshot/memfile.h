// SPDX-License-Identifier: Apache-2.0
// Memory files: guest RAM as one sparse file, and the trailer that says whose it is.
//
// RAM's regions lie back to back from offset 0, as Firecracker's; a page that a Full file does not
// hold is a hole. At offset mem_size stands the trailer (docs/snapshot-format.md); a Diff's trailer
// is followed by a bitmap of the pages it holds, so that a copy that fills holes loses nothing.
#ifndef SNAPSHOT_MEMFILE_H
#define SNAPSHOT_MEMFILE_H

#include "vmm/mem/pages.h"
#include "vmm/state.h"

enum memfile_kind { MEMFILE_FULL = 1, MEMFILE_DIFF = 2 };

struct memfile_head {
    enum memfile_kind kind;
    uint8_t id[SNAP_ID], parent[SNAP_ID]; // as in the state file
    uint64_t mem_size;
};

// A file is written in three steps: zeros left out (Full alone; the second step never takes a page back), pages,
// any number of times, and at last the trailer, whose bitmap for a Diff is `bits`.
void memfile_drop_zeros(const struct guest_mem *m, uint64_t *bits);
int memfile_pages(int fd, const struct guest_mem *m, const uint64_t *bits, struct err *e);
int memfile_trailer(int fd, const uint64_t *bits, const struct memfile_head *h, struct err *e);

// Reads and checks the trailer. bits, unless NULL: a Diff's bitmap, memfile_bitmap bytes that are the caller's to unmap;
// NULL of a Full. -EINVAL: not a memory file of ours, or damaged.
int memfile_head(int fd, struct memfile_head *h, uint64_t **bits, struct err *e);

static inline size_t memfile_bitmap(uint64_t mem_size) // bytes that are mapped for it
{
    return mem_size / 32768 + 8;
}

// Sets the bits of pages for which the file has data; the rest are holes, zeros.
int memfile_data(int fd, uint64_t mem_size, uint64_t *bits, struct err *e);

// Copies what the file holds over memory that is zero.
int memfile_read(int fd, const struct guest_mem *m, struct err *e);

#endif
