// SPDX-License-Identifier: Apache-2.0
// A device's life behind its registers: activation, faults, reset with work in flight, pause, state in
// and out.
#include "tests/unit/vio_toy.h"

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
    ck_assert_uint_eq(toy.quiesces, 2); // told at every asking
    const unsigned again = fake.again;
    ck_assert(vio_quiesce(dev, false));
    ck_assert_uint_eq(toy.quiesces, 3);
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
    live(F_ALL); // nor does a device that was live before
    ck_assert_int_eq(vio_load(dev, &s, NULL), 0);
    ck_assert(!dev->active && !dev->queue[0].desc);
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
    Suite *s = suite_create("vio_life");
    TCase *tc = tcase_create("vio_life");
    suite_add_tcase(s, tc);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, device_refuses_activation);
    tcase_add_test(tc, fault_and_recovery);
    tcase_add_test(tc, q13_reset_with_work_in_flight);
    tcase_add_test(tc, quiesce_and_resume);
    tcase_add_test(tc, save_and_load);
    tcase_add_test(tc, load_refuses_hostile_state);
    return run_suite(s);
}
