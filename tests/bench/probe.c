// SPDX-License-Identifier: Apache-2.0
// The benchmark's stopwatch: what Python is too slow or too heavy to time itself.
//
//   probe start SOCK REQUESTS CMD...   life of one monitor: spawn, API, requests, first guest byte,
//                                      pause, resume. REQUESTS is a file: "METHOD PATH BODY" a line
//   probe api SOCK CMD...              spawn to first answer
//   probe listen SOCK CMD...           spawn to socket accepts
//   probe spawn CMD...                 spawn to first output byte, for what has no API
//   probe send IFACE DSTMAC SRCIP DSTIP SIZE SECS    UDP frames to port 9, straight to the tap
//   probe echo IP SECS                 UDP echo on port 7
//   probe ping IP SIZE N               UDP round trips to port 7, one at a time
//
// Each prints one line of JSON; times are nanoseconds. After these four the process is kept
// until standard input ends, so that the caller may look at it.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void nap(long ns)
{
    struct timespec t = {.tv_nsec = ns};
    nanosleep(&t, NULL);
}

_Noreturn static void die(const char *what)
{
    fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
    exit(1);
}

// ---- a monitor's life ----

struct child {
    pid_t pid;
    int out; // its standard output
    uint64_t t0;
};

static struct child spawn(char **cmd)
{
    int p[2], null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (pipe2(p, O_CLOEXEC) || null < 0)
        die("pipe");
    struct child c = {.out = p[0], .t0 = now()};
    c.pid = vfork();
    if (c.pid == 0) {
        dup2(null, 0);
        dup2(p[1], 1);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(cmd[0], cmd);
        _exit(127);
    }
    if (c.pid < 0)
        die("vfork");
    close(p[1]);
    return c;
}

static uint64_t first_byte(const struct child *c, char *what)
{
    struct pollfd p = {.fd = c->out, .events = POLLIN};
    if (poll(&p, 1, 20000) <= 0 || read(c->out, what, 1) != 1)
        die("no output from the guest");
    return now();
}

static uint64_t connect_to(const struct child *c, const char *path, int *fd)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while (connect(*fd, (struct sockaddr *)&sa, sizeof(sa))) {
        if (now() - c->t0 > 20000000000u || waitpid(c->pid, NULL, WNOHANG))
            die("no API socket");
        nap(5000);
    }
    return now();
}

// Sends a request, waits for the head of its answer and for its body; returns the time it took.
static uint64_t request(int fd, const char *method, const char *path, const char *body)
{
    char buf[65536], *end;
    size_t len = 0;
    int n = snprintf(buf, sizeof(buf),
                     "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     method, path, strlen(body), body);
    uint64_t t = now();
    if (write(fd, buf, (size_t)n) != n)
        die("write to the API");
    for (;;) {
        ssize_t r = read(fd, buf + len, sizeof(buf) - 1 - len);
        if (r <= 0)
            die("read from the API");
        len += (size_t)r;
        buf[len] = 0;
        if (!(end = strstr(buf, "\r\n\r\n")))
            continue;
        const char *cl = strcasestr(buf, "content-length:");
        size_t want = cl && cl < end ? strtoul(cl + 15, NULL, 10) : 0;
        if (len >= (size_t)(end + 4 - buf) + want)
            break;
    }
    t = now() - t;
    if (strncmp(buf, "HTTP/1.1 20", 11)) {
        fprintf(stderr, "probe: %s %s: %s\n", method, path, buf);
        exit(1);
    }
    return t;
}

// Keeps the monitor until the caller has seen enough.
static void hold(const struct child *c)
{
    char b;
    fflush(stdout);
    while (read(0, &b, 1) > 0)
        ;
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
}

static int start(char **v)
{
    char line[4096], method[16], path[256], first = 0;
    int fd, used;
    FILE *f = fopen(v[1], "r");
    if (!f)
        die(v[1]);
    unlink(v[0]);
    struct child c = spawn(v + 2);
    uint64_t accepted = connect_to(&c, v[0], &fd) - c.t0;
    request(fd, "GET", "/", "");
    uint64_t answered = now() - c.t0, puts = 0, started = 0;
    uint64_t t = 0;
    while (fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%15s %255s %n", method, path, &used) < 2)
            continue;
        if (!strcmp(path, "/actions"))
            t = now();
        uint64_t took = request(fd, method, path, line + used);
        if (t)
            started = took;
        else
            puts += took;
    }
    uint64_t byte = first_byte(&c, &first) - t;
    nap(50000000);
    uint64_t paused = request(fd, "PATCH", "/vm", "{\"state\":\"Paused\"}");
    nap(5000000);
    uint64_t resumed = request(fd, "PATCH", "/vm", "{\"state\":\"Resumed\"}");
    printf("{\"pid\":%d,\"accepts\":%lu,\"answers\":%lu,\"puts\":%lu,\"start\":%lu,\"byte\":%lu,"
           "\"pause\":%lu,\"resume\":%lu,\"spawn_byte\":%lu,\"first\":%d}\n",
           c.pid, accepted, answered, puts, started, byte, paused, resumed, byte + t - c.t0, first);
    hold(&c);
    return 0;
}

static int reach(char **v, bool answer)
{
    int fd;
    struct child c = spawn(v + 1);
    uint64_t accepted = connect_to(&c, v[0], &fd) - c.t0;
    if (answer)
        request(fd, "GET", "/", "");
    printf("{\"pid\":%d,\"accepts\":%lu,\"answers\":%lu}\n", c.pid, accepted, now() - c.t0);
    hold(&c);
    return 0;
}

static int api_only(char **v)
{
    return reach(v, true);
}

static int listen_only(char **v)
{
    return reach(v, false);
}

static int spawn_only(char **v)
{
    char first = 0;
    struct child c = spawn(v);
    uint64_t byte = first_byte(&c, &first) - c.t0;
    printf("{\"pid\":%d,\"spawn_byte\":%lu,\"first\":%d}\n", c.pid, byte, first);
    nap(50000000);
    hold(&c);
    return 0;
}

// ---- network load ----

static uint16_t ip_sum(const void *p, size_t n)
{
    const uint16_t *w = p;
    uint32_t s = 0;
    for (; n > 1; n -= 2)
        s += *w++;
    while (s >> 16)
        s = (s & 0xffff) + (s >> 16);
    return (uint16_t)~s;
}

static size_t make_frame(uint8_t *f, char **v, uint16_t size)
{
    struct iphdr ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP};
    struct udphdr udp = {.source = htons(9), .dest = htons(9), .len = htons((uint16_t)(8 + size))};
    unsigned m[6];
    if (sscanf(v[1], "%x:%x:%x:%x:%x:%x", m, m + 1, m + 2, m + 3, m + 4, m + 5) != 6)
        die("bad MAC");
    for (int i = 0; i < 6; i++)
        f[i] = (uint8_t)m[i];
    memcpy(f + 6, (uint8_t[]){2, 0, 0, 0, 0, 1, 8, 0}, 8);
    ip.tot_len = htons((uint16_t)(28 + size));
    inet_pton(AF_INET, v[2], &ip.saddr);
    inet_pton(AF_INET, v[3], &ip.daddr);
    ip.check = ip_sum(&ip, sizeof(ip));
    memcpy(f + 14, &ip, 20);
    memcpy(f + 34, &udp, 8); // no UDP checksum: allowed in IPv4
    memset(f + 42, 'x', size);
    return 42u + size;
}

