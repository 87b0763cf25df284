// SPDX-License-Identifier: Apache-2.0
// The source's pages: rounds while the guest runs, pushing and answering while the target pulls.
#include "snapshot/mig_priv.h"

static const uint8_t *page_at(const struct mig *m, uint64_t page, uint64_t *run)
{
    uint64_t len;
    const uint8_t *p = pages_at(m->mem, page * PAGE_SIZE, &len);

    *run = MIN(*run, len / PAGE_SIZE);
    return p;
}

// Sends [page, page + n), zeros as runs without bytes. `data` is theirs; bytes that the guest may still change
// were copied by the caller, since the checksum and the kernel read them at different times.
static int send_run(struct mig *m, enum mig_ch ch, uint64_t page, uint64_t n, const uint8_t *data,
                    bool skip_zero)
{
    int rc = 0;

    for (uint64_t i = 0, k; i < n && rc == 0; i += k) {
        bool zero = page_is_zero(data + i * PAGE_SIZE);
        for (k = 1; i + k < n && page_is_zero(data + (i + k) * PAGE_SIZE) == zero;)
            k++;
        atomic_fetch_add(zero ? &m->st.zero_pages : &m->st.pages, k);
        if (!zero)
            rc = mig_put(m, ch, M_PAGES, page + i, 0, data + i * PAGE_SIZE, k * PAGE_SIZE);
        else if (!skip_zero)
            rc = mig_put(m, ch, M_ZERO, page + i, k, NULL, 0);
    }
    return rc;
}

