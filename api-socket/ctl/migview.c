// SPDX-License-Identifier: Apache-2.0
// What GET /migration says, and how it is shown.
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/time.h>

#include "api-socket/ctl/mig.h"

#define BAR 40

static int call(const char *sock, const char *method, const char *path, const char *body,
                const int *fds, unsigned n, struct api_reply *r, struct err *e)
{
    struct timeval patience = {.tv_sec = 30};
    _cleanup_(close_fdp) int s = api_connect(sock, e);

    if (s < 0)
        return s;
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    int rc = api_send(s, method, path, body, fds, n, e);
    if (rc == 0)
        rc = api_receive(s, r, e);
    if (rc == 0 && r->status >= 400)
        rc = api_fault(path, r, e);
    return rc;
}

// The monitor's answers are flat and a quote in a string is escaped, so "key": is found nowhere but where it stands.
static const char *value(const char *json, const char *key)
{
    char want[32];
    int n = snprintf(want, sizeof(want), "\"%s\":", key);
    const char *p = strstr(json, want);

    return p ? p + n : "";
}

// "" for null.
static void text(const char *json, const char *key, char *out, size_t size)
{
    const char *p = value(json, key);
    size_t n = 0;

    if (*p++ != '"')
        p = "";
    for (; *p && *p != '"' && n < size - 1; p++) {
        p += *p == '\\' && p[1];
        out[n++] = *p;
    }
    out[n] = 0;
}

int view_get(const char *sock, struct mig_view *v, struct err *e)
{
    struct api_reply r;

    int rc = call(sock, "GET", "/migration", NULL, NULL, 0, &r, e);
    if (rc)
        return rc;
    const struct {
        const char *key;
        uint64_t *at;
    } n[] = {{"rounds", &v->rounds},
             {"bytes", &v->bytes},
             {"pages", &v->pages},
             {"total_pages", &v->total},
             {"remaining_pages", &v->remaining},
             {"requests", &v->requests},
             {"faults", &v->faults},
             {"recoveries", &v->recoveries},
             {"downtime_us", &v->downtime_us},
             {"total_us", &v->total_us}};
    for (size_t i = 0; i < ARRAY_SIZE(n); i++)
        *n[i].at = strtoull(value(r.body, n[i].key), NULL, 10);
    text(r.body, "role", v->role, sizeof(v->role));
    text(r.body, "stage", v->stage, sizeof(v->stage));
    text(r.body, "state", v->state, sizeof(v->state));
    text(r.body, "mode", v->mode, sizeof(v->mode));
    text(r.body, "error", v->error, sizeof(v->error));
    snprintf(v->json, sizeof(v->json), "%.*s", (int)sizeof(v->json) - 1, r.body);
    return 0;
}

int view_vm_state(const char *sock, char state[16], struct err *e)
{
    struct api_reply r;

    int rc = call(sock, "GET", "/", NULL, NULL, 0, &r, e);
    if (rc == 0)
        text(r.body, "state", state, 16);
    return rc;
}

int view_put(const char *sock, const char *what, const char *body, const int *fds, unsigned n,
             struct err *e)
{
    char path[40];
    struct api_reply r;

    snprintf(path, sizeof(path), "/migration/%s", what);
    return call(sock, "PUT", path, body, fds, n, &r, e);
}

bool view_is(const struct mig_view *v, const char *state)
{
    return !strcmp(v->state, state);
}

void print_text(FILE *to, const char *s)
{
    for (; *s; s++)
        putc((unsigned char)*s < 0x20 || (unsigned char)*s >= 0x7f ? '?' : *s, to);
}

void print_string(FILE *to, const char *s)
{
    putc('"', to);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c < 0x20 || c >= 0x7f)
            fprintf(to, "\\u%04x", c);
        else
            fprintf(to, c == '"' || c == '\\' ? "\\%c" : "%c", c);
    }
    putc('"', to);
}

void show_bar(uint64_t part, uint64_t whole, const char *say)
{
    char bar[BAR + 1];
    uint64_t full = whole ? MIN(part, whole) * BAR / whole : 0;

    if (!isatty(STDERR_FILENO))
        return;
    for (unsigned i = 0; i < BAR; i++)
        bar[i] = i < full ? '#' : '.';
    bar[BAR] = 0;
    fprintf(stderr, "\r[%s] %s\033[K", bar, say);
}

void show_line(struct show *s, const char *name, const char *say)
{
    if (s->quiet)
        return;
    flockfile(stderr);
    if (s->drawn)
        putc('\n', stderr);
    s->drawn = false;
    fprintf(stderr, "%s: ", name);
    print_text(stderr, say);
    putc('\n', stderr);
    funlockfile(stderr);
}

void show_move(struct show *s, const char *name, const struct mig_view *v)
{
    char say[160], now[40];

    if (s->quiet)
        return;
    snprintf(now, sizeof(now), "%s %s %llu", v->stage, v->state, (unsigned long long)v->rounds);
    bool changed = strcmp(now, s->last);
    snprintf(say, sizeof(say), "%s%s%s, round %llu, %.1f MiB sent, %llu of %llu pages to go",
             v->stage, view_is(v, "active") ? "" : ", ", view_is(v, "active") ? "" : v->state,
             (unsigned long long)v->rounds, (double)v->bytes / (double)MIB,
             (unsigned long long)v->remaining, (unsigned long long)v->total);
    if (isatty(STDERR_FILENO) && !s->lines) {
        show_bar(v->total - MIN(v->remaining, v->total), v->total, say);
        s->drawn = true;
    } else if (changed)
        show_line(s, name, say);
    snprintf(s->last, sizeof(s->last), "%s", now);
}

int stop_watch(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

// Never read: the signal stays pending, so that every thread sees it.
bool stop_asked(int signals)
{
    struct pollfd p = {.fd = signals, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

// An API answer and its buffer are more than the stack that musl gives a thread.
int move_thread(void *(*run)(void *), void *arg, pthread_t *t)
{
    pthread_attr_t a;
    pthread_t own;

    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, MIB);
    if (!t)
        pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
    int rc = pthread_create(t ? t : &own, &a, run, arg);
    pthread_attr_destroy(&a);
    return -rc;
}

void move_nap(unsigned ms)
{
    const struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}
