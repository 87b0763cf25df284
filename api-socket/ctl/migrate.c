// SPDX-License-Identifier: Apache-2.0
// migrate: one microVM to a host where mayflyctl receive waits for it.
#include "api-socket/ctl/mig.h"

void move_defaults(struct move_how *h)
{
    *h = (struct move_how){.mode = "hybrid", .retry_s = 60, .buffer = 256};
}

void move_options(struct move_how *h, struct opt o[MOVE_OPTS])
{
    const struct opt all[MOVE_OPTS] = {
        {"--mode", OPT_STR, &h->mode, "precopy|postcopy|hybrid  (hybrid)"},
        {"--unarbitrated", OPT_FLAG, &h->unarbitrated, "no record: a person decides if it breaks"},
        {"--downtime", OPT_NUM, &h->downtime_ms, "MS  pre-copy ends when the rest fits (300)"},
        {"--bandwidth", OPT_NUM, &h->bandwidth, "MIB  the most a second (no limit)"},
        {"--timeout", OPT_NUM, &h->timeout_ms, "MS  for pre-copy (600000)"},
        {"--on-timeout", OPT_STR, &h->late, "cancel|postcopy  what happens then (cancel)"},
        {"--verify", OPT_STR, &h->verify, "pages|ram  ram compares all memory besides (pages)"},
        {"--retry", OPT_NUM, &h->retry_s, "S  how long a broken link is mended (60)"},
        {"--bulk-buffer", OPT_NUM, &h->buffer, "KIB  SO_SNDBUF of the bulk connection (256)"},
        {"--keep", OPT_FLAG, &h->keep, "do not finalize: the source's process stays"},
    };
    memcpy(o, all, sizeof(all));
}

static bool one_of(const char *what, const char *const words[])
{
    for (; *words; words++)
        if (!strcmp(what, *words))
            return true;
    return false;
}

int move_check(const struct move_how *h)
{
    const char *wrong = NULL;

    if (!one_of(h->mode, (const char *const[]){"precopy", "postcopy", "hybrid", NULL}))
        wrong = "--mode: precopy, postcopy or hybrid";
    else if (h->late && !one_of(h->late, (const char *const[]){"cancel", "postcopy", NULL}))
        wrong = "--on-timeout: cancel or postcopy";
    else if (h->verify && !one_of(h->verify, (const char *const[]){"pages", "ram", NULL}))
        wrong = "--verify: pages or ram";
    else if (!h->arbiter && !h->arbiters && !h->unarbitrated)
        wrong = "an arbiter is wanted, a file on storage that both hosts reach; or --unarbitrated";
    else if ((h->arbiter || h->arbiters) && h->unarbitrated)
        wrong = "an arbiter, or --unarbitrated: not both";
    else if (h->buffer > 1024 * 1024)
        wrong = "--bulk-buffer: at most 1048576";
    if (wrong)
        fprintf(stderr, "mayflyctl: %s\n", wrong);
    return wrong ? -1 : 0;
}

static void report(const struct move *m, bool json)
{
    if (json) {
        move_json(m);
        putchar('\n');
    } else if (m->status == MOVE_OK)
        printf("%s moved in %.1f ms, paused for %.1f ms: %.1f MiB in %llu pages, %llu asked for, "
               "%llu recoveries\n",
               m->name, (double)m->total_ns / 1e6, (double)m->v.downtime_us / 1e3,
               (double)m->v.bytes / (double)MIB, (unsigned long long)m->v.pages,
               (unsigned long long)m->v.requests, (unsigned long long)m->v.recoveries);
    if (m->status != MOVE_OK) {
        fprintf(stderr, "mayflyctl: %s: %s: ", m->name,
                m->status == MOVE_STAYED ? "not moved" : "between the hosts");
        print_text(stderr, m->e.msg);
        putc('\n', stderr);
    }
}

int cmd_migrate(int argc, char **argv)
{
    static const char usage[] = "migrate HOST:PORT --api-sock SOCK --arbiter PATH [options]\n"
                                "Exit status: 0 moved; 1 not moved, it is where it was; 2 wrong "
                                "usage; 3 between the hosts,\n"
                                "both keep what they have and the message says how to go on.";
    struct move_how h;
    const char *rest[1], *name = NULL, *session = NULL;
    bool help = false, json = false;
    struct move *m = calloc(1, sizeof(*m));

    if (!m)
        return 1;
    move_defaults(&h);
    struct opt o[MOVE_OPTS + 7] = {
        {"--api-sock", OPT_STR, &m->sock, "SOCK  the monitor's API socket"},
        {"--arbiter", OPT_STR, &h.arbiter, "PATH  the record, on storage that both hosts reach"},
        {"--name", OPT_STR, &name, "NAME  what it is called there (from SOCK)"},
        {"--session", OPT_STR, &session, "HEX  go on with one that is under way"},
        {"--json", OPT_FLAG, &json, "the result as JSON"},
        {"--quiet", OPT_FLAG, &m->show.quiet, "no progress on standard error"},
        {"--help", OPT_FLAG, &help, "this"}};
    move_options(&h, o + 7);

    int n = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 1), rc = 2;
    struct err e = {0};
    m->how = &h;
    if (n != 1 || help || !m->sock || (session && strlen(session) != MOVE_SESSION - 1))
        opts_help(help ? stdout : stderr, usage, o, ARRAY_SIZE(o)), rc = help ? 0 : 2;
    else if (move_check(&h))
        rc = 2;
    else if (link_resolve(rest[0], false, &m->to, &e))
        rc = ctl_fail(&e);
    else {
        move_name(m->sock, m->name);
        if (name)
            snprintf(m->name, sizeof(m->name), "%s", name);
        if (session)
            snprintf(m->session, sizeof(m->session), "%s", session);
        m->again = session != NULL;
        m->signals = stop_watch();
        move_run(m);
        report(m, json);
        rc = m->status;
    }
    free(m);
    return rc;
}
