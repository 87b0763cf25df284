// SPDX-License-Identifier: Apache-2.0
// A hostile peer: either engine of a migration reads messages whose content is the fuzzer's, framed as a knowing
// enemy would frame them (right checksums, numbers, session) or, where the input says so, not.
//
// Input: role (1 source, 32 it served this peer before, 64 it serves a snapshot), then records of: control byte (channel, framed, how many bytes a read gives), type, arg (2 bytes,
// sign-extended by a flag), arg2 (2), length (2), payload.
#include "snapshot/codec.h"
#include "snapshot/mig_priv.h"

#define PAGES 64u

struct rec {
    const uint8_t *p;
    size_t left;
};

struct world {
    struct mig m;
    struct rec in;
    uint8_t queue[2][2 * (MIG_HEAD + MIG_PAYLOAD)];
    size_t head[2], tail[2];
    uint64_t seq[2], now;
    bool ended, calling, shot,
        away; // away: a source's peer that comes back, as one of a served snapshot does
    enum mig_call what;
    uint8_t ram[PAGES * PAGE_SIZE];
    struct guest_mem mem;
    uint64_t todo[1], aux[1];
    unsigned chunk, turns;
    uint64_t placed;
};

static uint32_t sum_of(const struct mig *m, unsigned ch, const uint8_t *h)
{
    uint8_t key[MIG_ID + 1] = {0};

    if (le32_get(h) != M_HELLO)
        memcpy(key, m->session, MIG_ID);
    key[MIG_ID] = (uint8_t)(ch << 1 | (atomic_load(&m->st.role) == MIG_TARGET));
    return mig_crc(mig_crc(0, key, sizeof(key)), h, 36);
}

static uint8_t byte(struct rec *r)
{
    if (!r->left)
        return 0;
    r->left--;
    return *r->p++;
}

static uint64_t number(struct rec *r, bool wide)
{
    uint16_t v = (uint16_t)(byte(r) | byte(r) << 8);
    return wide ? (uint64_t)(int64_t)(int16_t)v : v;
}

// The payload's checksum for pages is not public; the engine's own sender makes it (struct sink).
struct sink {
    struct mig m;
    uint8_t out[MIG_HEAD + MIG_PAYLOAD];
    size_t n;
};

static long sink_send(void *c, enum mig_ch ch, const struct iovec *v, int n)
{
    struct sink *s = c;
    (void)ch;
    for (int i = 0; i < n; i++) {
        memcpy(s->out + s->n, v[i].iov_base, v[i].iov_len);
        s->n += v[i].iov_len;
    }
    return (long)s->n;
}

static uint64_t sink_now(void *c)
{
    (void)c;
    return 1;
}

static void feed(struct world *w)
{
    static const struct mig_io io = {.send = sink_send, .now = sink_now};
    struct rec *r = &w->in;
    struct sink s = {.n = 0};

    if (r->left < 8) {
        w->ended = true;
        return;
    }
    uint8_t ctl = byte(r), type = byte(r);
    unsigned ch = ctl & 1;
    uint64_t arg = number(r, ctl & 16), arg2 = number(r, ctl & 32);
    size_t len = number(r, false) % (MIG_PAYLOAD + 1);
    uint8_t *payload = calloc(1, MIG_PAYLOAD);
    size_t have = MIN(len, r->left);
    memcpy(payload, r->p, have);
    r->p += have;
    r->left -= have;
    w->chunk = 1u + (ctl >> 6) * 977u;
    s.m.io = &io;
    s.m.ctx = &s;
    s.m.ch[ch].tx = w->seq[ch];
    atomic_store(&s.m.st.role, atomic_load(&w->m.st.role) == MIG_SOURCE ? MIG_TARGET : MIG_SOURCE);
    mig_put(&s.m, (enum mig_ch)ch, (enum mig_type)(type % (M_TYPES + 2)), arg, arg2, payload, len);
    if (!(ctl & 8)) { // framed well
        le32_put(s.out + 36, sum_of(&w->m, ch, s.out));
        w->seq[ch]++;
    } else if (s.n > 1) {
        s.out[arg % s.n] ^= (uint8_t)(1u << (arg2 & 7));
    }
    if (sizeof(w->queue[ch]) - w->tail[ch] >= s.n) {
        memcpy(w->queue[ch] + w->tail[ch], s.out, s.n);
        w->tail[ch] += s.n;
    }
    free(payload);
}

static long f_send(void *c, enum mig_ch ch, const struct iovec *v, int n)
{
    long k = 0;
    (void)c, (void)ch;
    for (int i = 0; i < n; i++)
        k += (long)v[i].iov_len;
    return k;
}

static long f_recv(void *c, enum mig_ch ch, void *buf, size_t n)
{
    struct world *w = c;

    if (w->away)
        return 0;
    if (w->head[ch] == w->tail[ch]) {
        w->head[ch] = w->tail[ch] = 0;
        return w->ended ? 0 : -EAGAIN;
    }
    n = MIN(MIN(n, w->chunk), w->tail[ch] - w->head[ch]);
    memcpy(buf, w->queue[ch] + w->head[ch], n);
    w->head[ch] += n;
    return (long)n;
}

