// SPDX-License-Identifier: Apache-2.0
// The API socket: connections, deadlines, passed descriptors; requests are answered in order.
//
// #syscalls:boot socket bind listen connect unlink umask dup3
// #syscalls:control poll accept4(@API) recvmsg(MSG_DONTWAIT|MSG_CMSG_CLOEXEC)
// #syscalls:control sendmsg(MSG_DONTWAIT|MSG_NOSIGNAL) close getsockopt(2:SO_PEERCRED)
#include "api-socket/api.h"
#include "api-socket/routes.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define ANSWER_MAX (64 * KIB)         // HTTP_HEAD_MAX or more: discard writes there
#define OUT_MAX    (ANSWER_MAX + 512) // an answer and its head

// Positions in the byte stream are counted from the connection's first byte (start + offset in in).
struct conn {
    int fd;              // -1: free
    char *in, *out;      // request bytes; the answer that the peer has not taken yet
    size_t head, len;    // in[head, len) is not yet consumed
    size_t sent, outlen; // out[sent, outlen) waits
    uint64_t base;       // stream position of in[0]
    uint64_t since;      // when the unfinished request or the untaken answer began, 0: idle
    bool eof, closing;   // the peer sends no more; close when out is empty
    struct http_request req;
    unsigned nfds;
    struct {
        int fd;
        uint64_t end; // stream position behind the bytes read together with it
    } fds[CFG_MAX_FDS];
};

struct api {
    int fd;
    size_t in_max;
    struct api_opts o;   // body_max filled in
    uint64_t deaf_until; // the listener is not polled before
    struct conn conn[API_CONNECTIONS];
    char answer[ANSWER_MAX];
};

static int listener(const struct api_opts *o, struct err *e)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct stat st;
    if (!o->path[0]) // the kernel would make a name up
        return err_set(e, EINVAL, "API socket: the path is empty");
    if (strlen(o->path) >= sizeof(sa.sun_path))
        return err_set(e, ENAMETOOLONG, "API socket path longer than %zu bytes: %s",
                       sizeof(sa.sun_path) - 1, o->path);
    memcpy(sa.sun_path, o->path, strlen(o->path));
    _cleanup_(close_fdp) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(e, errno, "API socket: %s", strerror(errno));
    if (lstat(o->path, &st) == 0) {
        if (!S_ISSOCK(st.st_mode))
            return err_set(e, EEXIST, "API socket: %s exists and is no socket", o->path);
        _cleanup_(close_fdp) int probe =
            socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (probe < 0 || connect(probe, (struct sockaddr *)&sa, sizeof(sa)) == 0 ||
            errno != ECONNREFUSED)
            return err_set(e, EADDRINUSE, "API socket: %s is in use", o->path);
        unlink(o->path); // stale: its owner is gone
    }
    // Not by chmod afterwards: the name could have been given to another file.
    mode_t old = umask(0777 & ~(o->mode ? o->mode : 0600));
    int rc = bind(fd, (struct sockaddr *)&sa, sizeof(sa));
    umask(old);
    if (rc)
        return err_set(e, errno, "API socket: bind %s: %s", o->path, strerror(errno));
    if (listen(fd, 64) != 0)
        return err_set(e, errno, "API socket: %s: %s", o->path, strerror(errno));
    if (o->pin_fd > 0) {
        int to = dup3(fd, o->pin_fd, O_CLOEXEC);
        return to < 0 ? err_set(e, errno, "API socket: dup3: %s", strerror(errno)) : to;
    }
    return steal_fd(&fd);
}

int api_open(struct api **out, const struct api_opts *o, struct err *e)
{
    size_t body_max = o->body_max ? o->body_max : HTTP_BODY_MAX;
    if (body_max > 64 * MIB)
        return err_set(e, EINVAL, "API payload limit above 64 MiB");
    // Large enough to be mapped, not carved: a buffer costs memory when it is first written.
    size_t each = HTTP_HEAD_MAX + body_max + OUT_MAX;
    struct api *a = calloc(1, sizeof(*a) + API_CONNECTIONS * each);
    if (!a)
        return err_set(e, ENOMEM, "API buffers: no memory");
    a->in_max = HTTP_HEAD_MAX + body_max;
    a->o = *o;
    a->o.body_max = body_max;
    for (unsigned i = 0; i < API_CONNECTIONS; i++) {
        a->conn[i].fd = -1;
        a->conn[i].in = (char *)(a + 1) + i * each;
        a->conn[i].out = a->conn[i].in + a->in_max;
    }
    a->fd = o->listen_fd > 0 ? o->listen_fd : listener(o, e);
    if (a->fd < 0) {
        int r = a->fd;
        free(a);
        return r;
    }
    *out = a;
    return 0;
}

