// SPDX-License-Identifier: Apache-2.0
// JSON: the refused forms, limits, binding, writing, and Python's json as the oracle.
#include <check.h>
#include <sys/wait.h>

#include "api-socket/json.h"

static struct json_doc doc;
static struct err err;

static int judge(const char *s, size_t n)
{
    err.msg[0] = 0;
    int r = json_parse(&doc, s, n, JSON_BODY_TOKENS, &err);
    ck_assert((r != 0) == (err.msg[0] != 0));
    return r;
}

static const char *const good[] = {
    "{}",
    " \t\r\n{ } \n",
    "{\"a\":1}",
    "{\"a\":-0.5e+10,\"b\":[],\"c\":[1,2,[3]],\"d\":null,\"e\":true,\"f\":false}",
    "{\"a\":{\"a\":{\"a\":\"\"}}}",
    "{\"a\":\"\\u00e9\\ud83d\\ude00\\n\\/\\\"\"}",
    "{\"a\":\"\xc3\xa9\xf0\x9f\x98\x80\"}",
    "{\"a\":[[[[[[[]]]]]]]}", // depth 8
    "{\"a\":\"[[[[[[[[[[[[\",\"b\":\"\\\"{{{{{{{{{{\"}",
    "{\"a\":1e999}",
    "{\"a\":18446744073709551616}",
};

static const char *const bad[] = {
    "",
    " ",
    "1",
    "[]",
    "\"a\"",
    "null",
    "{",
    "}",
    "{]",
    "{\"a\"}",
    "{\"a\" \"b\"}",
    "{\"a\":}",
    "{\"a\":1,}",
    "{,}",
    "{,\"a\":1}",
    "{\"a\":1,,\"b\":2}",
    "{\"a\"::1}",
    "{\"a\":1:2}",
    "{\"a\":1 2}",
    "{\"a\":1 \"b\":2}",
    "{1:2}",
    "{a:1}",
    "{true:1}",
    "{\"a\":b}",
    "{'a':1}",
    "{\"a\":tru}",
    "{\"a\":truex}",
    "{\"a\":nul}",
    "{\"a\":True}",
    "{\"a\":NaN}",
    "{\"a\":Infinity}",
    "{\"a\":01}",
    "{\"a\":-}",
    "{\"a\":+1}",
    "{\"a\":1.}",
    "{\"a\":.5}",
    "{\"a\":1e}",
    "{\"a\":1e+}",
    "{\"a\":0x1}",
    "{\"a\":--1}",
    "{\"a\":[1 2]}",
    "{\"a\":[1,]}",
    "{\"a\":[,1]}",
    "{\"a\":[1}",
    "{\"a\":[1:2]}",
    "{\"a\":[\"b\":1]}",
    "{\"a\":1}{}",
    "{\"a\":1}x",
    "{\"a\":1},",
    "{}1",
    "{\"a\":1}}",
    "{\"a\":1,\"a\":2}",
    "{\"a\":{\"b\":1,\"c\":{},\"b\":2}}",
    "{\"\\u0061\":1}", // escaped keys are refused, so that equal keys are equal bytes
    "{\"a\":\"\\ud800\"}",
    "{\"a\":\"\\udc00\"}",
    "{\"a\":\"\\ud800\\ud800\"}",
    "{\"a\":\"\\ud800x\"}",
    "{\"a\":\"\\u12\"}",
    "{\"a\":\"\\x41\"}",
    "{\"a\":\"\n\"}",
    "{\"a\":\"\t\"}",
    "{\"a\":\"\x80\"}",
    "{\"a\":\"\xc0\xaf\"}",
    "{\"a\":\"\xc3\"}",
    "{\"a\":\"\xe0\x80\xaf\"}",
    "{\"a\":\"\xed\xa0\x80\"}",
    "{\"a\":\"\xf4\x90\x80\x80\"}",
    "{\"a\":\"\xf8\x88\x80\x80\x80\"}",
    "{\"a\":\"b}",
    "{\"a\":\"b\\\"}",
    "{\"a\":1}/**/",
    "\xef\xbb\xbf{}",
    "{\"a\":[[[[[[[[]]]]]]]]}", // depth 9
};

START_TEST(accepts)
{
    ck_assert_msg(judge(good[_i], strlen(good[_i])) == 0, "%s: %s", good[_i], err.msg);
}
END_TEST

START_TEST(refuses)
{
    ck_assert_msg(judge(bad[_i], strlen(bad[_i])) == -EINVAL, "%s", bad[_i]);
}
END_TEST

