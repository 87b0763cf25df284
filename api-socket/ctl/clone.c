// SPDX-License-Identifier: Apache-2.0
// clone and end: the command line, what is made before and what is left after.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "api-socket/ctl/clone.h"

#define TEXT_MAX (1 * MIB)

static int read_snapshot(struct job *j, struct err *e)
{
    struct snap_blob b;
    uint8_t *buf = malloc(SNAP_STATE_MAX);

    j->state_fd = open(j->state, O_RDONLY | O_CLOEXEC);
    j->mem_fd = j->state_fd < 0 ? -1 : open(j->mem, O_RDONLY | O_CLOEXEC);
    ssize_t n = j->mem_fd < 0 || !buf ? -1 : pread(j->state_fd, buf, SNAP_STATE_MAX, 0);
    int rc = n < 0 ? err_set(e, errno, "cannot read %s: %s", j->state_fd < 0 ? j->state : j->mem,
                             strerror(errno))
                   : codec_decode(buf, (size_t)n, &b, &j->saved, e);
    free(buf);
    for (unsigned i = 0; rc == 0 && i < j->saved->ndevs; i++) {
        const struct saved_dev *d = &j->saved->dev[i];
        const char *id = d->kind == SAVED_NET ? d->net.cfg.iface_id : d->blk.cfg.drive_id;
        rc = cfg_check_id(id, "the snapshot", e); // it goes into a request
        if (rc || d->kind != SAVED_NET)
            continue;
        if (j->nnets == 0 && d->net.cfg.has_mac) {
            memcpy(j->net.guest_mac, d->net.cfg.guest_mac, 6);
            j->net.has_guest_mac = true;
        }
        j->nets[j->nnets++] = id;
    }
    j->no_get |= rc == 0 && j->nnets == 0;
    return rc;
}

static int add_dir(struct job *j, const char *file, struct err *e)
{
    char *dir = whole_path(file), *slash = dir ? strrchr(dir, '/') : NULL;

    if (!slash)
        return err_set(e, errno, "%s: %s", file, strerror(errno));
    slash[slash == dir] = 0;
    for (unsigned i = 0; i < j->dirs.n; i++)
        if (!strcmp(j->dirs.v[i], dir)) {
            free(dir);
            return 0;
        }
    if (j->dirs.n == ARRAY_SIZE(j->dirs.v)) {
        free(dir);
        return err_set(e, E2BIG, "--allow-dir: at most %zu", ARRAY_SIZE(j->dirs.v) - 2);
    }
    j->dirs.v[j->dirs.n++] = dir;
    return 0;
}

// Which images there are is said by the state file, and whoever wrote that may have named any file of this host. So
// clones look into the folders of the snapshot's two files, and into those that the caller names.
static int find_dirs(struct job *j, struct err *e)
{
    char path[CTL_PATH];
    int rc = 0;

    for (unsigned i = 0; i < j->allow.n && rc == 0; i++) {
        snprintf(path, sizeof(path), "%.250s/.", j->allow.v[i]);
        rc = add_dir(j, path, e);
    }
    if (rc == 0)
        rc = add_dir(j, j->state, e);
    if (rc == 0)
        rc = add_dir(j, j->mem, e);
    for (unsigned i = 0; i < j->saved->ndevs && rc == 0; i++) {
        const struct drive_cfg *d = &j->saved->dev[i].blk.cfg;
        if (j->saved->dev[i].kind != SAVED_BLK || (j->data && !strcmp(d->drive_id, j->data_drive)))
            continue;
        rc = image_allowed(j, d->path_on_host, e);
        if (rc == 0 && d->cow_path[0] && strncmp(d->cow_path, "fd:", 3))
            rc = image_allowed(j, d->cow_path, e);
    }
    return rc;
}

static int read_data(struct job *j, struct err *e)
{
    struct stat st;
    bool found = false;

    if (!j->data)
        return 0;
    for (unsigned i = 0; i < j->saved->ndevs; i++) {
        const struct saved_dev *d = &j->saved->dev[i];
        if (d->kind != SAVED_BLK || strcmp(d->blk.cfg.drive_id, j->data_drive))
            continue;
        found = d->blk.cfg.is_read_only;
    }
    if (!found)
        return err_set(e, EINVAL, "--data: the snapshot has no read-only drive '%s' (--data-drive)",
                       j->data_drive);
    if (stat(j->data, &st) == 0 && S_ISDIR(st.st_mode))
        return 0;
    _cleanup_(close_fdp) int fd =
        strcmp(j->data, "-") ? open(j->data, O_RDONLY | O_CLOEXEC) : dup(STDIN_FILENO);
    j->text = malloc(TEXT_MAX + 1);
    if (fd < 0 || !j->text)
        return err_set(e, errno, "--data: cannot open %s: %s", j->data, strerror(errno));
    for (ssize_t n = 1; n > 0 && j->text_len <= TEXT_MAX; j->text_len += (size_t)MAX(n, 0))
        if ((n = read(fd, j->text + j->text_len, TEXT_MAX + 1 - j->text_len)) < 0)
            return err_set(e, errno, "--data: cannot read %s: %s", j->data, strerror(errno));
    return j->text_len > TEXT_MAX ? err_set(e, EFBIG, "--data: more than 1 MiB") : 0;
}

