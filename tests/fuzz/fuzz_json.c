// SPDX-License-Identifier: Apache-2.0
// Fuzz: the JSON reader stays inside its bytes, and what it accepted can be walked and decoded.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api-socket/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void walk(const struct json_doc *d, int tok, int depth)
{
    char text[64];
    if (depth > JSON_DEPTH_MAX || tok >= d->count)
        abort();
    if (d->tok[tok].type == JSMN_STRING)
        json_decode(d, tok, text, sizeof(text));
    if (d->tok[tok].type != JSMN_OBJECT && d->tok[tok].type != JSMN_ARRAY)
        return;
    for (int i = json_next(d, tok, 0); i; i = json_next(d, tok, i))
        walk(d, d->tok[tok].type == JSMN_OBJECT ? i + 1 : i, depth + 1);
}

static void bind(const struct json_doc *d)
{
    struct thing {
        uint64_t size;
        char name[16];
        bool flag;
    } t = {0};
    static const struct json_field f[] = {
        {"size", J_UINT, 0, offsetof(struct thing, size), 8, JSON_NO_HAS, 0, UINT64_MAX, NULL,
         NULL},
        {"name", J_STR, JSON_NULLABLE, offsetof(struct thing, name), 16, JSON_NO_HAS, 0, 0, NULL,
         NULL},
        {"flag", J_BOOL, 0, offsetof(struct thing, flag), 1, JSON_NO_HAS, 0, 0, NULL, NULL},
    };
    static const struct json_type type = {sizeof(t), f, ARRAY_SIZE(f)};
    struct err e;
    char out[512];
    struct json_out w = {.buf = out, .cap = sizeof(out)};
    if (json_bind(d, 0, &type, &t, &e) != 0)
        return;
    json_struct(&w, NULL, &type, &t); // whatever was bound reads back
    static struct json_doc again;
    if (w.overflow || json_parse(&again, out, w.len, JSON_BODY_TOKENS, &e) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct json_doc d;
    struct err e;
    char *p = malloc(size); // exact, so that a read past the end is seen
    if (size)
        memcpy(p, data, size);
    if (json_parse(&d, p, size, JSON_BODY_TOKENS, &e) == 0) {
        walk(&d, 0, 0);
        bind(&d);
    }
    free(p);
    return 0;
}
