// SPDX-License-Identifier: Apache-2.0
// pull: a microVM of a snapshot that mayflyctl serve has on another host. The far side of a move, but that it connects.
#include <fcntl.h>
#include <sys/eventfd.h>

#include "api-socket/ctl/mig.h"

// An empty file is a layer that holds nothing yet.
static int make_layers(const struct receiver *r, const char *name, struct err *e)
{
    for (unsigned i = 0; i < r->layers.n; i++) {
        char path[2 * CTL_PATH];
        arrival_path(strchr(r->layers.v[i], '=') + 1, name, path, sizeof(path));
        _cleanup_(close_fdp) int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
            return err_set(e, errno, "cannot make %.150s: %s", path, strerror(errno));
    }
    return 0;
}

// The monitor stands before the server is asked: nothing of its start is waited for there.
static int begin(struct receiver *r, struct arrival *a)
{
    int fd[2] = {-1, -1};

    int rc = make_layers(r, a->name, &a->e);
    if (rc == 0)
        rc = arrival_start(r, a, &a->e);
    if (rc == 0)
        rc = link_open(r->from, "pull", a->session, a->name, 0, fd, &a->e);
    if (rc == 0)
        rc = arrival_tell(r, a, fd, &a->e);
    close_fdp(&fd[0]);
    close_fdp(&fd[1]);
    return rc;
}

static int run(struct receiver *r, const char *name)
{
    struct arrival *a = &r->a[0];

    raise_limits();
    r->signals = stop_watch();
    r->wake = eventfd(0, EFD_CLOEXEC);
    pthread_mutex_init(&r->lock, NULL);
    a->show = (struct show){.quiet = r->quiet};
    a->told = true; // the server asks nothing when all is here
    snprintf(a->sock, sizeof(a->sock), "%s", r->sock);
    if (r->session)
        snprintf(a->session, sizeof(a->session), "%s", r->session);
    else
        link_session(a->session);
    if (name)
        snprintf(a->name, sizeof(a->name), "%s", name);
    else
        move_name(r->sock, a->name);
    int rc = r->session ? 0 : begin(r, a);
    arrival_over(r, a, rc ? MOVE_STAYED : arrival_watch(r, a));
    return a->status;
}

int cmd_pull(int argc, char **argv)
{
    static const char usage[] = "pull HOST:PORT --api-sock SOCK [--spawn] [options]\n"
                                "Starts a microVM of the snapshot that mayflyctl serve has there, "
                                "before its memory is here.\n"
                                "Exit status: 0 all is here; 1 nothing came of it; 2 wrong usage; "
                                "3 it has begun and is not\n"
                                "whole, the message says how to go on.";
    char mayfly[CTL_PATH];
    const char *rest[1], *name = NULL;
    bool help = false;
    struct link_addr to;
    struct receiver *r = calloc(1, sizeof(*r));
    struct err e = {0};

    if (!r)
        return 1;
    r->retry_s = 300;
    r->unarbitrated = true; // nobody else can own what begins here
    const struct opt o[] = {
        {"--api-sock", OPT_STR, &r->sock, "SOCK  a fresh monitor's API socket"},
        {"--spawn", OPT_FLAG, &r->spawn, "start that monitor"},
        {"--name", OPT_STR, &name, "NAME  what the server calls it (from SOCK)"},
        {"--tap", OPT_LIST, &r->taps, "IFACE=DEVICE  another tap than the snapshot's; %n: NAME"},
        {"--drive", OPT_LIST, &r->drives, "ID=PATH  another image than the snapshot's; %n: NAME"},
        {"--layer", OPT_LIST, &r->layers,
         "ID=PATH  what it writes to that drive goes there, made if missing; %n: NAME"},
        {"--any-cpu", OPT_FLAG, &r->any_cpu, "take it from another processor model"},
        {"--retry", OPT_NUM, &r->retry_s, "S  how long a broken link is mended (300)"},
        {"--session", OPT_STR, &r->session, "HEX  SOCK has begun: go on with it"},
        {"--mayfly", OPT_STR, &r->mayfly, "FILE  the monitor (beside mayflyctl)"},
        {"--allow-dir", OPT_LIST, &r->allow, "DIR  beneath which the monitor may open files"},
        {"--json", OPT_FLAG, &r->json, "the result as JSON"},
        {"--quiet", OPT_FLAG, &r->quiet, "no progress on standard error"},
        {"--help", OPT_FLAG, &help, "this"}};

    int n = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 1), rc = 2;
    if (!r->mayfly)
        r->mayfly = beside_me("mayfly", mayfly);
    bool session_ok = !r->session || (strlen(r->session) == MOVE_SESSION - 1 && !r->spawn);
    if (n != 1 || help || !r->sock || !session_ok || (name && !link_name_ok(name)))
        opts_help(help ? stdout : stderr, usage, o, ARRAY_SIZE(o)), rc = help ? 0 : 2;
    else if (r->from_text = rest[0], r->from = &to, !receiver_lists_ok(r))
        rc = 2;
    else if (link_resolve(rest[0], false, &to, &e))
        rc = ctl_fail(&e);
    else
        rc = run(r, name);
    free(r);
    return rc;
}