static int prepare(struct job *j, struct err *e)
{
    char name[64];
    struct stat st;

    int rc = read_snapshot(j, e);
    if (rc == 0)
        rc = read_data(j, e);
    if (rc == 0)
        rc = find_dirs(j, e);
    if (rc == 0)
        rc = make_dirs(j->dir, e);
    snprintf(name, sizeof(name), "%s/clones", j->dir);
    if (rc == 0 && stat(name, &st) == 0)
        return err_set(e, EEXIST, "%s holds clones that were kept: mayflyctl end %s", j->dir,
                       j->dir);
    j->c = calloc(j->n, sizeof(*j->c));
    if (rc == 0 && !j->c)
        rc = err_set(e, ENOMEM, "out of memory");
    for (uint64_t i = 0; rc == 0 && i < j->n; i++) {
        struct clone *c = &j->c[i];
        c->api = c->probe = -1;
        snprintf(c->name, sizeof(c->name), "%.40s%llu", j->prefix, (unsigned long long)i);
        snprintf(c->sock, sizeof(c->sock), "%.200s/%.40s.sock", j->dir, c->name);
    }
    return rc;
}

// ---- after

static void write_list(const struct job *j)
{
    char path[CTL_PATH + 16];

    snprintf(path, sizeof(path), "%s/clones", j->dir);
    FILE *f = fopen(path, "we");
    for (uint64_t i = 0; f && i < j->n; i++)
        if (!j->c[i].e.msg[0])
            fprintf(f, "%s %d %s%s%s%s\n", j->c[i].name, j->c[i].pid, j->c[i].ns_made ? "ns" : "-",
                    j->c[i].pooled ? " pool=" : "", j->c[i].pooled ? j->pool : "",
                    j->c[i].pooled ? "" : "");
    if (!f || fclose(f))
        fprintf(stderr, "mayflyctl: cannot write %s: %s\n", path, strerror(errno));
}

static void stop(const struct job *j, uint64_t i)
{
    const struct clone *c = &j->c[i];

    if (!c->pooled && c->pid > 0) {
        kill(c->pid, SIGTERM);
        unlink(c->sock);
    }
    disk_remove(j, c);
}

void clone_finish(struct job *j)
{
    uint64_t from = now_ns();
    struct err e;

    for (uint64_t i = 0; i < j->n; i++)
        if (!j->keep || j->c[i].e.msg[0])
            stop(j, i);
    if (j->pool && !j->keep && pool_release(j->pool, j->c, j->n, &e))
        ctl_fail(&e);
    for (uint64_t i = 0; i < j->n; i++) {
        const struct clone *c = &j->c[i];
        if (j->keep && !c->e.msg[0])
            continue;
        if (!c->pooled && c->pid > 0)
            waitpid(c->pid, NULL, 0);
        if (c->ns_made)
            net_remove(c->name);
    }
    if (j->keep)
        write_list(j);
    else
        rmdir(j->dir);
    j->t_gone = now_ns() - from;
}

// ---- commands

static int run(struct job *j, struct err *e)
{
    raise_limits();
    int rc = prepare(j, e);
    if (rc == 0)
        rc = clone_make_namespaces(j, e);
    for (uint64_t i = 0; rc == 0 && i < j->n; i++)
        j->made += j->c[i].ns_made;
    if (rc == 0 && j->pool)
        rc = pool_take(j->pool, j->c, j->n, e);
    if (rc == 0)
        rc = clone_run(j, e);
    if (rc) {
        for (uint64_t i = 0; j->c && i < j->n; i++)
            if (j->c[i].ns_made)
                net_remove(j->c[i].name);
        return rc;
    }
    clone_finish(j);
    show_result(j);
    return j->failed ? -EIO : 0;
}

void job_free(struct job *j)
{
    for (unsigned i = 0; i < j->dirs.n; i++)
        free_ptrp(&j->dirs.v[i]);
    vm_saved_free(j->saved);
    free(j->text);
    free(j->c);
}

