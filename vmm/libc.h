// SPDX-License-Identifier: Apache-2.0
// What musl, which the shipped binaries are linked with, lacks of what this code calls by glibc's names.
// The compiler includes it before everything else (see the Makefile); a glibc build does without.
#ifndef VMM_LIBC_H
#define VMM_LIBC_H

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// musl's takes an int and extends its sign, so that a request with its top bit set would reach the
// seccomp filters, which compare 64 bits, as another number.
static inline int libc_ioctl(int fd, unsigned long rq, unsigned long arg)
{
    return (int)syscall(SYS_ioctl, (long)fd, rq, arg);
}
#define ioctl(fd, rq, arg) libc_ioctl(fd, rq, (unsigned long)(arg))

// Calls that musl makes under older numbers than the ones declared to the filters. The kernel's struct stat is
// musl's on x86-64.
#define open(...) openat(AT_FDCWD, __VA_ARGS__)

static inline int libc_stat(int at, const char *path, struct stat *st, int flags)
{
    return (int)syscall(SYS_newfstatat, (long)at, path, st, (long)flags);
}
#define fstat(fd, st)   libc_stat(fd, "", st, AT_EMPTY_PATH)
#define stat(path, st)  libc_stat(AT_FDCWD, path, st, 0)
#define lstat(path, st) libc_stat(AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW)

// musl's compares signed with unsigned, which the house's warnings do not let pass.
static inline struct cmsghdr *libc_next_cmsg(const struct msghdr *m, struct cmsghdr *h)
{
    char *end = (char *)m->msg_control + m->msg_controllen, *at = (char *)h;
    const size_t step = CMSG_ALIGN((size_t)h->cmsg_len);
    if (h->cmsg_len < sizeof(*h) || step + sizeof(*h) > (size_t)(end - at))
        return NULL;
    return (struct cmsghdr *)(void *)(at + step);
}
#undef CMSG_NXTHDR
#define CMSG_NXTHDR(m, h) libc_next_cmsg(m, h)

// free() tells the kernel which pages it may have back by __madvise, which no filter holds: vmm/main.c
// has one of its own, so nothing of libc's may bring the original along.
static inline int libc_madvise(void *at, size_t len, int advice)
{
    return (int)syscall(SYS_madvise, at, len, (long)advice);
}
#define madvise libc_madvise

#define RWF_NOWAIT 8

static inline ssize_t preadv2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
    return syscall(SYS_preadv2, (long)fd, iov, (long)n, off, 0L, (long)flags);
}

static inline ssize_t pwritev2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
    return syscall(SYS_pwritev2, (long)fd, iov, (long)n, off, 0L, (long)flags);
}

#endif
