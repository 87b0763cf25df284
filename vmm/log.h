// SPDX-License-Identifier: Apache-2.0
// The log: one line per event, `TS [id:thread:LEVEL:file:line] msg`, never blocking its writer.
//
// Any thread may log. Lines go out in one write to a descriptor opened O_NONBLOCK; a full FIFO
// loses the line and counts it. A line that a guest can trigger must use LOG_GUEST, which lets 10
// lines per 5 s and call site through and tells, with the next line that passes, how many were left
// out.
#ifndef VMM_LOG_H
#define VMM_LOG_H

#include <pthread.h>
#include <stdatomic.h>

#include "vmm/config.h"

#define LOG_SITES   64
#define LOG_THREADS 40 // control, device, helpers, vCPUs

struct log_site { // one call site's budget, found by file and line
    const char *file;
    int line;
    uint64_t window_ns;
    unsigned passed;
    uint64_t held;
};

struct log_thread {
    pthread_t self;
    char name[16]; // empty: free
};

struct log {
    _Atomic int fd; // -1: standard output is not used, lines are dropped
    _Atomic int level;
    bool show_level, show_origin;
    char id[CFG_ID_MAX + 1];
    char module[64];      // only lines of files whose path begins so; empty: all
    pthread_mutex_t lock; // of everything but the atomics
    struct log_site site[LOG_SITES];
    struct log_thread thread[LOG_THREADS];
    _Atomic uint64_t missed, limited;
};

void log_init(struct log *l, const char *id, int fd);
// Names the calling thread, to the kernel and in its lines ("-" until then). Before the thread
// installs its own filter, which forbids prctl. A thread that ends keeps its entry until the name
// is taken again.
void log_thread(struct log *l, const char *name);
// fd: new destination (owned by the log, the old one is closed unless it is 1), or -1 to keep the
// old.
void log_configure(struct log *l, const struct logger_cfg *c, int fd);
__attribute__((format(printf, 6, 7))) void log_line(struct log *l, enum log_level lv, bool guest,
                                                    const char *file, int line, const char *fmt,
                                                    ...);

#define LOG_AT(l, lv, guest, ...)                                                 \
    do {                                                                          \
        if ((int)(lv) <= atomic_load_explicit(&(l)->level, memory_order_relaxed)) \
            log_line((l), (lv), (guest), __FILE__, __LINE__, __VA_ARGS__);        \
    } while (0)
#define LOG_E(l, ...)     LOG_AT(l, LOG_ERROR, false, __VA_ARGS__)
#define LOG_W(l, ...)     LOG_AT(l, LOG_WARN, false, __VA_ARGS__)
#define LOG_I(l, ...)     LOG_AT(l, LOG_INFO, false, __VA_ARGS__)
#define LOG_D(l, ...)     LOG_AT(l, LOG_DEBUG, false, __VA_ARGS__)
#define LOG_GUEST(l, ...) LOG_AT(l, LOG_WARN, true, __VA_ARGS__)

#endif