// The bandwidth that was asked for, kept over the whole migration.
static int pace(struct mig *m)
{
    if (!m->bytes_s)
        return 0;
    uint64_t sent = atomic_load(&m->st.bytes);
    uint64_t due =
        m->begun + sent / m->bytes_s * NSEC_PER_SEC + sent % m->bytes_s * NSEC_PER_SEC / m->bytes_s;
    while (m->io->now(m->ctx) < due && !m->stop && !m->cancel) {
        unsigned ev = m->io->wait(m->ctx, MIG_EV_URGENT_IN, due);
        int rc = ev & MIG_EV_URGENT_IN ? mig_serve(m) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

// Holds a guest that writes faster than the link takes, for st.throttle percent of the time, while pages go on.
static int throttle(struct mig *m)
{
    uint64_t share = atomic_load(&m->st.throttle), now = m->io->now(m->ctx);

    if (m->calling) {
        int rc = m->io->called(m->ctx);
        m->calling = rc == -EAGAIN;
        m->hold_at = now + MIG_SLICE_MS * MIG_MS;
        return m->calling ? 0 : rc;
    }
    m->calling = share && now >= m->hold_at;
    return m->calling ? m->io->call(m->ctx, MIG_C_HOLD) : 0;
}

static int let_go(struct mig *m, int rc)
{
    while (m->calling) {
        int held = throttle(m);
        if (m->calling)
            m->io->wait(m->ctx, 0, UINT64_MAX);
        rc = rc ? rc : held;
    }
    return rc;
}

int mig_send_round(struct mig *m, bool first)
{
    int rc = 0;

    m->round_at = m->io->now(m->ctx);
    m->round_bytes = 0;
    for (uint64_t p = 0, n; rc == 0 && (n = pages_run_max(m->aux, m->npages, &p, MIG_RUN));
         p += n) {
        const uint8_t *src = page_at(m, p, &n);
        memcpy(m->stage, src, n * PAGE_SIZE);
        rc = send_run(m, MIG_BULK, p, n, m->stage, first); // the target's memory begins as zeros
        if (rc == 0)
            rc = pace(m);
        if (rc == 0 && !m->paused)
            rc = throttle(m);
        if (rc == 0 && (m->stop || m->cancel))
            rc = -ECANCELED;
    }
    rc = let_go(m, rc);
    atomic_fetch_add(&m->st.rounds, 1);
    memset(m->aux, 0, m->nwords * 8);
    return rc ? rc : mig_put(m, MIG_BULK, M_ROUND, 0, 0, NULL, 0);
}

static void clear(struct mig *m, uint64_t page, uint64_t n)
{
    for (uint64_t i = page; i < page + n; i++)
        m->todo[i / 64] &= ~(1ULL << i % 64);
    atomic_fetch_sub(&m->st.remaining_pages, n);
}

// The guest is paused: bytes go from its memory as they are. Cleared first, since sending bulk may serve an
// urgent request meanwhile, which must not send the same page.
int mig_push(struct mig *m)
{
    uint64_t p = m->cursor, n = pages_run_max(m->todo, m->npages, &p, MIG_PULL_RUN);

    if (!n) {
        p = 0;
        n = pages_run_max(m->todo, m->npages, &p, MIG_PULL_RUN);
    }
    if (!n)
        return 0;
    const uint8_t *src = page_at(m, p, &n);
    clear(m, p, n);
    m->cursor = p + n;
    int rc = send_run(m, MIG_BULK, p, n, src, false);
    return rc ? rc : pace(m);
}

// A page that is not to be sent any more is on its way. Bulk goes on behind it: guests walk upwards.
static int answer(struct mig *m, uint64_t page)
{
    uint64_t n = 1;

    if (page >= m->npages)
        return -EBADMSG;
    atomic_fetch_add(&m->st.requests, 1);
    if (!(m->todo[page / 64] >> page % 64 & 1))
        return 0;
    const uint8_t *src = page_at(m, page, &n);
    clear(m, page, 1);
    m->cursor = page + 1;
    m->asked = m->io->now(m->ctx);
    return send_run(m, MIG_URGENT, page, 1, src, false);
}

static int refused(struct mig *m, const struct mig_msg *g)
{
    char text[200];
    size_t n = MIN(g->len, sizeof(text) - 1);

    for (size_t i = 0; i < n; i++)
        text[i] = g->data[i] >= ' ' && g->data[i] < 127 ? (char)g->data[i] : '?';
    text[n] = 0;
    return err_set(m->e.msg[0] ? NULL : &m->e, ECONNREFUSED, "the target refuses: %s", text);
}

static int take(struct mig *m, const struct mig_msg *g)
{
    switch (g->type) {
    case M_WANT:
        return m->paused && !m->gathered ? answer(m, g->arg) : -EBADMSG;
    case M_REFUSE:
        return refused(m, g);
    case M_WELCOME:
        if (g->len != MIG_ID)
            return -EBADMSG;
        memcpy(m->peer, g->data, MIG_ID);
        break;
    case M_BITMAP:
        if (atomic_load(&m->st.state) != MIG_PAUSED) // asked for by a greeting alone
            return -EBADMSG;
        int rc = mig_take_bits(m, g, m->todo);
        if (rc <= 0)
            return rc;
        // Here, since a WANT may be the next that is read, and counts down.
        atomic_store(&m->st.remaining_pages, mig_count(m, m->todo));
        break;
    case M_ACCEPT:
    case M_ROUND_OK:
    case M_PREPARED:
    case M_RUNNING:
    case M_DRAINED:
    case M_PING:
        break;
    default:
        return -EBADMSG; // the source's own
    }
    m->seen |= 1u << g->type;
    m->seen_arg[g->type] = g->arg;
    m->seen_arg2[g->type] = g->arg2;
    return 0;
}

int mig_serve(struct mig *m)
{
    struct mig_msg g;
    int rc;

    while ((rc = mig_get(m, MIG_URGENT, &g)) > 0)
        if ((rc = take(m, &g)))
            return rc;
    return rc;
}

// Of the pages that are not in `skip`; a page of zeros counts nothing.
uint64_t mig_ram_sum(struct mig *m, const uint64_t *skip)
{
    uint64_t sum = 0;

    for (uint64_t p = 0, n = 1; p < m->npages; p++, n = 1) {
        if (skip && skip[p / 64] >> p % 64 & 1)
            continue;
        const uint8_t *at = page_at(m, p, &n);
        if (!page_is_zero(at))
            sum += mig_page_sum(p, at);
    }
    return sum;
}
