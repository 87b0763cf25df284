// SPDX-License-Identifier: Apache-2.0
// Messages of migration bit by bit, and the arbiter's record through every swap, tear and error.
#include <check.h>

#include "snapshot/mig_priv.h"

struct end {
    struct mig m;
    struct pipe *out, *in;
};

struct pipe {
    uint8_t b[2 * (MIG_HEAD + MIG_PAYLOAD)];
    size_t head, tail, chunk;
};

struct disk { // the record's storage: what was written is seen, what was synced stays
    uint8_t now[1024], synced[1024];
    int len, fail; // fail: the operation that fails, counted down
    bool locked;
};

static long p_send(void *c, enum mig_ch ch, const struct iovec *v, int n)
{
    struct pipe *p = ((struct end *)c)->out;
    size_t k = MIN(v[0].iov_len, p->chunk);
    (void)ch, (void)n;
    memcpy(p->b + p->tail, v[0].iov_base, k);
    p->tail += k;
    return (long)k;
}

static long p_recv(void *c, enum mig_ch ch, void *buf, size_t n)
{
    struct pipe *p = ((struct end *)c)->in;
    n = MIN(MIN(n, p->chunk), p->tail - p->head);
    (void)ch;
    memcpy(buf, p->b + p->head, n);
    p->head += n;
    return n ? (long)n : -EAGAIN;
}

static uint64_t p_now(void *c)
{
    (void)c;
    return 7;
}

static int d_store(void *c, enum mig_store op, void *buf, size_t n, uint64_t at)
{
    struct disk *d = c;

    if (d->fail && --d->fail == 0)
        return -EIO;
    if (op == MIG_LOCK) {
        ck_assert(!d->locked);
        d->locked = true;
    } else if (op == MIG_UNLOCK) {
        d->locked = false;
    } else if (op == MIG_READ) {
        memcpy(buf, d->now, n);
        return d->len;
    } else if (op == MIG_WRITE) {
        memcpy(d->now + at, buf, n);
        d->len = 1024;
    } else {
        memcpy(d->synced, d->now, sizeof(d->now));
    }
    return 0;
}

static const struct mig_io wire_io = {.send = p_send, .recv = p_recv, .now = p_now};
static const struct mig_io disk_io = {.store = d_store};
static const enum mig_ch CH = MIG_BULK;

static struct end *ends(size_t chunk)
{
    struct end *e = calloc(2, sizeof(*e));

    for (int i = 0; i < 2; i++) {
        e[i].m.io = &wire_io;
        e[i].m.ctx = &e[i];
        atomic_store(&e[i].m.st.role, i ? MIG_TARGET : MIG_SOURCE);
        memset(e[i].m.session, 5, MIG_ID);
        e[i].m.ch[0].buf = malloc(MIG_HEAD + MIG_PAYLOAD);
        e[i].m.ch[1].buf = malloc(MIG_HEAD + MIG_PAYLOAD);
    }
    e[0].out = e[1].in = calloc(1, sizeof(struct pipe));
    e[0].out->chunk = chunk;
    return e;
}

static void done(struct end *e)
{
    free(e[0].out);
    for (int i = 0; i < 4; i++)
        free(e[i / 2].m.ch[i % 2].buf);
    free(e);
}

START_TEST(messages)
{
    static const size_t chunks[] = {1, 7, 39, 40, 41, 100000};
    static uint8_t page[PAGE_SIZE];

    memset(page, 0xab, sizeof(page));
    for (size_t i = 0; i < ARRAY_SIZE(chunks); i++) {
        struct end *e = ends(chunks[i]);
        struct mig_msg g = {0};
        ck_assert_int_eq(mig_put(&e[0].m, CH, M_ROUND, 3, ~0ULL, NULL, 0), 0);
        ck_assert_int_eq(mig_put(&e[0].m, CH, M_PAGES, 9, 0, page, sizeof(page)), 0);
        int rc;
        while ((rc = mig_get(&e[1].m, CH, &g)) == 0 && e[0].out->head < e[0].out->tail)
            ;
        ck_assert_int_eq(rc, 1);
        ck_assert(g.type == M_ROUND && g.arg == 3 && g.arg2 == ~0ULL && g.len == 0);
        ck_assert_int_eq(mig_get(&e[1].m, CH, &g), 1);
        ck_assert(g.type == M_PAGES && g.arg == 9 && g.len == PAGE_SIZE);
        ck_assert(!memcmp(g.data, page, sizeof(page)));
        ck_assert_int_eq(mig_get(&e[1].m, CH, &g), 0);
        done(e);
    }
}
END_TEST

