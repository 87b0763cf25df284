// SPDX-License-Identifier: Apache-2.0
// Strict HTTP/1.1 subset: request parser and response writer.
#include "api-socket/http.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char *const verb_names[] = {
    [VERB_GET] = "GET",       [VERB_PUT] = "PUT",   [VERB_PATCH] = "PATCH",
    [VERB_DELETE] = "DELETE", [VERB_POST] = "POST",
};
#define VERBS (sizeof(verb_names) / sizeof(verb_names[0]))

const char *http_verb_name(enum http_verb v)
{
    return verb_names[v];
}

static bool bad(struct http_request *r, const char *why)
{
    r->fault = why;
    return false;
}

static bool is_char(char c, const char *others) // letters, digits and these
{
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') ||
           (c && strchr(others, c)); // strchr would find the terminator, too
}
#define TOKEN  "!#$%&'*+-.^_`|~"      // RFC 9110 section 5.6.2
#define TARGET "-._~%!$&'()*+,;=:@/?" // RFC 3986 pchar, '/', '?': a fragment never reaches a server

static bool same(const char *s, size_t n, const char *word)
{
    return n == strlen(word) && strncasecmp(s, word, n) == 0;
}

static bool request_line(struct http_request *r, const char *s, size_t n)
{
    const char *sp = memchr(s, ' ', n);
    size_t m = sp ? (size_t)(sp - s) : 0, i;
    for (i = 0; i < VERBS; i++)
        if (m == strlen(verb_names[i]) && memcmp(s, verb_names[i], m) == 0)
            break;
    if (i == VERBS)
        return bad(r, "Unsupported HTTP method.");
    r->verb = (enum http_verb)i;

    size_t t = m + 1;
    while (t < n && is_char(s[t], TARGET))
        t++;
    r->target = r->line + m + 1;
    r->target_len = t - m - 1;
    if (r->target_len == 0 || s[m + 1] != '/' || t == n || s[t] != ' ')
        return bad(r, "Invalid URI in the request line.");

    const char *v = s + t + 1;
    n -= t + 1;
    if (n != 8 || memcmp(v, "HTTP/1.", 7) != 0 || (v[7] != '0' && v[7] != '1'))
        return bad(r, "Unsupported HTTP version: only HTTP/1.0 and HTTP/1.1.");
    r->close = v[7] == '0';
    r->has_request_line = true;
    return true;
}

static bool content_length(struct http_request *r, const char *v, size_t n)
{
    // A second one is refused even when equal: whoever stands before us may have taken the other.
    if (r->has_length)
        return bad(r, "Content-Length given twice.");
    r->has_length = true;
    if (n == 0)
        return bad(r, "Invalid Content-Length.");
    for (size_t i = 0; i < n; i++) {
        if (v[i] < '0' || v[i] > '9')
            return bad(r, "Invalid Content-Length.");
        r->body_len = r->body_len * 10 + (size_t)(v[i] - '0');
        if (r->body_len > r->body_max) // also keeps the product from ever overflowing
            return bad(r, "The body exceeds the limit of this socket.");
    }
    return true;
}

// Is word in a comma list of options (RFC 9110 section 7.6.1)?
static bool has_option(const char *v, size_t n, const char *word)
{
    for (size_t i = 0; i < n; i++) {
        size_t from = i;
        while (i < n && is_char(v[i], TOKEN))
            i++;
        if (same(v + from, i - from, word))
            return true;
    }
    return false;
}

static bool header_line(struct http_request *r, const char *s, size_t n)
{
    if (++r->headers > HTTP_HEADERS_MAX)
        return bad(r, "Too many headers.");
    size_t k = 0;
    while (k < n && is_char(s[k], TOKEN))
        k++;
    // Catches folding (a line that starts with a space) and a space before the colon, too.
    if (k == 0 || k == n || s[k] != ':')
        return bad(r, "Invalid header.");
    const char *v = s + k + 1;
    size_t vn = n - k - 1;
    for (size_t i = 0; i < vn; i++)
        if ((v[i] < ' ' || v[i] > '~') && v[i] != '\t')
            return bad(r, "Invalid character in a header.");
    while (vn && (*v == ' ' || *v == '\t'))
        v++, vn--;
    if (same(s, k, "Content-Length")) // before the trim: nothing may stand behind the digits
        return content_length(r, v, vn);
    while (vn && (v[vn - 1] == ' ' || v[vn - 1] == '\t'))
        vn--;

    // By prefix: some parsers (http-parser) take any name that begins so for the header itself.
    if (k >= 17 && strncasecmp(s, "Transfer-Encoding", 17) == 0)
        return bad(r, "Transfer-Encoding is not supported.");
    if (same(s, k, "Connection")) { // close wins over keep-alive
        r->asked_close |= has_option(v, vn, "close");
        r->close = r->asked_close || (r->close && !has_option(v, vn, "keep-alive"));
    }
    if (same(s, k, "Expect")) {
        if (!same(v, vn, "100-continue"))
            return bad(r, "Unsupported Expect header.");
        r->wants_continue = true;
    }
    return true;
}

// Takes the lines that are whole; true when the empty line that ends the head has been seen.
static bool head(struct http_request *r, const char *buf, size_t len)
{
    while (!r->fault) {
        const char *lf = memchr(buf + r->scan, '\n', len - r->scan);
        size_t end = lf ? (size_t)(lf - buf) : len;
        // An unfinished line may still hold the CR of its CRLF, hence the + 1.
        if (end - r->line > HTTP_LINE_MAX + 1) {
            bad(r, r->has_request_line ? "Header longer than 1024 bytes."
                                       : "Request line longer than 1024 bytes.");
            break;
        }
        r->scan = end;
        if (!lf)
            break;
        if (end == r->line || buf[end - 1] != '\r') {
            bad(r, "A line must end with CR LF.");
            break;
        }
        const char *s = buf + r->line;
        size_t n = end - 1 - r->line;
        if (r->has_request_line && n == 0) {
            r->head_len = end + 1;
            return true;
        }
        if (!(r->has_request_line ? header_line(r, s, n) : request_line(r, s, n)))
            break;
        r->line = r->scan = end + 1;
    }
    return false;
}

enum http_state http_parse(struct http_request *r, const char *buf, size_t len)
{
    if (r->fault)
        return HTTP_BAD;
    if (r->head_len == 0 && !head(r, buf, len))
        return r->fault ? HTTP_BAD : HTTP_MORE;
    if (len - r->head_len >= r->body_len)
        return HTTP_DONE;
    if (r->wants_continue) {
        r->wants_continue = false;
        return HTTP_CONTINUE;
    }
    return HTTP_MORE;
}

size_t http_response(char *out, size_t cap, int status, const char *body, size_t body_len,
                     bool close)
{
    const char *reason = status == 100   ? "Continue"
                         : status == 200 ? "OK"
                         : status == 204 ? "No Content"
                         : status == 400 ? "Bad Request"
                                         : "Service Unavailable"; // 503, the only other one
    char about[80] = "";
    if (body_len)
        snprintf(about, sizeof(about), "Content-Type: application/json\r\nContent-Length: %zu\r\n",
                 body_len);
    int n = snprintf(out, cap, "HTTP/1.1 %d %s\r\nServer: Mayfly API\r\nConnection: %s\r\n%s\r\n",
                     status, reason, close ? "close" : "keep-alive", about);
    if (n < 0 || (size_t)n >= cap || cap - (size_t)n < body_len)
        return 0;
    if (body_len)
        memcpy(out + n, body, body_len);
    return (size_t)n + body_len;
}
