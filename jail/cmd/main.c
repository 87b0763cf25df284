// SPDX-License-Identifier: Apache-2.0
// mayfly-jail: what both modes share. Builds a jail around one monitor and starts it there.
#include "jail/cmd/jailer.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static const char usage[] =
    "usage: mayfly-jail --id ID --exec-file FILE --uid U --gid G [flags] [-- monitor's flags]\n"
    "  --chroot-base-dir DIR (/srv/jailer)   --netns FILE    --daemonize    --new-pid-ns\n"
    "  --cgroup FILE=VALUE ...   --cgroup-version 1|2   --parent-cgroup PATH\n"
    "  --resource-limit fsize=|no-file=|memlock=|nproc=N ...\n"
    "strict mode, with nothing on disk and seven namespaces:\n"
    "  --strict --api-sock SOCKET   --tap NAME ...   --dir DIR ... (seen as /NAME inside)\n"
    "  --api-sock-mode 0600   --api-sock-owner UID:GID (--uid, --gid)   --allow-uid UID ...\n"
    "  --uid and --gid may be left out: then the caller's own\n";

void undo(struct run *r)
{
    if (getpid() != r->owner)
        return;
    if (r->socket)
        unlink(r->a->api_sock);
    cgroup_undo(r);
    // Only what this run made, and only if empty: others may have put files there by now.
    if (r->copied)
        unlinkat(r->dir[3], r->a->exec_name, 0);
    const char *const name[] = {NULL, r->a->exec_name, r->a->id, "root"};
    for (int i = 3; i > 0; i--)
        if (r->made[i])
            unlinkat(r->dir[i - 1], name[i], AT_REMOVEDIR);
}

void die(struct run *r, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    fprintf(stderr, "mayfly-jail: %s\n", text);
    undo(r);
    _exit(1);
}

void set_limits(struct run *r)
{
    const struct {
        int which;
        rlim_t value;
    } limits[] = {{RLIMIT_CORE, 0},
                  {RLIMIT_FSIZE, r->a->fsize},
                  {RLIMIT_NOFILE, r->a->nofile},
                  {RLIMIT_MEMLOCK, r->a->memlock},
                  {RLIMIT_NPROC, r->a->nproc}};
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        struct rlimit rl = {limits[i].value, limits[i].value}, now;
        if (!setrlimit(limits[i].which, &rl))
            continue;
        // Without CAP_SYS_RESOURCE in the first user namespace a hard limit can only fall.
        if (getrlimit(limits[i].which, &now) || now.rlim_max > rl.rlim_max)
            die(r, "resource limit: %s", strerror(errno));
        rl = (struct rlimit){now.rlim_max, now.rlim_max};
        setrlimit(limits[i].which, &rl);
    }
}

void enter_netns(struct run *r)
{
    if (!r->a->netns)
        return;
    _cleanup_(close_fdp) int fd = open(r->a->netns, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET))
        die(r, "--netns %s: %s", r->a->netns, strerror(errno));
}

static int unmount_old(void *arg)
{
    struct run *r = arg;
    if (umount2(".", MNT_DETACH))
        __atomic_store_n(&r->leave_errno, errno, __ATOMIC_RELEASE);
    return 0;
}

// An unmount detaches the tree at once, then waits for an RCU grace period: 0.1 ms, but milliseconds on a busy host
// and half the cost of a jail. A child that shares the memory waits, so that the monitor starts meanwhile. With
// SIGCHLD ignored, which lasts through exec, nobody has to reap it.
void leave_root(struct run *r)
{
    if (syscall(SYS_pivot_root, ".", "."))
        die(r, "pivot_root: %s", strerror(errno));
    signal(SIGCHLD, SIG_IGN);
    if (clone(unmount_old, r->leave_stack + sizeof(r->leave_stack), CLONE_VM | SIGCHLD, r) < 0)
        unmount_old(r); // a limit on tasks that leaves room for one alone
    if (chdir("/"))
        die(r, "root of the jail: %s", strerror(errno));
}

// The old root lies on top of the new one until it is detached, and ".." of the root is where that shows.
void root_left(struct run *r)
{
    const struct timespec moment = {.tv_nsec = 20000};
    struct stat root, up;
    int failed;
    while (!(failed = __atomic_load_n(&r->leave_errno, __ATOMIC_ACQUIRE))) {
        if (stat("/", &root) || stat("/..", &up))
            die(r, "root of the jail: %s", strerror(errno));
        if (root.st_dev == up.st_dev && root.st_ino == up.st_ino)
            return;
        nanosleep(&moment, NULL);
    }
    die(r, "unmounting the old root: %s", strerror(failed));
}

size_t monitor_argv(struct run *r, const char **argv, char (*words)[64])
{
    struct timespec wall, cpu;
    size_t n = 0;
    clock_gettime(CLOCK_MONOTONIC, &wall);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    const struct {
        const char *flag;
        long long us;
    } times[] = {{"--start-time-us", wall.tv_sec * 1000000LL + wall.tv_nsec / 1000},
                 {"--start-time-cpu-us", 0},
                 {"--parent-cpu-time-us", cpu.tv_sec * 1000000LL + cpu.tv_nsec / 1000}};
    argv[n++] = r->a->exec_name;
    argv[n++] = "--id";
    argv[n++] = r->a->id;
    for (size_t i = 0; i < ARRAY_SIZE(times); i++) {
        snprintf(words[i], sizeof(words[i]), "%lld", times[i].us);
        argv[n++] = times[i].flag;
        argv[n++] = words[i];
    }
    return n;
}

int main(int argc, char **argv)
{
    struct args a;
    struct err e = {0};
    if (jail_args_parse(&a, argc, argv, &e)) {
        fprintf(stderr, "mayfly-jail: %s\n%s", e.msg, usage);
        return 1;
    }
    if (a.version || a.help) {
        printf("%s", a.help ? usage : "mayfly-jail v0.1.0\n");
        return 0;
    }
    struct run r = {.a = &a, .owner = getpid()};
    // The monitor gets descriptors and an environment of our making only.
    if (syscall(SYS_close_range, 3U, ~0U, 0))
        die(&r, "close_range (Linux 5.9): %s", strerror(errno));
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            die(&r, "descriptor %d is closed and /dev/null cannot stand in", fd);
    clearenv();
    umask(0);
    if (a.strict)
        strict_run(&r);
    compat_run(&r);
}
