// SPDX-License-Identifier: Apache-2.0
// PUT /snapshot/create: state and memory of a microVM, paused or running, into two new files.
#include <sys/mman.h>

#include "snapshot/codec.h"
#include "snapshot/memfile.h"
#include "snapshot/snapshot.h"
#include "snapshot/wset.h"
#include "vmm/handover.h"
#include "vmm/log.h"
#include "vmm/version.h"

#define LIVE_ROUNDS 8
#define LIVE_LAST   512 // pages: few enough to be written while the guest stands still

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
static int choose_pages(struct vm *vm, bool logged, struct memfile_head *h, uint64_t *bits,
                        struct err *e)
{
    struct vm_lineage *l = vm_lineage(vm);
    struct guest_mem *m = vm_mem(vm);

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
    ssize_t n = rc ? 0 : pwritev2(fd, &(struct iovec){buf, len}, 1, 0, 0);
    if (rc == 0 && n != (ssize_t)len)
        rc = err_set(e, EIO, "cannot write the state file: %s", strerror(n < 0 ? errno : ENOSPC));
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

struct creating {
    struct vm *vm;
    struct memfile_head h;
    struct new_file state, mem;
    uint64_t *bits, *round; // pages of the file; pages of the round under way
    bool logged, tracking;  // the log was on before; it is on for this snapshot alone
    uint64_t since, still[2],
        pages; // live: the guest stands still; did so, ns; pages of the last round
};

static int first_round(struct creating *x, struct err *e)
{
    const struct guest_mem *m = vm_mem(x->vm);

    int rc =
        choose_pages(x->vm, x->logged && vm_lineage(x->vm)->origin != MEM_FILE, &x->h, x->bits, e);
    if (rc == 0 && x->h.kind == MEMFILE_FULL)
        memfile_drop_zeros(m, x->bits);
    return rc ? rc : memfile_pages(x->mem.fd, m, x->bits, e);
}

// Writes again what was dirtied since the last round; *n is how many pages that were.
static int next_round(struct creating *x, uint64_t *n, struct err *e)
{
    const struct guest_mem *m = vm_mem(x->vm);

    memset(x->round, 0, pages_words(m) * sizeof(*x->round));
    int rc = vm_dirty_fetch(x->vm, x->round, e);
    *n = 0;
    for (size_t w = 0; w < pages_words(m); w++) {
        *n += (uint64_t)__builtin_popcountll(x->round[w]);
        x->bits[w] |= x->round[w];
    }
    return rc ? rc : memfile_pages(x->mem.fd, m, x->round, e);
}

static int track(struct creating *x, bool on, struct err *e)
{
    int rc = x->logged ? 0 : vm_dirty_track(x->vm, on, e);
    x->tracking = on && rc == 0 && !x->logged;
    return rc;
}

// The guest stands still twice: while its writes begin to be logged, and for the last of them and the state. It
// runs on whatever becomes of the snapshot.
static int write_live(struct creating *x, struct err *e)
{
    uint64_t n, had = UINT64_MAX;

    x->since = now_ns();
    int rc = vm_pause(x->vm, e);
    if (rc == 0)
        rc = track(x, true, e);
    if (rc || (rc = vm_resume(x->vm, e)))
        return rc;
    x->still[0] = now_ns() - x->since;
    rc = first_round(x, e);
    for (unsigned i = 0; i < LIVE_ROUNDS && rc == 0; i++, had = n) {
        rc = next_round(x, &n, e);
        if (n <= LIVE_LAST || n > had - had / 4) // or it writes as fast as we do
            break;
    }
    x->since = now_ns();
    if (rc == 0 && (rc = vm_pause(x->vm, e)) == 0)
        rc = next_round(x, &x->pages, e);
    return rc ? rc : write_state(x->vm, &x->h, x->state.fd, e);
}

static void go_on(struct creating *x, bool done)
{
    vm_pause(x->vm, NULL);
    if (x->tracking)
        track(x, false, NULL);
    vm_resume(x->vm, NULL);
    x->still[1] = now_ns() - x->since;
    if (done)
        LOG_I(vm_log(x->vm),
              "live snapshot: the guest stood still for %llu us and for %llu us, in which %llu "
              "pages were written",
              (unsigned long long)x->still[0] / 1000, (unsigned long long)x->still[1] / 1000,
              (unsigned long long)x->pages);
}

static int write_both(struct creating *x, bool live, struct err *e)
{
    int rc;

    if (live) {
        rc = write_live(x, e);
        go_on(x, rc == 0);
    } else {
        rc = first_round(x, e);
        if (rc == 0)
            rc = write_state(x->vm, &x->h, x->state.fd, e);
    }
    if (rc == 0)
        rc = memfile_trailer(x->mem.fd, x->bits, &x->h, e);
    if (rc == 0)
        rc = path_sync(&x->mem, "mem_file_path", e);
    return rc ? rc : path_sync(&x->state, "snapshot_path", e);
}

int snapshot_create(struct vm *vm, const struct snapshot_create *c, struct passed_fds *fds,
                    struct err *e)
{
    struct creating x = {.vm = vm, .state = {.fd = -1, .dir = -1}, .mem = {.fd = -1, .dir = -1}};
    bool live = c->live && vm_state(vm) == VM_RUNNING;

    if (vm_state(vm) != VM_PAUSED && !live)
        return err_set(e, EPERM, "the microVM is not paused");
    if (*vm_migration(vm) && vm_job_runs(vm))
        return err_set(e, EBUSY, "a migration is under way");
    x.h = (struct memfile_head){.kind = c->type == SNAPSHOT_DIFF ? MEMFILE_DIFF : MEMFILE_FULL,
                                .mem_size = vm_mem(vm)->size};
    new_id(vm_lineage(vm), x.h.id);
    x.logged = vm_mem(vm)->dirty;
    size_t size = pages_words(vm_mem(vm)) * sizeof(uint64_t);
    if (!(x.bits = scratch(2 * size)))
        return err_set(e, ENOMEM, "no memory for a bitmap");
    x.round = x.bits + pages_words(vm_mem(vm));
    int rc = path_create(vm, c->mem_file_path, "mem_file_path", fds, &x.mem, e);
    if (rc == 0)
        rc = path_create(vm, c->snapshot_path, "snapshot_path", fds, &x.state, e);
    if (rc == 0 && path_same(&x.mem, &x.state))
        rc = err_set(e, EINVAL, "snapshot_path and mem_file_path are one file");
    if (rc == 0)
        rc = write_both(&x, live, e);
    if (rc == 0)
        rc = path_commit((struct new_file *const[]){&x.mem, &x.state}, 2, e);
    if (rc == 0)
        remember(vm, &x.h);
    path_abandon(&x.mem);
    path_abandon(&x.state);
    munmap(x.bits, 2 * size);
    return rc;
}
