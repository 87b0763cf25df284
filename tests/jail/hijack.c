// SPDX-License-Identifier: Apache-2.0
// A monitor that a guest has taken over: vmm/main.c and every room as they are shipped, linked so that a few of their
// outward calls pass through here (ld --wrap). While its guest runs, one thread does one forbidden thing.
//
//     mayfly-hijacked [flags of the monitor] --misbehave vcpu|device|control|helper WHAT
//
// WHAT is calls (every number below 512), x32 (the same by the x32 door), ring (every opcode of the io_uring) or deeds.
// A denied call ends the process, so each try has a process of its own, forked before the monitor's first line, which
// builds, confines, configures and starts a microVM like any other. What came of each is a line of JSON.
#include "tests/jail/hijack.h"

#include <linux/futex.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#define RUNNING 3 // KVM_RUN has come back this often: the guest executes, and makes exits
#define MS      1000000L
#define AT_ONCE 8 // six tasks each, of the 64 that a strict jail has room for

// A deed, and in the process that does it what it is to do.
struct
try {
    pid_t pid;
    const struct deed *deed;
    uint64_t n;
    struct result *result; // shared with the process that prints it
    unsigned rounds, acting;
};
static struct try the;
static enum jail_filter kind;
static struct io_uring *its_ring;
static _Atomic int exits;
static _Thread_local enum jail_filter mine; // JAIL_FILTER_ALL: none of its own yet

// Called by every thread wherever it passes by: the first that is of the right kind, once the guest runs, acts.
static void pass(void)
{
    if (!the.deed || mine != kind || atomic_load(&exits) < RUNNING)
        return;
    the.result->state = ACTING;
    the.result->value = the.deed->act(the.n, its_ring);
    the.result->state = DONE;
    for (;;)
        raw(SYS_exit_group, 0, 0, 0, 0, 0, 0);
}

#define WRAP(type, name, ...)        \
    type __real_##name(__VA_ARGS__); \
    type __wrap_##name(__VA_ARGS__); \
    type __wrap_##name(__VA_ARGS__)

WRAP(int, jail_filter_install, enum jail_filter which, struct err *e)
{
    int rc = __real_jail_filter_install(which, e);
    mine = which;
    return rc;
}

WRAP(long, syscall, long nr, long a, long b, long c, long d, long e, long f)
{
    long rc = __real_syscall(nr, a, b, c, d, e, f);
    if (mine == JAIL_FILTER_VCPU && nr == SYS_ioctl && b == KVM_RUN) {
        int code = errno;
        if (atomic_fetch_add(&exits, 1) < RUNNING)
            raw(SYS_futex, (uintptr_t)&exits, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
        pass();
        errno = code;
    }
    return rc;
}

WRAP(int, poll, struct pollfd *p, nfds_t n, int timeout)
{
    pass();
    return __real_poll(p, n, timeout < 0 || timeout > 1 ? 1 : timeout);
}

WRAP(int, pthread_cond_wait, pthread_cond_t *c, pthread_mutex_t *m)
{
    if (mine == JAIL_FILTER_HELPER && kind == mine) {
        pthread_mutex_unlock(m);
        for (int n; (n = atomic_load(&exits)) < RUNNING;) // both threads have these two operations
            raw(SYS_futex, (uintptr_t)&exits, FUTEX_WAIT_PRIVATE, (uint64_t)n, 0, 0, 0);
        pass();
    }
    return __real_pthread_cond_wait(c, m);
}

WRAP(int, io_uring_queue_init_params, unsigned n, struct io_uring *r, struct io_uring_params *p)
{
    its_ring = r;
    return __real_io_uring_queue_init_params(n, r, p);
}

WRAP(int, io_uring_submit_and_wait_timeout, struct io_uring *r, struct io_uring_cqe **c, unsigned n,
     struct __kernel_timespec *t, sigset_t *s)
{
    struct __kernel_timespec soon = {.tv_nsec = MS};
    pass();
    return __real_io_uring_submit_and_wait_timeout(
        r, c, n, t && !t->tv_sec && t->tv_nsec < MS ? t : &soon, s);
}

int __real_main(int argc, char **argv);
int __wrap_main(int argc, char **argv);

static void report(const struct try *t, int status)
{
    static const char *const states[] = {"never acted", "did not return", "returned"};
    printf("\n{\"deed\": \"%s\", \"n\": %llu, \"state\": \"%s\", \"value\": %ld, \"signal\": %d, "
           "\"status\": %d}\n",
           t->deed->name, (unsigned long long)t->n, states[t->result->state], t->result->value,
           status > 0 && WIFSIGNALED(status) ? WTERMSIG(status) : 0,
           status >= 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    fflush(stdout);
}

// One monitor, one deed.
static void begin(struct try *t, int argc, char **argv)
{
    *t->result = (struct result){0};
    t->rounds = t->acting = 0;
    t->pid = fork();
    if (!t->pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        the = *t;
        exit(__real_main(argc, argv));
    }
}

// True when it has come to an end, by itself or, when it does nothing any more, by us.
static bool over(struct try *t)
{
    int status = -1;
    t->acting += t->result->state == ACTING;
    if (waitpid(t->pid, &status, WNOHANG) != t->pid) {
        if (t->rounds++ < 20000 && t->acting < 1000)
            return false;
        kill(t->pid, SIGKILL);
        waitpid(t->pid, &status, 0); // what it was dying of already: a microVM takes a while to go
    }
    report(t, status);
    t->pid = 0;
    return true;
}

static void all_of(int argc, char **argv, const char *what)
{
    const struct timespec moment = {.tv_nsec = MS / 2};
    struct try t[AT_ONCE] = {0};
    const struct deed *d = deeds;
    uint64_t n = d->from;
    struct result *results =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (bool busy = true; busy && results != MAP_FAILED; nanosleep(&moment, NULL)) {
        busy = false;
        for (size_t i = 0; i < AT_ONCE; i++) {
            if (t[i].pid && !over(&t[i])) {
                busy = true;
                continue;
            }
            while (d->name && (strcmp(what, d->to ? d->name : "deeds") != 0 ||
                               (d->kinds && !(d->kinds >> kind & 1)) || n > d->to - !!d->to))
                d++, n = d->from;
            if (!d->name)
                continue;
            t[i].deed = d, t[i].n = n++, t[i].result = &results[i];
            begin(&t[i], argc, argv);
            busy = true;
        }
    }
}

int __wrap_main(int argc, char **argv)
{
    static const char *const kinds[] = {
        [JAIL_FILTER_VCPU] = "vcpu",
        [JAIL_FILTER_DEVICE] = "device",
        [JAIL_FILTER_CONTROL] = "control",
        [JAIL_FILTER_HELPER] = "helper",
    };
    for (size_t k = JAIL_FILTER_VCPU; argc > 3 && k < ARRAY_SIZE(kinds); k++)
        if (!strcmp(argv[argc - 3], "--misbehave") && !strcmp(argv[argc - 2], kinds[k]))
            kind = (enum jail_filter)k;
    if (!kind)
        return __real_main(argc, argv);
    char *what = argv[argc - 1];
    signal(SIGCHLD, SIG_DFL); // mayfly-jail left it ignored
    argv[argc - 3] = NULL;
    all_of(argc - 3, argv, what);
    return 0;
}
