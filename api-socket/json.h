// SPDX-License-Identifier: Apache-2.0
// JSON: strict reader, table-driven binding of objects to structs both ways, bounded writer.
//
// Call order: json_parse, then json_bind (or the token walk) on the same document. jsmn alone
// accepts much that is no JSON, so a depth scan runs before it and a full RFC 8259 grammar check
// after it. Stricter than the RFC on purpose: the top value is an object, depth and token count are
// limited, keys are unique and hold no escapes, strings hold no U+0000. Oracle: Python's json
// (tests/unit). Threads: pure functions over the caller's objects; nothing is allocated. Errors:
// -EINVAL, err holds a sentence that names the field and the place.
#ifndef API_JSON_H
#define API_JSON_H

#define JSMN_HEADER
#include <jsmn.h>

#include "vmm/base.h"

#define JSON_DEPTH_MAX   8
#define JSON_BODY_TOKENS 256  // limit for a request body
#define JSON_TOKENS_MAX  1024 // limit for a configuration file

// Token 0 is the outermost object. After json_parse, tok[i].size is the index of the token after
// i's whole subtree, so that siblings are found without counting.
struct json_doc {
    const char *text; // the caller's; must outlive the document
    size_t len;
    int count;
    jsmntok_t tok[JSON_TOKENS_MAX];
};

// Reads text; more than max_tokens tokens are refused.
int json_parse(struct json_doc *d, const char *text, size_t len, unsigned max_tokens,
               struct err *e);

// Walks members of the object (elements of the array) at container: start with 0, then the last
// answer; 0 ends. An object's answer is a key token; its value is the next token.
int json_next(const struct json_doc *d, int container, int last);
bool json_is(const struct json_doc *d, int key, const char *name);
// The first byte of a number or literal ('t', 'f', 'n' say which), 0 for any other token.
char json_literal(const struct json_doc *d, int tok);

// Decodes the string at tok into out, terminated: its length, -E2BIG, or -EINVAL for a U+0000.
int json_decode(const struct json_doc *d, int tok, char *out, size_t cap);

// For readers built on this one: the message with the place (byte offset pos) added, and -EINVAL.
__attribute__((format(printf, 4, 5))) int json_fail(const struct json_doc *d, int pos,
                                                    struct err *e, const char *fmt, ...);
// Takes one code point of UTF-8 from [*p, end), which is not empty: -1 if malformed.
int32_t json_utf8(const char **p, const char *end);

// A table row says how one member of a JSON object and one member of a struct correspond.
enum json_kind {
    J_BOOL, // bool
    J_UINT, // unsigned integer of size bytes, min to max
    J_STR,  // char[size], terminated
    J_ENUM, // enum of size bytes: index into names
    J_OBJ,  // struct described by sub
    J_LIST, // array of structs described by sub; has: offset of an unsigned count. Never written
};
enum {
    JSON_REQUIRED = 1,  // refused when missing
    JSON_NULLABLE = 2,  // null counts as not given; absent (no has: "" or 0) is written as null
    JSON_OMIT = 4,      // absent (no has: "", 0 or false) is not written at all
    JSON_BIND_ONLY = 8, // never written
    JSON_ANY_CASE = 16, // J_ENUM: letter case does not matter
};
#define JSON_NO_HAS UINT16_MAX

struct json_type;
struct json_field {
    const char *name;
    enum json_kind kind;
    uint8_t flags;
    uint16_t off, size; // of the struct member
    uint16_t has;       // offset of a bool set when given; when it is unset the writer says null
    uint64_t min, max;  // J_UINT: value; J_STR: bytes (max 0: what fits)
    const char *const *names; // J_ENUM: NULL-terminated
    const struct json_type *sub;
};
struct json_type {
    size_t size; // of the struct
    const struct json_field *fields;
    size_t nfields;
};

// Binds the object at token obj to out, which the caller has filled with defaults. On error out may
// be half changed: bind to a copy. Unknown members are refused.
int json_bind(const struct json_doc *d, int obj, const struct json_type *t, void *out,
              struct err *e);

// Writer over a fixed buffer. What does not fit sets overflow and writes no more; check it once.
struct json_out {
    char *buf;
    size_t cap, len;
    bool overflow, comma;
};
void json_open(struct json_out *o, const char *key, char bracket); // key NULL inside an array
void json_close(struct json_out *o, char bracket);
void json_key(struct json_out *o, const char *key);
void json_str(struct json_out *o, const char *key, const char *value); // NULL value: null
void json_uint(struct json_out *o, const char *key, uint64_t value);
void json_bool(struct json_out *o, const char *key, bool value);
// Writes the struct at in as an object by the same table that binds it; t NULL: null.
void json_struct(struct json_out *o, const char *key, const struct json_type *t, const void *in);

#endif
