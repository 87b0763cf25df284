// SPDX-License-Identifier: Apache-2.0
// Judging a block request: a chain of unknown cut becomes a kind, a range and segments of data, or
// an error (virtio 1.2, 5.2.6).
#include "virtio/blk_priv.h"

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };

#define WZ_UNMAP 1u

// Steps over `len` readable bytes, copying them out. false: there are fewer.
static bool take_bytes(struct blk_req *r, void *buf, uint32_t len)
{
    uint8_t *p = buf;
    while (len > 0 && r->n > 0) {
        struct iovec *v = r->cur;
        const uint32_t n = (uint32_t)MIN(v->iov_len, len);
        memcpy(p, v->iov_base, n);
        v->iov_base = (uint8_t *)v->iov_base + n;
        v->iov_len -= n;
        p += n;
        len -= n;
        if (v->iov_len == 0) {
            r->cur++;
            r->n--;
        }
    }
    return len == 0;
}

// Sector numbers are judged before they are multiplied, so nothing below wraps.
static int set_range(const struct blk *b, struct blk_req *r, uint64_t sector, uint64_t sectors)
{
    const uint64_t cap = b->now.b.bytes / BLK_SECTOR;
    if (sectors == 0 || sector > cap || sectors > cap - sector)
        return -EIO;
    r->off = sector * BLK_SECTOR;
    r->left = sectors * BLK_SECTOR;
    return 0;
}

// 5.2.6.2: unknown flags, and unmap on a discard, are unsupported; ranges count in sectors.
static int parse_range(struct blk *b, struct blk_req *r, uint32_t type)
{
    uint8_t seg[16];
    if (r->c.rbytes != BLK_HDR_LEN + sizeof(seg) || r->c.wbytes != 1 ||
        !take_bytes(r, seg, sizeof(seg)))
        return -EIO;
    const uint32_t sectors = le32_get(seg + 8), flags = le32_get(seg + 12);
    r->kind = type == T_DISCARD ? BLK_DISCARD : BLK_ZEROES;
    if (b->now.b.read_only)
        return -EIO;
    if (flags & ~(type == T_DISCARD ? 0u : WZ_UNMAP))
        return -EOPNOTSUPP;
    r->unmap = flags & WZ_UNMAP;
    r->by_hand = false;
    if (sectors > BLK_RANGE_SECTORS)
        return -EIO;
    return set_range(b, r, le64_get(seg), sectors);
}

// Where each kind of request finds its data, and in which direction.
static int parse_type(struct blk *b, struct blk_req *r, uint32_t type, uint64_t sector)
{
    struct vchain *c = &r->c;
    const uint32_t out = c->rbytes - BLK_HDR_LEN, in = c->wbytes - 1;
    switch (type) {
    case T_IN:
    case T_OUT:
        r->kind = type == T_IN ? BLK_READ : BLK_WRITE;
        r->bytes = type == T_IN ? in : out;
        if ((type == T_IN ? out : in) != 0 || r->bytes % BLK_SECTOR)
            return -EIO;
        if (type == T_OUT && b->now.b.read_only)
            return -EIO;
        break;
    case T_FLUSH:
        r->kind = BLK_FLUSH;
        if (!b->now.b.writeback)
            return -EOPNOTSUPP;
        return in + out == 0 ? 0 : -EIO;
    case T_GET_ID:
        r->kind = BLK_ID;
        if (in == 0 || out != 0)
            return -EIO;
        break;
    case T_DISCARD:
    case T_WRITE_ZEROES:
        return parse_range(b, r, type);
    default:
        return -EOPNOTSUPP;
    }
    if (type != T_OUT) { // data is what is writable, but for the status byte
        r->cur = &c->iov[c->nr];
        r->n = c->nw;
    }
    return type == T_GET_ID ? 0 : set_range(b, r, sector, r->bytes / BLK_SECTOR);
}

int req_parse(struct blk *b, struct blk_req *r)
{
    struct vchain *c = &r->c;
    uint8_t h[BLK_HDR_LEN];
    if (c->wbytes == 0)
        return -EPROTO;
    struct iovec *last = &c->iov[c->nr + c->nw - 1];
    last->iov_len--;
    r->status = (uint8_t *)last->iov_base + last->iov_len;
    if (last->iov_len == 0)
        c->nw--;
    r->cur = c->iov;
    r->n = c->nr;
    r->landed = r->bytes = r->up_have = 0;
    r->cut = 0;
    r->up_block = 0;
    r->retries = 0;
    r->flush_step = 0;
    r->copyup = false;
    r->left = 0;
    r->kind = BLK_ID; // until known: counted under no kind of its own
    // 2.7.4.1: nothing may be assumed of how the driver cuts a request into descriptors.
    if (!take_bytes(r, h, sizeof(h)))
        return -EIO;
    return parse_type(b, r, le32_get(h), le64_get(h + 8));
}
