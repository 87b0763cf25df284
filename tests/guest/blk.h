// SPDX-License-Identifier: Apache-2.0
// virtio-blk driver: asynchronous requests, several segments each where the device takes them.
#ifndef TESTS_GUEST_BLK_H
#define TESTS_GUEST_BLK_H

#include "virtio.h"

#define BLK_MAX  4
#define BLK_SEGS 16
#define BLK_REQS 256
#define SECTOR   512u

#define BLK_F_SEG_MAX      (1ull << 2)
#define BLK_F_RO           (1ull << 5)
#define BLK_F_FLUSH        (1ull << 9)
#define BLK_F_DISCARD      (1ull << 13)
#define BLK_F_WRITE_ZEROES (1ull << 14)

enum blk_type {
    BLK_IN = 0,
    BLK_OUT = 1,
    BLK_FLUSH = 4,
    BLK_ID = 8,
    BLK_DISCARD = 11,
    BLK_ZEROES = 13
};

struct blk_req;
typedef void blk_done(struct blk_req *r, uint8_t status);

struct blk_req {
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } head;
    uint8_t status;
    struct blk *dev;
    struct blk_req *next; // free list
    bool flying;
    blk_done *done;
    void *ctx;
    uint64_t tsc; // when it was given to the device
    struct {
        uint64_t sector;
        uint32_t n, flags;
    } range; // of discard and write zeroes
};

struct blk {
    struct vdev *dev;
    struct vq q;
    uint64_t capacity; // sectors
    uint32_t seg_max;
    uint64_t done, errors, capacity_changes;
    struct blk_req *reqs, *free;
};
extern struct blk blks[BLK_MAX];
extern unsigned blk_n;

bool blk_start(struct vdev *d, uint16_t depth); // a new entry of blks
void blk_restart(struct blk *b); // after NEEDS_RESET: what was under way ends with status 255
// False when the ring is full or the device takes no such request. `done` runs from blk_poll.
bool blk_submit(struct blk *b, enum blk_type type, uint64_t sector, void *buf, uint32_t len,
                blk_done *done, void *ctx);
void blk_flush_doorbells(void);
bool blk_poll(void);
bool blk_arm(void);
void blk_read_config(struct blk *b);

#endif
