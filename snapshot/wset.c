// SPDX-License-Identifier: Apache-2.0
// Records which pages a restored microVM touched, and brings them in ahead of time.
#include <sys/mman.h>

#include "snapshot/memfile.h"
#include "snapshot/snapshot.h"
#include "snapshot/wset.h"

// Kernel ABI (Linux 5.14) that musl lacks.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif

int snapshot_working_set(struct vm *vm, const struct snapshot_working_set *c,
                         struct passed_fds *fds, struct err *e)
{
    const struct vm_lineage *l = vm_lineage(vm);
    const struct guest_mem *m = vm_mem(vm);
    _cleanup_(path_abandon) struct new_file f = {.fd = -1, .dir = -1};
    struct wset s;

    if (l->origin != MEM_FILE || vm_pagemap_fd(vm) < 0)
        return err_set(e, EINVAL, "a working set is of a microVM that was loaded from a File");
    int rc = path_create(vm, c->working_set_path, "working_set_path", fds, &f, e);
    if (rc || (rc = wset_make(m, l->base, &s, e)))
        return rc;
    rc = pages_own(m, vm_pagemap_fd(vm), s.w, e);
    if (rc == 0)
        rc = pages_shared(m, vm_pagemap_fd(vm), s.r, e);
    wset_seal(&s);
    if (rc == 0 && pwritev2(f.fd, &(struct iovec){s.p, s.size}, 1, 0, 0) != (ssize_t)s.size)
        rc = err_set(e, EIO, "working_set_path: cannot be written: %s",
                     strerror(errno ? errno : ENOSPC));
    munmap(s.p, s.size);
    if (rc == 0)
        rc = path_sync(&f, "working_set_path", e);
    return rc ? rc : path_commit((struct new_file *const[]){&f}, 1, e);
}

// #syscalls:config madvise(MADV_POPULATE_READ, MADV_POPULATE_WRITE)
static void populate(const struct guest_mem *m, const uint64_t *bits, int advice)
{
    for (uint64_t i = 0, n, len; (n = pages_run(bits, m->size / PAGE_SIZE, &i)); i += n) {
        uint8_t *p = pages_at(m, i * PAGE_SIZE, &len);
        n = MIN(n, len / PAGE_SIZE);
        madvise(p, n * PAGE_SIZE, advice);
    }
}

int wset_prefetch(struct vm *vm, int fd, const uint8_t id[SNAP_ID], struct err *e)
{
    const struct guest_mem *m = vm_mem(vm);
    struct wset s;

    int rc = wset_read(m, fd, id, &s, e);
    if (rc)
        return rc;
    populate(m, s.w, MADV_POPULATE_WRITE);
    populate(m, s.r, MADV_POPULATE_READ);
    vm_lineage(vm)->copied = s.w; // kept for the microVM's life
    return 0;
}

// The bitmap is as long as this load's memory: the next one's may be larger.
void wset_forget(struct vm *vm)
{
    const struct vm_lineage *l = vm_lineage(vm);
    const size_t size = WSET_HEAD + 2 * pages_words(vm_mem(vm)) * sizeof(uint64_t);

    if (l->copied)
        munmap((void *)((uintptr_t)l->copied - WSET_HEAD), size);
    vm_lineage(vm)->copied = NULL;
}

int wset_subtract(struct vm *vm, uint64_t *bits, struct err *e)
{
    const struct vm_lineage *l = vm_lineage(vm);
    const struct guest_mem *m = vm_mem(vm);
    uint64_t len;

    const uint8_t *file =
        l->copied ? mmap(NULL, m->size, PROT_READ, MAP_SHARED, l->mem_fd, 0) : NULL;
    if (file == MAP_FAILED)
        return err_set(e, ENOMEM, "cannot map the memory file");
    for (size_t i = 0; file && i < m->size / PAGE_SIZE; i++)
        if (bits[i / 64] & l->copied[i / 64] & 1ULL << i % 64 &&
            page_is_same(file + i * PAGE_SIZE, pages_at(m, i * PAGE_SIZE, &len)))
            bits[i / 64] &= ~(1ULL << i % 64);
    if (file)
        munmap((void *)(uintptr_t)file, m->size);
    return 0;
}
