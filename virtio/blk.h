// SPDX-License-Identifier: Apache-2.0
// virtio-blk (virtio 1.2 section 5.2) over a raw file or block device, optionally under a private
// copy-on-write layer. One queue; multi-segment requests, flush, discard, write-zeroes, GET_ID.
//
// Quick I/O is done directly (preadv2 RWF_NOWAIT, pwritev), what would block goes to the ring: see
// docs/architecture.md. Sector 0 is never interpreted: raw means raw.
#ifndef VIRTIO_BLK_H
#define VIRTIO_BLK_H

#include "virtio/ratelimit.h"
#include "virtio/virtio.h"

struct blk;

// What a drive stands on. Descriptors are owned by the device from blk_new/blk_swap on.
struct blk_backing {
    int fd;         // image, O_RDWR or, read-only or under a layer, O_RDONLY; locked by blk_lock
    int cow_fd;     // sparse copy-on-write file, or -1
    uint64_t bytes; // of the image, a multiple of 512
    bool read_only;
    bool writeback; // cache_type Writeback: FLUSH is offered; Unsafe: it is not
};

struct blk_metrics { // free-running counters, written by the device thread
    _Atomic uint64_t reads, writes, read_bytes, write_bytes, flushes, discards, failed, throttled;
    _Atomic uint64_t queue_events, config_changes;
};

// blk_check: fd is a regular file or block device whose size is a multiple of 512, > 0. blk_lock
// takes an OFD lock, shared when read-only, else exclusive: one owner per disk; a lock that a dying
// process still holds is retried for up to 200 ms. Errors: -EINVAL, -EBUSY.
int blk_check(int fd, uint64_t *bytes, struct err *e);
int blk_lock(int fd, bool read_only, struct err *e);
// Gives the lock up at once: a ring that had the file may hold its description for a second after the
// last close, and a successor would find the disk in use. fd may be -1.
void blk_unlock(int fd);

// Makes a device. `id` is what GET_ID answers (20 bytes, zero padded). NULL on failure.
struct blk *blk_new(const struct vio_host *host, struct guest_mem *mem, unsigned slot,
                    const struct blk_backing *b, const char id[20], const struct limiter_cfg *rl,
                    struct err *e);
struct vio_dev *blk_dev(struct blk *b);
void blk_free(struct blk *b);

// Live PATCH. Called on the device thread, or with the VM paused: takes no new work until requests
// in flight have landed on the old backing, then swaps, closes the old descriptors and raises a
// config interrupt. 1: they have yet to land. Errors (nothing changed): -EINVAL, -ENOMEM.
int blk_swap(struct blk *b, const struct blk_backing *nb, const char id[20], struct err *e);
void blk_limit(struct blk *b, const struct limiter_cfg *rl);
struct blk_metrics *blk_metrics(struct blk *b);
struct limiter *blk_limiter(struct blk *b);
uint64_t blk_bytes(const struct blk *b); // of the image
int blk_fd(struct blk *b);               // of the image in use, or about to be: stays the device's
int blk_sync(struct blk *b);             // what was written is on the disk; 0 or -errno. VM paused
// Takes the locks of image and layer, or lets them go: a disk that moves to another host. VM paused.
int blk_hold(struct blk *b, bool hold, struct err *e);

#endif
