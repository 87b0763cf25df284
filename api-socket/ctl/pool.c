// SPDX-License-Identifier: Apache-2.0
// pool: keeps idle monitors ready and hands them out. One thread; every end is reaped here, so that no
// caller waits for one.
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "api-socket/ctl/pool.h"

uint64_t pool_count(const struct pool *p, enum shell_state st)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < SHELLS_MAX; i++)
        n += p->s[i].state == st;
    return n;
}

// ---- callers

static void hang_up(struct taker *t)
{
    close_fdp(&t->fd);
    free(t->text);
    *t = (struct taker){.fd = -1};
}

// Answers are short and a caller reads: blocking for the socket's buffer is enough of flow control.
static void answer(struct taker *t, const char *text, size_t len)
{
    while (len) {
        ssize_t n = send(t->fd, text, len, MSG_NOSIGNAL);
        if (n <= 0)
            break;
        text += n;
        len -= (size_t)n;
    }
    hang_up(t);
}

static void hand_out(struct pool *p, struct taker *t)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    for (unsigned i = 0; f && i < SHELLS_MAX && t->want; i++) {
        struct shell *s = &p->s[i];
        if (s->state != SHELL_IDLE)
            continue;
        s->state = SHELL_TAKEN;
        fprintf(f, "%d %s\n", s->pid, s->sock);
        t->want--;
    }
    if (f)
        fclose(f);
    p->last_take = now_ns();
    answer(t, text, len);
    free(text);
}

// One process's number may have become another's: only a shell that was handed out is ended.
static void release(struct pool *p, struct taker *t)
{
    char *at = t->text, *line;
    const char *say = "ok\n";

    while ((line = strsep(&at, "\n"))) {
        int pid;
        bool found = false;
        if (sscanf(line, "release %d", &pid) != 1)
            continue;
        for (unsigned i = 0; i < SHELLS_MAX; i++)
            if (pid > 0 && p->s[i].state == SHELL_TAKEN && p->s[i].pid == pid)
                found = kill(pid, SIGTERM) == 0;
        if (!found)
            say = "error not a monitor of this pool\n";
    }
    answer(t, say, strlen(say));
}

static void serve(struct pool *p, struct taker *t)
{
    unsigned long long n;
    char text[200];

    t->asked = true;
    if (sscanf(t->text, "take %llu", &n) == 1 && n >= 1 && n <= SHELLS_MAX) {
        t->want = n;
        if (pool_count(p, SHELL_IDLE) >= n)
            hand_out(p, t);
        return;
    }
    if (!strncmp(t->text, "release ", 8)) {
        release(p, t);
        return;
    }
    int len = snprintf(
        text, sizeof(text), "idle %llu of %llu, starting %llu, taken %llu\n",
        (unsigned long long)pool_count(p, SHELL_IDLE), (unsigned long long)p->size,
        (unsigned long long)(pool_count(p, SHELL_STARTING) + pool_count(p, SHELL_CONNECTING)),
        (unsigned long long)pool_count(p, SHELL_TAKEN));
    if (strncmp(t->text, "status", 6))
        len = snprintf(text, sizeof(text), "error unknown request\n");
    answer(t, text, (size_t)len);
}

static void hear(struct pool *p, struct taker *t)
{
    ssize_t n = recv(t->fd, t->text + t->len, REQUEST - t->len, MSG_DONTWAIT);

    if (n > 0 && (t->len += (size_t)n) < REQUEST)
        return;
    if (n < 0 && errno == EAGAIN)
        return;
    t->text[MIN(t->len, (size_t)REQUEST)] = 0;
    if (n == 0 && !t->asked)
        serve(p, t);
    else
        hang_up(t);
}

static void admit(struct pool *p)
{
    int fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC);

    for (unsigned i = 0; fd >= 0 && i < TAKERS_MAX; i++)
        if (p->t[i].fd < 0 && (p->t[i].text = malloc(REQUEST + 1))) {
            p->t[i].fd = fd;
            return;
        }
    close_fdp(&fd);
}

// ---- the loop

