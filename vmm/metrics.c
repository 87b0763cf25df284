// SPDX-License-Identifier: Apache-2.0
// One line of JSON from the counters of every part.
#include "vmm/metrics.h"

#include "virtio/blk.h"
#include "virtio/net.h"
#include "vmm/dev/dev.h"
#include "vmm/log.h"
#include "vmm/vcpu/vcpu.h"

// #syscalls:control pwritev2(0) clock_gettime

#define G (1u << API_GET)
#define U (1u << API_PUT)
#define P (1u << API_PATCH)

static const struct {
    const char *name;
    unsigned kinds;
} api[] = {
    {"instance_info", G}, {"vmm_version", G},   {"machine_cfg", G | U | P},
    {"actions", U},       {"boot_source", U},   {"drive", U | P},
    {"network", U | P},   {"logger", U},        {"metrics", U},
    {"serial", U},        {"cpu_cfg", U},       {"vm", G | P},
    {"snapshot", U},      {"migration", G | U},
};
_Static_assert(ARRAY_SIZE(api) <= METRICS_API, "a place for each request");

static const char *const latency[LAT_COUNT] = {
    "full_create_snapshot",
    "diff_create_snapshot",
    "load_snapshot",
    "pause_vm",
    "resume_vm",
    "vmm_full_create_snapshot",
    "vmm_diff_create_snapshot",
    "vmm_load_snapshot",
    "vmm_pause_vm",
    "vmm_resume_vm",
};

struct field {
    const char *name;
    size_t off; // of an _Atomic uint64_t
};

#define B(f) offsetof(struct blk_metrics, f)
static const struct field blk_fields[] = {
    {"execute_fails", B(failed)},        {"flush_count", B(flushes)},
    {"discard_count", B(discards)},      {"queue_event_count", B(queue_events)},
    {"update_count", B(config_changes)}, {"read_bytes", B(read_bytes)},
    {"write_bytes", B(write_bytes)},     {"read_count", B(reads)},
    {"write_count", B(writes)},          {"rate_limiter_throttled_events", B(throttled)},
};

#define N(f) offsetof(struct net_metrics, f)
static const struct field net_fields[] = {
    {"no_rx_avail_buffer", N(rx_no_buffers)},
    {"rx_queue_event_count", N(rx_events)},
    {"rx_rate_limiter_throttled", N(rx_throttled)},
    {"rx_bytes_count", N(rx_bytes)},
    {"rx_packets_count", N(rx_packets)},
    {"rx_fails", N(rx_fails)},
    {"rx_dropped", N(rx_dropped)},
    {"tx_bytes_count", N(tx_bytes)},
    {"tx_malformed_frames", N(tx_malformed)},
    {"tx_fails", N(tx_fails)},
    {"tx_packets_count", N(tx_packets)},
    {"tx_queue_event_count", N(tx_events)},
    {"tx_rate_limiter_throttled", N(tx_throttled)},
    {"tx_spoofed_mac_count", N(tx_spoofed)},
};

void metrics_count_api(struct vm_metrics *m, enum vm_api_kind kind, const char *what, bool failed,
                       uint64_t took_us)
{
    for (size_t i = 0; i < ARRAY_SIZE(api); i++) {
        if (strcmp(api[i].name, what) == 0) {
            m->api[kind][i][0]++;
            m->api[kind][i][1] += failed;
        }
    }
    for (size_t i = 0; i < LAT_COUNT; i++)
        if (!failed && strcmp(latency[i], what) == 0)
            m->latency_us[i] = took_us;
}

struct out {
    struct vm_metrics *m;
    char *buf;
    size_t size, len;
    unsigned at; // counters so far
    bool comma, full;
};

__attribute__((format(printf, 2, 3))) static void put(struct out *o, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(o->buf + o->len, o->size - o->len, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= o->size - o->len)
        o->full = true;
    else
        o->len += (size_t)n;
}

static void open_group(struct out *o, const char *prefix, const char *name)
{
    put(o, ",\"%s%s\":{", prefix, name);
    o->comma = false;
}

static void close_group(struct out *o)
{
    put(o, "}");
}

