// SPDX-License-Identifier: Apache-2.0
// The MMIO transport: identity, status machine, feature refusal, frozen queues, reset with work in
// flight, faults, pause, state in and out, and every offset, width and direction.
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

static struct toy *of(const struct vio_dev *d)
{
    ck_assert_ptr_eq(d, &toy.d);
    return &toy;
}

static uint64_t toy_features(const struct vio_dev *d)
{
    (void)of(d);
    return F_DEV;
}

static void toy_config_read(struct vio_dev *d, uint32_t off, void *buf, uint32_t len)
{
    const struct toy *t = of(d);
    for (uint32_t i = 0; i < len; i++)
        if ((uint64_t)off + i < sizeof(t->config))
            ((uint8_t *)buf)[i] = t->config[off + i];
}

static void toy_config_write(struct vio_dev *d, uint32_t off, const void *buf, uint32_t len)
{
    struct toy *t = of(d);
    for (uint32_t i = 0; i < len; i++)
        if ((uint64_t)off + i < sizeof(t->config))
            t->config[off + i] = ((const uint8_t *)buf)[i];
}

static int toy_activate(struct vio_dev *d)
{
    of(d)->activations++;
    return of(d)->refuse;
}

static void toy_reset(struct vio_dev *d)
{
    of(d)->resets++;
}

static void toy_kick(struct vio_dev *d)
{
    of(d)->kicks++;
    struct vchain c;
    for (unsigned i = 0; i < 2; i++)
        if (virtq_pop(&d->queue[i], &c) < 0) {
            vio_fault(d, "ring");
            return;
        }
}

static void toy_readable(struct vio_dev *d)
{
    of(d)->reads++;
}

static void toy_timer(struct vio_dev *d)
{
    of(d)->timers++;
}

static void toy_quiesce(struct vio_dev *d, bool on)
{
    (void)on;
    of(d)->quiesces++;
}

static unsigned toy_inflight(const struct vio_dev *d)
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

static void setup(void)
{
    ck_assert_int_eq(mem_reserve(&mem, RAM, NULL), 0);
    ck_assert_int_eq(mem_back_anon(&mem, false, NULL), 0);
    host = fake_vio_host(&fake);
    vio_init(dev, &toy_ops, &host, &mem, 3);
    dq[0] = drv_queue(&mem, 0x10000, 8);
    dq[1] = drv_queue(&mem, 0x20000, 256);
}

static void teardown(void)
{
    mem_free(&mem);
}

static void live(uint64_t features)
{
    drv_features(dev, features);
    ck_assert_uint_eq(rd(dev, STATUS), 11);
    drv_setup_queue(dev, 0, &dq[0]);
    drv_setup_queue(dev, 1, &dq[1]);
    wr(dev, STATUS, DRIVER_OK);
}

START_TEST(identity)
{
    ck_assert_uint_eq(rd(dev, 0x000), 0x74726976);
    ck_assert_uint_eq(rd(dev, 0x004), 2);
    ck_assert_uint_eq(rd(dev, 0x008), 42);
    ck_assert_uint_ne(rd(dev, 0x00c), 0);
    ck_assert_uint_eq(rd(dev, 0x010), (uint32_t)F_ALL);
    wr(dev, 0x014, 1);
    ck_assert_uint_eq(rd(dev, 0x010), F_ALL >> 32);
    wr(dev, 0x014, 2);
    ck_assert_uint_eq(rd(dev, 0x010), 0);
    wr(dev, 0x014, UINT32_MAX);
    ck_assert_uint_eq(rd(dev, 0x010), 0);
    ck_assert_uint_eq(rd(dev, 0x0b0), UINT32_MAX);
    ck_assert_uint_eq(rd(dev, 0x0bc), UINT32_MAX);
    wr(dev, 0x30, 1);
    ck_assert_uint_eq(rd(dev, 0x034), VIO_QUEUE_SIZE);
    ck_assert_uint_eq(rd(dev, 0x0c0), 0); // QueueReset is not offered
}
END_TEST

