// SPDX-License-Identifier: Apache-2.0
// Internal to mayfly-jail: builds a jail around one monitor, in Firecracker's layout (compat mode)
// or with nothing on disk at all (strict mode), then becomes it or watches over it.
//
// Everything here runs as the operator, before the monitor exists. Paths on the command line are
// the operator's and followed; what lies inside a jail's own tree may be hostile and is opened link
// by link.
#ifndef JAIL_CMD_JAILER_H
#define JAIL_CMD_JAILER_H

#include "jail/jail.h"

#include <sys/resource.h>
#include <sys/types.h>

#define MAX_LIST 16

struct args {
    bool strict, daemonize, new_pid_ns, version, help;
    const char *id, *exec_file, *base, *netns, *parent_cgroup, *api_sock;
    const char *exec_name; // last part of exec_file
    unsigned cgroup_version;
    uid_t uid;
    gid_t gid;
    bool has_uid, has_gid;
    const char *cgroup[MAX_LIST]; // FILE=VALUE, checked
    const char *tap[MAX_LIST];
    const char *dir[MAX_LIST];
    const char *allow_uid[MAX_LIST]; // checked, as the monitor takes them
    size_t n_cgroup, n_tap, n_dir, n_allow_uid;
    uid_t sock_uid;
    gid_t sock_gid;
    mode_t sock_mode;
    bool has_sock_owner;
    uint64_t fsize, nofile, memlock, nproc;
    char *const *rest; // after "--", for the monitor
    size_t n_rest;
};

// Pure: touches nothing but a. Returns 0, or -EINVAL with the flag named.
int jail_args_parse(struct args *a, int argc, char *const *argv, struct err *e);

// One jail in the making; what is noted here is undone when making it fails, or in strict mode when
// the monitor has ended.
struct run {
    const struct args *a;
    pid_t owner;    // the process that undoes; a fork of it must not
    struct cgroup { // to enter
        char path[512];
        int dir, parent;
        bool made; // by us, to be removed
    } group[MAX_LIST];
    size_t n_group;
    int dir[4]; // compat: base, exec name, id, root
    bool made[4], copied;
    bool socket;
    _Alignas(16) char leave_stack[4096]; // leave_root's helper: its stack, and what went wrong
    int leave_errno;
};

// Says why on stderr, undoes what r notes, ends the process with status 1. The exits of
// mayfly-jail.
__attribute__((noreturn, format(printf, 2, 3))) void die(struct run *r, const char *fmt, ...);
void undo(struct run *r);

void cgroup_make(struct run *r);            // --cgroup, --parent-cgroup
void cgroup_join(struct run *r, pid_t pid); // 0: the caller
void cgroup_undo(struct run *r);

void set_limits(struct run *r);
void enter_netns(struct run *r);
// Makes the working directory, a mount, the root and starts to unmount the old one. It goes on at once, but the old
// root is out of reach only when root_left returns.
void leave_root(struct run *r);
void root_left(struct run *r);
// What the monitor's command line begins with; returns the number of words, argv has room for 128.
size_t monitor_argv(struct run *r, const char **argv, char (*words)[64]);

// execve writes to none of the words, but its prototype is older than const.
static inline char *const *exec_words(const char *const *argv)
{
    char *const *p;
    memcpy(&p, &argv, sizeof(p));
    return p;
}

_Noreturn void compat_run(struct run *r);
_Noreturn void strict_run(struct run *r);

#endif
