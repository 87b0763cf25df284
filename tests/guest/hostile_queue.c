// SPDX-License-Identifier: Apache-2.0
// Hostile rings: Q1 to Q12 of the project's list of attacks (README.md names them).
#include "hostile.h"

static void head_beyond(struct target *t)
{
    publish(t, t->v->size);
    ring_bell(t);
}

static void head_max(struct target *t)
{
    publish(t, 0xffff);
    ring_bell(t);
}

static void next_beyond(struct target *t)
{
    put_desc(t, 0, (uint64_t)t->mem, 16, DESC_NEXT, t->v->size);
    publish(t, 0);
    ring_bell(t);
}

static void self_loop(struct target *t)
{
    put_desc(t, 0, (uint64_t)t->mem, 16, DESC_NEXT, 0);
    publish(t, 0);
    ring_bell(t);
}

static void long_loop(struct target *t)
{
    for (uint16_t i = 0; i < t->v->size; i++)
        put_desc(t, i, (uint64_t)t->mem, 512, DESC_NEXT, (uint16_t)((i + 1) % t->v->size));
    publish(t, 0);
    ring_bell(t);
}

static void jump(struct target *t, uint16_t idx)
{
    put_desc(t, 0, (uint64_t)t->mem, 12, 0, 0);
    t->v->avail[1] = idx;
    ring_bell(t);
}

static void jump_size(struct target *t)
{
    jump(t, (uint16_t)(t->v->size + 1));
}

static void jump_back(struct target *t)
{
    jump(t, 0xffff);
}

// 66,000 honest requests: both indices pass 65,535.
static void wrap(struct target *t)
{
    put_desc(t, 1, (uint64_t)t->mem + 4096, 0, 0, 0);
    uint32_t h[4] = {8, 0, 0, 0}; // GET_ID: no disk in the way
    uint16_t batch = (uint16_t)(t->v->size / 4);
    memcpy(t->mem, h, sizeof(h));
    memset(t->mem + 128, 0, 12);
    for (uint16_t i = 0; i < batch; i++) {
        uint16_t d = (uint16_t)(i * 3);
        if (t->blk) {
            put_desc(t, d, (uint64_t)t->mem, 16, DESC_NEXT, (uint16_t)(d + 1));
            put_desc(t, d + 1u, (uint64_t)t->mem + 4096, 20, DESC_NEXT | DESC_WRITE,
                     (uint16_t)(d + 2));
            put_desc(t, d + 2u, (uint64_t)t->mem + 64, 1, DESC_WRITE, 0);
        } else {
            put_desc(t, d, (uint64_t)t->mem + 128, 12 + 60, 0, 0);
        }
    }
    for (unsigned n = 0; n < 66000 && !t->broken; n += batch) {
        for (uint16_t i = 0; i < batch; i++)
            publish(t, (uint16_t)(i * 3));
        ring_bell(t);
        uint64_t until = rdtsc() + us_tsc(1000000);
        while ((uint16_t)(t->v->used[1] - t->v->last_used) < batch && rdtsc() < until)
            ;
        if ((uint16_t)(t->v->used[1] - t->v->last_used) != batch)
            t->broken = "indices did not wrap";
        t->v->last_used = (uint16_t)(t->v->last_used + batch);
    }
}

// Buffers come back into the ring as fast as the device takes them, for a quarter of a second.
static void refill(struct target *t)
{
    uint64_t until = rdtsc() + us_tsc(250000);
    put_desc(t, 0, (uint64_t)t->mem + 8192, 12 + 60, 0, 0);
    memset(t->mem + 8192, 0, 12 + 60);
    if (t->blk)
        blk_chain(t, 8, 0, (uint64_t)t->mem + 4096, 20, true);
    while (rdtsc() < until) {
        while ((uint16_t)(t->v->avail_idx - t->v->used[1]) < t->v->size / 2)
            publish(t, 0);
        ring_bell(t);
    }
    for (until = rdtsc() + us_tsc(500000); t->v->used[1] != t->v->avail_idx && rdtsc() < until;)
        ;
    if (t->v->used[1] != t->v->avail_idx)
        t->broken = "buffers left behind";
}

static void duplicate(struct target *t)
{
    attack_data(t, (uint64_t)t->mem + 4096, t->blk ? 512 : 60);
    for (unsigned i = 0; i < 8; i++)
        publish(t, 0);
    ring_bell(t);
}

static void indirect(struct target *t, bool negotiated, uint64_t addr, uint32_t len, uint16_t flags)
{
    if (negotiated &&
        (!target_start(t, VIRTIO_F_INDIRECT) || !(t->dev->features & VIRTIO_F_INDIRECT))) {
        t->skip = "indirect descriptors are not offered";
        return;
    }
    struct desc *e = (void *)(t->mem + 16384);
    for (unsigned i = 0; i < 4; i++)
        e[i] = (struct desc){(uint64_t)t->mem + 4096, 512, DESC_NEXT, (uint16_t)(i + 1)};
    e[3].flags = 0;
    put_desc(t, 1, (uint64_t)t->mem + 4096, 512, DESC_WRITE, 0);
    put_desc(t, 0, addr ? addr : (uint64_t)e, len, (uint16_t)(DESC_INDIRECT | flags), 1);
    publish(t, 0);
    ring_bell(t);
}

