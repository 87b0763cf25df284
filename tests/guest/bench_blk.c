// SPDX-License-Identifier: Apache-2.0
// Disk load: random or sequential reads or writes of one size at one depth for a time.
#include "bench.h"
#include "blk.h"

static struct {
    const struct bench *b;
    struct blk *blk;
    enum blk_type type;
    bool sequential;
    uint64_t blocks, next, ios, errors, flying, now;
    uint8_t *mem;
    struct hist lat;
} run;

static void done(struct blk_req *r, uint8_t status);

static bool issue(uint8_t *buf)
{
    uint64_t per = run.b->size / SECTOR;
    uint64_t block = run.sequential ? run.next++ % run.blocks : rand64() % run.blocks;
    bool ok = blk_submit(run.blk, run.type, block * per, buf, (uint32_t)run.b->size, done, buf);
    run.flying += ok;
    return ok;
}

static void done(struct blk_req *r, uint8_t status)
{
    uint64_t now = rdtsc();
    run.flying--;
    if (now >= run.b->until)
        return;
    run.ios++;
    run.errors += status != 0;
    hist_add(&run.lat, now - r->tsc);
    issue(r->ctx);
}

static void report(uint64_t cycles)
{
    uint64_t us = tsc_ns(cycles) / 1000;
    say("BENCH {\"mode\":\"blk\",\"op\":\"%s%s\",\"bs\":%lu,\"depth\":%lu,\"us\":%lu,\"ios\":%lu,"
        "\"iops\":%lu,\"mib_s\":%lu,\"p50_ns\":%lu,\"p99_ns\":%lu,\"max_ns\":%lu,\"errors\":%lu}\n",
        run.sequential ? "seq" : "rand", run.type == BLK_IN ? "read" : "write", run.b->size,
        run.b->depth, us, run.ios, run.ios * 1000000 / us,
        (run.ios * run.b->size * 1000 / us * 1000) >> 20, tsc_ns(hist_at(&run.lat, 500)),
        tsc_ns(hist_at(&run.lat, 990)), tsc_ns(run.lat.max), run.errors);
}

void bench_blk(const struct bench *in)
{
    struct bench b = *in;
    uint64_t dev = arg_u64("bench.dev", 0);
    run.b = &b;
    run.blk = dev < blk_n ? &blks[dev] : NULL;
    run.sequential = bench_op(&b, "seqread") || bench_op(&b, "seqwrite");
    run.type = bench_op(&b, "randwrite") || bench_op(&b, "seqwrite") ? BLK_OUT : BLK_IN;
    b.size = MAX(b.size / SECTOR * SECTOR, SECTOR);
    run.blocks = run.blk ? run.blk->capacity / (b.size / SECTOR) : 0;
    if (!run.blocks || !ram_n || b.depth * b.size > ram[0].size) {
        say("BENCH {\"error\":\"no disk or no memory for this\"}\n");
        return;
    }
    map_ram(ram[0].base, ram[0].size);
    run.mem = at(ram[0].base);
    for (uint64_t i = 0; i < b.depth * b.size; i += 8)
        *(uint64_t *)(void *)(run.mem + i) =
            rand64(); // also: no page is new to the host while it counts
    uint64_t start = rdtsc();
    b.until = start + us_tsc(b.secs * 1000000);
    for (uint64_t i = 0; i < b.depth; i++)
        issue(run.mem + i * b.size);
    blk_flush_doorbells();
    while (run.flying) {
        wake = 0;
        if (blk_poll())
            blk_flush_doorbells();
        else
            bench_wait(&b, blk_arm());
    }
    report(rdtsc() - start);
}
