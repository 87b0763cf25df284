// SPDX-License-Identifier: Apache-2.0
// One microVM from its beginning to its end, seen from the source.
#include <fcntl.h>

#include "api-socket/ctl/mig.h"

#define LOOK_MS 20

void move_name(const char *sock, char name[MOVE_NAME])
{
    const char *slash = strrchr(sock, '/'), *base = slash ? slash + 1 : sock;
    const char *dot = strrchr(base, '.');
    bool ending = dot && dot != base && (!strcmp(dot, ".sock") || !strcmp(dot, ".socket"));

    snprintf(name, MOVE_NAME, "%.*s", ending ? (int)(dot - base) : MOVE_NAME, base);
}

int move_arbiter(const char *arbiter, const char *dir, const char *name, struct err *e)
{
    char path[CTL_PATH + MOVE_NAME + 16];

    if (!arbiter && !dir)
        return -1;
    if (arbiter)
        snprintf(path, sizeof(path), "%s", arbiter);
    else
        snprintf(path, sizeof(path), "%.250s/%s.arbiter", dir, name);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return fd >= 0 ? fd : err_set(e, errno, "cannot open %.200s: %s", path, strerror(errno));
}

static void body_of(const struct move_how *h, char *to, size_t size)
{
    const struct {
        const char *key;
        uint64_t n;
    } numbers[] = {{"downtime_ms", h->downtime_ms},
                   {"bandwidth_mib_s", h->bandwidth},
                   {"timeout_ms", h->timeout_ms}};
    const struct {
        const char *key, *word;
    } words[] = {{"on_timeout", h->late}, {"verify", h->verify}};
    size_t at = (size_t)snprintf(
        to, size, "{\"channels\":{\"urgent\":\"fd:0\",\"bulk\":\"fd:1\"},\"mode\":\"%s\",%s",
        h->mode, h->unarbitrated ? "\"allow_unarbitrated\":true" : "\"arbiter\":\"fd:2\"");

    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
        if (numbers[i].n)
            at += (size_t)snprintf(to + at, size - at, ",\"%s\":%llu", numbers[i].key,
                                   (unsigned long long)numbers[i].n);
    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        if (words[i].word)
            at +=
                (size_t)snprintf(to + at, size - at, ",\"%s\":\"%s\"", words[i].key, words[i].word);
    snprintf(to + at, size - at, "}");
}

static int begin(struct move *m)
{
    const struct move_how *h = m->how;
    char body[400], state[16];
    int fd[3] = {-1, -1, -1};

    if (!link_name_ok(m->name))
        return err_set(&m->e, EINVAL, "%.80s: a name has up to 64 letters, digits, - _ and .",
                       m->name);
    int rc = view_vm_state(m->sock, state, &m->e);
    if (rc == 0 && strcmp(state, "Running") && strcmp(state, "Paused"))
        rc = err_set(&m->e, EPERM, "there is no microVM to move: %s", state);
    if (rc)
        return rc;
    fd[2] = move_arbiter(h->arbiter, h->arbiters, m->name, &m->e);
    if (fd[2] < 0 && !h->unarbitrated)
        return fd[2];
    rc = link_open(&m->to, "open", m->session, m->name, h->buffer, fd, &m->e);
    if (rc == 0) {
        body_of(h, body, sizeof(body));
        rc = view_put(m->sock, "send", body, fd, fd[2] < 0 ? 2 : 3, &m->e);
    }
    for (int i = 0; i < 3; i++)
        close_fdp(&fd[i]);
    return rc;
}

// New connections for both sides: the receiver has brought its monitor the target's when this one is told.
static int reconnect(struct move *m)
{
    int fd[2] = {-1, -1};

    int rc = link_open(&m->to, "again", m->session, m->name, m->how->buffer, fd, &m->e);
    if (rc == 0)
        rc = view_put(m->sock, "recover", "{\"channels\":{\"urgent\":\"fd:0\",\"bulk\":\"fd:1\"}}",
                      fd, 2, &m->e);
    close_fdp(&fd[0]);
    close_fdp(&fd[1]);
    return rc;
}

// Tries until the pull goes on. False: the time for it is over, or somebody wants to leave.
static bool recover(struct move *m)
{
    uint64_t until = now_ns() + m->how->retry_s * NSEC_PER_SEC;
    unsigned wait = 50;

    show_line(&m->show, m->name, "the link is broken: connecting anew");
    while (now_ns() < until && !stop_asked(m->signals)) {
        if (reconnect(m) == 0) {
            // A greeting that is not answered ends by itself, after which the state is the same again.
            for (uint64_t t = now_ns() + 7 * NSEC_PER_SEC; now_ns() < t; move_nap(2))
                if (view_get(m->sock, &m->v, &m->e) || !view_is(&m->v, "paused"))
                    return true;
            err_set(&m->e, ETIMEDOUT, "the target does not answer on the new connections");
        }
        move_nap(wait);
        wait = MIN(2 * wait, 2000U);
    }
    return false;
}

