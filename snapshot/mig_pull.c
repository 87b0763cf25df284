// SPDX-License-Identifier: Apache-2.0
// The target's pages: put in place as they come, asked for when somebody waits.
#include "snapshot/mig_priv.h"

static void landed(struct mig *m, uint64_t page, uint64_t n)
{
    uint64_t now = m->io->now(m->ctx);

    for (size_t i = 0; i < ARRAY_SIZE(m->waits); i++) {
        struct mig_wait *w = &m->waits[i];
        if (!w->since || w->page - page >= n)
            continue;
        unsigned us = (unsigned)MIN((now - w->since) / 1000, UINT32_MAX), b = 0;
        while (us >> b && b < MIG_HIST - 1)
            b++;
        atomic_fetch_add(&m->st.hist[b], 1);
        w->since = 0;
    }
}

// During the pull: of [page, page + n), what is absent.
static int pulled(struct mig *m, uint64_t page, uint64_t n, const uint8_t *data)
{
    for (uint64_t end = page + n, p = page, k; p < end; p += k) {
        bool absent = m->todo[p / 64] >> p % 64 & 1;
        for (k = 1; p + k < end && (m->todo[(p + k) / 64] >> (p + k) % 64 & 1) == absent;)
            k++;
        if (!absent) {
            atomic_fetch_add(&m->st.duplicates, k);
            continue;
        }
        const uint8_t *from = data ? data + (p - page) * PAGE_SIZE : NULL;
        // Summed before it is placed: the guest may write it at once.
        for (uint64_t i = 0; m->verify && from && i < k; i++)
            m->sum += mig_page_sum(p + i, from + i * PAGE_SIZE);
        int rc = m->io->place(m->ctx, p, k, from);
        if (rc)
            return rc;
        for (uint64_t i = p; i < p + k; i++)
            m->todo[i / 64] &= ~(1ULL << i % 64);
        m->pulled += k;
        m->progress = m->io->now(m->ctx);
        atomic_fetch_sub(&m->st.remaining_pages, k);
        landed(m, p, k);
    }
    return 0;
}

int mig_take_pages(struct mig *m, const struct mig_msg *g)
{
    uint64_t n = g->type == M_ZERO ? g->arg2 : g->len / PAGE_SIZE;
    const uint8_t *data = g->type == M_ZERO ? NULL : g->data;

    if (!m->accepted || !n || g->arg >= m->npages || n > m->npages - g->arg ||
        (g->type == M_ZERO ? g->len : g->len % PAGE_SIZE))
        return -EBADMSG;
    atomic_fetch_add(data ? &m->st.pages : &m->st.zero_pages, n);
    return m->whole ? pulled(m, g->arg, n, data) : m->io->place(m->ctx, g->arg, n, data);
}

static int want(struct mig *m, uint64_t page)
{
    struct mig_wait *w = m->waits;

    for (size_t i = 0; i < ARRAY_SIZE(m->waits); i++)
        if (!m->waits[i].since)
            w = &m->waits[i];
    if (!w->since)
        *w = (struct mig_wait){.page = page, .since = m->io->now(m->ctx)};
    m->aux[page / 64] |= 1ULL << page % 64;
    atomic_fetch_add(&m->st.requests, 1);
    return m->up ? mig_put(m, MIG_URGENT, M_WANT, page, 0, NULL, 0) : 0;
}

// A page that the source never had is zeros, and needs no journey.
int mig_on_faults(struct mig *m)
{
    uint64_t page;
    int rc;

    while ((rc = m->io->fault(m->ctx, &page)) > 0) {
        bool absent = m->todo[page / 64] >> page % 64 & 1,
             asked = m->aux[page / 64] >> page % 64 & 1;
        atomic_fetch_add(&m->st.faults, 1);
        rc = !absent ? m->io->place(m->ctx, page, 1, NULL) : asked ? 0 : want(m, page);
        if (rc)
            return rc;
    }
    return rc;
}

int mig_want_again(struct mig *m)
{
    int rc = 0;

    for (uint64_t p = 0; rc == 0 && pages_run(m->aux, m->npages, &p); p++)
        if (m->todo[p / 64] >> p % 64 & 1)
            rc = mig_put(m, MIG_URGENT, M_WANT, p, 0, NULL, 0);
    return rc;
}
