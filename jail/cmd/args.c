// SPDX-License-Identifier: Apache-2.0
// Command line of mayfly-jail: the flags of Firecracker's jailer, plus --strict and what it takes.
#include "jail/cmd/jailer.h"

#define SOCK_MODE 0600

static int number(const char *flag, const char *s, uint64_t max, uint64_t *out, struct err *e)
{
    char *end;
    errno = 0;
    *out = strtoull(s, &end, 10);
    if (*s < '0' || *s > '9' || *end || errno || *out > max)
        return err_set(e, EINVAL, "%s: not a number from 0 to %llu: %.80s", flag,
                       (unsigned long long)max, s);
    return 0;
}

// A relative path whose parts are plain names: nothing that walks up or starts over.
static bool plain_path(const char *s)
{
    if (!*s || strlen(s) > 200)
        return false;
    for (const char *p = s; p; p = strchr(p, '/'), p = p ? p + 1 : NULL) {
        size_t n = strcspn(p, "/");
        if (!n || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'))
            return false;
    }
    return true;
}

static bool good_id(const char *s)
{
    size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-");
    return n >= 1 && n <= 64 && !s[n];
}

// UID:GID of the API socket.
static int sock_owner(struct args *a, const char *v, struct err *e)
{
    char uid[16];
    const char *colon = strchr(v, ':');
    uint64_t u, g;
    if (!colon || (size_t)(colon - v) >= sizeof(uid))
        return err_set(e, EINVAL, "--api-sock-owner: UID:GID, not %.80s", v);
    snprintf(uid, sizeof(uid), "%.*s", (int)(colon - v), v);
    int rc = number("--api-sock-owner", uid, UINT32_MAX - 1, &u, e);
    if (!rc)
        rc = number("--api-sock-owner", colon + 1, UINT32_MAX - 1, &g, e);
    if (!rc)
        a->sock_uid = (uid_t)u, a->sock_gid = (gid_t)g, a->has_sock_owner = true;
    return rc;
}

static int sock_mode(struct args *a, const char *v, struct err *e)
{
    size_t n = strspn(v, "01234567");
    unsigned long mode = strtoul(v, NULL, 8);
    if (!n || v[n] || n > 4 || mode > 0777)
        return err_set(e, EINVAL, "--api-sock-mode: octal, at most 0777, not %.80s", v);
    a->sock_mode = (mode_t)mode;
    return 0;
}

static int limit(struct args *a, const char *v, struct err *e)
{
    const struct {
        const char *name;
        uint64_t *to;
    } limits[] = {{"fsize=", &a->fsize},
                  {"no-file=", &a->nofile},
                  {"memlock=", &a->memlock},
                  {"nproc=", &a->nproc}};
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++)
        if (!strncmp(v, limits[i].name, strlen(limits[i].name)))
            return number("--resource-limit", v + strlen(limits[i].name), RLIM_INFINITY - 1,
                          limits[i].to, e);
    return err_set(e, EINVAL, "--resource-limit: fsize, no-file, memlock or nproc, not %.80s", v);
}

static int add(const char **list, size_t *n, const char *flag, const char *v, bool good,
               struct err *e)
{
    if (!good)
        return err_set(e, EINVAL, "%s: cannot be %.100s", flag, v);
    if (*n == MAX_LIST)
        return err_set(e, EINVAL, "%s: more than %d", flag, MAX_LIST);
    list[(*n)++] = v;
    return 0;
}

static int take(struct args *a, const char *flag, const char *v, struct err *e)
{
    const struct {
        const char *name;
        const char **to;
    } strings[] = {{"--id", &a->id},
                   {"--exec-file", &a->exec_file},
                   {"--chroot-base-dir", &a->base},
                   {"--netns", &a->netns},
                   {"--parent-cgroup", &a->parent_cgroup},
                   {"--api-sock", &a->api_sock}};
    uint64_t n = 0;
    int rc = 0;
    for (size_t i = 0; i < ARRAY_SIZE(strings); i++)
        if (!strcmp(flag, strings[i].name)) {
            *strings[i].to = v;
            return *v ? 0 : err_set(e, EINVAL, "%s is empty", flag);
        }
    if (!strcmp(flag, "--uid")) {
        rc = number(flag, v, UINT32_MAX - 1, &n, e);
        a->uid = (uid_t)n, a->has_uid = true;
    } else if (!strcmp(flag, "--gid")) {
        rc = number(flag, v, UINT32_MAX - 1, &n, e);
        a->gid = (gid_t)n, a->has_gid = true;
    } else if (!strcmp(flag, "--cgroup-version")) {
        rc = number(flag, v, 2, &n, e);
        a->cgroup_version = (unsigned)n;
        if (!rc && !n)
            rc = err_set(e, EINVAL, "--cgroup-version is 1 or 2");
    } else if (!strcmp(flag, "--cgroup")) {
        // FILE is one file of one controller: "cpu.weight"; a slash would leave the group's
        // directory.
        size_t dot = strcspn(v, "./="), eq = strcspn(v, "=/");
        bool good = dot && v[dot] == '.' && v[eq] == '=' && v[eq + 1] && eq < 100 && dot < 32;
        rc = add(a->cgroup, &a->n_cgroup, flag, v, good, e);
    } else if (!strcmp(flag, "--tap")) {
        rc = add(a->tap, &a->n_tap, flag, v, *v && strlen(v) < 16 && !strchr(v, '/'), e);
    } else if (!strcmp(flag, "--dir")) {
        const char *name = strrchr(v, '/');
        rc = add(a->dir, &a->n_dir, flag, v, *v == '/' && plain_path(name + 1), e);
    } else if (!strcmp(flag, "--allow-uid")) {
        rc = number(flag, v, UINT32_MAX - 1, &n, e);
        if (!rc)
            rc = add(a->allow_uid, &a->n_allow_uid, flag, v, true, e);
    } else if (!strcmp(flag, "--api-sock-owner")) {
        rc = sock_owner(a, v, e);
    } else if (!strcmp(flag, "--api-sock-mode")) {
        rc = sock_mode(a, v, e);
    } else if (!strcmp(flag, "--resource-limit")) {
        rc = limit(a, v, e);
    } else {
        rc = err_set(e, EINVAL, "unknown flag %.80s", flag);
    }
    return rc;
}

