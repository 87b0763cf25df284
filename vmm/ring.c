// SPDX-License-Identifier: Apache-2.0
// Makes the device thread's io_uring: disabled, restricted, with an empty table of registered
// files.
#include "vmm/loop.h"

#include <sys/eventfd.h>

#define SQ_ENTRIES 128

// IOSQE_FIXED_FILE is both allowed and required: the ring reaches registered files and nothing
// else.
static int restrict_ring(struct io_uring *r)
{
    static const uint8_t ops[] = {IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE, IORING_OP_READV,
                                  IORING_OP_WRITEV,   IORING_OP_FSYNC,       IORING_OP_FALLOCATE};
    struct io_uring_restriction res[ARRAY_SIZE(ops) + 4] = {0};
    unsigned n = 0;

    for (; n < ARRAY_SIZE(ops); n++) {
        res[n].opcode = IORING_RESTRICTION_SQE_OP;
        res[n].sqe_op = ops[n];
    }
    res[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    res[n++].sqe_flags = IOSQE_FIXED_FILE;
    res[n].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
    res[n++].sqe_flags = IOSQE_FIXED_FILE;
    res[n].opcode = IORING_RESTRICTION_REGISTER_OP;
    res[n++].register_op = IORING_REGISTER_FILES_UPDATE;
    res[n].opcode = IORING_RESTRICTION_REGISTER_OP;
    res[n++].register_op = IORING_UNREGISTER_FILES;
    return io_uring_register_restrictions(r, res, n);
}

static int make_ring(struct loop *l)
{
    // Newest first: completions run only when the thread asks for them, which spares it
    // interruptions.
    static const unsigned tries[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                         IORING_SETUP_TASKRUN_FLAG,
                                     IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, 0};
    int rc = -EINVAL;

    for (unsigned i = 0; i < ARRAY_SIZE(tries) && rc == -EINVAL; i++) {
        struct io_uring_params p = {.flags =
                                        tries[i] | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE,
                                    .cq_entries = 4 * SQ_ENTRIES};
        rc = io_uring_queue_init_params(SQ_ENTRIES, &l->ring, &p);
    }
    return rc;
}

// #syscalls:boot io_uring_setup io_uring_register eventfd2
int loop_init(struct loop *l, const struct loop_ops *ops, void *ctx, struct err *e)
{
    memset(l, 0, sizeof(*l));
    l->ops = ops;
    l->ctx = ctx;
    l->heard = -1;
    l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->wake_fd < 0)
        return err_set(e, errno, "eventfd: %s", strerror(errno));
    int rc = make_ring(l);
    if (rc < 0)
        return err_set(e, -rc, "this host gives no io_uring (%s): see %s", strerror(-rc),
                       rc == -ENOMEM ? "RLIMIT_MEMLOCK, which counts for all of a user's processes"
                                     : "kernel.io_uring_disabled and seccomp");
    l->ring_made = true;
    unsigned workers[2] = {4, 4}; // io-wq threads count against pids and NPROC limits
    for (unsigned i = 0; i < LOOP_FILES; i++)
        l->files[i] = -1;
    rc = io_uring_register_iowq_max_workers(&l->ring, workers);
    if (rc == 0)
        rc = io_uring_register_files_sparse(&l->ring, LOOP_FILES);
    if (rc == 0)
        rc = restrict_ring(&l->ring);
    if (rc < 0)
        return err_set(e, -rc, "cannot restrict the io_uring: %s", strerror(-rc));
    pthread_mutex_init(&l->call_lock, NULL);
    pthread_cond_init(&l->call_cond, NULL);
    return 0;
}

// A full submission queue is emptied into the kernel first; it never stays full.
struct io_uring_sqe *loop_sqe(struct loop *l)
{
    struct io_uring_sqe *s = io_uring_get_sqe(&l->ring);
    if (!s) {
        io_uring_submit(&l->ring);
        s = io_uring_get_sqe(&l->ring);
    }
    return s;
}

// #syscalls:device io_uring_register(IORING_REGISTER_FILES_UPDATE@RING)
int loop_file_add(struct loop *l, int fd)
{
    for (int i = 0; i < LOOP_FILES; i++) {
        if (l->files[i] != -1)
            continue;
        int rc = io_uring_register_files_update(&l->ring, (unsigned)i, &fd, 1);
        if (rc < 0)
            return rc;
        l->files[i] = fd;
        l->poll_tag[i] = 0;
        return i;
    }
    return -ENFILE;
}

// The poll is cancelled before the file goes, or its reference would keep a tap busy.
void loop_file_del(struct loop *l, int file)
{
    int none = -1;

    if (!l->ring_made || file < 0 || file >= LOOP_FILES || l->files[file] == -1)
        return;
    struct io_uring_sqe *s = l->poll_tag[file] ? loop_sqe(l) : NULL;
    if (s) {
        io_uring_prep_poll_remove(s, l->poll_tag[file]);
        io_uring_sqe_set_flags(s, IOSQE_FIXED_FILE);
        io_uring_sqe_set_data64(s, loop_tag(LOOP_IGNORE, 0, 0));
        io_uring_submit_and_get_events(&l->ring);
    }
    io_uring_register_files_update(&l->ring, (unsigned)file, &none, 1);
    l->files[file] = -1;
    l->poll_tag[file] = 0;
    l->linger[file].on = false;
}