// Any bit of any byte: refused, whether it waits for bytes that never come or says so at once.
START_TEST(every_flipped_bit)
{
    static uint8_t page[PAGE_SIZE];

    for (size_t bit = 0; bit < 8 * (MIG_HEAD + PAGE_SIZE); bit += bit < 8 * MIG_HEAD ? 1 : 61) {
        struct end *e = ends(100000);
        struct mig_msg g;
        mig_put(&e[0].m, CH, M_PAGES, 9, 0, page, sizeof(page));
        e[0].out->b[bit / 8] ^= (uint8_t)(1u << bit % 8);
        ck_assert_msg(mig_get(&e[1].m, CH, &g) != 1, "bit %zu", bit);
        done(e);
    }
}
END_TEST

START_TEST(other_session_channel_direction_number)
{
    for (int what = 0; what < 5; what++) {
        struct end *e = ends(100000);
        struct mig_msg g;
        if (what == 0)
            e[0].m.session[3]++;
        if (what == 1)
            atomic_store(&e[1].m.st.role, MIG_SOURCE);
        if (what == 2)
            e[0].m.ch[CH].tx = 1;
        mig_put(&e[0].m, CH, M_PING, 0, 0, NULL, 0);
        if (what == 3) { // on the other channel
            ck_assert_int_eq(mig_get(&e[1].m, MIG_URGENT, &g), -EBADMSG);
        } else if (what == 4) { // twice
            memcpy(e[0].out->b + MIG_HEAD, e[0].out->b, MIG_HEAD);
            e[0].out->tail = 2 * MIG_HEAD;
            ck_assert_int_eq(mig_get(&e[1].m, CH, &g), 1);
            ck_assert_int_eq(mig_get(&e[1].m, CH, &g), -EBADMSG);
        } else {
            ck_assert_int_eq(mig_get(&e[1].m, CH, &g), -EBADMSG);
        }
        done(e);
    }
}
END_TEST

START_TEST(pieces)
{
    struct mig m = {.nwords = 100, .npages = 100 * 64 - 3};
    uint64_t bits[100] = {0}, in[100] = {0};
    struct mig_msg g = {.type = M_ABSENT, .len = 400, .arg2 = 100, .data = (uint8_t *)in};

    ck_assert_int_eq(mig_take_bits(&m, &g, bits), 0);
    ck_assert_int_eq(mig_take_bits(&m, &g, bits), -EBADMSG); // the same place again
    g.arg = 50;
    g.len = 401;
    ck_assert_int_eq(mig_take_bits(&m, &g, bits), -EBADMSG);
    g.len = 408;
    ck_assert_int_eq(mig_take_bits(&m, &g, bits), -EBADMSG); // beyond the end
    g.len = 400;
    in[49] = 1ULL << 63; // a page that there is not
    ck_assert_int_eq(mig_take_bits(&m, &g, bits), -EBADMSG);
    m.blob = malloc(MIG_BLOB_MAX);
    g = (struct mig_msg){.len = 8, .arg2 = MIG_BLOB_MAX + 1, .data = (uint8_t *)in};
    ck_assert_int_eq(mig_take_blob(&m, &g), -EBADMSG);
    g.arg2 = 12;
    ck_assert_int_eq(mig_take_blob(&m, &g), 0);
    g.arg = 8;
    ck_assert_int_eq(mig_take_blob(&m, &g), -EBADMSG); // longer than it said
    g.len = 4;
    ck_assert_int_eq(mig_take_blob(&m, &g), 1);
    free(m.blob);
}
END_TEST

static int p_place(void *c, uint64_t page, uint64_t n, const void *data)
{
    uint8_t *placed = c;

    (void)data;
    for (uint64_t i = page; i < page + n; i++) {
        ck_assert_uint_lt(i, 70);
        placed[i]++;
    }
    return 0;
}