// What a peer still sends when we close would turn its view of our last answer into ECONNRESET.
static void discard(int fd, char *buf)
{
    struct iovec iov = {.iov_base = buf, .iov_len = HTTP_HEAD_MAX};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1}; // without room, descriptors are closed
    for (int i = 0; i < 8 && recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) > 0; i++)
        ;
}

static void drop(struct conn *c)
{
    for (unsigned i = 0; i < c->nfds; i++)
        close(c->fds[i].fd);
    discard(c->fd, c->in);
    close(c->fd);
    *c = (struct conn){.fd = -1, .in = c->in, .out = c->out};
}

void api_close(struct api *a)
{
    for (unsigned i = 0; a && i < API_CONNECTIONS; i++)
        if (a->conn[i].fd >= 0)
            drop(&a->conn[i]);
    if (a)
        close(a->fd);
    free(a);
}

static ssize_t send_some(int fd, const char *p, size_t n)
{
    // Not send(): migration and fault service need sendmsg anyway, and one call less is allowed.
    struct iovec iov = {.iov_base = (char *)(uintptr_t)p, .iov_len = n};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    return sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
}

// Sends what it can; true when nothing waits any more. A peer that is gone frees the connection.
static bool flush(struct conn *c)
{
    if (c->outlen == 0)
        return true;
    while (c->sent < c->outlen) {
        ssize_t n = send_some(c->fd, c->out + c->sent, c->outlen - c->sent);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            c->since = c->since ? c->since : now_ns();
            return false;
        }
        if (n <= 0) {
            drop(c);
            return false;
        }
        c->sent += (size_t)n;
    }
    c->sent = c->outlen = 0;
    c->since = c->len > c->head ? now_ns() : 0; // the next request's time begins now
    return true;
}

static void reply(struct api *a, struct conn *c, int status, size_t body_len)
{
    c->outlen += http_response(c->out + c->outlen, OUT_MAX - c->outlen, status, a->answer, body_len,
                               c->closing);
}

static void refuse(struct api *a, struct conn *c, const char *why)
{
    struct json_out o = {.buf = a->answer, .cap = sizeof(a->answer)};
    api_fault(&o, why);
    c->closing = true;
    c->len = c->head; // the stream has no known boundary from here on
    reply(a, c, 400, o.len);
}

static void call(struct api *a, struct vm *vm, struct conn *c)
{
    const char *text = c->in + c->head;
    struct http_request r = c->req;
    struct json_out o = {.buf = a->answer, .cap = sizeof(a->answer)};
    struct passed_fds fds = {0};
    // Descriptors whose bytes end within this request are its own: a read ends behind the message
    // that carried them, so that message is this request, even if it was read with earlier ones.
    uint64_t end = c->base + c->head + r.head_len + r.body_len;
    unsigned k = 0;
    while (k < c->nfds && c->fds[k].end <= end)
        fds.fd[fds.n++] = c->fds[k++].fd;
    memmove(c->fds, c->fds + k, (c->nfds - k) * sizeof(c->fds[0]));
    c->nfds -= k;

    c->closing = r.close;
    int status = api_route(&(struct api_call){.vm = vm,
                                              .version = a->o.version,
                                              .verb = r.verb,
                                              .target = text + r.target,
                                              .target_len = r.target_len,
                                              .body = text + r.head_len,
                                              .body_len = r.body_len,
                                              .fds = &fds,
                                              .out = &o});
    fds_close(&fds);
    c->head += r.head_len + r.body_len;
    c->req = (struct http_request){.body_max = a->o.body_max};
    reply(a, c, status, o.len);
    flush(c);
    vm_release(vm);
}

// Answers what has come whole. Stops while the peer does not take its answers.
static void serve(struct api *a, struct vm *vm, struct conn *c)
{
    enum http_state st = HTTP_DONE;
    while (st != HTTP_MORE && flush(c) && !c->closing && c->len > c->head) {
        st = http_parse(&c->req, c->in + c->head, c->len - c->head);
        if (st == HTTP_CONTINUE)
            reply(a, c, 100, 0);
        else if (st == HTTP_BAD)
            refuse(a, c, c->req.fault);
        else if (st == HTTP_DONE)
            call(a, vm, c);
    }
    // A peer that sends no more still gets its answers; half a request will never be whole.
    if (c->fd >= 0 && c->outlen == 0 && (c->closing || c->eof))
        drop(c);
}

static bool take_fds(struct conn *c, struct msghdr *m, uint64_t end)
{
    bool all = !(m->msg_flags & MSG_CTRUNC);
    for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < (h->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(h) + i * sizeof(int), sizeof(fd));
            if (c->nfds == CFG_MAX_FDS) {
                close(fd);
                all = false;
                continue;
            }
            c->fds[c->nfds].fd = fd;
            c->fds[c->nfds++].end = end;
        }
    }
    return all;
}

