// SPDX-License-Identifier: Apache-2.0
// The source: the six stages in order, the way back from each, and the service of a pull.
#include "snapshot/mig_priv.h"

#define ROUNDS_MAX    30
#define HYBRID_ROUNDS 3

static void stage(struct mig *m, enum mig_stage s)
{
    atomic_store(&m->st.stage, s);
}

// Waits for a message of the target, answering its requests meanwhile; until 0: while it is heard of, within
// reason.
static int await(struct mig *m, enum mig_type type, uint64_t until)
{
    uint64_t limit = until ? until : m->io->now(m->ctx) + MIG_STEP_NS;
    int rc = 0;

    while (rc == 0 && !(m->seen & 1u << type)) {
        uint64_t now = m->io->now(m->ctx);
        if (now >= limit)
            return -ETIMEDOUT;
        if (m->stop || (m->cancel && !m->offered))
            return -ECANCELED;
        m->io->wait(m->ctx, MIG_EV_URGENT_IN, MIN(limit, now + MIG_BEAT_NS));
        rc = mig_serve(m);
        if (rc == 0 && !until)
            rc = mig_beat(m);
    }
    m->seen &= ~(1u << type);
    return rc;
}

static int hello(struct mig *m, bool again)
{
    uint8_t p[112] = {0};

    le32_put(p, MIG_VERSION);
    le32_put(p + 4, (uint32_t)PAGE_SIZE);
    le64_put(p + 8, m->clone ? MIG_F_CLONE : 0);
    memcpy(p + 16, m->session, MIG_ID);
    memcpy(p + 32, m->uuid, MIG_ID);
    memcpy(p + 48, m->self, MIG_ID);
    le64_put(p + 64, m->epoch);
    le64_put(p + 72, m->mem->size);
    // What it may come to: the target prepares for it.
    le32_put(p + 80, m->mode == MIG_PRECOPY && m->late_pull ? MIG_HYBRID : m->mode);
    le32_put(p + 84, again);
    le32_put(p + 88, m->arbitrated);
    le32_put(p + 92, m->verify);
    mig_fresh_link(m);
    for (int ch = 0; ch < 2; ch++) {
        int rc = mig_put(m, (enum mig_ch)ch, M_HELLO, (uint64_t)ch, 0, p, sizeof(p));
        if (rc)
            return rc;
    }
    return await(m, M_WELCOME, m->io->now(m->ctx) + MIG_SILENT_NS);
}

static int reserve(struct mig *m)
{
    stage(m, MIG_S_PRE);
    int rc = arb_first(m);
    if (rc == 0) {
        m->known |= m->arbitrated;
        rc = mig_call_wait(m, MIG_C_LOOK);
    }
    if (rc == 0)
        rc = hello(m, false);
    if (rc)
        return rc;
    stage(m, MIG_S_RESERVE);
    rc = mig_put_blob(m, M_SHAPE);
    return rc ? rc : await(m, M_ACCEPT, m->io->now(m->ctx) + MIG_SILENT_NS);
}

// One pass is over when the target has it in place: socket buffers count as time, not as done.
static int round_end(struct mig *m, uint64_t *expected)
{
    int rc = await(m, M_ROUND_OK, 0);
    if (rc)
        return rc;
    uint64_t took = MAX(m->io->now(m->ctx) - m->round_at, 1);
    uint64_t rate = MAX(m->round_bytes * 1000 / MAX(took / 1000, 1), 1); // bytes a ms
    if ((rc = m->io->dirty(m->ctx, m->aux)))
        return rc;
    uint64_t left = mig_count(m, m->aux);
    atomic_store(&m->st.remaining_pages, left);
    atomic_store(&m->st.dirty_pages_s, left * NSEC_PER_SEC / took);
    *expected = left * PAGE_SIZE * MIG_MS / rate + MIG_MS;
    atomic_store(&m->st.expected_downtime_us, *expected / 1000);
    return 0;
}