// ENOBUFS says that the tap's queue is full: so the sender leaves the CPU to those who drain it.
static int send_frames(char **v)
{
    enum { BATCH = 64 };
    static uint8_t frame[2048];
    struct iovec iov = {.iov_base = frame, .iov_len = make_frame(frame, v, (uint16_t)atoi(v[4]))};
    struct sockaddr_ll to = {.sll_family = AF_PACKET,
                             .sll_protocol = htons(ETH_P_IP),
                             .sll_ifindex = (int)if_nametoindex(v[0]),
                             .sll_halen = 6};
    struct mmsghdr m[BATCH];
    uint64_t sent = 0, full = 0, end = now() + (uint64_t)(atof(v[5]) * 1e9);
    int fd = socket(AF_PACKET, SOCK_RAW, 0), one = 1;
    if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)))
        die("packet socket");
    for (int i = 0; i < BATCH; i++)
        m[i].msg_hdr = (struct msghdr){
            .msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = &iov, .msg_iovlen = 1};
    while (now() < end) {
        int n = sendmmsg(fd, m, BATCH, 0);
        if (n < 0 && errno != ENOBUFS)
            die("sendmmsg");
        sent += n > 0 ? (uint64_t)n : 0;
        if (n < BATCH) {
            full++;
            nap(50000);
        }
    }
    printf("{\"sent\":%lu,\"full\":%lu}\n", sent, full);
    return 0;
}

static int udp_at(const char *ip, bool bound)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(7)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    inet_pton(AF_INET, ip, &sa.sin_addr);
    if (bound ? bind(fd, (struct sockaddr *)&sa, sizeof(sa))
              : connect(fd, (struct sockaddr *)&sa, sizeof(sa)))
        die(ip);
    return fd;
}

static int echo(char **v)
{
    char buf[2048];
    struct sockaddr_in from;
    uint64_t n = 0, end = now() + (uint64_t)(atof(v[1]) * 1e9);
    int fd = udp_at(v[0], true);
    struct timeval tv = {.tv_usec = 100000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    while (now() < end) {
        socklen_t len = sizeof(from);
        ssize_t r = recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len);
        if (r > 0 && sendto(fd, buf, (size_t)r, 0, (struct sockaddr *)&from, len) == r)
            n++;
    }
    printf("{\"echoed\":%lu}\n", n);
    return 0;
}

static int by_value(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static int ping(char **v)
{
    char buf[2048] = {0};
    size_t size = strtoul(v[1], NULL, 10), n = strtoul(v[2], NULL, 10), got = 0, lost = 0;
    uint64_t *t = calloc(n, sizeof(*t));
    int fd = udp_at(v[0], false);
    struct timeval tv = {.tv_usec = 200000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    for (size_t i = 0; t && got < n && lost < 50; i++) {
        uint64_t s = now();
        if (send(fd, buf, size, 0) < 0 || recv(fd, buf, sizeof(buf), 0) < 0)
            lost++;
        else if (i >= 20) // the first ones resolve addresses and warm up
            t[got++] = now() - s;
    }
    if (!got)
        die("no echo");
    qsort(t, got, sizeof(*t), by_value);
    printf("{\"n\":%zu,\"lost\":%zu,\"p50_ns\":%lu,\"p99_ns\":%lu}\n", got, lost, t[got / 2],
           t[got * 99 / 100]);
    free(t);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int args;
        int (*run)(char **);
    } verbs[] = {{"start", 3, start},        {"spawn", 1, spawn_only}, {"api", 2, api_only},
                 {"listen", 2, listen_only}, {"send", 6, send_frames}, {"echo", 2, echo},
                 {"ping", 3, ping}};
    prctl(PR_SET_TIMERSLACK, 1UL);
    for (size_t i = 0; argc > 1 && i < sizeof(verbs) / sizeof(verbs[0]); i++)
        if (!strcmp(argv[1], verbs[i].name) && argc - 2 >= verbs[i].args)
            return verbs[i].run(argv + 2);
    fprintf(stderr, "usage: see the head of tests/bench/probe.c\n");
    return 2;
}