static void value(struct out *o, const char *name, const char *suffix, uint64_t v) // as it is
{
    put(o, "%s\"%s%s\":%llu", o->comma ? "," : "", name, suffix, (unsigned long long)v);
    o->comma = true;
}

// How far a free-running counter has come. One that went back was made anew.
static void count2(struct out *o, const char *name, const char *suffix, uint64_t v)
{
    if (o->at >= METRICS_COUNTERS) {
        o->full = true;
        return;
    }
    uint64_t last = o->m->last[o->at];
    o->m->next[o->at++] = v;
    value(o, name, suffix, v >= last ? v - last : v);
}

static void count(struct out *o, const char *name, uint64_t v)
{
    count2(o, name, "", v);
}

static void api_group(struct out *o, const char *name, enum vm_api_kind kind)
{
    open_group(o, "", name);
    for (size_t i = 0; i < ARRAY_SIZE(api); i++) {
        if (!(api[i].kinds & 1u << kind))
            continue;
        count2(o, api[i].name, "_count", o->m->api[kind][i][0]);
        if (kind != API_GET)
            count2(o, api[i].name, "_fails", o->m->api[kind][i][1]);
    }
    close_group(o);
}

static void legacy_groups(struct out *o, const struct metrics_sources *s)
{
    struct i8042 *k = s->i8042;
    struct serial *u = s->serial;
    open_group(o, "", "i8042");
    count(o, "error_count", k->errors);
    count(o, "missed_read_count", k->missed_reads);
    count(o, "missed_write_count", k->missed_writes);
    count(o, "read_count", k->reads);
    count(o, "reset_count", k->resets);
    count(o, "write_count", k->writes);
    close_group(o);
    open_group(o, "", "uart");
    count(o, "error_count", u->errors);
    count(o, "missed_read_count", u->missed_reads);
    count(o, "missed_write_count", u->missed_writes);
    count(o, "read_count", u->reads);
    count(o, "write_count", u->writes);
    count(o, "lost_byte_count", u->lost);
    count(o, "rate_limiter_dropped_bytes", u->rate_limited);
    close_group(o);
}

static void vcpu_group(struct out *o, const struct metrics_sources *s)
{
    uint64_t in = 0, ex = 0, rd = 0, wr = 0, bad = 0;
    for (unsigned i = 0; i < s->nvcpus; i++) {
        in += s->vcpu[i].n_pio_in;
        ex += s->vcpu[i].n_pio_out;
        rd += s->vcpu[i].n_mmio_read;
        wr += s->vcpu[i].n_mmio_write;
        bad += s->vcpu[i].n_failures;
    }
    open_group(o, "", "vcpu");
    count(o, "exit_io_in", in);
    count(o, "exit_io_out", ex);
    count(o, "exit_mmio_read", rd);
    count(o, "exit_mmio_write", wr);
    count(o, "failures", bad);
    count(o, "kvmclock_ctrl_fails", o->m->kvmclock_ctrl_fails);
    close_group(o);
}

static void monitor_groups(struct out *o, const struct metrics_sources *s)
{
    struct vm_metrics *m = o->m;
    open_group(o, "", "logger");
    count(o, "missed_metrics_count", m->dropped);
    count(o, "metrics_fails", m->failed);
    count(o, "missed_log_count", s->log->missed);
    count(o, "rate_limited_log_count", s->log->limited);
    close_group(o);
    // A denied system call and these signals end the process, so a line that can be read says 0.
    put(o, ",\"seccomp\":{\"num_faults\":0},\"vmm\":{\"panic_count\":0},\"signals\":{\"sigbus\":0,"
           "\"sigsegv\":0,\"sigxfsz\":0,\"sigxcpu\":0,\"sigpipe\":0,\"sighup\":0,\"sigill\":0}");
    open_group(o, "", "interrupts");
    count(o, "triggers", m->irqs);
    close_group(o);
    uint64_t faults = 0;
    for (unsigned i = 0; i < s->ndevs; i++)
        faults += s->dev[i].faults;
    open_group(o, "", "mayfly");
    value(o, "guest_ready_us", "", m->guest_ready_us);
    count(o, "guest_faults", faults);
    count(o, "stalled_vcpus", m->stalled_vcpus);
    count(o, "unmapped_mmio", m->unmapped_mmio);
    count(o, "msi_fails", m->msi_failed);
    count(o, "snapshots", m->snapshots);
    count(o, "restores", m->restores);
    count(o, "migrations", m->migrations);
    close_group(o);
}

