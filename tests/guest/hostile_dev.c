// SPDX-License-Identifier: Apache-2.0
// Hostile requests, frames, resets and register accesses: B1 to B5, N1 to N3, Q13, Q15, M1, M2 of the project's list of attacks.
#include "hostile.h"

#define DATA(t) ((uint64_t)(t)->mem + 4096)

static uint64_t capacity(struct target *t)
{
    return rd32(t->dev->base + MMIO_CONFIG) | (uint64_t)rd32(t->dev->base + MMIO_CONFIG + 4) << 32;
}

static void sector_max(struct target *t)
{
    blk_chain(t, 0, ~0ull, DATA(t), 4096, true);
}

static void sector_times_512(struct target *t)
{
    blk_chain(t, 0, 1ull << 55, DATA(t), 512, true);
}

static void past_capacity(struct target *t)
{
    blk_chain(t, 0, capacity(t), DATA(t), 512, true);
}

static void across_capacity(struct target *t)
{
    blk_chain(t, 1, capacity(t) - 1, DATA(t), 1024, false);
}

static void partial_sector(struct target *t)
{
    blk_chain(t, 0, 0, DATA(t), 100, true);
}

static void write_read_only(struct target *t)
{
    if (!target_start(t, 1ull << 5) || !(t->dev->features & 1ull << 5)) {
        t->skip = "the disk is writable";
        return;
    }
    blk_chain(t, 1, 0, DATA(t), 512, false);
}

static void no_status(struct target *t)
{
    memset(t->mem, 0, 16);
    put_desc(t, 0, (uint64_t)t->mem, 16, 0, 0);
    publish(t, 0);
    ring_bell(t);
}

static void status_readable(struct target *t)
{
    memset(t->mem, 0, 16);
    put_desc(t, 0, (uint64_t)t->mem, 16, DESC_NEXT, 1);
    put_desc(t, 1, DATA(t), 1, 0, 0);
    publish(t, 0);
    ring_bell(t);
}

static void status_empty(struct target *t)
{
    blk_chain(t, 0, 0, DATA(t), 512, true);
    put_desc(t, 2, (uint64_t)t->status, 0, DESC_WRITE, 0);
    publish(t, 0);
    ring_bell(t);
}

static void status_in_data(struct target *t)
{
    memset(t->mem, 0, 16);
    put_desc(t, 0, (uint64_t)t->mem, 16, DESC_NEXT, 1);
    put_desc(t, 1, DATA(t), 512, DESC_NEXT | DESC_WRITE, 2);
    put_desc(t, 2, DATA(t) + 100, 1, DESC_WRITE, 0);
    publish(t, 0);
    ring_bell(t);
}

static void short_header(struct target *t)
{
    t->status = t->mem + 4096;
    *t->status = 0xff;
    put_desc(t, 0, (uint64_t)t->mem, 8, DESC_NEXT, 1);
    put_desc(t, 1, DATA(t), 1, DESC_WRITE, 0);
    publish(t, 0);
    ring_bell(t);
}

static void unknown_type(struct target *t)
{
    blk_chain(t, 0x1234, 0, DATA(t), 512, true);
}

static void short_id(struct target *t)
{
    blk_chain(t, 8, 0, DATA(t), 4, true);
}

static void write_into_device(struct target *t)
{
    blk_chain(t, 1, 0, DATA(t), 512, true); // a write whose data the device may only write
}

static void wild_discard(struct target *t)
{
    uint32_t range[4] = {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff};
    memcpy((uint8_t *)t->mem + 4096, range, sizeof(range));
    blk_chain(t, 11, 0, DATA(t), 16, false);
}

static void uneven_zeroes(struct target *t)
{
    blk_chain(t, 13, 0, DATA(t), 15, false);
}

// ---- network ----

static void frame(struct target *t, uint32_t len, const uint8_t hdr[12])
{
    memset(t->mem, 0, 12);
    if (hdr)
        memcpy(t->mem, hdr, 12);
    put_desc(t, 0, (uint64_t)t->mem, len, 0, 0);
    publish(t, 0);
    ring_bell(t);
}

static void short_net_header(struct target *t)
{
    frame(t, 4, NULL);
}

