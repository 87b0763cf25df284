// SPDX-License-Identifier: Apache-2.0
// The stopwatch of make bench-coldstart: restores of any monitor that speaks the dialect, and the floor.
//
//   coldstart lives [--handed] [--shell BODY] [--touch MIB] N PREFIX DIR GUEST LOAD TOGETHER CMD...
//       N restores, TOGETHER of them at once. Life i stands in network namespace PREFIXi, its API
//       socket is DIR/i.sock; "@I@" in LOAD (a file with the load request's body) and in CMD is its
//       number. --handed: the monitor gets the listening socket as descriptor 214, and the request lies in
//       it before there is a monitor. --shell: the monitor is started before the clock, and told BODY as
//       its machine-config (-: nothing).
//   coldstart floor N MEMFILE
//       N processes with a bare VM each over a private map of MEMFILE, first fork to last byte.
//
// Prints one line of JSON for each life; times are nanoseconds of CLOCK_MONOTONIC.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define API_FD 214

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

_Noreturn static void die(const char *what)
{
    fprintf(stderr, "coldstart: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void must(bool ok, const char *what)
{
    if (!ok)
        die(what);
}

struct plan {
    bool handed;
    const char *shell, *prefix, *dir, *guest;
    unsigned touch, n, together;
    char *load;
    char **cmd;
};

struct life {
    unsigned i;
    char sock[108], *argv[32], *body;
    int udp, api, listener, watch;
    pid_t pid;
    uint64_t spawn, asked, loaded, echo, touched, ended;
};

static char *numbered(const char *s, unsigned i)
{
    size_t size = strlen(s) + 256, len = 0;
    char *out = malloc(size);
    must(out != NULL, "malloc");
    for (const char *at; (at = strstr(s, "@I@")) && len + 16 < size; s = at + 3)
        len += (size_t)snprintf(out + len, size - len, "%.*s%u", (int)(at - s), s, i);
    snprintf(out + len, size - len, "%s", s);
    return out;
}

// ---- the API

static struct sockaddr_un address(const char *path)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
    return sa;
}

static void ask(int fd, const char *path, const char *body)
{
    char rq[8192];
    int n = snprintf(rq, sizeof(rq),
                     "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s",
                     path, strlen(body), body);
    must(n < (int)sizeof(rq) && write(fd, rq, (size_t)n) == n, "write to the API");
}

static void answered(int fd, const char *what)
{
    char buf[8192];
    ssize_t n = read(fd, buf, sizeof(buf) - 1);
    buf[n > 0 ? n : 0] = 0;
    if (n <= 0 || strncmp(buf, "HTTP/1.1 20", 11)) {
        fprintf(stderr, "coldstart: %s: %s\n", what, n > 0 ? buf : "no answer");
        exit(1);
    }
}

// Without a handed socket: wakes when the file appears, so that nobody's CPU goes into looking for it.
static void connect_to(struct life *l)
{
    struct sockaddr_un sa = address(l->sock);
    char ev[4096];
    struct pollfd p = {.fd = l->watch, .events = POLLIN};
    uint64_t end = now() + 20000000000u;
    l->api = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while (connect(l->api, (struct sockaddr *)&sa, sizeof(sa))) {
        must(now() < end && !waitpid(l->pid, NULL, WNOHANG), "no API socket");
        bool bound = errno == ECONNREFUSED; // it listens in a moment
        if (bound)
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        else if (poll(&p, 1, 100) > 0 && read(l->watch, ev, sizeof(ev)) < 0)
            die("inotify");
    }
}

// ---- one life

static void prepare(const struct plan *p, struct life *l)
{
    char path[128];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(7)};

    snprintf(path, sizeof(path), "/run/netns/%s%u", p->prefix, l->i);
    int ns = open(path, O_RDONLY | O_CLOEXEC);
    must(ns >= 0 && !setns(ns, CLONE_NEWNET), path);
    snprintf(l->sock, sizeof(l->sock), "%s/%u.sock", p->dir, l->i);
    unlink(l->sock);
    for (unsigned k = 0; p->cmd[k] && k < 31; k++)
        l->argv[k] = numbered(p->cmd[k], l->i);
    l->body = numbered(p->load, l->i);
    l->udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    inet_pton(AF_INET, p->guest, &to.sin_addr);
    must(!connect(l->udp, (struct sockaddr *)&to, sizeof(to)), "UDP to the guest");
    if (!p->handed) {
        l->watch = inotify_init1(IN_CLOEXEC);
        must(inotify_add_watch(l->watch, p->dir, IN_CREATE) >= 0, p->dir);
        return;
    }
    struct sockaddr_un sa = address(l->sock);
    l->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    must(!bind(l->listener, (struct sockaddr *)&sa, sizeof(sa)) && !listen(l->listener, 8),
         l->sock);
}

