// SPDX-License-Identifier: Apache-2.0
// drain: every microVM of a directory of sockets to another host, some at a time.
#include <dirent.h>
#include <sys/stat.h>

#include "api-socket/ctl/mig.h"

#define DRAIN_MAX 4096
#define AT_ONCE   32

struct one {
    char sock[CTL_PATH];
    bool tried, skipped; // skipped: no microVM runs behind that socket
    struct move m;
};

struct drain {
    struct move_how how;
    struct link_addr to;
    const char *dir;
    uint64_t at_once;
    bool json, quiet;
    int signals;
    pthread_mutex_t lock; // for what follows
    unsigned n, next, done, failed;
    struct one *v;
};

static int by_name(const void *a, const void *b)
{
    const struct one *x = a, *y = b;
    return strcmp(x->sock, y->sock);
}

static int list(struct drain *d, struct err *e)
{
    DIR *dir = opendir(d->dir);
    unsigned room = 0;

    if (!dir)
        return err_set(e, errno, "cannot open %.150s: %s", d->dir, strerror(errno));
    for (struct dirent *f; (f = readdir(dir)) && d->n < DRAIN_MAX;) {
        struct stat st;
        char sock[CTL_PATH + 260];
        snprintf(sock, sizeof(sock), "%s/%s", d->dir, f->d_name);
        if (stat(sock, &st) || !S_ISSOCK(st.st_mode) || strlen(sock) >= CTL_PATH)
            continue;
        if (d->n == room) {
            room = room ? 2 * room : 16;
            struct one *more = realloc(d->v, room * sizeof(*more));
            if (!more) {
                closedir(dir);
                return err_set(e, ENOMEM, "out of memory");
            }
            d->v = more;
        }
        struct one *o = &d->v[d->n++];
        *o = (struct one){0};
        memcpy(o->sock, sock, strlen(sock) + 1);
    }
    closedir(dir);
    if (d->n)
        qsort(d->v, d->n, sizeof(*d->v), by_name);
    return 0;
}

// Under the lock.
static void progress(const struct drain *d)
{
    char say[80];

    snprintf(say, sizeof(say), "%u of %u, %u failed", d->done, d->n, d->failed);
    if (!d->quiet)
        show_bar(d->done, d->n, say);
}

static void move_one(struct drain *d, struct one *o)
{
    char state[16], say[400];
    struct err e = {0};

    o->m = (struct move){.how = &d->how, .to = d->to, .sock = o->sock, .signals = d->signals};
    o->m.show.quiet = true; // several at a time: a line when one is over
    move_name(o->sock, o->m.name);
    o->tried = true;
    int rc = view_vm_state(o->sock, state, &e);
    o->skipped = rc == 0 ? !strcmp(state, "Not started") : rc == -ECONNREFUSED || rc == -ENOENT;
    if (o->skipped)
        o->m.e = e;
    else
        move_run(&o->m);
    pthread_mutex_lock(&d->lock);
    d->done++;
    d->failed += o->m.status != MOVE_OK;
    struct show s = {.quiet = d->quiet || isatty(STDERR_FILENO)};
    snprintf(say, sizeof(say), "%s%s%.250s (%u of %u)",
             o->skipped               ? "no microVM"
             : o->m.status == MOVE_OK ? "moved"
                                      : "not moved",
             o->m.e.msg[0] ? ": " : "", o->m.e.msg, d->done, d->n);
    show_line(&s, o->m.name, say);
    progress(d);
    pthread_mutex_unlock(&d->lock);
}

static void *work(void *arg)
{
    struct drain *d = arg;

    for (;;) {
        pthread_mutex_lock(&d->lock);
        struct one *o = d->next < d->n && !stop_asked(d->signals) ? &d->v[d->next++] : NULL;
        pthread_mutex_unlock(&d->lock);
        if (!o)
            return NULL;
        move_one(d, o);
    }
}

static const char *result(const struct one *o)
{
    static const char *const words[] = {"moved", "stayed", "", "between"};

    return !o->tried ? "not tried" : o->skipped ? "no microVM" : words[o->m.status];
}

