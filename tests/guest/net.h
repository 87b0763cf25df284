// SPDX-License-Identifier: Apache-2.0
// The network: virtio-net driver (net.c), ARP, ICMP, UDP (ip.c) and TCP (tcp.c).
//
// A received packet lies in pieces where the device wrote it and is valid only during its handler.
// To send, take a buffer, fill a frame behind its header room, and give it away with net_send.
#ifndef TESTS_GUEST_NET_H
#define TESTS_GUEST_NET_H

#include "virtio.h"

#define ETH_HLEN    14u
#define NET_HDR     12u // virtio_net_hdr, in front of every frame buffer
#define IP_HLEN     20u
#define UDP_HLEN    8u
#define TCP_HLEN    20u
#define MTU         1500u
#define MSS         (MTU - IP_HLEN - TCP_HLEN)
#define PKT_PARTS   40
#define TX_BIG_DATA (40 * MSS) // most of one segment when the device cuts it

struct pkt {
    uint8_t *data; // the frame's first piece: all headers lie in it
    uint32_t first, len;
    bool csum_ok; // the device vouches, or the sender is on this very host
    unsigned n;
    struct sg part[PKT_PARTS]; // part[0] is data, first
};

// Where a frame goes and how it is finished.
struct offload {
    uint16_t csum_start, csum_offset; // 0, 0: nothing to do
    uint16_t gso_size, hdr_len;       // gso_size 0: one frame
};

struct net_stats {
    uint64_t rx_packets, rx_bytes, tx_packets, tx_bytes, tx_full, rx_bad, announces, lost;
};

struct net {
    uint16_t mtu; // as the device tells it; 0: it does not
    struct vdev *dev;
    struct vq rx, tx, ctrl;
    uint8_t mac[6];
    bool up, tx_csum, tso, ctrl_ok;
    struct net_stats stats;
};
extern struct net net;

static inline uint32_t net_mss(void) // of TCP: a device's smaller MTU makes it smaller
{
    return net.mtu >= 68 && net.mtu < MTU ? net.mtu - IP_HLEN - TCP_HLEN : MSS;
}

bool net_start(struct vdev *d);
bool net_poll(void);           // true when packets or completions came
bool net_arm(void);            // before sleep; true: something came meanwhile
uint64_t net_tx_done(void);    // of all frames given away so far, how many have left
void net_config_changed(void); // announce when the device asks for it
bool net_keep(
    const struct pkt *p); // within its handler: it stays valid until net_drop; false: no room
void net_drop(const struct pkt *p);
uint8_t *net_frame(bool big); // a frame buffer, or NULL when all are in flight
void net_send(uint8_t *frame, uint32_t len, const struct offload *o);
bool net_send_ring(void *buf,
                   uint32_t len); // a whole prepared buffer, again and again (benchmarks)
void net_flush(void);             // ring the doorbells that are due

// ip.c
struct ipv4 {
    uint32_t addr, mask, gw; // host order
};
extern struct ipv4 ip;
void ip_init(void); // ip=A.B.C.D/len gw=A.B.C.D
void ip_input(const struct pkt *p);
void ip_announce(void); // gratuitous ARP
void arp_request(uint32_t addr);
bool arp_known(uint32_t addr, uint8_t mac[6]); // waits for nothing: ask, poll, look again
uint32_t ip_next_hop(uint32_t dst);
uint8_t *ip_header(uint8_t *frame, const uint8_t mac[6], uint32_t dst, uint8_t proto, uint16_t len);
uint32_t sum_bytes(uint32_t sum, const void *p,
                   size_t n); // ones' complement, not folded to the end
uint16_t sum_fold(uint32_t sum);
uint32_t sum_pseudo(uint32_t src, uint32_t dst, uint8_t proto, uint32_t len);
bool l4_valid(const struct pkt *p, uint32_t at, uint32_t len, uint32_t pseudo);

typedef bool udp_handler(const struct pkt *p, uint32_t src, uint16_t sport, uint32_t at,
                         uint32_t n);
void udp_listen(uint16_t port, udp_handler *fn); // one port besides 7 (echo)
uint8_t *udp_frame(const uint8_t mac[6], uint32_t dst, uint16_t sport, uint16_t dport, uint16_t n);
void udp_send(uint8_t *frame, uint16_t n); // payload was written at frame + 42

static inline uint16_t be16(const void *p)
{
    const uint8_t *b = p;
    return (uint16_t)(b[0] << 8 | b[1]);
}

static inline uint32_t be32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return __builtin_bswap32(v);
}

static inline void put16(void *p, uint16_t v)
{
    v = (uint16_t)(v << 8 | v >> 8);
    memcpy(p, &v, 2);
}

static inline void put32(void *p, uint32_t v)
{
    v = __builtin_bswap32(v);
    memcpy(p, &v, 4);
}

#endif