static void spawn(const struct plan *p, struct life *l)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    l->spawn = now();
    if (p->handed) {
        struct sockaddr_un sa = address(l->sock);
        l->api = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        must(!connect(l->api, (struct sockaddr *)&sa, sizeof(sa)), "connect");
        if (!p->shell)
            ask(l->api, "/snapshot/load", l->body);
    }
    l->pid = vfork();
    if (l->pid == 0) {
        dup2(null, 0);
        dup2(null, 1);
        if (p->handed)
            dup2(l->listener, API_FD);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(l->argv[0], l->argv);
        _exit(127);
    }
    must(l->pid > 0, "vfork");
    if (!p->handed)
        connect_to(l);
    close(null);
}

// The guest is asked again and again, as a frame sent before the tap is attached is lost; the more of us
// there are the less often, so that asking does not eat the CPUs.
static void until_echo(const struct plan *plan, struct life *l)
{
    struct pollfd p[2] = {{.fd = l->udp, .events = POLLIN}, {.fd = l->api, .events = POLLIN}};
    struct timespec step = {.tv_nsec = plan->together == 1 ? 100000 : 50000 * plan->together};
    uint64_t end = now() + 20000000000u;
    char b[16];
    while (!l->echo || !l->loaded) {
        must(now() < end, "the guest does not answer");
        if (!l->echo)
            send(l->udp, "ping", 4, 0);
        ppoll(p, 2, &step, NULL);
        if (p[1].revents && !l->loaded) {
            answered(l->api, "/snapshot/load");
            l->loaded = now();
            p[1].fd = -1;
        }
        if (p[0].revents && recv(l->udp, b, sizeof(b), 0) > 0 && !l->echo)
            l->echo = now();
    }
}

static void touch(const struct plan *p, struct life *l)
{
    char rq[128], buf[512];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};
    inet_pton(AF_INET, p->guest, &to.sin_addr);
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int n = snprintf(rq, sizeof(rq), "GET /touch?mib=%u HTTP/1.1\r\nHost: g\r\n\r\n", p->touch);
    must(!connect(s, (struct sockaddr *)&to, sizeof(to)) && write(s, rq, (size_t)n) == n &&
             read(s, buf, sizeof(buf)) > 12 && !memcmp(buf + 9, "200", 3),
         "GET /touch");
    l->touched = now();
    close(s);
}

// What happens before the clock.
static void shell(const struct plan *p, struct life *l)
{
    if (!p->shell)
        return;
    spawn(p, l);
    if (!strcmp(p->shell, "-"))
        return;
    ask(l->api, "/machine-config", p->shell);
    answered(l->api, "/machine-config");
}

static void live(const struct plan *p, struct life *l)
{
    if (!p->shell)
        spawn(p, l);
    l->asked = p->handed && !p->shell ? l->spawn : now();
    if (!p->handed || p->shell)
        ask(l->api, "/snapshot/load", l->body);
    until_echo(p, l);
    if (p->touch)
        touch(p, l);
}

static void end(struct life *l)
{
    uint64_t t = now();
    kill(l->pid, SIGKILL);
    waitpid(l->pid, NULL, 0);
    l->ended = now() - t;
    unlink(l->sock);
    printf("{\"i\":%u,\"spawn\":%lu,\"asked\":%lu,\"loaded\":%lu,\"echo\":%lu,\"touched\":%lu,"
           "\"end_ns\":%lu}\n",
           l->i, l->spawn, l->asked, l->loaded, l->echo, l->touched, l->ended);
    fflush(stdout);
}

// Each life has a process, so that no life waits for another's system calls. Barriers are pipes that somebody
// closes: every life says that it is ready, and that it was answered, by closing its writing ends; the
// parent says go, and stop.
enum { READY, GO, ANSWERED, STOP, BARRIERS };

static void wait_at(int pipes[BARRIERS][2], int which)
{
    char b;
    must(read(pipes[which][0], &b, 1) == 0, "barrier");
}

static void one(const struct plan *p, unsigned i, int pipes[BARRIERS][2])
{
    struct life l = {.i = i};
    close(pipes[GO][1]);
    close(pipes[STOP][1]);
    prepare(p, &l);
    shell(p, &l);
    close(pipes[READY][1]);
    wait_at(pipes, GO);
    live(p, &l);
    close(pipes[ANSWERED][1]);
    wait_at(pipes, STOP); // those that run at once stay until the last has answered
    end(&l);
    exit(0);
}

