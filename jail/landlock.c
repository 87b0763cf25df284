// SPDX-License-Identifier: Apache-2.0
// Third stage: Landlock, at the newest ABI the kernel has. Linux
// Documentation/userspace-api/landlock.rst.
#include "jail/jail.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

// #syscalls:boot landlock_create_ruleset landlock_add_rule landlock_restrict_self
// #syscalls:boot openat newfstatat getdents64 close prctl

// The header of linux-libc-dev 6.1 ends at ABI 2; these are kernel ABI.
struct ruleset_attr {
    uint64_t handled_fs, handled_net, scoped;
};
struct path_beneath {
    uint64_t allowed;
    int32_t parent_fd;
} __attribute__((packed));
enum {
    FS_EXECUTE = 1 << 0,
    FS_WRITE_FILE = 1 << 1,
    FS_READ_FILE = 1 << 2,
    FS_READ_DIR = 1 << 3, // opening a directory, to fsync it after a rename
    FS_REMOVE_FILE = 1 << 5,
    FS_MAKE_REG = 1 << 8,
    FS_REFER = 1 << 13,     // ABI 2: link and rename into another directory
    FS_TRUNCATE = 1 << 14,  // ABI 3
    FS_IOCTL_DEV = 1 << 15, // ABI 5
    FS_FILE = FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_TRUNCATE | FS_IOCTL_DEV,
};
#define FS_ABI1      0x1fffULL
#define NET_TCP      3ULL // ABI 4: bind and connect
#define SCOPE_ALL    3ULL // ABI 6: abstract sockets and signals to processes outside
#define RULE_BENEATH 1
// What the monitor does beneath a directory it was given: open, write, make and replace plain
// files.
#define FS_DATA                                                                             \
    (FS_WRITE_FILE | FS_READ_FILE | FS_READ_DIR | FS_REMOVE_FILE | FS_MAKE_REG | FS_REFER | \
     FS_TRUNCATE)

static int allow(int ruleset, const char *path, uint64_t access, bool must, struct err *e)
{
    _cleanup_(close_fdp) int fd = open(path, O_PATH | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        return must ? err_set(e, errno, "--allow-dir %s: %s", path, strerror(errno)) : 0;
    if (!S_ISDIR(st.st_mode))
        access &= FS_FILE;
    struct path_beneath rule = {.allowed = access, .parent_fd = fd};
    if (syscall(SYS_landlock_add_rule, ruleset, RULE_BENEATH, &rule, 0))
        return err_set(e, errno, "Landlock rule for %s: %s", path, strerror(errno));
    return 0;
}

// Without --allow-dir: everything but the trees where device nodes and the kernel's own files are.
// Landlock can only allow, so the other entries of / are allowed one by one. A root without /proc and /sys
// is a jail's own: files are linked straight into it, also later, and its few devices are this monitor's.
static int allow_plain(int ruleset, uint64_t access, struct err *e)
{
    DIR *root = opendir("/");
    if (!root)
        return err_set(e, errno, "/: %s", strerror(errno));
    struct stat st;
    if (stat("/proc", &st) && stat("/sys", &st)) {
        closedir(root);
        return allow(ruleset, "/", access, true, e);
    }
    int rc = 0;
    for (struct dirent *d; !rc && (d = readdir(root));) {
        char path[300];
        snprintf(path, sizeof(path), "/%s", d->d_name);
        if ((d->d_type == DT_DIR || d->d_type == DT_UNKNOWN) && strcmp(path, "/dev") &&
            strcmp(path, "/proc") && strcmp(path, "/sys") && d->d_name[0] != '.')
            rc = allow(ruleset, path, access, false, e);
    }
    closedir(root);
    static const char *const data_in_dev[] = {"/dev/shm", "/dev/hugepages"};
    for (size_t i = 0; !rc && i < ARRAY_SIZE(data_in_dev); i++)
        rc = allow(ruleset, data_in_dev[i], access, false, e);
    return rc;
}

// Should:   confine opens to the directories the operator named; without any, deny execution,
// device
//           nodes, /proc and /sys. /dev/net/tun stays open in both, because a tap is named by the
//           API and each needs an open of its own; where taps are passed in, the jail has no such
//           file.
// Must not: be weaker on an old kernel unless the operator said so.
int jail_fs(struct jail *j, struct err *e)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1 /* asks for the version */);
    if (abi < 1 && !j->allow_no_landlock)
        return err_set(e, ENOSYS,
                       "the kernel has no Landlock (boot with lsm=landlock,... or accept a "
                       "weaker jail with --allow-no-landlock)");
    j->landlock_abi = abi < 1 ? 0 : (int)abi;
    if (abi < 1)
        return 0;
    struct ruleset_attr attr = {
        .handled_fs = FS_ABI1 | (abi >= 2 ? FS_REFER : 0) | (abi >= 3 ? FS_TRUNCATE : 0) |
                      (abi >= 5 ? FS_IOCTL_DEV : 0),
        .handled_net = abi >= 4 ? NET_TCP : 0,
        .scoped = abi >= 6 ? SCOPE_ALL : 0,
    };
    size_t size = abi >= 6 ? sizeof(attr) : abi >= 4 ? 16 : 8; // an old kernel refuses a longer one
    _cleanup_(close_fdp) int rs = (int)syscall(SYS_landlock_create_ruleset, &attr, size, 0);
    if (rs < 0)
        return err_set(e, errno, "Landlock ABI %ld: %s", abi, strerror(errno));
    uint64_t data = FS_DATA & attr.handled_fs;
    int rc = j->n_allow_dirs ? 0 : allow_plain(rs, data, e);
    for (size_t i = 0; !rc && i < j->n_allow_dirs; i++)
        rc = allow(rs, j->allow_dirs[i], data, true, e);
#ifdef MAYFLY_SANITIZE // the leak checker reads /proc/self
    rc = rc ? rc : allow(rs, "/proc", FS_READ_FILE | FS_READ_DIR, false, e);
#endif
    rc = rc ? rc
            : allow(rs, "/dev/net/tun",
                    (FS_READ_FILE | FS_WRITE_FILE | FS_IOCTL_DEV) & attr.handled_fs, false, e);
    // Where orchestrators send a log that nobody wants.
    rc = rc ? rc : allow(rs, "/dev/null", FS_READ_FILE | FS_WRITE_FILE, false, e);
    if (rc)
        return rc;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_landlock_restrict_self, rs, 0))
        return err_set(e, errno, "landlock_restrict_self: %s", strerror(errno));
    return 0;
}

void jail_describe(const struct jail *j, char *buf, size_t size)
{
    if (!j->landlock_abi)
        snprintf(buf, size, "no Landlock: every file this user may open is open");
    else if (j->n_allow_dirs)
        snprintf(
            buf, size,
            "Landlock ABI %d: open are %zu allowed path(s), and /dev/net/tun where there is one",
            j->landlock_abi, j->n_allow_dirs);
    else
        snprintf(buf, size,
                 "Landlock ABI %d, no --allow-dir: data files outside /dev, /proc and /sys are "
                 "open, execution and device nodes but /dev/net/tun are not",
                 j->landlock_abi);
}
