// SPDX-License-Identifier: Apache-2.0
// Command-line options, one table.
#include "vmm/args.h"

#include <strings.h>

enum opt_kind {
    OPT_FLAG,
    OPT_STR,
    OPT_U64,
    OPT_OCTAL,
    OPT_LEVEL,
    OPT_DIR,
    OPT_UID,
    OPT_PASSED,
    OPT_TEXT
};

struct opt {
    const char *name;
    enum opt_kind kind;
    size_t at, size; // field of struct args
    const char *help;
};

#define F(field) offsetof(struct args, field), 0
#define T(field) offsetof(struct args, field), sizeof(((struct args *)0)->field)

static const struct opt opts[] = {
    {"--api-sock", OPT_STR, F(api_sock), "PATH  API socket (default /run/mayfly.socket)"},
    {"--allow-no-landlock", OPT_FLAG, F(allow_no_landlock), " go on where the kernel has none"},
    {"--api-sock-mode", OPT_OCTAL, F(socket_mode), "MODE  its mode, octal (default 0600)"},
    {"--allow-uid", OPT_UID, F(uids), "UID  only these users may connect; repeatable"},
    {"--allow-dir", OPT_DIR, F(dirs), "DIR  paths must lie beneath; repeatable"},
    {"--boot-timer", OPT_FLAG, F(boot_timer), " log the guest's boot time"},
    {"--config-file", OPT_STR, F(config_file), "PATH  configure and start from a JSON file"},
    {"--help", OPT_FLAG, F(help), " print this and end"},
    {"--http-api-max-payload-size", OPT_U64, F(max_payload), "BYTES  longest request body (51200)"},
    {"--id", OPT_STR, F(id), "ID  name of the microVM (default anonymous-instance)"},
    {"--level", OPT_LEVEL, F(logger.level), "LEVEL  Off, Error, Warning, Info, Debug, Trace"},
    {"--log-path", OPT_TEXT, T(logger.log_path),
     "PATH  log file or FIFO (default: standard output)"},
    {"--metrics-path", OPT_STR, F(metrics_path), "PATH  metrics file or FIFO"},
    {"--module", OPT_TEXT, T(logger.module), "NAME  accepted; Mayfly's log has no modules"},
    {"--no-api", OPT_FLAG, F(no_api), " no socket; needs --config-file"},
    {"--no-seccomp", OPT_FLAG, F(no_seccomp), " accepted; filters stay on but in debug builds"},
    {"--parent-cpu-time-us", OPT_U64, F(parent_cpu_us), "N  CPU time of the jailer"},
    {"--show-level", OPT_FLAG, F(logger.show_level), " level in every log line"},
    {"--show-log-origin", OPT_FLAG, F(logger.show_log_origin), " file and line in every log line"},
    {"--passed-fd", OPT_PASSED, F(passed),
     "NAME=N  a descriptor handed over: kvm, api, ...; repeatable"},
    {"--start-time-cpu-us", OPT_U64, F(start_cpu_us), "N  CPU clock at the start of the jailer"},
    {"--start-time-us", OPT_U64, F(start_time_us), "N  clock at the start of the jailer"},
    {"--version", OPT_FLAG, F(version), " print the version and end"},
};

static const struct {
    const char *name, *what;
} never[] = {
    // Firecracker's, for what Mayfly does not have
    {"--metadata", "metadata service (MMDS)"},
    {"--mmds-size-limit", "metadata service (MMDS)"},
    {"--enable-pci", "PCI"},
    {"--seccomp-filter", "filters from files: its own are built in"},
    {"--snapshot-version", "other format: docs/snapshot-format.md"},
    {"--describe-snapshot", "describing of its own: mayflyctl snapshot describe"},
};

static int parse_u64(const char *s, int base, uint64_t max, uint64_t *out)
{
    char *end;

    errno = 0;
    unsigned long long v = strtoull(s, &end, base);
    if (*s < '0' || *s > '9' || *end || errno || v > max)
        return -EINVAL;
    *out = v;
    return 0;
}

int args_level(const char *s, enum log_level *out)
{
    static const struct {
        const char *name;
        enum log_level lv;
    } names[] = {{"Off", LOG_OFF},    {"Error", LOG_ERROR}, {"Warning", LOG_WARN},
                 {"Warn", LOG_WARN},  {"Info", LOG_INFO},   {"Debug", LOG_DEBUG},
                 {"Trace", LOG_TRACE}};

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (!strcasecmp(s, names[i].name)) {
            *out = names[i].lv;
            return 0;
        }
    }
    return -EINVAL;
}