static void indirect_not_negotiated(struct target *t)
{
    indirect(t, false, 0, 64, 0);
}

static void indirect_empty(struct target *t)
{
    indirect(t, true, 0, 0, 0);
}

static void indirect_uneven(struct target *t)
{
    indirect(t, true, 0, 63, 0);
}

static void indirect_huge(struct target *t)
{
    indirect(t, true, 0, 16u << 20, 0);
}

static void indirect_outside(struct target *t)
{
    indirect(t, true, 0xd0000000, 64, 0);
}

static void indirect_with_next(struct target *t)
{
    indirect(t, true, 0, 64, DESC_NEXT);
}

static void indirect_nested(struct target *t)
{
    struct desc *outer = (void *)(t->mem + 32768);
    *outer = (struct desc){(uint64_t)t->mem + 16384, 64, DESC_INDIRECT, 0};
    indirect(t, true, (uint64_t)outer, 16, 0);
}

static void data_crosses_end(struct target *t)
{
    attack_data(t, t->ram_end - 1, 512);
}

static void data_at_end(struct target *t)
{
    attack_data(t, t->ram_end, 512);
}

static void data_last_bytes(struct target *t)
{
    attack_data(t, t->ram_end - 512, 512);
    target_wait(t, 1000000, 1);
}

static void data_in_hole(struct target *t)
{
    attack_data(t, 0xd0000000, 512);
}

static void data_on_device(struct target *t)
{
    attack_data(t, t->dev->base, 512);
}

static void data_wraps(struct target *t)
{
    attack_data(t, ~0ull - 255, 512);
}

static void data_empty(struct target *t)
{
    attack_data(t, (uint64_t)t->mem + 4096, 0);
}

static void data_huge(struct target *t)
{
    attack_data(t, (uint64_t)t->mem, 0xffffffff);
}

static void sum_overflows(struct target *t)
{
    for (uint16_t i = 0; i < 8; i++)
        put_desc(t, i, (uint64_t)t->mem, 0xfffffff0, i < 7 ? DESC_NEXT : 0, (uint16_t)(i + 1));
    publish(t, 0);
    ring_bell(t);
}

static void readable_after_writable(struct target *t)
{
    put_desc(t, 0, (uint64_t)t->mem, 16, DESC_NEXT, 1);
    put_desc(t, 1, (uint64_t)t->mem + 4096, 512, DESC_WRITE | DESC_NEXT, 2);
    put_desc(t, 2, (uint64_t)t->mem + 8192, 512, DESC_NEXT, 3);
    put_desc(t, 3, (uint64_t)t->mem + 64, 1, DESC_WRITE, 0);
    publish(t, 0);
    ring_bell(t);
}

// Queue 0 with these registers, ready, DRIVER_OK, a doorbell. A ready bit that reads back clear is a refusal.
static void odd_queue(struct target *t, uint32_t num, uint64_t desc, uint64_t avail, uint64_t used)
{
    uint64_t b = t->dev->base;
    target_setup_only(t);
    wr32(b + MMIO_QUEUE_SEL, 0);
    wr32(b + MMIO_QUEUE_NUM, num);
    for (unsigned i = 0; i < 2; i++) {
        wr32(b + MMIO_DESC + 4 * i, (uint32_t)(desc >> 32 * i));
        wr32(b + MMIO_AVAIL + 4 * i, (uint32_t)(avail >> 32 * i));
        wr32(b + MMIO_USED + 4 * i, (uint32_t)(used >> 32 * i));
    }
    wr32(b + MMIO_QUEUE_READY, 1);
    t->refused |= !rd32(b + MMIO_QUEUE_READY);
    vdev_ok(t->dev);
    wr32(b + MMIO_NOTIFY, 0);
}

#define D(t) ((uint64_t)(t)->mem + 65536)
#define A(t) ((uint64_t)(t)->mem + 69632)
#define U(t) ((uint64_t)(t)->mem + 73728)

static void ring_unaligned(struct target *t)
{
    odd_queue(t, 16, D(t) + 1, A(t) + 1, U(t) + 1);
}

static void rings_overlap(struct target *t)
{
    odd_queue(t, 16, D(t), D(t), D(t));
}

static void rings_in_hole(struct target *t)
{
    odd_queue(t, 16, 0xd0000000, 0xd0001000, 0xd0002000);
}

static void rings_on_device(struct target *t)
{
    odd_queue(t, 16, t->dev->base, t->dev->base, t->dev->base);
}

static void rings_cross_end(struct target *t)
{
    odd_queue(t, 16, t->ram_end - 16, A(t), t->ram_end - 4);
}

