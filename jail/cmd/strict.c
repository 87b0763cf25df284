// SPDX-License-Identifier: Apache-2.0
// Strict mode: the monitor runs in seven namespaces of its own on an empty read-only root. What it
// needs is opened here and handed over as descriptors; this process stays outside, waits for it,
// and removes the socket and the control group when it has ended.
#include "jail/cmd/jailer.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/if_tun.h>
#include <linux/mount.h>
#include <linux/securebits.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

struct handed { // in the order of the monitor's --passed-fd
    char name[32];
    int fd, to;
};

struct strict {
    struct run *r;
    struct handed h[MAX_LIST + 4];
    size_t n;
    int exec_fd, go[2];
    uid_t uid;
    gid_t gid;
};

static void hand(struct strict *s, const char *prefix, const char *name, int fd, int to)
{
    if (fd < 0)
        die(s->r, "%s%s: %s", prefix, name, strerror(errno));
    struct handed *h = &s->h[s->n++];
    snprintf(h->name, sizeof(h->name), "%s%s", prefix, name);
    h->to = to;
    // Above every target, so that moving them into place overwrites none that still has to move.
    h->fd = dup3(fd, JAIL_FD_END + (int)s->n, O_CLOEXEC);
    close(fd);
    if (h->fd < 0)
        die(s->r, "descriptor for %s: %s", h->name, strerror(errno));
}

static int listen_at(struct run *r)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct stat st;
    if (strlen(r->a->api_sock) >= sizeof(a.sun_path))
        die(r, "--api-sock: longer than %zu bytes", sizeof(a.sun_path) - 1);
    snprintf(a.sun_path, sizeof(a.sun_path), "%s", r->a->api_sock);
    // A socket that nobody listens on is left from a monitor that was killed; a live one is
    // refused.
    if (!connect(fd, (struct sockaddr *)&a, sizeof(a)) || errno == EAGAIN)
        die(r, "--api-sock %s: somebody listens there", r->a->api_sock);
    if (errno == ECONNREFUSED && !lstat(a.sun_path, &st) && S_ISSOCK(st.st_mode))
        unlink(r->a->api_sock);
    close(fd);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t old = umask(0777 & ~r->a->sock_mode);
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)))
        die(r, "--api-sock %s: %s", r->a->api_sock, strerror(errno));
    umask(old);
    r->socket = true;
    bool named = r->a->has_sock_owner;
    // Given away by descriptor: whoever may write the directory could put a file of others at its name.
    _cleanup_(close_fdp) int made = open(r->a->api_sock, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (made < 0 || fstat(made, &st) || !S_ISSOCK(st.st_mode) ||
        ((named || r->a->has_uid) && fchownat(made, "", named ? r->a->sock_uid : r->a->uid,
                                              named ? r->a->sock_gid : r->a->gid, AT_EMPTY_PATH)) ||
        listen(fd, 64))
        die(r, "--api-sock %s: %s", r->a->api_sock, strerror(errno));
    return fd;
}

// A tap attaches in the network namespace where /dev/net/tun was opened: the caller stands in it.
static int open_tap(struct run *r, const char *name)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
    // TUNSETIFF would make a tap that is not there.
    if (!if_nametoindex(name))
        die(r, "--tap %s: there is no such interface in this network namespace", name);
    // Whoever had it before may be about to let go of it.
    const struct timespec pause = {.tv_nsec = 5000000};
    int rc = fd < 0 ? -1 : ioctl(fd, TUNSETIFF, &ifr);
    for (int i = 0; rc && errno == EBUSY && i < 40; i++) {
        nanosleep(&pause, NULL);
        rc = ioctl(fd, TUNSETIFF, &ifr);
    }
    if (rc)
        die(r, "--tap %s: %s", name, strerror(errno));
    return fd;
}

static void open_all(struct strict *s)
{
    struct run *r = s->r;
    s->exec_fd = open(r->a->exec_file, O_PATH | O_CLOEXEC);
    if (s->exec_fd < 0)
        die(r, "--exec-file %s: %s", r->a->exec_file, strerror(errno));
    s->exec_fd = dup3(s->exec_fd, JAIL_FD_END, O_CLOEXEC);
    hand(s, "kvm", "", open("/dev/kvm", O_RDWR | O_CLOEXEC), JAIL_FD_KVM);
    hand(s, "api", "", listen_at(r), JAIL_FD_API);
    // /proc/self of a procfs opened out here still means the process that looks: jail_early takes
    // pagemap from it and closes it.
    hand(s, "proc", "", open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC), 3);
    int uffd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (uffd >= 0) // not every kernel has it; post-copy and fault service say so when asked for
        hand(s, "userfaultfd", "", uffd, JAIL_FD_UFFD_DEV);
    enter_netns(r);
    for (size_t i = 0; i < r->a->n_tap; i++)
        hand(s, "tap:", r->a->tap[i], open_tap(r, r->a->tap[i]), (int)(4 + i));
}

