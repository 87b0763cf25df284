// SPDX-License-Identifier: Apache-2.0
// Runs the hostile cases (case=PREFIX: only those) on the first disk and the first network device. Each line tells
// what was seen; a case is ok when the device behaved as expected and works again after a reset.
#include "hostile.h"

#define PATIENCE_US 100000
#define WORKS_US    2000000

static struct vdev devs[8];

void put_desc(struct target *t, unsigned i, uint64_t addr, uint32_t len, uint16_t flags,
              uint16_t next)
{
    t->v->desc[i] = (struct desc){addr, len, flags, next};
}

void publish(struct target *t, uint16_t head)
{
    struct vq *v = t->v;
    v->avail[2 + (v->avail_idx++ & (v->size - 1))] = head;
    BARRIER();
    v->avail[1] = v->avail_idx;
}

void ring_bell(struct target *t)
{
    MFENCE();
    wr32(t->dev->base + MMIO_NOTIFY, t->v->index);
}

void blk_chain(struct target *t, uint32_t type, uint64_t sector, uint64_t addr, uint32_t len,
               bool device_writes)
{
    uint32_t h[4] = {type, 0, (uint32_t)sector, (uint32_t)(sector >> 32)};
    memcpy(t->mem, h, sizeof(h));
    t->status = t->mem + 64;
    *t->status = 0xff;
    put_desc(t, 0, (uint64_t)t->mem, 16, DESC_NEXT, 1);
    put_desc(t, 1, addr, len, (uint16_t)(DESC_NEXT | (device_writes ? DESC_WRITE : 0)), 2);
    put_desc(t, 2, (uint64_t)t->status, 1, DESC_WRITE, 0);
    publish(t, 0);
    ring_bell(t);
}

void attack_data(struct target *t, uint64_t addr, uint32_t len)
{
    if (t->blk) {
        blk_chain(t, 0, 0, addr, len, true);
        return;
    }
    memset(t->mem, 0, 12);
    put_desc(t, 0, (uint64_t)t->mem, 12, DESC_NEXT, 1);
    put_desc(t, 1, addr, len, 0, 0);
    publish(t, 0);
    ring_bell(t);
}

static bool needs_reset(const struct target *t)
{
    return vdev_status(t->dev) & VIRTIO_NEEDS_RESET;
}

bool target_wait(struct target *t, uint64_t us, uint16_t used)
{
    uint64_t until = rdtsc() + us_tsc(us);
    do {
        if ((uint16_t)(t->v->used[1] - t->v->last_used) >= used)
            return true;
        if (needs_reset(t))
            return true;
        for (uint64_t w = rdtsc() + us_tsc(200); rdtsc() < w;)
            __asm__ volatile("pause");
    } while (rdtsc() < until);
    return false;
}

void target_setup_only(struct target *t)
{
    t->refused |= !vdev_start(t->dev, 0);
}

bool target_start(struct target *t, uint64_t features)
{
    if (!vdev_start(t->dev, features))
        return false;
    for (uint16_t i = 0; i < (t->blk ? 1 : 2); i++)
        if (!vq_setup(&t->q[i], t->dev, i, 64))
            return false;
    vdev_ok(t->dev);
    return true;
}

bool target_works(struct target *t)
{
    if (t->blk) {
        blk_chain(t, 0, 0, (uint64_t)t->mem + 4096, 512, true);
    } else {
        memset(t->mem, 0, 12 + 60);
        memset(t->mem + 12, 0xff, 6);
        put_desc(t, 0, (uint64_t)t->mem, 12 + 60, 0, 0);
        publish(t, 0);
        ring_bell(t);
    }
    return target_wait(t, WORKS_US, 1) && !needs_reset(t) && (!t->blk || *t->status == 0);
}

static bool run_case(struct target *t, const struct hostile_case *c)
{
    t->refused = false;
    t->broken = t->skip = NULL;
    t->status = NULL;
    t->v = &t->q[t->blk ? 0 : 1];
    bool started = target_start(t, 0);
    if (started) {
        c->run(t);
        if (!t->skip && !t->refused && c->expect != MUST_WORK)
            target_wait(t, PATIENCE_US, 1);
    }
    uint8_t dev = vdev_status(t->dev);
    uint8_t io = t->status ? *t->status : 0xff;
    bool reset = dev & VIRTIO_NEEDS_RESET, error = io && io != 0xff;
    unsigned used = t->v->used[1];
    t->status = NULL;
    bool again = target_start(t, 0) && target_works(t);
    bool as_expected = c->expect == MAY_FAIL    ? true
                       : c->expect == MUST_FAIL ? reset || error || t->refused
                                                : !reset && !error;
    bool ok = started && again && (t->skip || (as_expected && !t->broken));
    say("CASE %s %s %s needs_reset=%d status=%d refused=%d used=%u works=%d%s%s\n", c->name,
        t->blk ? "blk" : "net",
        t->skip ? "skip"
        : ok    ? "ok"
                : "BAD",
        reset, io == 0xff ? -1 : io, t->refused, used, again, t->skip || t->broken ? " " : "",
        t->skip     ? t->skip
        : t->broken ? t->broken
                    : "");
    return ok;
}

static unsigned run_all(struct target *t, const struct hostile_case *list, unsigned n,
                        unsigned *bad)
{
    const char *want = arg("case");
    char prefix[16] = "";
    for (unsigned i = 0; want && i + 1 < sizeof(prefix) && want[i] && want[i] != ' '; i++)
        prefix[i] = want[i];
    unsigned ran = 0;
    for (unsigned i = 0; i < n; i++)
        if (list[i].on & (t->blk ? ON_BLK : ON_NET) && str_starts(list[i].name, prefix)) {
            ran++;
            *bad += !run_case(t, &list[i]);
        }
    return ran;
}

void guest_main(void)
{
    unsigned n = vdev_scan(devs, ARRAY_SIZE(devs)), ran = 0, bad = 0;
    static struct target targets[2];
    announce_ready();
    for (unsigned k = 0; k < 2; k++) {
        struct target *t = &targets[k];
        t->blk = !k;
        for (unsigned i = 0; i < n && !t->dev; i++)
            if (devs[i].id == (t->blk ? VIRTIO_BLK : VIRTIO_NET))
                t->dev = &devs[i];
        if (!t->dev)
            continue;
        t->mem = arena(256 << 10, 4096);
        t->ram_end = ram_n ? ram[0].base + ram[0].size : 0;
        ran += run_all(t, queue_cases, queue_case_n, &bad);
        ran += run_all(t, device_cases, device_case_n, &bad);
    }
    say("HOSTILE cases=%u bad=%u\n", ran, bad);
}
