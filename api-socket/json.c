// SPDX-License-Identifier: Apache-2.0
// JSON reader: depth scan, jsmn, grammar check over the tokens, binding of objects to structs.
#include "api-socket/json.h"

// Adds the place to the message, as serde does, for whoever wrote the file by hand.
int json_fail(const struct json_doc *d, int pos, struct err *e, const char *fmt, ...)
{
    size_t line = 1, column = 0, n;
    for (int i = 0; i < pos; i++) {
        bool nl = d->text[i] == '\n';
        line += nl;
        column = nl ? 0 : column + 1;
    }
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
    va_end(ap);
    n = strlen(e->msg);
    snprintf(e->msg + n, sizeof(e->msg) - n, " at line %zu column %zu", line, column + 1);
    return -EINVAL;
}

// jsmn needs time quadratic in depth, so depth is bounded before it runs.
static int depth_scan(const struct json_doc *d, struct err *e)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < d->len; i++) {
        char c = d->text[i];
        if (c == '"')
            in_string = !in_string;
        else if (in_string)
            i += c == '\\';
        else if ((c == '{' || c == '[') && ++depth > JSON_DEPTH_MAX)
            return json_fail(d, (int)i, e, "nesting deeper than %d", JSON_DEPTH_MAX);
        else
            depth -= c == '}' || c == ']';
    }
    return 0;
}

static int hex4(const char *p, const char *end)
{
    char b[5] = {0};
    memcpy(b, p, (size_t)MIN(4, end - p));
    return strspn(b, "0123456789abcdefABCDEF") == 4 ? (int)strtol(b, NULL, 16) : -1;
}

// One \ sequence at *p (behind the backslash): its code point, or -1. Surrogates only in pairs.
static int32_t escape(const char **p, const char *end)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = *p < end ? *(*p)++ : 0;
    if (c != 'u') {
        const char *at = c ? strchr(from, c) : NULL;
        return at ? to[at - from] : -1;
    }
    int hi = hex4(*p, end);
    if (hi < 0 || (hi >= 0xdc00 && hi <= 0xdfff))
        return -1;
    *p += 4;
    if (hi < 0xd800 || hi > 0xdbff)
        return hi;
    if (end - *p < 6 || (*p)[0] != '\\' || (*p)[1] != 'u')
        return -1;
    int lo = hex4(*p + 2, end);
    if (lo < 0xdc00 || lo > 0xdfff)
        return -1;
    *p += 6;
    return 0x10000 + ((hi - 0xd800) << 10) + (lo - 0xdc00);
}

// The next code point of a UTF-8 string, or -1: no overlong form, surrogate or value past U+10FFFF
// (Unicode table 3-7).
int32_t json_utf8(const char **p, const char *end)
{
    uint8_t c = (uint8_t) * (*p)++;
    if (c < 0x80)
        return c;
    int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
    if (c < 0xc2 || c > 0xf4 || end - *p < more)
        return -1;
    int32_t v = c & (0x3f >> more);
    for (int i = 0; i < more; i++) {
        uint8_t t = (uint8_t) * (*p)++;
        if ((t & 0xc0) != 0x80)
            return -1;
        v = v << 6 | (t & 0x3f);
    }
    static const int32_t least[] = {0, 0x80, 0x800, 0x10000};
    return v < least[more] || v > 0x10ffff || (v >= 0xd800 && v <= 0xdfff) ? -1 : v;
}

static int32_t next_char(const char **p, const char *end)
{
    if (**p == '\\') {
        ++*p;
        return escape(p, end);
    }
    return (uint8_t) * *p < 0x20 ? -1 : json_utf8(p, end);
}

static bool digits(const char **p, const char *end)
{
    const char *from = *p;
    while (*p < end && **p >= '0' && **p <= '9')
        ++*p;
    return *p > from;
}

// RFC 8259 section 6.
static bool number_ok(const char *p, const char *end)
{
    p += p < end && *p == '-';
    const char *from = p;
    if (!digits(&p, end) || (*from == '0' && p - from > 1))
        return false;
    if (p < end && *p == '.' && (p++, !digits(&p, end)))
        return false;
    if (p < end && (*p | 32) == 'e') {
        p++;
        p += p < end && (*p == '+' || *p == '-');
        if (!digits(&p, end))
            return false;
    }
    return p == end;
}

// Follows text and tokens side by side: at every place the grammar allows one thing, and the next
// token must begin there.
struct check {
    struct json_doc *d;
    int pos, tok;
    struct err *e;
};

static char peek(struct check *c)
{
    while ((size_t)c->pos < c->d->len && strchr(" \t\r\n", c->d->text[c->pos]) &&
           c->d->text[c->pos])
        c->pos++;
    return (size_t)c->pos < c->d->len ? c->d->text[c->pos] : 0;
}

static int string(struct check *c, bool key)
{
    const jsmntok_t *t = &c->d->tok[c->tok];
    if (peek(c) != '"' || c->tok >= c->d->count || t->type != JSMN_STRING || t->start != c->pos + 1)
        return json_fail(c->d, c->pos, c->e, key ? "key must be a string" : "expected value");
    for (const char *p = c->d->text + t->start, *end = c->d->text + t->end; p < end;)
        if (next_char(&p, end) < 0)
            return json_fail(c->d, c->pos, c->e, "invalid character or escape in a string");
    if (key && memchr(c->d->text + t->start, '\\', (size_t)(t->end - t->start)))
        return json_fail(c->d, c->pos, c->e, "a key must not hold escapes");
    c->pos = t->end + 1;
    c->d->tok[c->tok].size = c->tok + 1;
    c->tok++;
    return 0;
}

