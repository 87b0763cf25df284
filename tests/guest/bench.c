// SPDX-License-Identifier: Apache-2.0
// What the load generators share: percentiles, parameters, waiting.
#include "bench.h"

void hist_add(struct hist *h, uint64_t v)
{
    unsigned e = v < HIST_STEPS ? 0 : (unsigned)(63 - __builtin_clzll(v)) - 4; // 2^5 steps
    unsigned i = e ? e * HIST_STEPS + (unsigned)(v >> (e - 1)) - HIST_STEPS : (unsigned)v;
    h->slot[i]++;
    h->n++;
    h->max = MAX(h->max, v);
}

uint64_t hist_at(const struct hist *h, unsigned per_mille)
{
    uint64_t want = (h->n * per_mille + 999) / 1000, seen = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(h->slot); i++) {
        seen += h->slot[i];
        if (h->slot[i] && seen >= want) {
            unsigned e = i / HIST_STEPS, m = i % HIST_STEPS;
            return e ? (uint64_t)(HIST_STEPS + m + 1) << (e - 1) : m;
        }
    }
    return h->max;
}

bool bench_op(const struct bench *b, const char *name)
{
    char end = b->op[str_len(name)];
    return str_starts(b->op, name) && (end == 0 || end == ' ');
}

void bench_wait(const struct bench *b, bool armed)
{
    if (b->poll || armed)
        return;
    timer_at(b->until);
    cpu_sleep();
}

void bench_main(void)
{
    bool blk = arg_is("mode", "blkbench"), network = arg_is("mode", "netbench");
    if (!blk && !network)
        return;
    struct bench b = {
        .op = arg("bench.op") ? arg("bench.op")
              : blk           ? "randread"
                              : "tx",
        .secs = arg_u64("bench.secs", 2),
        .depth = arg_u64("bench.depth", blk ? 32 : 256),
        .size = arg_u64("bench.size", blk ? 4096 : 64),
        .poll = arg_is("bench.wait", "poll"),
    };
    if (blk)
        bench_blk(&b);
    else
        bench_net(&b);
    power_off();
}
