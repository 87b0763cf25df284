// SPDX-License-Identifier: Apache-2.0
// Which pages are our own, and runs of them. PAGEMAP_SCAN is Linux 6.7; before, the page map itself is read.
#include "vmm/mem/pages.h"

#include <sys/ioctl.h>

// Kernel ABI that linux-libc-dev 6.1 lacks (include/uapi/linux/fs.h).
struct scan_region {
    uint64_t start, end, categories;
};
struct scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t inverted, mask, anyof, ret;
};
#define SCAN         _IOWR('f', 16, struct scan_arg)
#define SCAN_FILE    (1u << 2)
#define SCAN_PRESENT (1u << 3)
#define SCAN_SWAPPED (1u << 4)
#define SCAN_ZERO    (1u << 5)
#define MAP_FILE_BIT (1ULL << 61) // file page or shared anonymous
#define MAP_SWAPPED  (1ULL << 62)
#define MAP_PRESENT  (1ULL << 63)

uint8_t *pages_at(const struct guest_mem *m, uint64_t off, uint64_t *len)
{
    for (unsigned i = 0; i < m->n; i++) {
        const struct mem_region *r = &m->r[i];
        if (off - r->file_off < r->size) {
            *len = r->size - (off - r->file_off);
            return r->host + (off - r->file_off);
        }
    }
    *len = 0;
    return NULL;
}

void pages_set(uint64_t *bits, uint64_t first, uint64_t n)
{
    for (uint64_t end = first + n; first < end;) {
        uint64_t at = first % 64, k = MIN(64 - at, end - first);
        bits[first / 64] |= (k == 64 ? ~0ULL : (1ULL << k) - 1) << at;
        first += k;
    }
}

uint64_t pages_run_max(const uint64_t *bits, uint64_t npages, uint64_t *first, uint64_t max)
{
    uint64_t p = *first, end;

    while (p < npages && !(bits[p / 64] >> (p % 64) & 1)) {
        uint64_t rest = bits[p / 64] >> (p % 64);
        p = rest ? p + (unsigned)__builtin_ctzll(rest) : (p / 64 + 1) * 64;
    }
    npages = p < npages ? p + MIN(npages - p, max) : p;
    for (end = p; end < npages && bits[end / 64] >> (end % 64) & 1;) {
        uint64_t rest = ~(bits[end / 64] >> (end % 64));
        end += MIN((unsigned)__builtin_ctzll(rest | 1ULL << 63), 64 - end % 64);
    }
    end = MIN(end, npages);
    *first = p;
    return p < end ? end - p : 0;
}

bool page_is_zero(const void *page)
{
    const uint64_t *p = page;

    // Most pages that hold anything show it in their first line; the C library's memcmp goes byte by byte.
    for (const uint64_t *end = p + PAGE_SIZE / sizeof(*p); p < end; p += 8)
        if (p[0] | p[1] | p[2] | p[3] | p[4] | p[5] | p[6] | p[7])
            return false;
    return true;
}

// #syscalls:config ioctl(PAGEMAP_SCAN@PAGEMAP)
// #syscalls:control ioctl(PAGEMAP_SCAN@PAGEMAP)
static int scan(const struct mem_region *r, int fd, bool own, uint64_t *bits)
{
    struct scan_region got[256];
    uint64_t base = (uint64_t)(uintptr_t)r->host;
    struct scan_arg a = {.size = sizeof(a),
                         .start = base,
                         .end = base + r->size,
                         .vec = (uint64_t)(uintptr_t)got,
                         .vec_len = ARRAY_SIZE(got),
                         .inverted = own ? SCAN_FILE | SCAN_ZERO : 0,
                         .mask = own ? SCAN_FILE | SCAN_ZERO : SCAN_FILE | SCAN_PRESENT,
                         .anyof = SCAN_PRESENT | SCAN_SWAPPED,
                         .ret =
                             SCAN_FILE}; // alike for all that match: neighbours come as one region
    while (a.start < a.end) {
        int n = ioctl(fd, SCAN, &a);
        if (n < 0)
            return -errno;
        for (int i = 0; i < n; i++)
            pages_set(bits, (got[i].start - base + r->file_off) / PAGE_SIZE,
                      (got[i].end - got[i].start) / PAGE_SIZE);
        a.start = a.walk_end;
    }
    return 0;
}

// #syscalls:config preadv2(0)
// #syscalls:control preadv2(0)
static int read_map(const struct mem_region *r, int fd, bool own, uint64_t *bits)
{
    uint64_t buf[512], base = (uint64_t)(uintptr_t)r->host / PAGE_SIZE, n = r->size / PAGE_SIZE;

    for (uint64_t p = 0; p < n;) {
        struct iovec v = {.iov_base = buf, .iov_len = MIN(sizeof(buf), (n - p) * 8)};
        ssize_t got = preadv2(fd, &v, 1, (off_t)((base + p) * sizeof(uint64_t)), 0);
        if (got <= 0 || got % 8)
            return got < 0 ? -errno : -EIO;
        for (ssize_t i = 0; i < got / 8; i++, p++)
            if (buf[i] & (MAP_PRESENT | MAP_SWAPPED) && !(buf[i] & MAP_FILE_BIT) == own)
                pages_set(bits, r->file_off / PAGE_SIZE + p, 1);
    }
    return 0;
}

static int look(const struct guest_mem *m, int fd, bool own, uint64_t *bits, struct err *e)
{
    int rc = 0;

    for (unsigned i = 0; i < m->n && rc == 0; i++) {
        rc = scan(&m->r[i], fd, own, bits);
        if (rc == -ENOTTY || rc == -EINVAL)
            rc = read_map(&m->r[i], fd, own, bits);
    }
    return rc ? err_set(e, EIO, "cannot read the page map: %s", strerror(-rc)) : 0;
}

bool page_is_same(const void *a, const void *b)
{
    const uint64_t *p = a, *q = b;

    for (size_t i = 0; i < PAGE_SIZE / sizeof(*p); i++)
        if (p[i] != q[i])
            return false;
    return true;
}

int pages_own(const struct guest_mem *m, int fd, uint64_t *bits, struct err *e)
{
    if (fd >= 0)
        return look(m, fd, true, bits, e);
    pages_set(bits, 0, m->size / PAGE_SIZE);
    return 0;
}

int pages_shared(const struct guest_mem *m, int fd, uint64_t *bits, struct err *e)
{
    return look(m, fd, false, bits, e);
}
