// SPDX-License-Identifier: Apache-2.0
// The state codec: what goes in comes out, and nothing that was touched is taken.
#include <check.h>

#include "tests/unit/snap_blob.h"

static uint8_t buf[SNAP_STATE_MAX], out[SNAP_STATE_MAX];
static size_t len;
static struct err e;

static void setup(void)
{
    struct vm_saved *s = blob_sample(2);
    len = blob_make(s, buf);
    vm_saved_free(s);
    ck_assert_uint_gt(len, SNAP_HEAD);
}

static int decode(const uint8_t *p, size_t n)
{
    struct snap_blob b;
    struct vm_saved *s = NULL;
    e.msg[0] = 0;
    int rc = codec_decode(p, n, &b, &s, &e);
    ck_assert(rc ? !s && e.msg[0] : !!s);
    vm_saved_free(s);
    return rc;
}

// Finds section `type` in buf; *n is its length with its 8 bytes of head.
static uint8_t *section(uint32_t type, size_t *n)
{
    for (uint8_t *p = buf + SNAP_HEAD; p < buf + len; p += *n) {
        *n = 8 + le32_get(p + 4);
        if (le32_get(p) == type)
            return p;
    }
    ck_abort_msg("no section %#x", type);
    return NULL;
}

START_TEST(round_trip)
{
    struct vm_saved *s = blob_sample(2), *t = NULL;
    struct snap_blob b;
    ck_assert_int_eq(codec_decode(buf, len, &b, &t, &e), 0);
    ck_assert_uint_eq(b.id[2], 3);
    ck_assert_uint_eq(b.parent[0], 4);
    ck_assert_str_eq(b.info.monitor, "test");
    ck_assert_str_eq(b.info.arch, "x86_64");
    ck_assert_uint_eq(t->nvcpus, 2);
    ck_assert_uint_eq(t->ndevs, 2);
    ck_assert_mem_eq(&t->machine, &s->machine, sizeof(s->machine));
    ck_assert_mem_eq(&t->ioapic, &s->ioapic, sizeof(s->ioapic));
    ck_assert_mem_eq(&t->vcpu[1].regs, &s->vcpu[1].regs, sizeof(s->vcpu[1].regs));
    ck_assert_mem_eq(t->vcpu[1].xsave, s->vcpu[1].xsave, VCPU_XSAVE_MAX);
    ck_assert_str_eq(t->dev[0].blk.cfg.path_on_host, "/disk");
    ck_assert_uint_eq(t->dev[1].net.rx.bytes.tokens, 77);
    ck_assert_uint_eq(codec_length(buf), len);
    ck_assert_uint_eq(blob_make(t, out), len);
    ck_assert_mem_eq(out + SNAP_HEAD, buf + SNAP_HEAD, len - SNAP_HEAD);
    vm_saved_free(s);
    vm_saved_free(t);
}
END_TEST

START_TEST(every_bit)
{
    for (size_t i = 0; i < len * 8; i++) {
        buf[i / 8] ^= (uint8_t)(1 << i % 8);
        if (decode(buf, len) == 0)
            ck_abort_msg("bit %zu of byte %zu flipped, and taken", i % 8, i / 8);
        buf[i / 8] ^= (uint8_t)(1 << i % 8);
    }
    ck_assert_int_eq(decode(buf, len), 0);
}
END_TEST

START_TEST(every_length)
{
    for (size_t i = 0; i < len; i++)
        ck_assert_int_ne(decode(buf, i), 0);
    ck_assert_int_ne(decode(buf, len + 1), 0);
}
END_TEST

// The same under a right checksum: nothing crashes, and a cut inside a section is refused.
START_TEST(every_length_sealed)
{
    for (size_t i = SNAP_HEAD; i < len; i++) {
        memcpy(out, buf, i);
        blob_seal(out, i);
        ck_assert_int_ne(decode(out, i), 0);
    }
}
END_TEST

