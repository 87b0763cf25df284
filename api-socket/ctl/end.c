// SPDX-License-Identifier: Apache-2.0
// end: takes away what clone --keep left; netns: namespaces ahead of clones.
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

#include "api-socket/ctl/clone.h"

// The number may belong to another process by now: it must still be a monitor of that name.
static bool is_monitor(pid_t pid, const char *name)
{
    char path[64], line[4096];

    snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
    _cleanup_(close_fdp) int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, line, sizeof(line) - 1);
    if (n <= 0)
        return false;
    line[n] = 0;
    for (ssize_t at = 0; at < n; at += (ssize_t)strlen(line + at) + 1)
        if (!strcmp(line + at, name))
            return true;
    return false;
}

static void end_process(pid_t pid, const char *name)
{
    // Opened before it is looked at: what is looked at is what gets the signal.
    _cleanup_(close_fdp) int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd >= 0 && is_monitor(pid, name))
        syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0);
}

// A clone's files are its name, a dot and more: socket, layers, messages.
static void remove_files(const struct job *j)
{
    DIR *d = opendir(j->dir);

    for (struct dirent *f; d && (f = readdir(d));) {
        size_t len = strcspn(f->d_name, ".");
        for (uint64_t i = 0; f->d_name[len] && i < j->n; i++)
            if (!strncmp(j->c[i].name, f->d_name, len) && !j->c[i].name[len]) {
                unlinkat(dirfd(d), f->d_name, 0);
                break;
            }
    }
    if (d)
        closedir(d);
}

int cmd_end(int argc, char **argv)
{
    char path[CTL_PATH + 16], pool[CTL_PATH];
    struct job j = {.dir = argc == 2 ? argv[1] : "-"};
    struct err e = {0};

    if (j.dir[0] == '-') {
        fprintf(stderr, "usage: mayflyctl end DIR   (the --dir of clone --keep)\n");
        return 2;
    }
    int rc = clone_list(&j, pool, &e);
    if (rc) {
        job_free(&j);
        return ctl_fail(&e);
    }
    // All are told before anything is taken away, so that they end side by side.
    for (uint64_t i = 0; i < j.n; i++)
        if (!j.c[i].pooled)
            end_process(j.c[i].pid, j.c[i].name);
    if (pool[0] && pool_release(pool, j.c, j.n, &e))
        rc = ctl_fail(&e);
    remove_files(&j);
    for (uint64_t i = 0; i < j.n; i++)
        if (j.c[i].ns_made)
            net_remove(j.c[i].name);
    snprintf(path, sizeof(path), "%s/clones", j.dir);
    unlink(path);
    rmdir(j.dir);
    job_free(&j);
    return rc;
}

struct making {
    const char *prefix;
    struct net_plan net;
    uint64_t n;
    _Atomic uint64_t next;
    bool make;
    struct err e[16];
};

struct maker {
    struct making *m;
    struct err *e;
};

static void *make_some(void *arg)
{
    struct maker *w = arg;
    char name[64];
    uint64_t i;

    while ((i = atomic_fetch_add(&w->m->next, 1)) < w->m->n && !w->e->msg[0]) {
        snprintf(name, sizeof(name), "%.40s%llu", w->m->prefix, (unsigned long long)i);
        if (w->m->make)
            net_make(name, &w->m->net, w->e);
        else
            net_remove(name);
    }
    return NULL;
}

int cmd_netns(int argc, char **argv)
{
    struct making m = {.prefix = "clone", .net = {.tap = "tap0"}, .n = 1};
    const char *rest[1] = {""}, *host = NULL, *guest = "172.16.0.2/24", *mac = NULL;
    bool help = false;
    const struct opt o[] = {
        {"--prefix", OPT_STR, &m.prefix, "NAME  NAME0, NAME1, ... (clone)"},
        {"-n", OPT_NUM, &m.n, "N  how many (1)"},
        {"--tap", OPT_STR, &m.net.tap, "NAME  the tap in each (tap0)"},
        {"--guest", OPT_STR, &guest, "IP/LEN  the guest's address"},
        {"--host", OPT_STR, &host, "IP  the tap's (the first of the net)"},
        {"--guest-mac", OPT_STR, &mac, "MAC  known, so that nobody asks for it"},
        {"--help", OPT_FLAG, &help, "this"}};
    pthread_t t[4];
    struct maker w[4];
    struct err e = {0};
    uint64_t from = now_ns();
    int rc = 0;

    int n = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 1);
    m.make = !strcmp(rest[0], "make");
    if (n != 1 || help || (!m.make && strcmp(rest[0], "remove"))) {
        opts_help(help ? stdout : stderr, "netns make|remove [options]", o, ARRAY_SIZE(o));
        return help ? 0 : 2;
    }
    if (net_parse(&m.net, host, guest, &e))
        return ctl_fail(&e);
    m.net.has_guest_mac = mac != NULL;
    if (mac && cfg_parse_mac(mac, m.net.guest_mac)) {
        err_set(&e, EINVAL, "--guest-mac: AA:BB:CC:DD:EE:FF, not %.40s", mac);
        return ctl_fail(&e);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
        w[i] = (struct maker){&m, &m.e[i]};
        if (pthread_create(&t[i], NULL, make_some, &w[i]))
            return 1;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
        pthread_join(t[i], NULL);
        if (m.e[i].msg[0])
            rc = ctl_fail(&m.e[i]);
    }
    if (rc == 0)
        printf("%llu namespaces %s in %.1f ms\n", (unsigned long long)m.n,
               m.make ? "made" : "removed", (double)(now_ns() - from) / 1e6);
    return rc;
}
