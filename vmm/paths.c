// SPDX-License-Identifier: Apache-2.0
// The only opener of paths. A path is "fd:N" (a descriptor of the same request), or lies beneath
// one of the allowed directories when any were given; links may not lead out of them.
#include "vmm/vm_priv.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <net/if.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

// #syscalls:config openat2
// #syscalls:control openat2
static int open2(int dir, const char *path, int flags, uint64_t resolve)
{
    struct open_how how = {
        .flags = (uint64_t)(unsigned)(flags | O_CLOEXEC),
        .mode = flags & O_CREAT ? 0600 : 0,
        .resolve = resolve | RESOLVE_NO_MAGICLINKS,
    };
    long fd = syscall(SYS_openat2, dir, path, &how, sizeof(how));
    return fd < 0 ? -errno : (int)fd;
}

static int take_fd(const char *path, const char *field, struct passed_fds *fds, struct err *e)
{
    char *end;
    unsigned long n = strtoul(path + 3, &end, 10);

    if (!fds)
        return err_set(e, EINVAL, "%s: descriptors cannot be named in a file", field);
    if (path[3] < '0' || path[3] > '9' || *end || n >= fds->n || fds->fd[n] < 0)
        return err_set(e, EINVAL, "%s: no descriptor %s came with this request", field, path);
    return steal_fd(&fds->fd[n]);
}

// Whether path lies beneath dir by name; *rest is what follows.
static bool beneath(const char *path, const char *dir, const char **rest)
{
    size_t n = strlen(dir);

    while (n > 1 && dir[n - 1] == '/')
        n--;
    if (strncmp(path, dir, n) || (n > 1 && path[n] != '/'))
        return false;
    *rest = path + n + strspn(path + n, "/");
    return **rest;
}

static int open_allowed(struct vm *vm, const char *path, int flags)
{
    const char *rest;

    if (!vm->opts.nallow)
        return open2(AT_FDCWD, path, flags, 0);
    for (unsigned i = 0; i < vm->opts.nallow; i++) {
        if (beneath(path, vm->opts.allow_dirs[i], &rest))
            return open2(vm->opts.allow_fds[i], rest, flags, RESOLVE_BENEATH);
    }
    return -EXDEV; // as the kernel says of a path that leads out
}

static int say(const char *path, const char *field, int rc, struct err *e)
{
    if (rc == -EXDEV)
        return err_set(e, EACCES, "%s: %.150s is not beneath an allowed directory", field, path);
    return err_set(e, -rc, "%s: cannot open %.150s: %s%s", field, path, strerror(-rc),
                   rc == -EACCES && !strncmp(path, "/dev/", 5)
                       ? " (device nodes: pass a descriptor, or name a directory with --allow-dir)"
                       : "");
}

int path_open(struct vm *vm, const char *path, const char *field, int flags, struct passed_fds *fds,
              struct err *e)
{
    struct stat st;

    if (!path[0])
        return err_set(e, EINVAL, "%s: the path is empty", field);
    // O_NONBLOCK: opening a FIFO by mistake must not wait for its other end.
    bool passed = !strncmp(path, "fd:", 3);
    _cleanup_(close_fdp) int fd = passed ? take_fd(path, field, fds, e)
                                         : open_allowed(vm, path, flags | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return passed ? fd : say(path, field, fd, e);
    if (fstat(fd, &st))
        return err_set(e, errno, "%s: %s", field, strerror(errno));
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return err_set(e, EINVAL, "%s: %.150s is %s, not a regular file", field, path,
                       S_ISDIR(st.st_mode)    ? "a directory"
                       : S_ISFIFO(st.st_mode) ? "a FIFO"
                                              : "a special file");
    int mode = fcntl(fd, F_GETFL);
    if (passed && ((mode & O_ACCMODE) == O_WRONLY ||
                   ((flags & O_ACCMODE) == O_RDWR && (mode & O_ACCMODE) != O_RDWR)))
        return err_set(e, EINVAL, "%s: descriptor %s is not open for %s", field, path,
                       (flags & O_ACCMODE) == O_RDWR ? "reading and writing" : "reading");
    return steal_fd(&fd);
}

// #syscalls:config fcntl(F_GETFL, F_SETFL)
// #syscalls:control fcntl(F_GETFL, F_SETFL)
int path_open_sink(struct vm *vm, const char *path, const char *field, struct passed_fds *fds,
                   struct err *e)
{
    struct stat st;

