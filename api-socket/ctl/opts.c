// SPDX-License-Identifier: Apache-2.0
// Options of every subcommand: --name VALUE, --name=VALUE, anywhere among the arguments. "-" alone is none.
#include "api-socket/ctl/ctl.h"

static const struct opt *find(const struct opt *o, size_t n, const char *arg, size_t len)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(o[i].name) == len && !memcmp(o[i].name, arg, len))
            return &o[i];
    return NULL;
}

static bool take(const struct opt *o, const char *v)
{
    struct opt_list *l = o->at;
    char *end;

    switch (o->kind) {
    case OPT_FLAG:
        *(bool *)o->at = true;
        return true;
    case OPT_STR:
        *(const char **)o->at = v;
        return true;
    case OPT_LIST:
        if (l->n == ARRAY_SIZE(l->v))
            return false;
        l->v[l->n++] = v;
        return true;
    case OPT_NUM:
        errno = 0;
        *(uint64_t *)o->at = strtoull(v, &end, 10);
        return *v >= '0' && *v <= '9' && !*end && !errno;
    }
    return false;
}

int opts_parse(const struct opt *o, size_t n, int argc, char **argv, const char **rest, int max)
{
    int k = 0;

    for (int i = 0; i < argc; i++) {
        const char *a = argv[i], *eq = strchr(a, '=');
        if (a[0] != '-' || !a[1]) {
            if (k == max) {
                fprintf(stderr, "mayflyctl: one argument too many: %s\n", a);
                return -1;
            }
            rest[k++] = a;
            continue;
        }
        const struct opt *f = find(o, n, a, eq ? (size_t)(eq - a) : strlen(a));
        const char *v = eq ? eq + 1 : NULL;
        if (f && f->kind != OPT_FLAG && !v)
            v = ++i < argc ? argv[i] : NULL;
        if (!f || (f->kind == OPT_FLAG ? eq != NULL : !v) || !take(f, v)) {
            fprintf(stderr, "mayflyctl: %s %s\n", f ? "bad or missing value for" : "unknown option",
                    a);
            return -1;
        }
    }
    return k;
}

void opts_help(FILE *to, const char *usage, const struct opt *o, size_t n)
{
    fprintf(to, "usage: mayflyctl %s\n", usage);
    for (size_t i = 0; i < n; i++)
        fprintf(to, "  %-18s %s\n", o[i].name, o[i].help);
}

int ctl_fail(const struct err *e)
{
    fprintf(stderr, "mayflyctl: %s\n", e->msg);
    return 1;
}
