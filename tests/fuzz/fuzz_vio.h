// SPDX-License-Identifier: Apache-2.0
// What the virtio harnesses share: input as a stream, a monitor that does nothing, guest memory
// that every run fills anew.
#ifndef TESTS_FUZZ_FUZZ_VIO_H
#define TESTS_FUZZ_FUZZ_VIO_H

#include "virtio/virtio.h"

#define FZ_RAM   MIB
#define FZ_IMAGE (64 * KIB) // what one run may have written through rings; the rest is data

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct in {
    const uint8_t *p;
    size_t left;
};

static inline uint64_t take(struct in *in, unsigned bytes) // zeros past the end
{
    uint64_t v = 0;
    const size_t n = MIN(in->left, bytes);
    if (n > 0)
        memcpy(&v, in->p, n);
    in->p += n;
    in->left -= n;
    return v;
}

static inline void fz_require(bool ok) // an invariant: abort is a finding
{
    if (!ok)
        abort();
}

static inline void fz_memory(struct guest_mem *m, struct in *in, size_t image)
{
    if (m->n == 0)
        fz_require(mem_reserve(m, FZ_RAM, NULL) == 0 && mem_back_anon(m, false, NULL) == 0);
    memset(m->r[0].host, 0, FZ_IMAGE);
    const size_t n = MIN(in->left, MIN(image, (size_t)FZ_IMAGE));
    if (n > 0)
        memcpy(m->r[0].host, in->p, n);
    in->p += n;
    in->left -= n;
}

static inline void fz_slot(void *ctx, unsigned slot)
{
    (void)ctx, (void)slot;
}

static inline int fz_io(void *ctx, struct vio_io *io)
{
    (void)ctx, (void)io;
    return -EBUSY;
}

static inline int fz_add(void *ctx, int fd)
{
    (void)ctx;
    return fd;
}

static inline void fz_del(void *ctx, int file)
{
    (void)ctx, (void)file;
}

static inline void fz_poll(void *ctx, unsigned slot, int file)
{
    (void)ctx, (void)slot, (void)file;
}

static inline void fz_timer(void *ctx, unsigned slot, uint64_t at)
{
    (void)ctx, (void)slot, (void)at;
}

static inline void fz_note(void *ctx, unsigned slot, const char *what)
{
    (void)ctx, (void)slot, (void)what;
}

static const struct vio_host fz_host = {.irq = fz_slot,
                                        .again = fz_slot,
                                        .io = fz_io,
                                        .file_add = fz_add,
                                        .file_del = fz_del,
                                        .poll_in = fz_poll,
                                        .poll_out = fz_poll,
                                        .timer = fz_timer,
                                        .note = fz_note};

static inline void fz_wr(struct vio_dev *d, uint32_t off, uint64_t v)
{
    vio_mmio_write(d, off, 4, v);
}

// An obedient driver's first steps: queues of 8 at 0x0, 0x400, 0x800, so that inputs reach the
// rings without having to spell them.
static inline void fz_bring_up(struct vio_dev *d, uint64_t features)
{
    memset(d->mem->r[0].host, 0, 0x1000);
    fz_wr(d, 0x70, 0);
    fz_wr(d, 0x70, 1);
    fz_wr(d, 0x70, 3);
    fz_wr(d, 0x24, 0);
    fz_wr(d, 0x20, features);
    fz_wr(d, 0x24, 1);
    fz_wr(d, 0x20, (features | VIO_F_VERSION_1) >> 32);
    fz_wr(d, 0x70, 11);
    for (unsigned i = 0; i < d->ops->queues; i++) {
        fz_wr(d, 0x30, i);
        fz_wr(d, 0x38, 8);
        fz_wr(d, 0x80, 0x400u * i);
        fz_wr(d, 0x90, 0x400u * i + 0x100);
        fz_wr(d, 0xa0, 0x400u * i + 0x200);
        fz_wr(d, 0x44, 1);
    }
    fz_wr(d, 0x70, 15);
}

// One descriptor of such a queue, mostly plausible, and if asked for its head in the ring.
static inline void fz_offer(struct guest_mem *m, struct in *in)
{
    const uint8_t how = (uint8_t)take(in, 1), slot = (uint8_t)take(in, 1);
    uint8_t *q = m->r[0].host + 0x400u * (how % 3), *d = q + 16u * (slot % 8);
    le64_put(d, how & 0x20 ? take(in, 8) : 0x1000 + take(in, 1) * 256);
    le32_put(d + 8, (uint32_t)(how & 0x10 ? take(in, 4) : take(in, 1) * 8));
    le16_put(d + 12, how >> 2 & 3);
    le16_put(d + 14, slot >> 4 & 7);
    if (slot & 8)
        le16_put(d + 12, (uint16_t)take(in, 2));
    const uint16_t idx = le16_get(q + 0x102);
    if (how & 0x80)
        return;
    le16_put(q + 0x104 + 2u * (idx % 8), slot % 8);
    le16_put(q + 0x102, (uint16_t)(idx + (how & 0x40 ? take(in, 1) : 1)));
}

#endif
