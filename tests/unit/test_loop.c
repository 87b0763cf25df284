// SPDX-License-Identifier: Apache-2.0
// The device thread's loop: what its ring refuses, and that events, timers and calls arrive.
#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/utsname.h>

#include "vmm/loop.h"

struct seen {
    struct loop l;
    _Atomic unsigned kicks, readies, timers, serials, dones;
    _Atomic int res;
};

static void on_kick(void *ctx, unsigned slot)
{
    ck_assert_uint_eq(slot, 3);
    atomic_fetch_add(&((struct seen *)ctx)->kicks, 1);
}
static void on_ready(void *ctx, unsigned slot)
{
    (void)slot;
    atomic_fetch_add(&((struct seen *)ctx)->readies, 1);
}
static void on_timer(void *ctx, unsigned slot, uint64_t now)
{
    (void)slot;
    (void)now;
    atomic_fetch_add(&((struct seen *)ctx)->timers, 1);
}
static void on_done(void *ctx, struct vio_io *io, int res)
{
    struct seen *s = ctx;
    (void)io;
    atomic_store(&s->res, res);
    atomic_fetch_add(&s->dones, 1);
}
static void on_serial(void *ctx)
{
    atomic_fetch_add(&((struct seen *)ctx)->serials, 1);
}
static int on_start(void *ctx)
{
    (void)ctx;
    return 0;
}
static void on_failed(void *ctx, const char *text)
{
    (void)ctx;
    ck_abort_msg("the loop failed: %s", text);
}

static const struct loop_ops ops = {.kick = on_kick,
                                    .ready = on_ready,
                                    .timer = on_timer,
                                    .io_done = on_done,
                                    .serial = on_serial,
                                    .started = on_start,
                                    .failed = on_failed};

static bool ring_forbidden(const char *test)
{
    struct io_uring r;
    int rc = io_uring_queue_init(2, &r, 0);
    if (rc == 0)
        io_uring_queue_exit(&r);
    else
        printf("SKIP: %s: this host forbids io_uring (%s)\n", test, strerror(-rc));
    return rc != 0;
}

static struct seen *make(void)
{
    struct seen *s = calloc(1, sizeof(*s));
    struct err e = {0};
    ck_assert_msg(loop_init(&s->l, &ops, s, &e) == 0, "%s", e.msg);
    return s;
}

static void wait_for(_Atomic unsigned *n, unsigned want)
{
    for (int i = 0; i < 5000 && atomic_load(n) < want; i++)
        usleep(1000);
    ck_assert_uint_ge(atomic_load(n), want);
}

static int try_sqe(struct loop *l, int opcode, int fd, unsigned flags)
{
    struct io_uring_sqe *s = io_uring_get_sqe(&l->ring);
    struct io_uring_cqe *c;
    char byte;
    ck_assert_ptr_nonnull(s);
    io_uring_prep_rw(opcode, s, fd, &byte, 1, 0);
    io_uring_sqe_set_flags(s, flags);
    ck_assert_int_ge(io_uring_submit_and_wait(&l->ring, 1), 0);
    ck_assert_int_eq(io_uring_wait_cqe(&l->ring, &c), 0);
    int res = c->res;
    io_uring_cqe_seen(&l->ring, c);
    return res;
}

// Ring operations bypass seccomp, so the ring itself must refuse whatever the monitor does not need.
START_TEST(restricted)
{
    if (ring_forbidden("restricted"))
        return;
    struct seen *s = make();
    struct iovec v = {.iov_base = s, .iov_len = 1};
    ck_assert_int_eq(io_uring_enable_rings(&s->l.ring), 0);
    const int six[] = {IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE, IORING_OP_READV,
                       IORING_OP_WRITEV,   IORING_OP_FSYNC,       IORING_OP_FALLOCATE};
    unsigned allowed = 0;
    for (int op = 0; op < IORING_OP_LAST; op++) {
        bool ours = false;
        for (size_t i = 0; i < ARRAY_SIZE(six); i++)
            ours |= six[i] == op;
        int res = try_sqe(&s->l, op, LOOP_FILES - 1, IOSQE_FIXED_FILE);
        if (ours)
            ck_assert_int_ne(res, -EACCES);
        else
            ck_assert_msg(res == -EACCES || res == -EINVAL, "opcode %d: %d", op, res);
        allowed += res != -EACCES && res != -EINVAL;
    }
    ck_assert_uint_le(allowed, 6);
    // A descriptor that is not registered, by an allowed opcode.
    for (size_t i = 0; i < ARRAY_SIZE(six); i++)
        ck_assert_int_eq(try_sqe(&s->l, six[i], 0, 0), -EACCES);
    // Nothing more can be registered but files in the table that is there; they may leave it, as at the end.
    ck_assert_int_eq(io_uring_register_buffers(&s->l.ring, &v, 1), -EACCES);
    ck_assert_int_eq(io_uring_register_eventfd(&s->l.ring, s->l.wake_fd), -EACCES);
    ck_assert_int_eq(io_uring_unregister_files(&s->l.ring), 0);
    ck_assert_int_eq(io_uring_register_files_sparse(&s->l.ring, LOOP_FILES), -EACCES);
    loop_end(&s->l);
    free(s);
}
END_TEST

