// SPDX-License-Identifier: Apache-2.0
// The target: greets, reserves, takes pages and state, makes a microVM of it, and owns it when the arbiter says so.
#include "snapshot/mig_priv.h"

#define HELLO_LEN 112u

// The reason of a refusal is read before the connection ends: bytes that nobody reads would reset it.
static void linger(struct mig *m)
{
    uint64_t until = m->io->now(m->ctx) + NSEC_PER_SEC;
    bool open[2] = {true, true};

    while ((open[0] || open[1]) && m->io->now(m->ctx) < until && !m->stop) {
        for (int i = 0; i < 2; i++) {
            long k = open[i] ? m->io->recv(m->ctx, (enum mig_ch)i, m->ch[i].buf, MIG_PAYLOAD) : 0;
            open[i] = k > 0 || k == -EAGAIN;
        }
        m->io->wait(m->ctx, (open[0] ? MIG_EV_URGENT_IN : 0u) | (open[1] ? MIG_EV_BULK_IN : 0u),
                    until);
    }
}

static int refuse(struct mig *m, int rc)
{
    if (mig_put(m, MIG_URGENT, M_REFUSE, 0, 0, m->e.msg, strlen(m->e.msg)) == 0)
        linger(m);
    return rc;
}

// Blocks until one message is whole: the greeting has nothing else to do.
static int one(struct mig *m, enum mig_ch ch, struct mig_msg *g)
{
    uint64_t until = m->io->now(m->ctx) + m->silence;
    int rc;

    while ((rc = mig_get(m, ch, g)) == 0) {
        if (m->stop || (m->cancel && !m->committed))
            return -ECANCELED;
        if (m->io->now(m->ctx) >= until)
            return -ETIMEDOUT;
        m->io->wait(m->ctx, ch == MIG_URGENT ? MIG_EV_URGENT_IN : MIG_EV_BULK_IN, until);
    }
    return rc < 0 ? rc : g->type == M_HELLO && g->len == HELLO_LEN && g->arg == ch ? 0 : -EBADMSG;
}

static int judge_hello(struct mig *m, const uint8_t *p)
{
    uint32_t version = le32_get(p), mode = le32_get(p + 80);
    bool arbitrated = le32_get(p + 88);

    if (version != MIG_VERSION || le64_get(p + 8) & ~MIG_FEATURES)
        return err_set(&m->e, ENOTSUP,
                       "migration protocol %u with features %#llx, this monitor has %u", version,
                       (unsigned long long)le64_get(p + 8), MIG_VERSION);
    if (le32_get(p + 4) != PAGE_SIZE || mode > MIG_HYBRID)
        return err_set(&m->e, ENOTSUP, "pages of %u bytes, mode %u", le32_get(p + 4), mode);
    if (arbitrated != m->arbitrated)
        return err_set(&m->e, EINVAL, "arbiter: one side names one, the other does not");
    return 0;
}

// A first greeting says which session this is; later ones must be of the same, or they are somebody else's.
static int greet(struct mig *m, bool again)
{
    struct mig_msg g;
    uint8_t p[HELLO_LEN];

    mig_fresh_link(m);
    int rc = one(m, MIG_URGENT, &g);
    if (rc)
        return rc;
    memcpy(p, g.data, sizeof(p));
    if ((rc = one(m, MIG_BULK, &g)))
        return rc;
    if (memcmp(p, g.data, sizeof(p)) || le32_get(p + 84) != again ||
        (again && (memcmp(m->session, p + 16, MIG_ID) || memcmp(m->uuid, p + 32, MIG_ID))))
        return -EBADMSG;
    memcpy(m->session, p + 16, MIG_ID);
    if (!again) {
        memcpy(m->uuid, p + 32, MIG_ID);
        memcpy(m->peer, p + 48, MIG_ID);
        m->epoch = le64_get(p + 64) + 1;
        m->mode = (enum mig_mode)le32_get(p + 80);
        m->verify = le32_get(p + 92);
        m->clone = le64_get(p + 8) & MIG_F_CLONE;
        atomic_store(&m->st.mode, m->mode);
        if ((rc = judge_hello(m, p)))
            return refuse(m, rc);
    }
    return mig_put(m, MIG_URGENT, M_WELCOME, MIG_VERSION, m->running, m->self, MIG_ID);
}

static int reserve(struct mig *m)
{
    atomic_store(&m->st.stage, MIG_S_RESERVE);
    int rc = mig_call_wait(m, MIG_C_RESERVE);
    if (rc)
        return refuse(m, rc);
    m->accepted = true;
    m->gathered = 0;
    atomic_store(&m->st.stage, MIG_S_PRECOPY);
    return mig_put(m, MIG_URGENT, M_ACCEPT, m->lease_ns / MIG_MS, 0, NULL, 0);
}

