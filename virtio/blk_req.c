// SPDX-License-Identifier: Apache-2.0
// The life of one block request: reading, flushing, the ring, answering
// (virtio 1.2, 5.2.6).
//
// #syscalls:device preadv2(0, RWF_NOWAIT)
#include "virtio/blk_priv.h"

enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };

#define FSYNC_DATASYNC 1u // IORING_FSYNC_DATASYNC: sizes never change under a guest
#define MAX_RETRIES    8u

// ---- transfers

unsigned req_cut(struct blk_req *r, uint64_t len)
{
    unsigned n = 0;
    while (n < r->n && len > 0) {
        struct iovec *v = &r->cur[n++];
        if (v->iov_len > len) {
            r->cut = v->iov_len - len;
            v->iov_len = len;
        }
        len -= v->iov_len;
    }
    r->io.iov = r->cur;
    r->io.niov = n;
    return n;
}

void req_moved(struct blk *b, struct blk_req *r, uint64_t n)
{
    if (r->cut) {
        r->cur[r->io.niov - 1].iov_len += r->cut;
        r->cut = 0;
    }
    r->off += n;
    r->left -= n;
    if (r->kind == BLK_READ)
        r->landed += (uint32_t)n;
    while (n > 0) {
        struct iovec *v = r->cur;
        const size_t step = MIN(v->iov_len, n);
        // Marked here and not only when popped: a dirty-page round may have come between.
        if (r->kind == BLK_READ)
            mem_dirty(b->dev.mem, v->iov_base, step);
        v->iov_base = (uint8_t *)v->iov_base + step;
        v->iov_len -= step;
        n -= step;
        if (v->iov_len == 0) {
            r->cur++;
            r->n--;
        }
    }
}

ssize_t blk_read_now(struct blk_file *f, const struct iovec *iov, unsigned n, uint64_t off)
{
    ssize_t got = preadv2(f->fd, iov, (int)n, (off_t)off, f->nowait ? RWF_NOWAIT : 0);
    if (got < 0 && errno == EOPNOTSUPP && f->nowait) {
        f->nowait = false; // tmpfs: never blocks but to swap, and the ring is 20 times slower there
        got = preadv2(f->fd, iov, (int)n, (off_t)off, 0);
    }
    return got < 0 ? -errno : got;
}

// ---- the ring

static void req_landed(struct vio_dev *d, struct vio_io *io, int res);

static int ring_put(struct blk *b, struct blk_req *r)
{
    int rc = b->dev.host->io(b->dev.host->ctx, &r->io);
    if (rc == 0)
        b->on_ring++;
    return rc;
}

// Nothing of ours on the ring will come back and remind us: be called again. (A pause asks anyway.)
static void remind(struct blk *b)
{
    if (b->full && b->on_ring == 0 && !b->quiet)
        b->dev.host->again(b->dev.host->ctx, b->dev.slot);
}

int req_submit(struct blk *b, struct blk_req *r, enum vio_op op, const struct blk_file *f)
{
    r->io.op = op;
    r->io.file = f->file;
    r->io.done = req_landed;
    r->io.dev = &b->dev;
    int rc = b->full ? -EBUSY : ring_put(b, r);
    if (rc == -EBUSY) {
        r->next = NULL;
        *b->full_end = r;
        b->full_end = &r->next;
        remind(b);
        rc = 0;
    }
    return rc < 0 ? rc : REQ_PENDING;
}

void req_retry(struct blk *b)
{
    while (b->full && b->dev.active) {
        struct blk_req *r = b->full;
        int rc = ring_put(b, r);
        if (rc == -EBUSY)
            break;
        b->full = r->next;
        if (!b->full)
            b->full_end = &b->full;
        if (rc < 0)
            req_finish(b, r, rc);
    }
    remind(b);
}

static int flush_landed(struct blk *b, struct blk_req *r, int res);

// What came of the operation on the ring: 0, go on; or -errno.
static int take_result(struct blk *b, struct blk_req *r, int res)
{
    if (r->io.op == VIO_IO_FSYNC)
        return flush_landed(b, r, res);
    if ((res == -EINTR || res == -EAGAIN) && r->retries++ < MAX_RETRIES)
        res = 0;
    else if (r->io.op == VIO_IO_FALLOCATE)
        return req_zero_landed(b, r, res);
    else if (res <= 0)
        return res < 0 ? res : -EIO; // the file ends within its capacity: it was truncated
    if (r->copyup)
        r->up_have += (uint32_t)res;
    else if (r->io.op != VIO_IO_FALLOCATE)
        req_moved(b, r, (uint64_t)res);
    r->copyup = false;
    return 0;
}

static void req_landed(struct vio_dev *d, struct vio_io *io, int res)
{
    struct blk *b = (struct blk *)d;
    struct blk_req *r = (struct blk_req *)io;
    b->on_ring--;
    int rc = take_result(b, r, res);
    if (rc == 0)
        rc = d->active ? req_run(b, r) : -ECANCELED; // a reset waits for us: no further step
    if (rc != REQ_PENDING)
        req_finish(b, r, rc);
    req_retry(b);
    // More may land in this round of the loop: the kick that follows it answers for all.
    if (b->quiet || !d->active)
        blk_answer(b);
    else
        d->host->again(d->host->ctx, d->slot);
    blk_settle(b);
}

// ---- the kinds

