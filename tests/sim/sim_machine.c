// SPDX-License-Identifier: Apache-2.0
// The simulated hosts: guest memory and a guest, the control thread, the storage that both reach.
#include "tests/sim/sim.h"

#define SLOT 512

static bool bit(const uint64_t *b, uint64_t i)
{
    return b[i / 64] >> i % 64 & 1;
}

static uint8_t *page(struct sim_side *d, uint64_t p)
{
    return d->mem.r[p * PAGE_SIZE >= d->mem.r[0].size].host +
           (p * PAGE_SIZE - d->mem.r[p * PAGE_SIZE >= d->mem.r[0].size].file_off);
}

// Two regions, as a guest of more than 3 GiB has.
void sim_machine_init(struct sim_side *d, uint8_t *ram)
{
    uint64_t low = 64 * PAGE_SIZE, size = SIM_PAGES * PAGE_SIZE;

    memset(ram, 0, size);
    d->mem.size = size;
    d->mem.n = 2;
    d->mem.r[0] = (struct mem_region){.size = low, .host = ram};
    d->mem.r[1] = (struct mem_region){
        .gpa = MEM_GAP_END, .size = size - low, .file_off = low, .host = ram + low};
}

// What the guest wrote into a page the nth time: all of it depends on n, so that a mixture is seen.
static void fill(uint8_t *p, uint64_t n)
{
    uint64_t x = n * 0x9e3779b97f4a7c15ULL;

    for (unsigned i = 0; i < PAGE_SIZE; i += 8, x += n)
        le64_put(p + i, n ? x : 0);
}

static bool holds(const uint8_t *p, uint64_t n)
{
    uint64_t x = n * 0x9e3779b97f4a7c15ULL;

    for (unsigned i = 0; i < PAGE_SIZE; i += 8, x += n)
        if (le64_get(p + i) != (n ? x : 0))
            return false;
    return true;
}

void sim_check_memory(struct sim *s, struct sim_side *d)
{
    for (uint64_t p = 0; p < SIM_PAGES; p++)
        if (!holds(page(d, p), s->truth[p]))
            sim_bad(s, "a page of the microVM that runs is wrong");
}

static void raise_fault(struct sim_side *d, uint64_t p)
{
    if (d->nfaults < ARRAY_SIZE(d->faults))
        d->faults[d->nfaults++] = p;
}

static bool absent(const struct sim_side *d, uint64_t p)
{
    return d->armed && !bit(d->present, p);
}

void sim_wake_vcpus(struct sim_side *d)
{
    for (int i = 0; i < SIM_VCPUS; i++)
        if (d->vcpu[i].blocked && !absent(d, d->vcpu[i].page))
            d->vcpu[i].blocked = false;
}

// A vCPU reads a page, finds what was written there last, and perhaps writes it.
void sim_guest(struct sim *s, struct sim_side *d)
{
    for (int i = 0; i < SIM_VCPUS; i++) {
        uint64_t p = sim_chance(s, 60) ? sim_rand(s, 24) : sim_rand(s, SIM_PAGES);
        if (d->vcpu[i].blocked || sim_chance(s, 50))
            continue;
        if (absent(d, p)) {
            d->vcpu[i].blocked = true;
            d->vcpu[i].page = p;
            raise_fault(d, p);
            continue;
        }
        if (!holds(page(d, p), s->truth[p]))
            sim_bad(s, "the guest read a page that is not what it wrote");
        if (sim_chance(s, 50)) {
            s->truth[p] = sim_chance(s, 10) ? 0 : ++s->counter; // it zeroes pages, too
            fill(page(d, p), s->truth[p]);
            if (d->tracking)
                d->dirty[p / 64] |= 1ULL << p % 64;
        }
    }
}

// ---- struct mig_io: memory

static uint64_t io_now(void *c)
{
    return sim_of(c)->now;
}

static unsigned io_wait(void *c, unsigned want, uint64_t until)
{
    struct sim_side *d = c;
    struct sim *s = sim_of(c);

    d->want = want;
    d->until = until;
    sim_yield(s);
    unsigned got = sim_events(d, want);
    d->woken = false;
    return got;
}

static int io_dirty(void *c, uint64_t *bits)
{
    struct sim_side *d = c;

    for (unsigned i = 0; i < SIM_WORDS; i++) {
        bits[i] |= d->dirty[i];
        d->dirty[i] = 0;
    }
    return 0;
}

