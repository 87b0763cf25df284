// SPDX-License-Identifier: Apache-2.0
// TCP, passive side only: enough of RFC 9293, 5681, 6298 and 7323 (window scale) to serve HTTP
// through loss, long pauses and clock jumps.
//
// Nothing sent is kept: a connection's output is a stream of known length whose bytes the
// application produces at any offset again (http_fill), so retransmission needs no memory. Offsets
// count from the first byte after SYN in 64 bits; FIN is the byte behind the last. Out-of-order
// input is dropped and asked for. No timer runs while nothing is in flight: an idle guest sleeps
// for ever, and an idle connection stays.
#ifndef TESTS_GUEST_TCP_H
#define TESTS_GUEST_TCP_H

#include "net.h"

#define TCP_CONNS      64
#define TCP_CWND_MAX   (4u << 20)
#define TCP_RTO_MIN_US 60000 // above the 40 ms that Linux delays an acknowledgement
#define TCP_PORT       80
#define TCP_WSCALE     3
#define TCP_HELD       32 // early packets, of all connections together
#define HTTP_IN        4096
#define HTTP_OUT       2560

enum tcp_state {
    TCP_FREE,
    TCP_SYN_RCVD,
    TCP_OPEN,       // data may flow both ways
    TCP_CLOSE_WAIT, // the peer has sent FIN
    TCP_FIN_WAIT,   // we have sent FIN; not all of it is acknowledged or the peer's is missing
    TCP_LAST_ACK,   // both have
    TCP_DONE,       // TIME_WAIT without a clock: first to be recycled
};

enum http_body { BODY_NONE, BODY_PATTERN, BODY_MEMORY };

enum http_phase {
    HTTP_HEAD,    // collecting a request's header
    HTTP_BODY,    // taking its body
    HTTP_WAIT,    // the disk works on it
    HTTP_RESPOND, // the answer is not acknowledged yet
};

struct http {
    uint32_t in_len, out_len;
    enum http_phase phase;
    bool close_after, failed;
    uint64_t out_base;   // stream offset of out[0]
    enum http_body body; // what follows out[]
    uint64_t body_len;
    const uint8_t *memory;
    uint64_t todo, taken; // request body: bytes still to come, bytes taken
    uint32_t crc;         // of the bytes taken
    struct job *job;      // disk work of this request (disk.c)
    char method[8];
    char target[248];
    char in[HTTP_IN]; // nothing behind here is cleared for a new connection
    char out[HTTP_OUT];
};

struct conn {
    enum tcp_state state;
    unsigned i; // index, also the bit in the work mask
    uint32_t rip;
    uint16_t rport;
    uint8_t mac[6];
    uint32_t iss, rcv_nxt, rcv_edge; // rcv_edge: right edge of the window last advertised
    uint64_t una, nxt, max,
        end; // acknowledged, next to send, highest sent, end of what there is to send
    uint64_t recover, wnd, cwnd, ssthresh;
    uint64_t seen; // TSC of the last segment
    uint64_t sent; // frames given to the device when the last segment was
    uint64_t rtt_off, rtt_tsc, srtt, rttvar, rto; // TSC cycles; rtt_tsc 0: nothing is being timed
    uint32_t mss;
    uint8_t snd_scale, rcv_scale, dupacks, retries;
    bool fin, fin_rcvd, ack_due, recovering;
    struct http http;
};

struct tcp_stats {
    uint64_t accepted, closed, reset, retransmits, timeouts, out_of_order, bad_checksum, no_room;
};
extern struct tcp_stats tcp_stats;

void tcp_input(const struct pkt *p, uint32_t src, uint32_t at, uint32_t n);
void tcp_neighbour(uint32_t addr, const uint8_t *mac);
void tcp_flush(void);                // sends what is due on every connection with work
void tcp_timers(uint64_t now);       // fires what has expired
uint64_t tcp_next_timer(void);       // earliest deadline, 0: none
void tcp_clock_jumped(uint64_t now); // the TSC went backwards: start every running timer anew
unsigned tcp_open_count(void);

// For the application.
void tcp_extend(struct conn *c, uint64_t n); // n more bytes exist in the output stream
void tcp_close(struct conn *c);              // FIN behind the output
void tcp_abort(struct conn *c);
void tcp_work(struct conn *c); // look at it in the next flush (window may have opened)

// From the application (http.c).
void http_open(struct conn *c);
uint32_t http_window(const struct conn *c);                       // bytes it would take now
uint32_t http_data(struct conn *c, const uint8_t *p, uint32_t n); // bytes it took
void http_fill(struct conn *c, uint64_t off, uint8_t *dst, uint32_t n);
void http_sent(struct conn *c); // all output is acknowledged
void http_gone(struct conn *c); // the connection is over; release what it held

// tcp_out.c, for tcp.c
extern uint64_t tcp_deadline[TCP_CONNS];
extern struct conn *tcp_conns[TCP_CONNS];
void tcp_reset_for(const struct pkt *p, uint32_t src, uint32_t at, uint32_t n);
void tcp_syn_ack(struct conn *c);
bool tcp_segment(struct conn *c, uint64_t off, uint32_t n, uint8_t flags);
void tcp_free(struct conn *c);
void tcp_unhold_all(const struct conn *c); // tcp.c; NULL: of every connection
void tcp_set_timer(struct conn *c);

#define TH_FIN 1
#define TH_SYN 2
#define TH_RST 4
#define TH_PSH 8
#define TH_ACK 16

#endif
