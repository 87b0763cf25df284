// SPDX-License-Identifier: Apache-2.0
// receive: listens, and takes one microVM, or with --dir as many as come.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "api-socket/ctl/mig.h"

#define HEARING_MAX 128 // connections whose line is awaited

struct conn {
    struct receiver *r;
    int fd;
};

static void *hear(void *arg)
{
    struct conn c = *(struct conn *)arg;
    struct link_line l;
    struct err e = {0};

    free(arg);
    int rc = link_hear(c.fd, &l, &e);
    if (rc == 0 && !strcmp(l.verb, "pull"))
        rc = err_set(&e, EPROTO, "here a microVM is waited for: mayflyctl migrate");
    pthread_mutex_lock(&c.r->lock);
    c.r->hearing--;
    pthread_mutex_unlock(&c.r->lock);
    if (rc) {
        link_answer(c.fd, e.msg, NULL);
        close(c.fd);
    } else if (!strcmp(l.verb, "end"))
        arrive_end(c.r, &l, c.fd);
    else
        arrive_channel(c.r, &l, c.fd);
    return NULL;
}

static void admit(struct receiver *r)
{
    int fd = accept4(r->listener, NULL, NULL, SOCK_CLOEXEC);
    struct conn *c = fd < 0 ? NULL : malloc(sizeof(*c));

    pthread_mutex_lock(&r->lock);
    bool room = r->hearing < HEARING_MAX;
    r->hearing += c && room;
    pthread_mutex_unlock(&r->lock);
    if (c && room) {
        *c = (struct conn){r, fd};
        if (move_thread(hear, c, NULL) == 0)
            return;
        pthread_mutex_lock(&r->lock);
        r->hearing--;
        pthread_mutex_unlock(&r->lock);
    }
    free(c);
    close_fdp(&fd);
}

// Monitors that were started here and have ended, in their own time.
static void reap(struct receiver *r)
{
    pid_t pid;

    pthread_mutex_lock(&r->lock);
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        for (unsigned i = 0; i < ARRIVALS_MAX; i++)
            if (r->a[i].pid == pid)
                r->a[i].pid = 0;
    pthread_mutex_unlock(&r->lock);
}

static unsigned count(struct receiver *r, enum arrival_state st, int *status)
{
    unsigned n = 0;

    pthread_mutex_lock(&r->lock);
    for (unsigned i = 0; i < ARRIVALS_MAX; i++)
        if (r->a[i].state == st) {
            n++;
            *status = r->a[i].status;
        }
    pthread_mutex_unlock(&r->lock);
    return n;
}

static void *resume(void *arg)
{
    arrive_resume(arg);
    return NULL;
}

static int serve(struct receiver *r)
{
    int status = MOVE_STAYED;

    if (r->session)
        r->a[0].state = ARRIVAL_HERE; // its thread fills in the rest
    if (r->session && move_thread(resume, r, NULL))
        return MOVE_STAYED;
    while (!stop_asked(r->signals)) {
        struct pollfd p[3] = {{.fd = r->listener, .events = POLLIN},
                              {.fd = r->signals, .events = POLLIN},
                              {.fd = r->wake, .events = POLLIN}};
        poll(p, ARRAY_SIZE(p), r->dir ? 1000 : -1);
        if (p[0].revents)
            admit(r);
        if (p[2].revents && !r->dir && count(r, ARRIVAL_OVER, &status))
            return status;
        if (r->dir)
            reap(r);
    }
    // Those on their way see the signal too: they are cancelled, or left alone.
    for (unsigned i = 0; i < 1000 && count(r, ARRIVAL_HERE, &status); i++)
        usleep(10000);
    return r->dir ? 0 : status;
}

bool receiver_lists_ok(const struct receiver *r)
{
    const struct opt_list *lists[] = {&r->taps, &r->drives, &r->layers};

    for (size_t k = 0; k < ARRAY_SIZE(lists); k++)
        for (unsigned i = 0; i < lists[k]->n; i++)
            if (!strchr(lists[k]->v[i], '=')) {
                fprintf(stderr, "mayflyctl: --tap IFACE=DEVICE, --drive ID=PATH%s\n",
                        r->from ? ", --layer ID=PATH" : "");
                return false;
            }
    return true;
}