static void ring_over_data(struct target *t)
{
    attack_data(t, (uint64_t)t->v->desc, 512);
}

static void size_zero(struct target *t)
{
    odd_queue(t, 0, D(t), A(t), U(t));
}

static void size_three(struct target *t)
{
    odd_queue(t, 3, D(t), A(t), U(t));
}

static void size_huge(struct target *t)
{
    odd_queue(t, 32768, D(t), A(t), U(t));
}

static void queue_beyond(struct target *t)
{
    uint64_t b = t->dev->base;
    for (uint32_t i = 3; i; i *= 17) { // up to and past 2^32, until it wraps to nothing known
        wr32(b + MMIO_QUEUE_SEL, i);
        (void)rd32(b + MMIO_QUEUE_MAX);
        wr32(b + MMIO_QUEUE_NUM, 16);
        wr32(b + MMIO_QUEUE_READY, 1);
        wr32(b + MMIO_NOTIFY, i);
        if (i > 0x10000000)
            break;
    }
    wr32(b + MMIO_QUEUE_SEL, 0);
}

static void registers_after_ready(struct target *t)
{
    uint64_t b = t->dev->base;
    wr32(b + MMIO_QUEUE_SEL, t->v->index);
    wr32(b + MMIO_QUEUE_NUM, 3);
    wr32(b + MMIO_DESC, 0xd0000000);
    wr32(b + MMIO_AVAIL, 0xd0000001);
    wr32(b + MMIO_USED + 4, 0xffffffff);
    wr32(b + MMIO_DRIVER_FEATURES, 0xffffffff);
    attack_data(t, (uint64_t)t->mem + 4096, t->blk ? 512 : 60);
}

#define BOTH (ON_BLK | ON_NET)
const struct hostile_case queue_cases[] = {
    {"Q1-head", BOTH, MUST_FAIL, head_beyond},
    {"Q1-head-max", BOTH, MUST_FAIL, head_max},
    {"Q1-next", BOTH, MUST_FAIL, next_beyond},
    {"Q2-self-loop", BOTH, MUST_FAIL, self_loop},
    {"Q2-long-loop", BOTH, MUST_FAIL, long_loop},
    {"Q3-jump", BOTH, MUST_FAIL, jump_size},
    {"Q3-jump-back", BOTH, MUST_FAIL, jump_back},
    {"Q3-wrap", BOTH, MUST_WORK, wrap},
    {"Q4-refill", BOTH, MUST_WORK, refill},
    {"Q5-duplicate", BOTH, MAY_FAIL, duplicate},
    {"Q6-not-negotiated", BOTH, MUST_FAIL, indirect_not_negotiated},
    {"Q6-empty", BOTH, MUST_FAIL, indirect_empty},
    {"Q6-uneven", BOTH, MUST_FAIL, indirect_uneven},
    {"Q6-huge", BOTH, MUST_FAIL, indirect_huge},
    {"Q6-outside", BOTH, MUST_FAIL, indirect_outside},
    {"Q6-next", BOTH, MUST_FAIL, indirect_with_next},
    {"Q6-nested", BOTH, MUST_FAIL, indirect_nested},
    {"Q7-crosses-end", BOTH, MUST_FAIL, data_crosses_end},
    {"Q7-end", BOTH, MUST_FAIL, data_at_end},
    {"Q7-last", ON_BLK, MUST_WORK, data_last_bytes},
    {"Q7-hole", BOTH, MUST_FAIL, data_in_hole},
    {"Q7-device", BOTH, MUST_FAIL, data_on_device},
    {"Q7-wraps", BOTH, MUST_FAIL, data_wraps},
    {"Q8-empty", BOTH, MAY_FAIL, data_empty},
    {"Q8-huge", BOTH, MUST_FAIL, data_huge},
    {"Q8-sum", BOTH, MUST_FAIL, sum_overflows},
    {"Q9-order", BOTH, MUST_FAIL, readable_after_writable},
    {"Q10-unaligned", BOTH, MUST_FAIL, ring_unaligned},
    {"Q10-overlap", BOTH, MAY_FAIL, rings_overlap},
    {"Q10-hole", BOTH, MUST_FAIL, rings_in_hole},
    {"Q10-device", BOTH, MUST_FAIL, rings_on_device},
    {"Q10-end", BOTH, MUST_FAIL, rings_cross_end},
    {"Q10-data", BOTH, MAY_FAIL, ring_over_data},
    {"Q11-zero", BOTH, MUST_FAIL, size_zero},
    {"Q11-three", BOTH, MUST_FAIL, size_three},
    {"Q11-huge", BOTH, MUST_FAIL, size_huge},
    {"Q11-beyond", BOTH, MAY_FAIL, queue_beyond},
    {"Q12-after-ready", BOTH, MAY_FAIL, registers_after_ready},
};
const unsigned queue_case_n = ARRAY_SIZE(queue_cases);
