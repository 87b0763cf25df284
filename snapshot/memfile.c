// SPDX-License-Identifier: Apache-2.0
// Writes and reads memory files.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "snapshot/memfile.h"

#define MAGIC   "MAYFLYMM"
#define VERSION 1u
// Offsets in the trailer, whose page is otherwise zero; the bitmap begins on the next page.
enum {
    AT_VERSION = 8,
    AT_KIND = 12,
    AT_ID = 16,
    AT_PARENT = 32,
    AT_SIZE = 48,
    AT_SUM = 56,
    HEAD = 64
};

// #syscalls:config pwritev2(5:0) lseek
// #syscalls:control pwritev2(5:0) lseek
static int put(int fd, const void *buf, uint64_t len, uint64_t off, struct err *e)
{
    struct iovec v;
    memcpy(&v.iov_base, &buf, sizeof(v.iov_base));
    for (v.iov_len = len; v.iov_len;) {
        ssize_t n = pwritev2(fd, &v, 1, (off_t)off, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(e, n < 0 ? errno : EIO, "cannot write the memory file: %s",
                           strerror(n < 0 ? errno : EIO));
        v.iov_base = (uint8_t *)v.iov_base + n;
        v.iov_len -= (size_t)n;
        off += (uint64_t)n;
    }
    return 0;
}

static int get(int fd, void *buf, size_t len, uint64_t off)
{
    for (uint8_t *p = buf; len;) {
        ssize_t n = pread(fd, p, len, (off_t)off);
        if (n <= 0)
            return n < 0 ? -errno : -EINVAL;
        p += n;
        len -= (size_t)n;
        off += (uint64_t)n;
    }
    return 0;
}

static size_t bitmap_bytes(const struct memfile_head *h)
{
    return h->kind == MEMFILE_DIFF ? (h->mem_size / PAGE_SIZE + 63) / 64 * 8 : 0;
}

int memfile_trailer(int fd, const uint64_t *bits, const struct memfile_head *h, struct err *e)
{
    uint8_t t[PAGE_SIZE] = MAGIC;
    size_t n = bitmap_bytes(h);

    le32_put(t + AT_VERSION, VERSION);
    le32_put(t + AT_KIND, h->kind);
    memcpy(t + AT_ID, h->id, SNAP_ID);
    memcpy(t + AT_PARENT, h->parent, SNAP_ID);
    le64_put(t + AT_SIZE, h->mem_size);
    le64_put(t + AT_SUM, XXH64(bits, n, XXH64(t, AT_SUM, 0)));
    int rc = put(fd, t, sizeof(t), h->mem_size, e);
    return rc || !n ? rc : put(fd, bits, n, h->mem_size + PAGE_SIZE, e);
}

void memfile_drop_zeros(const struct guest_mem *m, uint64_t *bits)
{
    for (uint64_t i = 0, n, len; (n = pages_run(bits, m->size / PAGE_SIZE, &i)); i += n)
        for (uint64_t k = i; k < i + n; k++)
            if (page_is_zero(pages_at(m, k * PAGE_SIZE, &len)))
                bits[k / 64] &= ~(1ULL << k % 64);
}

int memfile_pages(int fd, const struct guest_mem *m, const uint64_t *bits, struct err *e)
{
    int rc = 0;

    for (uint64_t i = 0, n; rc == 0 && (n = pages_run(bits, m->size / PAGE_SIZE, &i)); i += n) {
        uint64_t len;
        const uint8_t *p = pages_at(m, i * PAGE_SIZE, &len);
        n = MIN(n, len / PAGE_SIZE);
        rc = put(fd, p, n * PAGE_SIZE, i * PAGE_SIZE, e);
    }
    return rc;
}

// The trailer stands where the last region ends, and a Full file ends with it: so mem_size is known
// from the file's size, less a Diff's bitmap, whose size is a function of mem_size.
static int find_trailer(int fd, uint8_t t[HEAD], struct err *e)
{
    struct stat st;

    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        return err_set(e, EINVAL, "the memory file is not a regular file");
    uint64_t size = (uint64_t)st.st_size, full = size - PAGE_SIZE;
    if (size > PAGE_SIZE && full % MIB == 0) {
        int rc = get(fd, t, HEAD, full);
        if (rc == 0 && !memcmp(t, MAGIC, 8) && le64_get(t + AT_SIZE) == full)
            return 0;
    }
    // size = mem_size + page + mem_size / 32768
    uint64_t diff = size > PAGE_SIZE ? full / 32769 * 32768 : 0;
    if (diff && full == diff + diff / 32768 && get(fd, t, HEAD, diff) == 0 &&
        !memcmp(t, MAGIC, 8) && le64_get(t + AT_SIZE) == diff)
        return 0;
    return err_set(e, EINVAL,
                   "not a whole memory file of Mayfly: its end is missing (%llu bytes are there)",
                   (unsigned long long)size);
}

static uint64_t *map_bits(uint64_t mem_size)
{
    void *p = mmap(NULL, memfile_bitmap(mem_size), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

int memfile_head(int fd, struct memfile_head *h, uint64_t **out, struct err *e)
{
    uint64_t *map = NULL, **bits = out ? out : &map;
    uint8_t t[HEAD];

    *bits = NULL;
    int rc = find_trailer(fd, t, e);
    if (rc)
        return rc;
    if (le32_get(t + AT_VERSION) != VERSION)
        return err_set(e, ENOTSUP, "memory file format version %u, this monitor reads %u",
                       le32_get(t + AT_VERSION), VERSION);
    h->kind = (enum memfile_kind)le32_get(t + AT_KIND);
    h->mem_size = le64_get(t + AT_SIZE);
    memcpy(h->id, t + AT_ID, SNAP_ID);
    memcpy(h->parent, t + AT_PARENT, SNAP_ID);
    if (h->kind != MEMFILE_FULL && h->kind != MEMFILE_DIFF)
        return err_set(e, EINVAL, "memory file of unknown kind %u", (unsigned)h->kind);
    if (h->kind == MEMFILE_DIFF) {
        if (!(*bits = map_bits(h->mem_size)))
            return err_set(e, ENOMEM, "no memory for a bitmap");
        if ((rc = get(fd, *bits, bitmap_bytes(h), h->mem_size + PAGE_SIZE)))
            err_set(e, -rc, "cannot read the memory file's bitmap: %s", strerror(-rc));
    }
    if (rc == 0 && le64_get(t + AT_SUM) != XXH64(*bits, bitmap_bytes(h), XXH64(t, AT_SUM, 0)))
        rc =
            err_set(e, EINVAL, "the memory file's trailer is damaged: its checksum does not match");
    if (*bits && (rc || !out)) {
        munmap(*bits, memfile_bitmap(h->mem_size));
        *bits = NULL;
    }
    return rc;
}

int memfile_data(int fd, uint64_t mem_size, uint64_t *bits, struct err *e)
{
    for (off_t at = 0, end; at < (off_t)mem_size; at = end) {
        at = lseek(fd, at, SEEK_DATA);
        if (at < 0 && errno == ENXIO)
            return 0;
        end = at < 0 ? at : lseek(fd, at, SEEK_HOLE);
        if (at < 0 || end < 0)
            return err_set(e, errno, "cannot map out the memory file: %s", strerror(errno));
        uint64_t first = (uint64_t)at / PAGE_SIZE;
        uint64_t last = MIN(((uint64_t)end + PAGE_SIZE - 1), mem_size) / PAGE_SIZE;
        if (first < last)
            pages_set(bits, first, last - first);
    }
    return 0;
}

int memfile_read(int fd, const struct guest_mem *m, struct err *e)
{
    uint64_t *bits = map_bits(m->size);
    int rc =
        bits ? memfile_data(fd, m->size, bits, e) : err_set(e, ENOMEM, "no memory for a bitmap");

    for (uint64_t i = 0, n, len; rc == 0 && (n = pages_run(bits, m->size / PAGE_SIZE, &i));
         i += n) {
        uint8_t *p = pages_at(m, i * PAGE_SIZE, &len);
        n = MIN(n, len / PAGE_SIZE);
        if ((rc = get(fd, p, n * PAGE_SIZE, i * PAGE_SIZE)))
            err_set(e, -rc, "cannot read the memory file: %s", strerror(-rc));
    }
    if (bits)
        munmap(bits, memfile_bitmap(m->size));
    return rc;
}
