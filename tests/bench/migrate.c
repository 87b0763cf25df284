// SPDX-License-Identifier: Apache-2.0
// Clocks of the migration benchmark that Python is too slow for.
//
//   migrate probe IP MS             UDP echo on port 7 every ms until standard input ends, at most MS:
//                                   a line "sent_ns rtt_ns" each (CLOCK_MONOTONIC), rtt -1: no answer
//   migrate sink IP PORT            accepts one connection after the other, for `flood` and `pages`
//   migrate flood IP PORT MIB       one way, 128 KiB a write: JSON mib_s
//   migrate pages IP PORT N         N times 40 bytes there, a page and its head back: JSON p50_ns, p99_ns
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/param.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (128u << 10)
#define HEAD  40u
#define PAGE  4096u

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

_Noreturn static void die(const char *what)
{
    fprintf(stderr, "migrate: %s: %s\n", what, strerror(errno));
    exit(1);
}

static struct sockaddr_in address(const char *ip, const char *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, ip, &a.sin_addr) != 1)
        die(ip);
    return a;
}

// ---- the outside probe ----

struct probe {
    uint64_t sent;
    int64_t rtt;
};

static void answers(int fd, struct probe *all, uint32_t n)
{
    uint32_t i[4];
    while (recv(fd, i, sizeof(i), MSG_DONTWAIT) == sizeof(i))
        if (i[0] < n && all[i[0]].rtt < 0)
            all[i[0]].rtt = (int64_t)(now() - all[i[0]].sent);
}

static int probe(const char *ip, uint32_t most)
{
    struct sockaddr_in a = address(ip, "7");
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct probe *all = calloc(most, sizeof(*all));
    if (fd < 0 || !all || connect(fd, (struct sockaddr *)&a, sizeof(a)))
        die("socket");
    uint32_t n = 0;
    uint64_t next = now(), end = UINT64_MAX;
    while (now() < end) {
        uint64_t t = now();
        if (t >= next && n < most && end == UINT64_MAX) {
            uint32_t msg[4] = {n};
            all[n] = (struct probe){.sent = t, .rtt = -1};
            (void)send(fd, msg, sizeof(msg),
                       0); // refused or no route: an answer that does not come
            n++;
            next = MAX(next + 1000000, t > 5000000 ? t - 5000000 : 0);
        }
        struct pollfd p[2] = {{.fd = fd, .events = POLLIN},
                              {.fd = end == UINT64_MAX ? 0 : -1, .events = POLLIN}};
        t = now();
        uint64_t until = MIN(end, n < most ? next : t + 100000000);
        struct timespec wait = {.tv_nsec = (long)(until > t ? MIN(until - t, 100000000u) : 0)};
        if (ppoll(p, 2, &wait, NULL) > 0 && p[1].revents)
            end = now() + 50000000; // the last answers are waited for
        answers(fd, all, n);
    }
    for (uint32_t i = 0; i < n; i++)
        printf("%llu %lld\n", (unsigned long long)all[i].sent, (long long)all[i].rtt);
    return 0;
}

// ---- floors: what a plain socket does over the same link ----

static int take(int fd, void *buf, size_t n)
{
    for (size_t got = 0; got < n;) {
        ssize_t k = recv(fd, (char *)buf + got, n - got, 0);
        if (k <= 0)
            return -1;
        got += (size_t)k;
    }
    return 0;
}

static void put(int fd, const void *buf, size_t n)
{
    for (size_t sent = 0; sent < n;) {
        ssize_t k = send(fd, (const char *)buf + sent, n - sent, MSG_NOSIGNAL);
        if (k <= 0)
            die("send");
        sent += (size_t)k;
    }
}

static void no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

// The first byte says which: 'f' reads until a byte of it is 'e', 'p' answers each head with a page.
static void serve(int fd, char *buf)
{
    char kind;
    no_delay(fd);
    if (take(fd, &kind, 1))
        return;
    if (kind == 'p') {
        while (take(fd, buf, HEAD) == 0)
            put(fd, buf, HEAD + PAGE);
        return;
    }
    uint64_t size, got = 0;
    if (take(fd, &size, sizeof(size)))
        return;
    while (got < size) {
        ssize_t k = recv(fd, buf, CHUNK, 0);
        if (k <= 0)
            return;
        got += (uint64_t)k;
    }
    put(fd, "e", 1);
}

static int sink(const char *ip, const char *port)
{
    struct sockaddr_in a = address(ip, port);
    int on = 1, srv = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char *buf = calloc(1, CHUNK);
    if (srv < 0 || !buf || setsockopt(srv, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
        bind(srv, (struct sockaddr *)&a, sizeof(a)) || listen(srv, 4))
        die("listen");
    puts("ready");
    fflush(stdout);
    for (;;) {
        int fd = accept(srv, NULL, NULL);
        if (fd < 0)
            die("accept");
        serve(fd, buf);
        close(fd);
    }
}

static int dial(const char *ip, const char *port, char kind)
{
    struct sockaddr_in a = address(ip, port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)))
        die("connect");
    no_delay(fd);
    put(fd, &kind, 1);
    return fd;
}

// From all of a memory as large as what is sent, as a migration does: not from one warm buffer.
static int flood(const char *ip, const char *port, uint64_t mib)
{
    uint64_t size = mib << 20;
    char end, *all = malloc(size);
    if (!all)
        die("memory");
    for (uint64_t i = 0; i < size; i += 8)
        memcpy(all + i, &(uint64_t){i * 0x9e3779b97f4a7c15u}, 8);
    int fd = dial(ip, port, 'f');
    put(fd, &size, sizeof(size));
    uint64_t t = now();
    for (uint64_t i = 0; i < size; i += CHUNK)
        put(fd, all + i, CHUNK);
    if (take(fd, &end, 1))
        die("the sink ended");
    t = now() - t;
    printf("{\"mib_s\":%.1f}\n", (double)mib * 1e9 / (double)t);
    return 0;
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int pages(const char *ip, const char *port, size_t n)
{
    uint64_t *took = calloc(n, sizeof(*took));
    char buf[HEAD + PAGE] = {0};
    int fd = dial(ip, port, 'p');
    if (!took)
        die("memory");
    for (size_t i = 0; i < n; i++) {
        uint64_t t = now();
        put(fd, buf, HEAD);
        if (take(fd, buf, sizeof(buf)))
            die("the sink ended");
        took[i] = now() - t;
    }
    qsort(took, n, sizeof(*took), by_size);
    printf("{\"p50_ns\":%llu,\"p99_ns\":%llu}\n", (unsigned long long)took[n / 2],
           (unsigned long long)took[n * 99 / 100]);
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 3 ? argv[1] : "";
    if (!strcmp(what, "probe"))
        return probe(argv[2], (uint32_t)atoi(argv[3]));
    if (!strcmp(what, "sink"))
        return sink(argv[2], argv[3]);
    if (!strcmp(what, "flood") && argc > 4)
        return flood(argv[2], argv[3], strtoull(argv[4], NULL, 10));
    if (!strcmp(what, "pages") && argc > 4 && atoi(argv[4]) > 0)
        return pages(argv[2], argv[3], strtoul(argv[4], NULL, 10));
    fprintf(stderr, "migrate probe|sink|flood|pages: see the head of its source\n");
    return 2;
}
