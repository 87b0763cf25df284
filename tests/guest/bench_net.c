// SPDX-License-Identifier: Apache-2.0
// Network load: UDP packets out as fast as the ring takes them, packets in counted, or a ping-pong.
#include "bench.h"
#include "net.h"

#define PORT_SINK 9
#define PORT_ECHO 7

static struct {
    uint64_t packets, bytes, first, last, sent_at;
    bool waiting;
    struct hist lat;
} run;

static bool came(const struct pkt *p, uint32_t src, uint16_t sport, uint32_t at, uint32_t n)
{
    (void)p, (void)src, (void)sport, (void)at;
    run.last = rdtsc();
    if (!run.packets)
        run.first = run.last;
    run.packets++;
    run.bytes += n;
    if (run.waiting)
        hist_add(&run.lat, run.last - run.sent_at);
    run.waiting = false;
    return true;
}

static bool turn(const struct bench *b)
{
    wake = 0;
    bool any = net_poll();
    net_flush();
    if (!any)
        bench_wait(b, net_arm());
    return rdtsc() < b->until;
}

static bool resolve(struct bench *b, uint32_t dst, uint8_t mac[6])
{
    uint64_t hop_until = rdtsc() + us_tsc(3000000);
    uint32_t hop = ip_next_hop(dst);
    while (!arp_known(hop, mac)) {
        if (rdtsc() > hop_until)
            return false;
        arp_request(hop);
        b->until = rdtsc() + us_tsc(50000);
        while (!arp_known(hop, mac) && turn(b))
            ;
    }
    return true;
}

static void report(const char *op, const struct bench *b, uint64_t packets, uint64_t bytes,
                   uint64_t cycles)
{
    uint64_t us = MAX(tsc_ns(cycles) / 1000, 1);
    say("BENCH {\"mode\":\"net\",\"op\":\"%s\",\"size\":%lu,\"us\":%lu,\"packets\":%lu,\"pps\":%lu,"
        "\"mbit_s\":%lu,\"p50_ns\":%lu,\"p99_ns\":%lu,\"max_ns\":%lu}\n",
        op, b->size, us, packets, packets * 1000000 / us, bytes * 8 / us,
        tsc_ns(hist_at(&run.lat, 500)), tsc_ns(hist_at(&run.lat, 990)), tsc_ns(run.lat.max));
}

// One prepared buffer goes into the ring again and again: what is measured is the device, not our
// copying.
static void transmit(struct bench *b, const uint8_t mac[6], uint32_t dst)
{
    uint8_t *f = udp_frame(mac, dst, PORT_SINK, PORT_SINK, (uint16_t)b->size);
    uint32_t len = ETH_HLEN + IP_HLEN + UDP_HLEN + (uint32_t)b->size;
    uint64_t start = rdtsc(), sent = 0;
    memset(f - NET_HDR, 0, NET_HDR);
    b->until = start + us_tsc(b->secs * 1000000);
    while (rdtsc() < b->until) {
        uint64_t was = sent;
        wake = 0;
        while (sent - was < 64 && net_send_ring(f - NET_HDR, NET_HDR + len))
            sent++;
        net_flush();
        if (sent == was) // full: sleep until half of it is free, as a driver under load does
            bench_wait(b, vq_arm(&net.tx, net.tx.size / 2));
    }
    uint64_t took = rdtsc() - start;
    sent -= net.tx.size - net.tx.free;
    report("tx", b, sent, sent * b->size, took);
}

static void receive(struct bench *b)
{
    b->until = rdtsc() + us_tsc(60000000);
    while (!run.packets && turn(b)) // the clock starts with the first packet
        ;
    b->until = rdtsc() + us_tsc(b->secs * 1000000);
    while (turn(b))
        ;
    report("rx", b, run.packets, run.bytes, run.last - run.first);
}

static void ping_pong(struct bench *b, const uint8_t mac[6], uint32_t dst)
{
    uint64_t start = rdtsc(), end = start + us_tsc(b->secs * 1000000), lost = 0;
    while (rdtsc() < end) {
        uint8_t *f = udp_frame(mac, dst, PORT_SINK, PORT_ECHO, (uint16_t)b->size);
        if (!f)
            break;
        run.sent_at = rdtsc();
        run.waiting = true;
        udp_send(f, (uint16_t)b->size);
        b->until = run.sent_at + us_tsc(200000);
        while (turn(b) && run.waiting)
            ;
        lost += run.waiting;
    }
    report("pingpong", b, run.packets, run.bytes, rdtsc() - start);
    if (lost)
        say("guest: %lu lost\n", lost);
}

void bench_net(const struct bench *in)
{
    struct bench b = *in;
    const char *s = arg("bench.dst");
    uint32_t dst = ip.gw;
    uint8_t mac[6];
    b.size = MIN(b.size, MTU - IP_HLEN - UDP_HLEN);
    udp_listen(PORT_SINK, came);
    if (s)
        parse_ip(&s, &dst);
    if (!net.up || (!bench_op(&b, "rx") && !resolve(&b, dst, mac)))
        say("BENCH {\"error\":\"no network, or nobody at the destination\"}\n");
    else if (bench_op(&b, "rx"))
        receive(&b);
    else if (bench_op(&b, "pingpong"))
        ping_pong(&b, mac, dst);
    else
        transmit(&b, mac, dst);
}
