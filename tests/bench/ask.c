// SPDX-License-Identifier: Apache-2.0
// The client of bench-serve: starts CMD and asks the guest that comes of it, as soon as anything can answer.
//
//   ask TAP IP PATH CMD...   JSON, ns of CLOCK_MONOTONIC: start, attached (a monitor has the tap), connected, answered (the whole
//                            HTTP answer is here), ended (CMD), its exit status; CMD's output goes to standard error
#include <arpa/inet.h>
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE 60000000000ull

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

_Noreturn static void die(const char *what)
{
    fprintf(stderr, "ask: %s: %s\n", what, strerror(errno));
    exit(1);
}

// What is sent to a tap that nobody has is lost, and TCP tries again after a second only. The interface's flags would
// tell late: asked is the carrier itself.
static void wait_for_tap(const char *tap, uint64_t until)
{
    struct ethtool_value v = {.cmd = ETHTOOL_GLINK};
    struct ifreq r = {.ifr_data = (void *)&v};
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", tap);
    for (;;) {
        if (ioctl(s, SIOCETHTOOL, &r))
            die(tap);
        if (v.data)
            break;
        if (now() > until)
            die("nobody takes the tap");
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    close(s);
}

static int dial(const char *ip)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(80)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || inet_pton(AF_INET, ip, &a.sin_addr) != 1 ||
        connect(fd, (struct sockaddr *)&a, sizeof(a)))
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return fd;
}

// Until the head and as many bytes as it says are here.
static void get(int fd, const char *path, char *buf, size_t size)
{
    size_t n = (size_t)snprintf(buf, size, "GET %s HTTP/1.1\r\nHost: guest\r\n\r\n", path), got = 0;

    if (send(fd, buf, n, MSG_NOSIGNAL) != (ssize_t)n)
        die("send");
    for (;;) {
        ssize_t k = recv(fd, buf + got, size - 1 - got, 0);
        if (k <= 0)
            die("recv");
        got += (size_t)k;
        buf[got] = 0;
        const char *end = strstr(buf, "\r\n\r\n"), *len = strcasestr(buf, "\r\ncontent-length:");
        if (end && len && got >= (size_t)(end + 4 - buf) + strtoul(len + 17, NULL, 10))
            return;
    }
}

int main(int argc, char **argv)
{
    char buf[4096];
    int status;

    if (argc < 5)
        die("TAP IP PATH CMD...");
    uint64_t start = now();
    pid_t pid = fork();
    if (pid == 0) {
        dup2(2, 1);
        execvp(argv[4], argv + 4);
        die(argv[4]);
    }
    wait_for_tap(argv[1], start + PATIENCE);
    uint64_t attached = now();
    int fd = dial(argv[2]);
    uint64_t connected = now();
    get(fd, argv[3], buf, sizeof(buf));
    uint64_t answered = now();
    if (strncmp(buf, "HTTP/1.1 200", 12) || waitpid(pid, &status, 0) != pid)
        die("the answer");
    printf("{\"start\":%llu,\"attached\":%llu,\"connected\":%llu,\"answered\":%llu,\"ended\":%llu,"
           "\"status\":%d}\n",
           (unsigned long long)start, (unsigned long long)attached, (unsigned long long)connected,
           (unsigned long long)answered, (unsigned long long)now(),
           WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    return 0;
}