START_TEST(nul_bytes)
{
    static const char a[] = "{}\0", b[] = "{\"a\0\":1}", c[] = "{\"a\":\0 1}", d[] = "{\"a\":1\0}",
                      e[] = "\0{}";
    ck_assert_int_ne(judge(a, sizeof(a) - 1), 0);
    ck_assert_int_ne(judge(b, sizeof(b) - 1), 0);
    ck_assert_int_ne(judge(c, sizeof(c) - 1), 0);
    ck_assert_int_ne(judge(d, sizeof(d) - 1), 0);
    ck_assert_int_ne(judge(e, sizeof(e) - 1), 0);
}
END_TEST

START_TEST(token_limit)
{
    char s[1024] = "{\"a\":[1";
    size_t n = strlen(s);
    for (int i = 0; i < JSON_BODY_TOKENS - 4; i++) // object, key, array, first
        n += (size_t)sprintf(s + n, ",1");
    strcpy(s + n, "]}");
    ck_assert_int_eq(judge(s, n + 2), 0);
    strcpy(s + n, ",1]}");
    ck_assert_int_ne(judge(s, n + 4), 0);
    ck_assert_ptr_nonnull(strstr(err.msg, "256"));
}
END_TEST

START_TEST(depth_is_cheap)
{
    // jsmn alone would take seconds over this one: the scan must stop it first.
    static char s[JSON_TOKENS_MAX * 64];
    memset(s, '[', sizeof(s));
    memcpy(s, "{\"a\":", 5);
    ck_assert_int_ne(judge(s, sizeof(s)), 0);
    ck_assert_ptr_nonnull(strstr(err.msg, "nesting"));
}
END_TEST

struct inner {
    uint64_t size;
    bool set;
};
struct outer {
    uint8_t count;
    bool flag, has_flag;
    char name[8];
    uint32_t mode;
    struct inner inner;
    unsigned nlist;
    struct inner list[2];
};
static const struct json_field inner_fields[] = {
    {"size", J_UINT, JSON_REQUIRED, offsetof(struct inner, size), 8, JSON_NO_HAS, 0, UINT64_MAX,
     NULL, NULL},
};
static const struct json_type inner_type = {sizeof(struct inner), inner_fields, 1};
static const char *const modes[] = {"Off", "On", NULL};
static const struct json_field outer_fields[] = {
    {"count", J_UINT, JSON_REQUIRED, offsetof(struct outer, count), 1, JSON_NO_HAS, 1, 32, NULL,
     NULL},
    {"flag", J_BOOL, JSON_NULLABLE, offsetof(struct outer, flag), 1,
     offsetof(struct outer, has_flag), 0, 0, NULL, NULL},
    {"name", J_STR, JSON_NULLABLE, offsetof(struct outer, name), 8, JSON_NO_HAS, 1, 0, NULL, NULL},
    {"mode", J_ENUM, 0, offsetof(struct outer, mode), 4, JSON_NO_HAS, 0, 0, modes, NULL},
    {"inner", J_OBJ, JSON_NULLABLE, offsetof(struct outer, inner), 0,
     offsetof(struct outer, inner.set), 0, 0, NULL, &inner_type},
    {"list", J_LIST, 0, offsetof(struct outer, list), 2 * sizeof(struct inner),
     offsetof(struct outer, nlist), 0, 0, NULL, &inner_type},
};
static const struct json_type outer_type = {sizeof(struct outer), outer_fields,
                                            ARRAY_SIZE(outer_fields)};

static int bind(struct outer *o, const char *s)
{
    *o = (struct outer){0};
    ck_assert_msg(judge(s, strlen(s)) == 0, "%s: %s", s, err.msg);
    return json_bind(&doc, 0, &outer_type, o, &err);
}

START_TEST(binds)
{
    struct outer o;
    ck_assert_int_eq(bind(&o, "{\"list\":[{\"size\":1},{\"size\":18446744073709551615}],"
                              "\"inner\":{\"size\":7},\"mode\":\"On\",\"name\":\"a\\u00e9\","
                              "\"flag\":true,\"count\":32}"),
                     0);
    ck_assert_uint_eq(o.count, 32);
    ck_assert(o.flag && o.has_flag && o.inner.set);
    ck_assert_str_eq(o.name, "a\xc3\xa9");
    ck_assert_uint_eq(o.mode, 1);
    ck_assert_uint_eq(o.inner.size, 7);
    ck_assert_uint_eq(o.nlist, 2);
    ck_assert_uint_eq(o.list[1].size, UINT64_MAX);

    char out[512];
    struct json_out w = {.buf = out, .cap = sizeof(out)};
    json_struct(&w, NULL, &outer_type, &o);
    ck_assert(!w.overflow);
    out[w.len] = 0;
    ck_assert_str_eq(out, "{\"count\":32,\"flag\":true,\"name\":\"a\xc3\xa9\",\"mode\":\"On\","
                          "\"inner\":{\"size\":7}}");
    ck_assert_int_eq(bind(&o, "{\"count\":1,\"flag\":null,\"name\":null,\"inner\":null}"), 0);
    ck_assert(!o.has_flag && !o.inner.set);
    w = (struct json_out){.buf = out, .cap = sizeof(out)};
    json_struct(&w, NULL, &outer_type, &o);
    out[w.len] = 0;
    ck_assert_str_eq(out,
                     "{\"count\":1,\"flag\":null,\"name\":null,\"mode\":\"Off\",\"inner\":null}");
}
END_TEST

