// SPDX-License-Identifier: Apache-2.0
// The endpoints that tell of the guest itself. README.md lists them all.
#include "http.h"

#define TEXT "text/plain"
#define JSON "application/json"

uint64_t requests;
static uint64_t counter, ticks, tick_period, tick_due;
static bool spinning;
static void (*deed)(void);
static uint64_t deed_due;

// The largest step between two looks at the TSC that nothing explains: not sleep up to the hour it
// was meant to end.
static struct {
    uint64_t last, gap, gap_at, backwards, sleeps;
} watch;

void api_loop_seen(uint64_t now, uint64_t slept_until, bool slept)
{
    watch.sleeps += slept;
    if (now < watch.last) {
        watch.backwards++;
        watch.last = now;
        return;
    }
    uint64_t from = watch.last;
    if (slept && (!slept_until || now < slept_until))
        from = now; // woken by a device: how long it slept says nothing
    else if (slept)
        from = MAX(from, slept_until);
    if (watch.last && now - from > watch.gap) {
        watch.gap = now - from;
        watch.gap_at = now;
    }
    watch.last = now;
}

bool api_tick(uint64_t now)
{
    if (deed && (int64_t)(now - deed_due) >= 0) {
        void (*now_due)(void) = deed;
        deed = NULL;
        deed_due = 0;
        now_due();
    }
    if (tick_due && (int64_t)(now - tick_due) >= 0) {
        ticks++;
        counter++;
        // After a pause the missed ticks are not made up for: the counter goes on from where it
        // was.
        tick_due = now - tick_due > tick_period ? now + tick_period : tick_due + tick_period;
    } else if (tick_due && tick_due - now > tick_period) {
        tick_due = now + tick_period; // the clock went back
    }
    return work_tick(now) || spinning;
}

static uint64_t earliest(uint64_t a, uint64_t b)
{
    return !a ? b : !b ? a : MIN(a, b);
}

uint64_t api_next_timer(void)
{
    return earliest(earliest(tick_due, deed_due), work_next_timer());
}

static void stats(struct conn *c)
{
    uint64_t irq = 0, isr = 0, io = 0, io_errors = 0;
    for (unsigned i = 1; i < 32; i++)
        irq += irqs[i];
    for (unsigned i = 0; i < blk_n; i++) {
        io += blks[i].done;
        io_errors += blks[i].errors;
        isr += blks[i].dev->isr_reads;
    }
    const struct net_stats *n = &net.stats;
    const struct tcp_stats *t = &tcp_stats;
    http_reply(
        c, 200, JSON,
        "{\"mtu\":%u,\"rx_packets\":%lu,\"rx_bytes\":%lu,\"rx_bad\":%lu,\"tx_packets\":%lu,\"tx_"
        "bytes\":%lu,"
        "\"tx_full\":%lu,\"irqs\":%lu,\"timer_irqs\":%u,\"isr_reads\":%lu,\"resets\":%lu,"
        "\"announces\":%lu,\"lost\":%lu,"
        "\"tcp\":{\"accepted\":%lu,\"open\":%u,\"closed\":%lu,\"reset\":%lu,\"retransmits\":%lu,"
        "\"timeouts\":%lu,\"out_of_order\":%lu,\"bad_checksum\":%lu,\"no_room\":%lu},"
        "\"blk\":{\"devices\":%u,\"done\":%lu,\"errors\":%lu},\"requests\":%lu,\"generation\":%u}"
        "\n",
        net.mtu, n->rx_packets, n->rx_bytes, n->rx_bad, n->tx_packets, n->tx_bytes, n->tx_full, irq,
        irqs[0], isr + (net.dev ? net.dev->isr_reads : 0), resets, n->announces, n->lost,
        t->accepted, tcp_open_count(), t->closed, t->reset, t->retransmits, t->timeouts,
        t->out_of_order, t->bad_checksum, t->no_room, blk_n, io, io_errors, requests, generation);
}

