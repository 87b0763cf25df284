// SPDX-License-Identifier: Apache-2.0
// The collected #syscalls declarations as a table: for the generator, and for the test that holds
// the filters to them.
#ifndef JAIL_GEN_RULES_H
#define JAIL_GEN_RULES_H

#include "jail/jail.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/if_tun.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

// The exact flags of musl's pthread_create (CLONE_DETACHED means nothing to the kernel), or of glibc's: a new
// process, namespace or vfork has another word.
#ifdef MAYFLY_GLIBC
#define THREAD_MARK 0
#else
#define THREAD_MARK CLONE_DETACHED
#endif
#define THREAD                                                                          \
    (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | \
     CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID | THREAD_MARK)

// linux-libc-dev 6.1 lacks it; the number is kernel ABI (include/uapi/linux/userfaultfd.h).
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

// So is this one's (include/uapi/linux/fs.h, Linux 6.7): struct pm_scan_arg has 96 bytes.
#ifndef PAGEMAP_SCAN
#define PAGEMAP_SCAN _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, 96)
#endif

enum kind { K_vcpu, K_device, K_control, K_helper, K_config, K_boot, K_COUNT };
static const char *const kind_name[] = {"vcpu", "device", "control", "helper", "config", "boot"};
enum op { OP_ANY, OP_EQUAL, OP_CLEAR };
enum { ARG_MAIN = -1, ARG_0, ARG_1, ARG_2, ARG_3, ARG_4, ARG_5 };

struct fd_class {
    uint32_t base, mask; // argument 0 & mask == base; mask 0 allows any
};
#define FDC_ANY \
    {           \
        0, 0    \
    }
#define FDC_KVM          \
    {                    \
        JAIL_FD_KVM, ~0U \
    }
#define FDC_VM          \
    {                   \
        JAIL_FD_VM, ~0U \
    }
#define FDC_RING          \
    {                     \
        JAIL_FD_RING, ~0U \
    }
#define FDC_UFFD          \
    {                     \
        JAIL_FD_UFFD, ~0U \
    }
#define FDC_UFFD_DEV          \
    {                         \
        JAIL_FD_UFFD_DEV, ~0U \
    }
#define FDC_PAGEMAP          \
    {                        \
        JAIL_FD_PAGEMAP, ~0U \
    }
#define FDC_UFFD_INFO          \
    {                          \
        JAIL_FD_UFFD_INFO, ~0U \
    }
#define FDC_API          \
    {                    \
        JAIL_FD_API, ~0U \
    }
#define FDC_VCPU           \
    {                      \
        JAIL_FD_VCPU, ~31U \
    }
_Static_assert(JAIL_FD_VCPU % 32 == 0 && JAIL_FD_VCPU_LAST - JAIL_FD_VCPU == 31, "a mask tests it");

struct rule {
    const char *where, *name, *text, *fd_text;
    enum kind kind;
    int nr, arg;
    enum op op;
    uint64_t value;
    struct fd_class fd;
};

#define R(loc, k, sys, a, o, expr, fdc) \
    {.where = loc,                      \
     .name = #sys,                      \
     .text = #expr,                     \
     .fd_text = #fdc,                   \
     .kind = K_##k,                     \
     .nr = SCMP_SYS(sys),               \
     .arg = ARG_##a,                    \
     .op = OP_##o,                      \
     .value = (uint64_t)(expr),         \
     .fd = FDC_##fdc},
static const struct rule rules[] = {
#include "decls.h"
};

// The argument that tells harmless from harmful, by system call; see jail.h.
static const struct {
    const char *name;
    int arg;
} main_arg[] = {
    {"clone", 0},          {"socket", 0},    {"socketpair", 0}, {"seccomp", 0},
    {"prctl", 0},          {"ioctl", 1},     {"fcntl", 1},      {"futex", 1},
    {"fallocate", 1},      {"prlimit64", 1}, {"eventfd2", 1},   {"io_uring_register", 1},
    {"mmap", 2},           {"mprotect", 2},  {"madvise", 2},    {"recvmsg", 2},
    {"sendmsg", 2},        {"openat", 2},    {"lseek", 2},      {"io_uring_enter", 3},
    {"rt_sigprocmask", 0}, {"preadv2", 5},   {"pwritev2", 5},
};

static int arg_of(const struct rule *r)
{
    if (r->arg != ARG_MAIN)
        return r->arg;
    for (size_t i = 0; i < ARRAY_SIZE(main_arg); i++)
        if (!strcmp(main_arg[i].name, r->name))
            return main_arg[i].arg;
    return -1;
}

// True when the filter is to hold the rule.
static bool wanted(const struct rule *r, enum jail_filter f)
{
    static const enum kind of[] = {
        [JAIL_FILTER_VCPU] = K_vcpu,
        [JAIL_FILTER_DEVICE] = K_device,
        [JAIL_FILTER_CONTROL] = K_control,
        [JAIL_FILTER_HELPER] = K_helper,
    };
    return f == JAIL_FILTER_ALL ? r->kind != K_boot : r->kind == of[f];
}

#endif
