// SPDX-License-Identifier: Apache-2.0
// What a clone does not share: a copy-on-write layer for each writable drive, and the configuration
// drive that says who it is.
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "api-socket/ctl/clone.h"

#define DATA_MAX (1 * MIB)

char *whole_path(const char *path)
{
    char cwd[CTL_PATH * 2], *out = NULL;

    if (path[0] == '/')
        return strdup(path);
    if (!getcwd(cwd, sizeof(cwd)) || asprintf(&out, "%s/%s", cwd, path) < 0)
        return NULL;
    return out;
}

// The folder that path lies beneath by its name; *rest is what follows.
static const char *folder_of(const struct job *j, const char *path, const char **rest)
{
    for (unsigned i = 0; i < j->dirs.n; i++) {
        size_t n = strlen(j->dirs.v[i]);
        while (n && j->dirs.v[i][n - 1] == '/')
            n--;
        if (!strncmp(path, j->dirs.v[i], n) && path[n] == '/' && path[n + 1]) {
            *rest = path + n + strspn(path + n, "/");
            return j->dirs.v[i];
        }
    }
    return NULL;
}

int image_allowed(const struct job *j, const char *path, struct err *e)
{
    const char *rest;
    char *whole = whole_path(path);
    bool ok = whole && folder_of(j, whole, &rest);

    free(whole);
    return ok ? 0
              : err_set(e, EACCES,
                        "the snapshot's image %s lies outside the folders of its files: name its "
                        "folder by --allow-dir if you trust the snapshot",
                        path);
}

// Links and ".." do not lead out of the folder.
static int image_open(const struct job *j, const char *path, struct err *e)
{
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    const char *rest = "";
    char *whole = whole_path(path);
    const char *dir = whole ? folder_of(j, whole, &rest) : NULL;
    errno = dir ? 0 : EACCES;
    _cleanup_(close_fdp) int at = dir ? open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    long fd = at < 0 ? -1 : syscall(SYS_openat2, at, rest, &how, sizeof(how));

    int rc = fd < 0 ? err_set(e, errno, "cannot open %s: %s", path, strerror(errno)) : (int)fd;
    free(whole);
    return rc;
}

static void layer_path(const struct job *j, const struct clone *c, const char *drive,
                       char path[CTL_PATH + 160])
{
    snprintf(path, CTL_PATH + 160, "%s/%s.%s.cow", j->dir, c->name, drive);
}

// Only what is there is copied: a layer is sparse.
static int copy_layer(const struct job *j, const char *from, int to, struct err *e)
{
    struct stat st;

    _cleanup_(close_fdp) int fd = image_open(j, from, e);
    if (fd < 0)
        return fd;
    if (fstat(fd, &st) || ftruncate(to, st.st_size))
        return err_set(e, errno, "the snapshot's layer %s: %s", from, strerror(errno));
    for (off_t at = 0, hole; (at = lseek(fd, at, SEEK_DATA)) >= 0; at = hole) {
        hole = lseek(fd, at, SEEK_HOLE);
        off_t in = at, out = at;
        while (in < hole) {
            ssize_t n = copy_file_range(fd, &in, to, &out, (size_t)(hole - in), 0);
            if (n <= 0)
                return err_set(e, n ? errno : EIO, "cannot copy the layer %s: %s", from,
                               strerror(n ? errno : EIO));
        }
    }
    return 0;
}

// An empty file is a fresh layer. One that nobody will look for again needs no name.
static int layer_open(const struct job *j, const struct clone *c, const struct drive_cfg *d,
                      struct err *e)
{
    char path[CTL_PATH + 160];
    _cleanup_(close_fdp) int fd = -1;

