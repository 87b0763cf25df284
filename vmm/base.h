// SPDX-License-Identifier: Apache-2.0
// The small change every room needs: error object, scoped cleanup, little-endian access. A leaf.
//
// Threads: everything here is a pure function or owned by its caller.
// Errors:  host, set-up and API code returns 0 or -errno and, where the caller passes one, fills a
//          struct err with a sentence for a person. Guest faults never use it (see
//          virtio/virtio.h).
#ifndef VMM_BASE_H
#define VMM_BASE_H

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)     ((a) < (b) ? (a) : (b))
#define MAX(a, b)     ((a) > (b) ? (a) : (b))
#undef PAGE_SIZE // musl's limits.h has one too, signed
#define PAGE_SIZE        4096ULL
#define KIB              1024ULL
#define MIB              (1024ULL * 1024)
#define GIB              (1024ULL * 1024 * 1024)
#define NSEC_PER_SEC     1000000000ULL
#define ALIGN_UP(x, a)   (((x) + (__typeof__(x))(a)-1) & ~((__typeof__(x))(a)-1))
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a)-1))

// A sentence for a person, beside the -errno a function returns. Owned by the caller; msg is always
// terminated, and empty until a failure fills it.
struct err {
    char msg[256];
};

// Fills e (NULL is allowed) and returns -code, so that a failure is one line:
//     return err_set(e, EINVAL, "vcpu_count must be 1 to 32, not %u", n);
__attribute__((format(printf, 3, 4))) static inline int err_set(struct err *e, int code,
                                                                const char *fmt, ...)
{
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
        va_end(ap);
    }
    return -code;
}

// Puts the field that was wrong in front of a failure's sentence; returns rc.
static inline int err_field(struct err *e, const char *field, int rc)
{
    if (rc < 0 && e) {
        struct err inner = *e;
        err_set(e, 0, "%s: %.200s", field, inner.msg);
    }
    return rc;
}

// Scoped cleanup: `_cleanup_(close_fdp) int fd = open(...)`; hand ownership on with
// steal_fd/steal_ptr.
#define _cleanup_(f) __attribute__((cleanup(f)))

static inline void close_fdp(int *fd)
{
    if (*fd >= 0) {
        int keep = errno;
        close(*fd);
        errno = keep;
    }
}

// read and write by the calls that disks use anyway (offset -1: the stream's own), which saves every
// thread two system calls in its filter. Declared as preadv2(0) and pwritev2(0).
static inline ssize_t fd_read(int fd, void *buf, size_t len)
{
    struct iovec v = {.iov_base = buf, .iov_len = len};
    return preadv2(fd, &v, 1, -1, 0);
}

static inline ssize_t fd_write(int fd, const void *buf, size_t len)
{
    struct iovec v = {.iov_len = len};
    memcpy(&v.iov_base, &buf, sizeof(buf)); // writing takes it as const
    return pwritev2(fd, &v, 1, -1, 0);
}

static inline int steal_fd(int *fd)
{
    int r = *fd;
    *fd = -1;
    return r;
}

static inline void free_ptrp(void *p)
{
    void *q;
    memcpy(&q, p, sizeof(q));
    free(q);
}

// Ends the calling thread. A sanitizer must see its threads end, and musl's pthread_join waits for what
// its pthread_exit does; glibc's takes system calls (madvise) that no thread's filter holds, and its
// pthread_join waits for the kernel alone.
_Noreturn static inline void thread_end(void)
{
#if defined(MAYFLY_SANITIZE) || !defined(__GLIBC__)
    pthread_exit(NULL);
#else
    for (;;)
        syscall(SYS_exit, 0);
#endif
}

static inline uint64_t now_ns(void) // CLOCK_MONOTONIC, nanoseconds
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

// Unaligned little-endian access: hosts are x86-64, so these are plain copies that a compiler
// folds.
static inline uint16_t le16_get(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint32_t le32_get(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint64_t le64_get(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void le16_put(void *p, uint16_t v)
{
    memcpy(p, &v, sizeof(v));
}

static inline void le32_put(void *p, uint32_t v)
{
    memcpy(p, &v, sizeof(v));
}

static inline void le64_put(void *p, uint64_t v)
{
    memcpy(p, &v, sizeof(v));
}

#endif