static int check(struct job *j, const char *host, const char *guest, struct err *e)
{
    if (!j->state || !j->mem)
        return err_set(e, EINVAL, "--snapshot and --mem are needed");
    if (j->n < 1 || j->n > 20000 || j->port < 1 || j->port > 65535 || j->workers < 1 ||
        j->workers > 16 || j->window < 1)
        return err_set(e, EINVAL,
                       "-n 1 to 20000, --port 1 to 65535, --workers 1 to 16, --window >= 1");
    for (const char *p = j->prefix; *p; p++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-", *p))
            return err_set(e, EINVAL, "--prefix: letters, digits and '-'");
    if (strlen(j->prefix) < 1 || strlen(j->prefix) > 32)
        return err_set(e, EINVAL, "--prefix: 1 to 32 characters");
    return net_parse(&j->net, host, guest, e);
}

int cmd_clone(int argc, char **argv)
{
    char mayfly[CTL_PATH], dir[CTL_PATH];
    const char *host = NULL, *guest = "172.16.0.2/24", *rest[1];
    bool help = false;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    struct job j = {.prefix = "clone",
                    .data_drive = "config",
                    .get = "/",
                    .n = 1,
                    .port = 80,
                    .timeout_s = 10,
                    .window = 256,
                    .workers = (uint64_t)MIN(MAX(cpus, 2), 16),
                    .net = {.tap = "tap0"}};
    const struct opt o[] = {
        {"--snapshot", OPT_STR, &j.state, "FILE  state of the snapshot"},
        {"--mem", OPT_STR, &j.mem, "FILE  its memory, shared by all clones"},
        {"-n", OPT_NUM, &j.n, "N  how many (1)"},
        {"--data", OPT_STR, &j.data, "FILE|DIR|-  what each is told on its configuration drive"},
        {"--data-drive", OPT_STR, &j.data_drive, "ID  which drive that is (config)"},
        {"--pool", OPT_STR, &j.pool, "DIR  use the idle monitors of this pool"},
        {"--allow-dir", OPT_LIST, &j.allow, "DIR  where images may lie, too; repeatable"},
        {"--prefix", OPT_STR, &j.prefix, "NAME  clones are NAME0, NAME1, ... (clone)"},
        {"--dir", OPT_STR, &j.dir, "DIR  sockets and layers (/run/mayfly/NAME)"},
        {"--tap", OPT_STR, &j.net.tap, "NAME  the tap in each namespace (tap0)"},
        {"--guest", OPT_STR, &guest, "IP/LEN  every guest's address (172.16.0.2/24)"},
        {"--host", OPT_STR, &host, "IP  the tap's address (the first of the net)"},
        {"--port", OPT_NUM, &j.port, "N  where the guest serves HTTP (80)"},
        {"--get", OPT_STR, &j.get, "PATH  what is asked of each (/)"},
        {"--no-get", OPT_FLAG, &j.no_get, "ask nothing; a clone is done when it is loaded"},
        {"--clock", OPT_FLAG, &j.clock, "set the guest's clock to now"},
        {"--keep", OPT_FLAG, &j.keep, "leave them running"},
        {"--table", OPT_FLAG, &j.table, "a row for every clone (else up to 40)"},
        {"--json", OPT_FLAG, &j.json, "the result as JSON"},
        {"--timeout", OPT_NUM, &j.timeout_s, "S  give up when nothing came (10)"},
        {"--window", OPT_NUM, &j.window, "N  so many under way at once (256)"},
        {"--workers", OPT_NUM, &j.workers, "N  threads that start them (one a CPU)"},
        {"--mayfly", OPT_STR, &j.mayfly, "FILE  the monitor (beside mayflyctl)"},
        {"--help", OPT_FLAG, &help, "this"}};
    struct err e = {0};

    int n = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 0);
    if (n < 0 || help) {
        opts_help(help ? stdout : stderr, "clone --snapshot STATE --mem MEM -n N [options]", o,
                  ARRAY_SIZE(o));
        return help ? 0 : 2;
    }
    if (!j.mayfly)
        j.mayfly = beside_me("mayfly", mayfly);
    snprintf(dir, sizeof(dir), "/run/mayfly/%.60s", j.prefix);
    if (!j.dir)
        j.dir = dir;
    int rc = check(&j, host, guest, &e);
    if (rc == 0)
        rc = run(&j, &e);
    job_free(&j);
    if (rc && e.msg[0])
        ctl_fail(&e);
    return rc != 0;
}