static void write_map(struct strict *s, pid_t pid, const char *file, const char *text)
{
    char path[64];
    ssize_t n = (ssize_t)strlen(text);
    snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
    _cleanup_(close_fdp) int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, (size_t)n) != n)
        die(s->r, "user namespace: %s: %s%s", path, strerror(errno),
            s->r->a->n_allow_uid && errno == EPERM ? " (--allow-uid takes root)" : "");
}

// The monitor's own user and group, and whom --allow-uid names: who connects is shown as a user of this namespace,
// and all that it does not know look alike. Nobody inside can become one of them.
static void map_ids(struct strict *s, pid_t pid)
{
    const struct args *a = s->r->a;
    char text[MAX_LIST * 26 + 64];
    int n = snprintf(text, sizeof(text), "%u %u 1\n", s->uid, s->uid);
    for (size_t i = 0; i < a->n_allow_uid; i++) {
        unsigned long uid = strtoul(a->allow_uid[i], NULL, 10);
        bool known = uid == s->uid;
        for (size_t k = 0; k < i; k++)
            known |= uid == strtoul(a->allow_uid[k], NULL, 10);
        if (!known)
            n += snprintf(text + n, sizeof(text) - (size_t)n, "%lu %lu 1\n", uid, uid);
    }
    write_map(s, pid, "uid_map", text);
    write_map(s, pid, "setgroups", "deny");
    snprintf(text, sizeof(text), "%u %u 1", s->gid, s->gid);
    write_map(s, pid, "gid_map", text);
}

// Inside: an empty tmpfs takes the place of the root; the directories asked for are bound into it.
static void empty_root(struct run *r)
{
    const unsigned long lock = MS_NODEV | MS_NOEXEC | MS_NOSUID;
    // On /proc, which every host has; nothing of it is needed from here on. Mounts do not spread to the host: a mount
    // namespace of another user namespace is a slave from the start.
    if (mount("jail", "/proc", "tmpfs", lock, "size=64k,nr_inodes=32,mode=0555") || chdir("/proc"))
        die(r, "root of the jail: %s", strerror(errno));
    for (size_t i = 0; i < r->a->n_dir; i++) {
        const char *name = strrchr(r->a->dir[i], '/') + 1;
        struct mount_attr attr = {.attr_set =
                                      MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSUID};
        if (mkdir(name, 0555) || mount(r->a->dir[i], name, NULL, MS_BIND, NULL))
            die(r, "--dir %s: %s", r->a->dir[i], strerror(errno));
        if (syscall(SYS_mount_setattr, AT_FDCWD, name, 0, &attr, sizeof(attr)))
            die(r, "--dir %s: mount_setattr (Linux 5.12): %s", r->a->dir[i], strerror(errno));
    }
    if (mount(NULL, ".", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | lock, NULL))
        die(r, "root of the jail: %s", strerror(errno));
    leave_root(r);
}

static _Noreturn void become_monitor(struct strict *s)
{
    struct run *r = s->r;
    const char *argv[192];
    char words[4][64], passed[ARRAY_SIZE(s->h)][64], dirs[MAX_LIST][256], c;
    struct err e;

    close(s->go[1]);
    setsid();
    if (!jail_drop_bounding())
        die(r, "bounding set of capabilities: %s", strerror(errno));
    if (read(s->go[0], &c, 1) != 1)
        _exit(1);                 // the outer process gave up and said why
    if (unshare(CLONE_NEWCGROUP)) // only now is the group that becomes its root entered
        die(r, "cgroup namespace: %s", strerror(errno));
    // Before the tmpfs: it refuses files of a user that this namespace does not know. The capabilities are needed a
    // little longer, also where --allow-uid has made the caller root in here.
    if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) ||
        setresgid(s->gid, s->gid, s->gid) || setresuid(s->uid, s->uid, s->uid))
        die(r, "user %u, group %u: %s", s->uid, s->gid, strerror(errno));
    empty_root(r);
    set_limits(r);
    if (jail_user(&e))
        die(r, "%s", e.msg);
    prctl(PR_SET_PDEATHSIG, SIGKILL); // nobody would remove the socket, nobody holds the limits
    size_t n = monitor_argv(r, argv, words);
    for (size_t i = 0; i < s->n; i++) {
        if (dup2(s->h[i].fd, s->h[i].to) < 0)
            die(r, "descriptor for %s: %s", s->h[i].name, strerror(errno));
        snprintf(passed[i], sizeof(passed[i]), "%s=%d", s->h[i].name, s->h[i].to);
        argv[n++] = "--passed-fd";
        argv[n++] = passed[i];
    }
    for (size_t i = 0; i < r->a->n_dir; i++) {
        snprintf(dirs[i], sizeof(dirs[i]), "%s", strrchr(r->a->dir[i], '/'));
        argv[n++] = "--allow-dir";
        argv[n++] = dirs[i];
    }
    for (size_t i = 0; i < r->a->n_allow_uid; i++) {
        argv[n++] = "--allow-uid";
        argv[n++] = r->a->allow_uid[i];
    }
    for (size_t i = 0; i < r->a->n_rest && n < ARRAY_SIZE(argv) - 1; i++)
        argv[n++] = r->a->rest[i];
    argv[n] = NULL;
    char *const env[] = {NULL};
    umask(077);
    root_left(r);
    syscall(SYS_execveat, s->exec_fd, "", exec_words(argv), env, AT_EMPTY_PATH);
    die(r, "%s: %s", r->a->exec_file, strerror(errno));
}