static int duplicate(struct check *c, int object, int key)
{
    const jsmntok_t *k = &c->d->tok[key];
    int n = k->end - k->start;
    const char *name = c->d->text + k->start;
    // Earlier members are complete, so their subtree ends are known.
    for (int i = object + 1; i < key; i = c->d->tok[i + 1].size) {
        const jsmntok_t *o = &c->d->tok[i];
        if (o->end - o->start == n && memcmp(c->d->text + o->start, name, (size_t)n) == 0)
            return json_fail(c->d, k->start, c->e, "duplicate field `%.*s`", MIN(n, 40), name);
    }
    return 0;
}

static int value(struct check *c);

static int container(struct check *c, bool object)
{
    int self = c->tok++, r;
    char close = object ? '}' : ']', next;
    c->pos++;
    if (peek(c) == close)
        goto done;
    for (;;) {
        if (object) {
            int key = c->tok;
            if ((r = string(c, true)) || (r = duplicate(c, self, key)))
                return r;
            if (peek(c) != ':')
                return json_fail(c->d, c->pos, c->e, "expected `:`");
            c->pos++;
        }
        if ((r = value(c)))
            return r;
        next = peek(c);
        if (next == close)
            break;
        if (next != ',')
            return json_fail(c->d, c->pos, c->e, "expected `,` or `%c`", close);
        c->pos++;
    }
done:
    c->pos++;
    c->d->tok[self].size = c->tok;
    return 0;
}

static int value(struct check *c)
{
    char first = peek(c);
    if (first == '"')
        return string(c, false);
    jsmntok_t *t = &c->d->tok[c->tok];
    if (c->tok >= c->d->count || t->start != c->pos)
        return json_fail(c->d, c->pos, c->e, "expected value");
    if (t->type == JSMN_OBJECT || t->type == JSMN_ARRAY)
        return container(c, t->type == JSMN_OBJECT); // depth was bounded by depth_scan
    if (!json_is(c->d, c->tok, "true") && !json_is(c->d, c->tok, "false") &&
        !json_is(c->d, c->tok, "null") && !number_ok(c->d->text + t->start, c->d->text + t->end))
        return json_fail(c->d, c->pos, c->e, "expected value");
    c->pos = t->end;
    t->size = ++c->tok;
    return 0;
}

int json_parse(struct json_doc *d, const char *text, size_t len, unsigned max_tokens, struct err *e)
{
    *d = (struct json_doc){.text = text, .len = len};
    if (len > INT32_MAX)
        return err_set(e, EINVAL, "document too long");
    int r = depth_scan(d, e);
    if (r)
        return r;
    jsmn_parser p;
    jsmn_init(&p);
    d->count = jsmn_parse(&p, text, len, d->tok, MIN(max_tokens, JSON_TOKENS_MAX));
    if (d->count == JSMN_ERROR_NOMEM)
        return json_fail(d, (int)p.pos, e, "more than %u JSON tokens", max_tokens);
    if (d->count == JSMN_ERROR_PART)
        return json_fail(d, (int)p.pos, e, "EOF while parsing a value");
    if (d->count < 0)
        return json_fail(d, (int)p.pos, e, "expected value");
    struct check c = {.d = d, .e = e};
    if (peek(&c) != '{')
        return json_fail(d, c.pos, e, "expected an object");
    if ((r = value(&c)))
        return r;
    peek(&c);
    if (c.tok != d->count || (size_t)c.pos != len)
        return json_fail(d, c.pos, e, "trailing characters");
    return 0;
}

int json_next(const struct json_doc *d, int in, int last)
{
    int i = last == 0                        ? in + 1
            : d->tok[in].type == JSMN_OBJECT ? d->tok[last + 1].size
                                             : d->tok[last].size;
    return i < d->tok[in].size ? i : 0;
}

bool json_is(const struct json_doc *d, int tok, const char *word)
{
    size_t n = (size_t)(d->tok[tok].end - d->tok[tok].start);
    return n == strlen(word) && memcmp(d->text + d->tok[tok].start, word, n) == 0;
}

char json_literal(const struct json_doc *d, int tok)
{
    return d->tok[tok].type == JSMN_PRIMITIVE ? d->text[d->tok[tok].start] : 0;
}

int json_decode(const struct json_doc *d, int tok, char *out, size_t cap)
{
    const char *p = d->text + d->tok[tok].start, *end = d->text + d->tok[tok].end;
    size_t n = 0;
    while (p < end) {
        int32_t v = next_char(&p, end);
        char b[4];
        size_t k = v < 0x80 ? 1 : v < 0x800 ? 2 : v < 0x10000 ? 3 : 4;
        if (v <= 0) // U+0000 would end the C string early
            return -EINVAL;
        for (size_t i = k - 1; i > 0; i--, v >>= 6)
            b[i] = (char)(0x80 | (v & 0x3f));
        b[0] = (char)(k == 1 ? v : (0xf00 >> k & 0xff) | v);
        if (n + k >= cap)
            return -E2BIG;
        memcpy(out + n, b, k);
        n += k;
    }
    out[n] = 0;
    return (int)n;
}