static int io_arm(void *c, const uint64_t *gone)
{
    struct sim_side *d = c;

    memset(d->present, 0, sizeof(d->present));
    for (uint64_t p = 0; p < SIM_PAGES; p++) {
        const uint8_t *b = page(d, p);
        if (bit(gone, p))
            fill(page(d, p), 0);
        else if (!page_is_zero(b)) // what was never touched is not there either
            d->present[p / 64] |= 1ULL << p % 64;
    }
    d->armed = true;
    return 0;
}

static void io_disarm(void *c)
{
    struct sim_side *d = c;

    d->armed = false;
    d->nfaults = 0;
    sim_wake_vcpus(d);
}

static int io_place(void *c, uint64_t first, uint64_t n, const void *data)
{
    struct sim_side *d = c;

    for (uint64_t i = 0; i < n; i++) {
        if (d->armed && bit(d->present, first + i))
            continue; // -EEXIST and a wake-up
        if (data)
            memcpy(page(d, first + i), (const uint8_t *)data + i * PAGE_SIZE, PAGE_SIZE);
        else
            memset(page(d, first + i), 0, PAGE_SIZE);
        d->present[(first + i) / 64] |= 1ULL << (first + i) % 64;
    }
    sim_wake_vcpus(d);
    return 0;
}

static int io_fault(void *c, uint64_t *p)
{
    struct sim_side *d = c;

    if (!d->nfaults)
        return 0;
    *p = d->faults[0];
    memmove(d->faults, d->faults + 1, --d->nfaults * sizeof(d->faults[0]));
    return 1;
}

// ---- struct mig_io: the control thread

static int io_call(void *c, enum mig_call what)
{
    struct sim_side *d = c;
    struct sim *s = sim_of(c);

    if (d->calling)
        sim_bad(s, "a call while another is under way");
    d->calling = true;
    d->call_done = false;
    d->call = what;
    d->call_at = s->now + sim_rand(s, 800000);
    d->ntouch = what == MIG_C_RESTORE ? (unsigned)sim_rand(s, 4) : 0;
    for (unsigned i = 0; i < d->ntouch; i++) {
        d->touch[i] = sim_rand(s, SIM_PAGES);
        if (absent(d, d->touch[i]))
            raise_fault(d, d->touch[i]);
    }
    return 0;
}

static int io_called(void *c)
{
    struct sim_side *d = c;

    if (!d->call_done)
        return -EAGAIN;
    d->calling = d->call_done = false;
    return d->call_rc;
}

bool sim_call_ready(struct sim *s, struct sim_side *d)
{
    if (d->dead || !d->calling || d->call_done || s->now < d->call_at)
        return false;
    for (unsigned i = 0; i < d->ntouch; i++)
        if (absent(d, d->touch[i]))
            return false;
    return true;
}

static int take_disk(struct sim *s, struct sim_side *d)
{
    if (s->diskless)
        return 0;
    if (s->disk >= 0 && s->disk != d->index)
        return -EBUSY;
    s->disk = d->index;
    return 0;
}

static void run(struct sim *s, struct sim_side *d)
{
    d->running = true;
    if (s->side[!d->index].running)
        sim_bad(s, "two owners run");
    if (s->disk != d->index && !s->diskless)
        sim_bad(s, "it runs without its disk's lock");
}

static int source_call(struct sim *s, struct sim_side *d)
{
    struct mig *m = &d->m;

    switch ((int)d->call) {
    case MIG_C_LOOK:
        m->peer_ran = d->running;
        d->tracking = true;
        memset(d->dirty, 0, sizeof(d->dirty));
        for (uint64_t p = 0; p < SIM_PAGES; p++)
            if (s->truth[p])
                m->aux[p / 64] |= 1ULL << p % 64;
        break;
    case MIG_C_HOLD:
        break;
    case MIG_C_STOP:
        d->running = false;
        for (unsigned i = 0; i < SIM_BLOB; i++)
            s->blob[i] = (uint8_t)sim_rand(s, 256);
        break;
    case MIG_C_LETGO:
        s->disk = s->disk == d->index ? -1 : s->disk;
        return 0;
    case MIG_C_RESUME:
        d->tracking = false;
        if (take_disk(s, d))
            return -EBUSY;
        if (m->peer_ran || !m->paused)
            run(s, d);
        return 0;
    default:
        sim_bad(s, "the source asks for what is the target's");
    }
    memcpy(m->blob, s->blob, SIM_BLOB);
    m->blob_len = SIM_BLOB;
    return 0;
}

