// SPDX-License-Identifier: Apache-2.0
// ask: one HTTP request to every clone that clone --keep left, from inside its namespace.
#include "api-socket/ctl/clone.h"

int clone_list(struct job *j, char pool[CTL_PATH], struct err *e)
{
    char path[CTL_PATH + 16], line[512], ns[8];
    uint64_t room = 0;

    pool[0] = 0;
    snprintf(path, sizeof(path), "%s/clones", j->dir);
    FILE *f = fopen(path, "re");
    if (!f)
        return err_set(e, errno, "cannot open %s: %s", path, strerror(errno));
    while (fgets(line, sizeof(line), f)) {
        if (j->n == room) {
            room = room ? 2 * room : 64;
            struct clone *more = realloc(j->c, room * sizeof(*more));
            if (!more) {
                fclose(f);
                return err_set(e, ENOMEM, "out of memory");
            }
            j->c = more;
        }
        struct clone *c = &j->c[j->n];
        *c = (struct clone){.api = -1, .probe = -1};
        int n = sscanf(line, "%63s %d %7s pool=%255s", c->name, &c->pid, ns, pool);
        c->ns_made = n >= 3 && !strcmp(ns, "ns");
        c->pooled = n == 4;
        j->n += n >= 3;
    }
    fclose(f);
    return j->n ? 0 : err_set(e, ENOENT, "%s names no clone", path);
}

int cmd_ask(int argc, char **argv)
{
    const char *host = NULL, *guest = "172.16.0.2/24", *rest[1];
    char pool[CTL_PATH];
    bool help = false;
    struct job j = {.again = true,
                    .get = "/",
                    .port = 80,
                    .timeout_s = 10,
                    .window = 256,
                    .workers = 2,
                    .net = {.tap = "tap0"}};
    const struct opt o[] = {
        {"--guest", OPT_STR, &guest, "IP/LEN  as for clone"},
        {"--port", OPT_NUM, &j.port, "N  as for clone (80)"},
        {"--get", OPT_STR, &j.get, "PATH  what is asked of each (/)"},
        {"--table", OPT_FLAG, &j.table, "a row for every clone (else up to 40)"},
        {"--json", OPT_FLAG, &j.json, "the result as JSON"},
        {"--timeout", OPT_NUM, &j.timeout_s, "S  as for clone (10)"},
        {"--window", OPT_NUM, &j.window, "N  as for clone (256)"},
        {"--help", OPT_FLAG, &help, "this"}};
    struct err e = {0};

    int n = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 1);
    if (n != 1 || help || j.port < 1 || j.port > 65535 || j.window < 1) {
        opts_help(help ? stdout : stderr, "ask DIR [options]   (the --dir of clone --keep)", o,
                  ARRAY_SIZE(o));
        return help ? 0 : 2;
    }
    j.dir = rest[0];
    raise_limits();
    int rc = net_parse(&j.net, host, guest, &e);
    if (rc == 0)
        rc = clone_list(&j, pool, &e);
    if (rc == 0)
        rc = clone_run(&j, &e);
    if (rc == 0)
        show_result(&j);
    job_free(&j);
    return rc ? ctl_fail(&e) : j.failed != 0;
}
