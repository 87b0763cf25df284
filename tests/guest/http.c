// SPDX-License-Identifier: Apache-2.0
// HTTP: requests in, answers out, on top of a TCP that asks for any byte of the answer again.
#include "http.h"

#define BODY_WINDOW (256u << 10)

static const char *reason(int status)
{
    return status == 200   ? "OK"
           : status == 400 ? "Bad Request"
           : status == 404 ? "Not Found"
           : status == 411 ? "Length Required"
           : status == 500 ? "Internal Server Error"
                           : "Service Unavailable";
}

uint32_t crc32(uint32_t crc, const void *p, size_t n)
{
    static uint32_t table[4][256];
    const uint8_t *b = p;
    if (!table[0][1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t v = i;
            for (int k = 0; k < 8; k++)
                v = v >> 1 ^ (v & 1 ? 0xedb88320u : 0);
            table[0][i] = v;
        }
    if (!table[1][1])
        for (uint32_t i = 0; i < 256; i++)
            for (int k = 1; k < 4; k++)
                table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
    crc = ~crc;
    for (; n >= 4; n -= 4, b += 4) {
        uint32_t v;
        memcpy(&v, b, 4);
        v ^= crc;
        crc = table[3][v & 255] ^ table[2][v >> 8 & 255] ^ table[1][v >> 16 & 255] ^
              table[0][v >> 24];
    }
    while (n--)
        crc = crc >> 8 ^ table[0][(crc ^ *b++) & 255];
    return ~crc;
}

// ---- answers ----

static void begin_out(struct conn *c)
{
    struct http *h = &c->http;
    if (c->una >= c->end) { // else append behind what is not acknowledged yet (100 Continue)
        h->out_base = c->end;
        h->out_len = 0;
    }
    h->body = BODY_NONE;
    h->body_len = 0;
    h->phase = HTTP_RESPOND;
}

static void put_header(struct conn *c, int status, const char *type, uint64_t n)
{
    struct http *h = &c->http;
    h->out_len +=
        (uint32_t)fmt(h->out + h->out_len, HTTP_OUT - h->out_len,
                      "HTTP/1.1 %d %s\r\nContent-Length: %lu\r\nContent-Type: %s\r\n%s\r\n", status,
                      reason(status), n, type, h->close_after ? "Connection: close\r\n" : "");
}

static bool is_head(const struct conn *c)
{
    return str_eq(c->http.method, "HEAD");
}

void http_reply(struct conn *c, int status, const char *type, const char *f, ...)
{
    static char text[HTTP_OUT - 256];
    struct http *h = &c->http;
    va_list ap;
    va_start(ap, f);
    size_t n = vfmt(text, sizeof(text), f, ap);
    va_end(ap);
    begin_out(c);
    uint32_t was = h->out_len;
    put_header(c, status, type, n);
    n = is_head(c) ? 0 : MIN(n, HTTP_OUT - h->out_len);
    memcpy(h->out + h->out_len, text, n);
    h->out_len += (uint32_t)n;
    tcp_extend(c, h->out_len - was);
}

void http_reply_body(struct conn *c, enum http_body body, const void *memory, uint64_t n)
{
    struct http *h = &c->http;
    begin_out(c);
    uint32_t was = h->out_len;
    put_header(c, 200, "application/octet-stream", n);
    h->body = body;
    h->memory = memory;
    h->body_len = is_head(c) ? 0 : n;
    tcp_extend(c, h->out_len - was + h->body_len);
}

// The pattern: 64-bit little-endian words that count from 0, so that any shift or gap shows.
static void fill_pattern(uint64_t off, uint8_t *dst, uint32_t n)
{
    for (; n && off & 7; off++, n--)
        *dst++ = (uint8_t)(off / 8 >> 8 * (off & 7));
    uint64_t w = off / 8;
    for (; n >= 8; n -= 8, dst += 8, w++)
        memcpy(dst, &w, 8);
    memcpy(dst, &w, n);
}

void http_fill(struct conn *c, uint64_t off, uint8_t *dst, uint32_t n)
{
    struct http *h = &c->http;
    off -= h->out_base;
    if (off < h->out_len) {
        uint32_t k = (uint32_t)MIN(n, h->out_len - off);
        memcpy(dst, h->out + off, k);
        dst += k;
        off += k;
        n -= k;
    }
    if (!n)
        return;
    off -= h->out_len;
    if (h->body == BODY_MEMORY)
        memcpy(dst, h->memory + off, n);
    else
        fill_pattern(off, dst, n);
}

// ---- requests ----

bool http_is(const struct conn *c, const char *method, const char *path)
{
    const struct http *h = &c->http;
    size_t n = str_len(path);
    bool get = str_eq(method, "GET") && is_head(c);
    return (get || str_eq(h->method, method)) && str_starts(h->target, path) &&
           (h->target[n] == 0 || h->target[n] == '?' || (n > 1 && path[n - 1] == '/'));
}

const char *http_query(const struct conn *c, const char *key)
{
    const char *s = c->http.target;
    size_t n = str_len(key);
    while (*s && *s != '?')
        s++;
    for (; *s; s++)
        if ((*s == '?' || *s == '&') && str_starts(s + 1, key)) {
            const char *v = s + 1 + n;
            if (*v == '=')
                return v + 1;
            if (!*v || *v == '&')
                return v;
        }
    return NULL;
}

uint64_t http_query_u64(const struct conn *c, const char *key, uint64_t def)
{
    const char *s = http_query(c, key);
    return s && *s >= '0' && *s <= '9' ? str_u64(&s) : def;
}

static bool header_is(const char *line, const char *name)
{
    for (; *name; name++, line++) {
        char a = *line, b = *name;
        if ((a >= 'A' && a <= 'Z' ? a + 32 : a) != b)
            return false;
    }
    return *line == ':';
}

static const char *header_value(const char *line)
{
    while (*line != ':')
        line++;
    line++;
    while (*line == ' ')
        line++;
    return line;
}

static size_t copy_word(char *d, size_t room, const char *s)
{
    size_t n = 0;
    for (; s[n] && s[n] != ' ' && s[n] != '\r'; n++)
        if (n + 1 < room)
            d[n] = s[n];
    d[MIN(n, room - 1)] = 0;
    return n;
}

static void start_body(struct conn *c, bool expect)
{
    struct http *h = &c->http;
    h->phase = HTTP_BODY;
    h->taken = 0;
    h->crc = 0;
    h->failed = !disk_begin(c);
    if (expect) {
        begin_out(c);
        h->phase = HTTP_BODY;
        h->out_len += (uint32_t)fmt(h->out + h->out_len, HTTP_OUT - h->out_len,
                                    "HTTP/1.1 100 Continue\r\n\r\n");
        tcp_extend(c, 25);
    }
}

static void finish_request(struct conn *c)
{
    c->http.phase = HTTP_WAIT; // until somebody answers
    requests++;
    if (c->http.failed)
        http_reply(c, 503, "text/plain", "no room for this body now\n");
    else
        api_request(c);
}

static void parse(struct conn *c, uint32_t n)
{
    struct http *h = &c->http;
    h->in[n - 2] = 0; // over the last CR: the header is text
    const char *s = h->in;
    s += copy_word(h->method, sizeof(h->method), s);
    s += *s == ' ';
    s += copy_word(h->target, sizeof(h->target), s);
    h->close_after = str_starts(s, " HTTP/1.0");
    bool expect = false, chunked = false;
    h->todo = 0;
    h->failed = false;
    while (*s) {
        while (*s && *s++ != '\n')
            ;
        if (header_is(s, "content-length")) {
            const char *v = header_value(s);
            h->todo = str_u64(&v);
        } else if (header_is(s, "connection")) {
            h->close_after = (*header_value(s) | 32) == 'c';
        } else if (header_is(s, "expect")) {
            expect = true;
        } else if (header_is(s, "transfer-encoding")) {
            chunked = true;
        }
    }
    if (chunked) {
        h->close_after = true;
        http_reply(c, 411, "text/plain", "give a length\n");
    } else if (h->todo) {
        start_body(c, expect);
    } else {
        finish_request(c);
    }
}

static uint32_t take_body(struct conn *c, const uint8_t *p, uint32_t n)
{
    struct http *h = &c->http;
    n = (uint32_t)MIN(n, h->todo);
    if (!h->failed && disk_takes(c))
        n = disk_data(c, p, n);
    h->crc = crc32(h->crc, p, n);
    h->todo -= n;
    h->taken += n;
    if (!h->todo)
        finish_request(c);
    return n;
}

// Takes what in[] holds as far as the phase allows: header, then body, then perhaps the next
// header.
static void advance(struct conn *c)
{
    struct http *h = &c->http;
    while (h->in_len && (h->phase == HTTP_HEAD || h->phase == HTTP_BODY)) {
        uint32_t used = 0;
        if (h->phase == HTTP_BODY) {
            used = take_body(c, (const uint8_t *)h->in, h->in_len);
        } else {
            for (uint32_t i = 3; i < h->in_len && !used; i++)
                if (mem_eq(h->in + i - 3, "\r\n\r\n", 4))
                    used = i + 1;
            if (used) {
                parse(c, used);
            } else if (h->in_len == HTTP_IN) {
                h->close_after = true;
                http_reply(c, 400, "text/plain", "header too long\n");
                used = h->in_len;
            }
        }
        if (!used)
            break;
        h->in_len -= used;
        for (uint32_t i = 0; i < h->in_len; i++)
            h->in[i] = h->in[used + i];
    }
    tcp_work(c);
}

uint32_t http_window(const struct conn *c)
{
    const struct http *h = &c->http;
    if (h->phase != HTTP_BODY)
        return HTTP_IN - h->in_len;
    if (h->in_len) // the disk has yet to take what is here
        return 0;
    return !h->failed && disk_takes(c) ? disk_window(c) : BODY_WINDOW;
}

uint32_t http_data(struct conn *c, const uint8_t *p, uint32_t n)
{
    struct http *h = &c->http;
    uint32_t took = 0;
    if (h->phase == HTTP_BODY && !h->in_len)
        took = take_body(c, p, n);
    uint32_t k = MIN(n - took, HTTP_IN - h->in_len);
    if (h->phase ==
        HTTP_BODY) // the disk is full of it; the rest is not acknowledged and comes again
        return took;
    memcpy(h->in + h->in_len, p + took, k);
    h->in_len += k;
    advance(c);
    return took + k;
}

void http_open(struct conn *c)
{
    c->http.phase = HTTP_HEAD; // all else was cleared
}

void http_sent(struct conn *c)
{
    struct http *h = &c->http;
    if (h->phase != HTTP_RESPOND)
        return;
    disk_gone(c);
    if (h->close_after && !c->fin) {
        tcp_close(c);
        return;
    }
    h->phase = HTTP_HEAD;
    advance(c);
    if (h->phase == HTTP_HEAD && c->fin_rcvd)
        tcp_close(c);
}

void http_resume(struct conn *c)
{
    advance(c);
}

void http_gone(struct conn *c)
{
    disk_gone(c);
}
