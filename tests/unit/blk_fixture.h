// SPDX-License-Identifier: Apache-2.0
// A block device under test: guest memory, a driver's side of its queue, and a monitor whose ring
// keeps every operation until the test lets it land, as it is, short, or as an error.
//
// Used by the unit tests and the fuzz harnesses; needs no test framework.
#ifndef TESTS_UNIT_BLK_FIXTURE_H
#define TESTS_UNIT_BLK_FIXTURE_H

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tests/unit/blk_calls.h"
#include "virtio/blk_priv.h"

#define FX_MEM    (4 * MIB)
#define FX_DESC   0x1000u
#define FX_AVAIL  0x2000u
#define FX_USED   0x3000u
#define FX_HDR    0x8000u // request i's header at + 64 i, its status byte at + 64 i + 32
#define FX_DATA   0x100000u
#define FX_RING   512u
#define FX_NOBODY 0xeeu // status byte before an answer

enum { REQ_IN = 0, REQ_OUT = 1, REQ_FLUSH = 4, REQ_GETID = 8, REQ_TRIM = 11, REQ_ZERO = 13 };
enum { ST_OK = 0, ST_IOERR = 1, ST_UNSUPP = 2 };

struct fx {
    struct guest_mem mem;
    struct vio_host host;
    struct blk *b;
    struct vio_dev *d;
    struct vio_io *ring[FX_RING];
    unsigned nring;
    int files[16];
    unsigned irqs, again, notes, ios;
    unsigned busy; // so many io calls answer -EBUSY
    uint64_t timer;
    uint16_t avail, next_desc;
    unsigned nth_io; // the n-th operation on the ring fails with EIO
};

static inline void fx_irq(void *ctx, unsigned slot)
{
    (void)slot;
    ((struct fx *)ctx)->irqs++;
}

static inline void fx_again(void *ctx, unsigned slot)
{
    (void)slot;
    ((struct fx *)ctx)->again++;
}

static inline int fx_io(void *ctx, struct vio_io *io)
{
    struct fx *f = ctx;
    if (f->busy > 0 || f->nring == FX_RING) {
        f->busy -= f->busy > 0;
        return -EBUSY;
    }
    if (io->op == VIO_IO_FSYNC)
        fx_log('s');
    f->ring[f->nring++] = io;
    f->ios++;
    return 0;
}

static inline int fx_file_add(void *ctx, int fd)
{
    struct fx *f = ctx;
    for (int i = 0; i < (int)ARRAY_SIZE(f->files); i++)
        if (f->files[i] < 0) {
            f->files[i] = fd;
            return i;
        }
    return -ENFILE;
}

static inline void fx_file_del(void *ctx, int file)
{
    ((struct fx *)ctx)->files[file] = -1;
}

static inline void fx_poll(void *ctx, unsigned slot, int file)
{
    (void)ctx, (void)slot, (void)file;
}

static inline void fx_timer(void *ctx, unsigned slot, uint64_t at)
{
    (void)slot;
    ((struct fx *)ctx)->timer = at;
}

static inline void fx_note(void *ctx, unsigned slot, const char *what)
{
    (void)slot, (void)what;
    ((struct fx *)ctx)->notes++;
}

// An unlinked file of `bytes` on the file system of `dir`; sector i is filled with the byte i + 1.
static inline int fx_file(const char *dir, uint64_t bytes, int flags)
{
    char path[64];
    uint8_t s[512];
    snprintf(path, sizeof(path), "%s/blk-XXXXXX", dir);
    int fd = mkstemp(path);
    if (fd < 0)
        return -1;
    for (uint64_t i = 0; i < bytes / 512; i++) {
        memset(s, (int)(i + 1) & 0xff, sizeof(s));
        if (pwrite(fd, s, sizeof(s), (off_t)(i * 512)) != sizeof(s))
            return -1;
    }
    if (flags != O_RDWR) {
        close(fd);
        fd = open(path, flags);
    }
    unlink(path);
    return fd;
}

static inline void wr32(struct vio_dev *d, uint32_t off, uint32_t v)
{
    vio_mmio_write(d, off, 4, v);
}