    if (!path[0])
        return err_set(e, EINVAL, "%s: the path is empty", field);
    if (!strncmp(path, "fd:", 3)) {
        int fd = take_fd(path, field, fds, e);
        if (fd >= 0)
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        return fd;
    }
    // O_RDWR: a FIFO opens without a reader. A link in the last place would let a stranger aim the
    // writes.
    _cleanup_(close_fdp) int fd =
        open_allowed(vm, path, O_RDWR | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW);
    if (fd == -ELOOP)
        return err_set(e, EINVAL, "%s: %.150s is a symbolic link", field, path);
    if (fd == -EISDIR)
        return err_set(e, EISDIR, "%s: %.150s is a directory", field, path);
    if (fd < 0)
        return say(path, field, fd, e);
    if (fstat(fd, &st) || S_ISDIR(st.st_mode) || S_ISBLK(st.st_mode))
        return err_set(e, EINVAL, "%s: %.150s is not a file or FIFO", field, path);
    return steal_fd(&fd);
}

// Where a socket lies is told by its name alone: connect takes no directory descriptor.
// #syscalls:config connect
int path_connect(struct vm *vm, const char *path, const char *field, struct passed_fds *fds,
                 struct err *e)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const char *rest;
    bool ok = !vm->opts.nallow;

    if (!strncmp(path, "fd:", 3))
        return take_fd(path, field, fds, e);
    for (unsigned i = 0; i < vm->opts.nallow; i++)
        ok |= beneath(path, vm->opts.allow_dirs[i], &rest) && !strstr(path, "..");
    if (!ok)
        return say(path, field, -EXDEV, e);
    if (strlen(path) >= sizeof(a.sun_path))
        return say(path, field, -ENAMETOOLONG, e);
    unsigned i = 0;
    while (i < SPARE_SOCKS && vm->spare_sock[i] < 0)
        i++;
    if (i == SPARE_SOCKS)
        return err_set(e, EBUSY,
                       "%s: this process has connected %d times in vain; pass a connection as fd:N",
                       field, SPARE_SOCKS);
    memcpy(a.sun_path, path, strlen(path));
    if (connect(vm->spare_sock[i], (const struct sockaddr *)&a, sizeof(a)))
        return err_set(e, errno, "%s: cannot connect to %.150s: %s", field, path, strerror(errno));
    return steal_fd(&vm->spare_sock[i]);
}

// ---- files that appear whole or not at all

// The directory of path, and the last part of it in f->name.
static int open_parent(struct vm *vm, const char *path, struct new_file *f)
{
    char dir[CFG_PATH_MAX];
    const char *rest = path;
    int base = AT_FDCWD;

    for (unsigned i = 0; i < vm->opts.nallow && base == AT_FDCWD; i++) {
        if (beneath(path, vm->opts.allow_dirs[i], &rest))
            base = vm->opts.allow_fds[i];
    }
    if (vm->opts.nallow && base == AT_FDCWD)
        return -EXDEV;
    snprintf(dir, sizeof(dir), "%s", rest);
    char *slash = strrchr(dir, '/');
    const char *name = slash ? slash + 1 : dir;
    if (!name[0] || !strcmp(name, ".") || !strcmp(name, ".."))
        return -EISDIR;
    if (strlen(name) >= sizeof(f->name))
        return -ENAMETOOLONG;
    snprintf(f->name, sizeof(f->name), "%.255s", name);
    if (slash)
        slash[slash == dir] = 0;
    f->dir = open2(base, slash ? dir : ".", O_RDONLY | O_DIRECTORY,
                   base == AT_FDCWD ? 0 : RESOLVE_BENEATH);
    return MIN(f->dir, 0);
}