static void garbage_gso(struct target *t)
{
    static const uint8_t h[12] = {0xff, 0x7f, 0xff, 0xff, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    frame(t, 12 + 100, h);
}

static void csum_outside(struct target *t)
{
    static const uint8_t h[12] = {1, 0, 0, 0, 0, 0, 0xf0, 0xff, 0xf0, 0xff, 0, 0};
    frame(t, 12 + 60, h);
}

static void gso_of_nothing(struct target *t)
{
    static const uint8_t h[12] = {1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0};
    frame(t, 12 + 60, h);
}

static void empty_frame(struct target *t)
{
    frame(t, 12, NULL);
}

static void full_frame(struct target *t)
{
    frame(t, 12 + 65535, NULL);
}

static void oversize_frame(struct target *t)
{
    frame(t, 12 + 65536, NULL);
}

static void far_oversize_frame(struct target *t)
{
    frame(t, 200 << 10, NULL);
}

static void writable_tx(struct target *t)
{
    put_desc(t, 0, (uint64_t)t->mem, 12 + 60, DESC_WRITE, 0);
    publish(t, 0);
    ring_bell(t);
}

// Receive buffers that hold nothing, while broadcasts of our own make the other side talk, if anybody is there.
static void tiny_receive(struct target *t)
{
    t->v = &t->q[0];
    for (uint16_t i = 0; i < 16; i++) {
        put_desc(t, i, DATA(t), i % 4 == 3 ? 13 : i, DESC_WRITE, 0);
        publish(t, i);
    }
    put_desc(t, 16, DATA(t), 2048, 0, 0); // readable: cannot be received into
    publish(t, 16);
    ring_bell(t);
    t->v = &t->q[1];
    target_works(t);
}

// ---- registers and reset ----

// Reads are under way when the device is reset; once it says zero, memory belongs to us alone.
static void reset_in_flight(struct target *t)
{
    uint8_t *data = t->mem + 65536;
    for (unsigned round = 0; round < 20 && !t->broken; round++) {
        if (!target_start(t, 0)) {
            t->broken = "did not start again";
            return;
        }
        for (uint16_t i = 0; i < 16; i++) {
            memset(t->mem, 0, 16);
            put_desc(t, i * 3u, (uint64_t)t->mem, 16, DESC_NEXT, (uint16_t)(i * 3 + 1));
            put_desc(t, i * 3u + 1, (uint64_t)data + i * 4096u, 4096, DESC_WRITE | DESC_NEXT,
                     (uint16_t)(i * 3 + 2));
            put_desc(t, i * 3u + 2, (uint64_t)t->mem + 64, 1, DESC_WRITE, 0);
            publish(t, (uint16_t)(i * 3));
        }
        ring_bell(t);
        wr32(t->dev->base + MMIO_STATUS, 0);
        for (unsigned i = 0; rd32(t->dev->base + MMIO_STATUS) && i < 100000; i++)
            ;
        memset(data, 0xa5, 65536);
        for (uint64_t w = rdtsc() + us_tsc(5000); rdtsc() < w;)
            ;
        for (unsigned i = 0; i < 65536; i++)
            if (data[i] != 0xa5)
                t->broken = "memory changed after the reset";
    }
}

static void all_features(struct target *t)
{
    uint64_t b = t->dev->base;
    wr32(b + MMIO_STATUS, 0);
    wr32(b + MMIO_STATUS, VIRTIO_ACK | VIRTIO_DRIVER);
    for (uint32_t i = 0; i < 4; i++) {
        wr32(b + MMIO_DRIVER_FEATURES_SEL, i);
        wr32(b + MMIO_DRIVER_FEATURES, 0xffffffff);
    }
    wr32(b + MMIO_STATUS, VIRTIO_ACK | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
    t->refused = !(vdev_status(t->dev) & VIRTIO_FEATURES_OK);
}

static void touch(uint64_t pa, unsigned width, bool write, uint64_t v)
{
    if (!write) {
        switch (width) {
        case 0:
            __asm__ volatile("movb (%1), %b0" : "=q"(v) : "r"(pa) : "memory");
            break;
        case 1:
            __asm__ volatile("movw (%1), %w0" : "=r"(v) : "r"(pa) : "memory");
            break;
        case 2:
            __asm__ volatile("movl (%1), %k0" : "=r"(v) : "r"(pa) : "memory");
            break;
        default:
            __asm__ volatile("movq (%1), %0" : "=r"(v) : "r"(pa) : "memory");
            break;
        }
        return;
    }
    switch (width) {
    case 0:
        __asm__ volatile("movb %b0, (%1)" ::"q"(v), "r"(pa) : "memory");
        break;
    case 1:
        __asm__ volatile("movw %w0, (%1)" ::"r"(v), "r"(pa) : "memory");
        break;
    case 2:
        __asm__ volatile("movl %k0, (%1)" ::"r"(v), "r"(pa) : "memory");
        break;
    default:
        __asm__ volatile("movq %0, (%1)" ::"r"(v), "r"(pa) : "memory");
        break;
    }
}

static void every_register(struct target *t)
{
    for (uint64_t off = 0; off < 0x140; off++)
        for (unsigned k = 0; k < 8; k++)
            touch(t->dev->base + off, k % 4, k >= 4, rand64());
}

static void random_registers(struct target *t)
{
    for (unsigned i = 0; i < 4000; i++) {
        uint64_t r = rand64();
        touch(t->dev->base + (r & 0x1ff), r >> 12 & 3, r >> 14 & 1,
              r >> 20 & 1 ? r >> 32 : r >> 60);
    }
}

static void config_edge(struct target *t)
{
    for (uint64_t off = 0xff0; off < 0x1000; off++)
        for (unsigned k = 0; k < 8; k++)
            touch(t->dev->base + off, k % 4, k >= 4, ~0ull);
}

const struct hostile_case device_cases[] = {
    {"B1-sector-max", ON_BLK, MUST_FAIL, sector_max},
    {"B1-sector-512", ON_BLK, MUST_FAIL, sector_times_512},
    {"B2-past", ON_BLK, MUST_FAIL, past_capacity},
    {"B2-across", ON_BLK, MUST_FAIL, across_capacity},
    {"B2-partial", ON_BLK, MUST_FAIL, partial_sector},
    {"B3-read-only", ON_BLK, MUST_FAIL, write_read_only},
    {"B4-no-status", ON_BLK, MUST_FAIL, no_status},
    {"B4-readable", ON_BLK, MUST_FAIL, status_readable},
    {"B4-empty", ON_BLK, MAY_FAIL, status_empty},
    {"B4-in-data", ON_BLK, MAY_FAIL, status_in_data},
    {"B4-short-header", ON_BLK, MUST_FAIL, short_header},
    {"B5-type", ON_BLK, MUST_FAIL, unknown_type},
    {"B5-short-id", ON_BLK, MAY_FAIL, short_id},
    {"B5-direction", ON_BLK, MUST_FAIL, write_into_device},
    {"B5-discard", ON_BLK, MUST_FAIL, wild_discard},
    {"B5-zeroes", ON_BLK, MUST_FAIL, uneven_zeroes},
    {"N1-short-header", ON_NET, MAY_FAIL, short_net_header},
    {"N1-gso", ON_NET, MAY_FAIL, garbage_gso},
    {"N1-csum", ON_NET, MAY_FAIL, csum_outside},
    {"N1-gso-empty", ON_NET, MAY_FAIL, gso_of_nothing},
    {"N2-empty", ON_NET, MAY_FAIL, empty_frame},
    {"N2-full", ON_NET, MAY_FAIL, full_frame},
    {"N2-over", ON_NET, MAY_FAIL, oversize_frame},
    {"N2-far-over", ON_NET, MAY_FAIL, far_oversize_frame},
    {"N2-writable", ON_NET, MUST_FAIL, writable_tx},
    {"N3-tiny", ON_NET, MAY_FAIL, tiny_receive},
    {"Q13-reset", ON_BLK, MUST_WORK, reset_in_flight},
    {"Q15-features", ON_BLK | ON_NET, MUST_FAIL, all_features},
    {"M1-every", ON_BLK | ON_NET, MAY_FAIL, every_register},
    {"M1-random", ON_BLK | ON_NET, MAY_FAIL, random_registers},
    {"M2-edge", ON_BLK | ON_NET, MAY_FAIL, config_edge},
};
const unsigned device_case_n = ARRAY_SIZE(device_cases);
