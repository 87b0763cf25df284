// SPDX-License-Identifier: Apache-2.0
// What a migration asks of the control thread: the microVM paused, saved, reserved, restored, resumed.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "snapshot/codec.h"
#include "snapshot/mig_os.h"
#include "vmm/version.h"

static int save(struct mig_run *r, struct err *e)
{
    struct vm *vm = r->vm;
    struct mig *m = &r->m;
    struct snap_blob b = {0};
    uint64_t id[2];
    uint32_t n = 0;
    size_t len = 0;

    memset(m->blob, 0, MIG_DISKS);
    for (; n < CFG_MAX_DRIVES && vm_disk_is(vm, n, id); n++)
        memcpy(m->blob + 4 + 16 * n, id, 16);
    le32_put(m->blob, n);
    snprintf(b.info.monitor, sizeof(b.info.monitor), "Mayfly %s", MAYFLY_VERSION);
    snprintf(b.info.id, sizeof(b.info.id), "%s", vm_id(vm));
    struct vm_saved *s = vm_saved_new(vm_config(vm)->machine.vcpu_count);
    int rc = s ? vm_save(vm, s, e) : err_set(e, ENOMEM, "no memory for the state");
    if (rc == 0)
        rc = codec_encode(&b, s, m->blob + MIG_DISKS, MIG_BLOB_MAX - MIG_DISKS, &len, e);
    vm_saved_free(s);
    m->blob_len = MIG_DISKS + len;
    return rc;
}

// A short pause: everything that the target will judge is real, and judged before anything moves.
static int look(struct mig_run *r, struct err *e)
{
    struct vm *vm = r->vm;
    int rc;

    r->m.peer_ran = vm_state(vm) == VM_RUNNING;
    r->tracking = vm_mem(vm)->dirty;
    if ((rc = vm_pause(vm, e)))
        return rc;
    rc = save(r, e);
    if (rc == 0 && !r->tracking)
        rc = vm_dirty_track(vm, true, e);
    else if (rc == 0) // the pages that a Diff would hold are fetched away from it
        memset(vm_lineage(vm)->base, 0, SNAP_ID);
    if (r->m.peer_ran)
        vm_resume(vm, e);
    if (rc == 0)
        rc = snap_all_pages(vm, r->m.aux, e);
    return rc ? rc : vm_disks_sync(vm, e); // so that the sync of the last pause has little to do
}

// A guest that is at its end, or paused by its operator, needs none of it.
// #syscalls:control poll
static int hold(struct mig_run *r)
{
    if (vm_state(r->vm) != VM_RUNNING || vm_pause(r->vm, NULL))
        return 0;
    int share = (int)atomic_load(&r->m.st.throttle);
    poll(NULL, 0, MAX(MIG_SLICE_MS * share / (100 - share), 1));
    vm_resume(r->vm, NULL);
    return 0;
}

static int stop(struct mig_run *r, struct err *e)
{
    int rc = vm_pause(r->vm, e);

    if (rc == 0)
        rc = vm_disks_sync(r->vm, e);
    return rc ? rc : save(r, e);
}

static int back(struct mig_run *r, struct err *e)
{
    const bool runs = vm_state(r->vm) == VM_RUNNING;
    int rc = runs ? vm_pause(r->vm, e) : vm_disks_lock(r->vm, true, e);

    // Paused either way: the device thread marks pages in what goes away here.
    if (vm_state(r->vm) == VM_PAUSED && !r->tracking && vm_mem(r->vm)->dirty)
        vm_dirty_track(r->vm, false, NULL);
    return rc == 0 && (runs || r->m.peer_ran) ? vm_resume(r->vm, e) : rc;
}

// ---- target -----------------------------------------------------------------------------------------------

static int decode(struct mig_run *r, struct vm_saved **s, struct err *e)
{
    struct snap_blob b;
    uint64_t bytes[CFG_MAX_DEVS];

    if (r->m.blob_len < MIG_DISKS || le32_get(r->m.blob) > CFG_MAX_DRIVES)
        return err_set(e, EINVAL, "the state is too short");
    int rc = codec_decode(r->m.blob + MIG_DISKS, r->m.blob_len - MIG_DISKS, &b, s, e);
    if (rc)
        return rc;
    for (unsigned i = 0; i < (*s)->ndevs; i++)
        bytes[i] = (*s)->dev[i].kind == SAVED_BLK ? (*s)->dev[i].blk.bytes : 0;
    rc = snap_override(&r->rx.over, *s, e);
    for (unsigned i = 0; i < (*s)->ndevs && rc == 0 && !r->m.clone; i++)
        if ((*s)->dev[i].kind ==
            SAVED_BLK) // another path to the same disk: nothing changed for the guest
            (*s)->dev[i].blk.bytes = bytes[i];
    if (rc) {
        vm_saved_free(*s);
        *s = NULL;
    }
    return rc;
}

static int same_disk(const struct mig_run *r, unsigned i, const uint64_t id[2], const char *name,
                     struct err *e)
{
    if (r->m.clone) // its disks are its own, as when a snapshot is loaded
        return 0;
    if (i < le32_get(r->m.blob) && !memcmp(r->m.blob + 4 + 16 * (size_t)i, id, 16))
        return 0;
    return err_set(e, EINVAL, "drive %s: not the file that the source has", name);
}

