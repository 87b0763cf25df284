// SPDX-License-Identifier: Apache-2.0
// The file of a working set: made, sealed, read and judged.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <sys/mman.h>

#include "snapshot/wset.h"

#define MAGIC   "MAYFLYWS"
#define VERSION 1u
enum { AT_VERSION = 8, AT_ZERO = 12, AT_ID = 16, AT_SIZE = 32, AT_SUM = 40 };

static void put_head(const struct wset *s, const uint8_t id[SNAP_ID], uint64_t mem_size)
{
    memcpy(s->p, MAGIC, 8);
    le32_put(s->p + AT_VERSION, VERSION);
    le32_put(s->p + AT_ZERO, 0);
    memcpy(s->p + AT_ID, id, SNAP_ID);
    le64_put(s->p + AT_SIZE, mem_size);
}

int wset_make(const struct guest_mem *m, const uint8_t id[SNAP_ID], struct wset *s, struct err *e)
{
    s->words = pages_words(m);
    s->size = WSET_HEAD + 2 * s->words * sizeof(uint64_t);
    s->p = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->p == MAP_FAILED)
        return err_set(e, ENOMEM, "no memory for a working set");
    s->w = (void *)(s->p + WSET_HEAD);
    s->r = s->w + s->words;
    put_head(s, id, m->size);
    return 0;
}

static uint64_t checksum(const struct wset *s)
{
    return XXH64(s->w, 2 * s->words * sizeof(uint64_t), XXH64(s->p, AT_SUM, 0));
}

void wset_seal(const struct wset *s)
{
    le64_put(s->p + AT_SUM, checksum(s));
}

int wset_read(const struct guest_mem *m, int fd, const uint8_t id[SNAP_ID], struct wset *s,
              struct err *e)
{
    uint8_t want[WSET_HEAD];

    int rc = wset_make(m, id, s, e);
    if (rc)
        return rc;
    memcpy(want, s->p, WSET_HEAD);
    if (pread(fd, s->p, s->size, 0) != (ssize_t)s->size || memcmp(want, s->p, AT_SUM))
        rc = err_set(e, EINVAL, "working_set_path: not a working set of this snapshot");
    else if (le64_get(s->p + AT_SUM) != checksum(s))
        rc = err_set(e, EINVAL, "working_set_path: damaged, its checksum does not match");
    if (rc)
        munmap(s->p, s->size);
    return rc;
}
