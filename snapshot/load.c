// SPDX-License-Identifier: Apache-2.0
// PUT /snapshot/load: two files become a microVM again.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "snapshot/codec.h"
#include "snapshot/memfile.h"
#include "snapshot/pager.h"
#include "snapshot/snapshot.h"
#include "snapshot/wset.h"

static int read_state(int fd, struct snap_blob *b, struct vm_saved **s, struct err *e)
{
    struct stat st;

    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        return err_set(e, EINVAL, "snapshot_path: not a regular file");
    if (st.st_size > SNAP_STATE_MAX)
        return err_set(e, EINVAL, "snapshot_path: %lld bytes, a state file has at most %d",
                       (long long)st.st_size, SNAP_STATE_MAX);
    size_t len = (size_t)st.st_size;
    uint8_t *buf = malloc(len + 1);
    if (!buf)
        return err_set(e, ENOMEM, "out of memory");
    ssize_t n = pread(fd, buf, len, 0);
    struct err why = {0};
    int rc = n == (ssize_t)len ? codec_decode(buf, len, b, s, &why)
                               : err_set(&why, EIO, "cannot be read whole");
    free(buf);
    return rc ? err_set(e, -rc, "snapshot_path: %.220s", why.msg) : 0;
}

static int override_net(const struct net_override *o, struct vm_saved *s, struct err *e)
{
    for (unsigned i = 0; i < s->ndevs; i++) {
        struct net_cfg *n = &s->dev[i].net.cfg;
        if (s->dev[i].kind != SAVED_NET || strcmp(n->iface_id, o->iface_id))
            continue;
        memcpy(n->host_dev_name, o->host_dev_name, sizeof(n->host_dev_name));
        return 1 << i;
    }
    return err_set(e, EINVAL, "network_overrides: the snapshot has no interface %s", o->iface_id);
}

#define LAYER (1 << CFG_MAX_DEVS) // of the first device: its copy-on-write file was named, too

// Another image may have another size; the guest is told that its drive changed.
static int override_drive(const struct drive_override *o, struct vm_saved *s, struct err *e)
{
    for (unsigned i = 0; i < s->ndevs; i++) {
        struct drive_cfg *d = &s->dev[i].blk.cfg;
        if (s->dev[i].kind != SAVED_BLK || strcmp(d->drive_id, o->drive_id))
            continue;
        if (o->path_on_host[0]) {
            memcpy(d->path_on_host, o->path_on_host, sizeof(d->path_on_host));
            s->dev[i].blk.bytes = 0;
        }
        if (o->cow_path[0])
            memcpy(d->cow_path, o->cow_path, sizeof(d->cow_path));
        return (o->path_on_host[0] ? 1 << i : 0) | (o->cow_path[0] ? LAYER << i : 0);
    }
    return err_set(e, EINVAL, "drive_overrides: the snapshot has no drive %s", o->drive_id);
}

// A descriptor's number is of the request that made the snapshot's microVM: it means nothing now.
int snap_override(const struct snapshot_load *l, struct vm_saved *s, struct err *e)
{
    int given = 0, rc = 0;

    for (unsigned i = 0; i < l->nnets && rc >= 0; i++, given |= rc)
        rc = override_net(&l->nets[i], s, e);
    for (unsigned i = 0; i < l->ndrives && rc >= 0; i++, given |= rc)
        rc = override_drive(&l->drives[i], s, e);
    for (unsigned i = 0; i < s->ndevs && rc >= 0; i++) {
        const struct saved_dev *d = &s->dev[i];
        bool blk = d->kind == SAVED_BLK;
        const char *path = blk ? d->blk.cfg.path_on_host : d->net.cfg.host_dev_name;
        if ((!(given & 1 << i) && !strncmp(path, "fd:", 3)) ||
            (blk && !(given & LAYER << i) && !strncmp(d->blk.cfg.cow_path, "fd:", 3)))
            return err_set(e, EINVAL, "%s: %s was given as a descriptor, so its path must be named",
                           blk ? "drive_overrides" : "network_overrides",
                           blk ? d->blk.cfg.drive_id : d->net.cfg.iface_id);
    }
    return MIN(rc, 0);
}

static int check_memory(int fd, const struct snap_blob *b, const struct vm_saved *s, struct err *e)
{
    struct memfile_head h;
    struct err why = {0};
    char want[2 * SNAP_ID + 1], got[2 * SNAP_ID + 1];

    int rc = memfile_head(fd, &h, NULL, &why);
    if (rc)
        return err_set(e, -rc, "backend_path: %.220s", why.msg);
    snap_id_text(b->id, want);
    snap_id_text(h.id, got);
    if (memcmp(h.id, b->id, SNAP_ID))
        return err_set(e, EINVAL,
                       "backend_path: memory of snapshot %s, but the state is of snapshot %s", got,
                       want);
    if (h.kind == MEMFILE_DIFF) {
        snap_id_text(h.parent, want);
        return err_set(e, EINVAL,
                       "backend_path: a Diff over snapshot %s: merge it with that one first", want);
    }
    if (h.mem_size != s->machine.mem_size_mib * MIB)
        return err_set(e, EINVAL, "backend_path: holds %llu MiB of memory, the state is of %u MiB",
                       (unsigned long long)(h.mem_size / MIB), s->machine.mem_size_mib);
    return 0;
}