// Where pages may not be pulled, a guest whose writes undo more than half of a pass gets less and less of the
// processor, as with QEMU.
static void slow_down(struct mig *m)
{
    uint64_t share = atomic_load(&m->st.throttle);

    if (m->mode == MIG_PRECOPY && !m->late_pull &&
        atomic_load(&m->st.remaining_pages) * PAGE_SIZE > m->round_bytes / 2)
        atomic_store(&m->st.throttle, share ? MIN(share + 10, 95) : 20);
}

// aux holds what may be anything but zeros (MIG_C_LOOK).
static int precopy(struct mig *m)
{
    uint64_t expected = 0;
    int rc = 0;

    stage(m, MIG_S_PRECOPY);
    for (unsigned i = 0; rc == 0; i++) {
        rc = mig_send_round(m, i == 0);
        if (rc == 0)
            rc = round_end(m, &expected);
        if (rc || expected <= m->downtime_ns)
            return rc;
        bool late = m->io->now(m->ctx) - m->begun >= m->timeout_ns;
        if (late && !m->late_pull && m->mode == MIG_PRECOPY)
            return err_set(&m->e, ETIME, "pre-copy did not converge in time: %llu pages left",
                           (unsigned long long)mig_count(m, m->aux));
        if ((m->mode == MIG_HYBRID && i + 1 >= HYBRID_ROUNDS) || late) {
            m->mode = MIG_HYBRID;
            atomic_store(&m->st.mode, MIG_HYBRID);
            return 0;
        }
        if (i > 0)
            slow_down(m);
    }
    return rc;
}

// todo: what the target will pull. It is all there when the state says so.
static int stop_and_copy(struct mig *m)
{
    bool pull = m->mode != MIG_PRECOPY;

    stage(m, MIG_S_STOP);
    m->paused_at = m->io->now(m->ctx);
    int rc = mig_call_wait(m, MIG_C_STOP);
    if (rc)
        return rc;
    m->paused = true;
    if ((rc = m->io->dirty(m->ctx, m->aux)))
        return rc;
    if (m->verify && !m->sum) // a served snapshot's is known
        m->sum = mig_ram_sum(m, NULL);
    if (pull) {
        memcpy(m->todo, m->aux, m->nwords * 8);
        atomic_store(&m->st.remaining_pages, mig_count(m, m->todo));
        rc = mig_put_bits(m, MIG_BULK, M_ABSENT);
    } else {
        rc = mig_send_round(m, false);
        atomic_store(&m->st.remaining_pages, 0);
    }
    return rc ? rc : mig_put_blob(m, M_STATE);
}

// While the target makes a microVM of the state, the offer is written; it is told when both are done.
static int commit(struct mig *m)
{
    stage(m, MIG_S_COMMIT);
    m->offered = m->arbitrated;
    int rc = arb_offer(m);
    if (rc == 0)
        rc = mig_call_wait(m, MIG_C_LETGO);
    if (rc == 0)
        rc = await(m, M_PREPARED, 0);
    if (rc)
        return rc;
    if (m->verify && m->mode == MIG_PRECOPY && m->seen_arg[M_PREPARED] != m->sum)
        return err_set(&m->e, EILSEQ, "verify: RAM at the target is not what it is here");
    m->offered = m->committed = true;
    rc = mig_put(m, MIG_URGENT, M_COMMIT, m->epoch + 1, m->peer_ran, NULL, 0);
    return rc ? rc : await(m, M_RUNNING, m->io->now(m->ctx) + MIG_SILENT_NS);
}

static void moved(struct mig *m)
{
    m->epoch++;
    m->running = true;
    atomic_store(&m->st.downtime_us, (m->io->now(m->ctx) - m->paused_at) / 1000);
    atomic_store(&m->st.epoch, m->epoch);
    stage(m, MIG_S_ACTIVATE);
}

// An offer was made and no answer came. The arbiter alone knows who owns the microVM: asked until it answers.
static int settle(struct mig *m, int why)
{
    for (;;) {
        int rc = arb_settle(m);
        if (rc == 0)
            return why;
        if (rc == -ESTALE) {
            moved(m);
            return 0;
        }
        atomic_store(&m->st.state, MIG_UNKNOWN);
        mig_fail(m, rc, "the arbiter does not answer, the microVM stays paused");
        m->io->wait(m->ctx, 0, m->io->now(m->ctx) + MIG_BEAT_NS / 2);
        if (m->stop)
            return -ECANCELED;
        if (m->give_up && !m->arbitrated) // cancel without an arbiter: the operator has decided
            return why;
    }
}

