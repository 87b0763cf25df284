// SPDX-License-Identifier: Apache-2.0
// TCP output: segments, congestion and peer window, retransmission, timers.
#include "tcp.h"

#define RTO_MAX_US  3000000
#define MAX_RETRIES 20
#define PROTO_TCP   6

struct tcp_stats tcp_stats;
uint64_t tcp_deadline[TCP_CONNS];
struct conn *tcp_conns[TCP_CONNS];
static uint64_t work_mask;

void tcp_work(struct conn *c)
{
    work_mask |= 1ull << c->i;
}

void tcp_extend(struct conn *c, uint64_t n)
{
    c->end += n;
    tcp_work(c);
}

void tcp_close(struct conn *c)
{
    c->fin = true;
    tcp_work(c);
}

// Writes header and checksum around the payload that lies at f + 54 and sends it.
static void finish(struct conn *c, uint8_t *f, uint32_t seq, uint8_t flags, uint32_t n,
                   uint32_t opt)
{
    uint32_t hl = TCP_HLEN + opt, len = hl + n;
    uint8_t *t = ip_header(f, c->mac, c->rip, PROTO_TCP, (uint16_t)len);
    uint32_t room = http_window(c), left = c->rcv_edge - c->rcv_nxt;
    if ((int32_t)left > 0 && left > room)
        room = left; // a window once given is not taken back
    uint32_t w = MIN(room >> (flags & TH_SYN ? 0 : c->rcv_scale), 0xffffu);
    c->rcv_edge = c->rcv_nxt + (w << (flags & TH_SYN ? 0 : c->rcv_scale));
    put16(t, TCP_PORT);
    put16(t + 2, c->rport);
    put32(t + 4, seq);
    put32(t + 8, c->rcv_nxt);
    put16(t + 12, (uint16_t)(hl / 4 << 12 | flags));
    put16(t + 14, (uint16_t)w);
    put32(t + 16, 0);
    uint32_t sum = sum_pseudo(ip.addr, c->rip, PROTO_TCP, len);
    uint16_t csum = net.tx_csum ? sum_fold(sum) : (uint16_t)~sum_fold(sum_bytes(sum, t, len));
    memcpy(t + 16, &csum, 2);
    struct offload o = {ETH_HLEN + IP_HLEN, 16, 0, (uint16_t)(ETH_HLEN + IP_HLEN + hl)};
    if (n > c->mss)
        o.gso_size = (uint16_t)c->mss;
    net_send(f, ETH_HLEN + IP_HLEN + len, net.tx_csum ? &o : NULL);
    c->ack_due = false;
    c->sent = net.stats.tx_packets;
}

bool tcp_segment(struct conn *c, uint64_t off, uint32_t n, uint8_t flags)
{
    uint8_t *f = net_frame(n > c->mss);
    if (!f)
        return false;
    if (n)
        http_fill(c, off, f + ETH_HLEN + IP_HLEN + TCP_HLEN, n);
    finish(c, f, c->iss + 1 + (uint32_t)off, (uint8_t)(flags | TH_ACK), n, 0);
    return true;
}

void tcp_syn_ack(struct conn *c)
{
    uint8_t *f = net_frame(false);
    if (!f)
        return;
    uint8_t *o = f + ETH_HLEN + IP_HLEN + TCP_HLEN;
    put32(o, 2u << 24 | 4u << 16 | net_mss());
    uint32_t n = 4;
    if (c->rcv_scale) {
        put32(o + 4, 1u << 24 | 3u << 16 | 3u << 8 | c->rcv_scale);
        n = 8;
    }
    finish(c, f, c->iss, TH_SYN | TH_ACK, 0, n);
}

// RFC 9293, 3.10.7.1: a segment that belongs to nothing is answered by a reset.
void tcp_reset_for(const struct pkt *p, uint32_t src, uint32_t at, uint32_t n)
{
    const uint8_t *t = p->data + at;
    uint8_t flags = t[13];
    if (flags & TH_RST)
        return;
    uint8_t *f = net_frame(false);
    if (!f)
        return;
    uint8_t *r = ip_header(f, p->data + 6, src, PROTO_TCP, TCP_HLEN);
    uint32_t data = n - (t[12] >> 4) * 4u + (flags & TH_SYN ? 1 : 0) + (flags & TH_FIN ? 1 : 0);
    bool ack = flags & TH_ACK;
    memcpy(r, t + 2, 2);
    memcpy(r + 2, t, 2);
    put32(r + 4, ack ? be32(t + 8) : 0);
    put32(r + 8, ack ? 0 : be32(t + 4) + data);
    put16(r + 12, (uint16_t)(5 << 12 | TH_RST | (ack ? 0 : TH_ACK)));
    put16(r + 14, 0);
    put32(r + 16, 0);
    uint32_t sum = sum_bytes(sum_pseudo(ip.addr, src, PROTO_TCP, TCP_HLEN), r, TCP_HLEN);
    uint16_t csum = (uint16_t)~sum_fold(sum);
    memcpy(r + 16, &csum, 2);
    net_send(f, ETH_HLEN + IP_HLEN + TCP_HLEN, NULL);
}

void tcp_free(struct conn *c)
{
    if (c->state == TCP_FREE)
        return;
    if (c->state != TCP_DONE)
        http_gone(c);
    tcp_unhold_all(c);
    c->state = TCP_FREE;
    tcp_deadline[c->i] = 0;
    work_mask &= ~(1ull << c->i);
    tcp_stats.closed++;
}

void tcp_abort(struct conn *c)
{
    tcp_segment(c, c->nxt, 0, TH_RST);
    tcp_stats.reset++;
    tcp_free(c);
}

