// SPDX-License-Identifier: Apache-2.0
// The simulated network: byte queues with delays, and every fault that the plan holds for a message.
#include "tests/sim/sim.h"

#define CAP (96 * 1024)

struct sim_link *sim_connect(struct sim *s)
{
    if (s->nlinks == SIM_LINKS)
        return NULL;
    struct sim_link *l = &s->links[s->nlinks++];
    for (int i = 0; i < 2; i++)
        for (int ch = 0; ch < 2; ch++) {
            l->p[i][ch] = (struct sim_pipe){.until = s->now};
            l->p[i][ch].last = &l->p[i][ch].first;
        }
    return l;
}

static void empty(struct sim_pipe *p)
{
    for (struct sim_seg *g; (g = p->first);) {
        p->first = g->next;
        free(g);
    }
    free(p->held);
    p->held = NULL;
    p->last = &p->first;
    p->bytes = 0;
}

void sim_net_free(struct sim *s)
{
    for (unsigned i = 0; i < s->nlinks; i++)
        for (int k = 0; k < 4; k++)
            empty(&s->links[i].p[k / 2][k % 2]);
}

static void cut(struct sim_link *l, int ch)
{
    for (int i = 0; i < 2; i++) {
        empty(&l->p[i][ch]);
        l->p[i][ch].reset = true;
    }
}

void sim_hangup(void *c)
{
    struct sim *s = sim_of(c);
    struct sim_side *d = c;

    for (int ch = 0; d->link && ch < 2; ch++) {
        struct sim_pipe *out = &d->link->p[d->index][ch];
        if (!out->hole)
            out->ended = true;
        if (d->link->p[!d->index][ch].first &&
            sim_chance(s, 50)) // unread bytes at close: a reset takes what is in flight
            cut(d->link, ch);
    }
    d->link = NULL;
}

bool sim_reconnect(void *c)
{
    struct sim_side *d = c;

    if (!d->next_link)
        return false;
    sim_hangup(d);
    d->link = d->next_link;
    d->next_link = NULL;
    return true;
}

void sim_crash(struct sim *s, struct sim_side *d, bool silent)
{
    if (d->dead)
        return;
    sim_log(s, "%s %s", d->index ? "target" : "source", silent ? "freezes" : "dies");
    if (silent && d->link)
        for (int i = 0; i < 4; i++)
            d->link->p[i / 2][i % 2].hole = true;
    else
        sim_hangup(d);
    if (d->next_link) {
        d->link = d->next_link;
        sim_hangup(d);
        d->next_link = NULL;
    }
    d->dead = true;
    d->running = false;
    sim_store_crash(s, d);
    if (s->disk == d->index)
        s->disk = -1;
}

static struct sim_seg *seg_new(const uint8_t *b, size_t n)
{
    struct sim_seg *g = malloc(sizeof(*g) + n);
    *g = (struct sim_seg){.len = (uint32_t)n};
    memcpy(g->b, b, n);
    return g;
}

static void put(struct sim *s, struct sim_pipe *p, struct sim_seg *g)
{
    p->until = MAX(p->until, s->now + 10000 + sim_rand(s, 60000)) + g->len / 2;
    g->at = p->until;
    *p->last = g;
    p->last = &g->next;
    p->bytes += g->len;
}

// Damages the message in g as the fault says. False: it is not sent.
static bool apply(struct sim *s, struct sim_side *d, const struct sim_fault *f, struct sim_pipe *p,
                  int ch, struct sim_seg **g)
{
    struct sim_side *peer = &s->side[!d->index];

    switch (f->what) {
    case F_CRASH_SELF:
        sim_crash(s, d, false);
        return false;
    case F_CRASH_PEER:
        sim_crash(s, peer, false);
        return true;
    case F_FREEZE_SELF:
        sim_crash(s, d, true);
        return false;
    case F_CUT:
        cut(d->link, 0);
        cut(d->link, 1);
        return false;
    case F_CUT_ONE:
        cut(d->link, ch);
        return false;
    case F_HOLE:
        for (int i = 0; i < 4; i++)
            d->link->p[i / 2][i % 2].hole = true;
        return false;
    case F_HOLE_ONE_WAY:
        d->link->p[d->index][0].hole = d->link->p[d->index][1].hole = true;
        return false;
    case F_STALL:
        p->until += (sim_chance(s, 50) ? 1000 : 7000) * SIM_MS;
        return true;
    case F_TRUNCATE:
        (*g)->len = (uint32_t)sim_rand(s, (*g)->len);
        put(s, p, *g);
        *g = NULL;
        p->ended = true;
        return false;
    case F_DUPLICATE:
        put(s, p, seg_new((*g)->b, (*g)->len));
        return true;
    case F_REORDER:
        free(p->held);
        p->held = *g;
        p->held_for = sim_chance(s, 50) ? 1 : 1 + (unsigned)sim_rand(s, 60);
        *g = NULL;
        return false;
    case F_FLIP:
        (*g)->b[sim_rand(s, (*g)->len)] ^= (uint8_t)(1u << sim_rand(s, 8));
        return true;
    case F_FLIP_HEAD:
        (*g)->b[sim_rand(s, MIG_HEAD)] ^= (uint8_t)(1u << sim_rand(s, 8));
        return true;
    case F_GARBAGE:
        for (uint32_t i = 0; i < (*g)->len; i++)
            (*g)->b[i] = (uint8_t)sim_rand(s, 256);
        return true;
    case F_CANCEL:
        s->was_cancelled = true;
        s->side[SRC].m.cancel = true;
        s->side[SRC].woken = true;
        return true;
    case F_STORE_DOWN:
        s->store_back = s->now + sim_rand(s, 20000) * SIM_MS;
        return true;
    case F_STORE_EIO:
        s->store_eio = 1 + (int)sim_rand(s, 8);
        return true;
    case F_KINDS:
        break;
    }
    return true;
}

