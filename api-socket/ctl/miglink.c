// SPDX-License-Identifier: Apache-2.0
// The TCP connections of a migration, and the line that opens each. Not a byte behind that line is read here.
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>

#include "api-socket/ctl/mig.h"

#define PATIENCE_MS 10000 // for a connection, and for its line
#define VERDICT_MS \
    30000 // a receiver may start a monitor first, or wait until it has noticed that a link broke

static const char *const channels[] = {"urgent", "bulk", "-"};

int link_resolve(const char *text, bool listener, struct link_addr *to, struct err *e)
{
    const char *colon = strrchr(text, ':');
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = listener ? AI_PASSIVE : 0};
    struct addrinfo *got = NULL;
    char host[CTL_PATH];

    size_t n = colon ? (size_t)(colon - text) : 0;
    if (!colon || !colon[1] || n >= sizeof(host) || (!n && !listener))
        return err_set(e, EINVAL, "%.100s: HOST:PORT is wanted", text);
    bool bare = n > 2 && text[0] == '[' && text[n - 1] == ']';
    snprintf(host, sizeof(host), "%.*s", (int)(bare ? n - 2 : n), bare ? text + 1 : text);
    int rc = getaddrinfo(n ? host : NULL, colon + 1, &want, &got);
    if (rc)
        return err_set(e, EINVAL, "%.100s: %s", text, gai_strerror(rc));
    memcpy(&to->a, got->ai_addr, got->ai_addrlen);
    to->len = got->ai_addrlen;
    freeaddrinfo(got);
    return 0;
}

int link_listen(const char *text, struct err *e)
{
    struct link_addr at;
    int on = 1;

    int rc = link_resolve(text, true, &at, e);
    if (rc)
        return rc;
    _cleanup_(close_fdp) int fd = socket(at.a.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
        bind(fd, (struct sockaddr *)&at.a, at.len) || listen(fd, 64))
        return err_set(e, errno, "cannot listen at %.100s: %s", text, strerror(errno));
    return steal_fd(&fd);
}

static bool ready(int fd, short events, uint64_t until)
{
    struct pollfd p = {.fd = fd, .events = events};
    uint64_t now = now_ns();

    return now < until && poll(&p, 1, (int)((until - now) / 1000000) + 1) > 0;
}

