// SPDX-License-Identifier: Apache-2.0
// TCP input: connections come, acknowledge, deliver and go.
#include "tcp.h"

static struct conn *find(uint32_t rip, uint16_t rport)
{
    for (unsigned i = 0; i < TCP_CONNS && tcp_conns[i]; i++) {
        struct conn *c = tcp_conns[i];
        if (c->state && c->rip == rip && c->rport == rport)
            return c;
    }
    return NULL;
}

// How little is lost by giving up this place: 0 nothing, 4 too much. The young are spared: their
// request may be on its way, and a client whose SYN is not answered asks again.
static int rank(const struct conn *c)
{
    bool young = rdtsc() - c->seen < us_tsc(2000000);
    switch (c->state) {
    case TCP_FREE:
        return 0;
    case TCP_DONE:
        return 1;
    case TCP_FIN_WAIT:
    case TCP_LAST_ACK:
        return 2;
    case TCP_SYN_RCVD:
        return young ? 4 : 3;
    case TCP_OPEN:
    case TCP_CLOSE_WAIT:
        break;
    }
    return c->una == c->end && c->http.phase == HTTP_HEAD && !young ? 3 : 4;
}

// A free place or one that is over, else a new one, else the first that waits for nothing.
static struct conn *make(void)
{
    struct conn *victim = NULL;
    int best = 4;
    unsigned i = 0;
    for (; i < TCP_CONNS && tcp_conns[i] && best > 1; i++)
        if (rank(tcp_conns[i]) < best) {
            victim = tcp_conns[i];
            best = rank(victim);
        }
    if (best > 1 && i < TCP_CONNS) {
        victim = tcp_conns[i] = arena(sizeof(*victim), 64);
        victim->i = i;
        return victim;
    }
    if (!victim) {
        tcp_stats.no_room++;
        return NULL;
    }
    if (best > 1)
        tcp_abort(victim);
    tcp_free(victim);
    return victim;
}

static void read_options(struct conn *c, const uint8_t *t, uint32_t hl)
{
    c->mss = 536;
    for (uint32_t i = TCP_HLEN; i + 1 < hl && t[i];) {
        uint32_t n = t[i] == 1 ? 1 : t[i + 1];
        if (!n || i + n > hl || (t[i] != 1 && n < 2))
            break;
        if (t[i] == 2 && n == 4)
            c->mss = be16(t + i + 2);
        if (t[i] == 3 && n == 3) {
            c->snd_scale = MIN(t[i + 2], (uint8_t)14);
            c->rcv_scale = TCP_WSCALE;
        }
        i += n;
    }
    c->mss = MIN(MAX(c->mss, 64u), net_mss());
}

static void accept_syn(const struct pkt *p, uint32_t src, const uint8_t *t, uint32_t hl)
{
    struct conn *c = make();
    if (!c)
        return;
    unsigned i = c->i;
    memset(c, 0, offsetof(struct conn, http) + offsetof(struct http, in));
    c->i = i;
    c->state = TCP_SYN_RCVD;
    c->seen = rdtsc();
    c->rip = src;
    c->rport = be16(t);
    memcpy(c->mac, p->data + 6, 6);
    c->iss = (uint32_t)rand64();
    c->rcv_nxt = c->rcv_edge = be32(t + 4) + 1;
    c->wnd = be16(t + 14);
    c->rto = us_tsc(2 * TCP_RTO_MIN_US);
    read_options(c, t, hl);
    c->cwnd = 20ull * c->mss;
    c->ssthresh = TCP_CWND_MAX;
    http_open(c);
    tcp_stats.accepted++;
    tcp_syn_ack(c);
    tcp_set_timer(c);
}

static void measure(struct conn *c)
{
    if (!c->rtt_tsc || c->una < c->rtt_off)
        return;
    uint64_t r = rdtsc() - c->rtt_tsc;
    c->rtt_tsc = 0;
    if (r > us_tsc(10000000)) // a pause or a jump, not the network
        return;
    if (!c->srtt) {
        c->srtt = r;
        c->rttvar = r / 2;
    } else {
        uint64_t d = r > c->srtt ? r - c->srtt : c->srtt - r;
        c->rttvar = (3 * c->rttvar + d) / 4;
        c->srtt = (7 * c->srtt + r) / 8;
    }
}

