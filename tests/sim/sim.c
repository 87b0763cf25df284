// SPDX-License-Identifier: Apache-2.0
// The simulator's scheduler, operator and judge.
//
// usage: sim [-v] [-n RUNS] [-s FIRST_SEED] [-k: go on after a failure]
// Exit status 0: every run ended as it must; 1: one did not, and its seed is said.
#include "tests/sim/sim.h"

#include <stdarg.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define HORIZON (900ULL * NSEC_PER_SEC)

// ---- coroutines: callee-saved registers on the stack, which is what is switched

__attribute__((naked, noinline)) static void switch_to(void **from, void *to)
{
    __asm__("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
            "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
            "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
    (void)from, (void)to;
}

// The engine's context is a side; the simulator is found from there, since no state is global.
struct sim *sim_of(void *c)
{
    struct sim_side *d = c;
    return (struct sim *)(void *)((char *)(d - d->index) - offsetof(struct sim, side));
}

void sim_yield(struct sim *s)
{
    struct sim_side *d = s->self;
    switch_to(&d->sp, s->main_sp);
}

static _Noreturn void engine(struct sim_side *d)
{
    struct sim *s = sim_of(d);

    d->rc = d->index == SRC ? mig_source(&d->m) : mig_target(&d->m);
    d->returned = true;
    sim_log(s, "%s returns %d: %s", d->index ? "target" : "source", d->rc, d->m.e.msg);
    for (;;)
        sim_yield(s);
}

__attribute__((naked)) static void entry(void)
{
    __asm__("mov %r12, %rdi\n call *%r13\n hlt\n");
}

static void prepare(struct sim_side *d)
{
    uint64_t *sp = (uint64_t *)(void *)(d->stack + SIM_STACK) - 2;

    // Whoever ran here and was killed left its frames, and what AddressSanitizer knows of them, behind.
    ASAN_UNPOISON_MEMORY_REGION(d->stack, SIM_STACK);
    *--sp = (uint64_t)(uintptr_t)entry;
    *--sp = 0;                           // rbp
    *--sp = 0;                           // rbx
    *--sp = (uint64_t)(uintptr_t)d;      // r12
    *--sp = (uint64_t)(uintptr_t)engine; // r13
    *--sp = 0;
    *--sp = 0;
    d->sp = sp;
    d->started = true;
    d->returned = false;
}

static void resume(struct sim *s, struct sim_side *d)
{
    s->self = d;
    switch_to(&s->main_sp, d->sp);
    s->self = NULL;
}

// ---- chance

uint64_t sim_rand(struct sim *s, uint64_t below)
{
    s->rng += 0x9e3779b97f4a7c15ULL;
    uint64_t z = s->rng;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return below ? (z ^ z >> 31) % below : 0;
}

bool sim_chance(struct sim *s, unsigned percent)
{
    return sim_rand(s, 100) < percent;
}

void sim_bad(struct sim *s, const char *what)
{
    sim_log(s, "BAD: %s", what);
    s->bad = s->bad ? s->bad : what;
}

void sim_log(struct sim *s, const char *fmt, ...)
{
    va_list ap;

    if (!s->verbose)
        return;
    printf("%10.3f ms  ", (double)s->now / 1e6);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

// ---- the operator: brings new channels, and ends what cannot go on

static uint32_t state(const struct sim_side *d)
{
    return atomic_load(&d->m.st.state);
}

static void nudge(struct sim_side *d)
{
    d->woken = true;
}

static void again(struct sim_side *d, struct sim_link *l)
{
    d->next_link = l;
    if (d->returned &&
        state(d) == MIG_DONE) { // asked once more by a source that did not hear it all
        atomic_store(&d->m.st.state, MIG_ACTIVE);
        prepare(d);
    }
    nudge(d);
}

// Somebody is paused: after a while he is helped, by a new link or, when the other one is gone, by an end.
static void operate(struct sim *s)
{
    struct sim_side *a = &s->side[SRC], *b = &s->side[DST];

    for (int i = 0; i < 2; i++) {
        struct sim_side *d = &s->side[i], *o = &s->side[!i];
        bool stuck = !d->dead && !d->returned && !d->next_link &&
                     (state(d) == MIG_PAUSED || (state(d) == MIG_UNKNOWN && !d->m.arbitrated));
        if (!stuck) {
            d->seen_paused = 0;
            continue;
        }
        if (!d->seen_paused)
            d->seen_paused = s->now + (100 + sim_rand(s, 2000)) * SIM_MS;
        if (s->now < d->seen_paused)
            continue;
        bool gone = o->dead || (o->returned && state(o) != MIG_DONE);
        if (!gone && s->nlinks == SIM_LINKS)
            sim_bad(s, "new links do not help");
        if (gone) {
            sim_log(s, "operator gives %s up", i ? "the target" : "the source");
            s->gave_up = true;
            d->m.give_up = true;
            nudge(d);
        } else if (state(d) == MIG_UNKNOWN) { // without an arbiter he looks at the target himself
            if (!b->m.running && !b->m.offered)
                sim_crash(s, b, false);
            if (b->m.offered && i == SRC)
                a->m.stop = s->gave_up = true;
            d->m.give_up = true;
            nudge(d);
        } else if (!a->dead && !b->dead && state(a) == MIG_PAUSED && !a->next_link &&
                   !b->next_link &&
                   (state(b) == MIG_PAUSED || (b->returned && state(b) == MIG_DONE))) {
            struct sim_link *l = sim_connect(s);
            sim_log(s, "operator reconnects");
            again(a, l);
            again(b, l);
        }
        d->seen_paused = 0;
    }
}

// ---- time

static bool ready(struct sim *s, struct sim_side *d)
{
    return d->started && !d->dead && !d->returned && (sim_events(d, d->want) || s->now >= d->until);
}

static bool over(const struct sim *s)
{
    for (int i = 0; i < 2; i++)
        if (!s->side[i].dead && !s->side[i].returned)
            return false;
    return true;
}

static uint64_t next_time(struct sim *s)
{
    uint64_t t = sim_next_arrival(s);

    for (int i = 0; i < 2; i++) {
        const struct sim_side *d = &s->side[i];
        if (d->dead || d->returned)
            continue;
        if (d->until > s->now)
            t = MIN(t, d->until);
        if (d->calling && !d->call_done && d->call_at > s->now)
            t = MIN(t, d->call_at);
        if (d->seen_paused > s->now)
            t = MIN(t, d->seen_paused);
    }
    return t;
}

static void turn(struct sim *s)
{
    struct sim_side *d = &s->side[sim_rand(s, 2)], *o = &s->side[!d->index];

    for (int i = 0; i < 2; i++)
        if (s->side[i].running && !s->side[i].dead && sim_chance(s, 30))
            sim_guest(s, &s->side[i]);
    for (int i = 0; i < 2; i++)
        if (sim_call_ready(s, &s->side[i]))
            sim_call_run(s, &s->side[i]);
    operate(s);
    if (ready(s, d))
        resume(s, d);
    else if (ready(s, o))
        resume(s, o);
    else {
        uint64_t t = next_time(s);
        s->now = t == UINT64_MAX ? HORIZON : MAX(t, s->now + 1);
    }
    if (s->side[SRC].running && s->side[DST].running)
        sim_bad(s, "two owners run");
}

// ---- verdict

static void judge(struct sim *s)
{
    struct sim_side *a = &s->side[SRC], *b = &s->side[DST];

    if (!over(s)) {
        sim_bad(s, "it did not end");
        return;
    }
    int running = a->running + b->running;
    for (int i = 0; i < 2; i++)
        if (s->side[i].running)
            sim_check_memory(s, &s->side[i]);
    bool alive = !a->dead && !b->dead && !s->gave_up;
    if (alive && running != 1)
        sim_bad(s, "both hosts live and the microVM does not run");
    if (!a->dead && b->dead && !a->running && !a->m.running && !s->gave_up)
        sim_bad(s, "the target died before it owned it and the source did not go on");
    if (b->lost && !a->dead && !s->gave_up)
        sim_bad(s, "lost though the source lives");
    if (!s->fired && a->rc && b->rc == 0)
        sim_bad(s, "the source failed and the target did not");
    if (!s->nfaults && a->rc && a->rc != -ETIME && !strstr(a->m.e.msg, "refuses"))
        sim_bad(s, "it failed and nothing was in its way");
    if (a->rc == 0 && !a->dead && !b->dead && !b->lost && !b->running)
        sim_bad(s, "the source says that it moved, and it runs nowhere");
}

static void setup_engine(struct sim *s, int i, uint8_t *buf)
{
    struct sim_side *d = &s->side[i];
    struct mig *m = &d->m;

    d->index = i;
    d->stack = buf;
    sim_machine_init(d, s->arena + 2 * SIM_EACH + (unsigned)i * SIM_PAGES * PAGE_SIZE);
    m->io = &sim_io;
    m->ctx = d;
    m->stage = buf + SIM_STACK;
    m->ch[0].buf = m->stage + MIG_PAYLOAD;
    m->ch[1].buf = m->ch[0].buf + MIG_HEAD + MIG_PAYLOAD;
    m->blob = m->ch[1].buf + MIG_HEAD + MIG_PAYLOAD;
    memset(m->self, 1 + i, MIG_ID);
    memset(m->uuid, 9, MIG_ID);
    memset(m->session, 0x40 + (int)(s->seed % 100), MIG_ID);
    m->epoch = 1;
    m->lease_ns = 10 * NSEC_PER_SEC;
    atomic_store(&m->st.role, i == SRC ? MIG_SOURCE : MIG_TARGET);
    atomic_store(&m->st.state, MIG_ACTIVE);
    prepare(d);
}

static void plan(struct sim *s)
{
    s->nfaults = (unsigned)sim_rand(s, SIM_FAULTS + 1);
    for (unsigned i = 0; i < s->nfaults; i++) {
        struct sim_fault *f = &s->fault[i];
        static const uint32_t of[2][9] = {
            {M_HELLO, M_SHAPE, M_PAGES, M_ZERO, M_ROUND, M_ABSENT, M_STATE, M_COMMIT, M_PAGES},
            {M_WELCOME, M_ACCEPT, M_ROUND_OK, M_PREPARED, M_RUNNING, M_WANT, M_BITMAP, M_DRAINED,
             M_PREPARED}};
        f->what = (enum sim_what)sim_rand(s, F_KINDS);
        f->side = (int)sim_rand(s, 2);
        f->type = sim_chance(s, 8) ? (f->side ? M_PING : M_FREE) : of[f->side][sim_rand(s, 9)];
        f->nth = f->type == M_PAGES || f->type == M_ZERO || f->type == M_WANT
                     ? (unsigned)sim_rand(s, 20)
                     : sim_chance(s, 20);
    }
}

void sim_run(struct sim *s)
{
    struct mig *a = &s->side[SRC].m, *b = &s->side[DST].m;

    s->rng = s->seed * 0x2545f4914f6cdd1dULL;
    s->now = NSEC_PER_SEC;
    s->lock = -1;
    setup_engine(s, SRC, s->arena);
    setup_engine(s, DST, s->arena + SIM_EACH);
    a->mode = (enum mig_mode)sim_rand(s, 3);
    a->late_pull = sim_chance(s, 50);
    a->arbitrated = b->arbitrated = sim_chance(s, 85);
    a->verify = sim_chance(s, 50);
    a->downtime_ns = (1 + sim_rand(s, 5)) * SIM_MS;
    a->timeout_ns = (20 + sim_rand(s, 200)) * SIM_MS;
    a->bytes_s = sim_chance(s, 20) ? 2 * MIB : 0;
    a->mem = &s->side[SRC].mem;
    a->npages = SIM_PAGES;
    a->nwords = SIM_WORDS;
    a->todo = s->side[SRC].bits[0];
    a->aux = s->side[SRC].bits[1];
    s->side[SRC].link = s->side[DST].link = sim_connect(s);
    s->side[SRC].exists = s->side[SRC].running = true;
    s->disk = SRC;
    s->diskless = sim_chance(s, 40);
    for (int i = 0; i < 200; i++) // the guest has a past
        sim_guest(s, &s->side[SRC]);
    plan(s);
    sim_log(s, "seed %llu mode %d arbiter %d", (unsigned long long)s->seed, a->mode, a->arbitrated);
    while (!over(s) && s->now < HORIZON && !s->bad)
        turn(s);
    if (!s->bad)
        judge(s);
    sim_net_free(s);
}

int main(int argc, char **argv)
{
    uint64_t runs = 1000, first = 1, failed = 0, faulted = 0, moved = 0, lost = 0;
    int verbose = 0;
    bool keep = false;

    for (int c; (c = getopt(argc, argv, "vkn:s:")) != -1;) {
        verbose |= c == 'v';
        keep |= c == 'k';
        runs = c == 'n' ? strtoull(optarg, NULL, 0) : runs;
        first = c == 's' ? strtoull(optarg, NULL, 0) : first;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct sim *s = malloc(sizeof(*s));
    uint8_t *arena = malloc(SIM_ARENA);
    for (uint64_t seed = first; s && arena && seed < first + runs; seed++) {
        memset(s, 0, sizeof(*s));
        s->seed = seed;
        s->arena = arena;
        s->verbose = verbose;
        sim_run(s);
        faulted += s->fired != 0;
        moved += s->side[DST].running;
        lost += s->side[DST].lost;
        if (!s->bad)
            continue;
        printf("seed %llu: %s\n", (unsigned long long)seed, s->bad);
        failed++;
        if (!keep)
            break;
    }
    free(s);
    free(arena);
    printf("%llu runs, %llu with faults, %llu moved, %llu lost, %llu wrong\n",
           (unsigned long long)runs, (unsigned long long)faulted, (unsigned long long)moved,
           (unsigned long long)lost, (unsigned long long)failed);
    return failed != 0;
}
