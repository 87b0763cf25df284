// SPDX-License-Identifier: Apache-2.0
// Installs the generated seccomp filters, and pins descriptors to the numbers those filters know.
#include "jail/filter.h"

#include <fcntl.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

// What musl's pthread_create does under filter A, in the maker and in the new thread, beyond what
// the code at hand asks for; and how a thread takes its own filter.
//
// #syscalls:config clone(THREAD) rt_sigaction rt_sigprocmask mmap(!PROT_EXEC)
// #syscalls:config mprotect(!PROT_EXEC) munmap exit
// #syscalls:config seccomp(SECCOMP_SET_MODE_FILTER) dup3 close
// #syscalls:boot prctl fcntl
//
// Its condition variables move waiters, and its list of threads, which the kernel unlocks for a thread that
// ends, is no private futex:
// #syscalls:vcpu futex(FUTEX_REQUEUE_PRIVATE, FUTEX_WAIT, FUTEX_WAKE)
// #syscalls:device futex(FUTEX_REQUEUE_PRIVATE, FUTEX_WAIT, FUTEX_WAKE)
// #syscalls:control futex(FUTEX_REQUEUE_PRIVATE, FUTEX_WAIT, FUTEX_WAKE)
// #syscalls:helper futex(FUTEX_REQUEUE_PRIVATE, FUTEX_WAIT, FUTEX_WAKE)

#ifdef MAYFLY_DEBUG
// Names the denied call. Only write and _exit: the process is broken, nothing else is safe to call.
static void on_sigsys(int sig, siginfo_t *si, void *uc)
{
    (void)sig, (void)uc;
    unsigned nr = (unsigned)si->si_syscall;
    const char *name = nr < ARRAY_SIZE(jail_syscall_names) ? jail_syscall_names[nr] : NULL;
    static const char head[] = "mayfly: seccomp denied system call ";
    char digits[12];
    char *p = digits + sizeof(digits);
    *--p = '\n';
    do {
        *--p = (char)('0' + nr % 10);
    } while (nr /= 10);
    ssize_t r = write(2, head, sizeof(head) - 1);
    if (name)
        r = write(2, name, strlen(name)), r = write(2, " ", 1);
    r = write(2, p, (size_t)(digits + sizeof(digits) - p));
    (void)r;
    _exit(148);
}
#endif

int jail_filter_install(enum jail_filter which, struct err *e)
{
    // Filter A is installed where prctl is still free; the later ones find the bit set by it.
    if (which == JAIL_FILTER_ALL && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return err_set(e, errno, "no_new_privs: %s", strerror(errno));
#ifdef MAYFLY_DEBUG
    if (which == JAIL_FILTER_ALL) {
        struct sigaction sa = {.sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO};
        sigaction(SIGSYS, &sa, NULL);
    }
#endif
    // The kernel only reads the program, but struct sock_fprog has no const.
    struct sock_filter *insn;
    memcpy(&insn, &jail_progs[which].insn, sizeof(insn));
    struct sock_fprog prog = {.len = jail_progs[which].count, .filter = insn};
    unsigned flags = SECCOMP_FILTER_FLAG_LOG;
    if (which == JAIL_FILTER_ALL)
        flags |= SECCOMP_FILTER_FLAG_TSYNC;
    long r = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &prog);
    if (r < 0)
        return err_set(e, errno, "seccomp filter %d: %s", which, strerror(errno));
    if (r > 0) // TSYNC answers with the thread that could not follow
        return err_set(e, ESRCH, "seccomp filter %d: thread %ld did not take it", which, r);
    return 0;
}

int jail_fd_pin(int fd, int to, struct err *e)
{
    if (fd == to) // mayfly-jail has put it in place already
        return fcntl(fd, F_SETFD, FD_CLOEXEC)
                   ? err_set(e, errno, "descriptor %d: %s", fd, strerror(errno))
                   : to;
    int r = dup3(fd, to, O_CLOEXEC);
    int code = errno;
    close(fd);
    if (r < 0)
        return err_set(e, code, "moving a descriptor to %d: %s", to, strerror(code));
    return to;
}