    layer_path(j, c, d->drive_id, path);
    if (!j->keep)
        fd = open(j->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(e, errno, "cannot make the layer %s: %s", path, strerror(errno));
    if (d->cow_path[0] && strncmp(d->cow_path, "fd:", 3)) {
        int rc = copy_layer(j, d->cow_path, fd, e);
        if (rc)
            return rc;
    }
    return steal_fd(&fd);
}

void disk_remove(const struct job *j, const struct clone *c)
{
    char path[CTL_PATH + 160];

    for (unsigned i = 0; j->saved && i < j->saved->ndevs; i++) {
        const struct saved_dev *d = &j->saved->dev[i];
        if (d->kind != SAVED_BLK || d->blk.cfg.is_read_only)
            continue;
        layer_path(j, c, d->blk.cfg.drive_id, path);
        unlink(path);
    }
}

static int write_text(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k <= 0)
            return -1;
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

static int append_file(int fd, const char *dir, const char *name, struct err *e)
{
    char path[CTL_PATH * 2], buf[4096];
    ssize_t n = 0;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    _cleanup_(close_fdp) int in = open(path, O_RDONLY | O_CLOEXEC);
    if (in < 0)
        return err_set(e, errno, "--data: cannot open %s: %s", path, strerror(errno));
    for (size_t all = 0; (n = read(in, buf, sizeof(buf))) > 0; all += (size_t)n)
        if (all > DATA_MAX || write_text(fd, buf, (size_t)n))
            return err_set(e, EFBIG, "--data: %s is larger than 1 MiB", path);
    return n < 0 ? err_set(e, errno, "--data: cannot read %s: %s", path, strerror(errno)) : 0;
}

// Lines of key=value, an empty line, and the caller's data; whole pages, zeros behind. In memory: it
// holds a secret.
static int config_drive(const struct job *j, const struct clone *c, uint64_t i, struct err *e)
{
    char head[512], secret[33];
    uint8_t r[16];
    struct timespec t;
    struct stat st;

    _cleanup_(close_fdp) int fd = memfd_create("config", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || getrandom(r, sizeof(r), 0) != sizeof(r))
        return err_set(e, errno, "configuration drive: %s", strerror(errno));
    for (unsigned k = 0; k < sizeof(r); k++)
        snprintf(secret + 2 * (size_t)k, 3, "%02x", r[k]);
    clock_gettime(CLOCK_REALTIME, &t);
    uint32_t ip = j->net.guest;
    int n = snprintf(head, sizeof(head),
                     "id=%s\nindex=%llu\naddress=%u.%u.%u.%u/%u\nsecret=%s\ntime_ns=%lld%09ld\n\n",
                     c->name, (unsigned long long)i, ip >> 24, ip >> 16 & 255, ip >> 8 & 255,
                     ip & 255, j->net.prefix_len, secret, (long long)t.tv_sec, t.tv_nsec);
    int rc = write_text(fd, head, (size_t)n) ? err_set(e, EIO, "configuration drive") : 0;
    if (rc == 0 && j->text)
        rc = write_text(fd, j->text, j->text_len) ? err_set(e, EIO, "configuration drive") : 0;
    else if (rc == 0)
        rc = append_file(fd, j->data, c->name, e);
    if (rc || fstat(fd, &st) || ftruncate(fd, (off_t)ALIGN_UP((uint64_t)st.st_size, PAGE_SIZE)) ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return rc ? rc : err_set(e, errno, "configuration drive: %s", strerror(errno));
    return steal_fd(&fd);
}

// A jailed monitor sees no path, so a pool's shells get the image itself; its size is what the snapshot's
// guest believes.
static int base_open(const struct job *j, const struct saved_dev *d, struct err *e)
{
    const char *path = d->blk.cfg.path_on_host;
    struct stat st;

    _cleanup_(close_fdp) int fd = image_open(j, path, e);
    if (fd < 0)
        return fd;
    if (fstat(fd, &st) || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
        return err_set(e, EINVAL, "%s is neither a file nor a block device", path);
    if (S_ISREG(st.st_mode) && (uint64_t)st.st_size != d->blk.bytes)
        return err_set(e, EINVAL, "%s has %lld bytes, the snapshot recorded %llu", path,
                       (long long)st.st_size, (unsigned long long)d->blk.bytes);
    return steal_fd(&fd);
}

struct request { // of descriptors, as they are named in the overrides' text
    int *fds;
    unsigned *nfds;
    char *out;
    size_t len, size;
};

static int add(struct request *r, const char *drive, const char *field, int fd, struct err *e)
{
    if (fd < 0)
        return fd;
    if (*r->nfds == API_FDS_MAX) {
        close(fd);
        return err_set(e, E2BIG, "the snapshot has more devices than a request takes descriptors");
    }
    if (drive)
        r->len += (size_t)snprintf(r->out + r->len, r->size - r->len, "%s{\"drive_id\":\"%s\"",
                                   r->len ? "," : "", drive);
    r->len +=
        (size_t)snprintf(r->out + r->len, r->size - r->len, ",\"%s\":\"fd:%u\"", field, *r->nfds);
    r->fds[(*r->nfds)++] = fd;
    return 0;
}

static int override(const struct job *j, const struct clone *c, uint64_t i,
                    const struct saved_dev *d, struct request *r, struct err *e)
{
    const struct drive_cfg *cfg = &d->blk.cfg;
    const char *id = cfg->drive_id; // said once
    size_t before = r->len;
    int rc = 0;

    if (j->data && !strcmp(id, j->data_drive))
        rc = add(r, id, "path_on_host", config_drive(j, c, i, e), e);
    else {
        if (c->pooled || cfg->path_on_host[0] != '/') { // a monitor may stand elsewhere
            rc = add(r, id, "path_on_host", base_open(j, d, e), e);
            id = NULL;
        }
        if (rc == 0 && !cfg->is_read_only)
            rc = add(r, id, "cow_path", layer_open(j, c, cfg, e), e);
    }
    if (rc == 0 && r->len > before)
        r->len += (size_t)snprintf(r->out + r->len, r->size - r->len, "}");
    return rc;
}

int disk_overrides(const struct job *j, const struct clone *c, uint64_t i, int *fds, unsigned *nfds,
                   char *out, size_t size, struct err *e)
{
    struct request r = {fds, nfds, out, 0, size};
    int rc = 0;

    *out = 0;
    for (unsigned k = 0; k < j->saved->ndevs && rc == 0; k++)
        if (j->saved->dev[k].kind == SAVED_BLK)
            rc = override(j, c, i, &j->saved->dev[k], &r, e);
    return rc;
}
