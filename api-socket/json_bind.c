// SPDX-License-Identifier: Apache-2.0
// JSON objects to structs and back by one table, and the bounded writer.
#include "api-socket/json.h"

#include <strings.h>

static uint64_t get_uint(const void *p, size_t size)
{
    uint64_t v = 0;
    memcpy(&v, p, size);
    return v;
}

static int misfit(const struct json_doc *d, int tok, const struct json_field *f, struct err *e,
                  const char *expected)
{
    return json_fail(d, d->tok[tok].start, e, "invalid value for `%s`: expected %s", f->name,
                     expected);
}

static int bind_uint(const struct json_doc *d, int tok, const struct json_field *f, void *out,
                     struct err *e)
{
    const char *p = d->text + d->tok[tok].start, *end = d->text + d->tok[tok].end;
    char range[80];
    uint64_t v = 0;
    bool ok = d->tok[tok].type == JSMN_PRIMITIVE;
    for (; ok && p < end; p++) // a sign, fraction or exponent ends it, as serde does
        ok = *p >= '0' && *p <= '9' && !__builtin_mul_overflow(v, 10, &v) &&
             !__builtin_add_overflow(v, (uint64_t)(*p - '0'), &v);
    if (ok && v >= f->min && v <= f->max) {
        memcpy(out, &v, f->size); // little-endian host
        return 0;
    }
    snprintf(range, sizeof(range), "an integer from %llu to %llu", (unsigned long long)f->min,
             (unsigned long long)f->max);
    return misfit(d, tok, f, e, range);
}

static int bind_str(const struct json_doc *d, int tok, const struct json_field *f, void *out,
                    struct err *e)
{
    char range[80];
    if (d->tok[tok].type != JSMN_STRING)
        return misfit(d, tok, f, e, "a string");
    int n = json_decode(d, tok, out, f->size);
    if (n == -EINVAL)
        return misfit(d, tok, f, e, "a string without U+0000");
    if (n >= 0 && (size_t)n >= f->min)
        return 0;
    snprintf(range, sizeof(range), "a string of %llu to %u bytes", (unsigned long long)f->min,
             f->size - 1U);
    return misfit(d, tok, f, e, range);
}

static int bind_enum(const struct json_doc *d, int tok, const struct json_field *f, void *out,
                     struct err *e)
{
    char word[32], list[160] = "one of ";
    bool ok = d->tok[tok].type == JSMN_STRING && json_decode(d, tok, word, sizeof(word)) >= 0;
    for (uint32_t i = 0; f->names[i]; i++) {
        if (ok && (f->flags & JSON_ANY_CASE ? strcasecmp : strcmp)(word, f->names[i]) == 0) {
            memcpy(out, &i, f->size);
            return 0;
        }
        size_t n = strlen(list);
        snprintf(list + n, sizeof(list) - n, "%s`%s`", i ? ", " : "", f->names[i]);
    }
    return misfit(d, tok, f, e, list);
}

static int bind_list(const struct json_doc *d, int tok, const struct json_field *f, char *out,
                     unsigned *count, struct err *e)
{
    int r = d->tok[tok].type == JSMN_ARRAY ? 0 : misfit(d, tok, f, e, "an array");
    *count = 0;
    for (int i = r ? 0 : json_next(d, tok, 0); i && r == 0; i = json_next(d, tok, i)) {
        if ((*count + 1) * f->sub->size > f->size)
            return misfit(d, i, f, e, "fewer entries");
        if (d->tok[i].type != JSMN_OBJECT)
            return misfit(d, i, f, e, "an array of objects");
        r = json_bind(d, i, f->sub, out + (*count)++ * f->sub->size, e);
    }
    return r;
}

static int bind_value(const struct json_doc *d, int tok, const struct json_field *f, char *base,
                      struct err *e)
{
    void *out = base + f->off;
    switch (f->kind) {
    case J_BOOL:
        *(bool *)out = json_literal(d, tok) == 't';
        return *(bool *)out || json_literal(d, tok) == 'f' ? 0 : misfit(d, tok, f, e, "a boolean");
    case J_UINT:
        return bind_uint(d, tok, f, out, e);
    case J_STR:
        return bind_str(d, tok, f, out, e);
    case J_ENUM:
        return bind_enum(d, tok, f, out, e);
    case J_OBJ:
        return d->tok[tok].type == JSMN_OBJECT ? json_bind(d, tok, f->sub, out, e)
                                               : misfit(d, tok, f, e, "an object");
    case J_LIST:
        return bind_list(d, tok, f, out, (unsigned *)(void *)(base + f->has), e);
    }
    return -EINVAL;
}