// RFC 5681 and 6582: slow start, avoidance, fast retransmit, fast recovery with partial
// acknowledgements.
static void take_ack(struct conn *c, uint32_t ack, uint32_t wnd, bool pure)
{
    uint32_t d = ack - (c->iss + 1 + (uint32_t)c->una);
    if (d > c->max - c->una) // old, or of something never sent
        return;
    bool same_wnd = wnd == c->wnd;
    c->wnd = wnd;
    if (!d) {
        if (!pure || !same_wnd || c->max == c->una) {
            tcp_work(c);
            return;
        }
        if (c->recovering)
            c->cwnd += c->mss;
        else if (++c->dupacks == 3 && c->una >= c->recover) {
            c->ssthresh = MAX((c->max - c->una) / 2, 2ull * c->mss);
            c->cwnd = c->ssthresh + 3ull * c->mss;
            c->recover = c->max;
            c->recovering = true;
            c->nxt = MIN(c->nxt, c->max);
            tcp_stats.retransmits++;
            tcp_segment(c, c->una, (uint32_t)MIN(c->end - c->una, c->mss),
                        c->una == c->end && c->fin ? TH_FIN : 0);
        }
        tcp_work(c);
        return;
    }
    c->una += d;
    c->nxt = MAX(c->nxt, c->una);
    c->retries = c->dupacks = 0;
    measure(c);
    c->rto = MIN(MAX(c->srtt + 4 * c->rttvar, us_tsc(TCP_RTO_MIN_US)), us_tsc(3000000));
    if (c->recovering && c->una < c->recover) {
        c->cwnd = c->cwnd > d ? c->cwnd - d + c->mss : c->mss;
        tcp_stats.retransmits++;
        tcp_segment(c, c->una, (uint32_t)MIN(c->end - c->una, c->mss),
                    c->una == c->end && c->fin ? TH_FIN : 0);
    } else if (c->recovering) {
        c->recovering = false;
        c->cwnd = c->ssthresh;
    } else if (c->cwnd < c->ssthresh) {
        c->cwnd += d;
    } else {
        c->cwnd += (uint64_t)c->mss * d / c->cwnd + 1;
    }
    c->cwnd = MIN(c->cwnd, TCP_CWND_MAX);
    tcp_deadline[c->i] = 0; // anew from here, if anything is still out
    tcp_work(c);
    if (c->una == c->end && c->state != TCP_FIN_WAIT && c->state != TCP_LAST_ACK)
        http_sent(c);
}

static uint32_t deliver(struct conn *c, const struct pkt *p, uint32_t at, uint32_t n)
{
    uint32_t took = 0;
    for (unsigned i = 0; i < p->n && n; i++) {
        uint32_t l = p->part[i].len;
        if (at >= l) {
            at -= l;
            continue;
        }
        uint32_t k = MIN(l - at, n);
        uint32_t r = http_data(c, (const uint8_t *)p->part[i].p + at, k);
        took += r;
        if (r < k)
            break;
        n -= k;
        at = 0;
    }
    return took;
}

// Packets that came before their turn. They stay in the buffers they arrived in.
static struct held {
    struct conn *conn;
    uint32_t seq, at, n;
    bool fin;
    struct pkt p;
} held[TCP_HELD];

static void hold(struct conn *c, const struct pkt *p, uint32_t at, uint32_t n, uint32_t seq,
                 bool fin)
{
    struct held *place = NULL;
    for (unsigned i = 0; i < TCP_HELD; i++) {
        if (held[i].conn == c && held[i].seq == seq)
            return;
        if (!held[i].conn)
            place = &held[i];
    }
    if (place && seq + n - c->rcv_nxt <= c->rcv_edge - c->rcv_nxt && net_keep(p))
        *place = (struct held){c, seq, at, n, fin, *p};
}

static void unhold(struct held *h)
{
    h->conn = NULL;
    net_drop(&h->p);
}

static void take_data(struct conn *c, const struct pkt *p, uint32_t at, uint32_t n, uint32_t seq,
                      bool fin)
{
    uint32_t skip = c->rcv_nxt - seq;
    if (skip > n || c->fin_rcvd)
        return;
    uint32_t took = deliver(c, p, at + skip, n - skip);
    c->rcv_nxt += took;
    if (!fin || took < n - skip || c->state == TCP_FREE)
        return;
    c->rcv_nxt++;
    c->fin_rcvd = true;
    if (c->state == TCP_OPEN) {
        c->state = TCP_CLOSE_WAIT;
        if (c->una == c->end && !c->http.job)
            tcp_close(c); // nothing more to say; else http_sent closes when it is said
        c->http.close_after = true;
    } else if (c->state == TCP_FIN_WAIT) {
        c->state = TCP_LAST_ACK;
    }
}

