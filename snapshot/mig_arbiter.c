// SPDX-License-Identifier: Apache-2.0
// The arbiter: a record on storage that both sides reach, swapped by one side at a time, says who owns the microVM.
//
// Two slots of a sector each, written in turn: a write that tears leaves the older one, and then the swap has not
// happened. Locked over its first byte (OFD), synced before the lock is let go, so that whoever reads next reads it.
#include "snapshot/mig_priv.h"

#define MAGIC   "MAYFLYAR"
#define SLOT    512u
#define VERSION 1u

enum {
    AT_VERSION = 8,
    AT_STATE = 12,
    AT_GEN = 16,
    AT_EPOCH = 24,
    AT_UUID = 32,
    AT_OWNER = 48,
    AT_HEIR = 64,
    AT_SUM = 80
};

static bool parse(const uint8_t *s, struct arb_record *r)
{
    if (memcmp(s, MAGIC, 8) || le32_get(s + AT_VERSION) != VERSION ||
        le32_get(s + AT_SUM) != mig_crc(0, s, AT_SUM))
        return false;
    r->gen = le64_get(s + AT_GEN);
    r->epoch = le64_get(s + AT_EPOCH);
    r->state = (enum arb_state)le32_get(s + AT_STATE);
    memcpy(r->uuid, s + AT_UUID, MIG_ID);
    memcpy(r->owner, s + AT_OWNER, MIG_ID);
    memcpy(r->heir, s + AT_HEIR, MIG_ID);
    return r->state == ARB_OWNED || r->state == ARB_OFFERED;
}

static int load(struct mig *m, struct arb_record *r)
{
    uint8_t s[2 * SLOT] = {0};
    struct arb_record b;

    int n = m->io->store(m->ctx, MIG_READ, s, sizeof(s), 0);
    if (n < 0)
        return n;
    bool a_ok = parse(s, r), b_ok = parse(s + SLOT, &b);
    if (b_ok && (!a_ok || b.gen > r->gen))
        *r = b;
    return a_ok || b_ok ? 0 : n ? -EUCLEAN : -ENOENT;
}

static int save(struct mig *m, const struct arb_record *r)
{
    uint8_t s[SLOT] = {0};

    memcpy(s, MAGIC, 8);
    le32_put(s + AT_VERSION, VERSION);
    le32_put(s + AT_STATE, r->state);
    le64_put(s + AT_GEN, r->gen);
    le64_put(s + AT_EPOCH, r->epoch);
    memcpy(s + AT_UUID, r->uuid, MIG_ID);
    memcpy(s + AT_OWNER, r->owner, MIG_ID);
    memcpy(s + AT_HEIR, r->heir, MIG_ID);
    le32_put(s + AT_SUM, mig_crc(0, s, AT_SUM));
    int rc = m->io->store(m->ctx, MIG_WRITE, s, sizeof(s), r->gen % 2 * SLOT);
    return rc ? rc : m->io->store(m->ctx, MIG_SYNC, NULL, 0, 0);
}

static bool same(const struct arb_record *a, const struct arb_record *b)
{
    return a->state == b->state && a->epoch == b->epoch && !memcmp(a->uuid, b->uuid, MIG_ID) &&
           !memcmp(a->owner, b->owner, MIG_ID) && !memcmp(a->heir, b->heir, MIG_ID);
}

// Swaps `from` (NULL: nothing written yet) for `to`. *seen: what stood there. 0 also when `to` stands there
// already: an earlier answer was lost. -ESTALE: something else stands there.
static int swap(struct mig *m, const struct arb_record *from, struct arb_record to,
                struct arb_record *seen)
{
    int rc = m->io->store(m->ctx, MIG_LOCK, NULL, 0, 0);
    if (rc)
        return rc;
    rc = load(m, seen);
    bool none = rc == -ENOENT;
    if ((rc == 0 && from && same(seen, from)) || (none && !from)) {
        to.gen = none ? 1 : seen->gen + 1;
        rc = save(m, &to);
    } else if (rc == 0 || none) {
        rc = !none && same(seen, &to) ? m->io->store(m->ctx, MIG_SYNC, NULL, 0, 0) : -ESTALE;
    }
    m->io->store(m->ctx, MIG_UNLOCK, NULL, 0, 0);
    return rc;
}

static struct arb_record record(const struct mig *m, enum arb_state state, uint64_t epoch,
                                const uint8_t *owner, const uint8_t *heir)
{
    struct arb_record r = {.state = state, .epoch = epoch};

    memcpy(r.uuid, m->uuid, MIG_ID);
    memcpy(r.owner, owner, MIG_ID);
    if (heir)
        memcpy(r.heir, heir, MIG_ID);
    return r;
}

int arb_first(struct mig *m)
{
    struct arb_record mine = record(m, ARB_OWNED, m->epoch, m->self, NULL), seen = {0};

    if (!m->arbitrated)
        return 0;
    int rc = swap(m, m->known ? &mine : NULL, mine, &seen);
    if (rc == -ESTALE)
        return err_set(&m->e, ESTALE,
                       "arbiter: the record says that another monitor owns this microVM, or is "
                       "another microVM's");
    return rc ? err_set(&m->e, -rc, "arbiter: %s", strerror(-rc)) : 0;
}

int arb_offer(struct mig *m)
{
    struct arb_record mine = record(m, ARB_OWNED, m->epoch, m->self, NULL), seen;

    return m->arbitrated
               ? swap(m, &mine, record(m, ARB_OFFERED, m->epoch + 1, m->self, m->peer), &seen)
               : 0;
}

int arb_take(struct mig *m)
{
    struct arb_record offer = record(m, ARB_OFFERED, m->epoch, m->peer, m->self), seen;

    return m->arbitrated ? swap(m, &offer, record(m, ARB_OWNED, m->epoch, m->self, NULL), &seen)
                         : 0;
}

// The offer may or may not have reached the record; either way one swap to ourselves ends it.
int arb_settle(struct mig *m)
{
    struct arb_record offer = record(m, ARB_OFFERED, m->epoch + 1, m->self, m->peer), seen = {0};
    struct arb_record mine = record(m, ARB_OWNED, m->epoch, m->self, NULL);
    struct arb_record back = record(m, ARB_OWNED, m->epoch + 2, m->self, NULL);

    if (!m->arbitrated)
        return m->committed ? -EHOSTUNREACH : 0; // the peer cannot take what it was not told of
    int rc = swap(m, &offer, back, &seen);
    if (rc == -ESTALE && same(&seen, &mine))
        rc = swap(m, &mine, back, &seen);
    if (rc == 0)
        m->epoch += 2;
    return rc;
}