// What callers wait for comes at once, what only fills up comes one by one when it is quiet.
static void refill(struct pool *p)
{
    uint64_t idle = pool_count(p, SHELL_IDLE),
             under_way = pool_count(p, SHELL_STARTING) + pool_count(p, SHELL_CONNECTING);
    uint64_t want = 0, most = 1;
    struct err e;

    for (unsigned i = 0; i < TAKERS_MAX; i++) {
        struct taker *t = &p->t[i];
        if (t->fd < 0 || !t->want)
            continue;
        if (idle >= t->want) {
            hand_out(p, t);
            refill(p);
            return;
        }
        want += t->want;
    }
    if (want)
        most = 16;
    else if (now_ns() - p->last_take < QUIET_NS || p->failures > 5)
        return;
    want = MAX(want, p->size);
    while (idle + under_way < want && under_way < most) {
        if (shell_make(p, &e)) {
            ctl_fail(&e);
            p->failures++;
            return;
        }
        under_way++;
    }
}

static bool on_signal(struct pool *p)
{
    struct signalfd_siginfo si;

    if (read(p->signals, &si, sizeof(si)) != sizeof(si))
        return true;
    shell_reap(p);
    return si.ssi_signo == SIGCHLD;
}

static int run(struct pool *p)
{
    struct pollfd *f = calloc(2 + TAKERS_MAX + SHELLS_MAX, sizeof(*f));
    bool go = f != NULL;

    while (go) {
        nfds_t n = 0;
        refill(p);
        f[n++] = (struct pollfd){.fd = p->listener, .events = POLLIN};
        f[n++] = (struct pollfd){.fd = p->signals, .events = POLLIN};
        for (unsigned i = 0; i < TAKERS_MAX; i++)
            f[n++] = (struct pollfd){.fd = p->t[i].asked ? -1 : p->t[i].fd, .events = POLLIN};
        bool looking = false;
        for (unsigned i = 0; i < SHELLS_MAX; i++) {
            if (p->s[i].state == SHELL_STARTING)
                f[n++] = (struct pollfd){.fd = p->s[i].api, .events = POLLIN};
            looking |= p->s[i].state == SHELL_CONNECTING;
        }
        bool behind = pool_count(p, SHELL_IDLE) < p->size;
        poll(f, n, looking ? 2 : behind ? 20 : -1);
        if (f[0].revents)
            admit(p);
        for (unsigned i = 0; i < TAKERS_MAX; i++)
            if (f[2 + i].revents && p->t[i].fd == f[2 + i].fd)
                hear(p, &p->t[i]);
        for (unsigned i = 0; i < SHELLS_MAX; i++) {
            struct shell *s = &p->s[i];
            for (nfds_t k = 2 + TAKERS_MAX; k < n && s->state == SHELL_STARTING; k++)
                if (f[k].fd == s->api && f[k].revents)
                    shell_on_answer(p, s);
            if (s->state == SHELL_CONNECTING)
                shell_look_for(p, s);
        }
        if (f[1].revents)
            go = on_signal(p);
    }
    free(f);
    return 0;
}

static int open_pool(struct pool *p, struct err *e)
{
    char path[CTL_PATH];
    sigset_t set;

    int rc = make_dirs(p->dir, e);
    snprintf(path, sizeof(path), "%.240s/pool.sock", p->dir);
    struct err none;
    _cleanup_(close_fdp) int other = rc ? -1 : api_connect(path, &none);
    if (other >= 0)
        return err_set(e, EADDRINUSE, "a pool serves %s already", p->dir);
    if (rc == 0 && (p->listener = spawn_listen(path, e)) < 0)
        rc = p->listener;
    if (rc == 0 && chmod(path, 0600))
        rc = err_set(e, errno, "%s: %s", path, strerror(errno));
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    p->signals = signalfd(-1, &set, SFD_CLOEXEC);
    return rc;
}

// Those that were handed out live on: they are their callers'.
static void close_pool(struct pool *p)
{
    char path[CTL_PATH];

    for (unsigned i = 0; i < SHELLS_MAX; i++)
        if (p->s[i].state != SHELL_NONE && p->s[i].state != SHELL_TAKEN) {
            shell_signal(&p->s[i], SIGTERM);
            if (p->s[i].pid > 0)
                waitpid(p->s[i].pid, NULL, 0);
            shell_forget(&p->s[i]);
        }
    snprintf(path, sizeof(path), "%.240s/pool.sock", p->dir);
    unlink(path);
    rmdir(p->dir);
}

int pool_serve(struct pool *p, struct err *e)
{
    for (unsigned i = 0; i < SHELLS_MAX; i++)
        p->s[i].api = -1;
    for (unsigned i = 0; i < TAKERS_MAX; i++)
        p->t[i].fd = -1;
    raise_limits();
    int rc = open_pool(p, e);
    if (rc)
        return rc;
    run(p);
    close_pool(p);
    return 0;
}
