// SPDX-License-Identifier: Apache-2.0
// The device thread: one restricted io_uring, waited on with one syscall per round.
#include "vmm/loop.h"

#include <limits.h>
#include <poll.h>

#define DEVICE_STACK (64 * KIB)
#define LINGER_NS    50000u
#define LINGER_VAIN  10u // log2 of the most events to let pass after lingering in vain

enum { BIT_CALL = 1, BIT_SERIAL = 2, BIT_QUIT = 4, BIT_AGAIN = 8 };

static void add_poll(struct loop *l, int file, uint64_t data, uint32_t mask, bool multi)
{
    struct io_uring_sqe *s = loop_sqe(l);
    if (!s)
        return;
    if (multi)
        io_uring_prep_poll_multishot(s, file, mask);
    else
        io_uring_prep_poll_add(s, file, mask);
    io_uring_sqe_set_flags(s, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data64(s, data);
    l->poll_tag[file] = data;
}

int loop_file_hold(struct loop *l, int fd)
{
    for (int i = LOOP_FILES / 2; i < LOOP_FILES; i++) {
        if (l->files[i] != -1)
            continue;
        l->files[i] = fd;
        l->poll_tag[i] = 0;
        return i;
    }
    return -ENFILE;
}

int loop_files_put(struct loop *l)
{
    int *half = l->files + LOOP_FILES / 2;
    return MIN(io_uring_register_files_update(&l->ring, LOOP_FILES / 2, half, LOOP_FILES / 2), 0);
}

void loop_linger(struct loop *l, int file)
{
    l->linger[file].on = true;
    l->linger[file].vain = 0;
    l->linger[file].skip = 0;
}

void loop_watch(struct loop *l, int file, unsigned slot)
{
    add_poll(l, file, loop_tag(LOOP_KICK, slot, file), POLLIN, true);
}

void loop_poll(struct loop *l, int file, unsigned slot, uint32_t mask)
{
    if (!l->poll_tag[file])
        add_poll(l, file, loop_tag(LOOP_READY, slot, file), mask, false);
}

int loop_io(struct loop *l, struct vio_io *io)
{
    struct io_uring_sqe *s = l->inflight < LOOP_INFLIGHT ? loop_sqe(l) : NULL;
    if (!s)
        return -EBUSY;
    switch (io->op) {
    case VIO_IO_READV:
        io_uring_prep_readv2(s, io->file, io->iov, io->niov, io->off, (int)io->flags);
        break;
    case VIO_IO_WRITEV:
        io_uring_prep_writev2(s, io->file, io->iov, io->niov, io->off, (int)io->flags);
        break;
    case VIO_IO_FSYNC:
        io_uring_prep_fsync(s, io->file, io->flags);
        break;
    case VIO_IO_FALLOCATE:
        io_uring_prep_fallocate(s, io->file, (int)io->flags, (off_t)io->off, (off_t)io->len);
        break;
    }
    io_uring_sqe_set_flags(s, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(s, io);
    l->inflight++;
    return 0;
}

void loop_timer(struct loop *l, unsigned slot, uint64_t at_ns)
{
    l->deadline[slot] = at_ns;
}

// One write per transition: whoever finds the bit set knows that a wake-up is on its way.
// #syscalls:vcpu pwritev2(0)
// #syscalls:control pwritev2(0)
static void wake(struct loop *l, uint32_t bit)
{
    uint64_t one = 1;

    if (!(atomic_fetch_or(&l->bits, bit) & bit) && fd_write(l->wake_fd, &one, sizeof(one)) < 0)
        return; // EAGAIN: the counter is full, so the thread is awake already
}

static bool on_thread(const struct loop *l)
{
    return l->running && pthread_equal(pthread_self(), l->thread);
}

void loop_again(struct loop *l, unsigned slot)
{
    if (on_thread(l)) {
        l->local |= 1u << slot;
        return;
    }
    atomic_fetch_or(&l->again, 1u << slot);
    wake(l, BIT_AGAIN);
}

void loop_serial(struct loop *l)
{
    wake(l, BIT_SERIAL);
}

int loop_call(struct loop *l, int (*fn)(void *), void *arg)
{
    if (!l->running || on_thread(l))
        return fn(arg);
    pthread_mutex_lock(&l->call_lock);
    l->call_fn = fn;
    l->call_arg = arg;
    l->call_pending = true;
    wake(l, BIT_CALL);
    while (l->call_pending && !l->dead)
        pthread_cond_wait(&l->call_cond, &l->call_lock);
    int rc = l->call_pending ? -EIO : l->call_rc;
    l->call_pending = false;
    pthread_mutex_unlock(&l->call_lock);
    return rc;
}

// The caller sleeps with call_pending set, so fn and arg are stable without the lock.
static void try_call(struct loop *l)
{
    int rc = l->call_fn(l->call_arg);
    l->call_retry = rc == -EAGAIN;
    if (l->call_retry)
        return;
    pthread_mutex_lock(&l->call_lock);
    l->call_rc = rc;
    l->call_pending = false;
    pthread_cond_signal(&l->call_cond);
    pthread_mutex_unlock(&l->call_lock);
}

static void on_cqe(struct loop *l, const struct io_uring_cqe *c)
{
    uint64_t d = c->user_data;

    if (!(d & 1)) {
        l->inflight--;
        l->ops->io_done(l->ctx, io_uring_cqe_get_data(c), c->res);
        return;
    }
    enum loop_kind kind = (enum loop_kind)(d >> 1 & 7);
    unsigned slot = (unsigned)(d >> 8) & 0xff;
    int file = (int)(d >> 16);
    bool live = file >= 0 && file < LOOP_FILES && l->files[file] != -1;
    if (kind == LOOP_IGNORE || !live || c->res == -ECANCELED)
        return;
    if (!(c->flags & IORING_CQE_F_MORE))
        l->poll_tag[file] = 0;
    if (l->linger[file].on)
        l->heard = file;
    if (kind == LOOP_READY) {
        l->ops->ready(l->ctx, slot);
        return;
    }
    // An overflowing completion queue ends a multishot poll: take it up again.
    if (!(c->flags & IORING_CQE_F_MORE) && c->res >= 0)
        add_poll(l, file, d, POLLIN, true);
    if (kind == LOOP_KICK)
        l->local |= 1u << slot;
}

static void run_local(struct loop *l)
{
    uint32_t todo = l->local | atomic_exchange(&l->again, 0);

    l->local = 0;
    while (todo) {
        unsigned slot = (unsigned)__builtin_ctz(todo);
        todo &= todo - 1;
        l->ops->kick(l->ctx, slot);
    }
}

// Fires what is due; returns the next deadline, 0 for none.
static uint64_t run_timers(struct loop *l)
{
    uint64_t next = 0, now = 0;

    for (unsigned i = 0; i < LOOP_TIMERS; i++) {
        if (!l->deadline[i])
            continue;
        if (!now)
            now = now_ns();
        if (l->deadline[i] <= now) {
            l->deadline[i] = 0;
            l->ops->timer(l->ctx, i, now);
        }
        if (l->deadline[i] && (!next || l->deadline[i] < next))
            next = l->deadline[i];
    }
    return next;
}

static bool pending(const struct loop *l)
{
    return io_uring_cq_ready(&l->ring) ||
           (IO_URING_READ_ONCE(*l->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) ||
           atomic_load_explicit(&l->bits, memory_order_relaxed);
}

// A packet is often followed by its answer within microseconds, less than two wake-ups take. So this thread
// stays awake for a moment after one. Each time in vain doubles the number of events after which it does not
// try, so that traffic of another rhythm, or a guest that has no processor while this thread has one, costs
// next to nothing; silence costs nothing.
static bool linger(struct loop *l)
{
    int f = l->heard;

    l->heard = -1;
    if (l->linger[f].skip > 0) {
        l->linger[f].skip--;
        return false;
    }
    if (io_uring_sq_ready(&l->ring))
        io_uring_submit(&l->ring);
    const uint64_t end = now_ns() + LINGER_NS;
    do {
        for (unsigned i = 0; i < 32; i++) {
            if (pending(l)) {
                l->linger[f].vain = 0;
                return true;
            }
            __builtin_ia32_pause();
        }
    } while (now_ns() < end);
    if (l->linger[f].vain < LINGER_VAIN)
        l->linger[f].vain++;
    l->linger[f].skip = (uint16_t)(1u << l->linger[f].vain);
    return false;
}

// #syscalls:device io_uring_enter(@RING)
static int wait_events(struct loop *l, uint64_t next)
{
    struct io_uring_cqe *c;
    struct __kernel_timespec ts, *t = NULL;
    int rc;

    if (l->local || atomic_load(&l->again) || (atomic_load(&l->bits) & ~(uint32_t)BIT_CALL) ||
        (l->heard >= 0 && linger(l))) {
        rc = io_uring_submit_and_get_events(&l->ring);
    } else {
        if (next) {
            uint64_t now = now_ns(), left = next > now ? next - now : 1;
            ts.tv_sec = (long long)(left / NSEC_PER_SEC);
            ts.tv_nsec = (long long)(left % NSEC_PER_SEC);
            t = &ts;
        }
        rc = io_uring_submit_and_wait_timeout(&l->ring, &c, 1, t, NULL);
    }
    return rc == -ETIME || rc == -EINTR || rc == -EAGAIN || rc == -EBUSY ? 0 : MIN(rc, 0);
}

static int round_trip(struct loop *l)
{
    uint32_t bits = atomic_exchange(&l->bits, 0);
    unsigned head, n = 0;
    struct io_uring_cqe *c;

    if (bits & BIT_QUIT)
        return 1;
    if (bits & BIT_SERIAL)
        l->ops->serial(l->ctx);
    if ((bits & BIT_CALL) || l->call_retry)
        try_call(l);
    run_local(l);
    int rc = wait_events(l, run_timers(l));
    if (rc < 0)
        return rc;
    io_uring_for_each_cqe(&l->ring, head, c)
    {
        on_cqe(l, c);
        n++;
    }
    io_uring_cq_advance(&l->ring, n);
    return 0;
}

// At the end all files leave in one call that waits until they are gone. Taken out one by one, Linux 6.1 puts
// them up to a second later, and a successor finds tap and disk in use; so it does where a poll holds one.
// #syscalls:device io_uring_register(IORING_UNREGISTER_FILES@RING)
static void drop_files(struct loop *l)
{
    for (int i = 0; i < LOOP_FILES; i++) {
        struct io_uring_sqe *s = l->files[i] != -1 && l->poll_tag[i] ? loop_sqe(l) : NULL;
        if (!s)
            continue;
        io_uring_prep_poll_remove(s, l->poll_tag[i]);
        io_uring_sqe_set_flags(s, IOSQE_FIXED_FILE);
        io_uring_sqe_set_data64(s, loop_tag(LOOP_IGNORE, 0, 0));
    }
    io_uring_submit_and_get_events(&l->ring);
    io_uring_unregister_files(&l->ring);
    for (int i = 0; i < LOOP_FILES; i++) {
        l->files[i] = -1;
        l->poll_tag[i] = 0;
    }
}

// #syscalls:device futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE) pwritev2(0) rt_sigprocmask exit
static void *device_main(void *arg)
{
    struct loop *l = arg;
    int rc =
        io_uring_enable_rings(&l->ring); // before the filter: this thread becomes the only issuer

    if (rc == 0)
        rc = loop_file_add(l, l->wake_fd);
    if (rc >= 0) {
        add_poll(l, rc, loop_tag(LOOP_WAKE, 0, rc), POLLIN, true);
        rc = l->ops->started(l->ctx);
    }
    while (rc == 0)
        rc = round_trip(l);
    if (rc >= 0)
        drop_files(l);
    if (rc < 0) {
        pthread_mutex_lock(&l->call_lock);
        l->dead = true; // whoever waits for a call must not wait for ever
        pthread_cond_signal(&l->call_cond);
        pthread_mutex_unlock(&l->call_lock);
        l->ops->failed(l->ctx, strerror(-rc));
    }
    thread_end();
}

// #syscalls:config io_uring_register(IORING_REGISTER_ENABLE_RINGS@RING) clone(THREAD) mmap(!PROT_EXEC) mprotect(!PROT_EXEC)
int loop_start(struct loop *l, struct err *e)
{
    pthread_attr_t a;

    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, MAX(DEVICE_STACK, (size_t)PTHREAD_STACK_MIN));
    l->running = true;
    int rc = pthread_create(&l->thread, &a, device_main, l);
    pthread_attr_destroy(&a);
    if (rc) {
        l->running = false;
        return err_set(e, rc, "cannot start the device thread: %s", strerror(rc));
    }
    return 0;
}

// #syscalls:control munmap close
void loop_end(struct loop *l)
{
    if (l->running) {
        wake(l, BIT_QUIT);
        pthread_join(l->thread, NULL);
        l->running = false;
    }
    if (l->ring_made)
        io_uring_queue_exit(&l->ring);
    l->ring_made = false;
    close_fdp(&l->wake_fd);
    l->wake_fd = -1;
}
