// SPDX-License-Identifier: Apache-2.0
// Requests that change the disk: writes, discard and write-zeroes, with and without a layer.
//
// Buffered writes are direct calls: they land in the page cache in microseconds, where the ring
// would hand each to a kernel worker thread.
//
// #syscalls:device pwritev2(5:0)
#include "virtio/blk_priv.h"

#include <linux/falloc.h>

static int write_now(struct blk *b, struct blk_req *r, uint64_t shift)
{
    uint64_t end = r->off + BLK_TURN;
    while (r->left > 0) {
        const unsigned n = req_cut(r, b->now.cow ? r->left : MIN(r->left, BLK_TURN));
        if (r->off >= end && !b->now.cow) { // a layer's write is one step: see write_layer
            r->io.off = r->off;
            r->io.flags = 0;
            return req_submit(b, r, VIO_IO_WRITEV, &b->now.top);
        }
        const ssize_t put = pwritev2(b->now.top.fd, r->cur, (int)n, (off_t)(r->off + shift), 0);
        if (put < 0 && errno == EINTR && r->retries++ < 8)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        req_moved(b, r, (uint64_t)put);
    }
    return REQ_DONE;
}

// Makes the layer hold `block` when r covers only part of it. The base block may have to be read by
// the ring; whether the layer holds it is asked anew then, since another request may have been
// faster.
static int copy_up(struct blk *b, struct blk_req *r, uint64_t block)
{
    struct cow *c = b->now.cow;
    const uint64_t at = block * COW_BLOCK;
    const uint32_t len = (uint32_t)MIN(COW_BLOCK, c->bytes - at);
    if (cow_has(c, block) || (r->off <= at && r->off + r->left >= at + len))
        return REQ_DONE;
    uint8_t *page = c->bounce + (size_t)(r - b->pool) * COW_BLOCK;
    if (r->up_block != block + 1) {
        r->up_block = block + 1;
        r->up = (struct iovec){.iov_base = page, .iov_len = len};
        const ssize_t got = blk_read_now(&b->now.base, &r->up, 1, at);
        if (got < 0 && got != -EAGAIN)
            return (int)got;
        r->up_have = got > 0 ? (uint32_t)got : 0;
    }
    if (r->up_have < len) {
        r->up = (struct iovec){.iov_base = page + r->up_have, .iov_len = len - r->up_have};
        r->copyup = true;
        r->io.iov = &r->up;
        r->io.niov = 1;
        r->io.off = at + r->up_have;
        r->io.flags = 0;
        return req_submit(b, r, VIO_IO_READV, &b->now.base);
    }
    memset(page + len, 0, COW_BLOCK - len);
    return cow_put(c, block, page);
}

static int write_layer(struct blk *b, struct blk_req *r)
{
    struct cow *c = b->now.cow;
    const uint64_t off = r->off, left = r->left;
    int rc = copy_up(b, r, off / COW_BLOCK);
    if (rc == REQ_DONE)
        rc = copy_up(b, r, (off + left - 1) / COW_BLOCK);
    if (rc == REQ_DONE)
        rc = write_now(b, r, c->data_off); // waits for nothing: no other request comes between
    if (rc != REQ_DONE)
        return rc;
    cow_set(c, off, left);
    return b->now.b.writeback ? REQ_DONE : cow_save(c);
}

int req_write(struct blk *b, struct blk_req *r)
{
    return b->now.cow ? write_layer(b, r) : write_now(b, r, 0);
}

// ---- discard and write-zeroes

// Lets r's segments name `len` zeros: the guest's were copied out and are needed no more.
static void point_at_zeros(struct blk_req *r, uint64_t len)
{
    static const uint8_t zeros[PAGE_SIZE];
    const uint8_t *z = zeros;
    r->cur = r->c.iov;
    for (r->n = 0; len > 0; r->n++) {
        struct iovec *v = &r->cur[r->n];
        memcpy(&v->iov_base, &z, sizeof(z)); // iovec knows no const
        v->iov_len = MIN(len, sizeof(zeros));
        len -= v->iov_len;
    }
}

static int fallocate_range(struct blk *b, struct blk_req *r, uint64_t off, uint64_t len,
                           uint32_t mode)
{
    r->io.off = off;
    r->io.len = len;
    r->io.flags = mode | FALLOC_FL_KEEP_SIZE;
    return req_submit(b, r, VIO_IO_FALLOCATE, &b->now.top);
}

static int zero_image(struct blk *b, struct blk_req *r)
{
    if (r->left == 0)
        return REQ_DONE;
    if (!r->by_hand)
        return fallocate_range(b, r, r->off, r->left,
                               r->kind == BLK_DISCARD || r->unmap ? FALLOC_FL_PUNCH_HOLE
                                                                  : FALLOC_FL_ZERO_RANGE);
    const uint64_t len = MIN(r->left, BLK_ZERO_MAX);
    point_at_zeros(r, len);
    req_cut(r, len);
    r->io.off = r->off;
    r->io.flags = 0;
    return req_submit(b, r, VIO_IO_WRITEV, &b->now.top);
}

// How much of a zeroed range is whole blocks of the layer from r->off on; the disk's last block may
// be a short one.
static uint64_t whole_blocks(const struct cow *c, const struct blk_req *r)
{
    if (r->off % COW_BLOCK)
        return 0;
    return r->off + r->left == c->bytes ? r->left : ALIGN_DOWN(r->left, COW_BLOCK);
}

// In a layer, zeros are a hole whose bits are set; only partial blocks are written. A discard
// leaves them alone.
static int zero_layer(struct blk *b, struct blk_req *r)
{
    struct cow *c = b->now.cow;
    while (r->left > 0) {
        const uint64_t whole = whole_blocks(c, r);
        if (whole > 0)
            return fallocate_range(b, r, c->data_off + r->off, ALIGN_UP(whole, COW_BLOCK),
                                   FALLOC_FL_PUNCH_HOLE);
        const uint64_t part = MIN(r->left, COW_BLOCK - r->off % COW_BLOCK), rest = r->left - part;
        if (r->kind == BLK_DISCARD) {
            r->off += part;
            r->left = rest;
            continue;
        }
        point_at_zeros(r, part);
        r->left = part;
        int rc = write_layer(b, r);
        r->left += rest;
        if (rc != REQ_DONE)
            return rc;
    }
    return b->now.b.writeback ? REQ_DONE : cow_save(c);
}

int req_zero(struct blk *b, struct blk_req *r)
{
    return b->now.cow ? zero_layer(b, r) : zero_image(b, r);
}

int req_zero_landed(struct blk *b, struct blk_req *r, int res)
{
    struct cow *c = b->now.cow;
    if (res == -EOPNOTSUPP && r->kind == BLK_ZEROES && !c) {
        r->by_hand = true;
        return 0;
    }
    if (res < 0)
        return res;
    // The hole first, then the bits: until now the file may have held what an earlier monitor
    // wrote there and died before naming it.
    const uint64_t len = c ? whole_blocks(c, r) : r->left;
    if (c)
        cow_set(c, r->off, len);
    r->off += len;
    r->left -= len;
    return 0;
}