// From reset to DRIVER_OK, taking every feature but EVENT_IDX.
static inline void fx_start(struct fx *f)
{
    struct vio_dev *d = f->d;
    wr32(d, 0x70, 0);
    wr32(d, 0x70, 1);
    wr32(d, 0x70, 3);
    for (uint32_t w = 0; w < 2; w++) {
        wr32(d, 0x14, w);
        uint32_t feat = (uint32_t)vio_mmio_read(d, 0x10, 4);
        wr32(d, 0x24, w);
        wr32(d, 0x20, w == 0 ? feat & ~(uint32_t)VIO_F_EVENT_IDX : feat);
    }
    wr32(d, 0x70, 11);
    wr32(d, 0x30, 0);
    wr32(d, 0x38, VIO_QUEUE_SIZE);
    wr32(d, 0x80, FX_DESC);
    wr32(d, 0x90, FX_AVAIL);
    wr32(d, 0xa0, FX_USED);
    memset(mem_at(&f->mem, FX_AVAIL, 0x1000, MEM_WRITE), 0, 0x1000);
    memset(mem_at(&f->mem, FX_USED, 0x1000, MEM_WRITE), 0, 0x1000);
    f->avail = 0;
    f->next_desc = 0;
    wr32(d, 0x44, 1);
    wr32(d, 0x70, 15);
}

static inline int fx_init(struct fx *f, const struct blk_backing *k, const struct limiter_cfg *rl)
{
    struct err e = {.msg = ""};
    memset(f, 0, sizeof(*f));
    memset(&fx_calls, 0, sizeof(fx_calls));
    memset(f->files, 0xff, sizeof(f->files));
    f->host = (struct vio_host){f,           fx_irq,  fx_again, fx_io,    fx_file_add,
                                fx_file_del, fx_poll, fx_poll,  fx_timer, fx_note};
    if (mem_reserve(&f->mem, FX_MEM, &e) < 0 || mem_back_anon(&f->mem, false, &e) < 0)
        return -ENOMEM;
    f->b = blk_new(&f->host, &f->mem, 3, k, "drive-one-12345678.", rl, &e);
    if (!f->b) {
        fprintf(stderr, "blk_new: %s\n", e.msg);
        mem_free(&f->mem);
        return -EINVAL;
    }
    f->d = blk_dev(f->b);
    fx_start(f);
    return 0;
}

static inline void fx_end(struct fx *f)
{
    blk_free(f->b);
    mem_free(&f->mem);
}

static inline uint8_t *fx_at(struct fx *f, uint64_t gpa)
{
    return mem_at(&f->mem, gpa, 1, MEM_READ);
}

// ---- the driver

struct seg {
    uint64_t gpa;
    uint32_t len;
    bool write;
};

// Puts a chain into the table and makes it available. Returns its head.
static inline uint16_t fx_offer(struct fx *f, const struct seg *s, unsigned n)
{
    const uint16_t head = f->next_desc;
    for (unsigned i = 0; i < n; i++) {
        uint8_t d[16];
        le64_put(d, s[i].gpa);
        le32_put(d + 8, s[i].len);
        le16_put(d + 12, (uint16_t)((i + 1 < n ? 1 : 0) | (s[i].write ? 2 : 0)));
        f->next_desc = (uint16_t)((f->next_desc + 1) % VIO_QUEUE_SIZE);
        le16_put(d + 14, f->next_desc);
        memcpy(fx_at(f, FX_DESC + 16u * ((head + i) % VIO_QUEUE_SIZE)), d, sizeof(d));
    }
    le16_put(fx_at(f, FX_AVAIL + 4 + 2u * (f->avail % VIO_QUEUE_SIZE)), head);
    // Release: what is offered from another thread is whole when the device sees it.
    __atomic_store_n((uint16_t *)(void *)fx_at(f, FX_AVAIL + 2), ++f->avail, __ATOMIC_RELEASE);
    return head;
}

static inline uint64_t fx_hdr(struct fx *f, unsigned i, uint32_t type, uint64_t sector)
{
    const uint64_t at = FX_HDR + 64u * i;
    le32_put(fx_at(f, at), type);
    le32_put(fx_at(f, at + 4), 0);
    le64_put(fx_at(f, at + 8), sector);
    *fx_at(f, at + 32) = FX_NOBODY;
    return at;
}

static inline uint8_t fx_status(struct fx *f, unsigned i)
{
    return *fx_at(f, FX_HDR + 64u * i + 32);
}

static inline uint16_t fx_used(struct fx *f)
{
    return le16_get(fx_at(f, FX_USED + 2));
}