START_TEST(happy_path)
{
    live(F_ALL);
    ck_assert_uint_eq(rd(dev, STATUS), DRIVER_OK);
    ck_assert_uint_eq(toy.activations, 1);
    ck_assert(dev->active && dev->queue[0].desc && dev->queue[1].desc);
    ck_assert(dev->queue[0].event_idx && dev->queue[0].indirect);
    ck_assert_uint_eq(fake.again, 1);
    vio_kick(dev);
    ck_assert_uint_eq(toy.kicks, 1);
    drv_offer(&dq[0], 0);
    wr(dev, 0x50, 0);
    ck_assert_uint_eq(fake.again, 2);
    wr(dev, 0x50, 2); // no such queue
    wr(dev, 0x50, UINT32_MAX);
    ck_assert_uint_eq(fake.again, 2);
    wr(dev, STATUS, 0);
    ck_assert_uint_eq(rd(dev, STATUS), 0);
    ck_assert_uint_eq(toy.resets, 1 + 1); // drv_features begins with one
    wr(dev, 0x30, 0);
    ck_assert_uint_eq(rd(dev, 0x44), 0);
    ck_assert(!dev->active && !dev->queue[0].desc);
    vio_kick(dev);
    vio_readable(dev);
    vio_timer(dev);
    ck_assert_uint_eq(toy.kicks + toy.reads + toy.timers, 1);
    live(VIO_F_VERSION_1); // and once more from the start
    ck_assert(dev->active && !dev->queue[0].event_idx && !dev->queue[0].indirect);
    vio_readable(dev);
    vio_timer(dev);
    ck_assert_uint_eq(toy.reads + toy.timers, 2);
}
END_TEST

START_TEST(status_steps_in_order_only)
{
    // Every status value in every state: the next step, a repetition, FAILED, reset, or no effect.
    static const uint32_t states[] = {0, 1, 3, 11, 15};
    for (size_t s = 0; s < ARRAY_SIZE(states); s++)
        for (uint32_t v = 1; v < 1024; v++) {
            wr(dev, STATUS, 0);
            if (states[s] >= 11)
                drv_features(dev, F_ALL);
            for (size_t i = 1; i <= s; i++)
                wr(dev, STATUS, states[i]);
            ck_assert_uint_eq(rd(dev, STATUS), states[s]);
            wr(dev, 0x24, 1); // for FEATURES_OK from DRIVER
            wr(dev, 0x20, 1);
            wr(dev, STATUS, v);
            const uint32_t known = v & 0x8f, got = rd(dev, STATUS);
            const bool keeps = (known & states[s]) == states[s];
            const bool next = s < 4 && known == states[s + 1];
            if (keeps && (known & VIO_ST_FAILED))
                ck_assert_uint_eq(got, states[s] | VIO_ST_FAILED);
            else
                ck_assert_uint_eq(got, next ? known : states[s]);
            ck_assert_uint_eq(dev->active, got == 15);
        }
    ck_assert_uint_eq(atomic_load(&dev->faults), 0);
}
END_TEST

START_TEST(failed_leads_only_to_reset)
{
    live(F_ALL);
    wr(dev, STATUS, DRIVER_OK | VIO_ST_FAILED);
    ck_assert(!dev->active);
    wr(dev, STATUS, DRIVER_OK);
    ck_assert_uint_eq(rd(dev, STATUS), DRIVER_OK | VIO_ST_FAILED);
    wr(dev, STATUS, 0);
    ck_assert_uint_eq(rd(dev, STATUS), 0);
}
END_TEST

START_TEST(q15_unoffered_features)
{
    static const uint64_t bad[] = {0,
                                   F_DEV,
                                   F_ALL | 1,
                                   F_ALL | 1ULL << 33,
                                   F_ALL | 1ULL << 63,
                                   ~0ULL,
                                   F_ALL & ~VIO_F_VERSION_1};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        drv_features(dev, bad[i]);
        ck_assert_uint_eq(rd(dev, STATUS), 3);
        wr(dev, STATUS, 15); // going on regardless
        ck_assert_uint_eq(rd(dev, STATUS), 3);
    }
    drv_features(dev, F_ALL);
    wr(dev, 0x24, 0);
    wr(dev, 0x20, 0xffffffff); // after FEATURES_OK: no effect
    ck_assert_uint_eq(dev->s.drv_features, F_ALL);
    wr(dev, STATUS, 0);
    wr(dev, STATUS, 1);
    wr(dev, 0x20, 1); // before DRIVER: no effect
    ck_assert_uint_eq(dev->s.drv_features, 0);
    wr(dev, STATUS, 3);
    wr(dev, 0x24, 2);
    wr(dev, 0x20, 0);
    ck_assert_uint_eq(atomic_load(&dev->faults), 0);
    wr(dev, 0x20, 1); // a feature past bit 63
    ck_assert_uint_eq(rd(dev, STATUS), 3 | VIO_ST_NEEDS_RESET);
    ck_assert_uint_eq(fake.irqs, 0); // not before DRIVER_OK (2.1.2)
}
END_TEST