static void f_hangup(void *c)
{
    (void)c;
}

static bool f_reconnect(void *c)
{
    struct world *w = c;
    bool back = w->away;

    w->away = false;
    return back;
}

static unsigned f_wait(void *c, unsigned want, uint64_t until)
{
    struct world *w = c;

    w->now += 50 * MIG_MS;
    if (++w->turns > 400)
        atomic_store(&w->m.stop, true);
    if (w->ended && w->m.armed)
        atomic_store(&w->m.give_up, true);
    if (!w->ended && !w->away)
        feed(w);
    (void)until;
    return want | MIG_EV_CALLED;
}

static uint64_t f_now(void *c)
{
    return ((struct world *)c)->now;
}

static int f_dirty(void *c, uint64_t *bits)
{
    (void)c;
    bits[0] |= 5;
    return 0;
}

static int f_arm(void *c, const uint64_t *absent)
{
    (void)c, (void)absent;
    return 0;
}

static void f_disarm(void *c)
{
    (void)c;
}

static int f_place(void *c, uint64_t page, uint64_t n, const void *data)
{
    struct world *w = c;

    if (page >= PAGES || n > PAGES - page)
        __builtin_trap(); // outside RAM
    if (data)
        memcpy(w->ram + page * PAGE_SIZE, data, n * PAGE_SIZE);
    else
        memset(w->ram + page * PAGE_SIZE, 0, n * PAGE_SIZE);
    w->placed += n;
    return 0;
}

static int f_fault(void *c, uint64_t *page)
{
    struct world *w = c;

    w->shot = !w->shot;
    *page = w->turns % PAGES;
    return w->shot;
}

static int f_call(void *c, enum mig_call what)
{
    struct world *w = c;
    w->what = what;
    return 0;
}

static int f_called(void *c)
{
    struct world *w = c;
    struct mig *m = &w->m;

    if (w->what == MIG_C_RESERVE) {
        m->mem = &w->mem;
        m->npages = PAGES;
        m->nwords = 1;
        m->todo = w->todo;
        m->aux = w->aux;
    } else if (w->what == MIG_C_LOOK || w->what == MIG_C_STOP) {
        m->blob_len = 100;
        if (w->what == MIG_C_LOOK)
            m->aux[0] = 0xff00ff;
    }
    return 0;
}

static int f_store(void *c, enum mig_store op, void *buf, size_t n, uint64_t at)
{
    (void)c, (void)op, (void)buf, (void)n, (void)at;
    return op == MIG_READ ? 0 : op == MIG_LOCK ? -EIO : 0;
}

static const struct mig_io io = {
    .send = f_send,
    .recv = f_recv,
    .hangup = f_hangup,
    .reconnect = f_reconnect,
    .wait = f_wait,
    .now = f_now,
    .dirty = f_dirty,
    .arm = f_arm,
    .disarm = f_disarm,
    .place = f_place,
    .fault = f_fault,
    .call = f_call,
    .called = f_called,
    .store = f_store,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world *w = calloc(1, sizeof(*w));
    struct mig *m = &w->m;

    if (!w || size < 2) {
        free(w);
        return 0;
    }
    w->in = (struct rec){data + 1, size - 1};
    w->chunk = 4096;
    w->now = NSEC_PER_SEC;
    w->mem = (struct guest_mem){.n = 1, .size = sizeof(w->ram)};
    w->mem.r[0] = (struct mem_region){.size = sizeof(w->ram), .host = w->ram};
    m->io = &io;
    m->ctx = w;
    m->stage = malloc(MIG_PAYLOAD);
    m->blob = malloc(MIG_BLOB_MAX);
    for (int i = 0; i < 2; i++)
        m->ch[i].buf = malloc(MIG_HEAD + MIG_PAYLOAD);
    m->epoch = 1;
    m->downtime_ns = MIG_MS;
    m->timeout_ns = 100 * MIG_MS;
    m->lease_ns = 10 * NSEC_PER_SEC;
    m->mode = (enum mig_mode)(data[0] / 2 % 3);
    m->verify = data[0] & 16;
    if (data[0] & 1) {
        atomic_store(&m->st.role, MIG_SOURCE);
        m->mem = &w->mem;
        m->npages = PAGES;
        m->nwords = 1;
        m->todo = w->todo;
        m->aux = w->aux;
        for (unsigned i = 0; i < sizeof(w->ram); i += 5000)
            w->ram[i] = 1;
        m->clone = data[0] & 64;
        w->away = data[0] & 32;
        m->paused = m->committed = m->running = w->away;
        mig_source(m);
        if (atomic_load(&m->st.remaining_pages) > PAGES)
            __builtin_trap(); // counted down below nothing: it would push for ever
    } else {
        atomic_store(&m->st.role, MIG_TARGET);
        mig_target(m);
        if (m->pulled > PAGES)
            __builtin_trap(); // a page counted twice
    }
    free(m->stage);
    free(m->blob);
    free(m->ch[0].buf);
    free(m->ch[1].buf);
    free(w);
    return 0;
}
