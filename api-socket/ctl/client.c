// SPDX-License-Identifier: Apache-2.0
// HTTP/1.1 over a Unix socket, with descriptors beside the request (SCM_RIGHTS).
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "api-socket/ctl/ctl.h"

int api_connect(const char *path, struct err *e)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(a.sun_path))
        return err_set(e, ENAMETOOLONG, "%.100s...: longer than a socket's path may be", path);
    memcpy(a.sun_path, path, strlen(path));
    _cleanup_(close_fdp) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)))
        return err_set(e, errno, "cannot connect to %s: %s", path, strerror(errno));
    return steal_fd(&fd);
}

int api_send(int sock, const char *method, const char *path, const char *body, const int *fds,
             unsigned nfds, struct err *e)
{
    char head[512];
    union {
        char buf[CMSG_SPACE(API_FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } ctl = {{0}};
    size_t len = body ? strlen(body) : 0;
    int n = body
                ? snprintf(head, sizeof(head),
                           "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           "Content-Length: %zu\r\n\r\n",
                           method, path, len)
                : snprintf(head, sizeof(head), "%s %s HTTP/1.1\r\nHost: localhost\r\n\r\n", method,
                           path);
    if (n < 0 || (size_t)n >= sizeof(head) || nfds > API_FDS_MAX)
        return err_set(e, EINVAL, "the path is too long, or there are too many descriptors");
    struct iovec v[2] = {{head, (size_t)n}, {.iov_len = len}};
    memcpy(&v[1].iov_base, &body, sizeof(body)); // iovec knows no const
    struct msghdr m = {.msg_iov = v, .msg_iovlen = len ? 2 : 1};
    if (nfds) {
        m.msg_control = ctl.buf;
        m.msg_controllen = (socklen_t)CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = (socklen_t)CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
    }
    // A Unix socket takes a message of this size whole or blocks.
    if (sendmsg(sock, &m, MSG_NOSIGNAL) != (ssize_t)((size_t)n + len))
        return err_set(e, EIO, "cannot send the request: %s", strerror(errno));
    return 0;
}

static const char *header(const char *head, const char *end, const char *name)
{
    size_t n = strlen(name);

    for (const char *p = head; p < end; p = strchr(p, '\n') + 1)
        if (!strncasecmp(p, name, n) && p[n] == ':')
            return p + n + 1 + strspn(p + n + 1, " ");
    return NULL;
}

// buf is terminated.
long http_complete(const char *buf, size_t len, bool eof, int *status, size_t *body)
{
    if (len >= 13 && (strncmp(buf, "HTTP/1.", 7) || sscanf(buf + 8, " %d", status) != 1))
        return -1;
    const char *end = len < 13 ? NULL : strstr(buf, "\r\n\r\n");
    if (!end)
        return eof ? -1 : 0;
    *body = (size_t)(end - buf) + 4;
    const char *l = header(buf, end + 2, "Content-Length");
    unsigned long long want = l ? strtoull(l, NULL, 10) : 0;
    if (!l && *status != 204)
        return eof ? (long)len : 0;
    if (want > 1U << 30)
        return -1;
    if (*body + want <= len)
        return (long)(*body + want);
    return eof ? -1 : 0;
}

int api_receive(int sock, struct api_reply *r, struct err *e)
{
    char buf[sizeof(r->body) + 1024];
    size_t len = 0, body = 0;
    long whole = 0;

    while (whole == 0 && len < sizeof(buf) - 1) {
        ssize_t n = recv(sock, buf + len, sizeof(buf) - 1 - len, 0);
        if (n < 0)
            return err_set(e, errno, "no answer: %s", strerror(errno));
        len += (size_t)n;
        buf[len] = 0;
        whole = http_complete(buf, len, n == 0, &r->status, &body);
        if (n == 0 && whole == 0)
            break;
    }
    if (whole <= 0)
        return err_set(e, EPROTO,
                       len ? "the answer is no HTTP, or too long"
                           : "the monitor closed the connection without an answer");
    size_t n = MIN((size_t)whole - body, sizeof(r->body) - 1);
    memcpy(r->body, buf + body, n);
    r->body[n] = 0;
    return 0;
}

int api_fault(const char *what, const struct api_reply *r, struct err *e)
{
    static const char lead[] = "{\"fault_message\":\"";
    const char *text = r->body;
    size_t n = strlen(text);

    if (!strncmp(text, lead, sizeof(lead) - 1)) {
        text += sizeof(lead) - 1;
        n = strlen(text);
        n -= n > 2 ? 2 : n; // its closing quote and brace
    }
    return err_set(e, EIO, "%s: %d %.*s", what, r->status, (int)MIN(n, (size_t)220), text);
}

int api_call(int sock, const char *method, const char *path, const char *body, struct err *e)
{
    struct api_reply r;

    int rc = api_send(sock, method, path, body, NULL, 0, e);
    if (rc == 0)
        rc = api_receive(sock, &r, e);
    if (rc == 0 && r.status >= 400)
        rc = api_fault(path, &r, e);
    return rc;
}
