// SPDX-License-Identifier: Apache-2.0
// Compat mode: the directories, device nodes, order and hand-over of Firecracker's jailer, so that
// what drives the jailer drives this. The tree <base>/<exec name>/<id>/root may exist already
// (orchestrators link files into it), so every part below <base> is opened without following links
// and must belong to root or to the jail's own user.
#include "jail/cmd/jailer.h"

#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

static void make_dirs(struct run *r)
{
    const char *const name[] = {r->a->base, r->a->exec_name, r->a->id, "root"};
    char base[512]; // made as needed, and links followed: it is the operator's
    snprintf(base, sizeof(base), "%s", r->a->base);
    for (char *p = strchr(base + 1, '/'); p; *p = '/', p = strchr(p + 1, '/'))
        *p = '\0', mkdir(base, 0755);
    mkdir(base, 0755);
    for (int i = 0; i < 4; i++) {
        int at = i ? r->dir[i - 1] : AT_FDCWD;
        r->made[i] = i && !mkdirat(at, name[i], 0755);
        int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | (i ? O_NOFOLLOW : 0);
        struct stat st;
        r->dir[i] = openat(at, name[i], flags);
        if (r->dir[i] < 0 || fstat(r->dir[i], &st))
            die(r, "jail directory %s: %s", name[i],
                errno == ELOOP || errno == ENOTDIR ? "is a link or no directory" : strerror(errno));
        if (i && ((st.st_uid && st.st_uid != r->a->uid) || (st.st_mode & 022)))
            die(r, "jail directory %s can be written by strangers", name[i]);
    }
}

// Returns the copy, to be executed.
static int copy_exec(struct run *r)
{
    _cleanup_(close_fdp) int in = open(r->a->exec_file, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (in < 0 || fstat(in, &st) || !S_ISREG(st.st_mode))
        die(r, "--exec-file %s: %s", r->a->exec_file, in < 0 ? strerror(errno) : "no regular file");
    // A file or link left there from an earlier run is unlinked, never written through.
    unlinkat(r->dir[3], r->a->exec_name, 0);
    _cleanup_(close_fdp) int out = openat(
        r->dir[3], r->a->exec_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0755);
    if (out < 0)
        die(r, "%s in the jail: %s", r->a->exec_name, strerror(errno));
    r->copied = true;
    for (off_t left = st.st_size; left > 0;) {
        // Shares the blocks where the file system can; refuses some pairs of file systems.
        ssize_t n = copy_file_range(in, NULL, out, NULL, (size_t)left, 0);
        if (n <= 0)
            n = sendfile(out, in, NULL, (size_t)left);
        if (n <= 0)
            die(r, "copying %s: %s", r->a->exec_file, strerror(errno));
        left -= n;
    }
    // Executed by descriptor: by its name, a former monitor could put another program there.
    char self[40];
    snprintf(self, sizeof(self), "/proc/self/fd/%d", out);
    int fd = open(self, O_PATH | O_CLOEXEC);
    if (fd < 0)
        die(r, "%s in the jail: %s", r->a->exec_name, strerror(errno));
    return fd;
}

static void change_root(struct run *r)
{
    // Bound by descriptor: the name could have been swapped since it was checked.
    char self[40];
    snprintf(self, sizeof(self), "/proc/self/fd/%d", r->dir[3]);
    if (mount(self, self, NULL, MS_BIND | MS_REC, NULL))
        die(r, "bind mount of the jail: %s", strerror(errno));
    // A second look through the parent crosses into the mount just made.
    _cleanup_(close_fdp) int root =
        openat(r->dir[2], "root", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (root < 0 || fchdir(root) ||
        mount(NULL, ".", NULL, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NOEXEC, NULL))
        die(r, "root of the jail: %s", strerror(errno));
    leave_root(r);
}

// Nodes are made anew: one that is there may be anything. The directory is root's alone, so that the name still
// means the node when it is given away.
static void make_node(struct run *r, int dir, const char *name, dev_t dev, bool must)
{
    unlinkat(dir, name, 0);
    if (mknodat(dir, name, S_IFCHR | 0600, dev) ||
        fchownat(dir, name, r->a->uid, r->a->gid, AT_SYMLINK_NOFOLLOW))
        if (must)
            die(r, "device node %s: %s", name, strerror(errno));
}

static int make_dir(struct run *r, int at, const char *name)
{
    mkdirat(at, name, 0755);
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fchown(fd, 0, 0) || fchmod(fd, 0755))
        die(r, "directory %s in the jail: %s", name, strerror(errno));
    return fd;
}

static unsigned userfaultfd_minor(void)
{
    unsigned found = 0, minor;
    char line[80];
    FILE *f = fopen("/proc/misc", "re");
    while (f && !found && fgets(line, sizeof(line), f))
        if (strstr(line, " userfaultfd\n") && sscanf(line, "%u", &minor) == 1)
            found = minor;
    if (f)
        fclose(f);
    return found;
}

static void furnish(struct run *r, unsigned uffd)
{
    _cleanup_(close_fdp) int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        die(r, "root of the jail: %s", strerror(errno));
    _cleanup_(close_fdp) int dev = make_dir(r, root, "dev");
    _cleanup_(close_fdp) int net = make_dir(r, dev, "net");
    _cleanup_(close_fdp) int run = make_dir(r, root, "run");
    make_node(r, net, "tun", makedev(10, 200), true);
    make_node(r, dev, "kvm", makedev(10, 232), true);
    make_node(r, dev, "urandom", makedev(1, 9), false);
    if (uffd)
        make_node(r, dev, "userfaultfd", makedev(10, uffd), false);
    if (fchmod(run, 0700) || fchown(run, r->a->uid, r->a->gid) || fchmod(root, 0700) ||
        fchown(root, r->a->uid, r->a->gid))
        die(r, "root of the jail: %s", strerror(errno));
}

static void write_pid(struct run *r, pid_t pid)
{
    char name[256];
    snprintf(name, sizeof(name), "/%s.pid", r->a->exec_name);
    unlink(name);
    _cleanup_(close_fdp) int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 || dprintf(fd, "%d", pid) < 0)
        die(r, "%s: %s", name, strerror(errno));
}