START_TEST(q11_sizes_and_selectors)
{
    static const uint32_t bad[] = {0, 3, 255, 257, 512, 0x10000, 0x10008, UINT32_MAX};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        drv_features(dev, F_ALL);
        drv_setup_queue(dev, 0, &dq[0]);
        wr(dev, 0x44, 0);
        wr(dev, 0x38, bad[i]);
        wr(dev, 0x44, 1);
        const unsigned irqs = fake.irqs;
        wr(dev, STATUS, DRIVER_OK);
        ck_assert_uint_eq(rd(dev, STATUS), DRIVER_OK | VIO_ST_NEEDS_RESET);
        ck_assert_uint_eq(fake.irqs, irqs + 1);
        ck_assert_uint_eq(rd(dev, 0x60), VIO_INT_CONFIG);
        ck_assert(!dev->active && !dev->queue[0].desc);
        wr(dev, STATUS, DRIVER_OK); // nothing but a reset helps
        ck_assert(!dev->active);
    }
    static const uint32_t sel[] = {2, 3, 255, 0x10000, UINT32_MAX};
    drv_features(dev, F_ALL);
    for (size_t i = 0; i < ARRAY_SIZE(sel); i++) {
        wr(dev, 0x30, sel[i]);
        for (uint32_t r = 0x34; r < 0xb0; r += 4)
            if (r != 0x50 && r != 0x64 && r != STATUS)
                wr(dev, r, 0x8);
        wr(dev, 0x30, sel[i]);
        ck_assert_uint_eq(rd(dev, 0x34), 0);
        ck_assert_uint_eq(rd(dev, 0x44), 0);
    }
    for (unsigned i = 0; i < VIO_MAX_QUEUES; i++)
        ck_assert(dev->queue[i].s.size == 0 && dev->queue[i].s.desc == 0);
}
END_TEST

START_TEST(q12_frozen_queue_registers)
{
    static const uint32_t regs[] = {0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4};
    drv_setup_queue(dev, 0, &dq[0]); // before FEATURES_OK: no effect
    ck_assert(dev->queue[0].s.size == 0 && !dev->queue[0].s.ready);
    drv_features(dev, F_ALL);
    drv_setup_queue(dev, 0, &dq[0]);
    drv_setup_queue(dev, 1, &dq[1]);
    wr(dev, 0x30, 0);
    const struct virtq_state before = dev->queue[0].s;
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < ARRAY_SIZE(regs); i++)
            wr(dev, regs[i], 0x4000);
        if (round == 1)
            wr(dev, 0x44, 0); // after DRIVER_OK not even that
        ck_assert_int_eq(memcmp(&before, &dev->queue[0].s, sizeof(before)), 0);
        wr(dev, STATUS, DRIVER_OK);
    }
    drv_features(dev, F_ALL);
    drv_setup_queue(dev, 0, &dq[0]);
    wr(dev, 0x44, 0); // before DRIVER_OK a queue may be taken back
    wr(dev, 0x38, 4);
    ck_assert_uint_eq(dev->queue[0].s.size, 4);
}
END_TEST

START_TEST(q10_rings_in_mmio_or_nowhere)
{
    static const uint64_t bad[] = {MEM_GAP_START, 0xc0001000,           RAM, RAM - 16, 1ULL << 40,
                                   ~0ULL - 15,    0xfffffffffffff000ULL};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        for (int which = 0; which < 3; which++) {
            struct drv_queue q = dq[0];
            *(which == 0 ? &q.desc : which == 1 ? &q.avail : &q.used) = bad[i];
            drv_features(dev, F_ALL);
            drv_setup_queue(dev, 0, &q);
            wr(dev, STATUS, DRIVER_OK);
            ck_assert_uint_eq(rd(dev, STATUS), DRIVER_OK | VIO_ST_NEEDS_RESET);
        }
}
END_TEST

START_TEST(device_refuses_activation)
{
    toy.refuse = -EIO;
    live(F_ALL);
    ck_assert_uint_eq(rd(dev, STATUS), DRIVER_OK | VIO_ST_NEEDS_RESET);
    ck_assert(!dev->active && !dev->queue[0].desc);
    toy.refuse = 0;
    live(F_ALL);
    ck_assert(dev->active);
}
END_TEST

