// SPDX-License-Identifier: Apache-2.0
// HTTP parser: the refused forms, limits, drip and pipelining, and http-parser as the oracle.
#include <check.h>
#include <http_parser.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api-socket/http.h"

static enum http_state parse(struct http_request *r, const char *s, size_t n)
{
    *r = (struct http_request){.body_max = HTTP_BODY_MAX};
    return http_parse(r, s, n);
}

static const struct {
    const char *text;
    enum http_state state;
} cases[] = {
    {"GET / HTTP/1.1\r\n\r\n", HTTP_DONE},
    {"GET / HTTP/1.0\r\n\r\n", HTTP_DONE},
    {"DELETE /drives/a HTTP/1.1\r\n\r\n", HTTP_DONE},
    {"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", HTTP_DONE},
    {"PUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", HTTP_DONE},
    {"PUT /a HTTP/1.1\r\ncontent-length:\t 2\r\n\r\n{}", HTTP_DONE},
    {"PUT /a HTTP/1.1\r\nContent-Length: 51200\r\n\r\n", HTTP_MORE},
    {"PUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\n{}", HTTP_MORE},
    {"PATCH /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n{}", HTTP_CONTINUE},
    {"PATCH /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", HTTP_DONE},
    {"", HTTP_MORE},
    {"G", HTTP_MORE},
    {"GET / HTTP/1.1\r", HTTP_MORE},
    // A1: lengths and codings
    {"PUT / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nContent-Length: 2, 2\r\n\r\n{}", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nContent-Length: +2\r\n\r\n{}", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nContent-Length: -2\r\n\r\n{}", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nContent-Length: 1 1\r\n\r\n", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nContent-Length: 2 \r\n\r\n{}", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nContent-Length : 2\r\n\r\n{}", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nContent-Length:\r\n\r\n", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nContent-Length: 0x2\r\n\r\n{}", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nContent-Length: 18446744073709551618\r\n\r\n{}", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", HTTP_BAD},
    {"PUT / HTTP/1.1\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}", HTTP_BAD},
    // A2: line forms
    {"GET / HTTP/1.1\n\n", HTTP_BAD},
    {"GET / HTTP/1.1\r\nA: b\n\r\n", HTTP_BAD},
    {"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", HTTP_BAD},
    {"GET / HTTP/1.1\r\n A: b\r\n\r\n", HTTP_BAD},
    {"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", HTTP_BAD},
    {"GET / HTTP/1.1\r\nA\r\n\r\n", HTTP_BAD},
    {"GET / HTTP/1.1\r\n: b\r\n\r\n", HTTP_BAD},
    {"GET / HTTP/1.1\r\nA B: c\r\n\r\n", HTTP_BAD},
    {"GET  / HTTP/1.1\r\n\r\n", HTTP_BAD},
    {"GET /  HTTP/1.1\r\n\r\n", HTTP_BAD},
    {" GET / HTTP/1.1\r\n\r\n", HTTP_BAD},
    {"GET / HTTP/1.1 \r\n\r\n", HTTP_BAD},
    {"GET\t/ HTTP/1.1\r\n\r\n", HTTP_BAD},
    {"GET / HTTP/1.2\r\n\r\n", HTTP_BAD},
    {"GET / HTTP/2.0\r\n\r\n", HTTP_BAD},
    {"GET / http/1.1\r\n\r\n", HTTP_BAD},
    {"GET /\r\n\r\n", HTTP_BAD},
    {"GET\r\n\r\n", HTTP_BAD},
    {"GET \r\n\r\n", HTTP_BAD},
    {"GET a HTTP/1.1\r\n\r\n", HTTP_BAD},
    {"GET * HTTP/1.1\r\n\r\n", HTTP_BAD},
    {"GET http://h/ HTTP/1.1\r\n\r\n", HTTP_BAD},
    {"GET /\x80 HTTP/1.1\r\n\r\n", HTTP_BAD},
    {"get / HTTP/1.1\r\n\r\n", HTTP_BAD},
    {"OPTIONS / HTTP/1.1\r\n\r\n", HTTP_BAD},
    {"\r\nGET / HTTP/1.1\r\n\r\n", HTTP_BAD},
    {"GET / HTTP/1.1\r\nExpect: the-unexpected\r\n\r\n", HTTP_BAD},
};

START_TEST(forms)
{
    struct http_request r;
    ck_assert_msg(parse(&r, cases[_i].text, strlen(cases[_i].text)) == cases[_i].state, "%s",
                  cases[_i].text);
    ck_assert((r.fault != NULL) == (cases[_i].state == HTTP_BAD));
}
END_TEST

START_TEST(nul_bytes)
{
    static const char a[] = "GET /\0 HTTP/1.1\r\n\r\n", b[] = "GET / HTTP/1.1\r\nA: \0\r\n\r\n",
                      c[] = "GET / HTTP/1.1\r\nA\0: b\r\n\r\n", d[] = "G\0T / HTTP/1.1\r\n\r\n";
    struct http_request r;
    ck_assert_int_eq(parse(&r, a, sizeof(a) - 1), HTTP_BAD);
    ck_assert_int_eq(parse(&r, b, sizeof(b) - 1), HTTP_BAD);
    ck_assert_int_eq(parse(&r, c, sizeof(c) - 1), HTTP_BAD);
    ck_assert_int_eq(parse(&r, d, sizeof(d) - 1), HTTP_BAD);
}
END_TEST

// Every head is judged the same whether it comes at once or byte by byte.
START_TEST(drip)
{
    struct http_request whole, r = {.body_max = HTTP_BODY_MAX};
    size_t n = strlen(cases[_i].text);
    enum http_state want = parse(&whole, cases[_i].text, n), got = HTTP_MORE;
    for (size_t i = 0; i <= n && (got == HTTP_MORE || got == HTTP_CONTINUE); i++)
        got = http_parse(&r, cases[_i].text, i);
    if (want == HTTP_CONTINUE)
        want = HTTP_MORE; // it was told at an earlier byte
    ck_assert_msg(got == want, "%s", cases[_i].text);
}
END_TEST

START_TEST(fields)
{
    static const char s[] = "PUT /drives/root HTTP/1.1\r\nHost: localhost\r\n"
                            "Connection: x, Close\r\nContent-Length: 4\r\n\r\n{  }GET /";
    struct http_request r;
    ck_assert_int_eq(parse(&r, s, sizeof(s) - 1), HTTP_DONE);
    ck_assert_int_eq(r.verb, VERB_PUT);
    ck_assert_uint_eq(r.target_len, 12);
    ck_assert_mem_eq(s + r.target, "/drives/root", 12);
    ck_assert_uint_eq(r.body_len, 4);
    ck_assert_mem_eq(s + r.head_len, "{  }", 4);
    ck_assert(r.close);
    parse(&r, "GET / HTTP/1.0\r\n\r\n", 18);
    ck_assert(r.close);
    parse(&r, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 42);
    ck_assert(!r.close);
}
END_TEST

static char big[HTTP_HEAD_MAX + 4096];

START_TEST(line_limits)
{
    struct http_request r;
    for (int over = 0; over < 2; over++) {
        size_t pad = HTTP_LINE_MAX - strlen("GET / HTTP/1.1") + (size_t)over, n;
        n = (size_t)sprintf(big, "GET /%0*d HTTP/1.1\r\n\r\n", (int)pad, 0);
        ck_assert_int_eq(parse(&r, big, n), over ? HTTP_BAD : HTTP_DONE);
        pad = HTTP_LINE_MAX - strlen("A: ") + (size_t)over;
        n = (size_t)sprintf(big, "GET / HTTP/1.1\r\nA: %0*d\r\n\r\n", (int)pad, 0);
        ck_assert_int_eq(parse(&r, big, n), over ? HTTP_BAD : HTTP_DONE);
        n = (size_t)sprintf(big, "GET / HTTP/1.1\r\n");
        for (int i = 0; i < HTTP_HEADERS_MAX + over; i++)
            n += (size_t)sprintf(big + n, "A: b\r\n");
        n += (size_t)sprintf(big + n, "\r\n");
        ck_assert_int_eq(parse(&r, big, n), over ? HTTP_BAD : HTTP_DONE);
    }
    // A line without an end is refused as soon as it is too long, not when the buffer is full.
    memset(big, 'A', sizeof(big));
    ck_assert_int_eq(parse(&r, big, HTTP_LINE_MAX + 1), HTTP_MORE);
    ck_assert_int_eq(parse(&r, big, HTTP_LINE_MAX + 2), HTTP_BAD);
}
END_TEST

START_TEST(body_limit)
{
    struct http_request r = {.body_max = 2};
    static const char s[] = "PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\n";
    ck_assert_int_eq(http_parse(&r, s, sizeof(s) - 1), HTTP_BAD);
}
END_TEST

START_TEST(response)
{
    char out[256];
    size_t n = http_response(out, sizeof(out), 400, "{}", 2, true);
    static const char want[] = "HTTP/1.1 400 Bad Request\r\nServer: Mayfly API\r\n"
                               "Connection: close\r\nContent-Type: application/json\r\n"
                               "Content-Length: 2\r\n\r\n{}";
    ck_assert_uint_eq(n, sizeof(want) - 1);
    ck_assert_mem_eq(out, want, n);
    ck_assert_uint_eq(http_response(out, n - 1, 400, "{}", 2, true), 0);
    n = http_response(out, sizeof(out), 204, NULL, 0, false);
    ck_assert_ptr_null(memmem(out, n, "Content-", 8));
    ck_assert_mem_eq(out, "HTTP/1.1 204 No Content\r\n", 25);
}
END_TEST

// What http-parser read of one request.
struct seen {
    const char *url;
    size_t url_len, body;
    int messages;
};

static int on_url(http_parser *p, const char *at, size_t n)
{
    struct seen *s = p->data;
    s->url = s->url ? s->url : at;
    s->url_len += n;
    return 0;
}

static int on_body(http_parser *p, const char *at, size_t n)
{
    (void)at;
    ((struct seen *)p->data)->body += n;
    return 0;
}

static int on_end(http_parser *p)
{
    ((struct seen *)p->data)->messages++;
    http_parser_pause(p, 1);
    return 0;
}

static void oracle(const char *s, size_t n, const struct http_request *r)
{
    struct seen seen = {0};
    http_parser p;
    http_parser_settings set;
    http_parser_settings_init(&set);
    http_parser_init(&p, HTTP_REQUEST);
    p.data = &seen;
    set.on_url = on_url;
    set.on_body = on_body;
    set.on_message_complete = on_end;
    size_t used = http_parser_execute(&p, &set, s, r->head_len + r->body_len);
    if (p.upgrade) // it stops at an Upgrade that we ignore, and takes the rest for another protocol
        return;
    ck_assert_msg(seen.messages == 1, "%s: %.*s", http_errno_name(p.http_errno), (int)n, s);
    ck_assert_uint_ge(used + 1, r->head_len + r->body_len);
    ck_assert_uint_eq(seen.url_len, r->target_len);
    ck_assert_ptr_eq(seen.url, s + r->target);
    ck_assert_uint_eq(seen.body, r->body_len);
    ck_assert_str_eq(http_method_str((enum http_method)p.method), http_verb_name(r->verb));
}

static uint64_t rnd(uint64_t *s) // xorshift64: the same mutations on every run
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

START_TEST(against_http_parser)
{
    static const char *const bits[] = {"\r\n",
                                       "\n",
                                       "\r",
                                       ": ",
                                       ":",
                                       " ",
                                       "Content-Length: 2\r\n",
                                       "0",
                                       "\t",
                                       "{}",
                                       "HTTP/1.1",
                                       "/",
                                       "GET ",
                                       "Transfer-Encoding: chunked\r\n",
                                       "+",
                                       "\r\n\r\n",
                                       "Host: a\r\n",
                                       "%2f?a=b#c",
                                       "\x80",
                                       "Expect: 100-continue\r\n"};
    uint64_t seed = 0x9e3779b97f4a7c15;
    unsigned accepted = 0;
    for (int round = 0; round < 300000; round++) {
        char s[512];
        const char *from = cases[rnd(&seed) % (sizeof(cases) / sizeof(cases[0]))].text;
        size_t n = strlen(from);
        memcpy(s, from, n);
        for (uint64_t k = rnd(&seed) % 4; k > 0; k--) {
            size_t at = rnd(&seed) % (n + 1);
            const char *bit = bits[rnd(&seed) % (sizeof(bits) / sizeof(bits[0]))];
            size_t m = strlen(bit);
            if (rnd(&seed) % 3 == 0 && at < n) {
                s[at] = (char)rnd(&seed);
            } else if (n + m < sizeof(s)) {
                memmove(s + at + m, s + at, n - at);
                memcpy(s + at, bit, m);
                n += m;
            }
        }
        struct http_request r;
        if (parse(&r, s, n) == HTTP_DONE) {
            accepted++;
            oracle(s, n, &r);
        }
    }
    ck_assert_uint_gt(accepted, 1000); // else the comparison means nothing
}
END_TEST

int main(void)
{
    Suite *s = suite_create("http");
    TCase *t = tcase_create("http");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, forms, 0, (int)(sizeof(cases) / sizeof(cases[0])));
    tcase_add_loop_test(t, drip, 0, (int)(sizeof(cases) / sizeof(cases[0])));
    tcase_add_test(t, nul_bytes);
    tcase_add_test(t, fields);
    tcase_add_test(t, line_limits);
    tcase_add_test(t, body_limit);
    tcase_add_test(t, response);
    tcase_add_test(t, against_http_parser);
    suite_add_tcase(s, t);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
