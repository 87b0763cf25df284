// SPDX-License-Identifier: Apache-2.0
// preadv2 and pwritev2 taken over, so that a test says which direct call would block, fails or stops
// short, and sees in which order they came. One file of a program defines FX_DEFINE.
#ifndef TESTS_UNIT_BLK_CALLS_H
#define TESTS_UNIT_BLK_CALLS_H

#include <sys/syscall.h>
#include <sys/uio.h>

#include "vmm/base.h"

#define FX_NSEGS 140u
#define FX_LOG   64u

// What the next direct calls do; 0 everywhere: what the kernel does.
struct fx_calls {
    bool block_reads;          // RWF_NOWAIT answers EAGAIN
    bool no_nowait;            // ... EOPNOTSUPP, as on tmpfs
    size_t short_to;           // at most so many bytes
    int fail_read, fail_write; // errno
    unsigned nth;              // the n-th call from now fails with EIO; 0: none
    unsigned calls, blocking;  // made; reads without RWF_NOWAIT on it
    char log[FX_LOG];          // r: read, w: write of data, b: of a bitmap page, s: fsync
    unsigned nlog;
    uint64_t bitmap_end; // file offsets below are a layer's header and bitmap; 0: no layer
};

extern struct fx_calls fx_calls;

static inline void fx_log(char what)
{
    if (fx_calls.nlog < FX_LOG - 1)
        fx_calls.log[fx_calls.nlog++] = what;
}

static inline bool fx_nth(void)
{
    fx_calls.calls++;
    return fx_calls.nth && --fx_calls.nth == 0;
}

static inline size_t fx_trim(struct iovec *to, const struct iovec *from, int n, size_t max)
{
    int k = 0;
    for (; k < n && k < (int)FX_NSEGS; k++) {
        to[k] = from[k];
        to[k].iov_len = MIN(to[k].iov_len, max);
        max -= to[k].iov_len;
    }
    return (size_t)k;
}

#ifdef FX_DEFINE
struct fx_calls fx_calls;

ssize_t preadv2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
    struct iovec v[FX_NSEGS];
    const size_t max = fx_calls.short_to ? fx_calls.short_to : SIZE_MAX;
    fx_log('r');
    fx_calls.blocking += !(flags & RWF_NOWAIT);
    errno = fx_calls.fail_read                             ? fx_calls.fail_read
            : fx_nth()                                     ? EIO
            : fx_calls.no_nowait && (flags & RWF_NOWAIT)   ? EOPNOTSUPP
            : fx_calls.block_reads && (flags & RWF_NOWAIT) ? EAGAIN
                                                           : 0;
    if (errno)
        return -1;
    n = (int)fx_trim(v, iov, n, max);
    return syscall(SYS_preadv2, fd, v, n, off, 0, 0);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
    struct iovec v[FX_NSEGS];
    const size_t max = fx_calls.short_to ? fx_calls.short_to : SIZE_MAX;
    (void)flags;
    fx_log((uint64_t)off < fx_calls.bitmap_end ? 'b' : 'w');
    errno = fx_calls.fail_write ? fx_calls.fail_write : fx_nth() ? EIO : 0;
    if (errno)
        return -1;
    n = (int)fx_trim(v, iov, n, max);
    return syscall(SYS_pwritev2, fd, v, n, off, 0, 0);
}
#endif

#endif