static void table(const struct drain *d, double total_ms)
{
    unsigned moved = 0, skipped = 0;

    if (d->n)
        printf("%-24s %-10s %10s %12s %11s  %s\n", "microVM", "result", "total ms", "downtime ms",
               "recoveries", "why");
    for (unsigned i = 0; i < d->n; i++) {
        const struct one *o = &d->v[i];
        bool ok = o->tried && !o->skipped && o->m.status == MOVE_OK;
        char name[MOVE_NAME];
        move_name(o->sock, name);
        moved += ok;
        skipped += o->skipped;
        printf("%-24s %-10s ", name, result(o));
        if (ok)
            printf("%10.1f %12.1f %11llu", (double)o->m.total_ns / 1e6,
                   (double)o->m.v.downtime_us / 1e3, (unsigned long long)o->m.v.recoveries);
        else
            printf("%10s %12s %11s  ", "-", "-", "-");
        print_text(stdout, o->m.e.msg);
        putchar('\n');
    }
    printf("%u of %u microVMs moved in %.1f ms\n", moved, d->n - skipped, total_ms);
}

static void json(const struct drain *d, double total_ms)
{
    unsigned moved = 0;

    for (unsigned i = 0; i < d->n; i++)
        moved += d->v[i].tried && !d->v[i].skipped && d->v[i].m.status == MOVE_OK;
    printf("{\"moved\":%u,\"total_ms\":%.3f,\"each\":[", moved, total_ms);
    for (unsigned i = 0; i < d->n; i++) {
        const struct one *o = &d->v[i];
        if (i)
            putchar(',');
        if (o->tried && !o->skipped) {
            move_json(&o->m);
            continue;
        }
        char name[MOVE_NAME];
        move_name(o->sock, name);
        printf("{\"name\":");
        print_string(stdout, name);
        printf(",\"result\":\"%s\"}", result(o));
    }
    printf("]}\n");
}

static int run(struct drain *d)
{
    uint64_t from = now_ns();
    pthread_t t[AT_ONCE];
    unsigned n = 0;
    int rc = MOVE_OK;

    raise_limits();
    d->signals = stop_watch();
    pthread_mutex_init(&d->lock, NULL);
    progress(d);
    while (n < MIN(d->at_once, d->n) && move_thread(work, d, &t[n]) == 0)
        n++;
    for (unsigned i = 0; i < n; i++)
        pthread_join(t[i], NULL);
    if (!d->quiet && isatty(STDERR_FILENO))
        putc('\n', stderr);
    (d->json ? json : table)(d, (double)(now_ns() - from) / 1e6);
    for (unsigned i = 0; i < d->n; i++)
        rc = MAX(rc, d->v[i].tried ? d->v[i].m.status : MOVE_STAYED);
    return rc;
}

int cmd_drain(int argc, char **argv)
{
    static const char usage[] =
        "drain DIR --to HOST:PORT --arbiter-dir DIR [options]\n"
        "There waits: mayflyctl receive --listen :PORT --dir DIR --arbiter-dir DIR\n"
        "Exit status: 0 all moved; 1 some stayed where they were; 2 wrong usage; 3 some are "
        "between\n"
        "the hosts, the table says how to go on.";
    const char *to = NULL, *rest[1];
    bool help = false;
    struct drain d = {.at_once = 2};
    struct err e = {0};

    move_defaults(&d.how);
    struct opt o[MOVE_OPTS + 6] = {
        {"--to", OPT_STR, &to, "HOST:PORT  where mayflyctl receive --dir waits"},
        {"-n", OPT_NUM, &d.at_once, "N  how many at a time (2)"},
        {"--arbiter-dir", OPT_STR, &d.how.arbiters, "DIR  records that both reach, NAME.arbiter"},
        {"--json", OPT_FLAG, &d.json, "the report as JSON"},
        {"--quiet", OPT_FLAG, &d.quiet, "no progress on standard error"},
        {"--help", OPT_FLAG, &help, "this"}};
    move_options(&d.how, o + 6);

    int n = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 1), rc = 2;
    if (n != 1 || help || !to || d.at_once < 1 || d.at_once > AT_ONCE)
        opts_help(help ? stdout : stderr, usage, o, ARRAY_SIZE(o)), rc = help ? 0 : 2;
    else if (move_check(&d.how))
        rc = 2;
    else {
        d.dir = rest[0];
        rc = link_resolve(to, false, &d.to, &e);
        if (rc == 0)
            rc = list(&d, &e);
        rc = rc ? ctl_fail(&e) : run(&d);
    }
    free(d.v);
    return rc;
}