static struct sim_fault *due(struct sim *s, const struct sim_side *d, uint32_t type)
{
    unsigned n = s->sent[d->index][type]++;

    for (unsigned i = 0; i < s->nfaults; i++) {
        struct sim_fault *f = &s->fault[i];
        if (!f->done && f->side == d->index && f->type == type && n >= f->nth)
            return f;
    }
    return NULL;
}

// A message comes whole in the first call for it: its head is the first vector. The rest of a message that was
// taken in part is more bytes of the same.
long sim_send(void *c, enum mig_ch ch, const struct iovec *v, int n)
{
    struct sim *s = sim_of(c);
    struct sim_side *d = c;
    uint8_t all[MIG_HEAD + MIG_PAYLOAD];
    size_t len = 0;

    if (!d->link)
        return -EPIPE;
    struct sim_pipe *p = &d->link->p[d->index][ch], *back = &d->link->p[!d->index][ch];
    if (p->reset || (back->ended && sim_chance(s, 50)))
        return -EPIPE;
    for (int i = 0; i < n; i++) {
        memcpy(all + len, v[i].iov_base, v[i].iov_len);
        len += v[i].iov_len;
    }
    bool head = v[0].iov_len == MIG_HEAD;
    if (p->bytes >= CAP)
        return -EAGAIN;
    struct sim_fault *f = head ? due(s, d, MIN(le32_get(all), M_TYPES - 1u)) : NULL;
    struct sim_seg *held = NULL;
    if (p->held && head && p->held_for-- == 1) {
        held = p->held;
        p->held = NULL;
    }
    bool go = true;
    if (!f && !held)
        len = MIN(len, CAP - p->bytes);
    if (!f && !held && sim_chance(s, 10))
        len = 1 + sim_rand(s, len);
    struct sim_seg *g = seg_new(all, len);
    if (f) {
        f->done = true;
        s->fired++;
        sim_log(s, "fault %d at message %u of side %d", f->what, f->type, d->index);
        go = apply(s, d, f, p, (int)ch, &g);
    }
    if (g && go && !p->hole && !p->reset && !p->ended)
        put(s, p, g);
    else
        free(g);
    if (held && !p->reset && !p->ended)
        put(s, p, held);
    else
        free(held);
    if (d->dead)
        sim_yield(s); // for ever
    return (long)len;
}

long sim_recv(void *c, enum mig_ch ch, void *buf, size_t n)
{
    struct sim *s = sim_of(c);
    struct sim_side *d = c;

    if (!d->link)
        return -EPIPE;
    struct sim_pipe *p = &d->link->p[!d->index][ch];
    struct sim_seg *g = p->first;
    if (p->reset)
        return -ECONNRESET;
    if (!g)
        return p->ended ? 0 : -EAGAIN;
    if (g->at > s->now)
        return -EAGAIN;
    n = MIN(n, g->len - g->off);
    memcpy(buf, g->b + g->off, n);
    g->off += (uint32_t)n;
    p->bytes -= n;
    if (g->off == g->len) {
        p->first = g->next;
        p->last = p->first ? p->last : &p->first;
        free(g);
        if (!n)
            return sim_recv(c, ch, buf, 1);
    }
    return (long)n;
}

unsigned sim_events(struct sim_side *d, unsigned want)
{
    struct sim *s = sim_of(d);
    unsigned got = 0;

    for (int ch = 0; ch < 2; ch++) {
        unsigned in = ch ? MIG_EV_BULK_IN : MIG_EV_URGENT_IN,
                 out = ch ? MIG_EV_BULK_OUT : MIG_EV_URGENT_OUT;
        if (!d->link)
            continue; // as a descriptor of -1
        const struct sim_pipe *rx = &d->link->p[!d->index][ch], *tx = &d->link->p[d->index][ch];
        if (want & in && (rx->reset || (rx->first ? rx->first->at <= s->now : rx->ended)))
            got |= in;
        if (want & out && (tx->reset || tx->bytes < CAP))
            got |= out;
    }
    if (want & MIG_EV_FAULT && d->nfaults)
        got |= MIG_EV_FAULT;
    if (d->woken)
        got |= MIG_EV_CALLED;
    return got;
}

uint64_t sim_next_arrival(struct sim *s)
{
    uint64_t t = UINT64_MAX;

    for (int i = 0; i < 2; i++)
        for (int ch = 0; s->side[i].link && ch < 2; ch++) {
            const struct sim_seg *g = s->side[i].link->p[!i][ch].first;
            if (g && g->at > s->now) // earlier: nobody waits for it
                t = MIN(t, g->at);
        }
    return t;
}
