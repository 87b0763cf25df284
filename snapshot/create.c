// SPDX-License-Identifier: Apache-2.0
// PUT /snapshot/create: state and memory of a paused microVM into two new files.
#include <sys/mman.h>

#include "snapshot/codec.h"
#include "snapshot/memfile.h"
#include "snapshot/snapshot.h"
#include "snapshot/wset.h"
#include "vmm/version.h"

static void *scratch(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

// A process's seed is random, its ids differ in the last word.
static void new_id(struct vm_lineage *l, uint8_t id[SNAP_ID])
{
    memcpy(id, l->seed, sizeof(l->seed));
    le32_put(id + sizeof(l->seed), ++l->made);
}

static bool no_id(const uint8_t id[SNAP_ID])
{
    static const uint8_t none[SNAP_ID];
    return !memcmp(id, none, SNAP_ID);
}

// Every page that may hold something but zeros.
int snap_all_pages(struct vm *vm, uint64_t *bits, struct err *e)
{
    struct vm_lineage *l = vm_lineage(vm);
    struct guest_mem *m = vm_mem(vm);

    if (l->origin == MEM_PAGED) {
        pages_set(bits, 0, m->size / PAGE_SIZE);
        return 0;
    }
    int rc = pages_own(m, vm_pagemap_fd(vm), bits, e);
    return rc || l->origin != MEM_FILE ? rc : memfile_data(l->mem_fd, m->size, bits, e);
}

// What changed since h->parent, when that can be told; else everything, and h says Full.
static int choose_pages(struct vm *vm, struct memfile_head *h, uint64_t *bits, struct err *e)
{
    struct vm_lineage *l = vm_lineage(vm);
    struct guest_mem *m = vm_mem(vm);
    bool logged = m->dirty && l->origin != MEM_FILE;

    // Fetching empties the log: if this snapshot fails, the next one has no base to differ from.
    int rc = logged ? vm_dirty_fetch(vm, bits, e) : 0;
    memcpy(h->parent, l->base, SNAP_ID);
    if (logged)
        memset(l->base, 0, SNAP_ID);
    if (rc)
        return rc;
    if (h->kind == MEMFILE_DIFF && !no_id(h->parent)) {
        if (l->origin == MEM_FILE && vm_pagemap_fd(vm) >= 0)
            return (rc = pages_own(m, vm_pagemap_fd(vm), bits, e)) ? rc
                                                                   : wset_subtract(vm, bits, e);
        if (logged)
            return 0;
    }
    h->kind = MEMFILE_FULL;
    return snap_all_pages(vm, bits, e);
}

static int write_memory(struct vm *vm, struct memfile_head *h, int fd, struct err *e)
{
    struct guest_mem *m = vm_mem(vm);
    size_t size = pages_words(m) * sizeof(uint64_t);
    uint64_t *bits = scratch(size);

    if (!bits)
        return err_set(e, ENOMEM, "no memory for a bitmap");
    h->mem_size = m->size;
    int rc = choose_pages(vm, h, bits, e);
    if (rc == 0)
        rc = memfile_write(fd, m, bits, h, e);
    munmap(bits, size);
    return rc;
}

static int write_state(struct vm *vm, const struct memfile_head *h, int fd, struct err *e)
{
    struct snap_blob b = {0};
    struct timespec t;
    size_t len = 0;

    memcpy(b.id, h->id, SNAP_ID);
    memcpy(b.parent, h->parent, SNAP_ID);
    clock_gettime(CLOCK_REALTIME, &t);
    b.info.realtime_ns = (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
    snprintf(b.info.monitor, sizeof(b.info.monitor), "Mayfly %s", MAYFLY_VERSION);
    snprintf(b.info.id, sizeof(b.info.id), "%s", vm_id(vm));
    struct vm_saved *s = vm_saved_new(vm_config(vm)->machine.vcpu_count);
    uint8_t *buf = scratch(SNAP_STATE_MAX);
    int rc = s && buf ? vm_save(vm, s, e) : err_set(e, ENOMEM, "no memory for the state");
    if (rc == 0)
        rc = codec_encode(&b, s, buf, SNAP_STATE_MAX, &len, e);
    if (rc == 0 && pwritev2(fd, &(struct iovec){buf, len}, 1, 0, 0) != (ssize_t)len)
        rc = err_set(e, EIO, "cannot write the state file: %s", strerror(errno ? errno : ENOSPC));
    vm_saved_free(s);
    if (buf)
        munmap(buf, SNAP_STATE_MAX);
    return rc;
}

// A later Diff stands on this snapshot, unless it stands on the file that memory is mapped from.
static void remember(struct vm *vm, const struct memfile_head *h)
{
    struct vm_lineage *l = vm_lineage(vm);

    if (l->origin != MEM_FILE && vm_mem(vm)->dirty)
        memcpy(l->base, h->id, SNAP_ID);
}

int snapshot_create(struct vm *vm, const struct snapshot_create *c, struct passed_fds *fds,
                    struct err *e)
{
    struct memfile_head h = {.kind = c->type == SNAPSHOT_DIFF ? MEMFILE_DIFF : MEMFILE_FULL};
    _cleanup_(path_abandon) struct new_file state = {.fd = -1, .dir = -1};
    _cleanup_(path_abandon) struct new_file mem = {.fd = -1, .dir = -1};

    if (vm_state(vm) != VM_PAUSED)
        return err_set(e, EPERM, "the microVM is not paused");
    int rc = path_create(vm, c->mem_file_path, "mem_file_path", fds, &mem, e);
    if (rc == 0)
        rc = path_create(vm, c->snapshot_path, "snapshot_path", fds, &state, e);
    if (rc)
        return rc;
    new_id(vm_lineage(vm), h.id);
    if ((rc = write_memory(vm, &h, mem.fd, e)) || (rc = write_state(vm, &h, state.fd, e)) ||
        (rc = path_sync(&mem, "mem_file_path", e)) ||
        (rc = path_sync(&state, "snapshot_path", e)) ||
        (rc = path_commit((struct new_file *const[]){&mem, &state}, 2, e)))
        return rc;
    remember(vm, &h);
    return 0;
}