static uint64_t counter(const void *base, size_t off)
{
    return base ? atomic_load((const _Atomic uint64_t *)((const char *)base + off)) : 0;
}

static void device_sum(struct out *o, const struct metrics_sources *s, bool blk)
{
    const struct field *f = blk ? blk_fields : net_fields;
    size_t n = blk ? ARRAY_SIZE(blk_fields) : ARRAY_SIZE(net_fields);
    open_group(o, "", blk ? "block" : "net");
    for (size_t i = 0; i < n; i++) {
        uint64_t sum = 0;
        for (unsigned d = 0; d < s->ndevs; d++)
            sum += counter(blk ? (void *)s->dev[d].blk : (void *)s->dev[d].net, f[i].off);
        count(o, f[i].name, sum);
    }
    close_group(o);
}

static void device(struct out *o, const struct metrics_device *d)
{
    const struct field *f = d->blk ? blk_fields : net_fields;
    size_t n = d->blk ? ARRAY_SIZE(blk_fields) : ARRAY_SIZE(net_fields);
    open_group(o, d->blk ? "block_" : "net_", d->id);
    for (size_t i = 0; i < n; i++)
        count(o, f[i].name, counter(d->blk ? (void *)d->blk : (void *)d->net, f[i].off));
    count(o, "guest_faults", d->faults);
    close_group(o);
}

int metrics_format(struct vm_metrics *m, const struct metrics_sources *s, char *buf, size_t size)
{
    struct out o = {.m = m, .buf = buf, .size = size};
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    put(&o, "{\"utc_timestamp_ms\":%lld", (long long)t.tv_sec * 1000 + t.tv_nsec / 1000000);
    if (s->id)
        put(&o, ",\"id\":\"%s\"", s->id);
    open_group(&o, "", "api_server");
    value(&o, "process_startup_time_us", "", m->startup_us);
    value(&o, "process_startup_time_cpu_us", "", m->startup_cpu_us);
    close_group(&o);
    open_group(&o, "", "latencies_us");
    for (size_t i = 0; i < LAT_COUNT; i++)
        value(&o, latency[i], "", m->latency_us[i]);
    close_group(&o);
    api_group(&o, "get_api_requests", API_GET);
    api_group(&o, "put_api_requests", API_PUT);
    api_group(&o, "patch_api_requests", API_PATCH);
    legacy_groups(&o, s);
    vcpu_group(&o, s);
    monitor_groups(&o, s);
    device_sum(&o, s, true);
    device_sum(&o, s, false);
    // Devices come last: a counter's place in the line must not move when they appear.
    for (unsigned i = 0; i < s->ndevs; i++)
        device(&o, &s->dev[i]);
    put(&o, "}\n");
    return o.full ? -E2BIG : (int)o.len;
}

void metrics_shown(struct vm_metrics *m)
{
    memcpy(m->last, m->next, sizeof(m->last));
}

// Sends what is left of m->line. A FIFO may take a part, since a line is longer than PIPE_BUF.
static int send_rest(struct vm_metrics *m, int fd)
{
    ssize_t n = fd_write(fd, m->line + m->line_sent, m->line_len - m->line_sent);
    if (n < 0)
        return -errno;
    m->line_sent += (size_t)n;
    return m->line_sent == m->line_len ? 0 : -EAGAIN;
}

int metrics_write(struct vm_metrics *m, const struct metrics_sources *s, int fd)
{
    int rc = m->line_sent < m->line_len ? send_rest(m, fd) : 0;
    if (rc == 0) {
        m->line_len = m->line_sent = 0;
        int n = metrics_format(m, s, m->line, sizeof(m->line));
        if (n < 0) {
            m->failed++;
            return n;
        }
        m->line_len = (size_t)n;
        rc = send_rest(m, fd);
        if (m->line_sent) { // it will be shown, if in two parts
            metrics_shown(m);
            return 0;
        }
        m->line_len = 0;
    }
    if (rc == -EAGAIN)
        m->dropped++;
    else
        m->failed++;
    return rc;
}
