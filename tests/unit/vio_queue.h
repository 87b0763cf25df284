// SPDX-License-Identifier: Apache-2.0
// One queue in a small guest, for tests of virtio/queue.c.
#ifndef TESTS_UNIT_VIO_QUEUE_H
#define TESTS_UNIT_VIO_QUEUE_H

#include "tests/unit/vio_fake.h"

#define RAM  (4 * MIB)
#define BASE 0x10000ULL
#define BUF  0x40000ULL // where data lies
#define ITAB 0x30000ULL // where indirect tables lie

static struct guest_mem mem; // one per forked test
static struct virtq q;
static struct drv_queue drv;
static struct vchain chain;

static inline void start(uint16_t size, uint64_t features)
{
    memset(&q, 0, sizeof(q));
    ck_assert_int_eq(mem_reserve(&mem, RAM, NULL), 0);
    ck_assert_int_eq(mem_back_anon(&mem, false, NULL), 0);
    drv = drv_queue(&mem, BASE, size);
    q.s = (struct virtq_state){.size = size,
                               .ready = 1,
                               .signalled_valid = 1,
                               .desc = drv.desc,
                               .avail = drv.avail,
                               .used = drv.used};
    ck_assert_int_eq(virtq_activate(&q, &mem, features), 0);
}

static inline int pop(void)
{
    return virtq_pop(&q, &chain);
}

static inline int pop_one(uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    drv_desc(&drv, 0, addr, len, flags, next);
    drv_offer(&drv, 0);
    return pop();
}

#endif
