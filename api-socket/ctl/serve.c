// SPDX-License-Identifier: Apache-2.0
// serve: listens, pairs the connections of pullers, and gives each pair a thread.
#include <poll.h>

#include "api-socket/ctl/serve.h"
#include "jail/jail.h"

#define HALF_NS (15 * NSEC_PER_SEC) // for the other connection

struct conn {
    struct server *s;
    int fd;
};

// ---- under the lock

// The connection waits for its other, or both are handed out in fd. A stranger who fills the table puts out its oldest.
static bool pair_up(struct server *s, const struct link_line *l, int conn, int fd[2])
{
    struct half *at = &s->half[0];

    for (unsigned i = 0; i < HALVES_MAX; i++) {
        struct half *h = &s->half[i];
        if (h->fd >= 0 && now_ns() - h->since > HALF_NS) {
            close_fdp(&h->fd);
            h->fd = -1;
        }
        if (h->fd >= 0 && !strcmp(h->line.session, l->session) && h->line.channel != l->channel &&
            !strcmp(h->line.verb, l->verb)) {
            fd[h->line.channel] = steal_fd(&h->fd);
            fd[l->channel] = conn;
            return true;
        }
        if (at->fd >= 0 && (h->fd < 0 || h->since < at->since))
            at = h;
    }
    close_fdp(&at->fd);
    *at = (struct half){.line = *l, .fd = conn, .since = now_ns()};
    return false;
}

// The oldest of too many whose line does not come is shut; its own thread closes it.
static void listen_to(struct server *s, int fd)
{
    unsigned free_at = HEARING_MAX;

    for (unsigned i = 0; i < HEARING_MAX; i++)
        if (s->heard[i] < 0)
            free_at = i;
    if (free_at == HEARING_MAX) {
        shutdown(s->heard[0], SHUT_RDWR);
        memmove(s->heard, s->heard + 1, sizeof(s->heard) - sizeof(s->heard[0]));
        free_at = HEARING_MAX - 1;
    }
    memmove(s->heard + free_at, s->heard + free_at + 1,
            (HEARING_MAX - 1 - free_at) * sizeof(s->heard[0]));
    s->heard[HEARING_MAX - 1] = fd; // the youngest is last
}

static void heard(struct server *s, int fd)
{
    for (unsigned i = 0; i < HEARING_MAX; i++)
        if (s->heard[i] == fd)
            s->heard[i] = -1;
}

// ---- a connection

static void admit(struct server *s, const struct link_line *l, int conn)
{
    int fd[2] = {-1, -1};
    struct err e = {0};

    pthread_mutex_lock(&s->lock);
    bool room = s->pullers < s->pullers_max;
    bool both = room && pair_up(s, l, conn, fd);
    s->pullers += both;
    pthread_mutex_unlock(&s->lock);
    if (!room) {
        err_set(&e, EBUSY, "%llu pullers are served already", (unsigned long long)s->pullers_max);
        link_answer(conn, e.msg, NULL);
        close(conn);
    }
    if (!both)
        return;
    serve_puller(s, l, fd);
    pthread_mutex_lock(&s->lock);
    s->pullers--;
    pthread_mutex_unlock(&s->lock);
}

static void *hear(void *arg)
{
    struct conn c = *(struct conn *)arg;
    struct link_line l;
    struct err e = {0};

    free(arg);
    int rc = link_hear(c.fd, &l, &e);
    if (rc == 0 && strcmp(l.verb, "pull") && strcmp(l.verb, "again"))
        rc = err_set(&e, EPROTO, "here a snapshot is served: mayflyctl pull");
    pthread_mutex_lock(&c.s->lock);
    heard(c.s, c.fd);
    c.s->hearing--;
    pthread_mutex_unlock(&c.s->lock);
    if (rc) {
        link_answer(c.fd, e.msg, NULL);
        close(c.fd);
    } else
        admit(c.s, &l, c.fd);
    return NULL;
}