// While pages are asked for, bulk goes on at a trickle: it would take link and processors from those.
static int drain(struct mig *m)
{
    uint64_t pushed = 0;
    int rc = 0;

    while (rc == 0 && !(m->seen & 1u << M_DRAINED)) {
        uint64_t now = m->io->now(m->ctx), due = MIN(m->asked + MIG_MS, pushed + 2 * MIG_MS);
        bool left = atomic_load(&m->st.remaining_pages), more = left && now >= due;
        m->io->wait(m->ctx, MIG_EV_URGENT_IN | (more ? MIG_EV_BULK_OUT : 0u),
                    left && !more ? due : now + MIG_BEAT_NS);
        if (m->stop)
            return -ECANCELED;
        rc = mig_serve(m);
        if (rc == 0 && more) {
            pushed = m->io->now(m->ctx);
            rc = mig_push(m);
        }
        if (rc == 0)
            rc = mig_beat(m);
    }
    if (rc)
        return rc;
    const unsigned long long left = atomic_load(&m->st.remaining_pages);
    if (left) // this may be the only copy
        return err_set(&m->e, EPROTO,
                       "the target says that it has all, and %llu pages were never sent; this "
                       "memory is kept",
                       left);
    if (m->verify && m->seen_arg2[M_DRAINED] != m->sum)
        return err_set(&m->e, EILSEQ,
                       "verify: RAM at the target is not what it is here; this memory is kept");
    mig_put(m, MIG_URGENT, M_FREE, 0, 0, NULL, 0); // the target has all: losing this costs nothing
    return 0;
}

// The link broke during the pull. What is absent at the target decides what is sent again, not what went out.
static int relink(struct mig *m)
{
    m->io->hangup(m->ctx);
    atomic_store(&m->st.state, MIG_PAUSED);
    while (!m->io->reconnect(m->ctx)) {
        m->io->wait(m->ctx, 0, UINT64_MAX);
        if (m->stop || m->give_up)
            return -ECANCELED;
    }
    int rc = hello(m, true);
    if (rc == 0)
        rc = await(m, M_BITMAP, m->io->now(m->ctx) + MIG_SILENT_NS);
    if (rc == 0) {
        atomic_fetch_add(&m->st.recoveries, 1);
        atomic_store(&m->st.state, MIG_ACTIVE);
        m->e.msg[0] = 0;
    }
    return rc;
}

static int pull(struct mig *m)
{
    int rc = drain(m);

    while (rc && rc != -ECANCELED && rc != -EILSEQ) {
        mig_fail(m, rc, "the pull stands");
        rc = relink(m);
        if (rc == 0)
            rc = drain(m);
    }
    return rc;
}

static int run(struct mig *m)
{
    int rc = reserve(m);

    if (rc == 0 && m->mode != MIG_POSTCOPY)
        rc = precopy(m);
    if (rc == 0)
        rc = stop_and_copy(m);
    if (rc == 0)
        rc = commit(m);
    if (rc == 0)
        moved(m);
    else if (m->offered)
        rc = settle(m, rc);
    return rc;
}

int mig_source(struct mig *m)
{
    m->begun = m->io->now(m->ctx);
    m->silence = MIG_SILENT_NS;
    int rc = m->running ? 0 : run(m); // it may run there already, and come back for what is absent
    if (rc == 0)
        rc = pull(m);
    if (rc)
        mig_fail(m, rc, "migration");
    m->io->hangup(m->ctx);
    if (!m->running && !m->stop) {
        m->offered = m->committed = false;
        int back = mig_call_wait(m, MIG_C_RESUME);
        if (back)
            rc = back;
    }
    atomic_store(&m->st.total_us, (m->io->now(m->ctx) - m->begun) / 1000);
    atomic_store(&m->st.state, rc == 0 ? MIG_DONE : rc == -ECANCELED ? MIG_CANCELLED : MIG_FAILED);
    return rc;
}