static inline uint32_t fx_used_len(struct fx *f, uint16_t n)
{
    return le32_get(fx_at(f, FX_USED + 8 + 8u * (n % VIO_QUEUE_SIZE)));
}

// Request i in the usual three descriptors: header, data at gpa (none when len is 0), status.
static inline void fx_req(struct fx *f, unsigned i, uint32_t type, uint64_t sector, uint64_t gpa,
                          uint32_t len)
{
    const uint64_t h = fx_hdr(f, i, type, sector);
    const bool in = type == REQ_IN || type == REQ_GETID;
    const struct seg s[] = {{h, 16, false}, {gpa, len, in}, {h + 32, 1, true}};
    const struct seg bare[] = {s[0], s[2]};
    fx_offer(f, len ? s : bare, len ? 3 : 2);
}

// A discard or write-zeroes: its 16-byte range lies behind the header.
static inline void fx_range(struct fx *f, unsigned i, uint32_t type, uint64_t sector, uint32_t n,
                            uint32_t flags)
{
    const uint64_t h = fx_hdr(f, i, type, 0);
    le64_put(fx_at(f, h + 16), sector);
    le32_put(fx_at(f, h + 24), n);
    le32_put(fx_at(f, h + 28), flags);
    const struct seg s[] = {{h, 32, false}, {h + 32, 1, true}};
    fx_offer(f, s, 2);
}

static inline void fx_kick(struct fx *f)
{
    f->again = 1;
    for (int i = 0; f->again && i < 1000; i++) {
        f->again = 0;
        vio_kick(f->d);
    }
}

// ---- the ring

static inline int fx_do(struct fx *f, const struct vio_io *io, size_t max)
{
    struct iovec v[FX_NSEGS];
    const int fd = f->files[io->file];
    long n = 0;
    if (io->op == VIO_IO_READV || io->op == VIO_IO_WRITEV) {
        const size_t k = fx_trim(v, io->iov, (int)io->niov, max ? max : SIZE_MAX);
        n = syscall(io->op == VIO_IO_READV ? SYS_preadv2 : SYS_pwritev2, fd, v, k, io->off, 0, 0);
    } else if (io->op == VIO_IO_FALLOCATE) {
        n = fallocate(fd, (int)io->flags, (off_t)io->off, (off_t)io->len);
    }
    return n < 0 ? -errno : (int)n;
}

// Lets operation i land: res 0, as the kernel does it, moving at most `max` bytes unless 0; else
// with that error.
static inline void fx_land(struct fx *f, unsigned i, int res, size_t max)
{
    struct vio_io *io = f->ring[i];
    memmove(&f->ring[i], &f->ring[i + 1], (f->nring - i - 1) * sizeof(f->ring[0]));
    f->nring--;
    if (f->nth_io && --f->nth_io == 0)
        res = -EIO;
    vio_io_done(io, res < 0 ? res : fx_do(f, io, max));
}

// Kicks and lands until nothing moves.
static inline void fx_pump(struct fx *f)
{
    fx_kick(f);
    while (f->nring > 0) {
        fx_land(f, 0, 0, 0);
        fx_kick(f);
    }
}

// ---- whole requests, alone in the queue: their status

static inline uint8_t fx_ask(struct fx *f, uint32_t type, uint64_t sector, uint64_t gpa,
                             uint32_t len)
{
    fx_req(f, 0, type, sector, gpa, len);
    fx_pump(f);
    return fx_status(f, 0);
}

static inline uint8_t fx_ask_range(struct fx *f, uint32_t type, uint64_t sector, uint32_t n,
                                   uint32_t flags)
{
    fx_range(f, 0, type, sector, n, flags);
    fx_pump(f);
    return fx_status(f, 0);
}

static inline uint8_t fx_ask_segs(struct fx *f, const struct seg *s, unsigned n)
{
    fx_offer(f, s, n);
    fx_pump(f);
    return fx_status(f, 0);
}

static inline bool fx_filled(const void *p, uint8_t with, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (((const uint8_t *)p)[i] != with)
            return false;
    return true;
}

static inline int fx_sector(int fd,
                            uint64_t sector) // the byte it is filled with; -1: mixed or none
{
    uint8_t s[512];
    if (pread(fd, s, sizeof(s), (off_t)(sector * 512)) != sizeof(s))
        return -1;
    return fx_filled(s, s[0], sizeof(s)) ? s[0] : -1;
}

#endif
