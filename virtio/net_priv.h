// SPDX-License-Identifier: Apache-2.0
// Internal to virtio/: the parts of a network device, shared by net*.c. All device thread, lock
// held.
#ifndef VIRTIO_NET_PRIV_H
#define VIRTIO_NET_PRIV_H

#include "virtio/net.h"

enum { NET_RXQ, NET_TXQ, NET_CTRLQ, NET_QUEUES };

#define NET_HDR_LEN   12u    // struct virtio_net_hdr_v1 (5.1.6)
#define NET_ETH_LEN   14u    // Ethernet header
#define NET_FRAME_MAX 65553u // the longest IPv4 packet with its Ethernet and VLAN headers

// Feature bits (5.1.3).
#define NET_F_CSUM           (1ULL << 0)
#define NET_F_GUEST_CSUM     (1ULL << 1)
#define NET_F_MTU            (1ULL << 3)
#define NET_F_MAC            (1ULL << 5)
#define NET_F_GUEST_TSO4     (1ULL << 7)
#define NET_F_GUEST_TSO6     (1ULL << 8)
#define NET_F_GUEST_UFO      (1ULL << 10)
#define NET_F_HOST_TSO4      (1ULL << 11)
#define NET_F_HOST_TSO6      (1ULL << 12)
#define NET_F_HOST_UFO       (1ULL << 14)
#define NET_F_MRG_RXBUF      (1ULL << 15)
#define NET_F_STATUS         (1ULL << 16)
#define NET_F_CTRL_VQ        (1ULL << 17)
#define NET_F_GUEST_ANNOUNCE (1ULL << 21)

// Why a direction does not run; whoever removes the reason sets NET_RUN.
enum net_wait {
    NET_RUN,
    NET_WAIT_TAP,   // a poll is armed
    NET_WAIT_QUEUE, // the driver will kick
    NET_WAIT_TIMER, // rate limit
    NET_GONE,       // the tap is no more
};

#define RX_SEGS    512u // staged segments; at least two chains fit
#define RX_SMALL   2048u
#define RX_LARGE   (NET_HDR_LEN + NET_FRAME_MAX)
#define RX_SCRATCH (68u * 1024)

// Receive buffers popped ahead of need, so that a frame goes by one readv from the tap straight
// into guest memory. What does not fit the staged ones lands in `scratch`, the last segment, and is
// copied when more chains have come; so few segments serve the usual small frame and a large one
// costs a copy only until `want` has adapted.
struct net_rx {
    struct iovec iov[RX_SEGS + 1];
    struct {
        uint16_t head, segs;
        uint32_t bytes;
    } chain[VIO_QUEUE_SIZE];
    unsigned segs, chains;
    uint32_t bytes;  // in the staged chains
    uint32_t want;   // how many to stage before a read
    uint32_t held;   // a frame that was read but not yet delivered, with header; 0: none
    uint32_t direct; // how much of it the read put into staged chains
    unsigned small_run, errors;
    uint64_t give_up; // when the held frame is dropped for want of buffers; 0: not waiting
    bool held_paid, kicks_on;
    enum net_wait wait;
    uint8_t *scratch;
};

struct net {
    struct vio_dev d; // first: a vio_dev of ours is a struct net
    struct net_setup s;
    int file;
    uint64_t offloads; // GUEST_* and HOST_* features this tap can do
    uint16_t status;   // VIRTIO_NET_S_*
    bool offload_due;  // the tap has yet to learn what was negotiated
    struct limiter rx_limit, tx_limit;
    uint64_t rx_at, tx_at; // when to run each direction, 0: no timer
    enum net_wait tx_wait;
    struct net_rx rx;
    struct iovec tx_iov[VIO_SEG_MAX + 1];
    struct net_metrics m;
};

// One writer: no locked instruction needed.
static inline void net_count(_Atomic uint64_t *c, uint64_t n)
{
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

static inline bool net_has(const struct net *n, uint64_t feature)
{
    return n->d.s.drv_features & feature;
}

void net_rx_run(struct net *n);     // reads frames until a reason to wait
void net_rx_unstage(struct net *n); // gives staged chains back, drops a held frame
void net_tx_run(struct net *n);
void net_wake_at(struct net *n, bool rx, uint64_t at); // runs that direction at that time
void net_tap_gone(struct net *n);                      // link down, both directions stop
uint64_t net_tap_offloads(int fd);                     // what the tap accepts
int net_tap_set_offloads(int fd, uint64_t features);   // GUEST_* of the negotiated ones

#endif
