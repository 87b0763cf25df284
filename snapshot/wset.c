// SPDX-License-Identifier: Apache-2.0
// Records which pages a restored microVM touched, and brings them in ahead of time.
#include <sys/mman.h>

#include "snapshot/memfile.h"
#include "snapshot/snapshot.h"
#include "snapshot/wset.h"
#include "vmm/handover.h"
#include "vmm/log.h"

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

#define AT_ONCE 32 // pages, a few microseconds: whoever maps memory meanwhile waits for them

// #syscalls:helper madvise(MADV_POPULATE_READ, MADV_POPULATE_WRITE)
static uint64_t populate(struct vm *vm, const uint64_t *bits, int advice)
{
    const struct guest_mem *m = vm_mem(vm);
    uint64_t sum = 0;

    for (uint64_t i = 0, n, len; (n = pages_run(bits, m->size / PAGE_SIZE, &i)); i += n, sum += n) {
        uint8_t *p = pages_at(m, i * PAGE_SIZE, &len);
        n = MIN(MIN(n, len / PAGE_SIZE), AT_ONCE);
        if (atomic_load(&vm_lineage(vm)->ending))
            break;
        madvise(p, n * PAGE_SIZE, advice);
    }
    return sum;
}

static void bring_in(void *arg)
{
    struct vm *vm = arg;
    struct vm_lineage *l = vm_lineage(vm);
    uint64_t from = now_ns();

    uint64_t n = populate(vm, l->copied, MADV_POPULATE_WRITE);
    n += populate(vm, l->copied + pages_words(vm_mem(vm)), MADV_POPULATE_READ);
    LOG_I(vm_log(vm), "working set: %llu pages are here after %llu us", (unsigned long long)n,
          (unsigned long long)(now_ns() - from) / 1000);
}

int wset_prefetch(struct vm *vm, int fd, const uint8_t id[SNAP_ID], struct err *e)
{
    const struct guest_mem *m = vm_mem(vm);
    struct wset s;

    int rc = wset_read(m, fd, id, &s, e);
    if (rc)
        return rc;
    struct vm_lineage *l = vm_lineage(vm);
    l->copied = s.w; // kept for the microVM's life
    atomic_store(&l->ending, false);
    l->prefetching = vm_job(vm, bring_in, vm) == 0; // nothing else may be under way before a load
    return 0;
}

void wset_stop(struct vm *vm)
{
    struct vm_lineage *l = vm_lineage(vm);

    if (!l->prefetching)
        return;
    atomic_store(&l->ending, true);
    vm_job_wait(vm);
    l->prefetching = false;
}

// The bitmap is as long as this load's memory: the next one's may be larger.
void wset_forget(struct vm *vm)
{
    const struct vm_lineage *l = vm_lineage(vm);
    wset_stop(vm);
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
