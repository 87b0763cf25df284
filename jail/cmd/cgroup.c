// SPDX-License-Identifier: Apache-2.0
// Control groups, version 1 and 2, by plain file writes. Layout: <mount>/<parent>/<id>, as the
// jailer.
#include "jail/cmd/jailer.h"

#include <fcntl.h>
#include <mntent.h>
#include <sys/stat.h>

static void write_file(struct run *r, const char *dir, const char *file, const char *value)
{
    char path[640];
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    _cleanup_(close_fdp) int fd = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t n = (ssize_t)strlen(value);
    if (fd < 0 || write(fd, value, (size_t)n) != n)
        die(r, "cgroup: writing %s to %s: %s", value, path, strerror(errno));
}

// Where the hierarchy of a controller is mounted (version 2 has one for all).
static void find_mount(struct run *r, const char *controller, char *out, size_t size)
{
    bool v2 = r->a->cgroup_version == 2;
    FILE *f = setmntent("/proc/mounts", "re");
    if (!f)
        die(r, "/proc/mounts: %s", strerror(errno));
    for (struct mntent *m; (m = getmntent(f));)
        if (!strcmp(m->mnt_type, v2 ? "cgroup2" : "cgroup") && (v2 || hasmntopt(m, controller))) {
            snprintf(out, size, "%s", m->mnt_dir);
            endmntent(f);
            return;
        }
    endmntent(f);
    die(r, "this host mounts no cgroup v%u hierarchy%s%s", r->a->cgroup_version,
        v2 ? "" : " with controller ", v2 ? "" : controller);
}

// A new v1 cpuset is empty and nothing may enter it: it takes its parent's values, as the jailer
// does.
static void inherit_cpuset(struct run *r, const char *dir, const char *parent)
{
    static const char *const files[] = {"cpuset.cpus", "cpuset.mems"};
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        char path[640], value[256];
        snprintf(path, sizeof(path), "%s/%s", parent, files[i]);
        _cleanup_(close_fdp) int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = read(fd, value, sizeof(value) - 1);
        if (n < 0)
            die(r, "cgroup: %s: %s", path, strerror(errno));
        value[n] = '\0';
        write_file(r, dir, files[i], value);
    }
}

// Makes <mount>/<parent>/<id> for one controller. The last part must be new: a group that is there
// already belongs to a running microVM or to somebody else.
static void make_path(struct run *r, const char *mount, const char *controller, char *leaf,
                      size_t size)
{
    char rel[300], enable[40];
    bool fresh = false;
    snprintf(rel, sizeof(rel), "%s/%s", r->a->parent_cgroup ? r->a->parent_cgroup : r->a->exec_name,
             r->a->id);
    snprintf(enable, sizeof(enable), "+%s", controller);
    snprintf(leaf, size, "%s", mount);
    for (char *p = strtok(rel, "/"); p; p = strtok(NULL, "/")) {
        char parent[512];
        snprintf(parent, sizeof(parent), "%s", leaf);
        if (r->a->cgroup_version == 2)
            write_file(r, parent, "cgroup.subtree_control", enable);
        size_t n = strlen(leaf);
        snprintf(leaf + n, size - n, "/%s", p);
        fresh = !mkdir(leaf, 0755);
        if (fresh) {
            if (!strcmp(controller, "cpuset") && r->a->cgroup_version == 1)
                inherit_cpuset(r, leaf, parent);
        } else if (errno != EEXIST) {
            die(r, "cgroup %s: %s", leaf, strerror(errno));
        }
    }
    // The parents stay: another jail may be about to make its own group in them.
    if (fresh)
        snprintf(r->cgroup_dir[r->n_cgroup_dir++], sizeof(r->cgroup_dir[0]), "%s", leaf);
}

static bool noted(struct run *r, const char *dir)
{
    for (size_t i = 0; i < r->n_cgroup_join; i++)
        if (!strcmp(r->cgroup_join[i], dir))
            return true;
    return false;
}

void cgroup_make(struct run *r)
{
    const struct args *a = r->a;
    char mount[256], leaf[512];
    for (size_t i = 0; i < a->n_cgroup; i++) {
        char file[128], controller[32];
        size_t eq = strcspn(a->cgroup[i], "=");
        snprintf(file, sizeof(file), "%.*s", (int)eq, a->cgroup[i]);
        snprintf(controller, sizeof(controller), "%.*s", (int)strcspn(file, "."), file);
        find_mount(r, controller, mount, sizeof(mount));
        make_path(r, mount, controller, leaf, sizeof(leaf));
        bool new = r->n_cgroup_dir && !strcmp(r->cgroup_dir[r->n_cgroup_dir - 1], leaf);
        if (a->strict && !new && !noted(r, leaf))
            die(r, "cgroup %s exists already: is a microVM of this id running?", leaf);
        write_file(r, leaf, file, a->cgroup[i] + eq + 1);
        if (!noted(r, leaf))
            snprintf(r->cgroup_join[r->n_cgroup_join++], sizeof(r->cgroup_join[0]), "%s", leaf);
    }
    if (!a->n_cgroup && a->parent_cgroup && a->cgroup_version == 2) {
        find_mount(r, "", mount, sizeof(mount));
        snprintf(r->cgroup_join[r->n_cgroup_join++], sizeof(r->cgroup_join[0]), "%s/%s", mount,
                 a->parent_cgroup);
    }
}

void cgroup_join(struct run *r, pid_t pid)
{
    char text[16];
    snprintf(text, sizeof(text), "%d", pid);
    for (size_t i = 0; i < r->n_cgroup_join; i++)
        write_file(r, r->cgroup_join[i], "cgroup.procs", text);
}