// Forks; the parent ends. The jailer's caller waits for exactly that.
static void leave_parent(struct run *r, bool note_pid)
{
    pid_t pid = fork();
    if (pid < 0)
        die(r, "fork: %s", strerror(errno));
    if (!pid) {
        r->owner = getpid(); // the one that is left undoes
        return;
    }
    if (note_pid)
        write_pid(r, pid);
    _exit(0);
}

void compat_run(struct run *r)
{
    const struct args *a = r->a;
    const char *argv[128];
    char words[8][64];
    struct err e;

    // First of all: a directory opened in another mount namespace cannot be mounted on in this one.
    if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS) ||
        mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL))
        die(r, "namespaces (mount, ipc, uts): %s", strerror(errno));
    make_dirs(r);
    int exec_fd = copy_exec(r);
    enter_netns(r);
    set_limits(r);
    cgroup_make(r);
    unsigned uffd = userfaultfd_minor();
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    change_root(r);
    furnish(r, uffd);
    if (a->daemonize || a->new_pid_ns)
        root_left(r); // what it waits for is noted in this process alone
    if (a->daemonize) {
        leave_parent(r, false);
        setsid();
        leave_parent(r, false);
        for (int i = 0; i < 3; i++)
            dup2(null, i);
    }
    if (a->new_pid_ns) {
        if (unshare(CLONE_NEWPID))
            die(r, "pid namespace: %s", strerror(errno));
        leave_parent(r, true);
    } else {
        write_pid(r, getpid());
    }
    cgroup_join(r, 0);            // late: what stands in a group cannot remove it when it fails
    if (unshare(CLONE_NEWCGROUP)) // now that the group to be its root is entered
        die(r, "cgroup namespace: %s", strerror(errno));
    if (!jail_drop_bounding())
        die(r, "bounding set of capabilities: %s", strerror(errno));
    umask(077);
    if (setgroups(0, NULL) || setresgid(a->gid, a->gid, a->gid) ||
        setresuid(a->uid, a->uid, a->uid))
        die(r, "user %u, group %u: %s", a->uid, a->gid, strerror(errno));
    if (jail_user(&e))
        die(r, "%s", e.msg);
    size_t n = monitor_argv(r, argv, words);
    for (size_t i = 0; i < a->n_rest; i++)
        argv[n++] = a->rest[i];
    argv[n] = NULL;
    char *const env[] = {NULL};
    root_left(r);
    syscall(SYS_execveat, exec_fd, "", exec_words(argv), env, AT_EMPTY_PATH);
    die(r, "%s: %s", a->exec_name, strerror(errno));
}