START_TEST(fault_and_recovery)
{
    live(F_ALL);
    drv_offer(&dq[0], 999);
    vio_kick(dev);
    ck_assert_uint_eq(atomic_load(&dev->faults), 1);
    ck_assert_uint_eq(rd(dev, STATUS), DRIVER_OK | VIO_ST_NEEDS_RESET);
    ck_assert_uint_eq(fake.notes, 1);
    for (unsigned i = 0; i < 100; i++) {
        wr(dev, 0x50, 0);
        vio_kick(dev);
    }
    ck_assert_uint_eq(atomic_load(&dev->faults), 1); // stopped: a storm of kicks does nothing
    ck_assert_uint_eq(toy.kicks, 1);
    put16(&mem, dq[0].avail + 2, 0);
    live(F_ALL);
    vio_kick(dev);
    ck_assert_uint_eq(rd(dev, STATUS), DRIVER_OK);
}
END_TEST

static void landed(struct vio_dev *d, struct vio_io *io, int res)
{
    (void)io, (void)res;
    toy.inflight--;
    virtq_push(&d->queue[0], 0, 1);
    virtq_publish(&d->queue[0]);
}

START_TEST(q13_reset_with_work_in_flight)
{
    live(F_ALL);
    drv_desc(&dq[0], 0, 0x40000, 16, D_WRITE, 0);
    drv_offer(&dq[0], 0);
    vio_kick(dev);
    toy.inflight = 2;
    const unsigned resets = toy.resets;
    wr(dev, STATUS, 0);
    ck_assert_uint_ne(rd(dev, STATUS), 0);
    wr(dev, STATUS, 0);
    wr(dev, STATUS, 1); // no step until it is over
    wr(dev, 0x38, 4);
    vio_kick(dev);
    ck_assert_uint_eq(toy.kicks, 1);
    ck_assert_uint_eq(toy.resets, resets);
    struct vio_io io = {.done = landed, .dev = dev};
    vio_io_done(&io, 0);
    ck_assert_uint_ne(rd(dev, STATUS), 0);
    vio_io_done(&io, 0);
    ck_assert_uint_eq(rd(dev, STATUS), 0);
    ck_assert_uint_eq(toy.resets, resets + 1);
    const uint16_t used = drv_used_idx(&dq[0]);
    virtq_push(&dev->queue[0], 0, 1); // too late: nothing reaches the guest
    vio_signal(dev, &dev->queue[0]);
    ck_assert_uint_eq(drv_used_idx(&dq[0]), used);
}
END_TEST

START_TEST(interrupt_status)
{
    live(F_ALL);
    fake.irqs = 0;
    drv_desc(&dq[0], 0, 0x40000, 16, 0, 0);
    drv_offer(&dq[0], 0);
    struct vchain c;
    ck_assert_int_eq(virtq_pop(&dev->queue[0], &c), 1);
    virtq_push(&dev->queue[0], c.head, 0);
    vio_signal(dev, &dev->queue[0]);
    vio_signal(dev, &dev->queue[0]); // nothing new
    ck_assert_uint_eq(fake.irqs, 1);
    const uint32_t gen = rd(dev, 0xfc);
    ck_assert_uint_eq(rd(dev, 0xfc), gen);
    vio_config_changed(dev);
    ck_assert_uint_eq(rd(dev, 0xfc), gen + 1);
    ck_assert_uint_eq(rd(dev, 0x60), 3);
    wr(dev, 0x64, 1);
    ck_assert_uint_eq(rd(dev, 0x60), 2);
    wr(dev, 0x64, UINT32_MAX);
    ck_assert_uint_eq(rd(dev, 0x60), 0);
    wr(dev, STATUS, 0);
    ck_assert_uint_eq(rd(dev, 0xfc), gen + 1); // survives a reset: never goes back
    vio_config_changed(dev);
    ck_assert_uint_eq(fake.irqs, 2); // no driver, no interrupt
    ck_assert_uint_eq(rd(dev, 0xfc), gen + 2);
}
END_TEST