static const struct {
    const char *text, *message;
} misfits[] = {
    {"{}", "missing field `count` at line 1 column 2"},
    {"{\"count\":1,\n\"x\":2}", "unknown field `x` at line 2 column 2"},
    {"{\"count\":0}", "invalid value for `count`: expected an integer from 1 to 32"},
    {"{\"count\":33}", "`count`"},
    {"{\"count\":1.5}", "`count`"},
    {"{\"count\":1e0}", "`count`"},
    {"{\"count\":1e999}", "`count`"},
    {"{\"count\":-1}", "`count`"},
    {"{\"count\":257}", "`count`"},
    {"{\"count\":18446744073709551617}", "`count`"},
    {"{\"count\":\"1\"}", "`count`"},
    {"{\"count\":true}", "`count`"},
    {"{\"count\":null}", "`count`"},
    {"{\"count\":[]}", "`count`"},
    {"{\"count\":1,\"flag\":1}", "invalid value for `flag`: expected a boolean"},
    {"{\"count\":1,\"flag\":\"true\"}", "`flag`"},
    {"{\"count\":1,\"name\":3}", "invalid value for `name`: expected a string"},
    {"{\"count\":1,\"name\":\"12345678\"}", "a string of 1 to 7 bytes"},
    {"{\"count\":1,\"name\":\"\"}", "a string of 1 to 7 bytes"},
    {"{\"count\":1,\"name\":\"a\\u0000b\"}", "U+0000"},
    {"{\"count\":1,\"mode\":\"on\"}", "invalid value for `mode`: expected one of `Off`, `On`"},
    {"{\"count\":1,\"mode\":1}", "`mode`"},
    {"{\"count\":1,\"mode\":null}", "`mode`"},
    {"{\"count\":1,\"inner\":1}", "expected an object"},
    {"{\"count\":1,\"inner\":{}}", "missing field `size`"},
    {"{\"count\":1,\"inner\":{\"size\":1,\"y\":1}}", "unknown field `y`"},
    {"{\"count\":1,\"list\":{}}", "invalid value for `list`: expected an array"},
    {"{\"count\":1,\"list\":[1]}", "invalid value for `list`: expected an array of objects"},
    {"{\"count\":1,\"list\":[{\"size\":1},{\"size\":1},{\"size\":1}]}", "fewer entries"},
};

START_TEST(misfit)
{
    struct outer o;
    ck_assert_int_eq(bind(&o, misfits[_i].text), -EINVAL);
    ck_assert_msg(strstr(err.msg, misfits[_i].message), "%s: %s", misfits[_i].text, err.msg);
}
END_TEST

START_TEST(writer_is_bounded_and_clean)
{
    char out[64];
    for (size_t cap = 0; cap < sizeof(out); cap++) {
        struct json_out w = {.buf = out, .cap = cap};
        out[cap] = 'X';
        json_open(&w, NULL, '{');
        json_str(&w, "k\"", "\x01\\\xff\xc3\xa9\xe2\x82");
        json_uint(&w, "n", UINT64_MAX);
        json_close(&w, '}');
        ck_assert_int_eq(out[cap], 'X');
        ck_assert(w.len <= cap);
        if (!w.overflow) {
            static const char want[] = "{\"k\\u0022\":\"\\u0001\\u005c?\xc3\xa9??\","
                                       "\"n\":18446744073709551615}";
            ck_assert_uint_eq(w.len, sizeof(want) - 1);
            ck_assert_mem_eq(out, want, w.len);
            return;
        }
    }
    ck_abort_msg("it never fitted");
}
END_TEST

