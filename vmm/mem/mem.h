// SPDX-License-Identifier: Apache-2.0
// Guest memory: the map, and mem_at(), the only function that turns a guest address into a pointer.
//
// Layout: RAM lies at 0 and, past MEM_GAP_START, goes on at MEM_GAP_END (the gap holds MMIO and the
// APICs). Each region is one reservation in the monitor's address space whose address never changes
// while the VM lives: the KVM memory slot is set once over PROT_NONE and the backing (anonymous, or
// a snapshot's memory file mapped MAP_PRIVATE) is mapped over it with MAP_FIXED afterwards, which
// costs microseconds where a new slot costs a grace period.
//
// Call order: mem_reserve, then one of mem_back_anon or mem_back_file (again after a failed load),
// then any number of mem_at; mem_free last. Only the control thread reserves, backs and frees, and
// only while no vCPU runs and the device thread is drained; mem_at may be called by any thread.
//
// Nothing outside vmm/mem sees a mapping's base but the code that sets memory slots.
#ifndef VMM_MEM_MEM_H
#define VMM_MEM_MEM_H

#include <stdatomic.h>

#include "vmm/base.h"

#define MEM_GAP_START   0xc0000000ULL  // 3 GiB
#define MEM_GAP_END     0x100000000ULL // 4 GiB
#define MEM_MAX_REGIONS 2

struct mem_region {
    uint64_t gpa;      // first guest-physical address
    uint64_t size;     // bytes, a multiple of PAGE_SIZE
    uint64_t file_off; // where the region begins in a memory file: regions lie in it back to back
    uint8_t *host;     // first byte in the monitor
};

struct guest_mem {
    unsigned n;
    struct mem_region r[MEM_MAX_REGIONS];
    uint64_t size; // bytes of RAM in all
    bool backed;   // else the reservation is as mem_reserve made it
    _Atomic uint64_t
        *dirty; // pages the monitor wrote, bit = file_off / PAGE_SIZE; NULL: not tracked
};

enum mem_access {
    MEM_READ,  // the monitor will read these bytes
    MEM_WRITE, // the monitor will write them: marks their pages dirty when tracked
};

// Plans the regions for `size` bytes (a multiple of 1 MiB, > 0) and reserves their address space:
// no access, no memory. Errors: -EINVAL, -ENOMEM.
int mem_reserve(struct guest_mem *m, uint64_t size, struct err *e);

// Huge pages: as the host gives them to anyone, but asked for in dense blocks (mem_dense); forbidden, where a write of
// one byte must not cost 2 MiB; asked for; from the host's pool (vm.nr_hugepages).
enum mem_pages { MEM_PAGES_HOST, MEM_PAGES_SMALL, MEM_PAGES_TRANSPARENT, MEM_PAGES_2M };

// Backs the whole reservation with zeroed private anonymous memory. MEM_PAGES_2M takes a size that
// is a multiple of 2 MiB. Errors: -ENOMEM.
int mem_back_anon(struct guest_mem *m, enum mem_pages pages, struct err *e);

// About to be filled from end to end (a kernel's image): the whole 2 MiB blocks in it become huge pages
// where the host has them, one fault and one nested page table entry each in place of 512. Advice.
void mem_dense(const struct guest_mem *m, uint64_t gpa, uint64_t n);

// Backs it with fd, MAP_PRIVATE: guest writes never reach the file, unwritten pages are shared with
// every other clone. Where the file has a hole of 2 MiB or more, anonymous memory takes its place: it reads
// as the same zeros, but a first write neither fills the page cache with a page of zeros nor copies one, and
// it can be huge pages (MEM_PAGES_TRANSPARENT). fd must be a regular file of at least m->size bytes; it may
// be closed afterwards. Errors: -EINVAL (not a regular file, too short), -ENOMEM (nothing is backed then).
int mem_back_file(struct guest_mem *m, int fd, enum mem_pages pages, struct err *e);

// Takes the backing away again (PROT_NONE), as after mem_reserve.
void mem_unback(struct guest_mem *m);

void mem_free(struct guest_mem *m);

// The one way from a guest address and length to a pointer. NULL unless [gpa, gpa + len) lies
// wholly within one region; len 0 is NULL, overflow is NULL. The bytes belong to a hostile guest:
// copy them once, then judge the copy.
void *mem_at(const struct guest_mem *m, uint64_t gpa, uint64_t len, enum mem_access how);

// Copies to or from guest memory; may cross pages, never regions. 0 or -EFAULT.
int mem_read(const struct guest_mem *m, uint64_t gpa, void *buf, uint64_t len);
int mem_write(const struct guest_mem *m, uint64_t gpa, const void *buf, uint64_t len);

// Marks the pages of a pointer that mem_at gave (asynchronous I/O: call it when the data has
// landed, since a dirty-page round may have copied the page between submission and completion). A
// pointer that is not guest memory, or length 0, is ignored.
void mem_dirty(const struct guest_mem *m, const void *host, uint64_t len);

// Starts (all clean) or stops tracking of the monitor's own writes. Control thread, VM quiet.
int mem_track(struct guest_mem *m, bool on, struct err *e);

// Moves word i (64 pages) of the monitor's dirty bitmap to the caller and clears it.
uint64_t mem_dirty_take(struct guest_mem *m, size_t word);

#endif