static int start_call(struct mig *m, enum mig_call what)
{
    m->calling = true;
    m->call = what;
    return m->io->call(m->ctx, what);
}

// Faults are served while the control thread restores: clocks and rings are in guest memory.
static int restore(struct mig *m)
{
    int rc = 0;

    atomic_store(&m->st.stage, MIG_S_STOP);
    m->paused_at = m->io->now(m->ctx);
    if (m->verify)
        m->sum = mig_ram_sum(m, m->todo);
    if (atomic_load(&m->st.remaining_pages)) {
        rc = m->io->arm(m->ctx, m->todo);
        m->armed = rc == 0;
    }
    if (rc)
        return refuse(m, err_set(&m->e, -rc, "userfaultfd: %s", strerror(-rc)));
    return start_call(m, MIG_C_RESTORE);
}

static int on_bulk(struct mig *m, const struct mig_msg *g)
{
    int rc;

    switch (g->type) {
    case M_SHAPE:
        rc = m->accepted ? -EBADMSG : mig_take_blob(m, g);
        return rc > 0 ? reserve(m) : rc;
    case M_PAGES:
    case M_ZERO:
        return mig_take_pages(m, g);
    case M_ROUND:
        if (!m->accepted || m->whole)
            return -EBADMSG;
        atomic_fetch_add(&m->st.rounds, 1);
        return mig_put(m, MIG_URGENT, M_ROUND_OK, 0, 0, NULL, 0);
    case M_ABSENT:
        rc = !m->accepted || m->whole || atomic_load(&m->st.remaining_pages)
                 ? -EBADMSG
                 : mig_take_bits(m, g, m->todo);
        if (rc > 0)
            atomic_store(&m->st.remaining_pages, mig_count(m, m->todo));
        return MIN(rc, 0);
    case M_STATE:
        rc = !m->accepted || m->whole || m->gathered ? -EBADMSG : mig_take_blob(m, g);
        m->whole |= rc > 0;
        return rc > 0 ? restore(m) : rc;
    default:
        return -EBADMSG;
    }
}

static int on_urgent(struct mig *m, const struct mig_msg *g)
{
    switch (g->type) {
    case M_PAGES:
    case M_ZERO:
        return m->whole ? mig_take_pages(m, g) : -EBADMSG;
    case M_COMMIT:
        if (!m->restored || g->arg != m->epoch)
            return -EBADMSG;
        m->offered = true;
        m->peer_ran = g->arg2;
        return 0;
    case M_FREE:
        m->freed = m->drained;
        return m->freed ? 0 : -EBADMSG;
    case M_PING:
        return 0;
    default:
        return -EBADMSG;
    }
}

// Told to take it, we ask the arbiter and nobody else; without its answer nothing runs here.
static int take(struct mig *m)
{
    atomic_store(&m->st.stage, MIG_S_COMMIT);
    int rc = arb_take(m);
    if (rc == 0) {
        m->committed = true;
        m->known = m->arbitrated; // else its record, if there will be one, is still to be made
        atomic_store(&m->st.state, m->up ? MIG_ACTIVE : MIG_PAUSED);
        atomic_store(&m->st.epoch, m->epoch);
        m->silence = MIG_SILENT_NS;
        return start_call(m, MIG_C_ACTIVATE);
    }
    if (rc == -ESTALE)
        return err_set(&m->e, ESTALE, "the source took the microVM back");
    atomic_store(&m->st.state, MIG_UNKNOWN);
    err_set(&m->e, -rc, "the arbiter does not answer, the microVM stays paused: %s", strerror(-rc));
    return 0;
}

static int on_called(struct mig *m)
{
    int rc = m->io->called(m->ctx);

    if (rc == -EAGAIN)
        return 0;
    m->calling = false;
    if (m->call == MIG_C_RESTORE) {
        if (rc)
            return refuse(m, rc);
        m->restored = true;
        m->progress = m->io->now(m->ctx);
        return mig_put(m, MIG_URGENT, M_PREPARED, m->sum, 0, NULL, 0);
    }
    if (m->call == MIG_C_ACTIVATE) {
        if (rc) { // ours, and cannot run: a disk is held by somebody else. It stays paused, and is tried again
            atomic_store(&m->st.state, MIG_UNKNOWN);
            m->committed = false;
            return 0;
        }
        uint64_t now = m->io->now(m->ctx);
        m->running = true;
        atomic_store(&m->st.downtime_us, (now - m->paused_at) / 1000);
        atomic_store(&m->st.stage, MIG_S_ACTIVATE);
        m->e.msg[0] = 0;
        return m->up ? mig_put(m, MIG_URGENT, M_RUNNING, m->epoch, 0, NULL, 0) : 0;
    }
    return 0;
}