// Reads the documents (4-byte length, bytes) and prints 1 or 0 for each. What we refuse on purpose
// and Python would take is refused here as well, but for escapes in a key, which values do not
// show.
static const char oracle[] =
    "import json, struct, sys\n"
    "def pairs(p):\n"
    "    k = [a for a, b in p]\n"
    "    if len(set(k)) != len(k): raise ValueError\n"
    "    return dict(p)\n"
    "def const(c): raise ValueError\n"
    "def lone(v):\n"
    "    if isinstance(v, str): v.encode()\n"
    "    elif isinstance(v, list): [lone(x) for x in v]\n"
    "    elif isinstance(v, dict): [lone(x) for x in list(v) + list(v.values())]\n"
    "def deep(v):\n"
    "    if isinstance(v, dict): v = list(v.values())\n"
    "    return 1 + max(map(deep, v), default=0) if isinstance(v, list) else 0\n"
    "def ok(b):\n"
    "    try:\n"
    "        v = json.loads(b.decode(), object_pairs_hook=pairs, parse_constant=const)\n"
    "        lone(v)\n"
    "        return isinstance(v, dict) and deep(v) <= 8\n"
    "    except (ValueError, RecursionError): return False\n"
    "f = sys.stdin.buffer\n"
    "while h := f.read(4): print(int(ok(f.read(struct.unpack('<I', h)[0]))))\n";

static uint64_t rnd(uint64_t *s) // xorshift64: the same mutations on every run
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static size_t mutate(char *s, size_t cap, uint64_t *seed)
{
    static const char *const bits[] = {
        "{",  "}",  "[",    "]",    ",",       ":",       "\"",      "\\",       "1",  "-",   "0",
        ".",  "e9", "true", "null", "false",   "\"b\"",   "\"c\":",  " ",        "\n", "{}",  "[]",
        "\t", "1,", ",2",   "\\n",  "\\u0041", "\\ud83d", "\\ude00", "\xc3\xa9", "/",  "\x7f"};
    uint64_t pick = rnd(seed) % (ARRAY_SIZE(good) + ARRAY_SIZE(bad));
    const char *from = pick < ARRAY_SIZE(good) ? good[pick] : bad[pick - ARRAY_SIZE(good)];
    size_t n = strlen(from);
    memcpy(s, from, n);
    for (uint64_t k = rnd(seed) % 4; k > 0; k--) {
        size_t at = rnd(seed) % (n + 1);
        const char *bit = bits[rnd(seed) % ARRAY_SIZE(bits)];
        size_t m = strlen(bit);
        switch (rnd(seed) % 4) {
        case 0:
            if (at < n)
                s[at] = (char)rnd(seed);
            break;
        case 1:
            if (at < n)
                memmove(s + at, s + at + 1, --n - at);
            break;
        default:
            if (n + m < cap) {
                memmove(s + at + m, s + at, n - at);
                memcpy(s + at, bit, m);
                n += m;
            }
        }
    }
    return n;
}

START_TEST(against_python)
{
    enum { DOCS = 40000 };
    static char docs[DOCS][256];
    static size_t len[DOCS];
    uint64_t seed = 0x2545f4914f6cdd1d;
    char name[] = "/tmp/json-oracle-XXXXXX", cmd[sizeof(oracle) + 128];
    int fd = mkstemp(name), verdict;
    ck_assert_int_ge(fd, 0);
    FILE *f = fdopen(fd, "wb");
    for (int i = 0; i < DOCS; i++) {
        len[i] = mutate(docs[i], sizeof(docs[i]), &seed);
        uint32_t n = (uint32_t)len[i];
        fwrite(&n, 4, 1, f);
        fwrite(docs[i], n, 1, f);
    }
    ck_assert_int_eq(fclose(f), 0);
    snprintf(cmd, sizeof(cmd), "exec python3 -c \"$ORACLE\" < %s", name);
    setenv("ORACLE", oracle, 1);
    FILE *p = popen(cmd, "r");
    unsigned accepted = 0;
    for (int i = 0; i < DOCS; i++) {
        ck_assert_msg(fscanf(p, "%d", &verdict) == 1, "python3 gave no verdict");
        bool ours = judge(docs[i], len[i]) == 0;
        accepted += ours;
        ck_assert_msg(ours == (verdict == 1) || strstr(err.msg, "a key must not hold"),
                      "ours %d, Python's %d: %.*s (%s)", ours, verdict, (int)len[i], docs[i],
                      err.msg);
    }
    int status = pclose(p);
    unlink(name);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ck_assert_uint_gt(accepted, DOCS / 50); // else the comparison means nothing
}
END_TEST

int main(void)
{
    Suite *s = suite_create("json");
    TCase *t = tcase_create("json");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, accepts, 0, (int)ARRAY_SIZE(good));
    tcase_add_loop_test(t, refuses, 0, (int)ARRAY_SIZE(bad));
    tcase_add_loop_test(t, misfit, 0, (int)ARRAY_SIZE(misfits));
    tcase_add_test(t, nul_bytes);
    tcase_add_test(t, token_limit);
    tcase_add_test(t, depth_is_cheap);
    tcase_add_test(t, binds);
    tcase_add_test(t, writer_is_bounded_and_clean);
    tcase_add_test(t, against_python);
    suite_add_tcase(s, t);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