// All of a segment's text: in turn it is taken, with what it makes the turn of; early it is held.
static void take_text(struct conn *c, const struct pkt *p, uint32_t at, uint32_t n, uint32_t seq,
                      bool fin)
{
    if (!n && !fin && seq == c->rcv_nxt)
        return;
    c->ack_due = true;
    tcp_work(c);
    if ((int32_t)(seq - c->rcv_nxt) > 0) {
        tcp_stats.out_of_order++;
        hold(c, p, at, n, seq, fin);
        tcp_segment(c, c->nxt, 0,
                    0); // one for each: three of them start the peer's fast retransmit
        return;
    }
    take_data(c, p, at, n, seq, fin);
    for (unsigned i = 0; tcp_stats.out_of_order && i < TCP_HELD; i++) {
        struct held *h = &held[i];
        if (h->conn != c || (int32_t)(h->seq - c->rcv_nxt) > 0)
            continue;
        take_data(c, &h->p, h->at, h->n, h->seq, h->fin);
        unhold(h);
        i = ~0u; // from the start: another one's turn may have come
    }
}

void tcp_unhold_all(const struct conn *c)
{
    for (unsigned i = 0; i < TCP_HELD; i++)
        if (held[i].conn && (!c || held[i].conn == c))
            unhold(&held[i]);
}

static void segment(struct conn *c, const struct pkt *p, uint32_t at, uint32_t n, uint32_t hl)
{
    const uint8_t *t = p->data + at;
    uint8_t flags = t[13];
    uint32_t seq = be32(t + 4), ack = be32(t + 8);
    uint32_t wnd = (uint32_t)be16(t + 14) << (flags & TH_SYN ? 0 : c->snd_scale);
    if (flags & TH_RST) {
        uint32_t room = MAX(c->rcv_edge - c->rcv_nxt, 1u);
        if (seq - c->rcv_nxt < room) {
            tcp_stats.reset++;
            tcp_free(c);
        }
        return;
    }
    if (flags & TH_SYN) { // our SYN-ACK was lost, or this is an old one: say where we are
        if (c->state == TCP_SYN_RCVD)
            tcp_syn_ack(c);
        else
            tcp_segment(c, c->nxt, 0, 0);
        return;
    }
    if (!(flags & TH_ACK))
        return;
    memcpy(c->mac, p->data + 6, 6);
    c->seen = rdtsc();
    if (c->state == TCP_SYN_RCVD) {
        if (ack != c->iss + 1)
            return;
        c->state = TCP_OPEN;
        c->retries = 0;
        c->wnd = wnd;
        c->rto = us_tsc(TCP_RTO_MIN_US);
        tcp_deadline[c->i] = 0;
    }
    take_ack(c, ack, wnd, n == hl && !(flags & TH_FIN));
    take_text(c, p, at + hl, n - hl, seq, flags & TH_FIN);
    if (c->fin && c->una > c->end && c->fin_rcvd && c->state == TCP_LAST_ACK) {
        http_gone(c);
        tcp_unhold_all(c);
        c->state = TCP_DONE; // stays to answer a repeated FIN, without any timer
        c->fin = false;
        c->nxt = c->max = c->end = c->una;
        tcp_deadline[c->i] = 0;
    }
}

void tcp_input(const struct pkt *p, uint32_t src, uint32_t at, uint32_t n)
{
    const uint8_t *t = p->data + at;
    if (at + TCP_HLEN > p->first)
        return;
    uint32_t hl = (t[12] >> 4) * 4u;
    if (hl < TCP_HLEN || hl > n || at + hl > p->first)
        return;
    if (!l4_valid(p, at, n, sum_pseudo(src, ip.addr, 6, n))) {
        tcp_stats.bad_checksum++;
        return;
    }
    struct conn *c = be16(t + 2) == TCP_PORT ? find(src, be16(t)) : NULL;
    bool syn = (t[13] & (TH_SYN | TH_ACK | TH_RST)) == TH_SYN;
    if (c && syn &&
        (c->state == TCP_DONE || c->state == TCP_FIN_WAIT || c->state == TCP_LAST_ACK)) {
        tcp_free(c);
        c = NULL;
    }
    if (c)
        segment(c, p, at, n, hl);
    else if (syn && be16(t + 2) == TCP_PORT)
        accept_syn(p, src, t, hl);
    else
        tcp_reset_for(p, src, at, n);
}

unsigned tcp_open_count(void)
{
    unsigned n = 0;
    for (unsigned i = 0; i < TCP_CONNS && tcp_conns[i]; i++)
        n += tcp_conns[i]->state == TCP_OPEN || tcp_conns[i]->state == TCP_CLOSE_WAIT;
    return n;
}
