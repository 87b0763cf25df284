// SPDX-License-Identifier: Apache-2.0
// struct mig_io on real sockets, memory and files. All of it on the helper thread.
//
// #syscalls:helper poll close preadv2(0) pwritev2(0) fsync fcntl(F_OFD_SETLK) madvise(MADV_DONTNEED, MADV_POPULATE_WRITE)
#include <fcntl.h>
#include <sys/mman.h>

#include "snapshot/mig_os.h"
#include "snapshot/mig_sock.h"
#include "vmm/mem/uffd.h"

#ifndef MADV_POPULATE_WRITE // Linux 5.14; musl lacks it
#define MADV_POPULATE_WRITE 23
#endif

static long os_send(void *c, enum mig_ch ch, const struct iovec *v, int n)
{
    return mig_sock_send(((struct mig_run *)c)->fd[ch], v, n);
}

static long os_recv(void *c, enum mig_ch ch, void *buf, size_t n)
{
    return mig_sock_recv(((struct mig_run *)c)->fd[ch], buf, n);
}

static void os_hangup(void *c)
{
    mig_sock_close(((struct mig_run *)c)->fd);
}

static bool os_reconnect(void *c)
{
    struct mig_run *r = c;

    if (!atomic_load(&r->brought))
        return false;
    os_hangup(r);
    memcpy(r->fd, r->next, sizeof(r->fd));
    atomic_store(&r->brought, false);
    return true;
}

static unsigned os_wait(void *c, unsigned want, uint64_t until)
{
    struct mig_run *r = c;
    struct pollfd p[4] = {[2] = {.fd = want & MIG_EV_FAULT ? r->uffd : -1, .events = POLLIN},
                          [3] = {.fd = vm_helper_fd(r->vm), .events = POLLIN}};
    uint64_t now = now_ns(), ms = until > now ? (until - now + MIG_MS - 1) / MIG_MS : 0;

    mig_sock_want(p, r->fd, want);
    if (poll(p, ARRAY_SIZE(p), until == UINT64_MAX ? -1 : (int)MIN(ms, 60000)) <= 0)
        return 0;
    if (p[3].revents)
        vm_helper_awake(r->vm);
    return mig_sock_came(p) | (p[2].revents ? MIG_EV_FAULT : 0u) |
           (p[3].revents ? MIG_EV_CALLED : 0u);
}

static uint64_t os_now(void *c)
{
    (void)c;
    return now_ns();
}

static int os_dirty(void *c, uint64_t *bits)
{
    struct mig_run *r = c;
    return vm_dirty_fetch(r->vm, bits, &r->m.e);
}

// Nobody has a view of these pages yet: KVM and devices come with the restore.
static int os_arm(void *c, const uint64_t *absent)
{
    struct mig_run *r = c;

    if (r->uffd < 0)
        return -ENODEV;
    for (uint64_t p = 0, n, len; (n = pages_run(absent, r->m.npages, &p)); p += n) {
        uint8_t *at = pages_at(r->m.mem, p * PAGE_SIZE, &len);
        n = MIN(n, len / PAGE_SIZE);
        if (madvise(at, n * PAGE_SIZE, MADV_DONTNEED))
            return -errno;
    }
    return uffd_register(r->uffd, r->m.mem);
}

static void os_disarm(void *c)
{
    struct mig_run *r = c;
    uffd_unregister(r->uffd, r->m.mem);
}

static int os_place(void *c, uint64_t page, uint64_t n, const void *data)
{
    struct mig_run *r = c;
    uint64_t len;

    if (r->m.armed)
        return uffd_place(r->uffd, r->m.mem, page, n, data);
    for (uint64_t done = 0; done < n * PAGE_SIZE; done += len) {
        uint8_t *at = pages_at(r->m.mem, page * PAGE_SIZE + done, &len);
        len = MIN(len, n * PAGE_SIZE - done);
        if (n > 1) // in place of a fault for each page; a kernel that cannot leaves it at those
            madvise(at, len, MADV_POPULATE_WRITE);
        if (data)
            memcpy(at, (const uint8_t *)data + done, len);
        else
            memset(at, 0, len);
    }
    return 0;
}

static int os_fault(void *c, uint64_t *page)
{
    struct mig_run *r = c;
    return uffd_next(r->uffd, r->m.mem, page);
}

static int os_call(void *c, enum mig_call what)
{
    struct mig_run *r = c;

    r->what = what;
    r->call_err.msg[0] = 0;
    vm_ask(r->vm, mig_on_control, r);
    return 0;
}

static int os_called(void *c)
{
    struct mig_run *r = c;
    int rc = vm_asked(r->vm);

    if (rc && rc != -EAGAIN && !r->m.e.msg[0])
        r->m.e = r->call_err;
    return rc;
}

// Locking waits a little for a peer that is at it, never for ever.
static int lock(int fd)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};

    for (int i = 0; i < 200; i++) {
        if (fcntl(fd, F_OFD_SETLK, &l) == 0)
            return 0;
        if (errno != EAGAIN && errno != EACCES)
            return -errno;
        poll(NULL, 0, 1);
    }
    return -EBUSY;
}

static int os_store(void *c, enum mig_store op, void *buf, size_t n, uint64_t at)
{
    struct mig_run *r = c;
    struct iovec v = {.iov_base = buf, .iov_len = n};
    struct flock un = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_len = 1};
    ssize_t k;

    switch (op) {
    case MIG_LOCK:
        return lock(r->arbiter);
    case MIG_UNLOCK:
        return fcntl(r->arbiter, F_OFD_SETLK, &un) ? -errno : 0;
    case MIG_READ:
        k = preadv2(r->arbiter, &v, 1, (off_t)at, 0);
        return k < 0 ? -errno : (int)k;
    case MIG_WRITE:
        k = pwritev2(r->arbiter, &v, 1, (off_t)at, 0);
        return k == (ssize_t)n ? 0 : k < 0 ? -errno : -ENOSPC;
    case MIG_SYNC:
        return fsync(r->arbiter) ? -errno : 0;
    }
    return -EINVAL;
}

const struct mig_io mig_os_io = {
    .send = os_send,
    .recv = os_recv,
    .hangup = os_hangup,
    .reconnect = os_reconnect,
    .wait = os_wait,
    .now = os_now,
    .dirty = os_dirty,
    .arm = os_arm,
    .disarm = os_disarm,
    .place = os_place,
    .fault = os_fault,
    .call = os_call,
    .called = os_called,
    .store = os_store,
};