static void take(struct server *s)
{
    int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);
    struct conn *c = fd < 0 ? NULL : malloc(sizeof(*c));

    if (!c) {
        if (fd < 0)
            move_nap(10); // out of descriptors: until some are closed
        close_fdp(&fd);
        return;
    }
    *c = (struct conn){s, fd};
    pthread_mutex_lock(&s->lock);
    bool room = s->hearing < 2 * HEARING_MAX; // shut ones are on their way out
    if (room) {
        s->hearing++;
        listen_to(s, fd);
    }
    pthread_mutex_unlock(&s->lock);
    if (room && move_thread(hear, c, NULL) == 0)
        return;
    pthread_mutex_lock(&s->lock);
    heard(s, fd);
    s->hearing -= room;
    pthread_mutex_unlock(&s->lock);
    free(c);
    close(fd);
}

// ---- the command

// Who connects is a stranger, and all that this process needs is open: capabilities go, and with Landlock every file
// but the snapshot's.
static int confine(const char *mem, struct err *e)
{
    struct jail j = {.allow_dirs = &mem, .n_allow_dirs = 1, .allow_no_landlock = true};

    int rc = jail_user(e);
    return rc ? rc : jail_fs(&j, e);
}

static int serve(struct server *s, const char *at, const char *mem)
{
    struct err e = {0};

    if ((s->listener = link_listen(at, &e)) < 0)
        return ctl_fail(&e);
    raise_limits();
    s->signals = stop_watch();
    if (confine(mem, &e))
        return ctl_fail(&e);
    if (s->verify)
        s->t.sum =
            mig_ram_sum(&(struct mig){.mem = &s->t.mem, .npages = s->t.mem.size / PAGE_SIZE}, NULL);
    pthread_mutex_init(&s->lock, NULL);
    memset(s->heard, 0xff, sizeof(s->heard));
    for (unsigned i = 0; i < HALVES_MAX; i++)
        s->half[i].fd = -1;
    if (!s->quiet)
        fprintf(stderr, "listening at %s\n", at);
    while (!stop_asked(s->signals)) {
        struct pollfd p[2] = {{.fd = s->listener, .events = POLLIN},
                              {.fd = s->signals, .events = POLLIN}};
        poll(p, ARRAY_SIZE(p), -1);
        if (p[0].revents)
            take(s);
    }
    return 0;
}

int cmd_serve(int argc, char **argv)
{
    static const char usage[] =
        "serve --listen [HOST]:PORT --snapshot FILE --mem FILE [--working-set FILE] [options]\n"
        "Each mayflyctl pull HOST:PORT starts a microVM of its own from this snapshot, on another\n"
        "host, before its memory is there. Whoever connects can read that memory. Until a signal;\n"
        "exit status: 0 ended by it; 1 the snapshot or the address is not to be had; 2 wrong "
        "usage.";
    const char *rest[1], *at = NULL, *state = NULL, *mem = NULL, *wset = NULL;
    bool help = false;
    struct server *s = calloc(1, sizeof(*s));
    struct err e = {0};

    if (!s)
        return 1;
    s->pullers_max = 256;
    s->limit_s = 3600;
    const struct opt o[] = {
        {"--listen", OPT_STR, &at, "[HOST]:PORT  where mayflyctl pull connects to"},
        {"--snapshot", OPT_STR, &state, "FILE  state of the snapshot"},
        {"--mem", OPT_STR, &mem, "FILE  its memory; neither file may change meanwhile"},
        {"--working-set", OPT_STR, &wset, "FILE  pages that go ahead of the start"},
        {"--max", OPT_NUM, &s->pullers_max, "N  pullers at once (256)"},
        {"--limit", OPT_NUM, &s->limit_s, "S  the longest that one is served (3600)"},
        {"--bandwidth", OPT_NUM, &s->bandwidth, "MIB  the most a second for each (no limit)"},
        {"--verify", OPT_FLAG, &s->verify, "compare all memory besides: costs the targets time"},
        {"--json", OPT_FLAG, &s->json, "each result as a line of JSON"},
        {"--quiet", OPT_FLAG, &s->quiet, "say nothing of what goes well"},
        {"--help", OPT_FLAG, &help, "this"}};

    int n = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 1), rc = 2;
    if (n != 0 || help || !at || !state || !mem || !s->pullers_max || !s->limit_s)
        opts_help(help ? stdout : stderr, usage, o, ARRAY_SIZE(o)), rc = help ? 0 : 2;
    else if (served_open(&s->t, state, mem, wset, &e))
        rc = ctl_fail(&e);
    else
        rc = serve(s, at, mem);
    // Threads may still look at it: the process ends with it.
    return rc;
}