// Pages that there are not, with and without a pull; one that came already, and more when all have come.
START_TEST(pages_out_of_place)
{
    static const struct mig_msg bad[] = {
        {M_PAGES, PAGE_SIZE, 70, 0, NULL},
        {M_PAGES, 2 * PAGE_SIZE, 69, 0, NULL},
        {M_PAGES, PAGE_SIZE, ~0ULL, 0, NULL},
        {M_PAGES, PAGE_SIZE - 1, 0, 0, NULL},
        {M_PAGES, 0, 0, 0, NULL},
        {M_ZERO, 0, 70, 1, NULL},
        {M_ZERO, 0, 69, 2, NULL},
        {M_ZERO, 0, 1, ~0ULL, NULL},
        {M_ZERO, 0, ~0ULL, 2, NULL},
        {M_ZERO, 0, 0, 0, NULL},
        {M_ZERO, 8, 0, 1, NULL},
    };
    static const struct mig_io io = {.place = p_place, .now = p_now};
    static uint8_t data[2 * PAGE_SIZE];
    uint8_t placed[70] = {0};
    uint64_t todo[2] = {1ULL << 5 | 1ULL << 63, 1};
    struct mig m = {.io = &io, .ctx = placed, .npages = 70, .nwords = 2, .todo = todo};
    struct mig_msg g = {.type = M_PAGES, .len = PAGE_SIZE, .arg = 5, .data = data};

    ck_assert_int_eq(mig_take_pages(&m, &g), -EBADMSG); // before there is any memory
    m.accepted = true;
    for (size_t i = 0; i < 2 * ARRAY_SIZE(bad); i++) {
        m.whole = i >= ARRAY_SIZE(bad);
        ck_assert_msg(mig_take_pages(&m, &bad[i % ARRAY_SIZE(bad)]) == -EBADMSG, "%zu", i);
    }
    atomic_store(&m.st.remaining_pages, 3);
    ck_assert_int_eq(mig_take_pages(&m, &g), 0);
    ck_assert_int_eq(mig_take_pages(&m, &g), 0); // the guest may have written it
    g = (struct mig_msg){.type = M_PAGES, .len = 2 * PAGE_SIZE, .arg = 63, .data = data};
    ck_assert_int_eq(mig_take_pages(&m, &g), 0);
    g = (struct mig_msg){.type = M_ZERO, .arg2 = 70};
    ck_assert_int_eq(mig_take_pages(&m, &g), 0);
    for (unsigned i = 0; i < 70; i++)
        ck_assert_uint_eq(placed[i], i == 5 || i == 63 || i == 64);
    ck_assert_uint_eq(atomic_load(&m.st.remaining_pages), 0);
    ck_assert_uint_eq(atomic_load(&m.st.duplicates), 1 + 70);
    ck_assert_uint_eq(m.pulled, 3);
}
END_TEST

static void came(struct end *e, enum mig_ch ch, uint64_t page, uint64_t n)
{
    struct mig_msg g;

    ck_assert_int_eq(mig_get(&e[1].m, ch, &g), 1);
    ck_assert_uint_eq(g.type, M_PAGES);
    ck_assert_uint_eq(g.arg, page);
    ck_assert_uint_eq(g.len, n * PAGE_SIZE);
    e[0].out->head = e[0].out->tail = 0;
}

// The page that is asked for goes alone; bulk goes on from behind it, in order, to the end, and round to what was left
// before. None goes twice.
START_TEST(pushed_from_behind_the_fault)
{
    struct end *e = ends(100000);
    struct mig *s = &e[0].m;
    uint64_t todo[1] = {~0ULL};
    uint8_t *ram = aligned_alloc(PAGE_SIZE, 64 * PAGE_SIZE);
    struct guest_mem mem = {
        .n = 1, .size = 64 * PAGE_SIZE, .r[0] = {.host = ram, .size = 64 * PAGE_SIZE}};

    memset(ram, 1, 64 * PAGE_SIZE);
    e[1].out = e[0].in = calloc(1, sizeof(struct pipe));
    e[1].out->chunk = 100000;
    s->mem = &mem;
    s->npages = 64;
    s->nwords = 1;
    s->todo = todo;
    s->paused = true;
    atomic_store(&s->st.remaining_pages, 64);
    for (int i = 0; i < 2; i++) { // a second time it is on its way already
        ck_assert_int_eq(mig_put(&e[1].m, MIG_URGENT, M_WANT, 40, 0, NULL, 0), 0);
        ck_assert_int_eq(mig_serve(s), 0);
    }
    came(e, MIG_URGENT, 40, 1);
    static const uint64_t order[][2] = {{41, 16}, {57, 7}, {0, 16}, {16, 16}, {32, 8}};
    for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
        ck_assert_int_eq(mig_push(s), 0);
        came(e, MIG_BULK, order[i][0], order[i][1]);
    }
    ck_assert_int_eq(mig_push(s), 0);
    ck_assert(e[0].out->tail == 0 && todo[0] == 0 && atomic_load(&s->st.remaining_pages) == 0);
    ck_assert_uint_eq(atomic_load(&s->st.pages), 64);
    free(e[1].out);
    free(ram);
    done(e);
}
END_TEST

