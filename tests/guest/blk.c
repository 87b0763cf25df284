// SPDX-License-Identifier: Apache-2.0
// virtio-blk driver (virtio 1.2, section 5.2).
#include "blk.h"

struct blk blks[BLK_MAX];
unsigned blk_n;

void blk_read_config(struct blk *b)
{
    uint64_t base = b->dev->base + MMIO_CONFIG;
    uint32_t gen;
    do { // 64 bits in two reads: unchanged generation makes them one (4.2.2.2)
        gen = rd32(b->dev->base + MMIO_GENERATION);
        b->capacity = rd32(base) | (uint64_t)rd32(base + 4) << 32;
    } while (rd32(b->dev->base + MMIO_GENERATION) != gen);
}

static bool bring_up(struct blk *b, uint16_t depth)
{
    struct vdev *d = b->dev;
    if (!vdev_start(d, BLK_F_SEG_MAX | BLK_F_RO | BLK_F_FLUSH | BLK_F_DISCARD | BLK_F_WRITE_ZEROES |
                           VIRTIO_F_EVENT_IDX) ||
        !vq_setup(&b->q, d, 0, depth))
        return false;
    b->seg_max = 1;
    if (d->features & BLK_F_SEG_MAX)
        b->seg_max = MAX(1u, MIN(rd32(d->base + MMIO_CONFIG + 12), (uint32_t)BLK_SEGS));
    blk_read_config(b);
    vdev_ok(d);
    return true;
}

bool blk_start(struct vdev *d, uint16_t depth)
{
    if (blk_n == BLK_MAX)
        return false;
    struct blk *b = &blks[blk_n];
    b->dev = d;
    if (!bring_up(b, depth))
        return false;
    b->reqs = arena(sizeof(*b->reqs) * BLK_REQS, 64);
    for (unsigned i = MIN(BLK_REQS, (unsigned)b->q.size); i--;) {
        b->reqs[i].next = b->free;
        b->free = &b->reqs[i];
    }
    blk_n++;
    return true;
}

static void finish(struct blk_req *r, uint8_t status)
{
    struct blk *b = r->dev;
    b->done++;
    b->errors += status != 0;
    r->flying = false;
    r->next = b->free;
    b->free = r;
    r->done(r, status);
}

void blk_restart(struct blk *b)
{
    if (!bring_up(b, b->q.size))
        return;
    for (unsigned i = 0; i < MIN(BLK_REQS, (unsigned)b->q.size); i++)
        if (b->reqs[i].flying)
            finish(&b->reqs[i], 255);
}

bool blk_submit(struct blk *b, enum blk_type type, uint64_t sector, void *buf, uint32_t len,
                blk_done *done, void *ctx)
{
    uint64_t f = b->dev->features;
    struct blk_req *r = b->free;
    if (!r || (type == BLK_FLUSH && !(f & BLK_F_FLUSH)) ||
        (type == BLK_DISCARD && !(f & BLK_F_DISCARD)) ||
        (type == BLK_ZEROES && !(f & BLK_F_WRITE_ZEROES)))
        return false;
    struct sg sg[BLK_SEGS + 2];
    unsigned n = 0, in = type == BLK_IN || type == BLK_ID;
    sg[n++] = (struct sg){&r->head, 16};
    r->head.type = (uint32_t)type;
    r->head.reserved = 0;
    r->head.sector = sector;
    if (type == BLK_DISCARD || type == BLK_ZEROES) { // the range travels in the data (5.2.6.1)
        r->head.sector = 0;
        r->range.sector = sector;
        r->range.n = len / SECTOR;
        r->range.flags = 0;
        sg[n++] = (struct sg){&r->range, 16};
    } else if (len) {
        // Whole sectors to each segment; several of them only where there is something to cut.
        uint32_t parts = MAX(1u, MIN(b->seg_max, MIN(len / 4096, (uint32_t)BLK_SEGS)));
        uint32_t each = (len / parts + SECTOR - 1) / SECTOR * SECTOR;
        for (uint32_t at = 0; at < len; at += each)
            sg[n++] = (struct sg){(uint8_t *)buf + at, MIN(each, len - at)};
    }
    sg[n++] = (struct sg){&r->status, 1};
    unsigned out = in ? 1 : n - 1;
    r->status = 0xff;
    if (!vq_add(&b->q, sg, out, n - out, r))
        return false;
    b->free = r->next;
    r->dev = b;
    r->flying = true;
    r->done = done;
    r->ctx = ctx;
    r->tsc = rdtsc();
    return true;
}

void blk_flush_doorbells(void)
{
    for (unsigned i = 0; i < blk_n; i++)
        vq_kick(&blks[i].q);
}

bool blk_poll(void)
{
    bool any = false;
    uint32_t len;
    for (unsigned i = 0; i < blk_n; i++)
        for (struct blk_req *r; (r = vq_get(&blks[i].q, &len));) {
            any = true;
            finish(r, *(volatile uint8_t *)&r->status);
        }
    return any;
}

bool blk_arm(void)
{
    bool any = false;
    for (unsigned i = 0; i < blk_n; i++)
        any |= vq_arm(&blks[i].q, 1);
    return any;
}