// As init of its pid namespace the monitor does not even notice a signal that it has no handler for, unless it
// blocks it and reads it from a descriptor.
static bool handles(pid_t pid, int sig)
{
    char path[40], line[128];
    unsigned long long taken = 0, set;
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "SigBlk: %llx", &set) == 1 || sscanf(line, "SigCgt: %llx", &set) == 1)
            taken |= set;
    if (f)
        fclose(f);
    return taken >> (sig - 1) & 1;
}

// SIGTERM and the like go on to the monitor; one that does not end within two seconds is killed.
// Returns the exit status to end with.
static int watch(pid_t pid, const sigset_t *signals)
{
    struct timespec grace = {.tv_sec = 2};
    bool asked = false;
    for (;;) {
        int st, sig = asked ? sigtimedwait(signals, NULL, &grace) : sigwaitinfo(signals, NULL);
        if (waitpid(pid, &st, WNOHANG) == pid)
            return WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
        if (sig < 0 && errno == EAGAIN)
            kill(pid, SIGKILL);
        else if (sig > 0 && sig != SIGCHLD)
            kill(pid, handles(pid, sig) ? sig : SIGKILL), asked = true;
    }
}

static void daemonize(struct run *r)
{
    pid_t pid = fork();
    if (pid < 0)
        die(r, "fork: %s", strerror(errno));
    if (pid)
        _exit(0);
    r->owner = getpid();
    setsid();
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < 3; i++)
        dup2(null, i);
    close(null);
}

void strict_run(struct run *r)
{
    struct strict s = {.r = r};
    sigset_t signals, before, all;
    if (!r->a->has_uid && !geteuid())
        die(r, "--uid and --gid are missing: the monitor would stay root");
    s.uid = r->a->has_uid ? r->a->uid : geteuid();
    s.gid = r->a->has_gid ? r->a->gid : getegid();
    if (setgroups(0, NULL) && errno != EPERM) // without privilege nobody can leave a group
        die(r, "setgroups: %s", strerror(errno));
    open_all(&s);
    cgroup_make(r);
    if (r->a->daemonize)
        daemonize(r);
    sigemptyset(&signals);
    const int caught[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGQUIT};
    for (size_t i = 0; i < ARRAY_SIZE(caught); i++)
        sigaddset(&signals, caught[i]);
    // The others wait for ever: whatever ended this process would leave socket and group behind.
    sigfillset(&all);
    if (pipe2(s.go, O_CLOEXEC) || sigprocmask(SIG_BLOCK, &all, &before))
        die(r, "pipe: %s", strerror(errno));
    // Inside a user namespace no limit rises any more.
    const struct rlimit lock = {r->a->memlock, r->a->memlock};
    setrlimit(RLIMIT_MEMLOCK, &lock);
    unsigned long flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS |
                          (r->a->netns ? 0 : CLONE_NEWNET) | SIGCHLD;
    pid_t pid = (pid_t)syscall(SYS_clone, flags, 0, 0, 0, 0);
    if (pid < 0)
        die(r, "namespaces (user, mount, pid, net, ipc, uts): %s%s", strerror(errno),
            errno == EPERM ? " (are user namespaces forbidden here?)" : "");
    if (!pid) {
        r->owner = -1;
        sigprocmask(SIG_SETMASK, &before, NULL);
        become_monitor(&s);
    }
    map_ids(&s, pid);
    cgroup_join(r, pid);
    close(s.go[0]);
    if (write(s.go[1], "", 1) != 1)
        die(r, "the jailed process is gone");
    syscall(SYS_close_range, 3U, ~0U, 0); // a second holder would keep taps and KVM busy
    int status = watch(pid, &signals);
    undo(r);
    _exit(status);
}
