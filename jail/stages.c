// SPDX-License-Identifier: Apache-2.0
// The monitor gives its privileges away in four stages, also when no mayfly-jail started it.
#include "jail/jail.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

// #syscalls:boot unshare fcntl openat close_range umask prlimit64 prctl capset
// #syscalls:config dup prlimit64(RLIMIT_NOFILE)

int jail_passed_add(struct jail *j, const char *arg, struct err *e)
{
    const char *eq = strrchr(arg, '=');
    size_t len = eq ? (size_t)(eq - arg) : 0;
    char *end = NULL;
    long fd = eq ? strtol(eq + 1, &end, 10) : -1;
    if (!len || len >= sizeof(j->passed[0].name) || end == eq + 1 || *end || fd < 3 ||
        fd >= JAIL_FD_END)
        return err_set(e, EINVAL, "--passed-fd must be NAME=N with N from 3 to 255, not %s", arg);
    if (j->n_passed == ARRAY_SIZE(j->passed))
        return err_set(e, EINVAL, "more than %zu --passed-fd", ARRAY_SIZE(j->passed));
    memcpy(j->passed[j->n_passed].name, arg, len);
    j->passed[j->n_passed].name[len] = '\0';
    j->passed[j->n_passed++].fd = (int)fd;
    return 0;
}

int jail_passed(const struct jail *j, const char *name)
{
    for (size_t i = 0; i < j->n_passed; i++)
        if (!strcmp(j->passed[i].name, name))
            return j->passed[i].fd;
    return -1;
}

// The page map shows which pages this process holds, never where they lie (that takes CAP_SYS_ADMIN). It
// must be opened here: later stages close /proc, and a process that is not dumpable has none of its own.
// A kernel or a jail without it is fine, who needs it says so. The same holds for what the kernel says of a
// userfaultfd (how many faults wait): the file tells of whatever has that number when it is read.
static void open_own(int proc, const char *path, int at)
{
    int fd = proc < 0 ? open(path, O_RDONLY | O_CLOEXEC)
                      : openat(proc, path + strlen("/proc/"), O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        jail_fd_pin(fd, at, NULL);
}

static void open_proc(struct jail *j)
{
    char info[40];
    int proc = -1;
    for (size_t i = 0; i < j->n_passed; i++)
        if (!strcmp(j->passed[i].name, "proc"))
            proc = steal_fd(&j->passed[i].fd);
    open_own(proc, "/proc/self/pagemap", JAIL_FD_PAGEMAP);
    snprintf(info, sizeof(info), "/proc/self/fdinfo/%d", JAIL_FD_UFFD);
    if (dup2(0, JAIL_FD_UFFD) >= 0)
        open_own(proc, info, JAIL_FD_UFFD_INFO);
    close(JAIL_FD_UFFD);
    if (proc >= 0)
        close(proc); // it leads to every process of the host
}

static int close_others(const struct jail *j, struct err *e)
{
    bool keep[JAIL_FD_END] = {true, true, true};
    for (size_t i = 0; i < j->n_passed; i++)
        keep[j->passed[i].fd] = true;
    for (unsigned fd = 3, from = 3; fd <= JAIL_FD_END; fd++) {
        if (fd < JAIL_FD_END && !keep[fd])
            continue;
        unsigned to = fd < JAIL_FD_END ? fd - 1 : ~0U;
        if (from <= to && syscall(SYS_close_range, from, to, 0))
            return err_set(e, errno, "close_range (Linux 5.9): %s", strerror(errno));
        from = fd + 1;
    }
    return 0;
}

// First of all in main, before anything is opened.
// Should:   leave nothing behind of what the starter held (descriptors, environment, core dumps)
// and
//           let no other process of this user look in (dumpable).
// Must not: run with a second thread, which would keep its own credentials; leave 0-2 closed, or
// the
//           next descriptor opened would become stdout.
int jail_early(struct jail *j, struct err *e)
{
#ifndef MAYFLY_SANITIZE // TSan has a thread of its own, LSan attaches to the process at exit
    if (unshare(CLONE_THREAD))
        return err_set(e, errno, "jail_early needs a process with one thread");
#endif
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return err_set(e, EBADF, "descriptor %d is closed and /dev/null cannot stand in", fd);
    int rc = close_others(j, e);
    if (rc)
        return rc;
    for (char **v = environ; v && *v; v++)
        explicit_bzero(*v, strlen(*v));
    clearenv();
    umask(077);
    struct rlimit core = {0, 0}, files;
    if (setrlimit(RLIMIT_CORE, &core) || getrlimit(RLIMIT_NOFILE, &files))
        return err_set(e, errno, "RLIMIT_CORE: %s", strerror(errno));
    if (files.rlim_max < JAIL_FD_END)
        return err_set(e, EMFILE, "RLIMIT_NOFILE allows %llu descriptors, %d are needed",
                       (unsigned long long)files.rlim_max, JAIL_FD_END);
    files = (struct rlimit){JAIL_FD_END, JAIL_FD_END};
    if (setrlimit(RLIMIT_NOFILE, &files))
        return err_set(e, errno, "RLIMIT_NOFILE: %s", strerror(errno));
    open_proc(j);
#ifndef MAYFLY_SANITIZE
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
        return err_set(e, errno, "PR_SET_DUMPABLE: %s", strerror(errno));
#endif
    return 0;
}

bool jail_drop_bounding(void)
{
    for (unsigned long cap = 0; !prctl(PR_CAPBSET_DROP, cap, 0, 0, 0); cap++)
        ;
    return !prctl(PR_CAPBSET_READ, 0, 0, 0, 0);
}

// Once /dev/kvm, the ring, the API socket and the like are open.
// Should:   empty all five capability sets and give up ever gaining one by exec. None is needed
// later:
//           a tap that has no owner, or this user as its owner, attaches without CAP_NET_ADMIN.
// Must not: change user or groups: run plain, files are opened as the user who started the monitor.
int jail_user(struct err *e)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return err_set(e, errno, "no_new_privs: %s", strerror(errno));
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        return err_set(e, errno, "ambient capabilities: %s", strerror(errno));
    jail_drop_bounding(); // without CAP_SETPCAP it stays, which no_new_privs makes harmless
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {0};
    if (syscall(SYS_capset, &head, none))
        return err_set(e, errno, "capset: %s", strerror(errno));
    return 0;
}

// Last before untrusted bytes.
// Should:   put filter A on every thread; let no more memory be locked, as the ring was the last to take some.
// Must not: come before anything that is declared `boot`.
int jail_syscalls(const struct jail *j, struct err *e)
{
    const struct rlimit none = {0, 0};
    if (setrlimit(RLIMIT_MEMLOCK, &none))
        return err_set(e, errno, "RLIMIT_MEMLOCK: %s", strerror(errno));
#ifdef MAYFLY_DEBUG
    if (j->no_seccomp)
        return 0;
#endif
    (void)j;
    return jail_filter_install(JAIL_FILTER_ALL, e);
}

int jail_configured(unsigned headroom, struct err *e)
{
    int lowest = dup(2);
    if (lowest < 0)
        return err_set(e, errno, "dup: %s", strerror(errno));
    close(lowest);
    // The pinned descriptors lie above this limit and stay open: it holds new ones only.
    rlim_t max = MIN((rlim_t)lowest + headroom, (rlim_t)JAIL_FD_BASE);
    struct rlimit files = {max, max};
    if (setrlimit(RLIMIT_NOFILE, &files))
        return err_set(e, errno, "RLIMIT_NOFILE: %s", strerror(errno));
    return jail_filter_install(JAIL_FILTER_CONTROL, e);
}
