// SPDX-License-Identifier: Apache-2.0
// Between the two halves of the hijacked monitor: how a thread is brought to act, and what it then does.
#ifndef TESTS_JAIL_HIJACK_H
#define TESTS_JAIL_HIJACK_H

#include "jail/jail.h"

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>

enum { WAITING, ACTING, DONE };

struct result {
    _Atomic int state;
    _Atomic long value; // what the deed returned: -errno of a refused one
};

struct deed {
    const char *name;
    long (*act)(uint64_t n, struct io_uring *ring); // runs on the thread that it is about
    uint64_t from, to;                              // a series; both 0: a single deed
    unsigned kinds;                                 // bits of enum jail_filter; 0: every kind
};

extern const struct deed deeds[]; // ends with a name of NULL

static inline long raw(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                       uint64_t f)
{
    register uint64_t r10 __asm__("r10") = d;
    register uint64_t r8 __asm__("r8") = e;
    register uint64_t r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "+a"(nr)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return nr;
}

#endif