// Disks that have a path are looked at before anything moves; all of them again when they are open.
static int look_at_disks(struct mig_run *r, const struct vm_saved *s, struct err *e)
{
    struct stat st;
    uint64_t id[2];
    int rc = 0;

    for (unsigned i = 0; i < s->ndevs && s->dev[i].kind == SAVED_BLK && rc == 0; i++) {
        const struct drive_cfg *d = &s->dev[i].blk.cfg;
        if (!strncmp(d->path_on_host, "fd:", 3) || d->cow_path[0])
            continue;
        _cleanup_(close_fdp) int fd =
            path_open(r->vm, d->path_on_host, "path_on_host", O_RDONLY, NULL, e);
        if (fd < 0 || fstat(fd, &st))
            return fd < 0 ? fd : err_set(e, errno, "path_on_host: %s", strerror(errno));
        id[0] = st.st_ino;
        id[1] = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : s->dev[i].blk.bytes;
        rc = same_disk(r, i, id, d->drive_id, e);
    }
    return rc;
}

static struct vm_restore_opts options(struct mig_run *r)
{
    return (struct vm_restore_opts){.advance_clock = true,
                                    .any_cpu = r->rx.over.any_cpu,
                                    .new_identity = r->m.clone,
                                    .opened = true};
}

int mig_small_pages(const struct machine_cfg *c, struct err *e)
{
    return c->huge_pages == HUGE_2M
               ? err_set(e, ENOTSUP,
                         "huge_pages 2M: memory moves, and is pulled, by pages of 4 KiB")
               : 0;
}

static int reserve(struct mig_run *r, struct err *e)
{
    struct vm_restore_opts o = options(r);
    struct vm_saved *s = NULL;

    int rc = decode(r, &s, e);
    if (rc)
        return rc;
    rc = mig_small_pages(&s->machine, e);
    if (rc == 0)
        rc = look_at_disks(r, s, e);
    if (rc == 0)
        rc = vm_restore_shape(r->vm, s, &o, e);
    if (rc == 0) {
        r->built = true;
        if (!r->m.clone) // nobody lets go of a clone's disks: held by another, they refuse it now
            vm_disks_unlocked(r->vm);
        rc = vm_restore_open(r->vm, s, &r->fds, e);
    }
    vm_saved_free(s);
    if (rc == 0)
        rc = mem_back_anon(vm_mem(r->vm), false, e);
    if (rc == 0)
        rc = mig_alloc_bits(r, e);
    if (rc == 0 && r->m.mode != MIG_PRECOPY) {
        r->uffd = vm_uffd(r->vm, e);
        rc = MIN(r->uffd, 0);
    }
    return rc;
}

static int restore(struct mig_run *r, struct err *e)
{
    struct vm_restore_opts o = options(r);
    struct vm_saved *s = NULL;
    uint64_t id[2];

    int rc = decode(r, &s, e);
    if (rc)
        return rc;
    if (s->machine.mem_size_mib * MIB != vm_mem(r->vm)->size ||
        s->machine.vcpu_count != vm_config(r->vm)->machine.vcpu_count)
        rc = err_set(e, EINVAL, "the state is of another machine than the one that was reserved");
    if (rc == 0) // judged as the first one was: it comes from the same stranger
        rc = vm_saved_check(r->vm, s, &o, e);
    if (rc == 0)
        rc = vm_restore(r->vm, s, &o, e);
    for (unsigned i = 0; rc == 0 && vm_disk_is(r->vm, i, id); i++)
        rc = same_disk(r, i, id, vm_config(r->vm)->drives[i].drive_id, e);
    vm_saved_free(s);
    return rc;
}

static int activate(struct mig_run *r, struct err *e)
{
    int rc = vm_disks_lock(r->vm, true, e);

    if (rc)
        return rc;
    rc = (r->rx.has_resume ? r->rx.resume_vm : r->m.peer_ran) ? vm_resume(r->vm, e) : 0;
    if (rc == 0) // it is ours: switches learn where it is
        vm_announce(r->vm);
    return rc;
}

// Once the control thread's final filter is up, nothing can be built anew: then the process ends.
static int abandon(struct mig_run *r)
{
    char line[300];

    if (vm_state(r->vm) != VM_NOT_STARTED) {
        snprintf(line, sizeof(line), "migration abandoned: %s", r->m.e.msg);
        vm_over(r->vm, VM_EXIT_FAILURE, line);
    } else if (r->built) {
        vm_restore_undo(r->vm);
    }
    return 0;
}

int mig_on_control(void *arg)
{
    struct mig_run *r = arg;
    struct err *e = &r->call_err;

    switch (r->what) {
    case MIG_C_LOOK:
        return look(r, e);
    case MIG_C_HOLD:
        return hold(r);
    case MIG_C_STOP:
        return stop(r, e);
    case MIG_C_LETGO:
        return vm_disks_lock(r->vm, false, e);
    case MIG_C_RESUME:
        return back(r, e);
    case MIG_C_RESERVE:
        return reserve(r, e);
    case MIG_C_RESTORE:
        return restore(r, e);
    case MIG_C_ACTIVATE:
        return activate(r, e);
    case MIG_C_ABANDON:
        return abandon(r);
    case MIG_C_LOST:
        vm_over(r->vm, VM_EXIT_MEMORY, "LOST: the source is gone with pages that were only there");
        return 0;
    }
    return -EINVAL;
}