void tcp_set_timer(struct conn *c)
{
    // What waits for a frame buffer only needs no clock: sends that complete bring it on.
    bool waiting = c->state == TCP_SYN_RCVD || c->max > c->una || (c->end > c->una && !c->wnd);
    if (!waiting)
        tcp_deadline[c->i] = 0;
    else if (!tcp_deadline[c->i])
        tcp_deadline[c->i] = rdtsc() + c->rto;
}

static void output(struct conn *c)
{
    uint64_t limit = c->una + MIN(c->cwnd, c->wnd);
    bool sent = false;
    if (c->nxt < c->una)
        c->nxt = c->una;
    while (c->nxt < c->end && c->nxt < limit) {
        uint64_t rest = c->end - c->nxt, room = limit - c->nxt;
        uint64_t n = MIN(MIN(rest, room), net.tso ? TX_BIG_DATA / MSS * c->mss : c->mss);
        if (n < rest && n > c->mss)
            n -= n % c->mss;
        if (n < rest && n < c->mss && c->nxt > c->una) // silly window: wait for more of it
            break;
        bool last = n == rest;
        uint8_t flags = last ? (c->fin ? TH_PSH | TH_FIN : TH_PSH) : 0;
        if (!tcp_segment(c, c->nxt, (uint32_t)n, flags)) {
            tcp_work(c); // no buffer: again when sends complete
            break;
        }
        if (c->nxt < c->max)
            tcp_stats.retransmits++;
        else if (!c->rtt_tsc) {
            c->rtt_tsc = rdtsc();
            c->rtt_off = c->nxt + n;
        }
        c->nxt += n + (last && c->fin ? 1 : 0);
        c->max = MAX(c->max, c->nxt);
        sent = true;
    }
    if (c->fin && c->nxt == c->end && (sent = tcp_segment(c, c->nxt, 0, TH_FIN))) {
        c->nxt++;
        c->max = MAX(c->max, c->nxt);
    }
    if (c->fin && c->max > c->end && c->state < TCP_FIN_WAIT)
        c->state = c->fin_rcvd ? TCP_LAST_ACK : TCP_FIN_WAIT;
    if (c->ack_due && !sent && !tcp_segment(c, c->nxt, 0, 0))
        tcp_work(c);
    tcp_set_timer(c);
}

void tcp_flush(void)
{
    static unsigned turn; // buffers run out, so each turn begins with another connection
    uint64_t m = work_mask;
    work_mask = 0;
    turn++;
    for (unsigned k = 0; m && k < TCP_CONNS; k++) {
        unsigned i = (turn + k) % TCP_CONNS;
        struct conn *c = tcp_conns[i];
        if (!(m >> i & 1))
            continue;
        m &= ~(1ull << i);
        if (c->state == TCP_FREE || c->state == TCP_SYN_RCVD)
            continue;
        // A window that opened by two segments is worth an acknowledgement of its own.
        if (c->rcv_nxt + http_window(c) - c->rcv_edge >= 2 * MSS &&
            (int32_t)(c->rcv_nxt + http_window(c) - c->rcv_edge) > 0)
            c->ack_due = true;
        output(c);
    }
}

static void expired(struct conn *c)
{
    // What a rate limiter still holds in our ring is not lost, and sent again it would only wait behind itself.
    if (c->sent > net_tx_done()) {
        tcp_set_timer(c);
        return;
    }
    tcp_stats.timeouts++;
    bool closed_window = c->state != TCP_SYN_RCVD && !c->wnd && c->una < c->end;
    if (!closed_window && ++c->retries > MAX_RETRIES) {
        tcp_abort(c);
        return;
    }
    if (c->retries > 1)
        arp_request(ip_next_hop(c->rip)); // the neighbour may have moved
    c->rto = MIN(c->rto * 2, us_tsc(RTO_MAX_US));
    c->rtt_tsc = 0;
    if (c->state == TCP_SYN_RCVD) {
        tcp_syn_ack(c);
    } else if (closed_window) { // probe with one byte beyond it
        if (tcp_segment(c, c->una, 1, 0))
            c->max = MAX(c->max, c->una + 1); // nxt stays: the peer need not have kept it
    } else {
        c->ssthresh = MAX((c->max - c->una) / 2, 2ull * c->mss);
        c->cwnd = c->mss;
        c->nxt = c->una;
        c->recover = c->max;
        c->recovering = false;
        c->dupacks = 0;
        tcp_stats.retransmits++;
        tcp_work(c);
    }
    tcp_set_timer(c);
}

void tcp_timers(uint64_t now)
{
    for (unsigned i = 0; i < TCP_CONNS; i++)
        if (tcp_deadline[i] && (int64_t)(now - tcp_deadline[i]) >= 0) {
            tcp_deadline[i] = 0;
            expired(tcp_conns[i]);
        }
}

uint64_t tcp_next_timer(void)
{
    uint64_t t = 0;
    for (unsigned i = 0; i < TCP_CONNS; i++)
        if (tcp_deadline[i] && (!t || tcp_deadline[i] < t))
            t = tcp_deadline[i];
    return t;
}

void tcp_clock_jumped(uint64_t now)
{
    for (unsigned i = 0; i < TCP_CONNS; i++)
        if (tcp_deadline[i]) {
            tcp_deadline[i] = now + tcp_conns[i]->rto;
            tcp_conns[i]->rtt_tsc = 0;
        }
}

void tcp_neighbour(uint32_t addr, const uint8_t *mac)
{
    for (unsigned i = 0; i < TCP_CONNS; i++)
        if (tcp_conns[i] && tcp_conns[i]->state && ip_next_hop(tcp_conns[i]->rip) == addr)
            memcpy(tcp_conns[i]->mac, mac, 6);
}
