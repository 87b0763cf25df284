// SPDX-License-Identifier: Apache-2.0
// Starts the clones and hears them. Nothing is waited for in turn: the API socket is listening, the load
// request lies in it, and the connection to the guest is under way in the tap before the monitor runs.
#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "api-socket/ctl/clone.h"

enum { EV_API, EV_PROBE, EV_HANDOFF, EV_KINDS };

// ---- workers

static int open_taps(const struct job *j, int *fds, unsigned *nfds, char *out, size_t size,
                     struct err *e)
{
    char tap[16];
    size_t len = 0;

    *out = 0;
    for (unsigned i = 0; i < j->nnets; i++) {
        // The first is the plan's; a guest with more of them gets tap1, tap2, ... if somebody made them.
        snprintf(tap, sizeof(tap), "tap%u", i);
        int fd = net_open_tap(i ? tap : j->net.tap, e);
        if (fd < 0)
            return fd;
        len += (size_t)snprintf(out + len, size - len,
                                "%s{\"iface_id\":\"%s\",\"host_dev_name\":\"fd:%u\"}",
                                len ? "," : "", j->nets[i], *nfds);
        fds[(*nfds)++] = fd;
    }
    return 0;
}

// The request and what it names; the descriptors are the caller's to close.
static int load_request(const struct job *j, const struct clone *c, uint64_t i, char *body,
                        size_t size, int *fds, unsigned *nfds, struct err *e)
{
    char nets[1200], drives[2000];

    fds[0] = fcntl(j->state_fd, F_DUPFD_CLOEXEC, 0);
    fds[1] = fcntl(j->mem_fd, F_DUPFD_CLOEXEC, 0);
    *nfds = 2;
    int rc = open_taps(j, fds, nfds, nets, sizeof(nets), e);
    if (rc == 0)
        rc = disk_overrides(j, c, i, fds, nfds, drives, sizeof(drives), e);
    if (rc)
        return rc;
    snprintf(
        body, size,
        "{\"snapshot_path\":\"fd:0\",\"mem_backend\":{\"backend_type\":\"File\",\"backend_path\":"
        "\"fd:1\"},\"resume_vm\":true,\"clock_realtime\":%s,\"network_overrides\":[%s],"
        "\"drive_overrides\":[%s]}",
        j->clock ? "true" : "false", nets, drives);
    return 0;
}

static int start(struct job *j, uint64_t i, struct err *e)
{
    struct clone *c = &j->c[i];
    struct spawn s = {.mayfly = j->mayfly, .id = c->name, .sock = c->sock, .allow = &j->dirs};
    char body[4096], log[CTL_PATH + 80];
    int fds[API_FDS_MAX];
    unsigned nfds = 0;
    _cleanup_(close_fdp) int listener = -1;

    c->t_spawn = now_ns();
    if (j->again) { // it runs: only the guest is asked
        c->loaded = true;
        int rc = net_enter(c->name, e);
        return rc ? rc : MIN(c->probe = net_probe(&j->net, (uint16_t)j->port, e), 0);
    }
    snprintf(log, sizeof(log), "%s/%s.log", j->dir, c->name);
    s.log = j->keep ? log : NULL; // one that stays must not hold on to our stderr
    int rc = net_enter(c->name, e);
    if (rc == 0)
        rc = load_request(j, c, i, body, sizeof(body), fds, &nfds, e);
    if (rc == 0 && !j->no_get && (c->probe = net_probe(&j->net, (uint16_t)j->port, e)) < 0)
        rc = c->probe;
    if (rc == 0 && !c->pooled && (listener = spawn_listen(c->sock, e)) < 0)
        rc = listener;
    if (rc == 0 && (c->api = api_connect(c->sock, e)) < 0)
        rc = c->api;
    if (rc == 0)
        rc = api_send(c->api, "PUT", "/snapshot/load", body, fds, nfds, e);
    for (unsigned k = 0; k < nfds; k++)
        close_fdp(&fds[k]);
    if (rc == 0 && !c->pooled)
        rc = spawn_monitor(&s, listener, &c->pid, e);
    return rc;
}

