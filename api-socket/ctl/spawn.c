// SPDX-License-Identifier: Apache-2.0
// Starts monitors whose API socket listens before they exist, so that nobody waits for it to appear.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "api-socket/ctl/ctl.h"
#include "jail/jail.h"

int make_dirs(const char *path, struct err *e)
{
    char t[CTL_PATH];

    if (strlen(path) >= sizeof(t))
        return err_set(e, ENAMETOOLONG, "%.100s...: too long", path);
    snprintf(t, sizeof(t), "%s", path);
    for (char *p = t + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = 0;
        mkdir(t, 0755);
        *p = '/';
    }
    if (mkdir(t, 0700) && errno != EEXIST)
        return err_set(e, errno, "cannot make %s: %s", path, strerror(errno));
    return 0;
}

const char *beside_me(const char *name, char buf[CTL_PATH])
{
    ssize_t n = readlink("/proc/self/exe", buf, CTL_PATH - 1);
    char *slash = n > 0 ? memrchr(buf, '/', (size_t)n) : NULL;

    if (!slash || (size_t)(slash - buf) + strlen(name) + 2 > CTL_PATH)
        return name;
    memcpy(slash + 1, name, strlen(name) + 1);
    return buf;
}

void raise_limits(void)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r))
        return;
    r.rlim_cur = MIN(r.rlim_max, (rlim_t)65536);
    setrlimit(RLIMIT_NOFILE, &r);
    // With threads, each doubling of the table would wait for an RCU grace period.
    int high = fcntl(0, F_DUPFD_CLOEXEC, (int)MIN(r.rlim_cur, (rlim_t)16384) - 1);
    if (high >= 0)
        close(high);
}

int spawn_listen(const char *path, struct err *e)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(a.sun_path))
        return err_set(e, ENAMETOOLONG, "%.100s...: longer than a socket's path may be", path);
    memcpy(a.sun_path, path, strlen(path));
    _cleanup_(close_fdp) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 64))
        return err_set(e, errno, "cannot listen at %s: %s", path, strerror(errno));
    return steal_fd(&fd);
}

// posix_spawn is vfork and exec: nothing of this process is copied.
static int spawn_argv(const char *const *argv, int listener, const char *log, pid_t *pid,
                      struct err *e)
{
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t at;
    char *const env[] = {NULL};
    char *const *args;
    sigset_t none;

    memcpy(&args, &argv, sizeof(args));
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&fa, 1, "/dev/null", O_WRONLY, 0);
    if (log)
        posix_spawn_file_actions_addopen(&fa, 2, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (listener >= 0)
        posix_spawn_file_actions_adddup2(&fa, listener, JAIL_FD_API);
    posix_spawnattr_init(&at);
    // A session of its own: a terminal's Ctrl-C is for mayflyctl, which ends its monitors in order.
    posix_spawnattr_setflags(&at, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&at, &none);
    pid_t made; // the C library leaves anything in it when nothing was started
    int rc = posix_spawn(&made, argv[0], &fa, &at, args, env);
    *pid = rc ? 0 : made;
    posix_spawn_file_actions_destroy(&fa);
    posix_spawnattr_destroy(&at);
    return rc ? err_set(e, rc, "cannot start %s: %s", argv[0], strerror(rc)) : 0;
}

int spawn_monitor(const struct spawn *s, int listener, pid_t *pid, struct err *e)
{
    char passed[24];
    const char *argv[10 + 2 * ARRAY_SIZE(s->allow->v)] = {
        s->mayfly, "--api-sock", s->sock, "--id", s->id, "--passed-fd", passed, "--level", "Warn"};
    size_t n = 9;

    for (unsigned i = 0; s->allow && i < s->allow->n; i++) {
        argv[n++] = "--allow-dir";
        argv[n++] = s->allow->v[i];
    }
    argv[n] = NULL;
    snprintf(passed, sizeof(passed), "api=%d", JAIL_FD_API);
    return spawn_argv(argv, listener, s->log, pid, e);
}

int spawn_jailed(const struct spawn *s, pid_t *pid, struct err *e)
{
    const char *argv[16 + 3 * ARRAY_SIZE(s->dirs->v)] = {
        s->jail, "--strict", "--id", s->id, "--exec-file", s->mayfly, "--api-sock", s->sock};
    size_t n = 8;

    for (unsigned i = 0; s->dirs && i < s->dirs->n; i++) {
        argv[n++] = "--dir";
        argv[n++] = s->dirs->v[i];
    }
    if (s->uid)
        argv[n++] = "--uid", argv[n++] = s->uid;
    if (s->gid)
        argv[n++] = "--gid", argv[n++] = s->gid;
    for (unsigned i = 0; s->flags && i < s->flags->n; i++)
        argv[n++] = s->flags->v[i];
    argv[n] = NULL;
    return spawn_argv(argv, -1, s->log, pid, e);
}
