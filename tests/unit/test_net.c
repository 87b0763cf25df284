// SPDX-License-Identifier: Apache-2.0
// virtio-net: features, and transmission of sane, insane, spoofed and endless packets.
#include "tests/unit/vio_net.h"

START_TEST(features_and_config)
{
    wr(dev, 0x14, 0);
    const uint64_t want = OFFLOADS | NET_F_MAC | NET_F_MTU | NET_F_MRG_RXBUF | NET_F_STATUS |
                          NET_F_CTRL_VQ | NET_F_GUEST_ANNOUNCE | VIO_F_EVENT_IDX |
                          VIO_F_INDIRECT_DESC;
    ck_assert_uint_eq(rd(dev, 0x10), want);
    ck_assert_uint_eq(rd(dev, 8), 1);
    for (unsigned i = 0; i < 6; i++)
        ck_assert_uint_eq(vio_mmio_read(dev, 0x100 + i, 1), mac[i]);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x106, 2), 1);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x10a, 2), 1500);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x10a, 8), 1500); // M2
    ck_assert_uint_eq(vio_mmio_read(dev, 0xffc, 8), 0);
    vio_mmio_write(dev, 0x100, 8, ~0ULL);
    ck_assert_uint_eq(vio_mmio_read(dev, 0x100, 1), mac[0]);
}
END_TEST

// ---- transmission

START_TEST(transmit_in_pieces)
{
    live(BASE_F);
    uint8_t p[200], got[300];
    frame(p, mac, 100);
    p[10] = 0xff; // num_buffers means nothing here
    put(&mem, TXBUF, p, 112);
    static const uint32_t cuts[][4] = {{112, 0, 0, 0}, {12, 100, 0, 0}, {12, 14, 86, 0},
                                       {5, 20, 1, 86}, {26, 86, 0, 0},  {1, 1, 1, 109}};
    for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
        uint32_t off = 0;
        for (uint16_t j = 0; j < 4 && cuts[i][j]; off += cuts[i][j++])
            drv_desc(&txq, j, TXBUF + off, cuts[i][j], j < 3 && cuts[i][j + 1] ? D_NEXT : 0,
                     (uint16_t)(j + 1));
        drv_offer(&txq, 0);
        vio_kick(dev);
        ck_assert_int_eq(from_wire(got, sizeof(got)), 112);
        ck_assert_uint_eq(got[10], 0);
        ck_assert_int_eq(memcmp(got + 12, p + 12, 100), 0);
        ck_assert_uint_eq(drv_used_idx(&txq), i + 1);
    }
    ck_assert_uint_eq(atomic_load(&net_metrics(net)->tx_packets), 6);
    ck_assert_uint_eq(atomic_load(&net_metrics(net)->tx_bytes), 600);
    ck_assert_uint_eq(drv_avail_event(&txq), 6); // drained: kick for the next
    ck_assert_uint_eq(fake.irqs, 1);             // used_event stayed 0: one interrupt
}
END_TEST

struct hdr {
    uint8_t flags, type;
    uint16_t hdr_len, gso_size, start, off, num;
};

START_TEST(n1_headers)
{
    static const struct {
        uint64_t features;
        struct hdr h;
        bool good;
    } t[] = {
        {0, {0, 0, 0, 0, 0, 0, 0}, true},
        {0, {0xfe, 0, 99, 99, 99, 99, 99}, true}, // meaningless fields are wiped
        {0, {1, 0, 0, 0, 14, 6, 0}, false},       // not negotiated
        {NET_F_CSUM, {1, 0, 0, 0, 14, 6, 0}, true},
        {NET_F_CSUM, {1, 0, 0, 0, 14, 84, 0}, true}, // the last two bytes
        {NET_F_CSUM, {1, 0, 0, 0, 14, 85, 0}, false},
        {NET_F_CSUM, {1, 0, 0, 0, 0xffff, 0xffff, 0}, false},
        {NET_F_CSUM, {1, 1, 54, 1000, 34, 16, 0}, false}, // TSO4 not negotiated
        {NET_F_CSUM | NET_F_HOST_TSO4, {1, 1, 54, 1000, 34, 16, 0}, true},
        {NET_F_CSUM | NET_F_HOST_TSO4, {0, 1, 54, 1000, 34, 16, 0}, false}, // without checksum
        {NET_F_CSUM | NET_F_HOST_TSO4, {1, 1, 54, 0, 34, 16, 0}, false},
        {NET_F_CSUM | NET_F_HOST_TSO4, {1, 1, 101, 1000, 34, 16, 0}, false},
        {NET_F_CSUM | NET_F_HOST_TSO4, {1, 4, 54, 1000, 34, 16, 0}, false},
        {NET_F_CSUM | NET_F_HOST_TSO4, {1, 0x81, 54, 1000, 34, 16, 0}, false}, // ECN: not offered
        {NET_F_CSUM | NET_F_HOST_TSO6, {1, 4, 54, 1000, 34, 16, 0}, true},
        {NET_F_CSUM | NET_F_HOST_UFO, {1, 3, 42, 1000, 34, 6, 0}, true},
        {OFFLOADS, {1, 2, 54, 1000, 34, 16, 0}, false},
        {OFFLOADS, {1, 5, 54, 1000, 34, 16, 0}, false},
        {OFFLOADS, {1, 0xff, 54, 1000, 34, 16, 0}, false},
    };
    uint8_t p[112], got[200];
    for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
        live(BASE_F | t[i].features);
        frame(p, mac, 100);
        memcpy(p, &t[i].h, 12);
        const uint64_t bad = atomic_load(&net->m.tx_malformed);
        send_tx(p, 112);
        ck_assert_msg((from_wire(got, sizeof(got)) == 112) == t[i].good, "case %zu", i);
        ck_assert_uint_eq(atomic_load(&net->m.tx_malformed), bad + !t[i].good);
        if (t[i].good && !(t[i].h.flags & 1))
            for (unsigned k = 0; k < 12; k++)
                ck_assert_uint_eq(got[k], 0);
        ck_assert_uint_eq(drv_used_idx(&txq), 1);
        ck_assert(dev->active);
    }
}
END_TEST

