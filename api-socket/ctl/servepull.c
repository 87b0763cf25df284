// SPDX-License-Identifier: Apache-2.0
// One puller: the source of a migration, whose microVM is a snapshot that is paused for ever.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "api-socket/ctl/serve.h"
#include "snapshot/mig_sock.h"

#define CALM_NS \
    (50 * MIG_MS) // after a start with its working set: the guest has link and processors to itself
#define YIELD_NS \
    (10 * MIG_MS) // for each run of pages while somebody else starts: slow, never a stall
#define START_NS (2 * NSEC_PER_SEC) // whoever takes longer to start is not waited for

struct puller {
    struct mig m;
    struct server *s;
    int fd[2], next[2]; // by enum mig_ch; next: those of one that comes back, until it is greeted
    uint64_t since, until,
        ran; // when it came, when it has had time enough, when it was seen to run; 0: not yet
    bool first, counted; // the working set has gone ahead; it is among those that start
};

// ---- struct mig_io

static long io_send(void *c, enum mig_ch ch, const struct iovec *v, int n)
{
    return mig_sock_send(((struct puller *)c)->fd[ch], v, n);
}

static long io_recv(void *c, enum mig_ch ch, void *buf, size_t n)
{
    struct puller *p = c;

    if (p->fd[ch] < 0)
        return 0;             // not greeted yet: as a link that broke
    if (now_ns() >= p->until) // one that never stops asking is not waited for
        return -ETIMEDOUT;
    return mig_sock_recv(p->fd[ch], buf, n);
}

static void io_hangup(void *c)
{
    mig_sock_close(((struct puller *)c)->fd);
}

// Once, for one that comes back; a link that breaks later ends the session.
static bool io_reconnect(void *c)
{
    struct puller *p = c;

    if (p->next[0] < 0)
        return false;
    for (int i = 0; i < 2; i++)
        p->fd[i] = steal_fd(&p->next[i]);
    return true;
}

static uint64_t io_now(void *c)
{
    (void)c;
    return now_ns();
}

static void not_starting(struct puller *p)
{
    if (p->counted)
        atomic_fetch_sub(&p->s->starting, 1);
    p->counted = false;
}