static int between(struct move *m, const char *what)
{
    struct err why = m->e;

    err_set(&m->e, 0, "%s%s%.120s; both sides keep what they have (session %s)", what,
            why.msg[0] ? ": " : "", why.msg, m->session);
    return MOVE_BETWEEN;
}

static void cancel(struct move *m, bool *asked)
{
    struct err e;

    if (*asked)
        return;
    *asked = true;
    bool late = view_put(m->sock, "cancel", "{}", NULL, 0, &e) != 0;
    show_line(&m->show, m->name, late ? "too late to cancel: it goes on to its end" : "cancelling");
}

// Until the monitor says that it is over, one way or the other.
static int watch(struct move *m)
{
    uint64_t unknown = 0;
    bool asked = false;

    for (;; move_nap(LOOK_MS)) {
        struct err e = {0};
        if (view_get(m->sock, &m->v, &e)) {
            m->e = e;
            return between(m, "the source's monitor does not answer");
        }
        show_move(&m->show, m->name, &m->v);
        if (view_is(&m->v, "done"))
            return MOVE_OK;
        if (view_is(&m->v, "failed") || view_is(&m->v, "cancelled"))
            return MOVE_STAYED;
        if (view_is(&m->v, "paused") && !recover(m))
            return between(m, "the link is broken and could not be mended");
        if (!view_is(&m->v, "unknown"))
            unknown = 0;
        else if (!unknown)
            unknown = now_ns();
        if (unknown && (now_ns() - unknown > m->how->retry_s * NSEC_PER_SEC || asked)) {
            m->e.msg[0] = 0;
            return between(m, "the arbiter does not answer, so nobody runs the microVM");
        }
        if (stop_asked(m->signals))
            cancel(m, &asked);
    }
}

// The source is the last that has everything until the target says that it has.
static int finish(struct move *m)
{
    struct err e = {0};
    struct mig_view v;

    if (link_end(&m->to, m->session, NULL, 0, &e) == -EPERM) {
        m->e = e;
        return between(m, "the source is done, the target says otherwise");
    }
    if (m->how->keep)
        return MOVE_OK;
    if (view_put(m->sock, "finalize", "{}", NULL, 0, &m->e) && view_get(m->sock, &v, &e) == 0)
        return between(m, "it has moved, but the source's process could not be ended");
    for (uint64_t until = now_ns() + 5 * NSEC_PER_SEC; now_ns() < until; move_nap(2))
        if (view_get(m->sock, &v, &e))
            return MOVE_OK;
    err_set(&m->e, 0, "it has moved, but the source's process does not end");
    return MOVE_BETWEEN;
}

void move_run(struct move *m)
{
    uint64_t from = now_ns();
    char state[16];
    struct err e;

    if (!m->session[0])
        link_session(m->session);
    if (!m->again && begin(m))
        m->status = MOVE_STAYED;
    else
        m->status = watch(m);
    m->total_ns = now_ns() - from;
    if (m->status == MOVE_OK)
        m->status = finish(m);
    else if (m->status == MOVE_STAYED && m->v.state[0])
        err_set(&m->e, 0, "%.160s; the microVM is %s where it was",
                m->v.error[0] ? m->v.error : m->v.state,
                view_vm_state(m->sock, state, &e) ? "(no answer)" : state);
    if (m->show.drawn)
        putc('\n', stderr);
    if (m->status == MOVE_OK)
        m->e.msg[0] = 0;
}

void move_json(const struct move *m)
{
    static const char *const results[] = {"moved", "stayed", "", "between"};

    printf("{\"name\":");
    print_string(stdout, m->name);
    printf(",\"result\":\"%s\",\"session\":\"%s\",\"total_ms\":%.3f,\"downtime_ms\":%.3f,"
           "\"recoveries\":%llu,\"error\":",
           results[m->status], m->session, (double)m->total_ns / 1e6,
           (double)m->v.downtime_us / 1e3, (unsigned long long)m->v.recoveries);
    if (m->e.msg[0])
        print_string(stdout, m->e.msg);
    else
        printf("null");
    printf(",\"source\":%s}", m->v.json[0] ? m->v.json : "null");
}
