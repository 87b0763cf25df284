// SPDX-License-Identifier: Apache-2.0
// Control groups, version 1 and 2, by plain file writes. Layout: <mount>/<parent>/<id>, as the
// jailer.
#include "jail/cmd/jailer.h"

#include <fcntl.h>
#include <mntent.h>
#include <sys/file.h>
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

// A strict jail's group must be new: one that is there already belongs to a running microVM, to one that is being
// made (it is locked until entered), or was left when a mayfly-jail was killed, and is removed then.
static int claim(struct run *r, const char *leaf)
{
    struct stat held, named;
    for (;;) {
        bool fresh = !mkdir(leaf, 0755);
        if (!fresh && errno != EEXIST)
            die(r, "cgroup %s: %s", leaf, strerror(errno));
        _cleanup_(close_fdp) int fd = open(leaf, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 && errno == ENOENT)
            continue;
        if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) || (!fresh && rmdir(leaf) && errno != ENOENT))
            die(r, "cgroup %s exists already: is a microVM of this id running?", leaf);
        if (fresh && !fstat(fd, &held) && !stat(leaf, &named) && held.st_ino == named.st_ino)
            return steal_fd(&fd);
    }
}

static struct cgroup *noted(struct run *r, const char *path)
{
    for (size_t i = 0; i < r->n_group; i++)
        if (!strcmp(r->group[i].path, path))
            return &r->group[i];
    return NULL;
}

// Makes <mount>/<parent>/<id> for one controller, once. The parents stay: another jail may be about to make its own
// group in them.
static struct cgroup *make_path(struct run *r, const char *mount, const char *controller)
{
    char rel[300], enable[40], leaf[512], parent[512];
    bool v1 = r->a->cgroup_version == 1, fresh = false;
    int fd = -1;
    snprintf(rel, sizeof(rel), "%s/%s", r->a->parent_cgroup ? r->a->parent_cgroup : r->a->exec_name,
             r->a->id);
    snprintf(enable, sizeof(enable), "+%s", controller);
    snprintf(leaf, sizeof(leaf), "%s", mount);
    for (char *p = strtok(rel, "/"), *next; p; p = next) {
        next = strtok(NULL, "/");
        memcpy(parent, leaf, sizeof(parent));
        if (!v1)
            write_file(r, parent, "cgroup.subtree_control", enable);
        size_t n = strlen(leaf);
        snprintf(leaf + n, sizeof(leaf) - n, "/%s", p);
        struct cgroup *g = noted(r, leaf);
        if (g)
            return g;
        if (!next && r->a->strict)
            fd = claim(r, leaf), fresh = true;
        else if (!(fresh = !mkdir(leaf, 0755)) && errno != EEXIST)
            die(r, "cgroup %s: %s", leaf, strerror(errno));
        if (fresh && v1 && !strcmp(controller, "cpuset"))
            inherit_cpuset(r, leaf, parent);
    }
    struct cgroup *g = &r->group[r->n_group++];
    *g = (struct cgroup){.made = fresh, .parent = open(parent, O_PATH | O_CLOEXEC)};
    memcpy(g->path, leaf, sizeof(g->path));
    g->dir = fd >= 0 ? fd : open(leaf, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (g->dir < 0 || g->parent < 0)
        die(r, "cgroup %s: %s", leaf, strerror(errno));
    return g;
}

void cgroup_make(struct run *r)
{
    const struct args *a = r->a;
    char mount[256];
    for (size_t i = 0; i < a->n_cgroup; i++) {
        char file[128], controller[32];
        size_t eq = strcspn(a->cgroup[i], "=");
        snprintf(file, sizeof(file), "%.*s", (int)eq, a->cgroup[i]);
        snprintf(controller, sizeof(controller), "%.*s", (int)strcspn(file, "."), file);
        find_mount(r, controller, mount, sizeof(mount));
        write_file(r, make_path(r, mount, controller)->path, file, a->cgroup[i] + eq + 1);
    }
    if (!a->n_cgroup && a->parent_cgroup && a->cgroup_version == 2) {
        struct cgroup *g = &r->group[r->n_group++];
        find_mount(r, "", mount, sizeof(mount));
        snprintf(g->path, sizeof(g->path), "%s/%s", mount, a->parent_cgroup);
        g->dir = open(g->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
}

void cgroup_join(struct run *r, pid_t pid)
{
    char text[16];
    int n = snprintf(text, sizeof(text), "%d", pid);
    for (size_t i = 0; i < r->n_group; i++) {
        _cleanup_(close_fdp) int fd = openat(r->group[i].dir, "cgroup.procs", O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, text, (size_t)n) != n)
            die(r, "cgroup: entering %s: %s", r->group[i].path, strerror(errno));
    }
}

// A group stays busy for a moment after its last process was reaped. Where the host's tree is gone, its parent's
// descriptor leads to it.
void cgroup_undo(struct run *r)
{
    const struct timespec pause = {.tv_nsec = 5000000};
    for (; r->n_group; r->n_group--) {
        const struct cgroup *g = &r->group[r->n_group - 1];
        for (int i = 0;
             g->made && i < 200 && rmdir(g->path) &&
             (errno == EBUSY || unlinkat(g->parent, r->a->id, AT_REMOVEDIR)) && errno == EBUSY;
             i++)
            nanosleep(&pause, NULL);
    }
}