// Before the start nothing is more urgent than what lies in the buffer; afterwards it is ahead of what is asked for.
static void small_buffer(int fd)
{
    int size = 256 * (int)KIB;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

// How long the rest of its memory waits for what matters more. What it asks for never does.
static uint64_t holds(struct puller *p, uint64_t now)
{
    if (p->m.running && !p->ran) {
        p->ran = now;
        small_buffer(p->fd[MIG_BULK]);
    }
    if (p->ran || now - p->since > START_NS)
        not_starting(p);
    if (!p->ran)
        return 0;
    if (p->first && now - p->ran < CALM_NS)
        return p->ran + CALM_NS - now;
    return atomic_load(&p->s->starting) ? YIELD_NS : 0;
}

// Nobody mends a link here, and no arbiter is asked: what waits without a channel to wait for gives up.
static unsigned io_wait(void *c, unsigned want, uint64_t until)
{
    struct puller *p = c;
    struct pollfd f[3] = {[2] = {.fd = p->s->signals, .events = POLLIN}};
    uint64_t now = now_ns(), at = MIN(until, p->until);

    p->m.give_up |= !want;
    if (!want || p->fd[0] < 0)
        return 0;
    uint64_t held = holds(p, now);
    if (held && want & MIG_EV_BULK_OUT) {
        struct pollfd urgent = {.fd = p->fd[0], .events = POLLIN};
        if (poll(&urgent, 1, (int)((held + MIG_MS - 1) / MIG_MS)) > 0)
            return want & MIG_EV_URGENT_IN;
    }
    mig_sock_want(f, p->fd, want);
    if (now < at && poll(f, ARRAY_SIZE(f), (int)MIN((at - now + MIG_MS - 1) / MIG_MS, 60000)) < 0)
        return 0;
    if (f[2].revents || now_ns() >= p->until)
        p->m.stop = true;
    return mig_sock_came(f);
}

// What is still to be sent: all that the file holds, less what went ahead.
static int io_dirty(void *c, uint64_t *bits)
{
    struct puller *p = c;
    const struct served *t = &p->s->t;

    for (uint64_t i = 0; i < p->m.nwords; i++)
        bits[i] |= p->first ? t->data[i] & ~t->first[i] : t->data[i];
    return 0;
}

static int io_call(void *c, enum mig_call what)
{
    struct puller *p = c;

    if (what == MIG_C_LOOK && p->m.mode == MIG_HYBRID) {
        memcpy(p->m.aux, p->s->t.first, p->m.nwords * 8);
        p->first = true;
    }
    return 0;
}

static int io_called(void *c)
{
    (void)c;
    return 0;
}

static const struct mig_io io = {
    .send = io_send,
    .recv = io_recv,
    .hangup = io_hangup,
    .reconnect = io_reconnect,
    .wait = io_wait,
    .now = io_now,
    .dirty = io_dirty,
    .call = io_call,
    .called = io_called,
};

// ---- its life

static bool buffers(struct mig *m)
{
    size_t buf = MIG_HEAD + MIG_PAYLOAD;

    m->todo = calloc(2 * m->nwords, sizeof(uint64_t));
    m->stage = malloc(MIG_PAYLOAD + 2 * buf);
    if (!m->todo || !m->stage)
        return false;
    m->aux = m->todo + m->nwords;
    m->ch[0].buf = m->stage + MIG_PAYLOAD;
    m->ch[1].buf = m->ch[0].buf + buf;
    return true;
}

// From the connection's own line, so that any server of these files knows it again.
static void session(struct mig *m, const char *line, const uint8_t id[SNAP_ID])
{
    uint8_t both[MIG_ID + SNAP_ID];

    for (unsigned i = 0; i < MIG_ID; i++) {
        const char hex[] = {line[2 * i], line[2 * i + 1], 0};
        m->session[i] = (uint8_t)strtoul(hex, NULL, 16);
    }
    memcpy(both, m->session, MIG_ID);
    memcpy(both + MIG_ID, id, SNAP_ID);
    le64_put(m->uuid, XXH64(both, sizeof(both), 1));
    le64_put(m->uuid + 8, XXH64(both, sizeof(both), 2));
    memcpy(m->self, id, MIN(MIG_ID, SNAP_ID));
}

static struct puller *puller_new(struct server *s, const struct link_line *l, int fd[2])
{
    struct puller *p = calloc(1, sizeof(*p));
    bool again = !strcmp(l->verb, "again");

    if (!p)
        return NULL;
    struct mig *m = &p->m;
    p->s = s;
    p->since = now_ns();
    p->until = p->since + MIN(s->limit_s, 1000000000) * NSEC_PER_SEC;
    p->fd[0] = p->fd[1] = p->next[0] = p->next[1] = -1;
    memcpy(again ? p->next : p->fd, fd, sizeof(p->fd));
    if (again)
        small_buffer(fd[LINK_BULK]);
    m->io = &io;
    m->ctx = p;
    m->mem = &s->t.mem;
    m->npages = s->t.mem.size / PAGE_SIZE;
    m->nwords = pages_words(&s->t.mem);
    m->blob = s->t.blob; // a source reads it alone
    m->blob_len = s->t.blob_len;
    m->mode = s->t.nfirst ? MIG_HYBRID
                          : MIG_POSTCOPY; // hybrid: one round, since no time is given for more
    m->clone = m->peer_ran = true;
    m->verify = s->verify;
    m->bytes_s = s->bandwidth * MIB;
    m->epoch = 1;
    m->paused = m->committed = m->running = again;
    atomic_store(&m->st.role, MIG_SOURCE);
    session(m, l->session, s->t.id);
    m->sum = s->t.sum;
    if (buffers(m))
        return p;
    free(m->todo);
    free(m->stage);
    free(p);
    return NULL;
}

static void report(const struct server *s, const struct link_line *l, const struct mig *m, int rc)
{
    const struct migration_status *st = &m->st;
    const char *why = rc == 0 ? "" : m->stop ? "it has had its time, or the server ends" : m->e.msg;

    if (s->quiet && !s->json)
        return;
    flockfile(stdout);
    if (s->json) {
        printf("{\"name\":\"%s\",\"session\":\"%s\",\"again\":%s,\"result\":\"%s\",\"pages\":%llu,"
               "\"first_pages\":%llu,\"requests\":%llu,\"bytes\":%llu,\"start_ms\":%.3f,"
               "\"total_ms\":%.3f,\"error\":",
               l->name, l->session, strcmp(l->verb, "again") ? "false" : "true",
               rc == 0 ? "served" : "broken", (unsigned long long)st->pages,
               (unsigned long long)(m->mode == MIG_HYBRID && strcmp(l->verb, "again") ? s->t.nfirst
                                                                                      : 0),
               (unsigned long long)st->requests, (unsigned long long)st->bytes,
               (double)st->downtime_us / 1e3, (double)st->total_us / 1e3);
        print_string(stdout, why);
        printf("}\n");
    } else if (rc == 0)
        printf("%s: served in %.1f ms, %llu pages, %llu asked for\n", l->name,
               (double)st->total_us / 1e3, (unsigned long long)st->pages,
               (unsigned long long)st->requests);
    else {
        printf("%s: not whole: ", l->name);
        print_text(stdout, why);
        putchar('\n');
    }
    fflush(stdout);
    funlockfile(stdout);
}

void serve_puller(struct server *s, const struct link_line *l, int fd[2])
{
    struct puller *p = puller_new(s, l, fd);

    link_answer(fd[LINK_BULK], p ? NULL : "this server is out of memory", NULL);
    if (!p) {
        close_fdp(&fd[0]);
        close_fdp(&fd[1]);
        return;
    }
    if (!p->m.running) {
        p->counted = true;
        atomic_fetch_add(&s->starting, 1);
    }
    int rc = mig_source(&p->m);
    not_starting(p);
    close_fdp(&p->next[0]);
    close_fdp(&p->next[1]);
    report(s, l, &p->m, rc);
    free(p->m.todo);
    free(p->m.stage);
    free(p);
}
