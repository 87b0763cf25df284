// SPDX-License-Identifier: Apache-2.0
// Token-bucket rate limiter with Firecracker's semantics, as plain data with the clock passed in.
//
// Two buckets, bytes and operations. A bucket starts full with `size` tokens plus a one-time burst
// that is spent first and never refilled; it refills evenly, `size` tokens in `refill_ms`. A bucket
// whose size or refill time is 0 does not limit. A request larger than the bucket passes once when
// the bucket is full and leaves a debt that time repays.
#ifndef VIRTIO_RATELIMIT_H
#define VIRTIO_RATELIMIT_H

#include "vmm/base.h"

struct bucket_cfg {
    bool set; // false: absent in the request (PATCH leaves it unchanged, PUT means unlimited)
    uint64_t size, one_time_burst, refill_ms;
};

struct limiter_cfg {
    bool set;
    struct bucket_cfg bandwidth, ops;
};

struct bucket { // saved in snapshots
    struct bucket_cfg cfg;
    uint64_t tokens, burst, debt;
    uint64_t last_ns; // of the monitor's clock; re-based at restore
};

struct limiter {
    struct bucket bytes, ops;
};

void limiter_init(struct limiter *l, const struct limiter_cfg *cfg, uint64_t now);
// Buckets present in cfg replace the old ones (full again), absent ones stay.
void limiter_patch(struct limiter *l, const struct limiter_cfg *cfg, uint64_t now);
// Takes `bytes` and one operation, both or neither. 0: granted; else the time (ns, > now) to try
// again.
uint64_t limiter_take(struct limiter *l, uint64_t bytes, uint64_t now);
// Gives back what limiter_take granted for a request that was put back.
void limiter_refund(struct limiter *l, uint64_t bytes);
bool limiter_is_off(const struct limiter *l);
// Re-bases a restored limiter on this host's clock; hostile values are clamped to the
// configuration.
void limiter_rebase(struct limiter *l, uint64_t now);

#endif