static struct mig party(struct disk *d, uint8_t who, uint8_t other)
{
    struct mig m = {.io = &disk_io, .ctx = d, .arbitrated = true, .epoch = 1};

    memset(m.self, who, MIG_ID);
    memset(m.peer, other, MIG_ID);
    memset(m.uuid, 9, MIG_ID);
    return m;
}

START_TEST(arbiter)
{
    struct disk d = {0};
    struct mig s = party(&d, 1, 2), t = party(&d, 2, 1);

    t.epoch = 2;
    ck_assert_int_eq(arb_take(&t), -ESTALE); // nothing was offered, there is no record
    ck_assert_int_eq(arb_first(&s), 0);
    s.known = true;
    ck_assert_int_eq(arb_first(&s), 0);
    ck_assert_int_eq(arb_take(&t), -ESTALE);
    ck_assert_int_eq(arb_offer(&s), 0);
    struct mig thief = party(&d, 3, 1);
    thief.epoch = 2;
    ck_assert_int_eq(arb_take(&thief), -ESTALE); // offered to another
    ck_assert_int_eq(arb_take(&t), 0);
    ck_assert_int_eq(arb_take(&t), 0); // an answer that was lost
    ck_assert_int_eq(arb_settle(&s), -ESTALE);
    ck_assert_int_eq(arb_first(&s), -ESTALE); // not ours any more
    ck_assert(!d.locked && !memcmp(d.now, d.synced, sizeof(d.now)));
}
END_TEST

START_TEST(offer_taken_back)
{
    struct disk d = {0};
    struct mig s = party(&d, 1, 2), t = party(&d, 2, 1);

    t.epoch = 2;
    arb_first(&s);
    ck_assert_int_eq(arb_offer(&s), 0);
    ck_assert_int_eq(arb_settle(&s), 0);
    ck_assert_uint_eq(s.epoch, 3);
    ck_assert_int_eq(arb_take(&t), -ESTALE);
    ck_assert_int_eq(arb_settle(&s), 0); // an offer that never reached the record
}
END_TEST

// Every operation fails once, and a write is torn at every byte: never two that both succeed.
START_TEST(arbiter_fails)
{
    for (int fail = 1; fail < 6; fail++)
        for (size_t torn = 0; torn < 512; torn += 16) {
            struct disk d = {0}, before;
            struct mig s = party(&d, 1, 2), t = party(&d, 2, 1);
            t.epoch = 2;
            arb_first(&s);
            before = d;
            d.fail = fail;
            int offered = arb_offer(&s);
            d.fail = 0;
            d.locked = false; // with its holder
            if (offered && torn)
                for (int k = 0; k < 2; k++) // of the slot that was written, `torn` bytes came
                    memcpy(d.now + 512 * k + torn, before.now + 512 * k + torn, 512 - torn);
            int back = arb_settle(&s), took = arb_take(&t);
            ck_assert_int_eq(back, 0);
            ck_assert_int_eq(took, -ESTALE);
        }
    struct disk d = {.len = 1024};
    struct mig s = party(&d, 1, 2);
    memset(d.now, 0x5a, sizeof(d.now));
    ck_assert_int_eq(arb_first(&s), -EUCLEAN); // not a record: nobody writes over it
}
END_TEST

int main(void)
{
    Suite *s = suite_create("mig");
    TCase *t = tcase_create("mig");

    suite_add_tcase(s, t);
    tcase_add_test(t, messages);
    tcase_add_test(t, every_flipped_bit);
    tcase_add_test(t, other_session_channel_direction_number);
    tcase_add_test(t, pieces);
    tcase_add_test(t, pages_out_of_place);
    tcase_add_test(t, pushed_from_behind_the_fault);
    tcase_add_test(t, arbiter);
    tcase_add_test(t, offer_taken_back);
    tcase_add_test(t, arbiter_fails);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
