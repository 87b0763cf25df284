// SPDX-License-Identifier: Apache-2.0
// Ethernet, ARP, IPv4, ICMP echo, UDP (echo on port 7).
#include "net.h"
#include "tcp.h"

#define ETH_ARP   0x0806
#define ETH_IP    0x0800
#define PROTO_UDP 17
#define PROTO_TCP 6
#define ARP_SLOTS 8

struct ipv4 ip;
static struct {
    uint32_t addr;
    uint8_t mac[6];
} arp[ARP_SLOTS];
static uint16_t listen_port;
static udp_handler *listen_fn;

void ip_init(void)
{
    const char *s = arg("ip"), *g = arg("gw");
    uint32_t len = 24;
    if (!s || !parse_ip(&s, &ip.addr))
        ip.addr = 0xac100002; // 172.16.0.2
    else if (*s == '/' && s++)
        len = (uint32_t)str_u64(&s);
    ip.mask = (uint32_t)(0xffffffffull << (32 - MIN(len, 32u)));
    if (!g || !parse_ip(&g, &ip.gw))
        ip.gw = (ip.addr & ip.mask) + 1;
}

uint32_t ip_next_hop(uint32_t dst)
{
    return ((dst ^ ip.addr) & ip.mask) ? ip.gw : dst;
}

// ---- checksums ----

uint32_t sum_bytes(uint32_t sum, const void *p, size_t n)
{
    const uint8_t *b = p;
    uint64_t s = sum;
    for (; n >= 4; n -= 4, b += 4) {
        uint32_t v;
        memcpy(&v, b, 4);
        s += v;
    }
    uint32_t tail = 0;
    for (size_t i = 0; i < n; i++)
        tail |= (uint32_t)b[i] << (8 * i);
    s += tail;
    s = (s & 0xffffffff) + (s >> 32);
    return (uint32_t)((s & 0xffffffff) + (s >> 32));
}

// In memory order (the sum of little-endian words is the byte-swapped sum), so it is stored by
// plain moves.
uint16_t sum_fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

uint32_t sum_pseudo(uint32_t src, uint32_t dst, uint8_t proto, uint32_t len)
{
    uint8_t h[12];
    put32(h, src);
    put32(h + 4, dst);
    put16(h + 8, proto);
    put16(h + 10, (uint16_t)len);
    return sum_bytes(0, h, sizeof(h));
}

bool l4_valid(const struct pkt *p, uint32_t at, uint32_t len, uint32_t pseudo)
{
    if (p->csum_ok)
        return true;
    uint32_t sum = pseudo, off = 0, done = 0;
    for (unsigned i = 0; i < p->n && done < len; i++) {
        uint32_t skip = at > off ? MIN(at - off, p->part[i].len) : 0;
        uint32_t n = MIN(p->part[i].len - skip, len - done);
        uint32_t s = sum_bytes(0, (const uint8_t *)p->part[i].p + skip, n);
        sum = sum_fold(sum) + (done & 1 ? __builtin_bswap16(sum_fold(s)) : (uint32_t)sum_fold(s));
        done += n;
        off += p->part[i].len;
    }
    return sum_fold(sum) == 0xffff;
}

// ---- frames ----

static void eth_header(uint8_t *f, const uint8_t dst[6], uint16_t type)
{
    memcpy(f, dst, 6);
    memcpy(f + 6, net.mac, 6);
    put16(f + 12, type);
}

uint8_t *ip_header(uint8_t *f, const uint8_t mac[6], uint32_t dst, uint8_t proto, uint16_t len)
{
    static uint16_t id;
    uint8_t *h = f + ETH_HLEN;
    eth_header(f, mac, ETH_IP);
    put16(h, 0x4500);
    put16(h + 2, (uint16_t)(IP_HLEN + len));
    put16(h + 4, id++);
    put16(h + 6, 0x4000); // do not fragment
    put16(h + 8, (uint16_t)(64 << 8 | proto));
    put16(h + 10, 0);
    put32(h + 12, ip.addr);
    put32(h + 16, dst);
    uint16_t c = (uint16_t)~sum_fold(sum_bytes(0, h, IP_HLEN));
    memcpy(h + 10, &c, 2);
    return h + IP_HLEN;
}

// ---- ARP ----

static void arp_send(uint16_t op, const uint8_t eth[6], const uint8_t tha[6], uint32_t tpa)
{
    uint8_t *f = net_frame(false);
    if (!f)
        return;
    uint8_t *a = f + ETH_HLEN;
    eth_header(f, eth, ETH_ARP);
    put16(a, 1);
    put16(a + 2, ETH_IP);
    put16(a + 4, 0x0604);
    put16(a + 6, op);
    memcpy(a + 8, net.mac, 6);
    put32(a + 14, ip.addr);
    memcpy(a + 18, tha, 6);
    put32(a + 24, tpa);
    memset(a + 28, 0, 18); // up to the shortest frame
    net_send(f, 60, NULL);
}

static const uint8_t all[6] = {255, 255, 255, 255, 255, 255}, none[6];

void ip_announce(void)
{
    arp_send(1, all, none, ip.addr);
    arp_send(2, all, all, ip.addr);
}

void arp_request(uint32_t addr)
{
    arp_send(1, all, none, addr);
}