static void tsc(struct conn *c)
{
    http_reply(c, 200, JSON,
               "{\"tsc\":%lu,\"khz\":%lu,\"gap_cycles\":%lu,\"gap_ns\":%lu,\"gap_at\":%lu,"
               "\"backwards\":%lu,\"spinning\":%s}\n",
               rdtsc(), tsc_khz, watch.gap, tsc_ns(watch.gap), watch.gap_at, watch.backwards,
               spinning ? "true" : "false");
    if (http_query(c, "reset"))
        watch.gap = watch.gap_at = watch.backwards = 0;
}

static void tick(struct conn *c)
{
    uint64_t hz = http_query_u64(c, "hz", 0);
    tick_period = hz ? tsc_khz * 1000 / MIN(hz, 100000) : 0;
    tick_due = hz ? rdtsc() + tick_period : 0;
    http_reply(c, 200, JSON, "{\"hz\":%lu,\"ticks\":%lu}\n", hz, ticks);
}

static void on_off(struct conn *c, bool *flag)
{
    *flag = http_query(c, "on") ? true : http_query(c, "off") ? false : !*flag;
    http_reply(c, 200, JSON, "{\"on\":%s}\n", *flag ? "true" : "false");
}

static void break_net(void)
{
    vq_break(&net.tx);
}

static void break_blk(void)
{
    if (blk_n)
        vq_break(&blks[0].q);
}

// The answer goes out first; the deed follows 20 ms later.
static bool power(struct conn *c)
{
    static const struct {
        const char *path;
        void (*deed)(void);
    } deeds[] = {{"/poweroff", power_off},
                 {"/reboot", reboot},
                 {"/crash", triple_fault},
                 {"/break/net", break_net},
                 {"/break/blk", break_blk}};
    for (unsigned i = 0; i < ARRAY_SIZE(deeds); i++)
        if (http_is(c, "GET", deeds[i].path) || http_is(c, "POST", deeds[i].path)) {
            deed = deeds[i].deed;
            deed_due = rdtsc() + us_tsc(20000);
            http_reply(c, 200, TEXT, "bye\n");
            return true;
        }
    return false;
}

void api_request(struct conn *c)
{
    const char *id = arg("id");
    char name[64] = "mayfly";
    for (size_t i = 0; id && i + 1 < sizeof(name) && id[i] && id[i] != ' '; i++) {
        name[i] = id[i];
        name[i + 1] = 0;
    }
    if (http_is(c, "GET", "/"))
        http_reply(c, 200, TEXT, "hello from %s, boot %016lx\n", name, boot_id);
    else if (http_is(c, "GET", "/counter"))
        http_reply(c, 200, JSON,
                   "{\"boot\":\"%016lx\",\"counter\":%lu,\"ticks\":%lu,\"generation\":%u}\n",
                   boot_id, ++counter, ticks, generation);
    else if (http_is(c, "GET", "/tsc"))
        tsc(c);
    else if (http_is(c, "GET", "/tick"))
        tick(c);
    else if (http_is(c, "GET", "/spin"))
        on_off(c, &spinning);
    else if (http_is(c, "GET", "/sleepstat"))
        http_reply(c, 200, JSON, "{\"sleeps\":%lu,\"timer_irqs\":%u}\n", watch.sleeps, irqs[0]);
    else if (http_is(c, "GET", "/download"))
        http_reply_body(c, BODY_PATTERN, NULL,
                        http_query_u64(c, "bytes", http_query_u64(c, "mib", 1) << 20));
    else if (http_is(c, "PUT", "/sink") || http_is(c, "POST", "/sink"))
        http_reply(c, 200, JSON, "{\"bytes\":%lu,\"crc32\":\"%08x\"}\n", c->http.taken,
                   c->http.crc);
    else if (http_is(c, "GET", "/rand"))
        http_reply(c, 200, TEXT, "%016lx%016lx %u\n", rand64(), rand64(), generation);
    else if (http_is(c, "GET", "/stats"))
        stats(c);
    else if (!power(c) && !work_request(c) && !disk_request(c))
        http_reply(c, 404, TEXT, "no such thing: %s %s\n", c->http.method, c->http.target);
}

void api_init(void)
{
    uint64_t hz = arg_u64("tick", 0);
    if (hz) {
        tick_period = tsc_khz * 1000 / MIN(hz, 100000);
        tick_due = rdtsc() + tick_period;
    }
    spinning = arg_is("spin", "on");
}
