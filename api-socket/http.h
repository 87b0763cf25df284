// SPDX-License-Identifier: Apache-2.0
// Strict HTTP/1.1 subset: an incremental request parser over the caller's buffer, and a response
// head.
//
// Source: RFC 9112, narrowed. CRLF alone ends a line; one space separates the parts of the request
// line; no folding, no transfer codings, no absolute or asterisk target, one Content-Length of
// digits. Whatever is accepted here, Debian's http-parser reads as the same request
// (tests/unit/test_http.c). Threads: pure functions over the caller's objects. Nothing is
// allocated. Errors:  http_parse answers HTTP_BAD and sets fault; the connection must then be
// closed, for
//          what follows in the stream has no known boundary.
#ifndef API_HTTP_H
#define API_HTTP_H

#include <stdbool.h>
#include <stddef.h>

#define HTTP_LINE_MAX    1024 // request line, and each header line, without its CRLF
#define HTTP_HEADERS_MAX 32
#define HTTP_HEAD_MAX    ((size_t)(HTTP_LINE_MAX + 2) * (HTTP_HEADERS_MAX + 1) + 2)
#define HTTP_BODY_MAX    51200 // default; Firecracker's

enum http_verb { VERB_GET, VERB_PUT, VERB_PATCH, VERB_DELETE, VERB_POST };
enum http_state { HTTP_MORE, HTTP_CONTINUE, HTTP_DONE, HTTP_BAD };

// One request. Offsets count from the start of the buffer given to http_parse. Zero it, then set
// body_max, before the first byte of each request. Fields above the gap are results, valid once
// DONE.
struct http_request {
    enum http_verb verb;
    bool close; // the peer asked for, or its version implies, an end after the answer
    size_t target, target_len;
    size_t head_len, body_len; // the request is head_len + body_len bytes long
    const char *fault;         // why it is BAD: a static sentence

    size_t body_max;
    size_t line, scan; // start of the line being read; bytes already searched for its end
    unsigned headers;
    bool has_request_line, has_length, wants_continue, asked_close;
};

// Continues with buf[0, len), which must begin with the bytes of earlier calls for this request.
// HTTP_CONTINUE: the head is complete, its body is not, and the peer waits for a 100 (told once).
enum http_state http_parse(struct http_request *r, const char *buf, size_t len);

const char *http_verb_name(enum http_verb v);

// Writes a whole response into out and returns its length; 0 if it does not fit. A body is JSON;
// body_len 0 omits the body and its two headers (as Firecracker's 204). close announces the end.
size_t http_response(char *out, size_t cap, int status, const char *body, size_t body_len,
                     bool close);

#endif
