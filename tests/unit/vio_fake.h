// SPDX-License-Identifier: Apache-2.0
// A monitor that only counts, and a guest driver's side of a split queue, for tests of virtio/.
#ifndef TESTS_UNIT_VIO_FAKE_H
#define TESTS_UNIT_VIO_FAKE_H

#include <check.h>

#include "virtio/virtio.h"

struct fake_host {
    unsigned irqs, again, notes, polls_in;
    uint64_t timer;
    const char *note;
};

static inline void fake_irq(void *ctx, unsigned slot)
{
    (void)slot;
    ((struct fake_host *)ctx)->irqs++;
}

static inline void fake_again(void *ctx, unsigned slot)
{
    (void)slot;
    ((struct fake_host *)ctx)->again++;
}

static inline int fake_io(void *ctx, struct vio_io *io)
{
    (void)ctx, (void)io;
    return -EBUSY;
}

static inline int fake_file_add(void *ctx, int fd)
{
    (void)ctx;
    return fd;
}

static inline void fake_file_del(void *ctx, int file)
{
    (void)ctx, (void)file;
}

static inline void fake_poll_in(void *ctx, unsigned slot, int file)
{
    (void)slot, (void)file;
    ((struct fake_host *)ctx)->polls_in++;
}

static inline void fake_poll_out(void *ctx, unsigned slot, int file)
{
    (void)ctx, (void)slot, (void)file;
}

static inline void fake_timer(void *ctx, unsigned slot, uint64_t at)
{
    (void)slot;
    ((struct fake_host *)ctx)->timer = at;
}

static inline void fake_note(void *ctx, unsigned slot, const char *what)
{
    (void)slot;
    ((struct fake_host *)ctx)->notes++;
    ((struct fake_host *)ctx)->note = what;
}

static inline struct vio_host fake_vio_host(struct fake_host *f)
{
    return (struct vio_host){.ctx = f,
                             .irq = fake_irq,
                             .again = fake_again,
                             .io = fake_io,
                             .file_add = fake_file_add,
                             .file_del = fake_file_del,
                             .poll_in = fake_poll_in,
                             .poll_out = fake_poll_out,
                             .timer = fake_timer,
                             .note = fake_note};
}

// ---- the driver's side

enum { D_NEXT = 1, D_WRITE = 2, D_INDIRECT = 4 };

struct drv_queue {
    struct guest_mem *mem;
    uint16_t size, idx;
    uint64_t desc, avail, used;
};

static inline void put(struct guest_mem *m, uint64_t gpa, const void *p, uint64_t len)
{
    ck_assert_int_eq(mem_write(m, gpa, p, len), 0);
}

static inline void put16(struct guest_mem *m, uint64_t gpa, uint16_t v)
{
    put(m, gpa, &v, 2);
}

static inline uint16_t get16(struct guest_mem *m, uint64_t gpa)
{
    uint16_t v;
    ck_assert_int_eq(mem_read(m, gpa, &v, 2), 0);
    return v;
}

static inline uint32_t get32(struct guest_mem *m, uint64_t gpa)
{
    uint32_t v;
    ck_assert_int_eq(mem_read(m, gpa, &v, 4), 0);
    return v;
}

// A queue whose rings lie one page apart from base on.
static inline struct drv_queue drv_queue(struct guest_mem *m, uint64_t base, uint16_t size)
{
    return (struct drv_queue){
        .mem = m, .size = size, .desc = base, .avail = base + 0x1000, .used = base + 0x2000};
}

static inline void put_desc(struct guest_mem *m, uint64_t table, uint32_t i, uint64_t addr,
                            uint32_t len, uint16_t flags, uint16_t next)
{
    uint8_t d[16];
    le64_put(d, addr);
    le32_put(d + 8, len);
    le16_put(d + 12, flags);
    le16_put(d + 14, next);
    put(m, table + 16ULL * i, d, 16);
}

static inline void drv_desc(struct drv_queue *q, uint32_t i, uint64_t addr, uint32_t len,
                            uint16_t flags, uint16_t next)
{
    put_desc(q->mem, q->desc, i, addr, len, flags, next);
}

static inline void drv_offer(struct drv_queue *q, uint16_t head) // into the ring and visible
{
    put16(q->mem, q->avail + 4 + 2ULL * (q->idx % q->size), head);
    put16(q->mem, q->avail + 2, ++q->idx);
}

static inline uint16_t drv_used_idx(struct drv_queue *q)
{
    return get16(q->mem, q->used + 2);
}

static inline uint32_t drv_used_id(struct drv_queue *q, uint16_t n)
{
    return get32(q->mem, q->used + 4 + 8ULL * (n % q->size));
}

static inline uint32_t drv_used_len(struct drv_queue *q, uint16_t n)
{
    return get32(q->mem, q->used + 8 + 8ULL * (n % q->size));
}

static inline void drv_used_event(struct drv_queue *q, uint16_t v)
{
    put16(q->mem, q->avail + 4 + 2ULL * q->size, v);
}

static inline uint16_t drv_avail_event(struct drv_queue *q)
{
    return get16(q->mem, q->used + 4 + 8ULL * q->size);
}

// ---- the driver's way through the registers

static inline void wr(struct vio_dev *d, uint32_t off, uint32_t v)
{
    vio_mmio_write(d, off, 4, v);
}

static inline uint32_t rd(struct vio_dev *d, uint32_t off)
{
    return (uint32_t)vio_mmio_read(d, off, 4);
}

static inline void drv_features(struct vio_dev *d, uint64_t features)
{
    wr(d, 0x70, 0);
    wr(d, 0x70, 1);
    wr(d, 0x70, 3);
    wr(d, 0x24, 0);
    wr(d, 0x20, (uint32_t)features);
    wr(d, 0x24, 1);
    wr(d, 0x20, (uint32_t)(features >> 32));
    wr(d, 0x70, 11);
}

static inline void drv_setup_queue(struct vio_dev *d, unsigned i, const struct drv_queue *q)
{
    wr(d, 0x30, i);
    wr(d, 0x38, q->size);
    wr(d, 0x80, (uint32_t)q->desc);
    wr(d, 0x84, (uint32_t)(q->desc >> 32));
    wr(d, 0x90, (uint32_t)q->avail);
    wr(d, 0x94, (uint32_t)(q->avail >> 32));
    wr(d, 0xa0, (uint32_t)q->used);
    wr(d, 0xa4, (uint32_t)(q->used >> 32));
    wr(d, 0x44, 1);
}

static inline int run_suite(Suite *s)
{
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}

#endif
