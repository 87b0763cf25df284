// SPDX-License-Identifier: Apache-2.0
// The copy-on-write layer: its file, and the bitmap in memory that stands for the one in the file.
//
// #syscalls:config newfstatat preadv2(0) pwritev2(5:0) ftruncate
// #syscalls:device preadv2(0) pwritev2(5:0)
// The end of a microVM saves the bitmap:
// #syscalls:control pwritev2(5:0)
#include "virtio/blk_cow.h"

#include <sys/stat.h>
#include <sys/uio.h>

#include "virtio/virtio.h"

#define MAGIC      "MAYFLYCW"
#define VERSION    1u
#define HDR_SIZE   4096u
#define BITMAP_OFF HDR_SIZE
#define PAGE_BITS  (PAGE_SIZE * 8) // blocks that one bitmap page tells about
#define PAGE_WORDS (PAGE_SIZE / 8)
#define MAX_BYTES  (1ULL << 50) // 1 PiB: no sum below overflows

// The header's fields; the rest of its page is zero.
enum {
    H_MAGIC = 0,       // 8 bytes
    H_VERSION = 8,     // u32
    H_BLOCK = 12,      // u32
    H_BYTES = 16,      // u64, of the base
    H_MTIME_SEC = 24,  // u64, of the base; 0 for a block device
    H_MTIME_NSEC = 32, // u64
    H_BITMAP_OFF = 40, // u64
    H_DATA_OFF = 48,   // u64
    H_SUM = 56,        // u64, FNV-1a of the page with this field zero
    H_END = 64,
};

