// SPDX-License-Identifier: Apache-2.0
// One microVM that arrives: its connections, its monitor, and how it ends.
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "api-socket/ctl/mig.h"

#define LOOK_MS   20
#define HALF_NS   (15 * NSEC_PER_SEC) // for the other connection
#define NOTICE_NS (12 * NSEC_PER_SEC) // a monitor finds a silent link in 5 s
#define TOLD_NS   (15 * NSEC_PER_SEC) // for the source's last question; nothing depends on it here

static void nap(unsigned ms)
{
    const struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

// ---- under the lock

static struct arrival *find(struct receiver *r, const char *session)
{
    for (unsigned i = 0; i < ARRIVALS_MAX; i++)
        if (r->a[i].state != ARRIVAL_NONE && !strcmp(r->a[i].session, session))
            return &r->a[i];
    return NULL;
}

static void forget(struct arrival *a)
{
    close_fdp(&a->fd[0]);
    close_fdp(&a->fd[1]);
    *a = (struct arrival){.fd = {-1, -1}};
}

static struct arrival *admit(struct receiver *r, const struct link_line *l, struct err *e)
{
    struct arrival *a = NULL;

    for (unsigned i = 0; i < ARRIVALS_MAX; i++) {
        struct arrival *x = &r->a[i];
        if (x->state == ARRIVAL_HALF && now_ns() - x->since > HALF_NS)
            forget(x);
        bool busy = x->state == ARRIVAL_HALF || x->state == ARRIVAL_HERE;
        if (busy && !r->dir)
            return err_set(e, EBUSY, "another microVM is on its way to this receiver"), NULL;
        if (busy && !strcmp(x->name, l->name))
            return err_set(e, EBUSY, "another %s is on its way", l->name), NULL;
        if (!busy && (!a || (a->state != ARRIVAL_NONE && x->since < a->since)))
            a = x;
    }
    if (!a)
        return err_set(e, EBUSY, "%d microVMs are on their way already", ARRIVALS_MAX), NULL;
    forget(a);
    a->state = ARRIVAL_HALF;
    a->since = now_ns();
    a->show = (struct show){.quiet = r->quiet, .lines = r->dir != NULL};
    snprintf(a->session, sizeof(a->session), "%s", l->session);
    snprintf(a->name, sizeof(a->name), "%s", l->name);
    return a;
}

// The connection is kept; with the other, both are handed out in fd.
static struct arrival *pair_up(struct receiver *r, const struct link_line *l, int conn, int fd[2],
                               struct err *e)
{
    struct arrival *a = find(r, l->session);
    bool again = !strcmp(l->verb, "again");

    if (again && (!a || a->state == ARRIVAL_HALF))
        return err_set(e, ENOENT, "nothing is known of this session"), NULL;
    if (again && a->state == ARRIVAL_OVER && a->status != MOVE_OK)
        return err_set(e, EPERM, "it is over: %.200s", a->e.msg), NULL;
    if (!again && a && a->state != ARRIVAL_HALF)
        return err_set(e, EBUSY, "this session has begun already"), NULL;
    if (!a && !(a = admit(r, l, e)))
        return NULL;
    close_fdp(&a->fd[l->channel]); // of an attempt that did not come to its end
    a->fd[l->channel] = conn;
    fd[0] = fd[1] = -1;
    if (a->fd[0] < 0 || a->fd[1] < 0)
        return a;
    for (int i = 0; i < 2; i++)
        fd[i] = steal_fd(&a->fd[i]);
    if (!again)
        a->state = ARRIVAL_HERE;
    return a;
}

// ---- the monitor

static int start_monitor(struct receiver *r, struct arrival *a, struct err *e)
{
    char id[MOVE_NAME], log[CTL_PATH + 8];
    struct err none;

    if (r->dir)
        snprintf(a->sock, sizeof(a->sock), "%.180s/%s.sock", r->dir, a->name);
    else
        snprintf(a->sock, sizeof(a->sock), "%s", r->sock);
    if (!r->spawn)
        return 0;
    _cleanup_(close_fdp) int other = api_connect(a->sock, &none);
    if (other >= 0)
        return err_set(e, EEXIST, "a monitor serves %.150s already", a->sock);
    snprintf(id, sizeof(id), "%s", a->name);
    for (char *p = id; *p; p++)
        *p = *p == '_' || *p == '.' ? '-' : *p;
    snprintf(log, sizeof(log), "%s.log", a->sock);
    const struct spawn s = {
        .mayfly = r->mayfly, .id = id, .sock = a->sock, .log = log, .allow = &r->allow};
    _cleanup_(close_fdp) int l = spawn_listen(a->sock, e);
    pid_t pid = 0;
    int rc = l < 0 ? l : spawn_monitor(&s, l, &pid, e);
    pthread_mutex_lock(&r->lock);
    a->pid = rc ? 0 : pid;
    pthread_mutex_unlock(&r->lock);
    return rc;
}

// A process that was started for nothing.
static void end_monitor(struct receiver *r, struct arrival *a)
{
    pthread_mutex_lock(&r->lock);
    pid_t pid = a->pid; // 0: it is gone, and its number may be another's
    a->pid = 0;
    if (pid > 0)
        kill(pid, SIGTERM);
    pthread_mutex_unlock(&r->lock);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    if (r->spawn)
        unlink(a->sock);
}

// ID=WHAT; %n in it is the microVM's name.
static void overrides(FILE *f, const char *list, const char *key, const char *what,
                      const struct opt_list *l, const char *name)
{
    if (!l->n)
        return;
    fprintf(f, ",\"%s\":[", list);
    for (unsigned i = 0; i < l->n; i++) {
        char id[MOVE_NAME], value[CTL_PATH * 2];
        const char *eq = strchr(l->v[i], '='), *at = strstr(eq + 1, "%n");
        snprintf(id, sizeof(id), "%.*s", (int)(eq - l->v[i]), l->v[i]);
        snprintf(value, sizeof(value), "%.*s%s%s", at ? (int)(at - eq - 1) : CTL_PATH, eq + 1,
                 at ? name : "", at ? at + 2 : "");
        fprintf(f, "%s{\"%s\":", i ? "," : "", key);
        print_string(f, id);
        fprintf(f, ",\"%s\":", what);
        print_string(f, value);
        fputc('}', f);
    }
    fputc(']', f);
}

static int tell_monitor(struct receiver *r, struct arrival *a, const int fd[2], struct err *e)
{
    _cleanup_(free_ptrp) char *body = NULL;
    int fds[3] = {fd[0], fd[1], -1};
    size_t len;

    int record = move_arbiter(r->arbiter, r->arbiters, a->name, e);
    if (record < 0 && !r->unarbitrated)
        return record;
    fds[2] = record;
    FILE *f = open_memstream(&body, &len);
    if (!f)
        return err_set(e, ENOMEM, "out of memory");
    fprintf(f, "{\"channels\":{\"urgent\":\"fd:0\",\"bulk\":\"fd:1\"},%s",
            record < 0 ? "\"allow_unarbitrated\":true" : "\"arbiter\":\"fd:2\"");
    if (r->lease_ms)
        fprintf(f, ",\"lease_ms\":%llu", (unsigned long long)r->lease_ms);
    if (r->any_cpu)
        fprintf(f, ",\"any_cpu\":true");
    overrides(f, "network_overrides", "iface_id", "host_dev_name", &r->taps, a->name);
    overrides(f, "drive_overrides", "drive_id", "path_on_host", &r->drives, a->name);
    fputc('}', f);
    fclose(f);
    int rc = view_put(a->sock, "receive", body, fds, record < 0 ? 2 : 3, e);
    close_fdp(&record);
    return rc;
}

// ---- its end

static int left(struct arrival *a, const char *what)
{
    err_set(&a->e, 0,
            "%s; both sides keep what they have. To go on: receive --session %s --api-sock %.80s; "
            "if the source is dead: PUT /migration/finalize there",
            what, a->session, a->sock);
    return MOVE_BETWEEN;
}

static int gone(struct arrival *a)
{
    bool early = !strcmp(a->v.stage, "none") || !strcmp(a->v.stage, "pre-migration") ||
                 !strcmp(a->v.stage, "reservation") || !strcmp(a->v.stage, "pre-copy") ||
                 !a->v.stage[0];

    err_set(&a->e, 0, "its monitor here does not answer any more");
    return early ? MOVE_STAYED : MOVE_BETWEEN;
}

static int watch(struct receiver *r, struct arrival *a)
{
    uint64_t stuck = 0, done = 0;
    bool asked = false;

    for (;; nap(LOOK_MS)) {
        struct mig_view v = {0};
        struct err e = {0};
        if (view_get(a->sock, &v, &e))
            return done ? MOVE_OK : gone(a);
        pthread_mutex_lock(&r->lock);
        a->v = v;
        a->got = true;
        bool told = a->told;
        pthread_mutex_unlock(&r->lock);
        show_move(&a->show, a->name, &v);
        bool stop = stop_asked(r->signals);
        if (view_is(&v, "done") && !done)
            done = now_ns();
        if (done && (told || stop || now_ns() - done > TOLD_NS))
            return MOVE_OK;
        if (view_is(&v, "failed") || view_is(&v, "cancelled") || view_is(&v, "lost")) {
            err_set(&a->e, 0, "%.200s", v.error[0] ? v.error : v.state);
            return view_is(&v, "lost") ? MOVE_BETWEEN : MOVE_STAYED;
        }
        bool waits = view_is(&v, "paused") || view_is(&v, "unknown");
        stuck = waits && stuck ? stuck : waits ? now_ns() : 0;
        if (waits && (stop || now_ns() - stuck > r->retry_s * NSEC_PER_SEC))
            return left(a, view_is(&v, "paused") ? "the link is broken" : "the arbiter is silent");
        if (stop && !asked && view_put(a->sock, "cancel", "{}", NULL, 0, &e))
            return left(a, "ended while it arrives; its monitor goes on alone");
        asked = asked || stop;
    }
}

static void report(struct receiver *r, const struct arrival *a)
{
    static const char *const results[] = {"moved", "stayed", "", "between"};

    flockfile(stdout);
    if (r->json) {
        printf("{\"name\":\"%s\",\"result\":\"%s\",\"socket\":", a->name, results[a->status]);
        print_string(stdout, a->sock);
        printf(",\"pid\":%d,\"session\":\"%s\",\"error\":", a->pid, a->session);
        if (a->e.msg[0])
            print_string(stdout, a->e.msg);
        else
            printf("null");
        printf(",\"target\":%s}\n", a->got ? a->v.json : "null");
    } else if (a->status == MOVE_OK)
        printf("%s is here: pid %d, %s; %llu recoveries\n", a->name, a->pid, a->sock,
               (unsigned long long)a->v.recoveries);
    fflush(stdout);
    funlockfile(stdout);
    if (a->status != MOVE_OK) {
        fprintf(stderr, "mayflyctl: %s: ", a->name);
        print_text(stderr, a->e.msg);
        putc('\n', stderr);
    }
}

static void over(struct receiver *r, struct arrival *a, int status)
{
    if (status == MOVE_STAYED)
        end_monitor(r, a);
    if (a->show.drawn)
        putc('\n', stderr);
    a->status = status;
    report(r, a);
    pthread_mutex_lock(&r->lock);
    a->state = ARRIVAL_OVER;
    pthread_mutex_unlock(&r->lock);
    eventfd_write(r->wake, 1);
}

static void begin(struct receiver *r, struct arrival *a, int fd[2])
{
    int rc = start_monitor(r, a, &a->e);

    if (rc == 0) {
        rc = tell_monitor(r, a, fd, &a->e);
        if (rc)
            end_monitor(r, a);
    }
    link_answer(fd[LINK_BULK], rc ? a->e.msg : NULL, NULL);
    close_fdp(&fd[0]);
    close_fdp(&fd[1]);
    if (rc) { // nothing was moved: the next may come
        fprintf(stderr, "mayflyctl: %s: refused: %s\n", a->name, a->e.msg);
        pthread_mutex_lock(&r->lock);
        forget(a);
        pthread_mutex_unlock(&r->lock);
        return;
    }
    show_line(&a->show, a->name, "arrives");
    over(r, a, watch(r, a));
}

// The source may know before this monitor that the link is broken.
static void again(struct receiver *r, struct arrival *a, int fd[2])
{
    struct show show = {.quiet = r->quiet}; // a->show is the other thread's
    struct mig_view v;
    struct err e = {0};
    int rc = -ETIMEDOUT;

    err_set(&e, 0, "its monitor here does not take the link for broken");
    for (uint64_t until = now_ns() + NOTICE_NS; rc && now_ns() < until; nap(2)) {
        struct err now = {0};
        if (view_get(a->sock, &v, &now) ||
            ((view_is(&v, "paused") || view_is(&v, "done")) &&
             (rc =
                  view_put(a->sock, "recover",
                           "{\"channels\":{\"urgent\":\"fd:0\",\"bulk\":\"fd:1\"}}", fd, 2, &now))))
            e = now;
    }
    link_answer(fd[LINK_BULK], rc ? e.msg : NULL, NULL);
    show_line(&show, a->name, rc ? e.msg : "the source is back");
    close_fdp(&fd[0]);
    close_fdp(&fd[1]);
}

void arrive_channel(struct receiver *r, const struct link_line *l, int conn)
{
    struct err e = {0};
    int fd[2];

    pthread_mutex_lock(&r->lock);
    struct arrival *a = pair_up(r, l, conn, fd, &e);
    pthread_mutex_unlock(&r->lock);
    if (!a) {
        link_answer(conn, e.msg, NULL);
        close(conn);
    } else if (fd[0] >= 0 && !strcmp(l->verb, "again"))
        again(r, a, fd);
    else if (fd[0] >= 0)
        begin(r, a, fd);
}

// Only a target that says so itself has everything; it may hear of the last page later than the source sent it.
void arrive_end(struct receiver *r, const struct link_line *l, int conn)
{
    uint64_t until = now_ns() + 5 * NSEC_PER_SEC;
    struct err e = {0};
    char status[sizeof(((struct mig_view *)0)->json)];
    bool done = false, wait = true;

    while (wait && !done && now_ns() < until) {
        pthread_mutex_lock(&r->lock);
        struct arrival *a = find(r, l->session);
        done = a && a->got && view_is(&a->v, "done");
        wait = a && a->state == ARRIVAL_HERE;
        if (!done)
            err_set(&e, 0, "%.150s", a ? a->v.state : "nothing is known of this session");
        else
            snprintf(status, sizeof(status), "%s", a->v.json);
        pthread_mutex_unlock(&r->lock);
        if (wait && !done)
            nap(2);
    }
    link_answer(conn, done ? NULL : e.msg, done ? status : NULL);
    close(conn);
    pthread_mutex_lock(&r->lock);
    struct arrival *a = find(r, l->session);
    if (a && done)
        a->told = true;
    pthread_mutex_unlock(&r->lock);
}

void arrive_resume(struct receiver *r)
{
    struct arrival *a = &r->a[0];

    pthread_mutex_lock(&r->lock);
    a->state = ARRIVAL_HERE;
    a->show = (struct show){.quiet = r->quiet};
    snprintf(a->session, sizeof(a->session), "%s", r->session);
    snprintf(a->sock, sizeof(a->sock), "%s", r->sock);
    move_name(r->sock, a->name);
    pthread_mutex_unlock(&r->lock);
    over(r, a, watch(r, a));
}
