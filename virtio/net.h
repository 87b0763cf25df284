// SPDX-License-Identifier: Apache-2.0
// virtio-net (virtio 1.2 section 5.1) over a tap: checksum and TSO offloads, mergeable buffers,
// MTU, MAC, link status, and guest-announce on a control queue for clones and migration.
#ifndef VIRTIO_NET_H
#define VIRTIO_NET_H

#include "virtio/ratelimit.h"
#include "virtio/virtio.h"

struct net;

struct net_setup {
    int tap_fd; // owned by the device from net_new on; IFF_TAP|NO_PI|VNET_HDR, 12-byte header
    uint8_t mac[6];
    bool has_mac;     // false: the driver makes its own, nothing is filtered
    bool allow_spoof; // with a MAC, frames from another source MAC are dropped unless this is set
    uint16_t mtu;     // 0: not offered
};

struct net_metrics { // free-running counters, written by the device thread
    _Atomic uint64_t rx_packets, rx_bytes, rx_fails, rx_throttled, rx_dropped, rx_no_buffers;
    _Atomic uint64_t tx_packets, tx_bytes, tx_fails, tx_throttled, tx_spoofed, tx_malformed;
    _Atomic uint64_t rx_events, tx_events;
};

// Attaches tun_fd, a fresh descriptor of /dev/net/tun, to tap `name` (made when absent and
// permitted) and sets header size; or, name NULL, checks that tun_fd is such a tap already. EBUSY
// is retried for up to 200 ms: a killed monitor's ring holds its tap that long. Errors: -EBUSY,
// -ENODEV, -EPERM, -EINVAL.
int net_tap_setup(int tun_fd, const char *name, struct err *e);

struct net *net_new(const struct vio_host *host, struct guest_mem *mem, unsigned slot,
                    const struct net_setup *s, const struct limiter_cfg *rx,
                    const struct limiter_cfg *tx, struct err *e);
struct vio_dev *net_dev(struct net *n);
void net_free(struct net *n);
void net_limit(struct net *n, const struct limiter_cfg *rx, const struct limiter_cfg *tx);

// Tells the guest to announce itself (VIRTIO_NET_S_ANNOUNCE) and sends a RARP from the tap side
// with the device's MAC for guests that cannot. Device thread, or VM paused.
void net_announce(struct net *n);
// Throws away the frames that wait in the tap. Device thread, device quiesced.
void net_drop_waiting(struct net *n);
struct net_metrics *net_metrics(struct net *n);
struct limiter *net_limiter(struct net *n, bool rx);

#endif