static int batch(const struct plan *p, unsigned from)
{
    int pipes[BARRIERS][2], bad = 0, status;
    static pid_t pid[4096];
    for (int k = 0; k < BARRIERS; k++)
        must(!pipe2(pipes[k], O_CLOEXEC), "pipe");
    for (unsigned k = 0; k < p->together; k++) {
        pid[k] = fork();
        must(pid[k] >= 0, "fork");
        if (!pid[k])
            one(p, from + k, pipes);
    }
    close(pipes[READY][1]);
    close(pipes[ANSWERED][1]);
    wait_at(pipes, READY);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    close(pipes[GO][1]);
    wait_at(pipes, ANSWERED);
    close(pipes[STOP][1]);
    for (unsigned k = 0; k < p->together; k++)
        bad |= waitpid(pid[k], &status, 0) != pid[k] || status;
    for (int k = 0; k < BARRIERS; k++)
        close(pipes[k][0]);
    // A killed monitor's ring lets go of its tap and locks a little later.
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    return bad;
}

static char *slurp(const char *path)
{
    char *s = calloc(1, 8192);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    must(s && fd >= 0 && read(fd, s, 8191) > 0, path);
    close(fd);
    return s;
}

static int lives(char **v)
{
    struct plan p = {.shell = NULL};
    for (; *v && !strncmp(*v, "--", 2); v++) {
        if (!strcmp(*v, "--handed"))
            p.handed = true;
        else if (!strcmp(*v, "--shell"))
            p.shell = *++v;
        else if (!strcmp(*v, "--touch"))
            p.touch = (unsigned)atoi(*++v);
    }
    p.n = (unsigned)atoi(v[0]);
    p.prefix = v[1];
    p.dir = v[2];
    p.guest = v[3];
    p.load = slurp(v[4]);
    p.together = (unsigned)atoi(v[5]);
    p.cmd = v + 6;
    must(p.n > 0 && p.together > 0 && p.together <= 4096, "how many?");
    for (unsigned i = 0; i < p.n; i += p.together)
        if (batch(&p, i))
            return 1;
    return 0;
}

// ---- the floor

static void bare_vm(int mem, size_t size, int out)
{
    static const uint8_t code[] = {0xba, 0xf8, 0x03, 0xb0, 'F', 0xee, 0xf4}; // out 0x3f8, 'F'; hlt
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = ioctl(kvm, KVM_CREATE_VM, 0UL);
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    must(vm >= 0 && !ioctl(vm, KVM_ENABLE_CAP, &split), "KVM_CREATE_VM");
    int cpu = ioctl(vm, KVM_CREATE_VCPU, 0UL);
    uint8_t *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, mem, 0);
    struct kvm_userspace_memory_region r = {.memory_size = size, .userspace_addr = (uintptr_t)m};
    must(cpu >= 0 && m != MAP_FAILED && !ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r), "memory");
    memcpy(m + 0x1000, code, sizeof(code));
    struct kvm_run *run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0),
                               PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    struct kvm_sregs s;
    struct kvm_regs g = {.rip = 0x1000, .rflags = 2};
    must(run != MAP_FAILED && !ioctl(cpu, KVM_GET_SREGS, &s), "vCPU");
    s.cs.base = s.cs.selector = 0;
    must(!ioctl(cpu, KVM_SET_SREGS, &s) && !ioctl(cpu, KVM_SET_REGS, &g), "registers");
    for (;;) {
        must(!ioctl(cpu, KVM_RUN, 0) && run->exit_reason == KVM_EXIT_IO, "KVM_RUN");
        must(write(out, "F", 1) == 1, "pipe");
    }
}

static int floor_of(char **v)
{
    unsigned n = (unsigned)atoi(v[0]);
    int p[2], mem = open(v[1], O_RDONLY | O_CLOEXEC);
    struct stat st;
    pid_t *pid = calloc(n, sizeof(*pid));
    char b;
    must(n > 0 && pid && mem >= 0 && !fstat(mem, &st) && !pipe(p), v[1]);
    uint64_t t = now();
    for (unsigned i = 0; i < n; i++) {
        pid[i] = fork();
        must(pid[i] >= 0, "fork");
        if (!pid[i])
            bare_vm(mem, (size_t)st.st_size & ~0xfffffUL, p[1]);
    }
    for (unsigned i = 0; i < n; i++)
        must(read(p[0], &b, 1) == 1, "a VM ended");
    uint64_t took = now() - t;
    t = now();
    for (unsigned i = 0; i < n; i++)
        kill(pid[i], SIGKILL);
    for (unsigned i = 0; i < n; i++)
        waitpid(pid[i], NULL, 0);
    printf("{\"n\":%u,\"ns\":%lu,\"end_ns\":%lu}\n", n, took, now() - t);
    free(pid);
    return 0;
}

int main(int argc, char **argv)
{
    prctl(PR_SET_TIMERSLACK, 1UL);
    if (argc >= 4 && !strcmp(argv[1], "floor"))
        return floor_of(argv + 2);
    if (argc >= 9 && !strcmp(argv[1], "lives"))
        return lives(argv + 2);
    fprintf(stderr, "usage: see the head of tests/bench/coldstart.c\n");
    return 2;
}
