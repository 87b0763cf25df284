// SPDX-License-Identifier: Apache-2.0
// Token buckets in integers: no fraction of a token is lost or invented over time.
#include "virtio/ratelimit.h"

typedef unsigned __int128 u128; // size x time does not fit in 64 bits

#define REQUEST_MAX UINT32_MAX // of a virtqueue chain; keeps debt x period within 128 bits

static bool off(const struct bucket *b)
{
    return !b->cfg.set || b->cfg.size == 0 || b->cfg.refill_ms == 0;
}

static u128 refill_ns(const struct bucket *b)
{
    return (u128)MIN(b->cfg.refill_ms, UINT64_MAX / 1000000) * 1000000;
}

static void bucket_init(struct bucket *b, const struct bucket_cfg *cfg, uint64_t now)
{
    *b = (struct bucket){
        .cfg = *cfg, .tokens = cfg->size, .burst = cfg->one_time_burst, .last_ns = now};
}

// Time repays the debt first, then fills the bucket. last_ns advances only by the time that whole
// tokens took, so that frequent calls do not starve a slow bucket.
static void refill(struct bucket *b, uint64_t now)
{
    if (now <= b->last_ns)
        return;
    const u128 period = refill_ns(b);
    const u128 room = (u128)b->debt + (b->cfg.size - b->tokens);
    // elapsed < 2^64 and size < 2^64: the product fits.
    const u128 got = (u128)(now - b->last_ns) * b->cfg.size / period;
    if (got >= room) {
        b->debt = 0;
        b->tokens = b->cfg.size;
        b->last_ns = now;
        return;
    }
    const uint64_t g = (uint64_t)got;
    const uint64_t repaid = MIN(g, b->debt);
    b->debt -= repaid;
    b->tokens += g - repaid;
    // g x period <= elapsed x size, so this is at most elapsed.
    b->last_ns += (uint64_t)(got * period / b->cfg.size);
}

// 0 when `want` can be taken now, else when to ask again.
static uint64_t when(const struct bucket *b, uint64_t want, uint64_t now)
{
    const uint64_t rest = want - MIN(want, b->burst);
    const uint64_t need = MIN(rest, b->cfg.size); // a larger one passes when the bucket is full
    if (rest == 0 || (b->debt == 0 && b->tokens >= need))
        return 0;
    const uint64_t missing = need > b->tokens ? need - b->tokens : 0;
    const u128 lack = (u128)b->debt + missing;
    const u128 period = refill_ns(b);
    // Whole periods first: lack x period may not fit.
    u128 wait = lack / b->cfg.size * period;
    wait += (lack % b->cfg.size * period + b->cfg.size - 1) / b->cfg.size;
    const u128 at = b->last_ns + wait;
    return at > UINT64_MAX ? UINT64_MAX : MAX((uint64_t)at, now + 1);
}

static void spend(struct bucket *b, uint64_t want)
{
    const uint64_t burst = MIN(want, b->burst);
    b->burst -= burst;
    want -= burst;
    if (want > b->tokens)
        b->debt += want - b->tokens;
    b->tokens -= MIN(want, b->tokens);
}

void limiter_init(struct limiter *l, const struct limiter_cfg *cfg, uint64_t now)
{
    static const struct bucket_cfg none;
    const bool set = cfg && cfg->set;
    bucket_init(&l->bytes, set ? &cfg->bandwidth : &none, now);
    bucket_init(&l->ops, set ? &cfg->ops : &none, now);
}

void limiter_patch(struct limiter *l, const struct limiter_cfg *cfg, uint64_t now)
{
    if (!cfg || !cfg->set)
        return;
    if (cfg->bandwidth.set)
        bucket_init(&l->bytes, &cfg->bandwidth, now);
    if (cfg->ops.set)
        bucket_init(&l->ops, &cfg->ops, now);
}

uint64_t limiter_take(struct limiter *l, uint64_t bytes, uint64_t now)
{
    bytes = MIN(bytes, REQUEST_MAX);
    const bool no_bytes = off(&l->bytes), no_ops = off(&l->ops);
    uint64_t at = 0;
    if (!no_bytes) {
        refill(&l->bytes, now);
        at = when(&l->bytes, bytes, now);
    }
    if (!no_ops) {
        refill(&l->ops, now);
        const uint64_t ops_at = when(&l->ops, 1, now);
        at = MAX(at, ops_at);
    }
    if (at > 0)
        return at;
    if (!no_bytes)
        spend(&l->bytes, bytes);
    if (!no_ops)
        spend(&l->ops, 1);
    return 0;
}

// Debt, bucket, burst: the reverse of the order in which it was spent.
static void give_back(struct bucket *b, uint64_t n)
{
    if (off(b))
        return;
    const uint64_t debt = MIN(n, b->debt);
    b->debt -= debt;
    n -= debt;
    const uint64_t tokens = MIN(n, b->cfg.size - b->tokens);
    b->tokens += tokens;
    n -= tokens;
    b->burst += MIN(n, b->cfg.one_time_burst - b->burst);
}

void limiter_refund(struct limiter *l, uint64_t bytes)
{
    give_back(&l->bytes, MIN(bytes, REQUEST_MAX));
    give_back(&l->ops, 1);
}

bool limiter_is_off(const struct limiter *l)
{
    return off(&l->bytes) && off(&l->ops);
}

static void bucket_rebase(struct bucket *b, uint64_t now)
{
    b->tokens = MIN(b->tokens, b->cfg.size);
    b->burst = MIN(b->burst, b->cfg.one_time_burst);
    b->debt = MIN(b->debt, b->cfg.size); // a longer debt is forgiven rather than believed
    b->last_ns = now;
}

void limiter_rebase(struct limiter *l, uint64_t now)
{
    bucket_rebase(&l->bytes, now);
    bucket_rebase(&l->ops, now);
}
