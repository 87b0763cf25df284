// SPDX-License-Identifier: Apache-2.0
// Lays a Diff's memory over its base's, as a new file.
#include <sys/mman.h>

#include "api-socket/ctl/merge.h"
#include "snapshot/memfile.h"

static int copy_pages(int from, int to, const uint64_t *bits, uint64_t npages, struct err *e)
{
    _Alignas(64) uint8_t buf[16 * PAGE_SIZE];

    for (uint64_t i = 0, n; (n = pages_run(bits, npages, &i)); i += n) {
        n = MIN(n, sizeof(buf) / PAGE_SIZE);
        for (size_t got = 0; got < n * PAGE_SIZE;) {
            ssize_t k = pread(from, buf + got, n * PAGE_SIZE - got, (off_t)(i * PAGE_SIZE + got));
            if (k <= 0)
                return err_set(e, k ? errno : EIO, "cannot read a memory file: %s",
                               strerror(k ? errno : EIO));
            got += (size_t)k;
        }
        for (uint64_t k = 0; k < n; k++) { // a page of zeros is a hole
            ssize_t put = PAGE_SIZE;
            if (!page_is_zero(buf + k * PAGE_SIZE))
                put = pwrite(to, buf + k * PAGE_SIZE, PAGE_SIZE, (off_t)((i + k) * PAGE_SIZE));
            if (put != PAGE_SIZE)
                return err_set(e, put < 0 ? errno : ENOSPC, "cannot write the memory file: %s",
                               strerror(put < 0 ? errno : ENOSPC));
        }
    }
    return 0;
}

static int check_pair(const struct memfile_head *b, const struct memfile_head *d, struct err *e)
{
    if (b->kind != MEMFILE_FULL)
        return err_set(e, EINVAL, "base: a Diff cannot be a base, merge it with its own first");
    if (d->kind != MEMFILE_DIFF)
        return err_set(e, EINVAL, "diff: this memory file is whole, there is nothing to merge");
    if (memcmp(b->id, d->parent, SNAP_ID))
        return err_set(e, EINVAL, "the diff was made over another snapshot than this base");
    if (b->mem_size != d->mem_size)
        return err_set(e, EINVAL, "base and diff have different sizes of memory");
    return 0;
}

int merge_memory(int base, int diff, int out, struct err *e)
{
    struct memfile_head b, d;
    uint64_t *over = NULL;

    int rc = memfile_head(base, &b, NULL, e);
    if (rc == 0)
        rc = memfile_head(diff, &d, &over, e);
    if (rc == 0)
        rc = check_pair(&b, &d, e);
    uint64_t n = rc ? 0 : b.mem_size / PAGE_SIZE;
    uint64_t *bits = calloc(n / 64 + 1, sizeof(*bits));
    if (rc == 0)
        rc = bits ? memfile_data(base, b.mem_size, bits, e)
                  : err_set(e, ENOMEM, "no memory for a bitmap");
    for (uint64_t w = 0; rc == 0 && w < n / 64; w++)
        bits[w] &= ~over[w];
    if (rc == 0)
        rc = copy_pages(base, out, bits, n, e);
    if (rc == 0)
        rc = copy_pages(diff, out, over, n, e);
    d.kind = MEMFILE_FULL;
    if (rc == 0)
        rc = memfile_trailer(out, NULL, &d, e);
    free(bits);
    if (over)
        munmap(over, memfile_bitmap(d.mem_size));
    return rc;
}