static int read_link(struct mig *m, unsigned ev)
{
    struct mig_msg g;
    int rc = 0;

    while (ev & MIG_EV_URGENT_IN && (rc = mig_get(m, MIG_URGENT, &g)) > 0)
        if ((rc = on_urgent(m, &g)))
            break;
    if (rc == 0 && ev & MIG_EV_BULK_IN && (rc = mig_get(m, MIG_BULK, &g)) > 0)
        rc = on_bulk(m, &g); // one: faults and urgent pages go before the next
    return rc;
}

static int drained(struct mig *m)
{
    if (m->armed && !atomic_load(&m->st.remaining_pages)) {
        m->io->disarm(m->ctx);
        m->armed = false;
    }
    if (!m->running || m->drained || m->armed)
        return 0;
    m->drained = true;
    m->progress = m->io->now(m->ctx);
    return m->up ? mig_put(m, MIG_URGENT, M_DRAINED, m->pulled, m->sum, NULL, 0) : 0;
}

static void link_down(struct mig *m, int rc)
{
    m->io->hangup(m->ctx);
    m->up = false;
    if (m->armed || !m->running) {
        mig_fail(m, rc, "the link is down");
        atomic_store(&m->st.state, MIG_PAUSED);
    }
}

static int link_up(struct mig *m)
{
    int rc = greet(m, true);

    if (rc == 0)
        rc = mig_put_bits(m, MIG_URGENT, M_BITMAP);
    if (rc == 0)
        rc = mig_want_again(m);
    if (rc)
        return rc;
    m->up = true;
    m->drained = m->freed = false; // said again on this link
    m->progress = m->io->now(m->ctx);
    m->e.msg[0] = 0;
    atomic_fetch_add(&m->st.recoveries, 1);
    atomic_store(&m->st.state, MIG_ACTIVE);
    return 0;
}

static int turn(struct mig *m)
{
    unsigned want =
        (m->up ? MIG_EV_URGENT_IN | MIG_EV_BULK_IN : 0u) | (m->armed ? MIG_EV_FAULT : 0u);
    uint64_t until = m->io->now(m->ctx) + MIG_BEAT_NS;

    unsigned ev = m->io->wait(m->ctx, want, until);
    int rc = ev & MIG_EV_FAULT ? mig_on_faults(m) : 0;
    if (rc == 0 && m->up)
        rc = read_link(m, ev);
    if (rc == 0 && m->calling)
        rc = on_called(m);
    if (rc == 0 && m->offered && !m->committed && !m->calling)
        rc = take(m);
    if (rc == 0)
        rc = drained(m);
    if (rc || !m->up)
        return rc;
    // A peer that pings but brings nothing of what is due has lost a message: a new link finds out which.
    bool due = m->running && (m->armed || m->drained);
    return due && m->io->now(m->ctx) - m->progress >= MIG_STEP_NS ? -ETIMEDOUT : mig_beat(m);
}

// Everything is here, and nobody waits for an answer any more.
static bool complete(const struct mig *m)
{
    return m->running && !m->armed && !m->calling && (m->freed || !m->up);
}

static int work(struct mig *m)
{
    for (;;) {
        if (!m->up && m->running && m->io->reconnect(m->ctx) && link_up(m))
            link_down(m, -EPIPE);
        if (complete(m))
            return 0;
        if (m->stop || (m->cancel && !m->offered))
            return -ECANCELED;
        if (m->give_up && m->armed && !m->up)
            return -EOWNERDEAD;
        int rc = turn(m);
        if (rc && (!m->offered || rc == -ESTALE))
            return rc;
        if (rc)
            link_down(m, rc);
    }
}

int mig_target(struct mig *m)
{
    m->begun = m->io->now(m->ctx);
    m->silence = m->lease_ns;
    atomic_store(&m->st.stage, MIG_S_PRE);
    int rc = m->running ? 0 : greet(m, false);
    m->up = rc == 0 && !m->running;
    if (rc == 0)
        rc = work(m);
    if (rc)
        mig_fail(m, rc, "migration");
    if (rc && !m->running && !m->stop) {
        // Who waits for a page now gets zeros: it is a microVM that never ran and never will.
        if (m->armed)
            m->io->disarm(m->ctx);
        while (m->calling && m->io->called(m->ctx) == -EAGAIN)
            m->io->wait(m->ctx, 0, UINT64_MAX);
        m->io->hangup(m->ctx);
        mig_call_wait(m, MIG_C_ABANDON);
    } else {
        m->io->hangup(m->ctx);
    }
    if (rc == -EOWNERDEAD)
        mig_call_wait(m, MIG_C_LOST);
    atomic_store(&m->st.total_us, (m->io->now(m->ctx) - m->begun) / 1000);
    atomic_store(&m->st.state, rc == 0             ? MIG_DONE
                               : rc == -EOWNERDEAD ? MIG_LOST
                               : rc == -ECANCELED  ? MIG_CANCELLED
                                                   : MIG_FAILED);
    return rc;
}
