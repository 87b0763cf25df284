// SPDX-License-Identifier: Apache-2.0
// One microVM that arrives: its monitor, and how it ends.
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "api-socket/ctl/mig.h"

#define LOOK_MS 20
#define TOLD_NS (15 * NSEC_PER_SEC) // for the source's last question; nothing depends on it here

// ---- the monitor

int arrival_start(struct receiver *r, struct arrival *a, struct err *e)
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
void arrival_stop(struct receiver *r, struct arrival *a)
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

// ID=WHAT; %n in it is the microVM's name. before: how many stand in the list already.
static void overrides(FILE *f, const char *key, const char *what, const struct opt_list *l,
                      const char *name, unsigned before)
{
    for (unsigned i = 0; i < l->n; i++) {
        char id[MOVE_NAME], value[CTL_PATH * 2];
        const char *eq = strchr(l->v[i], '=');
        snprintf(id, sizeof(id), "%.*s", (int)(eq - l->v[i]), l->v[i]);
        arrival_path(eq + 1, name, value, sizeof(value));
        fprintf(f, "%s{\"%s\":", before + i ? "," : "", key);
        print_string(f, id);
        fprintf(f, ",\"%s\":", what);
        print_string(f, value);
        fputc('}', f);
    }
}

void arrival_path(const char *text, const char *name, char *out, size_t size)
{
    const char *at = strstr(text, "%n");

    snprintf(out, size, "%.*s%s%s", at ? (int)(at - text) : CTL_PATH, text, at ? name : "",
             at ? at + 2 : "");
}

int arrival_tell(struct receiver *r, struct arrival *a, const int fd[2], struct err *e)
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
    fprintf(f, ",\"network_overrides\":[");
    overrides(f, "iface_id", "host_dev_name", &r->taps, a->name, 0);
    fprintf(f, "],\"drive_overrides\":[");
    overrides(f, "drive_id", "path_on_host", &r->drives, a->name, 0);
    overrides(f, "drive_id", "cow_path", &r->layers, a->name, r->drives.n);
    fprintf(f, "]}");
    fclose(f);
    int rc = view_put(a->sock, "receive", body, fds, record < 0 ? 2 : 3, e);
    close_fdp(&record);
    return rc;
}

// ---- its end

static int left(const struct receiver *r, struct arrival *a, const char *what)
{
    err_set(&a->e, 0,
            "%s; both sides keep what they have. To go on: %s %.60s --session %s --api-sock %.80s; "
            "if the source is dead: PUT /migration/finalize there",
            what, r->from ? "pull" : "receive", r->from ? r->from_text : "--listen ...", a->session,
            a->sock);
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

// A puller mends its own link: two new connections, and its monitor tells the server what is still absent.
static void come_back(struct receiver *r, struct arrival *a)
{
    struct err e = {0};
    int fd[2];

    if (link_open(r->from, "again", a->session, a->name, 0, fd, &e) == 0) {
        view_put(a->sock, "recover", "{\"channels\":{\"urgent\":\"fd:0\",\"bulk\":\"fd:1\"}}", fd,
                 2, &e);
        close_fdp(&fd[0]);
        close_fdp(&fd[1]);
    }
    show_line(&a->show, a->name, e.msg[0] ? e.msg : "connected again");
    move_nap(e.msg[0] ? 500 : 0);
}

int arrival_watch(struct receiver *r, struct arrival *a)
{
    uint64_t stuck = 0, done = 0;
    bool asked = false;

    for (;; move_nap(LOOK_MS)) {
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
            return left(r, a,
                        view_is(&v, "paused") ? "the link is broken" : "the arbiter is silent");
        if (r->from && view_is(&v, "paused"))
            come_back(r, a);
        if (stop && !asked && view_put(a->sock, "cancel", "{}", NULL, 0, &e))
            return left(r, a, "ended while it arrives; its monitor goes on alone");
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

void arrival_over(struct receiver *r, struct arrival *a, int status)
{
    if (status == MOVE_STAYED)
        arrival_stop(r, a);
    if (a->show.drawn)
        putc('\n', stderr);
    a->status = status;
    report(r, a);
    pthread_mutex_lock(&r->lock);
    a->state = ARRIVAL_OVER;
    pthread_mutex_unlock(&r->lock);
    eventfd_write(r->wake, 1);
}
