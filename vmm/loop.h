// SPDX-License-Identifier: Apache-2.0
// The device thread and its one io_uring: readiness, timers, slow I/O, and calls from other
// threads.
//
// The ring is created disabled and restricted to six opcodes on registered files, because ring
// operations bypass seccomp; the device thread enables it and is its only issuer. Sources are
// registered before the thread starts or through loop_call; everything marked (D) runs on, or may
// be called from, the device thread only (the control thread counts as it before loop_start).
// Source: io_uring_setup(2), io_uring_register(2).
#ifndef VMM_LOOP_H
#define VMM_LOOP_H

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>

#include "virtio/virtio.h"
#include "vmm/config.h"

#define LOOP_FILES    64
#define LOOP_TIMERS   (CFG_MAX_DEVS + 3)
#define LOOP_INFLIGHT 256u // requests on the ring; more are told -EBUSY

enum loop_kind { LOOP_KICK = 1, LOOP_READY, LOOP_WAKE, LOOP_IGNORE }; // what a completion is about

// user_data of a poll; odd, so that it is never a vio_io's address.
static inline uint64_t loop_tag(enum loop_kind k, unsigned slot, int file)
{
    return 1u | (uint64_t)k << 1 | (uint64_t)slot << 8 | (uint64_t)(unsigned)file << 16;
}

struct loop_ops {
    void (*kick)(void *ctx, unsigned slot);                 // (D) an ioeventfd fired, or loop_again
    void (*ready)(void *ctx, unsigned slot);                // (D) a one-shot poll fired
    void (*timer)(void *ctx, unsigned slot, uint64_t now);  // (D)
    void (*io_done)(void *ctx, struct vio_io *io, int res); // (D)
    void (*serial)(void *ctx);                              // (D) loop_serial was called
    int (*started)(void *ctx);                              // first thing on the thread: its filter
    void (*failed)(void *ctx, const char *text);            // the ring broke: the VM cannot go on
};

struct loop {
    struct io_uring ring;
    bool ring_made, running;
    pthread_t thread;
    int wake_fd;
    const struct loop_ops *ops;
    void *ctx;
    int files[LOOP_FILES];         // descriptor behind each fixed file, -1: free; not owned
    uint64_t poll_tag[LOOP_FILES]; // the poll in flight on it, 0: none
    struct {
        bool on;       // asked for
        uint8_t vain;  // waits in vain since the last one that was worth it
        uint16_t skip; // events to let pass before the next
    } linger[LOOP_FILES];
    int heard; // the last event of this round after which to linger: its file, or -1
    unsigned inflight;
    uint64_t deadline[LOOP_TIMERS];
    uint32_t local;         // slots to kick again, set by the device thread itself
    _Atomic uint32_t again; // the same, set by others
    _Atomic uint32_t bits;  // LOOP_BIT_*
    pthread_mutex_t call_lock;
    pthread_cond_t call_cond;
    int (*call_fn)(void *);
    void *call_arg;
    int call_rc;
    bool call_pending, call_retry, dead;
};

// Makes the ring, disabled and restricted, and the wake-up eventfd. A host that forbids io_uring
// gets one clear line.
int loop_init(struct loop *l, const struct loop_ops *ops, void *ctx, struct err *e);
int loop_start(struct loop *l, struct err *e); // starts the device thread
// Ends the thread, cancels polls, empties the file table and leaves the ring, so that taps and
// locks are free at once for a successor.
void loop_end(struct loop *l);

struct io_uring_sqe *loop_sqe(struct loop *l); // (D) a free entry; NULL: the kernel takes none now
int loop_file_add(struct loop *l, int fd);     // (D) fixed-file index or -errno
// Before the VM runs, without a wake-up for each: the control thread takes indices out of the upper
// half of the table, and the device thread gives the ring all of them at once.
int loop_file_hold(struct loop *l, int fd);
int loop_files_put(struct loop *l); // (D)
void loop_file_del(struct loop *l, int file);
void loop_watch(struct loop *l, int file,
                unsigned slot); // (D) an eventfd that kicks slot, for ever
// (D) After an event of this file wait for the next event, whatever it is, awake for a moment: for what is
// answered or followed within microseconds. loop_file_del forgets it.
void loop_linger(struct loop *l, int file);
void loop_poll(struct loop *l, int file, unsigned slot, uint32_t mask); // (D) one shot
int loop_io(struct loop *l, struct vio_io *io);                         // (D) 0 or -EBUSY
void loop_timer(struct loop *l, unsigned slot, uint64_t at_ns);         // (D) 0 disarms

void loop_again(struct loop *l, unsigned slot); // any thread: kick slot soon
void loop_serial(struct loop *l);               // any thread: ops->serial soon

// Runs fn(arg) on the device thread (at once when that is the caller) and waits. -EAGAIN from fn means: again after the next
// completions.
int loop_call(struct loop *l, int (*fn)(void *), void *arg);

#endif