int json_bind(const struct json_doc *d, int obj, const struct json_type *t, void *out,
              struct err *e)
{
    uint64_t given = 0; // one bit per row
    if (d->tok[obj].type != JSMN_OBJECT)
        return json_fail(d, d->tok[obj].start, e, "expected an object");
    for (int k = json_next(d, obj, 0); k; k = json_next(d, obj, k)) {
        size_t i = 0;
        while (i < t->nfields && !json_is(d, k, t->fields[i].name))
            i++;
        if (i == t->nfields)
            return json_fail(d, d->tok[k].start, e, "unknown field `%.*s`",
                             MIN(d->tok[k].end - d->tok[k].start, 40), d->text + d->tok[k].start);
        const struct json_field *f = &t->fields[i];
        if (f->flags & JSON_NULLABLE && json_literal(d, k + 1) == 'n')
            continue;
        int r = bind_value(d, k + 1, f, out, e);
        if (r)
            return r;
        given |= 1ULL << i;
        if (f->kind != J_LIST && f->has != JSON_NO_HAS)
            *((bool *)out + f->has) = true;
    }
    for (size_t i = 0; i < t->nfields; i++)
        if (t->fields[i].flags & JSON_REQUIRED && !(given >> i & 1))
            return json_fail(d, d->tok[obj].end - 1, e, "missing field `%s`", t->fields[i].name);
    return 0;
}

static void put(struct json_out *o, const char *s, size_t n)
{
    if (o->overflow || o->cap - o->len < n) {
        o->overflow = true;
        return;
    }
    memcpy(o->buf + o->len, s, n);
    o->len += n;
}

static void quoted(struct json_out *o, const char *s)
{
    put(o, "\"", 1);
    for (const char *end = s + strlen(s); s < end;) {
        const char *from = s;
        char esc[8];
        // Messages may quote a cut-off or hostile byte string; what is no UTF-8 becomes '?'.
        bool ok = json_utf8(&s, end) >= 0;
        if (!ok) {
            s = from + 1;
            put(o, "?", 1);
        } else if (*from == '"' || *from == '\\' || (uint8_t)*from < 0x20 || *from == 0x7f) {
            int n = snprintf(esc, sizeof(esc), "\\u%04x", (unsigned)*from);
            put(o, esc, (size_t)n);
        } else {
            put(o, from, (size_t)(s - from));
        }
    }
    put(o, "\"", 1);
}

void json_key(struct json_out *o, const char *key)
{
    if (o->comma)
        put(o, ",", 1);
    o->comma = true;
    if (key) {
        quoted(o, key);
        put(o, ":", 1);
    }
}

void json_open(struct json_out *o, const char *key, char bracket)
{
    json_key(o, key);
    put(o, &bracket, 1);
    o->comma = false;
}

void json_close(struct json_out *o, char bracket)
{
    put(o, &bracket, 1);
    o->comma = true;
}

void json_str(struct json_out *o, const char *key, const char *v)
{
    json_key(o, key);
    if (v)
        quoted(o, v);
    else
        put(o, "null", 4);
}

void json_uint(struct json_out *o, const char *key, uint64_t v)
{
    char b[24];
    int n = snprintf(b, sizeof(b), "%llu", (unsigned long long)v);
    json_key(o, key);
    put(o, b, (size_t)n);
}

void json_bool(struct json_out *o, const char *key, bool v)
{
    json_key(o, key);
    put(o, v ? "true" : "false", v ? 4 : 5);
}

static bool absent(const struct json_field *f, const char *base)
{
    if (f->has != JSON_NO_HAS)
        return !*(const bool *)(base + f->has);
    if (f->kind == J_BOOL)
        return f->flags & JSON_OMIT && !*(const bool *)(base + f->off);
    return f->flags & (JSON_NULLABLE | JSON_OMIT) &&
           ((f->kind == J_STR && base[f->off] == 0) ||
            (f->kind == J_UINT && get_uint(base + f->off, f->size) == 0));
}

void json_struct(struct json_out *o, const char *key, const struct json_type *t, const void *in)
{
    if (!t) {
        json_str(o, key, NULL);
        return;
    }
    json_open(o, key, '{');
    for (size_t i = 0; i < t->nfields; i++) {
        const struct json_field *f = &t->fields[i];
        const char *base = in, *p = base + f->off;
        if (f->kind == J_LIST || f->flags & JSON_BIND_ONLY ||
            (f->flags & JSON_OMIT && absent(f, base)))
            continue;
        if (absent(f, base))
            json_str(o, f->name, NULL);
        else if (f->kind == J_BOOL)
            json_bool(o, f->name, *(const bool *)p);
        else if (f->kind == J_UINT)
            json_uint(o, f->name, get_uint(p, f->size));
        else if (f->kind == J_STR)
            json_str(o, f->name, p);
        else if (f->kind == J_ENUM)
            json_str(o, f->name, f->names[get_uint(p, f->size)]);
        else
            json_struct(o, f->name, f->sub, p);
    }
    json_close(o, '}');
}