START_TEST(m1_every_offset_and_width)
{
    // Then random sequences, with the driver's own steps mixed in so that they get somewhere.
    for (uint32_t off = 0; off < VIO_MMIO_SIZE + 16; off++)
        for (unsigned len = 0; len <= 9; len++) {
            const bool reg = len == 4 && off % 4 == 0;
            vio_mmio_write(dev, off, len, ~0ULL);
            const uint64_t v = vio_mmio_read(dev, off, len);
            if (off < 0x100 && !reg)
                ck_assert_uint_eq(v, 0);
            if (off >= VIO_MMIO_SIZE)
                ck_assert_uint_eq(v, 0);
        }
    static const uint32_t values[] = {0, 1, 3, 4, 8, 11, 15, 128, 256, 0x10000, UINT32_MAX};
    static const unsigned lens[] = {4, 4, 4, 4, 1, 2, 8};
    unsigned seed = 1;
    for (unsigned i = 0; i < 300000; i++) {
        const uint32_t off = (uint32_t)rand_r(&seed) % 0x48 * 4;
        const unsigned len = lens[(unsigned)rand_r(&seed) % ARRAY_SIZE(lens)];
        const uint32_t v = values[(unsigned)rand_r(&seed) % ARRAY_SIZE(values)];
        if (i % 64 == 0)
            live(F_ALL);
        else if (rand_r(&seed) & 1)
            vio_mmio_write(dev, off, len, v);
        else
            vio_mmio_read(dev, off, len);
        if (i % 16 == 0)
            vio_kick(dev);
        ck_assert(!dev->active || (rd(dev, STATUS) & 0xcf) == DRIVER_OK);
    }
}
END_TEST

START_TEST(m2_config_bounds)
{
    for (unsigned i = 0; i < sizeof(toy.config); i++)
        toy.config[i] = (uint8_t)(i + 1);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x100, 1), 1);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x101, 2), 0x0302);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x104, 8), 0x0c0b0a0908070605);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x108, 8), 0x0c0b0a09); // half outside
    ck_assert_uint_eq(vio_mmio_read(dev, 0x10c, 8), 0);
    ck_assert_uint_eq(vio_mmio_read(dev, 0xfff, 8), 0);
    vio_mmio_write(dev, 0xffc, 8, ~0ULL);
    vio_mmio_write(dev, 0x10b, 8, 0);
    ck_assert_uint_eq(toy.config[10], 11);
    ck_assert_uint_eq(toy.config[11], 0);
}
END_TEST

START_TEST(quiesce_and_resume)
{
    live(F_ALL);
    toy.inflight = 1;
    ck_assert(!vio_quiesce(dev, true));
    vio_kick(dev);
    vio_readable(dev);
    vio_timer(dev);
    ck_assert_uint_eq(toy.kicks + toy.reads + toy.timers, 0);
    struct vio_io io = {.done = landed, .dev = dev};
    vio_io_done(&io, 0);
    ck_assert(vio_quiesce(dev, true));
    ck_assert_uint_eq(toy.quiesces, 1); // asking again is only a question
    const unsigned again = fake.again;
    ck_assert(vio_quiesce(dev, false));
    ck_assert_uint_eq(toy.quiesces, 2);
    ck_assert_uint_eq(fake.again, again + 1); // every queue is looked at again
    vio_kick(dev);
    ck_assert_uint_eq(toy.kicks, 1);
}
END_TEST

START_TEST(save_and_load)
{
    live(F_DEV | VIO_F_VERSION_1 | VIO_F_EVENT_IDX);
    drv_desc(&dq[0], 0, 0x40000, 16, 0, 0);
    struct vchain c;
    for (unsigned i = 0; i < 5; i++) {
        drv_offer(&dq[0], 0);
        ck_assert_int_eq(virtq_pop(&dev->queue[0], &c), 1);
        virtq_push(&dev->queue[0], 0, 0);
    }
    vio_signal(dev, &dev->queue[0]);
    vio_config_changed(dev);
    vio_quiesce(dev, true);
    struct vio_state s, again;
    struct err e = {""};
    vio_save(dev, &s);
    ck_assert_uint_eq(s.status, DRIVER_OK);
    ck_assert_uint_eq(s.isr, 3);
    ck_assert_uint_eq(s.q[0].next_avail, 5);
    ck_assert_uint_eq(s.q[0].next_used, 5);
    vio_init(dev, &toy_ops, &host, &mem, 3);
    fake.irqs = 0;
    ck_assert_int_eq(vio_load(dev, &s, &e), 0);
    ck_assert_uint_eq(fake.irqs, 0);
    ck_assert(dev->active && dev->queue[0].event_idx && !dev->queue[0].indirect);
    vio_save(dev, &again);
    ck_assert_int_eq(memcmp(&s, &again, sizeof(s)), 0);
    drv_offer(&dq[0], 0);
    ck_assert_int_eq(virtq_pop(&dev->queue[0], &c), 1);
}
END_TEST

