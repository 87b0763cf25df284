// SPDX-License-Identifier: Apache-2.0
// The files of a snapshot, opened once and read by all.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "api-socket/ctl/serve.h"
#include "snapshot/memfile.h"
#include "snapshot/wset.h"

#ifndef MADV_POPULATE_READ // Linux 5.14; musl lacks it
#define MADV_POPULATE_READ 22
#endif

static int open_file(const char *path, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    return fd < 0 ? err_set(e, errno, "cannot open %.150s: %s", path, strerror(errno)) : fd;
}

static int open_state(struct served *t, const char *path, uint64_t *mem_size, struct err *e)
{
    struct snap_blob b;
    struct vm_saved *s = NULL;
    struct err why = {0};

    _cleanup_(close_fdp) int fd = open_file(path, e);
    if (fd < 0)
        return fd;
    if (!(t->blob = calloc(1, MIG_DISKS + SNAP_STATE_MAX + 1)))
        return err_set(e, ENOMEM, "out of memory");
    ssize_t n = pread(fd, t->blob + MIG_DISKS, SNAP_STATE_MAX + 1, 0);
    if (n < 0)
        return err_set(e, errno, "cannot read %.150s: %s", path, strerror(errno));
    int rc = codec_decode(t->blob + MIG_DISKS, (size_t)n, &b, &s, &why);
    if (rc)
        return err_set(e, -rc, "%.80s: %.160s", path, why.msg);
    memcpy(t->id, b.id, SNAP_ID);
    t->blob_len = MIG_DISKS + (size_t)n;
    *mem_size = s->machine.mem_size_mib * MIB;
    vm_saved_free(s);
    return 0;
}

static uint64_t *bitmap(const struct guest_mem *m)
{
    return calloc(pages_words(m), sizeof(uint64_t));
}

static int open_memory(struct served *t, const char *path, uint64_t size, struct err *e)
{
    struct memfile_head h;
    struct err why = {0};

    _cleanup_(close_fdp) int fd = open_file(path, e);
    if (fd < 0)
        return fd;
    if (memfile_head(fd, &h, NULL, &why))
        return err_set(e, EINVAL, "%.80s: %.160s", path, why.msg);
    if (memcmp(h.id, t->id, SNAP_ID) || h.kind != MEMFILE_FULL || h.mem_size != size)
        return err_set(e, EINVAL, "%.150s: not the whole memory of this state's snapshot", path);
    void *p = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return err_set(e, errno, "cannot map %.150s: %s", path, strerror(errno));
    t->mem = (struct guest_mem){.n = 1, .r = {{.size = size, .host = p}}, .size = size};
    if (!(t->data = bitmap(&t->mem)) || !(t->first = bitmap(&t->mem)))
        return err_set(e, ENOMEM, "out of memory");
    return memfile_data(fd, size, t->data, e);
}

static int open_first(struct served *t, const char *path, struct err *e)
{
    struct wset w;
    struct err why = {0};

    _cleanup_(close_fdp) int fd = open_file(path, e);
    if (fd < 0)
        return fd;
    int rc = wset_read(&t->mem, fd, t->id, &w, &why);
    if (rc)
        return err_set(e, -rc, "%.80s: %.160s", path, why.msg);
    for (size_t i = 0; i < w.words; i++) {
        t->first[i] = t->data[i] & (w.w[i] | w.r[i]);
        t->nfirst += (unsigned)__builtin_popcountll(t->first[i]);
    }
    munmap(w.p, w.size);
    // From the disk now, not when the first puller waits for it; a kernel that cannot does that then.
    for (uint64_t i = 0, n; (n = pages_run(t->first, t->mem.size / PAGE_SIZE, &i)); i += n)
        madvise(t->mem.r[0].host + i * PAGE_SIZE, n * PAGE_SIZE, MADV_POPULATE_READ);
    return 0;
}

int served_open(struct served *t, const char *state, const char *mem, const char *wset,
                struct err *e)
{
    uint64_t size = 0;

    int rc = open_state(t, state, &size, e);
    if (rc == 0)
        rc = open_memory(t, mem, size, e);
    return rc || !wset ? rc : open_first(t, wset, e);
}