static int target_call(struct sim *s, struct sim_side *d)
{
    struct mig *m = &d->m;

    switch ((int)d->call) {
    case MIG_C_RESERVE:
        if (m->blob_len != SIM_BLOB || sim_chance(s, 2))
            return err_set(&m->e, ENOMEM, "no memory");
        m->mem = &d->mem;
        m->npages = SIM_PAGES;
        m->nwords = SIM_WORDS;
        m->todo = d->bits[0];
        m->aux = d->bits[1];
        return 0;
    case MIG_C_RESTORE:
        if (sim_chance(s, 3))
            return err_set(&m->e, EINVAL, "a tap is missing");
        if (m->blob_len != SIM_BLOB || memcmp(m->blob, s->blob, SIM_BLOB))
            sim_bad(s, "the device state is not what was saved");
        d->exists = true;
        return 0;
    case MIG_C_ACTIVATE:
        if (take_disk(s, d))
            return -EBUSY;
        if (m->peer_ran && !d->running)
            run(s, d);
        return 0;
    case MIG_C_ABANDON:
        if (d->running)
            sim_bad(s, "it abandons what runs");
        d->exists = false;
        return 0;
    case MIG_C_LOST:
        d->running = false;
        d->lost = true;
        s->disk = s->disk == d->index ? -1 : s->disk;
        return 0;
    default:
        sim_bad(s, "the target asks for what is the source's");
        return -EINVAL;
    }
}

void sim_call_run(struct sim *s, struct sim_side *d)
{
    sim_log(s, "%s: call %d", d->index ? "target" : "source", d->call);
    d->call_rc = d->index == SRC ? source_call(s, d) : target_call(s, d);
    d->call_done = true;
    d->woken = true;
}

// ---- struct mig_io: storage. A write stays on its host until it is synced; reads see the host's own writes.

void sim_store_crash(struct sim *s, struct sim_side *d)
{
    for (int k = 0; k < 2; k++)
        if (d->cached[k] && sim_chance(s, 30)) // torn: the sector is neither old nor new
            memset(s->record + k * SLOT + sim_rand(s, 60), 0xa5, 20);
    d->cached[0] = d->cached[1] = false;
    if (s->lock == d->index)
        s->lock = -1;
}

static int io_store(void *c, enum mig_store op, void *buf, size_t n, uint64_t at)
{
    struct sim_side *d = c;
    struct sim *s = sim_of(c);

    if (op != MIG_UNLOCK && (s->now < s->store_back || (s->store_eio && --s->store_eio == 0)))
        return -EIO;
    switch (op) {
    case MIG_LOCK:
        if (s->lock >= 0)
            return -EBUSY;
        s->lock = d->index;
        return 0;
    case MIG_UNLOCK:
        s->lock = s->lock == d->index ? -1 : s->lock;
        return 0;
    case MIG_READ:
        if (s->lock != d->index)
            sim_bad(s, "the record is read without its lock");
        memcpy(buf, s->record, n);
        for (int k = 0; k < 2; k++)
            if (d->cached[k])
                memcpy((uint8_t *)buf + k * SLOT, d->cache + k * SLOT, SLOT);
        return (int)(d->cached[0] || d->cached[1] ? SIM_RECORD : s->record_len);
    case MIG_WRITE:
        memcpy(d->cache + at, buf, n);
        d->cached[at / SLOT] = true;
        return 0;
    case MIG_SYNC:
        for (int k = 0; k < 2; k++) {
            if (d->cached[k])
                memcpy(s->record + k * SLOT, d->cache + k * SLOT, SLOT);
            s->record_len = d->cached[k] ? SIM_RECORD : s->record_len;
            d->cached[k] = false;
        }
        return 0;
    }
    return -EINVAL;
}

const struct mig_io sim_io = {
    .send = sim_send,
    .recv = sim_recv,
    .hangup = sim_hangup,
    .reconnect = sim_reconnect,
    .wait = io_wait,
    .now = io_now,
    .dirty = io_dirty,
    .arm = io_arm,
    .disarm = io_disarm,
    .place = io_place,
    .fault = io_fault,
    .call = io_call,
    .called = io_called,
    .store = io_store,
};
