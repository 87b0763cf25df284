// SPDX-License-Identifier: Apache-2.0
// The MMIO transport's registers: identity, status machine, feature refusal, frozen queues, and every
// offset, width and direction.
#include "tests/unit/vio_toy.h"

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

int main(void)
{
    Suite *s = suite_create("mmio");
    TCase *tc = tcase_create("mmio");
    suite_add_tcase(s, tc);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, identity);
    tcase_add_test(tc, happy_path);
    tcase_add_test(tc, status_steps_in_order_only);
    tcase_add_test(tc, failed_leads_only_to_reset);
    tcase_add_test(tc, q15_unoffered_features);
    tcase_add_test(tc, q11_sizes_and_selectors);
    tcase_add_test(tc, q12_frozen_queue_registers);
    tcase_add_test(tc, q10_rings_in_mmio_or_nowhere);
    tcase_add_test(tc, interrupt_status);
    tcase_add_test(tc, m1_every_offset_and_width);
    tcase_add_test(tc, m2_config_bounds);
    return run_suite(s);
}