// A passed descriptor must be an empty file: nothing is ever written into one that may be mapped.
static int take_new(const char *path, const char *field, struct passed_fds *fds, struct err *e)
{
    struct stat st;

    _cleanup_(close_fdp) int fd = take_fd(path, field, fds, e);
    if (fd < 0)
        return fd;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size ||
        (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
        return err_set(e, EINVAL, "%s: descriptor %s is not an empty file open for writing", field,
                       path);
    return steal_fd(&fd);
}

int path_create(struct vm *vm, const char *path, const char *field, struct passed_fds *fds,
                struct new_file *f, struct err *e)
{
    *f = (struct new_file){.fd = -1, .dir = -1};
    if (!path[0])
        return err_set(e, EINVAL, "%s: the path is empty", field);
    if (!strncmp(path, "fd:", 3)) {
        f->fd = take_new(path, field, fds, e);
        return MIN(f->fd, 0);
    }
    int rc = open_parent(vm, path, f);
    if (rc)
        return say(path, field, rc, e);
    snprintf(f->temp, sizeof(f->temp), ".%.200s.%llx.part", f->name, (unsigned long long)now_ns());
    f->fd = open2(f->dir, f->temp, O_RDWR | O_CREAT | O_EXCL, RESOLVE_BENEATH);
    if (f->fd >= 0)
        return 0;
    rc = say(path, field, f->fd, e);
    f->temp[0] = 0;
    path_abandon(f);
    return rc;
}

// #syscalls:config fsync renameat2 unlinkat
// #syscalls:control fsync renameat2 unlinkat
int path_sync(struct new_file *f, const char *field, struct err *e)
{
    return fsync(f->fd) ? err_set(e, errno, "%s: fsync: %s", field, strerror(errno)) : 0;
}

static int move(const struct new_file *f, const char *from, const char *to, unsigned flags)
{
    return syscall(SYS_renameat2, f->dir, from, f->dir, to, flags) ? -errno : 0;
}

// A file that had the name before goes on under the temporary one until every new file has its name. Some file
// systems cannot do that; one file alone is replaced there, a pair is not.
static int give_name(struct new_file *f, bool alone)
{
    struct stat st;
    const bool there = !fstatat(f->dir, f->name, &st, AT_SYMLINK_NOFOLLOW);

    if (there && S_ISDIR(st.st_mode)) // it could be exchanged, too
        return -EISDIR;
    const bool swap = there && S_ISREG(st.st_mode); // Landlock lets nothing else have another name
    int rc = move(f, f->temp, f->name, swap ? RENAME_EXCHANGE : 0);
    f->how = rc ? NEW_UNNAMED : swap ? NEW_SWAPPED : NEW_NAMED;
    if (rc == -EINVAL && alone && (rc = move(f, f->temp, f->name, 0)) == 0)
        f->how = NEW_NAMED;
    return rc;
}

static void take_name(struct new_file *f)
{
    // Where that fails, what lies under the temporary name may be the older file: it stays.
    if (f->how != NEW_UNNAMED &&
        move(f, f->name, f->temp, f->how == NEW_SWAPPED ? RENAME_EXCHANGE : 0))
        f->temp[0] = 0;
    f->how = NEW_UNNAMED;
}

int path_commit(struct new_file *const f[], unsigned n, struct err *e)
{
    int rc = 0;

    for (unsigned i = 0; i < n && rc == 0; i++)
        if (f[i]->dir >= 0 && (rc = give_name(f[i], n == 1)))
            err_set(e, -rc, "cannot name the new file %s: %s", f[i]->name, strerror(-rc));
    // A file system that cannot sync a directory needs not.
    for (unsigned i = 0; i < n && rc == 0; i++)
        if (f[i]->dir >= 0 && fsync(f[i]->dir) && errno != EINVAL)
            rc = err_set(e, errno, "cannot sync the directory of %s: %s", f[i]->name,
                         strerror(errno));
    for (unsigned i = n; rc && i-- > 0;)
        take_name(f[i]);
    return rc;
}

bool path_same(const struct new_file *a, const struct new_file *b)
{
    const bool named = a->dir >= 0 && b->dir >= 0;
    struct stat p, q;

    return !fstat(named ? a->dir : a->fd, &p) && !fstat(named ? b->dir : b->fd, &q) &&
           p.st_dev == q.st_dev && p.st_ino == q.st_ino && (!named || !strcmp(a->name, b->name));
}

void path_abandon(struct new_file *f)
{
    if (f->dir >= 0 && f->temp[0] && f->how != NEW_NAMED)
        unlinkat(f->dir, f->temp, 0);
    close_fdp(&f->fd);
    close_fdp(&f->dir);
    f->fd = f->dir = -1;
}

// A tap that came with the process stays with it: each interface gets a descriptor of its own.
// #syscalls:config dup
static int handed_tap(struct vm *vm, const char *name)
{
    for (unsigned i = 0; i < vm->opts.ntaps; i++)
        if (!strcmp(vm->opts.taps[i].name, name))
            return dup(vm->opts.taps[i].fd);
    return -1;
}

int path_open_tun(struct vm *vm, const char *name, struct passed_fds *fds, struct err *e)
{
    int handed = handed_tap(vm, name);
    if (handed >= 0 || !strncmp(name, "fd:", 3)) {
        int fd = handed >= 0 ? handed : take_fd(name, "host_dev_name", fds, e);
        if (fd < 0)
            return fd;
        int rc = net_tap_setup(fd, NULL, e);
        if (rc == 0)
            return fd;
        close(fd);
        return err_field(e, "host_dev_name", rc);
    }
    if (!name[0] || strlen(name) >= IFNAMSIZ || strchr(name, '/'))
        return err_set(e, EINVAL, "host_dev_name: a tap's name has 1 to 15 characters");
    // Not through the allowed directories: this one device is what a tap is made of.
    _cleanup_(close_fdp) int fd = open2(AT_FDCWD, "/dev/net/tun", O_RDWR | O_NONBLOCK, 0);
    if (fd < 0)
        return err_set(e, -fd, "host_dev_name: cannot open /dev/net/tun: %s", strerror(-fd));
    int rc = net_tap_setup(fd, name, e);
    return rc ? err_field(e, "host_dev_name", rc) : steal_fd(&fd);
}