struct loading {
    struct vm *vm;
    const struct snapshot_load *l;
    struct passed_fds *fds;
    struct snap_blob blob;
    struct vm_saved *s;
    struct vm_restore_opts o;
    int mem_fd, wset_fd;
    bool paged, pool; // from a page server; into huge pages of the host's pool
};

static int open_all(struct loading *x, struct err *e)
{
    const struct snapshot_load *l = x->l;
    const char *mem = l->has_mem_backend ? l->mem_backend.path : l->mem_file_path;

    if (l->has_mem_backend == !!l->mem_file_path[0])
        return err_set(e, EINVAL, "exactly one of mem_backend and mem_file_path must be given");
    _cleanup_(close_fdp) int fd =
        path_open(x->vm, l->snapshot_path, "snapshot_path", O_RDONLY, x->fds, e);
    if (fd < 0)
        return fd;
    if (!x->paged && (x->mem_fd = path_open(x->vm, mem, "backend_path", O_RDONLY, x->fds, e)) < 0)
        return x->mem_fd;
    if (l->working_set_path[0] && x->paged)
        return err_set(e, EINVAL, "working_set_path: only with a File backend");
    if (l->working_set_path[0] &&
        (x->wset_fd =
             path_open(x->vm, l->working_set_path, "working_set_path", O_RDONLY, x->fds, e)) < 0)
        return x->wset_fd;
    int rc = read_state(fd, &x->blob, &x->s, e);
    x->pool = rc == 0 && x->s->machine.huge_pages == HUGE_2M;
    if (x->pool && (x->paged || l->working_set_path[0]))
        rc = err_set(e, ENOTSUP,
                     "%s: not for a microVM with huge_pages 2M, whose memory is read whole",
                     x->paged ? "mem_backend" : "working_set_path");
    x->o.track_dirty_pages = (x->paged || x->pool) && l->track_dirty_pages;
    if (rc == 0 && !x->paged)
        rc = check_memory(x->mem_fd, &x->blob, x->s, e);
    return rc ? rc : snap_override(l, x->s, e);
}

// A file cannot be mapped in pages of 2 MiB, so what it holds is copied into them.
static int back(struct loading *x, struct err *e)
{
    struct guest_mem *m = vm_mem(x->vm);

    if (x->paged)
        return pager_back(x->vm, x->l->mem_backend.path, x->fds, e);
    if (!x->pool)
        return mem_back_file(m, x->mem_fd,
                             x->s->machine.huge_pages == HUGE_TRANSPARENT ? MEM_PAGES_TRANSPARENT
                                                                          : MEM_PAGES_SMALL,
                             e);
    int rc = mem_back_anon(m, MEM_PAGES_2M, e);
    return rc ? rc : memfile_read(x->mem_fd, m, e);
}

static int build(struct loading *x, struct err *e)
{
    struct vm_lineage *line = vm_lineage(x->vm);

    int rc = vm_restore_shape(x->vm, x->s, &x->o, e);
    if (rc)
        return rc;
    rc = back(x, e);
    if (rc == 0 && x->wset_fd >= 0)
        rc = wset_prefetch(x->vm, x->wset_fd, x->blob.id, e);
    if (rc == 0)
        rc = vm_restore(x->vm, x->s, &x->o, e);
    if (rc) { // first whoever looks at memory, then memory itself
        pager_end(x->vm);
        wset_forget(x->vm);
        vm_restore_undo(x->vm);
        return rc;
    }
    line->origin = x->paged ? MEM_PAGED : x->pool ? MEM_FRESH : MEM_FILE;
    memcpy(line->base, x->blob.id, SNAP_ID);
    line->mem_fd = x->pool ? -1 : steal_fd(&x->mem_fd);
    return 0;
}

int snapshot_load(struct vm *vm, const struct snapshot_load *l, struct passed_fds *fds,
                  struct err *e)
{
    bool paged = l->has_mem_backend && l->mem_backend.type == MEM_BACKEND_UFFD;
    struct loading x = {.vm = vm,
                        .l = l,
                        .fds = fds,
                        .mem_fd = -1,
                        .wset_fd = -1,
                        .paged = paged,
                        .o = {.resume = l->resume_vm,
                              .advance_clock = l->clock_realtime,
                              .any_cpu = l->any_cpu,
                              .new_identity = true,
                              .fds = fds}};

    int rc = open_all(&x, e);
    if (rc == 0)
        rc = build(&x, e);
    vm_saved_free(x.s);
    close_fdp(&x.mem_fd);
    close_fdp(&x.wset_fd);
    return rc;
}
