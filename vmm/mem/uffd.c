// SPDX-License-Identifier: Apache-2.0
// userfaultfd over guest memory.
//
// #syscalls:config ioctl(USERFAULTFD_IOC_NEW@UFFD_DEV) ioctl(UFFDIO_API)
// #syscalls:helper ioctl(UFFDIO_REGISTER@UFFD, UFFDIO_UNREGISTER@UFFD, UFFDIO_COPY@UFFD)
// #syscalls:helper ioctl(UFFDIO_ZEROPAGE@UFFD, UFFDIO_WAKE@UFFD) preadv2(0)
#include "vmm/mem/uffd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

// Linux 6.1, which linux-libc-dev 6.1 lacks.
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

int uffd_open(int dev, struct err *e)
{
    struct uffdio_api api = {.api = UFFD_API};
    // Not user mode only: KVM and system calls touch guest memory in the kernel.
    _cleanup_(close_fdp) int fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

    if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
        return err_set(e, errno, "userfaultfd: %s", strerror(errno));
    return steal_fd(&fd);
}

static struct uffdio_range range(const struct mem_region *r)
{
    return (struct uffdio_range){.start = (uintptr_t)r->host, .len = r->size};
}

int uffd_register(int fd, const struct guest_mem *m)
{
    for (unsigned i = 0; i < m->n; i++) {
        struct uffdio_register r = {.range = range(&m->r[i]), .mode = UFFDIO_REGISTER_MODE_MISSING};
        if (ioctl(fd, UFFDIO_REGISTER, &r))
            return -errno;
    }
    return 0;
}

void uffd_unregister(int fd, const struct guest_mem *m)
{
    for (unsigned i = 0; i < m->n; i++) {
        struct uffdio_range r = range(&m->r[i]);
        ioctl(fd, UFFDIO_UNREGISTER, &r);
    }
}

// One ioctl over [at, at + len); how many bytes of it are done, or -errno.
static int64_t put(int fd, uint64_t at, uint64_t len, const void *data)
{
    struct uffdio_copy c = {.dst = at, .src = (uintptr_t)data, .len = len};
    struct uffdio_zeropage z = {.range = {.start = at, .len = len}};

    int rc = data ? ioctl(fd, UFFDIO_COPY, &c) : ioctl(fd, UFFDIO_ZEROPAGE, &z);
    int64_t done = data ? c.copy : z.zeropage;
    return rc == 0 ? (int64_t)len : done > 0 ? done : -errno;
}

int uffd_place(int fd, const struct guest_mem *m, uint64_t page, uint64_t n, const void *data)
{
    uint64_t room, at, end = n * PAGE_SIZE;

    for (uint64_t off = 0; off < end;) {
        at = (uintptr_t)pages_at(m, page * PAGE_SIZE + off, &room);
        int64_t k = put(fd, at, MIN(end - off, room), data ? (const uint8_t *)data + off : NULL);
        if (k == -EEXIST) { // there already: whoever waits for it may have missed the wake-up
            struct uffdio_range r = {.start = at, .len = PAGE_SIZE};
            ioctl(fd, UFFDIO_WAKE, &r);
            k = PAGE_SIZE;
        }
        if (k < 0 && k != -EAGAIN) // EAGAIN: mappings were changing
            return (int)k;
        off += k > 0 ? (uint64_t)k : 0;
    }
    return 0;
}

int uffd_next(int fd, const struct guest_mem *m, uint64_t *page)
{
    struct uffd_msg msg;

    ssize_t n = fd_read(fd, &msg, sizeof(msg));
    if (n < 0)
        return errno == EAGAIN ? 0 : -errno;
    if (n != sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
        return -EPROTO;
    for (unsigned i = 0; i < m->n; i++) {
        uint64_t off = msg.arg.pagefault.address - (uintptr_t)m->r[i].host;
        if (off < m->r[i].size) {
            *page = (m->r[i].file_off + off) / PAGE_SIZE;
            return 1;
        }
    }
    return -EFAULT;
}
