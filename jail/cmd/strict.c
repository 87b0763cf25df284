// SPDX-License-Identifier: Apache-2.0
// Strict mode: the monitor runs in seven namespaces of its own on an empty read-only root. What it
// needs is opened here and handed over as descriptors; this process stays outside, waits for it,
// and removes the socket and the control group when it has ended.
#include "jail/cmd/jailer.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/if_tun.h>
#include <linux/mount.h>
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
    h->fd = fcntl(fd, F_DUPFD_CLOEXEC, JAIL_FD_END);
    close(fd);
    if (h->fd < 0)
        die(s->r, "descriptor for %s: %s", h->name, strerror(errno));
}

static int listen_at(struct run *r)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct stat st;
    if (strlen(r->a->api_sock) >= sizeof(a.sun_path))
        die(r, "--api-sock: longer than %zu bytes", sizeof(a.sun_path) - 1);
    snprintf(a.sun_path, sizeof(a.sun_path), "%s", r->a->api_sock);
    // A socket that nobody listens on is left from a monitor that was killed; a live one is
    // refused.
    if (!connect(fd, (struct sockaddr *)&a, sizeof(a)))
        die(r, "--api-sock %s: somebody listens there", r->a->api_sock);
    if (errno == ECONNREFUSED && !lstat(a.sun_path, &st) && S_ISSOCK(st.st_mode))
        unlink(r->a->api_sock);
    close(fd);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    umask(0177);
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)))
        die(r, "--api-sock %s: %s", r->a->api_sock, strerror(errno));
    r->socket = true;
    if (listen(fd, 64) || (r->a->has_uid && lchown(r->a->api_sock, r->a->uid, r->a->gid)))
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
    if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr))
        die(r, "--tap %s: %s", name, strerror(errno));
    return fd;
}

static void open_all(struct strict *s)
{
    struct run *r = s->r;
    s->exec_fd = open(r->a->exec_file, O_PATH | O_CLOEXEC);
    if (s->exec_fd < 0)
        die(r, "--exec-file %s: %s", r->a->exec_file, strerror(errno));
    s->exec_fd = fcntl(s->exec_fd, F_DUPFD_CLOEXEC, JAIL_FD_END);
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

static void map_ids(struct strict *s, pid_t pid)
{
    const struct {
        const char *file;
        bool value;
        unsigned id;
    } maps[] = {{"uid_map", true, s->uid}, {"setgroups", false, 0}, {"gid_map", true, s->gid}};
    for (size_t i = 0; i < ARRAY_SIZE(maps); i++) {
        char path[64], text[64];
        snprintf(path, sizeof(path), "/proc/%d/%s", pid, maps[i].file);
        int n = maps[i].value ? snprintf(text, sizeof(text), "%u %u 1", maps[i].id, maps[i].id)
                              : snprintf(text, sizeof(text), "deny");
        _cleanup_(close_fdp) int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, text, (size_t)n) != n)
            die(s->r, "user namespace: %s: %s", path, strerror(errno));
    }
}

// Inside: an empty tmpfs takes the place of the root; the directories asked for are bound into it.
static void empty_root(struct run *r)
{
    const unsigned long lock = MS_NODEV | MS_NOEXEC | MS_NOSUID;
    // On /proc, which every host has; nothing of it is needed from here on.
    if (mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) ||
        mount("jail", "/proc", "tmpfs", lock, "size=64k,nr_inodes=32,mode=0555") || chdir("/proc"))
        die(r, "root of the jail: %s", strerror(errno));
    for (size_t i = 0; i < r->a->n_dir; i++) {
        const char *name = strrchr(r->a->dir[i], '/') + 1;
        struct mount_attr attr = {.attr_set =
                                      MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSUID};
        if (mkdir(name, 0555) || mount(r->a->dir[i], name, NULL, MS_BIND, NULL) ||
            syscall(SYS_mount_setattr, AT_FDCWD, name, 0, &attr, sizeof(attr)))
            die(r, "--dir %s: %s", r->a->dir[i], strerror(errno));
    }
    if (mount(NULL, ".", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | lock, NULL))
        die(r, "root of the jail: %s", strerror(errno));
    leave_root(r);
}

static _Noreturn void become_monitor(struct strict *s)
{
    struct run *r = s->r;
    const char *argv[128];
    char words[4][64], passed[ARRAY_SIZE(s->h)][64], dirs[MAX_LIST][256], c;
    struct err e;

    close(s->go[1]);
    if (read(s->go[0], &c, 1) != 1)
        _exit(1);                 // the outer process gave up and said why
    if (unshare(CLONE_NEWCGROUP)) // only now is the group that becomes its root entered
        die(r, "cgroup namespace: %s", strerror(errno));
    setsid();
    jail_drop_bounding();
    // Before the tmpfs: it refuses files of a user that this namespace does not know. The capabilities
    // stay, as neither user is this namespace's root, or both are.
    if (setresgid(s->gid, s->gid, s->gid) || setresuid(s->uid, s->uid, s->uid))
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
    for (size_t i = 0; i < r->a->n_rest && n < ARRAY_SIZE(argv) - 1; i++)
        argv[n++] = r->a->rest[i];
    argv[n] = NULL;
    char *const env[] = {NULL};
    umask(077);
    root_left(r);
    syscall(SYS_execveat, s->exec_fd, "", exec_words(argv), env, AT_EMPTY_PATH);
    die(r, "%s: %s", r->a->exec_file, strerror(errno));
}

// As init of its pid namespace the monitor does not even notice a signal that it has no handler for.
static bool handles(pid_t pid, int sig)
{
    char path[40], line[128];
    unsigned long long caught = 0;
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f) && sscanf(line, "SigCgt: %llx", &caught) != 1)
        ;
    if (f)
        fclose(f);
    return caught >> (sig - 1) & 1;
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
    sigset_t signals, before;
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
    if (pipe2(s.go, O_CLOEXEC) || sigprocmask(SIG_BLOCK, &signals, &before))
        die(r, "pipe: %s", strerror(errno));
    unsigned long flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS |
                          (r->a->netns ? 0 : CLONE_NEWNET) | SIGCHLD;
    pid_t pid = (pid_t)syscall(SYS_clone, flags, 0, 0, 0, 0);
    if (pid < 0)
        die(r, "namespaces: %s%s", strerror(errno),
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