static int check(const struct receiver *r)
{
    const char *wrong = NULL;

    if (!r->dir == !r->sock)
        wrong = "--api-sock SOCK, or --dir DIR";
    else if (r->dir && (r->arbiter || r->session))
        wrong = "with --dir: --arbiter-dir instead of --arbiter, and no --session";
    else if (r->session && (r->spawn || strlen(r->session) != MOVE_SESSION - 1))
        wrong = "--session: 32 hexadecimal digits, and no --spawn";
    else if (!r->session && !r->arbiter && !r->arbiters && !r->unarbitrated)
        wrong = "an arbiter is wanted, a file on storage that both hosts reach; or --unarbitrated";
    if (wrong)
        fprintf(stderr, "mayflyctl: %s\n", wrong);
    return wrong || !receiver_lists_ok(r) ? -1 : 0;
}

static int run(struct receiver *r, const char *at)
{
    struct err e = {0};

    if (r->dir && make_dirs(r->dir, &e))
        return ctl_fail(&e);
    if ((r->listener = link_listen(at, &e)) < 0)
        return ctl_fail(&e);
    raise_limits();
    r->signals = stop_watch();
    r->wake = eventfd(0, EFD_CLOEXEC);
    r->spawn = r->spawn || r->dir;
    pthread_mutex_init(&r->lock, NULL);
    for (unsigned i = 0; i < ARRIVALS_MAX; i++)
        r->a[i].fd[0] = r->a[i].fd[1] = -1;
    if (!r->quiet)
        fprintf(stderr, "listening at %s\n", at);
    return serve(r);
}

int cmd_receive(int argc, char **argv)
{
    static const char usage[] =
        "receive --listen [HOST]:PORT --api-sock SOCK [--spawn] --arbiter PATH [options]\n"
        "       mayflyctl receive --listen [HOST]:PORT --dir DIR --arbiter-dir DIR [options]\n"
        "Exit status: 0 it is here, or with --dir ended by a signal; 1 nothing came, or it stayed\n"
        "where it was; 2 wrong usage; 3 between the hosts, the message says how to go on.";
    char mayfly[CTL_PATH];
    const char *rest[1], *at = NULL;
    bool help = false;
    struct receiver *r = calloc(1, sizeof(*r));

    if (!r)
        return 1;
    r->retry_s = 300;
    const struct opt o[] = {
        {"--listen", OPT_STR, &at, "[HOST]:PORT  where mayflyctl migrate connects to"},
        {"--api-sock", OPT_STR, &r->sock, "SOCK  a fresh monitor's API socket"},
        {"--spawn", OPT_FLAG, &r->spawn, "start that monitor when a microVM comes"},
        {"--dir", OPT_STR, &r->dir, "DIR  many: a monitor for each, DIR/NAME.sock"},
        {"--arbiter", OPT_STR, &r->arbiter, "PATH  the record, as for migrate"},
        {"--arbiter-dir", OPT_STR, &r->arbiters, "DIR  records, DIR/NAME.arbiter"},
        {"--unarbitrated", OPT_FLAG, &r->unarbitrated, "no record"},
        {"--tap", OPT_LIST, &r->taps, "IFACE=DEVICE  another tap than at the source; %n: NAME"},
        {"--drive", OPT_LIST, &r->drives, "ID=PATH  another path to the same disk; %n: NAME"},
        {"--lease", OPT_NUM, &r->lease_ms, "MS  silence that gives the reservation up (10000)"},
        {"--any-cpu", OPT_FLAG, &r->any_cpu, "take it from another processor model"},
        {"--retry", OPT_NUM, &r->retry_s, "S  how long a broken link is waited for (300)"},
        {"--session", OPT_STR, &r->session, "HEX  SOCK has begun: wait for its source"},
        {"--mayfly", OPT_STR, &r->mayfly, "FILE  the monitor (beside mayflyctl)"},
        {"--allow-dir", OPT_LIST, &r->allow, "DIR  beneath which monitors may open files"},
        {"--json", OPT_FLAG, &r->json, "each result as a line of JSON"},
        {"--quiet", OPT_FLAG, &r->quiet, "no progress on standard error"},
        {"--help", OPT_FLAG, &help, "this"}};

    int n = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 1), rc = 2;
    if (!r->mayfly)
        r->mayfly = beside_me("mayfly", mayfly);
    if (n != 0 || help || !at)
        opts_help(help ? stdout : stderr, usage, o, ARRAY_SIZE(o)), rc = help ? 0 : 2;
    else if (check(r) == 0)
        rc = run(r, at);
    // Threads may still look at it: the process ends with it.
    return rc;
}
