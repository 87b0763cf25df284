// SPDX-License-Identifier: Apache-2.0
// Serving the queue: taking chains, within limits, and telling the driver of what is done.
#include "virtio/blk_priv.h"

// Answers are handed over in small batches, so that the first of many does not wait for the last:
// so many requests, or so many bytes moved by direct calls.
#define BATCH_REQS  8u
#define BATCH_BYTES (256 * KIB)

#define AWAIT_NS    50000u  // how long to wait for a next request
#define AWAIT_NEAR  100000u // requests this close to the last ones make it worth trying
#define AWAIT_TOTAL 100000u // one call's whole stay, while it waits
#define AWAIT_VAIN  10u     // log2 of the most kicks to let pass after waiting in vain

static struct blk_req *req_get(struct blk *b)
{
    struct blk_req *r = b->free;
    if (r)
        b->free = r->next;
    else if (b->fresh < VIO_QUEUE_SIZE)
        r = &b->pool[b->fresh++];
    return r;
}

static void req_drop(struct blk *b, struct blk_req *r)
{
    r->next = b->free;
    b->free = r;
}

// Asks the limiter for r's sake. false: r was put back and the timer will call.
static bool admit(struct blk *b, struct blk_req *r)
{
    if (limiter_is_off(&b->limiter))
        return true;
    const uint64_t at = limiter_take(&b->limiter, r->bytes, now_ns());
    if (at == 0)
        return true;
    virtq_unpop(&b->dev.queue[0], &r->c);
    b->throttled = true;
    blk_count(&b->m.throttled, 1);
    b->dev.host->timer(b->dev.host->ctx, b->dev.slot, at);
    return false;
}

// Takes one chain and goes with it as far as it goes. false: nothing more to take for now.
static bool take_one(struct blk *b)
{
    struct vio_dev *d = &b->dev;
    struct blk_req *r = req_get(b);
    if (!r)
        return false;
    int rc = virtq_pop(&d->queue[0], &r->c);
    if (rc <= 0) {
        req_drop(b, r);
        if (rc < 0)
            vio_fault(d, "block queue: malformed ring or chain");
        return false;
    }
    rc = req_parse(b, r);
    if (rc == -EPROTO) {
        req_drop(b, r);
        vio_fault(d, "block request without a status byte");
        return false;
    }
    if (rc == REQ_DONE && !admit(b, r)) {
        req_drop(b, r);
        return false;
    }
    b->inflight++;
    b->owed += r->bytes;
    b->direct += r->bytes;
    b->kicked += MIN(r->bytes, BLK_TURN);
    if (rc == REQ_DONE)
        rc = req_run(b, r);
    if (rc != REQ_PENDING)
        req_finish(b, r, rc);
    return true;
}

static bool may_take(const struct blk *b)
{
    return b->dev.active && !b->throttled && !b->quiet && !b->swapping && !b->full &&
           b->owed < BLK_OWED;
}

void blk_answer(struct blk *b)
{
    if (b->batch && b->dev.active)
        vio_signal(&b->dev, &b->dev.queue[0]);
    b->batch = 0;
    b->direct = 0;
}

// A driver that was just answered often asks again at once. While its requests come close together,
// wait for the next one here for a moment: that saves the driver its notification and this thread a
// sleep, most of a small read's latency. Each wait in vain doubles the number of times that none is
// tried, so a driver that is slower than that, or has no processor while we have one, costs next to
// nothing; one that is idle, nothing.
static bool await_next(struct blk *b)
{
    const uint64_t end = now_ns() + AWAIT_NS;
    do {
        for (unsigned i = 0; i < 32; i++) {
            if (virtq_has_avail(&b->dev.queue[0])) {
                b->vain = 0;
                return true;
            }
            __builtin_ia32_pause();
        }
    } while (now_ns() < end);
    b->vain += b->vain < AWAIT_VAIN;
    b->skip = 1u << b->vain;
    return false;
}

void blk_kick(struct vio_dev *d)
{
    struct blk *b = (struct blk *)d;
    struct virtq *q = &d->queue[0];
    unsigned budget = q->s.size;
    b->kicked = 0;
    const uint64_t start = now_ns();
    bool wait = start - b->idle_ns < AWAIT_NEAR && (b->skip == 0 || --b->skip == 0);
    blk_count(&b->m.queue_events, 1);
    if (b->swapping)
        blk_settle(b);
    req_retry(b);
    while (may_take(b)) {
        virtq_disable_kick(q);
        while (budget > 0 && !b->full && b->owed < BLK_OWED && take_one(b)) {
            budget--;
            if (b->batch >= BATCH_REQS || b->direct >= BATCH_BYTES)
                blk_answer(b);
            if (b->kicked >= 2 * BLK_TURN)
                budget = 0;
        }
        blk_answer(b);
        if (!may_take(b))
            break; // who stopped us calls again; until then the driver need not
        // Others have a right to the thread too; on the ring, answers may have come meanwhile.
        if (wait && b->on_ring == 0 && budget > 0)
            wait = await_next(b);
        else
            wait = false;
        if (budget == 0 || (wait && now_ns() - start > AWAIT_TOTAL)) {
            d->host->again(d->host->ctx, d->slot);
            break;
        }
        if (!wait && !virtq_enable_kick(q))
            break;
    }
    blk_answer(b);
    b->idle_ns = now_ns();
}