bool arp_known(uint32_t addr, uint8_t mac[6])
{
    for (unsigned i = 0; i < ARP_SLOTS; i++)
        if (arp[i].addr == addr) {
            memcpy(mac, arp[i].mac, 6);
            return true;
        }
    return false;
}

static void arp_learn(uint32_t addr, const uint8_t *mac)
{
    static unsigned next;
    unsigned i = 0;
    while (i < ARP_SLOTS && arp[i].addr != addr)
        i++;
    if (i == ARP_SLOTS)
        i = next++ % ARP_SLOTS;
    arp[i].addr = addr;
    memcpy(arp[i].mac, mac, 6);
    tcp_neighbour(addr, mac); // a peer that moved keeps its connections
}

static void arp_input(const struct pkt *p)
{
    const uint8_t *a = p->data + ETH_HLEN;
    if (p->first < ETH_HLEN + 28 || be16(a) != 1 || be16(a + 2) != ETH_IP)
        return;
    uint32_t sender = be32(a + 14), target = be32(a + 24);
    if (sender && sender != ip.addr)
        arp_learn(sender, a + 8);
    if (be16(a + 6) == 1 && target == ip.addr && sender != ip.addr)
        arp_send(2, a + 8, a + 8, sender);
}

// ---- ICMP and UDP ----

static void copy_out(uint8_t *d, const struct pkt *p, uint32_t at, uint32_t n)
{
    for (unsigned i = 0; i < p->n && n; i++) {
        uint32_t l = p->part[i].len;
        if (at >= l) {
            at -= l;
            continue;
        }
        uint32_t k = MIN(l - at, n);
        memcpy(d, (const uint8_t *)p->part[i].p + at, k);
        d += k;
        n -= k;
        at = 0;
    }
}

static void icmp_input(const struct pkt *p, uint32_t src, uint32_t at, uint32_t n)
{
    if (n < 8 || n > MTU - IP_HLEN || p->data[at] != 8)
        return;
    uint8_t *f = net_frame(false);
    if (!f)
        return;
    uint8_t *d = ip_header(f, p->data + 6, src, 1, (uint16_t)n);
    copy_out(d, p, at, n);
    put16(d, 0);
    put16(d + 2, 0);
    uint16_t c = (uint16_t)~sum_fold(sum_bytes(0, d, n));
    memcpy(d + 2, &c, 2);
    net_send(f, ETH_HLEN + IP_HLEN + n, NULL);
}

void udp_listen(uint16_t port, udp_handler *fn)
{
    listen_port = port;
    listen_fn = fn;
}

uint8_t *udp_frame(const uint8_t mac[6], uint32_t dst, uint16_t sport, uint16_t dport, uint16_t n)
{
    uint8_t *f = net_frame(false);
    if (!f)
        return NULL;
    uint8_t *u = ip_header(f, mac, dst, PROTO_UDP, (uint16_t)(UDP_HLEN + n));
    put16(u, sport);
    put16(u + 2, dport);
    put16(u + 4, (uint16_t)(UDP_HLEN + n));
    put16(u + 6,
          0); // no checksum: allowed in IPv4, and the frame never leaves a host unchecked by it
    return f;
}

void udp_send(uint8_t *f, uint16_t n)
{
    net_send(f, ETH_HLEN + IP_HLEN + UDP_HLEN + n, NULL);
}

static void udp_input(const struct pkt *p, uint32_t src, uint32_t at, uint32_t n)
{
    const uint8_t *u = p->data + at;
    if (n < UDP_HLEN || be16(u + 4) < UDP_HLEN || be16(u + 4) > n)
        return;
    uint16_t sport = be16(u), dport = be16(u + 2), len = (uint16_t)(be16(u + 4) - UDP_HLEN);
    if (listen_fn && dport == listen_port && listen_fn(p, src, sport, at + UDP_HLEN, len))
        return;
    if (dport != 7 || len > MTU - IP_HLEN - UDP_HLEN)
        return;
    uint8_t *f = udp_frame(p->data + 6, src, 7, sport, len);
    if (!f)
        return;
    copy_out(f + ETH_HLEN + IP_HLEN + UDP_HLEN, p, at + UDP_HLEN, len);
    udp_send(f, len);
}

void ip_input(const struct pkt *p)
{
    const uint8_t *h = p->data + ETH_HLEN;
    if (p->first < ETH_HLEN + IP_HLEN)
        return;
    if (be16(p->data + 12) == ETH_ARP)
        arp_input(p);
    if (be16(p->data + 12) != ETH_IP || h[0] >> 4 != 4)
        return;
    uint32_t hl = (h[0] & 15u) * 4, total = be16(h + 2), at = ETH_HLEN + hl;
    if (hl < IP_HLEN || total < hl || ETH_HLEN + total > p->len || at + 20 > p->first + 12)
        return;
    if (be32(h + 16) != ip.addr || be16(h + 6) & 0x3fff) // not ours, or a fragment
        return;
    uint32_t src = be32(h + 12), n = total - hl;
    if (h[9] == 1 && n >= 8)
        icmp_input(p, src, at, n);
    else if (h[9] == PROTO_UDP && n >= UDP_HLEN)
        udp_input(p, src, at, n);
    else if (h[9] == PROTO_TCP && n >= TCP_HLEN && at + n <= p->len)
        tcp_input(p, src, at, n);
}