START_TEST(every_byte_sealed)
{
    for (size_t i = SNAP_HEAD; i < len; i++) {
        static const uint8_t flip[] = {1, 0x80, 0xff};
        for (size_t k = 0; k < ARRAY_SIZE(flip); k++) {
            memcpy(out, buf, len);
            out[i] ^= flip[k];
            blob_seal(out, len);
            decode(out, len); // may be a value like any other, or refused; never a fault
        }
    }
}
END_TEST

START_TEST(versions)
{
    le32_put(buf + 8, SNAP_VERSION + 1);
    blob_seal(buf, len);
    ck_assert_int_eq(decode(buf, len), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(e.msg, "this monitor reads"));
    le32_put(buf + 8, SNAP_VERSION_MIN - 1);
    blob_seal(buf, len);
    ck_assert_int_eq(decode(buf, len), -ENOTSUP);
}
END_TEST

START_TEST(architecture)
{
    size_t n;
    uint8_t *p = section(1, &n);
    memcpy(p + 10, "riscv0", 6);
    blob_seal(buf, len);
    ck_assert_int_eq(decode(buf, len), -ENOTSUP);
    ck_assert_str_eq(e.msg, "recorded on a riscv0 machine");
}
END_TEST

static void insert(uint8_t *at, const void *what, size_t n)
{
    memmove(at + n, at, len - (size_t)(at - buf));
    memcpy(at, what, n);
    len += n;
    blob_seal(buf, len);
}

START_TEST(sections_twice_or_missing)
{
    static const uint32_t types[] = {1, 2, 3, 4, 5, 6, 7, 0x100, 0x200, 0x300, 0x301};
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        size_t n;
        uint8_t copy[32768], *p = section(types[i], &n);
        memcpy(copy, p, n);
        insert(p, copy, n);
        ck_assert_int_ne(decode(buf, len), 0);
        ck_assert_ptr_nonnull(strstr(e.msg, "twice"));
        for (int gone = 0; gone < 2; gone++) { // the copy, then the section itself
            p = section(types[i], &n);
            memmove(p, p + n, len - (size_t)(p + n - buf));
            len -= n;
            blob_seal(buf, len);
        }
        bool may_go = types[i] == 0x100 || types[i] == 0x200; // the only one of its kind
        ck_assert_int_eq(!decode(buf, len), may_go);
        setup();
    }
}
END_TEST

START_TEST(sections_unknown)
{
    uint8_t s[12] = {0x40, 0, 0, 0, 4, 0, 0, 0, 1, 2, 3, 4};
    size_t n;
    insert(section(0x100, &n), s, sizeof(s));
    ck_assert_int_eq(decode(buf, len), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(e.msg, "unknown section 0x40"));
    setup();
    s[0] = 1, s[3] = 0x40; // optional: skipped
    insert(buf + len, s, sizeof(s));
    ck_assert_int_eq(decode(buf, len), 0);
    s[4] = 5; // longer than the file
    setup();
    insert(buf + len, s, sizeof(s));
    ck_assert_int_ne(decode(buf, len), 0);
}
END_TEST

START_TEST(sections_of_wrong_length)
{
    for (uint32_t type = 1; type <= 7; type++) {
        size_t n;
        uint8_t zero = 0, *p = section(type, &n);
        le32_put(p + 4, (uint32_t)n - 8 + 1);
        insert(p + n, &zero, 1);
        ck_assert_int_ne(decode(buf, len), 0);
        ck_assert_ptr_nonnull(strstr(e.msg, "malformed"));
        setup();
    }
}
END_TEST

START_TEST(indices_with_gaps)
{
    static const uint32_t types[] = {0x100, 0x200, 0x301};
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        size_t n;
        le32_put(section(types[i], &n), types[i] + 1);
        blob_seal(buf, len);
        ck_assert_int_ne(decode(buf, len), 0);
        setup();
    }
}
END_TEST

START_TEST(too_large)
{
    struct vm_saved *s = blob_sample(CFG_MAX_VCPUS);
    for (unsigned i = 0; i < CFG_MAX_VCPUS; i++)
        memset(s->vcpu[i].xsave, 1, VCPU_XSAVE_MAX);
    ck_assert_uint_gt(blob_make(s, out), 0); // the largest machine fits
    struct snap_blob b = {.id = {1}};
    size_t n;
    ck_assert_int_eq(codec_encode(&b, s, out, 100000, &n, &e), -ENOSPC);
    ck_assert_int_eq(codec_encode(&b, s, out, 10, &n, &e), -ENOSPC);
    vm_saved_free(s);
}
END_TEST

