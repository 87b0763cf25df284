// SPDX-License-Identifier: Apache-2.0
// A driver that breaks the rules one at a time, and looks at what the device makes of it.
#ifndef TESTS_GUEST_HOSTILE_H
#define TESTS_GUEST_HOSTILE_H

#include "virtio.h"

#define ON_BLK 1u
#define ON_NET 2u

enum expect {
    MUST_FAIL, // NEEDS_RESET, an error status, or the device refuses to take the setting
    MAY_FAIL,  // anything, as long as the device works after a reset
    MUST_WORK, // legal though odd: no NEEDS_RESET, no error
};

struct target {
    struct vdev *dev;
    bool blk;
    struct vq q[2];           // blk: requests; net: receive, transmit
    struct vq *v;             // the queue that is attacked
    uint64_t ram_end;         // of the range that holds this guest
    uint8_t *mem;             // 256 KiB to play with
    volatile uint8_t *status; // where a blk request of ours puts its status; 0xff before
    bool refused;             // the device did not accept a setting
    const char *broken;       // a promise that was seen broken, whatever the status says
    const char *skip;         // why the case cannot be run here
};

struct hostile_case {
    const char *name;
    unsigned on;
    enum expect expect;
    void (*run)(struct target *t);
};
extern const struct hostile_case queue_cases[], device_cases[];
extern const unsigned queue_case_n, device_case_n;

bool target_start(struct target *t, uint64_t features); // reset, negotiate, queues, DRIVER_OK
void target_setup_only(struct target *t);               // up to FEATURES_OK, without queues
bool target_works(struct target *t); // one request there and back on a device just started
bool target_wait(struct target *t, uint64_t us,
                 uint16_t used); // NEEDS_RESET or so many used, within us

// Raw rings: descriptors by hand, heads published, doorbell rung.
void put_desc(struct target *t, unsigned i, uint64_t addr, uint32_t len, uint16_t flags,
              uint16_t next);
void publish(struct target *t, uint16_t head);
void ring_bell(struct target *t);
// A chain of header, data and status (blk) or header and data (net) with head 0 and this data descriptor.
void attack_data(struct target *t, uint64_t addr, uint32_t len);
void blk_chain(struct target *t, uint32_t type, uint64_t sector, uint64_t addr, uint32_t len,
               bool device_writes);

#endif
