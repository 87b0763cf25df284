// SPDX-License-Identifier: Apache-2.0
// pool: the command line.
#include "api-socket/ctl/pool.h"

static int client(const char *what, const char *dir, uint64_t n, bool pids, const char *pid,
                  struct err *e)
{
    struct clone *c = calloc(n, sizeof(*c));
    int rc = c ? 0 : -ENOMEM;

    if (rc == 0 && !strcmp(what, "status"))
        rc = pool_status(dir, e);
    else if (rc == 0 && !strcmp(what, "take"))
        rc = pool_take(dir, c, n, e);
    else if (rc == 0) {
        c->pooled = true;
        c->pid = atoi(pid);
        rc = pool_release(dir, c, 1, e);
    }
    for (uint64_t i = 0; rc == 0 && !strcmp(what, "take") && i < n; i++) {
        if (pids)
            printf("%d ", c[i].pid);
        printf("%s\n", c[i].sock);
    }
    free(c);
    return rc;
}

int cmd_pool(int argc, char **argv)
{
    static const char usage[] =
        "pool --dir DIR --size N [options]       keep N idle monitors\n"
        "       mayflyctl pool take --dir DIR [-n N] [--pid]     socket paths of N of them\n"
        "       mayflyctl pool release PID --dir DIR             end one that was taken\n"
        "       mayflyctl pool status --dir DIR";
    char mayfly[CTL_PATH], jail[CTL_PATH];
    const char *rest[2] = {"run", ""};
    struct pool *p = calloc(1, sizeof(*p));
    bool help = false, pids = false;
    uint64_t n = 1;
    struct err e = {0};

    if (!p)
        return 1;
    *p = (struct pool){.dir = "/run/mayfly/pool", .size = 4, .mem = 128, .vcpus = 1};
    const struct opt o[] = {
        {"--dir", OPT_STR, &p->dir, "DIR  the pool's folder (/run/mayfly/pool)"},
        {"--size", OPT_NUM, &p->size, "N  how many are kept idle (4)"},
        {"--mem", OPT_NUM, &p->mem, "MIB  memory each is prepared for (128)"},
        {"--vcpus", OPT_NUM, &p->vcpus, "K  vCPUs each is prepared for (1)"},
        {"--jail", OPT_FLAG, &p->jailed,
         "each in a strict jail: all is handed over as descriptors"},
        {"--uid", OPT_STR, &p->uid, "U  jail: the monitors' user"},
        {"--gid", OPT_STR, &p->gid, "G  jail: the monitors' group"},
        {"--own-uids", OPT_FLAG, &p->own_uids, "jail: each shell has a user of its own, from U on"},
        {"--jail-flag", OPT_LIST, &p->flags,
         "FLAG=VALUE  a flag for mayfly-jail: --cgroup=pids.max=64; repeatable"},
        {"--allow", OPT_LIST, &p->allow,
         "DIR  jail: a directory to be seen inside as /NAME; repeatable"},
        {"--mayfly", OPT_STR, &p->mayfly, "FILE  the monitor (beside mayflyctl)"},
        {"-n", OPT_NUM, &n, "N  take: how many (1)"},
        {"--pid", OPT_FLAG, &pids, "take: process numbers before the paths"},
        {"--help", OPT_FLAG, &help, "this"}};

    int k = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 2), rc;
    if (!p->mayfly)
        p->mayfly = beside_me("mayfly", mayfly);
    p->jail = beside_me("mayfly-jail", jail);
    bool serve = !strcmp(rest[0], "run");
    bool known = serve || !strcmp(rest[0], "take") || !strcmp(rest[0], "status") ||
                 (!strcmp(rest[0], "release") && k == 2);
    if (k < 0 || help || !known || p->size > SHELLS_MAX / 2 || n < 1 || n > SHELLS_MAX)
        opts_help(help ? stdout : stderr, usage, o, ARRAY_SIZE(o)), rc = help ? 0 : 2;
    else if (p->jailed && serve && (!p->uid != !p->gid || (!p->uid && !geteuid())))
        err_set(&e, EINVAL, "--jail: --uid and --gid, or both left out by who is not root"),
            rc = ctl_fail(&e);
    else
        rc = (serve ? pool_serve(p, &e) : client(rest[0], p->dir, n, pids, rest[1], &e))
                 ? ctl_fail(&e)
                 : 0;
    free(p);
    return rc;
}
