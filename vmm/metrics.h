// SPDX-License-Identifier: Apache-2.0
// Metrics: counters of the monitor, and one JSON line of everything, laid out as Firecracker's.
//
// Any thread counts (atomics). The control thread formats and writes. Counters run free; a line
// shows how far each has come since the last line that was written, so a lost line loses no count.
// Names that are Firecracker's mean what they mean there; what Mayfly does not count is absent
// rather than zero; group "mayfly" is Mayfly's own.
#ifndef VMM_METRICS_H
#define VMM_METRICS_H

#include <stdatomic.h>

#include "vmm/config.h"
#include "vmm/vm.h"

#define METRICS_LINE     16384 // longest line, newline included
#define METRICS_COUNTERS 512

struct blk_metrics;
struct net_metrics;
struct serial;
struct i8042;
struct log;
struct vcpu;

enum metrics_latency { // in microseconds, of the last time; names as in metrics.c
    LAT_FULL_SNAPSHOT,
    LAT_DIFF_SNAPSHOT,
    LAT_LOAD,
    LAT_PAUSE,
    LAT_RESUME,
    LAT_VMM_FULL_SNAPSHOT,
    LAT_VMM_DIFF_SNAPSHOT,
    LAT_VMM_LOAD,
    LAT_VMM_PAUSE,
    LAT_VMM_RESUME,
    LAT_COUNT,
};

#define METRICS_API 16 // requests told apart; see metrics.c

struct vm_metrics {
    _Atomic uint64_t api[3][METRICS_API][2]; // by enum vm_api_kind: answered, failed
    _Atomic uint64_t latency_us[LAT_COUNT];
    _Atomic uint64_t startup_us, startup_cpu_us; // process start to API socket, wall and CPU
    _Atomic uint64_t irqs, msi_failed;           // virtio interrupts; MSIs that KVM refused
    _Atomic uint64_t guest_ready_us;             // start or load to the ready port; 0: not yet
    _Atomic uint64_t unmapped_mmio, stalled_vcpus, kvmclock_ctrl_fails;
    _Atomic uint64_t snapshots, restores, migrations;
    _Atomic uint64_t dropped, failed; // lines a full FIFO did not take; other failures to write

    // Control thread alone.
    uint64_t last[METRICS_COUNTERS], next[METRICS_COUNTERS]; // by place in the line
    char line[METRICS_LINE];
    size_t line_len, line_sent; // a line that a FIFO took in part is finished before the next
};

struct metrics_device {
    const char *id;
    struct blk_metrics *blk; // or
    struct net_metrics *net;
    uint64_t faults; // guest faults so far
};

struct metrics_sources {
    const char *id; // of the microVM, or NULL: not shown
    struct serial *serial;
    struct i8042 *i8042;
    struct log *log;
    struct vcpu *vcpu;
    unsigned nvcpus, ndevs;
    struct metrics_device dev[CFG_MAX_DEVS]; // the same ones, in the same order, once started
};

// For vm_count_api: `what` is a name of metrics.c's table, or of a latency ("pause_vm"); others are
// not counted.
void metrics_count_api(struct vm_metrics *m, enum vm_api_kind kind, const char *what, bool failed,
                       uint64_t took_us);

// One line with its newline into buf. Returns its length, or -E2BIG. Counts as shown only when
// metrics_shown follows.
int metrics_format(struct vm_metrics *m, const struct metrics_sources *s, char *buf, size_t size);
void metrics_shown(struct vm_metrics *m);

// Formats and writes a line to fd, a file or a FIFO opened O_NONBLOCK, with one write. -EAGAIN: the
// FIFO is full and the line is dropped, to be told with the next.
int metrics_write(struct vm_metrics *m, const struct metrics_sources *s, int fd);

#endif