struct add {
    struct loop *l;
    int fd, file;
};

static int add_watch(void *arg)
{
    struct add *a = arg;
    a->file = loop_file_add(a->l, a->fd);
    ck_assert_int_ge(a->file, 0);
    loop_watch(a->l, a->file, 3);
    return 0;
}

static int add_poll(void *arg)
{
    struct add *a = arg;
    a->file = loop_file_add(a->l, a->fd);
    loop_poll(a->l, a->file, 5, POLLIN);
    return 0;
}

static int del_file(void *arg)
{
    struct add *a = arg;
    loop_file_del(a->l, a->file);
    return 0;
}

static int arm_timer(void *arg)
{
    loop_timer(arg, 7, now_ns() + 1000 * 1000);
    return 0;
}

static bool before_linux(unsigned major, unsigned minor)
{
    struct utsname u;
    unsigned a = 0, b = 0;
    return !uname(&u) && sscanf(u.release, "%u.%u", &a, &b) == 2 &&
           (a < major || (a == major && b < minor));
}

// An eventfd is watched for ever without being read; another poll is one shot.
START_TEST(events)
{
    if (ring_forbidden("events"))
        return;
    struct seen *s = make();
    struct err e = {0};
    ck_assert_int_eq(loop_start(&s->l, &e), 0);
    struct add bell = {.l = &s->l, .fd = eventfd(0, EFD_CLOEXEC)};
    ck_assert_int_eq(loop_call(&s->l, add_watch, &bell), 0);
    for (unsigned i = 1; i <= 50; i++) {
        ck_assert_int_eq(eventfd_write(bell.fd, 1), 0);
        wait_for(&s->kicks, i);
    }
    int p[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, p), 0);
    struct add once = {.l = &s->l, .fd = p[0]};
    loop_call(&s->l, add_poll, &once);
    ck_assert_int_eq(write(p[1], "x", 1), 1);
    wait_for(&s->readies, 1);
    ck_assert_int_eq(write(p[1], "x", 1), 1);
    loop_serial(&s->l);
    wait_for(&s->serials, 1);
    ck_assert_uint_eq(atomic_load(&s->readies), 1);
    loop_call(&s->l, arm_timer, &s->l);
    wait_for(&s->timers, 1);
    unsigned before = atomic_load(&s->kicks);
    loop_again(&s->l, 3);
    wait_for(&s->kicks, before + 1);
    loop_call(&s->l, del_file, &once);
    // Its last reference is ours now: the peer sees the end when we close it. Older kernels keep a file of the table
    // for as long as a request that is older than its removal, and the watch lasts to the end.
    struct pollfd peer = {.fd = p[1], .events = POLLIN};
    close(p[0]);
    ck_assert(before_linux(6, 13) || poll(&peer, 1, 5000) == 1);
    loop_end(&s->l);
    char c;
    ck_assert_int_eq(poll(&peer, 1, 5000), 1);
    ck_assert_int_le(recv(p[1], &c, 1, 0), 0);
    close(p[1]);
    close(bell.fd);
    free(s);
}
END_TEST

static struct vio_io io;
static struct iovec vec;

static int submit(void *arg)
{
    return loop_io(arg, &io);
}

static int thrice(void *arg)
{
    return ++*(int *)arg < 3 ? -EAGAIN : 42;
}

START_TEST(io_and_calls)
{
    if (ring_forbidden("io_and_calls"))
        return;
    struct seen *s = make();
    struct err e = {0};
    char path[] = "/tmp/test_loop.XXXXXX", text[8] = "loop";
    int fd = mkstemp(path), n = 0;
    ck_assert_int_eq(loop_start(&s->l, &e), 0);
    struct add a = {.l = &s->l, .fd = fd};
    loop_call(&s->l, add_poll, &a);
    vec = (struct iovec){.iov_base = text, .iov_len = 4};
    io = (struct vio_io){.op = VIO_IO_WRITEV, .file = a.file, .iov = &vec, .niov = 1};
    ck_assert_int_eq(loop_call(&s->l, submit, &s->l), 0);
    wait_for(&s->dones, 1);
    ck_assert_int_eq(atomic_load(&s->res), 4);
    memset(text, 0, sizeof(text));
    io.op = VIO_IO_READV;
    loop_call(&s->l, submit, &s->l);
    wait_for(&s->dones, 2);
    ck_assert_str_eq(text, "loop");
    io = (struct vio_io){.op = VIO_IO_FSYNC, .file = a.file};
    loop_call(&s->l, submit, &s->l);
    wait_for(&s->dones, 3);
    ck_assert_int_eq(atomic_load(&s->res), 0);
    // -EAGAIN: again after the next events; here the loop is nudged until the call is content.
    loop_serial(&s->l);
    loop_again(&s->l, 3);
    n = 2;
    ck_assert_int_eq(loop_call(&s->l, thrice, &n), 42);
    loop_end(&s->l);
    close(fd);
    unlink(path);
    free(s);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("loop");
    TCase *t = tcase_create("loop");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, restricted);
    tcase_add_test(t, events);
    tcase_add_test(t, io_and_calls);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int bad = srunner_ntests_failed(r);
    srunner_free(r);
    return bad ? 1 : 0;
}
