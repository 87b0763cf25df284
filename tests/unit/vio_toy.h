// SPDX-License-Identifier: Apache-2.0
// A virtio device of two queues whose every step is counted, for tests of the transport.
#ifndef TESTS_UNIT_VIO_TOY_H
#define TESTS_UNIT_VIO_TOY_H

#include "tests/unit/vio_fake.h"

#define RAM       (2 * MIB)
#define F_DEV     (1ULL << 5)
#define F_ALL     (F_DEV | VIO_F_VERSION_1 | VIO_F_EVENT_IDX | VIO_F_INDIRECT_DESC)
#define STATUS    0x70
#define DRIVER_OK 15u

struct toy { // a device of two queues whose every step is counted
    struct vio_dev d;
    unsigned kicks, resets, activations, quiesces, timers, reads, inflight;
    int refuse;
    uint8_t config[12];
};

static struct guest_mem mem;
static struct fake_host fake;
static struct vio_host host;
static struct toy toy;
static struct drv_queue dq[2];
static struct vio_dev *const dev = &toy.d;

static inline struct toy *of(const struct vio_dev *d)
{
    ck_assert_ptr_eq(d, &toy.d);
    return &toy;
}

static inline uint64_t toy_features(const struct vio_dev *d)
{
    (void)of(d);
    return F_DEV;
}

static inline void toy_config_read(struct vio_dev *d, uint32_t off, void *buf, uint32_t len)
{
    const struct toy *t = of(d);
    for (uint32_t i = 0; i < len; i++)
        if ((uint64_t)off + i < sizeof(t->config))
            ((uint8_t *)buf)[i] = t->config[off + i];
}

static inline void toy_config_write(struct vio_dev *d, uint32_t off, const void *buf, uint32_t len)
{
    struct toy *t = of(d);
    for (uint32_t i = 0; i < len; i++)
        if ((uint64_t)off + i < sizeof(t->config))
            t->config[off + i] = ((const uint8_t *)buf)[i];
}

static inline int toy_activate(struct vio_dev *d)
{
    of(d)->activations++;
    return of(d)->refuse;
}

static inline void toy_reset(struct vio_dev *d)
{
    of(d)->resets++;
}

static inline void toy_kick(struct vio_dev *d)
{
    of(d)->kicks++;
    struct vchain c;
    for (unsigned i = 0; i < 2; i++)
        if (virtq_pop(&d->queue[i], &c) < 0) {
            vio_fault(d, "ring");
            return;
        }
}

static inline void toy_readable(struct vio_dev *d)
{
    of(d)->reads++;
}

static inline void toy_timer(struct vio_dev *d)
{
    of(d)->timers++;
}

static inline void toy_quiesce(struct vio_dev *d, bool on)
{
    (void)on;
    of(d)->quiesces++;
}

static inline unsigned toy_inflight(const struct vio_dev *d)
{
    return of(d)->inflight;
}

static const struct vio_ops toy_ops = {
    .id = 42,
    .queues = 2,
    .features = toy_features,
    .config_read = toy_config_read,
    .config_write = toy_config_write,
    .activate = toy_activate,
    .reset = toy_reset,
    .kick = toy_kick,
    .readable = toy_readable,
    .timer = toy_timer,
    .quiesce = toy_quiesce,
    .inflight = toy_inflight,
};

static inline void setup(void)
{
    ck_assert_int_eq(mem_reserve(&mem, RAM, NULL), 0);
    ck_assert_int_eq(mem_back_anon(&mem, false, NULL), 0);
    host = fake_vio_host(&fake);
    vio_init(dev, &toy_ops, &host, &mem, 3);
    dq[0] = drv_queue(&mem, 0x10000, 8);
    dq[1] = drv_queue(&mem, 0x20000, 256);
}

static inline void teardown(void)
{
    mem_free(&mem);
}

static inline void live(uint64_t features)
{
    drv_features(dev, features);
    ck_assert_uint_eq(rd(dev, STATUS), 11);
    drv_setup_queue(dev, 0, &dq[0]);
    drv_setup_queue(dev, 1, &dq[1]);
    wr(dev, STATUS, DRIVER_OK);
}

static inline void landed(struct vio_dev *d, struct vio_io *io, int res)
{
    (void)io, (void)res;
    toy.inflight--;
    virtq_push(&d->queue[0], 0, 1);
    virtq_publish(&d->queue[0]);
}

#endif