static void at_once(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

// A small buffer: what lies in it is ahead of nothing, and a cap on the stream, a cancel and the pull's choice of the next
// page work on what is not in it yet.
static int link_connect(const struct link_addr *to, uint64_t buffer, struct err *e)
{
    _cleanup_(close_fdp) int fd =
        socket(to->a.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int why = 0, size = (int)(buffer * KIB);
    socklen_t len = sizeof(why);

    if (fd >= 0 && buffer)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    if (fd < 0 || (connect(fd, (const struct sockaddr *)&to->a, to->len) && errno != EINPROGRESS))
        return err_set(e, errno, "cannot connect: %s", strerror(errno));
    if (!ready(fd, POLLOUT, now_ns() + PATIENCE_MS * 1000000ULL))
        why = ETIMEDOUT;
    else
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &len);
    if (why)
        return err_set(e, why, "cannot connect: %s", strerror(why));
    at_once(fd);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    return steal_fd(&fd);
}

// Byte by byte: what follows the line is for the monitor.
static int read_line(int fd, char *line, size_t size, unsigned patience_ms, struct err *e)
{
    uint64_t until = now_ns() + patience_ms * 1000000ULL;

    for (size_t n = 0; n < size;) {
        if (!ready(fd, POLLIN, until))
            return err_set(e, ETIMEDOUT, "no answer in %u s", patience_ms / 1000);
        ssize_t k = recv(fd, line + n, 1, MSG_DONTWAIT);
        if (k < 0 && errno == EAGAIN)
            continue;
        if (k <= 0)
            return err_set(e, ECONNRESET,
                           "the connection ended before an answer came (is there a receiver, and "
                           "does a proxy between accept this certificate?)");
        if (line[n++] == '\n') {
            line[n - 1] = 0;
            return 0;
        }
    }
    return err_set(e, EBADMSG, "the answer is longer than a line may be");
}

static int say(int fd, const char *verb, const char *session, int channel, const char *name,
               struct err *e)
{
    char line[MOVE_LINE];
    int n = snprintf(line, sizeof(line), "mayfly-move 1 %s %s %s %s\n", verb, session,
                     channels[channel], name);

    if (send(fd, line, (size_t)n, MSG_NOSIGNAL) != n)
        return err_set(e, EIO, "the connection broke: %s", strerror(errno));
    return 0;
}

static int verdict(int fd, char *status, size_t size, struct err *e)
{
    char line[MOVE_LINE + sizeof(((struct mig_view *)0)->json)];

    int rc = read_line(fd, line, sizeof(line), VERDICT_MS, e);
    if (rc)
        return rc;
    if (!strncmp(line, "no ", 3))
        return err_set(e, EPERM, "the receiver refuses: %.200s", line + 3);
    if (strncmp(line, "ok", 2) || (line[2] && line[2] != ' '))
        return err_set(e, EBADMSG, "what answers is no mayflyctl receive");
    if (status)
        snprintf(status, size, "%s", line[2] ? line + 3 : "");
    return 0;
}

int link_open(const struct link_addr *to, const char *verb, const char *session, const char *name,
              uint64_t buffer, int fd[2], struct err *e)
{
    _cleanup_(close_fdp) int urgent = link_connect(to, 0, e);
    _cleanup_(close_fdp) int bulk = urgent < 0 ? -1 : link_connect(to, buffer, e);
    int rc = MIN(urgent < 0 ? urgent : bulk, 0);

    if (rc == 0)
        rc = say(urgent, verb, session, LINK_URGENT, name, e);
    if (rc == 0)
        rc = say(bulk, verb, session, LINK_BULK, name, e);
    if (rc == 0)
        rc = verdict(bulk, NULL, 0, e);
    if (rc)
        return rc;
    fd[LINK_URGENT] = steal_fd(&urgent);
    fd[LINK_BULK] = steal_fd(&bulk);
    return 0;
}

int link_end(const struct link_addr *to, const char *session, char *status, size_t size,
             struct err *e)
{
    _cleanup_(close_fdp) int fd = link_connect(to, 0, e);
    int rc = fd < 0 ? fd : say(fd, "end", session, LINK_NONE, "-", e);

    return rc ? rc : verdict(fd, status, size, e);
}

bool link_name_ok(const char *name)
{
    static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    size_t n = strspn(name, good);

    return n && !name[n] && n < MOVE_NAME && name[0] != '.';
}

int link_hear(int fd, struct link_line *l, struct err *e)
{
    char line[MOVE_LINE], channel[8];
    int version, end = 0;

    *l = (struct link_line){.channel = -1};
    int rc = read_line(fd, line, sizeof(line), PATIENCE_MS, e);
    if (rc)
        return rc;
    if (sscanf(line, "mayfly-move %d %7[a-z] %32[0-9a-f] %7[-a-z] %64s%n", &version, l->verb,
               l->session, channel, l->name, &end) != 5 ||
        line[end] || strlen(l->session) != MOVE_SESSION - 1)
        return err_set(e, EBADMSG, "this is no mayflyctl migrate");
    if (version != 1)
        return err_set(e, EPROTO, "version %d of the line is not known here, 1 is", version);
    for (int i = 0; i < (int)ARRAY_SIZE(channels); i++)
        if (!strcmp(channel, channels[i]))
            l->channel = i;
    bool end_verb = !strcmp(l->verb, "end");
    if (l->channel < 0 || end_verb != (l->channel == LINK_NONE) ||
        (!end_verb && strcmp(l->verb, "open") && strcmp(l->verb, "again") &&
         strcmp(l->verb, "pull")))
        return err_set(e, EBADMSG, "no such verb, or no such channel of it");
    if (!end_verb && !link_name_ok(l->name))
        return err_set(e, EBADMSG, "a name has up to 64 letters, digits, - _ and .");
    at_once(fd);
    return 0;
}

void link_answer(int fd, const char *why, const char *status)
{
    char line[MOVE_LINE + sizeof(((struct mig_view *)0)->json)];
    int n;

    if (why)
        n = snprintf(line, sizeof(line), "no %.250s\n", why);
    else
        n = snprintf(line, sizeof(line), "ok%s%s\n", status ? " " : "", status ? status : "");
    send(fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void link_session(char session[MOVE_SESSION])
{
    uint8_t r[16];

    if (getrandom(r, sizeof(r), 0) != sizeof(r))
        abort();
    for (size_t i = 0; i < sizeof(r); i++)
        snprintf(session + 2 * i, 3, "%02x", r[i]);
}