static int run_read(struct blk *b, struct blk_req *r)
{
    struct blk_store *s = &b->now;
    for (uint64_t turn = BLK_TURN; r->left > 0;) {
        uint64_t len = MIN(r->left, BLK_TURN), off = r->off;
        struct blk_file *f = &s->top;
        bool held = true;
        if (s->cow)
            len = cow_run(s->cow, off, len, &held);
        if (!held)
            f = &s->base;
        else if (s->cow)
            off += s->cow->data_off;
        const unsigned n = req_cut(r, len);
        const ssize_t got = turn ? blk_read_now(f, r->cur, n, off) : -EAGAIN;
        if (got < 0 && got != -EAGAIN)
            return (int)got;
        req_moved(b, r, got > 0 ? (uint64_t)got : 0);
        turn -= MIN(turn, len);
        if (got == (ssize_t)len)
            continue;
        // The rest is not in the page cache, or there is none: the ring may wait and find out.
        const uint64_t had = got > 0 ? (uint64_t)got : 0;
        req_cut(r, len - had);
        r->io.off = off + had;
        r->io.flags = 0;
        return req_submit(b, r, VIO_IO_READV, f);
    }
    return REQ_DONE;
}

// A flush is one fdatasync; over a layer that holds new blocks it is fdatasync, bitmap, fdatasync,
// and flushes go one after the other, since the later promises what the earlier is still saving.
enum { FL_START, FL_DATA, FL_BITMAP, FL_END };

static int run_flush(struct blk *b, struct blk_req *r)
{
    struct cow *c = b->now.cow;
    if (r->flush_step == FL_START && c) {
        if (b->flusher) {
            r->next = NULL;
            *b->fl_end = r;
            b->fl_end = &r->next;
            return REQ_PENDING;
        }
        b->flusher = r;
        r->by_hand = cow_stage(c);
    } else if (r->flush_step == FL_DATA && c && r->by_hand) {
        int rc = cow_commit(c);
        if (rc < 0) {
            cow_unstage(c);
            return rc;
        }
    } else if (r->flush_step >= FL_DATA) {
        return REQ_DONE;
    }
    r->flush_step++;
    r->io.flags = FSYNC_DATASYNC;
    return req_submit(b, r, VIO_IO_FSYNC, &b->now.top);
}

static int flush_landed(struct blk *b, struct blk_req *r, int res)
{
    if (res < 0 && b->now.cow && r->flush_step == FL_DATA)
        cow_unstage(b->now.cow);
    return MIN(res, 0);
}

// The next flush that waited, if r was the one at work.
static void flush_next(struct blk *b, struct blk_req *r)
{
    struct blk_req *next = b->flushes;
    if (b->flusher != r)
        return;
    b->flusher = NULL;
    if (!next || !b->dev.active)
        return;
    b->flushes = next->next;
    if (!b->flushes)
        b->fl_end = &b->flushes;
    int rc = req_run(b, next);
    if (rc != REQ_PENDING)
        req_finish(b, next, rc);
}

static int run_id(struct blk *b, struct blk_req *r)
{
    uint32_t done = 0;
    for (unsigned i = 0; i < r->n && done < BLK_ID_LEN; i++) {
        const uint32_t len = (uint32_t)MIN(r->cur[i].iov_len, BLK_ID_LEN - done);
        memcpy(r->cur[i].iov_base, b->id + done, len);
        mem_dirty(b->dev.mem, r->cur[i].iov_base, len);
        done += len;
    }
    r->landed = done;
    return REQ_DONE;
}

int req_run(struct blk *b, struct blk_req *r)
{
    switch (r->kind) {
    case BLK_READ:
        return run_read(b, r);
    case BLK_WRITE:
        return req_write(b, r);
    case BLK_FLUSH:
        return run_flush(b, r);
    case BLK_ID:
        return run_id(b, r);
    case BLK_DISCARD:
    case BLK_ZEROES:
        return req_zero(b, r);
    }
    return -EIO;
}

// ---- answering

static void tally(struct blk *b, const struct blk_req *r, int rc)
{
    struct blk_metrics *m = &b->m;
    if (rc != REQ_DONE) {
        blk_count(&m->failed, 1);
    } else if (r->kind == BLK_READ) {
        blk_count(&m->reads, 1);
        blk_count(&m->read_bytes, r->bytes);
    } else if (r->kind == BLK_WRITE) {
        blk_count(&m->writes, 1);
        blk_count(&m->write_bytes, r->bytes);
    } else if (r->kind == BLK_FLUSH) {
        blk_count(&m->flushes, 1);
    } else if (r->kind != BLK_ID) {
        blk_count(&m->discards, 1);
    }
}

void req_finish(struct blk *b, struct blk_req *r, int rc)
{
    struct vio_dev *d = &b->dev;
    if (d->active) { // after a fault or during a reset the driver wants no answer
        *r->status = rc == REQ_DONE ? S_OK : rc == -EOPNOTSUPP ? S_UNSUPP : S_IOERR;
        mem_dirty(d->mem, r->status, 1);
        // 2.7.8.2: so many bytes from the first writable one on; the status byte counts when
        // everything before it was written.
        virtq_push(&d->queue[0], r->c.head, r->landed + (r->landed == r->c.wbytes - 1));
    }
    tally(b, r, rc);
    b->inflight--;
    b->owed -= r->bytes;
    b->batch++;
    r->next = b->free;
    b->free = r;
    if (r->kind == BLK_FLUSH)
        flush_next(b, r);
}
