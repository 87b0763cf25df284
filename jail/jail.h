// SPDX-License-Identifier: Apache-2.0
// The tour guide of jail/: how the monitor gives its privileges away, and what it may still do
// then.
//
// Call order in the monitor, all of it on the only thread and before one byte of API, snapshot,
// migration or guest is read (capabilities and Landlock belong to a thread, so a thread made
// earlier would keep them):
//
//     open /dev/kvm, ring, API socket ...      what later stages forbid
//     jail_early -> jail_user -> jail_fs -> jail_syscalls (installs JAIL_FILTER_ALL)
//     pthread_create; each thread first calls jail_filter_install(its own kind)
//     when the microVM is configured: control calls jail_filter_install(JAIL_FILTER_CONTROL)
//
// Filters stack and the strictest answer wins, so a thread can only lose by installing one.
//
// #### Declaring system calls
//
// Beside the code that makes a call stands a comment in any .c file of the monitor (one line each;
// repeat the tag for more), from which `make` builds the filters and `make syscalls` the table:
//
//     // #syscalls:KIND item item ...
//
// KIND    vcpu, device, control, helper: that thread for its whole life;
//         config: any thread, but only until the control thread installs its final filter (filter A
//                 holds it, no thread's own filter does);
//         boot:   before filter A; no filter holds it, it is documentation.
// item    NAME                any arguments
//         NAME(X, Y, ...)     the syscall's telling argument is X or is Y: the command of ioctl,
//         fcntl,
//                             futex, madvise, seccomp, prctl, io_uring_register; the protection of
//                             mmap, mprotect; the family of socket; the flags of clone, recvmsg,
//                             sendmsg, preadv2, openat; the mode of fallocate; the limit of
//                             prlimit64
//         NAME(N:X)           the same for argument N, counted from 0
//         X is a C constant of the kernel's headers (macros and | are fine, parentheses are not),
//         or !MASK: none of the bits of MASK is set; or empty. X@FD pins argument 0 to a descriptor
//         of enum jail_fd, written without its JAIL_FD_ prefix (VCPU is the whole range). THREAD is
//         the exact flag word of glibc's pthread_create.
//
// Examples (written here as KIND, so that the generator passes over them):
//     #syscalls:KIND ioctl(KVM_RUN@VCPU) mmap(!PROT_EXEC) futex(FUTEX_WAKE_PRIVATE) clone(THREAD)
//     #syscalls:KIND ioctl(KVM_GET_DIRTY_LOG@VM, KVM_IRQFD@VM) io_uring_enter(@RING) close
//
// The generator refuses what no thread may ever have (execve, ptrace, ...); see jail/gen/gen.c.
#ifndef JAIL_JAIL_H
#define JAIL_JAIL_H

#include "vmm/base.h"

// Descriptors at fixed numbers, so that filters built with the program can match them. Whoever
// makes one moves it here with jail_fd_pin. All lie above every number the kernel hands out by
// itself (lowest free first, JAIL_FD_BASE - 3 of them). Pin one early, while there is one thread:
// growing the descriptor table of a process with threads waits for an RCU grace period (30-70 ms).
enum jail_fd {
    JAIL_FD_BASE = 208,
    JAIL_FD_KVM = JAIL_FD_BASE, // /dev/kvm
    JAIL_FD_VM,                 // KVM_CREATE_VM
    JAIL_FD_RING,               // io_uring_setup
    JAIL_FD_UFFD,               // userfaultfd of guest memory
    JAIL_FD_UFFD_DEV,           // /dev/userfaultfd, for USERFAULTFD_IOC_NEW
    JAIL_FD_PAGEMAP,    // /proc/self/pagemap: opened by jail_early, absent where it could not
    JAIL_FD_API,        // listening API socket
    JAIL_FD_UFFD_INFO,  // /proc/self/fdinfo of JAIL_FD_UFFD, opened as the page map is
    JAIL_FD_VCPU = 224, // 224..255: KVM_CREATE_VCPU; aligned to 32, the filter tests it by mask
    JAIL_FD_VCPU_LAST = 255,
    JAIL_FD_END = 256, // RLIMIT_NOFILE while configuring
};

// What main knows before it gives anything away. Plain data; zero is the safe default.
struct jail {
    const char *const *allow_dirs; // --allow-dir: files and directories opened beneath these alone
    size_t n_allow_dirs;
    struct {
        char name[32]; // "kvm", "api", "proc", "userfaultfd", "tap:NAME": what mayfly-jail handed
                       // over
        int fd;
    } passed[24]; // --passed-fd NAME=N
    size_t n_passed;
    bool allow_no_landlock; // --allow-no-landlock: go on where the kernel has none; the log says so
    bool no_seccomp;        // --no-seccomp: DEBUG=1 builds alone obey
    int landlock_abi;       // set by jail_fs; 0: none
};

// Notes one --passed-fd argument. Returns 0, or -EINVAL with the reason.
int jail_passed_add(struct jail *j, const char *arg, struct err *e);
// The descriptor passed under this name, still owned by the caller of main; -1 if there is none.
int jail_passed(const struct jail *j, const char *name);

// The four stages, in this order; each says in stages.c what it Should and Must not do. All return
// 0 or -errno with the name of the kernel feature that is missing; the caller ends the process
// then.
int jail_early(struct jail *j, struct err *e);
int jail_user(struct err *e);
// Part of jail_user; mayfly-jail needs it before it changes user. False, with errno, when the set stays (CAP_SETPCAP).
bool jail_drop_bounding(void);
int jail_fs(struct jail *j, struct err *e);
int jail_syscalls(const struct jail *j, struct err *e);

// Control thread, when the microVM is configured: RLIMIT_NOFILE falls to what is open plus
// `headroom` (connections, descriptors passed with requests, a drive swap), then the final filter
// goes up.
int jail_configured(unsigned headroom, struct err *e);

// One sentence for the log: what of the file system is still open.
void jail_describe(const struct jail *j, char *buf, size_t size);

enum jail_filter {
    JAIL_FILTER_ALL, // filter A: all kinds, config, and clone with thread flags alone
    JAIL_FILTER_VCPU,
    JAIL_FILTER_DEVICE,
    JAIL_FILTER_CONTROL,
    JAIL_FILTER_HELPER,
    JAIL_FILTER_COUNT,
};

// Installs one filter on the calling thread (JAIL_FILTER_ALL: on every thread). Sets no_new_privs.
// A denied call kills the whole process; in a DEBUG=1 build it is named on stderr first and the
// exit status is 148. A SANITIZE= build allows every call, because the sanitizers' runtime makes
// them too. Returns 0 or -errno.
int jail_filter_install(enum jail_filter which, struct err *e);

// Moves fd to the fixed number `to` (close-on-exec) and closes fd, also on failure. Returns to or
// -errno.
int jail_fd_pin(int fd, int to, struct err *e);

#endif