int blk_pread(int fd, void *buf, size_t len, uint64_t off)
{
    for (size_t done = 0; done < len;) {
        struct iovec v = {.iov_base = (uint8_t *)buf + done, .iov_len = len - done};
        ssize_t n = preadv2(fd, &v, 1, (off_t)(off + done), 0);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0)
            return -EIO;
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

int blk_pwrite(int fd, const void *buf, size_t len, uint64_t off)
{
    for (size_t done = 0; done < len;) {
        struct iovec v = {.iov_len = len - done};
        const uint8_t *p = (const uint8_t *)buf + done;
        memcpy(&v.iov_base, &p, sizeof(p)); // iovec knows no const
        ssize_t n = pwritev2(fd, &v, 1, (off_t)(off + done), 0);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0)
            return -EIO;
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static uint64_t checksum(const uint8_t *h)
{
    uint64_t sum = 0xcbf29ce484222325ULL;
    for (unsigned i = 0; i < HDR_SIZE; i++) {
        const uint8_t byte = i >= H_SUM && i < H_END ? 0 : h[i];
        sum = (sum ^ byte) * 0x100000001b3ULL;
    }
    return sum;
}

static uint64_t blocks_of(uint64_t bytes)
{
    return (bytes + COW_BLOCK - 1) / COW_BLOCK;
}

static uint64_t bitmap_len(uint64_t bytes)
{
    return (blocks_of(bytes) + PAGE_BITS - 1) / PAGE_BITS * PAGE_SIZE;
}

static uint64_t file_len(uint64_t bytes)
{
    return BITMAP_OFF + bitmap_len(bytes) + blocks_of(bytes) * COW_BLOCK;
}

// The one header that is right for this base: reading a layer is comparing with it, so that no
// field of the file is ever used.
static int header_for(uint8_t *h, int base_fd, uint64_t bytes, struct err *e)
{
    struct stat st;
    if (fstat(base_fd, &st) < 0)
        return err_set(e, errno, "cannot examine the base image: %m");
    if (bytes == 0 || bytes % 512 || bytes > MAX_BYTES)
        return err_set(e, EINVAL, "a layer's base must be 512 bytes to 1 PiB in sectors");
    memset(h, 0, HDR_SIZE);
    memcpy(h + H_MAGIC, MAGIC, 8);
    le32_put(h + H_VERSION, VERSION);
    le32_put(h + H_BLOCK, (uint32_t)COW_BLOCK);
    le64_put(h + H_BYTES, bytes);
    if (S_ISREG(st.st_mode)) {
        le64_put(h + H_MTIME_SEC, (uint64_t)st.st_mtim.tv_sec);
        le64_put(h + H_MTIME_NSEC, (uint64_t)st.st_mtim.tv_nsec);
    }
    le64_put(h + H_BITMAP_OFF, BITMAP_OFF);
    le64_put(h + H_DATA_OFF, BITMAP_OFF + bitmap_len(bytes));
    le64_put(h + H_SUM, checksum(h));
    return 0;
}

int cow_format(int fd, int base_fd, uint64_t bytes, struct err *e)
{
    uint8_t h[HDR_SIZE];
    static const uint8_t zeros[16 * PAGE_SIZE];
    struct stat st;
    int rc = header_for(h, base_fd, bytes, e);
    if (rc < 0)
        return rc;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size != 0)
        return err_set(e, EINVAL, "a new layer must be an empty regular file");
    // The bitmap is written out, not left a hole, so that saving it later cannot meet ENOSPC. The
    // header comes last: a half-made layer is not one.
    for (uint64_t at = 0; rc == 0 && at < bitmap_len(bytes); at += sizeof(zeros))
        rc = blk_pwrite(fd, zeros, MIN(sizeof(zeros), bitmap_len(bytes) - at), BITMAP_OFF + at);
    if (rc == 0 && ftruncate(fd, (off_t)file_len(bytes)) < 0)
        rc = -errno;
    if (rc == 0)
        rc = blk_pwrite(fd, h, sizeof(h), 0);
    return rc < 0 ? err_set(e, -rc, "cannot make the layer: %s", strerror(-rc)) : 0;
}

static int check(int fd, int base_fd, uint64_t bytes, struct err *e)
{
    uint8_t want[HDR_SIZE], h[HDR_SIZE];
    struct stat st;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(e, EINVAL, "the layer is not a regular file");
    int rc = st.st_size == 0 ? cow_format(fd, base_fd, bytes, e) : 0;
    if (rc == 0)
        rc = header_for(want, base_fd, bytes, e);
    if (rc < 0)
        return rc;
    rc = blk_pread(fd, h, sizeof(h), 0);
    if (rc < 0 || memcmp(h, MAGIC, 8) != 0)
        return err_set(e, EINVAL, "the file is not a copy-on-write layer");
    if (le32_get(h + H_VERSION) != VERSION)
        return err_set(e, EINVAL, "layer version %u, this monitor reads %u",
                       le32_get(h + H_VERSION), VERSION);
    if (le64_get(h + H_SUM) != checksum(h))
        return err_set(e, EINVAL, "the layer's header is damaged: wrong checksum");
    if (le64_get(h + H_BYTES) != bytes)
        return err_set(e, EINVAL, "the layer is for a base of %llu bytes, this one has %llu",
                       (unsigned long long)le64_get(h + H_BYTES), (unsigned long long)bytes);
    if (memcmp(h + H_MTIME_SEC, want + H_MTIME_SEC, 16) != 0)
        return err_set(e, EINVAL, "the base has changed since the layer was made");
    if (memcmp(h, want, sizeof(h)) != 0)
        return err_set(e, EINVAL, "the layer's header has an unknown field");
    if (st.st_size != 0 && (uint64_t)st.st_size != file_len(bytes))
        return err_set(e, EINVAL, "the layer's file has the wrong length");
    return 0;
}

// Pages without a bit are left untouched, so a fresh layer costs no memory.
static int load_bits(struct cow *c, struct err *e)
{
    static const uint8_t zeros[PAGE_SIZE];
    _cleanup_(free_ptrp) uint8_t *buf = malloc(16 * PAGE_SIZE);
    if (!buf)
        return err_set(e, ENOMEM, "no memory for the layer's bitmap");
    for (size_t p = 0; p < c->pages; p++) {
        const size_t in = p % 16;
        if (in == 0) {
            const size_t len = MIN(16, c->pages - p) * PAGE_SIZE;
            int rc = blk_pread(c->fd, buf, len, BITMAP_OFF + p * PAGE_SIZE);
            if (rc < 0)
                return err_set(e, -rc, "cannot read the layer's bitmap: %s", strerror(-rc));
        }
        if (memcmp(buf + in * PAGE_SIZE, zeros, PAGE_SIZE) != 0)
            memcpy(c->bits + p * PAGE_WORDS, buf + in * PAGE_SIZE, PAGE_SIZE);
    }
    const uint64_t blocks = blocks_of(c->bytes), end = c->pages * PAGE_BITS;
    for (uint64_t i = blocks; i < end; i++)
        if (cow_has(c, i))
            return err_set(e, EINVAL, "the layer's bitmap names a block past the end");
    return 0;
}

int cow_open(struct cow **out, int fd, int base_fd, uint64_t bytes, struct err *e)
{
    int rc = check(fd, base_fd, bytes, e);
    if (rc < 0)
        return rc;
    struct cow *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(e, ENOMEM, "no memory for a copy-on-write layer");
    c->fd = fd;
    c->bytes = bytes;
    c->data_off = BITMAP_OFF + bitmap_len(bytes);
    c->pages = bitmap_len(bytes) / PAGE_SIZE;
    const size_t mask = (c->pages + 63) / 64;
    c->bits = calloc(c->pages, PAGE_SIZE);
    c->stage = calloc(c->pages, PAGE_SIZE);
    c->dirty = calloc(mask, sizeof(*c->dirty));
    c->staged = calloc(mask, sizeof(*c->staged));
    c->bounce = calloc(VIO_QUEUE_SIZE, COW_BLOCK);
    rc = c->bits && c->stage && c->dirty && c->staged && c->bounce
             ? load_bits(c, e)
             : err_set(e, ENOMEM, "no memory for a copy-on-write layer");
    if (rc < 0) {
        cow_free(c);
        return rc;
    }
    *out = c;
    return 0;
}

void cow_free(struct cow *c)
{
    if (!c)
        return;
    free(c->bits);
    free(c->stage);
    free(c->dirty);
    free(c->staged);
    free(c->bounce);
    free(c);
}

bool cow_has(const struct cow *c, uint64_t block)
{
    return c->bits[block / 64] >> (block % 64) & 1;
}

uint64_t cow_run(const struct cow *c, uint64_t off, uint64_t len, bool *held)
{
    const uint64_t end = off + len;
    uint64_t block = off / COW_BLOCK;
    *held = cow_has(c, block);
    while (++block * COW_BLOCK < end && cow_has(c, block) == *held)
        ;
    return MIN(block * COW_BLOCK, end) - off;
}

void cow_set(struct cow *c, uint64_t off, uint64_t len)
{
    for (uint64_t b = off / COW_BLOCK; b * COW_BLOCK < off + len; b++) {
        if (cow_has(c, b))
            continue;
        c->bits[b / 64] |= 1ULL << (b % 64);
        c->dirty[b / PAGE_BITS / 64] |= 1ULL << (b / PAGE_BITS % 64);
    }
}

int cow_put(struct cow *c, uint64_t block, const void *data)
{
    int rc = blk_pwrite(c->fd, data, COW_BLOCK, c->data_off + block * COW_BLOCK);
    if (rc == 0)
        cow_set(c, block * COW_BLOCK, 1);
    return rc;
}

// Writes the pages of `from` that `mask` names, and clears their bits as they are written.
static int write_pages(struct cow *c, const uint64_t *from, uint64_t *mask)
{
    for (size_t w = 0; w < (c->pages + 63) / 64; w++)
        while (mask[w]) {
            const size_t page = w * 64 + (size_t)__builtin_ctzll(mask[w]);
            int rc = blk_pwrite(c->fd, from + page * PAGE_WORDS, PAGE_SIZE,
                                BITMAP_OFF + page * PAGE_SIZE);
            if (rc < 0)
                return rc;
            mask[w] &= mask[w] - 1;
        }
    return 0;
}

int cow_save(struct cow *c)
{
    return write_pages(c, c->bits, c->dirty);
}

bool cow_stage(struct cow *c)
{
    bool any = false;
    for (size_t p = 0; p < c->pages; p++) {
        const uint64_t bit = 1ULL << (p % 64);
        if (!(c->dirty[p / 64] & bit))
            continue;
        memcpy(c->stage + p * PAGE_WORDS, c->bits + p * PAGE_WORDS, PAGE_SIZE);
        c->dirty[p / 64] &= ~bit;
        c->staged[p / 64] |= bit;
        any = true;
    }
    return any;
}

int cow_commit(struct cow *c)
{
    return write_pages(c, c->stage, c->staged);
}

void cow_unstage(struct cow *c)
{
    for (size_t w = 0; w < (c->pages + 63) / 64; w++) {
        c->dirty[w] |= c->staged[w];
        c->staged[w] = 0;
    }
}