// ---- the table walker

struct inner {
    uint16_t a;
    uint8_t later;
};
struct outer {
    char name[8];
    bool on;
    uint32_t n;
    struct inner list[3];
    uint8_t tail[6];
};
static const struct field inner_f[] = {
    {F_INT, offsetof(struct inner, a), 2, 1, 0, 0, NULL},
    {F_INT, offsetof(struct inner, later), 1, 1, 0, 2, NULL},
};
static const struct table t_inner = {inner_f, 2, sizeof(struct inner)};
static const struct field outer_f[] = {
    {F_STR, offsetof(struct outer, name), 1, 8, 0, 0, NULL},
    {F_BOOL, offsetof(struct outer, on), 1, 1, 0, 0, NULL},
    {F_LIST, offsetof(struct outer, list), 0, 3, offsetof(struct outer, n), 0, &t_inner},
    {F_TAIL, offsetof(struct outer, tail), 1, 6, 0, 0, NULL},
};
static const struct table t_outer = {outer_f, 4, sizeof(struct outer)};

static bool take(const char *bytes, size_t n, uint32_t version, struct outer *o)
{
    memset(o, 0, sizeof(*o));
    memcpy(out, bytes, n);
    struct codec c = {.p = out, .end = out + n, .version = version};
    codec_walk(&c, &t_outer, o);
    return !c.bad && c.p == c.end;
}

START_TEST(walk)
{
    struct outer o;
    // A reader of version 2 reads 2, and 1, whose inner struct lacked its last member.
    ck_assert(take("\2\0ab\1\1\0\0\0\5\0\7\1\0\0\0\11", 17, 2, &o));
    ck_assert_str_eq(o.name, "ab");
    ck_assert(o.on && o.n == 1 && o.list[0].a == 5 && o.list[0].later == 7 && o.tail[0] == 9);
    ck_assert(take("\2\0ab\1\1\0\0\0\5\0\1\0\0\0\11", 16, 1, &o));
    ck_assert(o.list[0].later == 0 && o.tail[0] == 9);
    ck_assert(!take("\2\0ab\1\1\0\0\0\5\0\1\0\0\0\11", 16, 2, &o));
    ck_assert(!take("\2\0a\0\1\0\0\0\0\0\0\0\0", 13, 2, &o));            // NUL in a string
    ck_assert(!take("\10\0abcdefgh\1\0\0\0\0\0\0\0\0", 19, 2, &o));      // string too long
    ck_assert(!take("\0\0\2\0\0\0\0\0\0\0\0", 11, 2, &o));               // neither true nor false
    ck_assert(!take("\0\0\1\4\0\0\0\0\0\0\0", 11, 2, &o));               // list too long
    ck_assert(!take("\0\0\1\0\0\0\0\7\0\0\0\1\2\3\4\5\6\7", 18, 2, &o)); // tail too long
    ck_assert(take("\0\0\1\0\0\0\0\0\0\0\0", 11, 2, &o));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("codec");
    TCase *t = tcase_create("all");
    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_test(t, round_trip);
    tcase_add_test(t, every_bit);
    tcase_add_test(t, every_length);
    tcase_add_test(t, every_length_sealed);
    tcase_add_test(t, every_byte_sealed);
    tcase_add_test(t, versions);
    tcase_add_test(t, architecture);
    tcase_add_test(t, sections_twice_or_missing);
    tcase_add_test(t, sections_unknown);
    tcase_add_test(t, sections_of_wrong_length);
    tcase_add_test(t, indices_with_gaps);
    tcase_add_test(t, too_large);
    tcase_add_test(t, walk);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int bad = srunner_ntests_failed(r);
    srunner_free(r);
    return bad ? EXIT_FAILURE : EXIT_SUCCESS;
}