static int check(struct args *a, struct err *e)
{
    if (!a->id || !good_id(a->id))
        return err_set(e, EINVAL, "--id: 1 to 64 letters, digits and hyphens");
    if (!a->exec_file)
        return err_set(e, EINVAL, "--exec-file is missing");
    const char *slash = strrchr(a->exec_file, '/');
    a->exec_name = slash ? slash + 1 : a->exec_file;
    if (!plain_path(a->exec_name))
        return err_set(e, EINVAL, "--exec-file: %.100s names no file", a->exec_file);
    if (a->parent_cgroup && !plain_path(a->parent_cgroup))
        return err_set(e, EINVAL, "--parent-cgroup must be relative, without . and ..");
    if (!a->strict && (!a->has_uid || !a->has_gid))
        return err_set(e, EINVAL, "--uid and --gid are missing");
    if (a->has_uid != a->has_gid)
        return err_set(e, EINVAL, "--uid and --gid belong together");
    if (!a->strict && (a->n_tap || a->n_dir || a->api_sock || a->n_allow_uid || a->has_sock_owner ||
                       a->sock_mode != SOCK_MODE))
        return err_set(e, EINVAL, "--tap, --dir, --allow-uid and --api-sock need --strict");
    if (a->strict && !a->api_sock)
        return err_set(e, EINVAL, "--strict needs --api-sock: the jail has no place for a socket");
    // A monitor knows what it writes: none of it is a terabyte. 32 vCPUs, its own three threads, eight workers of
    // io_uring, KVM's recovery thread and the one that leaves the old root are 45 tasks.
    if (a->strict && a->fsize == RLIM_INFINITY)
        a->fsize = 1ULL << 40;
    if (a->strict && a->nproc == RLIM_INFINITY)
        a->nproc = 64;
    return 0;
}

int jail_args_parse(struct args *a, int argc, char *const *argv, struct err *e)
{
    *a = (struct args){.base = "/srv/jailer",
                       .cgroup_version = 1,
                       .sock_mode = SOCK_MODE,
                       .fsize = RLIM_INFINITY,
                       .nofile = 2048,
                       .memlock =
                           1024 * MIB, // what a ring takes counts for all monitors of one user
                       .nproc = RLIM_INFINITY};
    const struct {
        const char *name;
        bool *to;
    } flags[] = {{"--strict", &a->strict},
                 {"--daemonize", &a->daemonize},
                 {"--new-pid-ns", &a->new_pid_ns},
                 {"--version", &a->version},
                 {"--help", &a->help}};
    for (int i = 1; i < argc; i++) {
        char flag[32];
        bool done = false;
        if (!strcmp(argv[i], "--")) {
            a->rest = argv + i + 1;
            a->n_rest = (size_t)(argc - i - 1);
            break;
        }
        for (size_t f = 0; f < ARRAY_SIZE(flags); f++)
            if (!strcmp(argv[i], flags[f].name))
                *flags[f].to = done = true;
        if (done)
            continue;
        const char *eq = strchr(argv[i], '='), *v = eq ? eq + 1 : i + 1 < argc ? argv[i + 1] : NULL;
        size_t n = eq ? (size_t)(eq - argv[i]) : strlen(argv[i]);
        if (n >= sizeof(flag) || !v)
            return err_set(e, EINVAL, n >= sizeof(flag) ? "unknown flag %.80s" : "%s: no value",
                           argv[i]);
        memcpy(flag, argv[i], n);
        flag[n] = '\0';
        i += !eq;
        int rc = take(a, flag, v, e);
        if (rc)
            return rc;
    }
    if (a->n_rest > 64)
        return err_set(e, EINVAL, "more than 64 words after --");
    return a->version || a->help ? 0 : check(a, e);
}