START_TEST(load_refuses_hostile_state)
{
    live(F_ALL);
    struct vio_state good;
    vio_save(dev, &good);
    enum { CASES = 22 };
    for (unsigned i = 0; i < CASES; i++) {
        struct vio_state s = good;
        switch (i) {
        case 0:
            s.status = 2;
            break;
        case 1:
            s.status = 16 | 15;
            break;
        case 2:
            s.status = 7;
            break;
        case 3:
            s.status = 0x10f;
            break;
        case 4:
            s.isr = 4;
            break;
        case 5:
            s.drv_features |= 1;
            break;
        case 6:
            s.drv_features &= ~VIO_F_VERSION_1;
            break;
        case 7:
            s.q[0].size = 0;
            break;
        case 8:
            s.q[0].size = 3;
            break;
        case 9:
            s.q[0].size = 512;
            break;
        case 10:
            s.q[0].size = 0xffff;
            break;
        case 11:
            s.q[0].ready = 2;
            break;
        case 12:
            s.q[0].next_avail = 9;
            break;
        case 13:
            s.q[0].next_avail = 0xffff;
            break; // used ahead of avail
        case 14:
            s.q[0].next_used = 1;
            break;
        case 15:
            s.q[1].used = RAM;
            break;
        case 16:
            s.q[1].desc += 1;
            break;
        case 17:
            s.q[1].avail = UINT64_MAX - 1;
            break;
        case 18:
            s.q[2] = s.q[1];
            break; // a queue the device has not
        case 19:
            s.status = 3;
            break; // ready before FEATURES_OK
        case 20:
            s.q[0].signalled_valid = 7;
            break;
        default:
            s.q[1].used = s.q[1].desc;
            break;
        }
        vio_init(dev, &toy_ops, &host, &mem, 3);
        struct err e = {""};
        ck_assert_msg(vio_load(dev, &s, &e) == -EINVAL, "case %u was loaded", i);
        ck_assert_str_ne(e.msg, "");
        ck_assert(!dev->active && dev->s.status == 0 && !dev->queue[0].desc);
    }
    // What a faulted or half set up guest leaves behind is legal and runs nothing.
    struct vio_state s = good;
    s.status |= VIO_ST_NEEDS_RESET;
    s.q[1].used = UINT64_MAX;
    vio_init(dev, &toy_ops, &host, &mem, 3);
    ck_assert_int_eq(vio_load(dev, &s, NULL), 0);
    ck_assert(!dev->active);
    memset(&s, 0, sizeof(s));
    s.status = 3;
    s.drv_features = ~0ULL; // judged when the driver asks for FEATURES_OK
    s.queue_sel = s.dev_feat_sel = UINT32_MAX;
    vio_init(dev, &toy_ops, &host, &mem, 3);
    ck_assert_int_eq(vio_load(dev, &s, NULL), 0);
    wr(dev, STATUS, 11);
    ck_assert_uint_eq(rd(dev, STATUS), 3);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("mmio");
    TCase *tc = tcase_create("mmio");
    suite_add_tcase(s, tc);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, identity);
    tcase_add_test(tc, happy_path);
    tcase_add_test(tc, status_steps_in_order_only);
    tcase_add_test(tc, failed_leads_only_to_reset);
    tcase_add_test(tc, q15_unoffered_features);
    tcase_add_test(tc, q11_sizes_and_selectors);
    tcase_add_test(tc, q12_frozen_queue_registers);
    tcase_add_test(tc, q10_rings_in_mmio_or_nowhere);
    tcase_add_test(tc, device_refuses_activation);
    tcase_add_test(tc, fault_and_recovery);
    tcase_add_test(tc, q13_reset_with_work_in_flight);
    tcase_add_test(tc, interrupt_status);
    tcase_add_test(tc, m1_every_offset_and_width);
    tcase_add_test(tc, m2_config_bounds);
    tcase_add_test(tc, quiesce_and_resume);
    tcase_add_test(tc, save_and_load);
    tcase_add_test(tc, load_refuses_hostile_state);
    return run_suite(s);
}