static int take(struct args *a, const struct opt *o, const char *v, struct err *e)
{
    void *at = (char *)a + o->at;
    uint64_t n = 0;
    int rc = 0;

    switch (o->kind) {
    case OPT_FLAG:
        *(bool *)at = true;
        break;
    case OPT_STR:
        *(const char **)at = v;
        break;
    case OPT_TEXT:
        if (strlen(v) >= o->size)
            return err_set(e, EINVAL, "%s: longer than %zu bytes", o->name, o->size - 1);
        memcpy(at, v, strlen(v) + 1);
        break;
    case OPT_U64:
        rc = parse_u64(v, 10, UINT64_MAX, at);
        break;
    case OPT_OCTAL:
        rc = parse_u64(v, 8, 0777, &n);
        a->socket_mode = (unsigned)n;
        break;
    case OPT_PASSED:
        if (a->npassed == ARGS_MAX_PASSED)
            return err_set(e, EINVAL, "%s: no more than %d", o->name, ARGS_MAX_PASSED);
        a->passed[a->npassed++] = v;
        break;
    case OPT_LEVEL:
        rc = args_level(v, at);
        a->logger.has_level = true;
        break;
    case OPT_DIR:
        if (a->ndirs == ARGS_MAX_DIRS || v[0] != '/')
            return err_set(e, EINVAL, "%s: up to %d absolute paths", o->name, ARGS_MAX_DIRS);
        a->dirs[a->ndirs++] = v;
        break;
    case OPT_UID:
        rc = a->nuids == ARGS_MAX_UIDS ? -EINVAL : parse_u64(v, 10, UINT32_MAX - 1, &n);
        if (rc == 0)
            a->uids[a->nuids++] = (uint32_t)n;
        break;
    }
    return rc ? err_set(e, EINVAL, "%s: bad value '%.80s'", o->name, v) : 0;
}

static const struct opt *find(const char *arg, size_t n)
{
    for (size_t i = 0; i < ARRAY_SIZE(opts); i++) {
        if (strlen(opts[i].name) == n && !memcmp(opts[i].name, arg, n))
            return &opts[i];
    }
    return NULL;
}

static int check(struct args *a, struct err *e)
{
    a->logger.has_show_level = a->logger.show_level;
    a->logger.has_show_log_origin = a->logger.show_log_origin;
    a->has_logger = a->logger.log_path[0] || a->logger.has_level || a->logger.show_level ||
                    a->logger.show_log_origin || a->logger.module[0];
    size_t n = strlen(a->id);
    if (n == 0 || n > CFG_ID_MAX)
        return err_set(e, EINVAL, "--id: 1 to %d characters", CFG_ID_MAX);
    for (const char *p = a->id; *p; p++) {
        if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') ||
              *p == '-'))
            return err_set(e, EINVAL, "--id: only letters, digits and '-'");
    }
    if (a->no_api && !a->config_file)
        return err_set(e, EINVAL, "--no-api needs --config-file");
    if (a->max_payload == 0 || a->max_payload > 16 * MIB)
        return err_set(e, EINVAL, "--http-api-max-payload-size: 1 to 16777216 bytes");
    return 0;
}

int args_parse(int argc, char **argv, struct args *a, struct err *e)
{
    memset(a, 0, sizeof(*a));
    a->id = "anonymous-instance";
    a->api_sock = "/run/mayfly.socket";
    a->socket_mode = 0600;
    a->max_payload = 51200;
    for (int i = 1; i < argc; i++) {
        const char *eq = strchr(argv[i], '=');
        size_t n = eq ? (size_t)(eq - argv[i]) : strlen(argv[i]);
        const struct opt *o = find(argv[i], n);
        for (size_t k = 0; !o && k < ARRAY_SIZE(never); k++)
            if (strlen(never[k].name) == n && !memcmp(argv[i], never[k].name, n))
                return err_set(e, EINVAL, "%s: Mayfly has no %s", never[k].name, never[k].what);
        if (!o)
            return err_set(e, EINVAL, "unknown option '%.80s'", argv[i]);
        if (o->kind == OPT_FLAG && eq)
            return err_set(e, EINVAL, "%s takes no value", o->name);
        const char *v = eq ? eq + 1 : NULL;
        if (o->kind != OPT_FLAG && !v && !(v = argv[++i]))
            return err_set(e, EINVAL, "%s needs a value", o->name);
        int rc = take(a, o, v, e);
        if (rc)
            return rc;
    }
    return check(a, e);
}

void args_help(FILE *to)
{
    fprintf(to, "usage: mayfly [options]\n");
    for (size_t i = 0; i < ARRAY_SIZE(opts); i++)
        fprintf(to, "  %s %s\n", opts[i].name, opts[i].help);
}
