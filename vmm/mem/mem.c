// SPDX-License-Identifier: Apache-2.0
// Guest memory: reservation, backing, checked access, and the bitmap of what the monitor wrote.
//
// #syscalls:config mmap(!PROT_EXEC) mprotect(!PROT_EXEC) munmap madvise(MADV_HUGEPAGE, MADV_NOHUGEPAGE) newfstatat
// The bitmap of a large guest comes from mmap, and the orderly end unmaps:
// #syscalls:control mmap(!PROT_EXEC) munmap
#include "vmm/mem/mem.h"

#include <sys/mman.h>
#include <sys/stat.h>

#define HOLES_MAX  256 // each costs a mapping
#define HUGE_PAGE  (2 * MIB)
#define HUGETLB_2M (MAP_HUGETLB | 21 << MAP_HUGE_SHIFT) // log2 of the page size

// Reserves `size` bytes on a 2 MiB boundary, so that transparent huge pages line up in guest and
// host alike.
static uint8_t *reserve(uint64_t size)
{
    size_t want = size + HUGE_PAGE;
    uint8_t *p = mmap(NULL, want, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    size_t head = (size_t)(-(uintptr_t)p & (HUGE_PAGE - 1));
    if (head > 0)
        munmap(p, head);
    if (HUGE_PAGE - head > 0)
        munmap(p + head + size, HUGE_PAGE - head);
    return p + head;
}

int mem_reserve(struct guest_mem *m, uint64_t size, struct err *e)
{
    memset(m, 0, sizeof(*m));
    if (size == 0 || size % MIB != 0 || size > UINT64_MAX / 4)
        return err_set(e, EINVAL, "memory size must be a positive multiple of 1 MiB");
    const uint64_t low = MIN(size, MEM_GAP_START);
    const struct mem_region plan[MEM_MAX_REGIONS] = {
        {.gpa = 0, .size = low},
        {.gpa = MEM_GAP_END, .size = size - low, .file_off = low},
    };
    for (unsigned i = 0; i < MEM_MAX_REGIONS && plan[i].size > 0; i++) {
        m->r[i] = plan[i];
        m->r[i].host = reserve(plan[i].size);
        if (!m->r[i].host) {
            mem_free(m);
            return err_set(e, ENOMEM, "cannot reserve %llu MiB of address space",
                           (unsigned long long)(size / MIB));
        }
        m->n = i + 1;
    }
    m->size = size;
    return 0;
}

static bool map_over(uint8_t *at, uint64_t len, int prot, int flags, int fd, uint64_t off)
{
    // MAP_FIXED stays inside our own reservation, so it replaces nothing but ourselves.
    return mmap(at, len, prot, flags | MAP_PRIVATE | MAP_FIXED, fd, (off_t)off) != MAP_FAILED;
}

void mem_unback(struct guest_mem *m)
{
    for (unsigned i = 0; i < m->n && m->backed; i++)
        map_over(m->r[i].host, m->r[i].size, PROT_NONE, MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    m->backed = false;
}

static int failed(struct guest_mem *m, const char *what, unsigned long long n, struct err *e)
{
    int rc = err_set(e, ENOMEM, "%s (%llu): %m", what, n);
    mem_unback(m);
    return rc;
}

// The reservation is anonymous memory already: to allow it costs nothing, while a mapping over a memory slot
// has KVM look for every page that may have been there (0.3 ms for 1 GiB, on PVM).
static bool open_up(uint8_t *at, uint64_t len, enum mem_pages pages)
{
    if (mprotect(at, len, PROT_READ | PROT_WRITE))
        return false;
    // Advice: a kernel built without huge pages refuses it, and nothing is lost.
    if (pages != MEM_PAGES_HOST)
        madvise(at, len, pages == MEM_PAGES_SMALL ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    return true;
}

// Pages of the host's pool are reserved, not only mapped: a page missing later would be a SIGBUS.
int mem_back_anon(struct guest_mem *m, enum mem_pages pages, struct err *e)
{
    const bool pool = pages == MEM_PAGES_2M;

    mem_unback(m);
    m->backed = true;
    for (unsigned i = 0; i < m->n; i++) {
        const struct mem_region *r = &m->r[i];
        if (pool ? !map_over(r->host, r->size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | HUGETLB_2M,
                             -1, 0)
                 : !open_up(r->host, r->size, pages))
            return pool ? failed(m, "huge_pages: the host has not so many free huge pages of 2 MiB",
                                 m->size / HUGE_PAGE, e)
                        : failed(m, "cannot map guest memory, MiB", m->size / MIB, e);
    }
    return 0;
}

void mem_dense(const struct guest_mem *m, uint64_t gpa, uint64_t n)
{
    uint8_t *p = mem_at(m, gpa, n, MEM_READ);
    if (!p)
        return;
    const size_t skip = -(uintptr_t)p % HUGE_PAGE;
    if (skip < n && n - skip >= HUGE_PAGE)
        madvise(p + skip, (n - skip) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
}

static bool map_file(const struct mem_region *r, int fd, off_t from, off_t to)
{
    return from == to || map_over(r->host + (from - (off_t)r->file_off), (uint64_t)(to - from),
                                  PROT_READ | PROT_WRITE, MAP_NORESERVE, fd, (uint64_t)from);
}

// #syscalls:config lseek
static bool back_region(const struct mem_region *r, int fd, enum mem_pages pages, unsigned *budget)
{
    const off_t from = (off_t)r->file_off, end = from + (off_t)r->size;
    off_t done = from;

    for (off_t data = from, hole; data < end && *budget; --*budget) {
        if ((hole = lseek(fd, data, SEEK_HOLE)) < 0 || hole >= end)
            break; // a file system without holes has none
        data = lseek(fd, hole, SEEK_DATA);
        if (data < 0 || data > end)
            data = end;
        hole = ALIGN_UP(hole, PAGE_SIZE);
        const off_t next = ALIGN_DOWN(data, PAGE_SIZE);
        if (next - hole < (off_t)HUGE_PAGE)
            continue;
        if (!map_file(r, fd, done, hole) ||
            !open_up(r->host + (hole - from), (uint64_t)(next - hole), pages))
            return false;
        done = next;
    }
    return map_file(r, fd, done, end);
}

int mem_back_file(struct guest_mem *m, int fd, enum mem_pages pages, struct err *e)
{
    unsigned budget = HOLES_MAX;
    struct stat st;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(e, EINVAL, "the memory file is not a regular file");
    if ((uint64_t)st.st_size < m->size)
        return err_set(e, EINVAL, "the memory file holds %llu bytes, the guest's RAM is %llu",
                       (unsigned long long)st.st_size, (unsigned long long)m->size);
    mem_unback(m);
    m->backed = true;
    for (unsigned i = 0; i < m->n; i++)
        if (!back_region(&m->r[i], fd, pages, &budget))
            return failed(m, "cannot map the memory file, MiB", m->size / MIB, e);
    return 0;
}

void mem_free(struct guest_mem *m)
{
    for (unsigned i = 0; i < m->n; i++)
        munmap(m->r[i].host, m->r[i].size);
    free_ptrp(&m->dirty);
    memset(m, 0, sizeof(*m));
}

// Unconditional, since a locked OR is also the barrier that puts the data before the bit: whoever
// takes the bit afterwards sees the data.
static void mark(const struct guest_mem *m, const struct mem_region *r, uint64_t off, uint64_t len)
{
    const uint64_t first = (r->file_off + off) / PAGE_SIZE;
    const uint64_t last = (r->file_off + off + len - 1) / PAGE_SIZE;
    for (uint64_t p = first; p <= last; p++)
        atomic_fetch_or(&m->dirty[p / 64], 1ULL << (p % 64));
}

void *mem_at(const struct guest_mem *m, uint64_t gpa, uint64_t len, enum mem_access how)
{
    for (unsigned i = 0; i < m->n; i++) {
        const struct mem_region *r = &m->r[i];
        const uint64_t off = gpa - r->gpa; // wraps to a huge offset when gpa is below the region
        if (off >= r->size)
            continue;
        if (len == 0 || len > r->size - off)
            return NULL;
        if (how == MEM_WRITE && m->dirty)
            mark(m, r, off, len);
        return r->host + off;
    }
    return NULL;
}

int mem_read(const struct guest_mem *m, uint64_t gpa, void *buf, uint64_t len)
{
    const void *p = mem_at(m, gpa, len, MEM_READ);
    if (!p)
        return -EFAULT;
    memcpy(buf, p, len);
    return 0;
}

int mem_write(const struct guest_mem *m, uint64_t gpa, const void *buf, uint64_t len)
{
    void *p = mem_at(m, gpa, len, MEM_READ);
    if (!p)
        return -EFAULT;
    memcpy(p, buf, len);
    mem_dirty(m, p, len); // after the data, see mem_dirty
    return 0;
}

void mem_dirty(const struct guest_mem *m, const void *host, uint64_t len)
{
    if (!m->dirty || len == 0)
        return;
    for (unsigned i = 0; i < m->n; i++) {
        const struct mem_region *r = &m->r[i];
        const uint64_t off = (uint64_t)((uintptr_t)host - (uintptr_t)r->host);
        if (off < r->size) {
            mark(m, r, off, MIN(len, r->size - off));
            return;
        }
    }
}

static size_t dirty_words(const struct guest_mem *m)
{
    return (m->size / PAGE_SIZE + 63) / 64;
}

int mem_track(struct guest_mem *m, bool on, struct err *e)
{
    free_ptrp(&m->dirty);
    m->dirty = NULL;
    if (!on)
        return 0;
    m->dirty = calloc(dirty_words(m), sizeof(*m->dirty));
    return m->dirty ? 0 : err_set(e, ENOMEM, "no memory for the dirty page bitmap");
}

uint64_t mem_dirty_take(struct guest_mem *m, size_t word)
{
    if (!m->dirty || word >= dirty_words(m))
        return 0;
    return atomic_exchange(&m->dirty[word], 0);
}
