// SPDX-License-Identifier: Apache-2.0
// JSON objects to structs and back by one table, and the bounded writer.
#include "api-socket/json.h"

#include <strings.h>

static void put_uint(void *p, size_t size, uint64_t v)
{
    memcpy(p, &v, size); // little-endian host
}

static uint64_t get_uint(const void *p, size_t size)
{
    uint64_t v = 0;
    memcpy(&v, p, size);
    return v;
}

static bool is_literal(const struct json_doc *d, int tok, const char *word)
{
    return d->tok[tok].type == JSMN_PRIMITIVE && json_key_is(d, tok, word);
}

static int bind_uint(const struct json_doc *d, int tok, const struct json_field *f, void *out,
                     struct err *e)
{
    const char *p = d->text + d->tok[tok].start, *end = d->text + d->tok[tok].end;
    uint64_t v = 0;
    bool ok = d->tok[tok].type == JSMN_PRIMITIVE;
    for (; ok && p < end; p++) // a sign, fraction or exponent ends it, as serde does
        ok = *p >= '0' && *p <= '9' && !__builtin_mul_overflow(v, 10, &v) &&
             !__builtin_add_overflow(v, (uint64_t)(*p - '0'), &v);
    if (!ok || v < f->min || v > f->max)
        return json_fail(d, d->tok[tok].start, e,
                         "invalid value for `%s`: expected an integer from %llu to %llu", f->name,
                         (unsigned long long)f->min, (unsigned long long)f->max);
    put_uint(out, f->size, v);
    return 0;
}

static int bind_str(const struct json_doc *d, int tok, const struct json_field *f, void *out,
                    struct err *e)
{
    size_t max = f->max ? (size_t)f->max : f->size - 1u;
    int n = d->tok[tok].type == JSMN_STRING ? json_decode(d, tok, out, f->size) : -EPROTO;
    if (n == -EPROTO)
        return json_fail(d, d->tok[tok].start, e, "invalid value for `%s`: expected a string",
                         f->name);
    if (n == -EINVAL)
        return json_fail(d, d->tok[tok].start, e, "invalid value for `%s`: U+0000 in a string",
                         f->name);
    if (n < 0 || (size_t)n > max || (size_t)n < f->min)
        return json_fail(d, d->tok[tok].start, e,
                         "invalid value for `%s`: length must be %llu to %zu bytes", f->name,
                         (unsigned long long)f->min, max);
    return 0;
}

static int bind_enum(const struct json_doc *d, int tok, const struct json_field *f, void *out,
                     struct err *e)
{
    char word[32], list[160] = "";
    bool ok = d->tok[tok].type == JSMN_STRING && json_decode(d, tok, word, sizeof(word)) >= 0;
    size_t n = 0;
    for (unsigned i = 0; f->names[i]; i++) {
        if (ok && (f->flags & JSON_ANY_CASE ? strcasecmp : strcmp)(word, f->names[i]) == 0) {
            put_uint(out, f->size, i);
            return 0;
        }
        int w = snprintf(list + n, sizeof(list) - n, "%s`%s`", i ? ", " : "", f->names[i]);
        n = MIN(n + (size_t)w, sizeof(list) - 1);
    }
    return json_fail(d, d->tok[tok].start, e, "invalid value for `%s`: expected one of %s", f->name,
                     list);
}

static int bind_list(const struct json_doc *d, int tok, const struct json_field *f, void *out,
                     unsigned *count, struct err *e)
{
    if (d->tok[tok].type != JSMN_ARRAY)
        return json_fail(d, d->tok[tok].start, e, "invalid value for `%s`: expected an array",
                         f->name);
    *count = 0;
    for (int i = json_next(d, tok, 0); i; i = json_next(d, tok, i)) {
        if ((*count + 1) * f->sub->size > f->size)
            return json_fail(d, d->tok[i].start, e, "invalid value for `%s`: more than %zu entries",
                             f->name, f->size / f->sub->size);
        int r = json_bind(d, i, f->sub, (char *)out + *count * f->sub->size, e);
        if (r)
            return r;
        ++*count;
    }
    return 0;
}

static int bind_value(const struct json_doc *d, int tok, const struct json_field *f, void *base,
                      struct err *e)
{
    void *out = (char *)base + f->off;
    switch (f->kind) {
    case J_BOOL:
        if (!is_literal(d, tok, "true") && !is_literal(d, tok, "false"))
            return json_fail(d, d->tok[tok].start, e, "invalid value for `%s`: expected a boolean",
                             f->name);
        *(bool *)out = is_literal(d, tok, "true");
        return 0;
    case J_UINT:
        return bind_uint(d, tok, f, out, e);
    case J_STR:
        return bind_str(d, tok, f, out, e);
    case J_ENUM:
        return bind_enum(d, tok, f, out, e);
    case J_OBJ:
        return json_bind(d, tok, f->sub, out, e);
    case J_LIST:
        return bind_list(d, tok, f, out, (unsigned *)(void *)((char *)base + f->has), e);
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
        while (i < t->nfields && !json_key_is(d, k, t->fields[i].name))
            i++;
        if (i == t->nfields)
            return json_fail(d, d->tok[k].start, e, "unknown field `%.*s`",
                             MIN(d->tok[k].end - d->tok[k].start, 40), d->text + d->tok[k].start);
        const struct json_field *f = &t->fields[i];
        if (f->flags & JSON_NULLABLE && is_literal(d, k + 1, "null"))
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