static void *worker(void *arg)
{
    struct job *j = arg;
    uint64_t i, token;

    while ((i = atomic_fetch_add(&j->next, 1)) < j->n) {
        struct clone *c = &j->c[i];
        if (read(j->room, &token, sizeof(token)) != sizeof(token))
            break;
        start(j, i, &c->e);
        // The clone is the loop's from here on.
        if (write(j->handoff[1], &i, sizeof(i)) != sizeof(i))
            break;
    }
    return NULL;
}

// ---- the loop

// Out of the loop first: a monitor being spawned right now holds a copy of every descriptor until it
// execs, and what such a copy keeps alive would be reported for ever.
static void forget(const struct job *j, int *fd)
{
    if (*fd >= 0)
        epoll_ctl(j->epoll, EPOLL_CTL_DEL, *fd, NULL);
    close_fdp(fd);
    *fd = -1;
}

static void done(struct job *j, struct clone *c)
{
    uint64_t one = 1;

    if (c->counted)
        return;
    c->counted = true;
    forget(j, &c->api);
    forget(j, &c->probe);
    j->done++;
    j->failed += c->e.msg[0] != 0;
    if (write(j->room, &one, sizeof(one)) != sizeof(one))
        j->failed++;
}

static void fail(struct job *j, struct clone *c, const char *what)
{
    if (!c->e.msg[0])
        err_set(&c->e, EIO, "%s", what);
    done(j, c);
}

static void on_api(struct job *j, struct clone *c)
{
    struct api_reply r;

    int rc = api_receive(c->api, &r, &c->e);
    c->t_loaded = now_ns();
    if (rc == 0 && r.status >= 400)
        api_fault("load", &r, &c->e);
    if (c->e.msg[0]) {
        done(j, c);
        return;
    }
    c->loaded = true;
    forget(j, &c->api); // a monitor serves ten connections; this one is over
    if (j->no_get || c->t_last)
        done(j, c);
}

static void on_connected(struct job *j, struct clone *c, uint64_t i)
{
    char rq[512];
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = i * EV_KINDS + EV_PROBE};
    int err = 0;
    socklen_t len = sizeof(err);

    getsockopt(c->probe, SOL_SOCKET, SO_ERROR, &err, &len);
    int n = snprintf(rq, sizeof(rq), "GET %s HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n",
                     j->get);
    if (err || send(c->probe, rq, (size_t)n, MSG_NOSIGNAL) != n) {
        err_set(&c->e, EIO, "the guest cannot be reached: %s", strerror(err ? err : errno));
        done(j, c);
        return;
    }
    c->t_first = now_ns();
    epoll_ctl(j->epoll, EPOLL_CTL_MOD, c->probe, &ev);
}

static void on_answer(struct job *j, struct clone *c)
{
    size_t body;
    size_t room = sizeof(c->answer) - 1 - c->len;
    ssize_t n = recv(c->probe, c->answer + c->len, room, MSG_DONTWAIT);

    if (n < 0 && errno == EAGAIN)
        return;
    if (n < 0) {
        fail(j, c, strerror(errno));
        return;
    }
    c->len += (size_t)n;
    c->answer[c->len] = 0;
    long whole = http_complete(c->answer, c->len, n == 0, &c->status, &body);
    if (whole == 0 && n > 0 && (size_t)n < room)
        return;
    if (whole < 0) {
        fail(j, c, "the guest's answer is no HTTP");
        return;
    }
    c->t_last = now_ns();
    forget(j, &c->probe);
    if (c->status >= 400)
        fail(j, c, "the guest answered with an error");
    else if (c->loaded)
        done(j, c);
}

static int watch(const struct job *j, int fd, uint32_t events, uint64_t i, int kind)
{
    struct epoll_event ev = {.events = events, .data.u64 = i * EV_KINDS + (unsigned)kind};
    return epoll_ctl(j->epoll, EPOLL_CTL_ADD, fd, &ev);
}

static void on_handoff(struct job *j)
{
    uint64_t i;

    if (read(j->handoff[0], &i, sizeof(i)) != sizeof(i))
        return;
    struct clone *c = &j->c[i];
    c->heard = true;
    if (!c->e.msg[0] && ((c->api >= 0 && watch(j, c->api, EPOLLIN, i, EV_API)) ||
                         (c->probe >= 0 && watch(j, c->probe, EPOLLOUT, i, EV_PROBE))))
        err_set(&c->e, errno, "epoll: %s", strerror(errno));
    if (c->e.msg[0])
        done(j, c);
}