// Reads until nothing is left, or the buffer is full.
static void receive(struct api *a, struct conn *c)
{
    if (c->head) { // room for a whole request again
        memmove(c->in, c->in + c->head, c->len - c->head);
        c->base += c->head;
        c->len -= c->head;
        c->head = 0;
    }
    while (c->len < a->in_max && !c->eof && !c->closing) {
        union {
            char buf[CMSG_SPACE(CFG_MAX_FDS * sizeof(int))];
            struct cmsghdr align;
        } ctl;
        struct iovec iov = {.iov_base = c->in + c->len, .iov_len = a->in_max - c->len};
        struct msghdr m = {.msg_iov = &iov,
                           .msg_iovlen = 1,
                           .msg_control = ctl.buf,
                           .msg_controllen = sizeof(ctl.buf)};
        ssize_t n = recvmsg(c->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            c->eof = true;
            return;
        }
        if (c->since == 0)
            c->since = now_ns();
        c->len += (size_t)n;
        if (!take_fds(c, &m, c->base + c->len))
            refuse(a, c, "Too many descriptors with one request.");
    }
}

static bool welcome(const struct api *a, int fd)
{
    struct ucred peer;
    socklen_t n = sizeof(peer);
    bool ok = a->o.nuids == 0;
    if (!ok && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) == 0)
        for (unsigned i = 0; i < a->o.nuids; i++)
            ok |= peer.uid == a->o.uids[i];
    return ok;
}

static void admit(struct api *a)
{
    int fd = accept4(a->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) { // out of descriptors, or a peer already gone: look again a little later
        a->deaf_until = now_ns() + NSEC_PER_SEC / 20;
        return;
    }
    bool may = welcome(a, fd);
    for (unsigned i = 0; may && i < API_CONNECTIONS; i++)
        if (a->conn[i].fd < 0) {
            a->conn[i].fd = fd;
            a->conn[i].req.body_max = a->o.body_max;
            return;
        }
    char out[256];
    struct json_out o = {.buf = a->answer, .cap = sizeof(a->answer)};
    api_fault(&o, may ? "Too many open connections" : "This user may not use the API.");
    send_some(fd, out, http_response(out, sizeof(out), may ? 503 : 400, o.buf, o.len, true));
    discard(fd, a->answer);
    close(fd);
}

// `now` is when poll returned: what came in during another's long call is read first.
static void expire(struct api *a, struct conn *c, uint64_t now)
{
    if (c->fd < 0 || c->since == 0 || now < c->since + API_DEADLINE_NS)
        return;
    if (c->outlen == 0) {
        refuse(a, c, "The request did not come whole within 2 seconds.");
        flush(c);
    }
    if (c->fd >= 0)
        drop(c);
}

static int timeout_ms(const struct api *a)
{
    uint64_t now = now_ns(), least = a->deaf_until > now ? a->deaf_until : UINT64_MAX;
    for (unsigned i = 0; i < API_CONNECTIONS; i++)
        if (a->conn[i].fd >= 0 && a->conn[i].since)
            least = MIN(least, a->conn[i].since + API_DEADLINE_NS);
    if (least == UINT64_MAX)
        return -1;
    return least > now ? (int)((least - now) / 1000000) + 1 : 0;
}

int api_run(struct api *a, struct vm *vm, int wake_fd, int stop_fd)
{
    for (;;) {
        struct pollfd p[3 + API_CONNECTIONS] = {{.fd = wake_fd, .events = POLLIN},
                                                {.fd = stop_fd, .events = POLLIN}};
        const unsigned n = a ? ARRAY_SIZE(p) : 2;
        if (a)
            p[2] = (struct pollfd){.fd = a->deaf_until > now_ns() ? -1 : a->fd, .events = POLLIN};
        for (unsigned i = 0; a && i < API_CONNECTIONS; i++) {
            const struct conn *c = &a->conn[i];
            p[3 + i] = (struct pollfd){.fd = c->fd, .events = c->outlen ? POLLOUT : POLLIN};
        }
        if (poll(p, n, a ? timeout_ms(a) : -1) < 0) {
            if (errno != EINTR)
                return -errno;
            continue;
        }
        if (p[0].revents || p[1].revents)
            return p[0].revents ? 0 : 1;
        if (!a)
            continue;
        const uint64_t now = now_ns();
        for (unsigned i = 0; i < API_CONNECTIONS; i++) {
            struct conn *c = &a->conn[i];
            if (c->fd >= 0 && p[3 + i].revents) {
                if (!c->outlen)
                    receive(a, c);
                serve(a, vm, c);
            }
            expire(a, c, now);
        }
        if (p[2].revents)
            admit(a);
    }
}