START_TEST(n2_frame_sizes)
{
    static const struct {
        uint32_t total;
        bool good;
    } t[] = {{1, false},
             {11, false},
             {12, false},
             {12 + 13, false},
             {12 + 14, true},
             {12 + 60, true},
             {12 + NET_FRAME_MAX, true},
             {12 + NET_FRAME_MAX + 1, false}};
    static uint8_t p[70000], got[70000];
    live(BASE_F);
    for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
        frame(p, mac, sizeof(p) - 12);
        send_tx(p, t[i].total);
        ck_assert_int_eq(from_wire(got, sizeof(got)), t[i].good ? (ssize_t)t[i].total : -1);
        ck_assert_uint_eq(drv_used_idx(&txq), i + 1);
    }
    ck_assert(dev->active);
}
END_TEST

START_TEST(spoofed_frames_are_dropped)
{
    live(BASE_F);
    uint8_t p[112], got[200];
    frame(p, other, 100);
    send_tx(p, 112);
    ck_assert_int_eq(from_wire(got, sizeof(got)), -1);
    ck_assert_uint_eq(atomic_load(&net->m.tx_spoofed), 1);
    net->s.allow_spoof = true;
    send_tx(p, 112);
    ck_assert_int_eq(from_wire(got, sizeof(got)), 112);
    net->s.allow_spoof = net->s.has_mac = false;
    send_tx(p, 112);
    ck_assert_int_eq(from_wire(got, sizeof(got)), 112);
}
END_TEST

START_TEST(broken_transmit_chain)
{
    live(BASE_F);
    drv_desc(&txq, 0, TXBUF, 100, D_NEXT, 1);
    drv_desc(&txq, 1, TXBUF, 100, D_WRITE, 0);
    drv_offer(&txq, 0);
    vio_kick(dev);
    ck_assert(!dev->active);
    ck_assert_uint_eq(rd(dev, 0x70), 15 | VIO_ST_NEEDS_RESET);
    live(BASE_F);
    drv_offer(&txq, 77);
    vio_kick(dev);
    ck_assert(!dev->active);
    ck_assert_uint_eq(atomic_load(&dev->faults), 2);
}
END_TEST

static void *refill(void *arg)
{
    _Atomic bool *stop = arg;
    uint16_t *avail = mem_at(&mem, txq.avail, 4, MEM_READ);
    uint16_t *used = mem_at(&mem, txq.used, 4, MEM_READ);
    while (!*stop) // as many as the driver may: all that came back
        __atomic_store_n(&avail[1], (uint16_t)(__atomic_load_n(&used[1], __ATOMIC_ACQUIRE) + QSIZE),
                         __ATOMIC_RELEASE);
    return NULL;
}

START_TEST(q4_work_per_kick_is_bounded)
{
    live(BASE_F);
    const uint8_t junk[4] = {0}; // too short to be sent: what counts is the draining
    put(&mem, TXBUF, junk, 4);
    for (uint16_t i = 0; i < QSIZE; i++) {
        drv_desc(&txq, i, TXBUF, 4, 0, 0);
        put16(&mem, txq.avail + 4 + 2ULL * i, i);
    }
    _Atomic bool stop = false;
    pthread_t t;
    ck_assert_int_eq(pthread_create(&t, NULL, refill, &stop), 0);
    for (unsigned i = 0; i < 20000; i++) {
        const uint64_t before = atomic_load(&net->m.tx_malformed);
        vio_kick(dev);
        const uint64_t done = atomic_load(&net->m.tx_malformed) - before;
        ck_assert_uint_le(done, QSIZE);
    }
    stop = true;
    pthread_join(t, NULL);
    ck_assert(dev->active);
    const unsigned again = fake.again;
    __atomic_store_n((uint16_t *)mem_at(&mem, txq.avail + 2, 2, MEM_READ),
                     (uint16_t)(dev->queue[1].s.next_used + QSIZE), __ATOMIC_RELEASE);
    vio_kick(dev);
    ck_assert_uint_eq(fake.again, again + 1); // full measure: asks to be called again
}
END_TEST

int main(void)
{
    Suite *s = suite_create("net");
    TCase *tc = tcase_create("net");
    suite_add_tcase(s, tc);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, features_and_config);
    tcase_add_test(tc, transmit_in_pieces);
    tcase_add_test(tc, n1_headers);
    tcase_add_test(tc, n2_frame_sizes);
    tcase_add_test(tc, spoofed_frames_are_dropped);
    tcase_add_test(tc, broken_transmit_chain);
    tcase_add_test(tc, q4_work_per_kick_is_bounded);
    return run_suite(s);
}