static void on_event(struct job *j, const struct epoll_event *ev)
{
    uint64_t i = ev->data.u64 / EV_KINDS;
    struct clone *c = &j->c[i];

    if (ev->data.u64 % EV_KINDS == EV_HANDOFF) {
        on_handoff(j);
        return;
    }
    if (c->counted)
        return;
    if (ev->data.u64 % EV_KINDS == EV_API)
        on_api(j, c);
    else if (!c->t_first)
        on_connected(j, c, i);
    else
        on_answer(j, c);
}

static void hear(struct job *j)
{
    struct epoll_event ev[64];
    uint64_t heard = now_ns(), shown = 0;

    while (j->done < j->n) {
        int n = epoll_wait(j->epoll, ev, ARRAY_SIZE(ev), 50);
        uint64_t now = now_ns();
        for (int k = 0; k < n; k++)
            on_event(j, &ev[k]);
        if (n > 0)
            heard = now;
        if (now - shown > NSEC_PER_SEC / 20) {
            show_progress(j, false);
            shown = now;
        }
        if (now - heard < j->timeout_s * NSEC_PER_SEC)
            continue;
        for (uint64_t i = 0; i < MIN(atomic_load(&j->next), j->n); i++)
            if (!j->c[i].counted && j->c[i].heard)
                fail(j, &j->c[i],
                     j->c[i].loaded ? "the guest did not answer in time"
                                    : "the monitor did not answer in time");
        heard = now;
    }
}

static int run_threads(struct job *j, void *(*fn)(void *), pthread_t *t, struct err *e)
{
    for (uint64_t i = 0; i < j->workers; i++) {
        int rc = pthread_create(&t[i], NULL, fn, j);
        if (rc)
            return err_set(e, rc, "cannot start a thread: %s", strerror(rc));
    }
    return 0;
}

int clone_run(struct job *j, struct err *e)
{
    pthread_t t[16];

    j->epoll = epoll_create1(EPOLL_CLOEXEC);
    j->room = eventfd((unsigned)j->window, EFD_CLOEXEC | EFD_SEMAPHORE);
    if (j->epoll < 0 || j->room < 0 || pipe2(j->handoff, O_CLOEXEC) ||
        watch(j, j->handoff[0], EPOLLIN, 0, EV_HANDOFF))
        return err_set(e, errno, "epoll: %s", strerror(errno));
    atomic_store(&j->next, 0);
    j->t_start = now_ns();
    int rc = run_threads(j, worker, t, e);
    if (rc)
        return rc;
    hear(j);
    for (uint64_t i = 0; i < j->workers; i++)
        pthread_join(t[i], NULL);
    j->t_end = j->t_start;
    for (uint64_t i = 0; i < j->n; i++)
        j->t_end = MAX(j->t_end, MAX(j->c[i].t_loaded, j->c[i].t_last));
    show_progress(j, true);
    return 0;
}

// ---- namespaces

static void *ns_worker(void *arg)
{
    struct job *j = arg;
    uint64_t i;

    while ((i = atomic_fetch_add(&j->next, 1)) < j->n) {
        char path[CTL_PATH];
        snprintf(path, sizeof(path), "/run/netns/%s", j->c[i].name);
        if (access(path, F_OK) == 0) // made beforehand, by whomever
            continue;
        if (net_make(j->c[i].name, &j->net, &j->c[i].e) == 0)
            j->c[i].ns_made = true;
    }
    return NULL;
}

int clone_make_namespaces(struct job *j, struct err *e)
{
    pthread_t t[16];
    uint64_t from = now_ns();

    atomic_store(&j->next, 0);
    int rc = run_threads(j, ns_worker, t, e);
    if (rc)
        return rc;
    for (uint64_t i = 0; i < j->workers; i++)
        pthread_join(t[i], NULL);
    j->t_ns = now_ns() - from;
    for (uint64_t i = 0; i < j->n && rc == 0; i++)
        if (j->c[i].e.msg[0])
            rc = err_set(e, EIO, "%.250s", j->c[i].e.msg);
    return rc;
}
