// SPDX-License-Identifier: Apache-2.0
// Configuration before the start: each request is checked whole, opened, and only then kept.
#include "vmm/vm_priv.h"

#include <fcntl.h>
#include <sys/stat.h>

int vm_put_machine(struct vm *vm, const struct machine_cfg *c, struct err *e)
{
    int rc = vm_refuse_state(vm, false, e);
    if (rc || (rc = cfg_check_machine(c, e)))
        return rc;
    const struct machine_cfg old = vm->cfg.machine;
    if (c->vcpu_count == vm->nvcpus && c->mem_size_mib == old.mem_size_mib && c->smt == old.smt &&
        c->track_dirty_pages == old.track_dirty_pages) {
        vm->cfg.machine = *c; // a shell of this shape stands already
        return 0;
    }
    bool resize =
        c->mem_size_mib != old.mem_size_mib || c->track_dirty_pages != old.track_dirty_pages;
    vm->cfg.machine = *c;
    // KVM cannot take a vCPU away, so a smaller machine is built anew.
    if (c->vcpu_count < vm->nvcpus)
        rc = vm_rebuild(vm, e);
    else
        rc = kvm_add_vcpus(vm, c->vcpu_count, e);
    if (rc == 0 && resize)
        rc = kvm_set_memory(vm, c->mem_size_mib * MIB, e);
    if (rc) { // half of the new machine may stand: the old one is built again
        vm->cfg.machine = old;
        vm_rebuild(vm, NULL);
    }
    return rc;
}

int vm_put_cpu(struct vm *vm, const struct cpu_mods *m, struct err *e)
{
    int rc = vm_refuse_state(vm, false, e);
    if (rc)
        return rc;
    struct cpu_mods *old = vm->mods;
    vm->mods = malloc(sizeof(*m));
    if (!vm->mods) {
        vm->mods = old;
        return err_set(e, ENOMEM, "out of memory");
    }
    *vm->mods = *m;
    rc = kvm_set_cpus(vm, e);
    free(rc ? vm->mods : old);
    if (rc) {
        vm->mods = old;
        kvm_set_cpus(vm, NULL);
    }
    return rc;
}

int vm_put_boot(struct vm *vm, const struct boot_cfg *c, struct passed_fds *fds, struct err *e)
{
    int rc = vm_refuse_state(vm, false, e);
    if (rc || (c->has_args && (rc = cfg_check_cmdline(c->boot_args, e))))
        return rc;
    _cleanup_(close_fdp) int k =
        path_open(vm, c->kernel_image_path, "kernel_image_path", O_RDONLY, fds, e);
    if (k < 0)
        return k;
    _cleanup_(close_fdp) int rd = -1;
    if (c->initrd_path[0] &&
        (rd = path_open(vm, c->initrd_path, "initrd_path", O_RDONLY, fds, e)) < 0)
        return rd;
    close_fdp(&vm->kernel_fd);
    close_fdp(&vm->initrd_fd);
    vm->kernel_fd = steal_fd(&k);
    vm->initrd_fd = steal_fd(&rd);
    vm->cfg.boot = *c;
    vm->cfg.has_boot = true;
    return 0;
}

static bool same_file(int a, int b)
{
    struct stat x, y;
    return a >= 0 && b >= 0 && !fstat(a, &x) && !fstat(b, &y) && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

// A running drive that takes the image it has (it grew) goes on with the description that holds
// the lock: a second one would find its own image in use.
// #syscalls:control fcntl(F_DUPFD_CLOEXEC, F_SETFD)
static int take_image(int *fd, int held, bool read_only, struct err *e)
{
    if (!same_file(*fd, held))
        return blk_lock(*fd, read_only, e);
    close_fdp(fd);
    *fd = fcntl(held, F_DUPFD_CLOEXEC, 0);
    return *fd < 0 ? err_set(e, errno, "%s", strerror(errno)) : 0;
}

// One owner per disk. A drive that replaces itself on the same image gives its own lock up first,
// and takes it back when the new one cannot be had.
static int lock_image(int fd, bool read_only, int held, bool held_ro, struct err *e)
{
    bool own = same_file(fd, held);
    if (own)
        blk_unlock(held);
    int rc = blk_lock(fd, read_only, e);
    if (rc && own)
        blk_lock(held, held_ro, NULL);
    return rc;
}

static bool base_ro(const struct drive_cfg *c)
{
    return c->is_read_only || c->cow_path[0];
}

struct old_disk { // what the drive stands on so far; -1: nothing
    int fd, cow_fd;
    bool ro, live;
};

static int lock_disk(int *fd, int cow, const struct drive_cfg *c, const struct old_disk *old,
                     struct err *e)
{
    int rc = old->live ? take_image(fd, old->fd, base_ro(c), e)
                       : lock_image(*fd, base_ro(c), old->fd, old->ro, e);
    if (rc || cow < 0)
        return err_field(e, "path_on_host", rc);
    rc = lock_image(cow, false, old->cow_fd, false, e);
    if (rc && same_file(*fd, old->fd)) {
        close_fdp(fd);
        *fd = -1;
        blk_lock(old->fd, old->ro, NULL);
    }
    return err_field(e, "cow_path", rc);
}

// #syscalls:config newfstatat fcntl(F_OFD_SETLK)
// #syscalls:control newfstatat fcntl(F_OFD_SETLK)
static int open_disk(struct vm *vm, const struct drive_cfg *c, const struct old_disk *old,
                     struct passed_fds *fds, struct disk *out, struct err *e)
{
    struct stat st;
    char id[64];

    _cleanup_(close_fdp) int fd =
        path_open(vm, c->path_on_host, "path_on_host", base_ro(c) ? O_RDONLY : O_RDWR, fds, e);
    if (fd < 0)
        return fd;
    _cleanup_(close_fdp) int cow = -1;
    if (c->cow_path[0] && (cow = path_open(vm, c->cow_path, "cow_path", O_RDWR, fds, e)) < 0)
        return cow;
    int rc = err_field(e, "path_on_host", blk_check(fd, &out->bytes, e));
    if (rc == 0 && !vm->disks_unlocked)
        rc = lock_disk(&fd, cow, c, old, e);
    if (rc)
        return rc;
    if (fstat(fd, &st))
        return err_set(e, errno, "path_on_host: %s", strerror(errno));
    snprintf(id, sizeof(id), "%llu%llu%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_rdev, (unsigned long long)st.st_ino);
    memset(out->id, 0, sizeof(out->id));
    memcpy(out->id, id, strnlen(id, sizeof(out->id)));
    out->fd = steal_fd(&fd);
    out->cow_fd = steal_fd(&cow);
    return 0;
}

static int find_drive(const struct vm *vm, const char *id)
{
    for (unsigned i = 0; i < vm->cfg.ndrives; i++)
        if (!strcmp(vm->cfg.drives[i].drive_id, id))
            return (int)i;
    return -1;
}

static void drop_drive(struct vm *vm, unsigned i)
{
    close_fdp(&vm->disk[i].fd);
    close_fdp(&vm->disk[i].cow_fd);
    vm->cfg.ndrives--;
    memmove(&vm->cfg.drives[i], &vm->cfg.drives[i + 1],
            (vm->cfg.ndrives - i) * sizeof(vm->cfg.drives[0]));
    memmove(&vm->disk[i], &vm->disk[i + 1], (vm->cfg.ndrives - i) * sizeof(vm->disk[0]));
}

static void insert_drive(struct vm *vm, unsigned i, const struct drive_cfg *c, const struct disk *d)
{
    memmove(&vm->cfg.drives[i + 1], &vm->cfg.drives[i],
            (vm->cfg.ndrives - i) * sizeof(vm->cfg.drives[0]));
    memmove(&vm->disk[i + 1], &vm->disk[i], (vm->cfg.ndrives - i) * sizeof(vm->disk[0]));
    vm->cfg.drives[i] = *c;
    vm->disk[i] = *d;
    vm->cfg.ndrives++;
}

int vm_put_drive(struct vm *vm, const struct drive_cfg *c, struct passed_fds *fds, struct err *e)
{
    struct disk d = {.fd = -1, .cow_fd = -1};

    int rc = vm_refuse_state(vm, false, e);
    if (rc || (rc = cfg_check_id(c->drive_id, "drive_id", e)))
        return rc;
    int old = find_drive(vm, c->drive_id);
    if (c->is_root_device && vm->cfg.ndrives && vm->cfg.drives[0].is_root_device && old != 0)
        return err_set(e, EINVAL, "is_root_device: a root block device already exists (%s)",
                       vm->cfg.drives[0].drive_id);
    if (old < 0 && vm->cfg.ndrives == CFG_MAX_DRIVES)
        return err_set(e, EINVAL, "drive_id: no more than %d drives", CFG_MAX_DRIVES);
    if (c->cow_path[0] && c->is_read_only)
        return err_set(e, EINVAL, "cow_path: a read-only drive needs no copy-on-write layer");
    struct old_disk was = {.fd = -1, .cow_fd = -1};
    if (old >= 0)
        was = (struct old_disk){.fd = vm->disk[old].fd,
                                .cow_fd = vm->disk[old].cow_fd,
                                .ro = base_ro(&vm->cfg.drives[old])};
    if ((rc = open_disk(vm, c, &was, fds, &d, e)))
        return rc;
    unsigned at = old >= 0 ? (unsigned)old : vm->cfg.ndrives;
    if (old >= 0)
        drop_drive(vm, at);
    insert_drive(vm, c->is_root_device ? 0 : at, c, &d);
    return 0;
}

int vm_put_net(struct vm *vm, const struct net_cfg *c, struct passed_fds *fds, struct err *e)
{
    int rc = vm_refuse_state(vm, false, e);
    if (rc || (rc = cfg_check_id(c->iface_id, "iface_id", e)))
        return rc;
    unsigned at = vm->cfg.nnets;
    for (unsigned i = 0; i < vm->cfg.nnets; i++) {
        const struct net_cfg *o = &vm->cfg.nets[i];
        if (!strcmp(o->iface_id, c->iface_id))
            at = i;
        else if (c->has_mac && o->has_mac && !memcmp(o->guest_mac, c->guest_mac, 6))
            return err_set(e, EINVAL, "guest_mac: already in use by interface %s", o->iface_id);
        else if (!strcmp(o->host_dev_name, c->host_dev_name) && strncmp(c->host_dev_name, "fd:", 3))
            return err_set(e, EBUSY, "host_dev_name: %.15s is in use by interface %s",
                           c->host_dev_name, o->iface_id);
    }
    if (at == CFG_MAX_NETS)
        return err_set(e, EINVAL, "iface_id: no more than %d interfaces", CFG_MAX_NETS);
    bool replace = at < vm->cfg.nnets;
    // The same tap cannot be opened twice: an interface that replaces itself on it keeps the
    // descriptor.
    if (!replace || strcmp(vm->cfg.nets[at].host_dev_name, c->host_dev_name) ||
        !strncmp(c->host_dev_name, "fd:", 3)) {
        int fd = path_open_tun(vm, c->host_dev_name, fds, e);
        if (fd < 0)
            return fd;
        if (replace)
            close_fdp(&vm->tap[at]);
        vm->tap[at] = fd;
    }
    vm->cfg.nets[at] = *c;
    vm->cfg.nnets += !replace;
    return 0;
}

int vm_put_logger(struct vm *vm, const struct logger_cfg *c, struct passed_fds *fds, struct err *e)
{
    int rc = vm_refuse_state(vm, false, e);
    if (rc)
        return rc;
    int fd = c->log_path[0] ? path_open_sink(vm, c->log_path, "log_path", fds, e) : -1;
    if (c->log_path[0] && fd < 0)
        return fd;
    log_configure(&vm->log, c, fd);
    vm->cfg.logger = *c;
    vm->cfg.has_logger = true;
    return 0;
}

int vm_put_metrics(struct vm *vm, const struct metrics_cfg *c, struct passed_fds *fds,
                   struct err *e)
{
    int rc = vm_refuse_state(vm, false, e);
    if (rc)
        return rc;
    if (vm->cfg.has_metrics)
        return err_set(e, EINVAL, "metrics_path: reinitialization of metrics not allowed");
    int fd = path_open_sink(vm, c->metrics_path, "metrics_path", fds, e);
    if (fd < 0)
        return fd;
    vm->metrics_fd = fd;
    vm->cfg.metrics = *c;
    vm->cfg.has_metrics = true;
    loop_call(&vm->loop, vm_metrics_round, vm);
    return 0;
}

int vm_put_serial(struct vm *vm, const struct serial_cfg *c, struct passed_fds *fds, struct err *e)
{
    int rc = vm_refuse_state(vm, false, e);
    if (rc)
        return rc;
    if (c->serial_out_path[0] && (rc = platform_serial_open(vm, c->serial_out_path, fds, e)))
        return rc;
    struct limiter_cfg l = {.set = true, .bandwidth = c->rate_limiter};
    limiter_init(&vm->serial_limit, &l, now_ns());
    vm->cfg.serial = *c;
    vm->cfg.has_serial = true;
    return 0;
}

// ---- after the start

struct patch {
    struct dev_slot *s;
    const struct blk_backing *b;
    const char *id;
    const struct limiter_cfg *one, *two;
    struct err *e;
};

static int patch_blk(void *arg)
{
    struct patch *p = arg;
    int rc = p->b ? blk_swap(p->s->blk, p->b, p->id, p->e) : 0;
    if (rc >= 0 && p->one)
        blk_limit(p->s->blk, p->one);
    return rc;
}

// The configuration tells what is in force: buckets that were not named stay.
static void keep_limit(struct limiter_cfg *have, const struct limiter_cfg *now)
{
    have->set |= now && now->set;
    if (now && now->bandwidth.set)
        have->bandwidth = now->bandwidth;
    if (now && now->ops.set)
        have->ops = now->ops;
}

int vm_patch_drive(struct vm *vm, const char *id, const char *path, const struct limiter_cfg *rl,
                   struct passed_fds *fds, struct err *e)
{
    struct patch p = {.one = rl, .e = e};
    struct disk d = {.fd = -1, .cow_fd = -1};
    struct blk_backing b;
    _cleanup_(close_fdp) int old = -1;
    int rc = vm_refuse_state(vm, true, e);
    if (rc)
        return rc;
    p.s = devices_find(vm, SLOT_BLK, id);
    if (!p.s)
        return err_set(e, ENOENT, "drive_id: no drive %.64s", id);
    struct drive_cfg *c = &vm->cfg.drives[p.s->cfg];
    struct drive_cfg want = *c;
    if (path) {
        if (c->cow_path[0])
            return err_set(e, EINVAL,
                           "path_on_host: drive %s has a copy-on-write layer over its image", id);
        snprintf(want.path_on_host, sizeof(want.path_on_host), "%s", path);
        const struct old_disk was = {.fd = blk_fd(p.s->blk), .cow_fd = -1, .live = true};
        if ((old = fcntl(was.fd, F_DUPFD_CLOEXEC, 0)) < 0)
            return err_set(e, errno, "path_on_host: %m");
        if ((rc = open_disk(vm, &want, &was, fds, &d, e)))
            return rc;
        b = (struct blk_backing){.fd = d.fd,
                                 .cow_fd = -1,
                                 .bytes = d.bytes,
                                 .read_only = want.is_read_only,
                                 .writeback = want.writeback};
        p.b = &b;
        p.id = d.id;
    }
    keep_limit(&want.rate_limiter, rl);
    rc = loop_call(&vm->loop, patch_blk, &p);
    if (rc == 0 && !same_file(d.fd, old)) // the ring of Linux 6.1 lets it go, and its lock, late
        blk_unlock(old);
    if (rc < 0)
        close_fdp(&d.fd);
    else
        *c = want;
    return MIN(rc, 0);
}

static int patch_net(void *arg)
{
    struct patch *p = arg;
    net_limit(p->s->net, p->one, p->two);
    return 0;
}

int vm_patch_net(struct vm *vm, const char *id, const struct limiter_cfg *rx,
                 const struct limiter_cfg *tx, struct err *e)
{
    struct patch p = {.one = rx, .two = tx, .s = devices_find(vm, SLOT_NET, id)};

    int rc = vm_refuse_state(vm, true, e);
    if (rc)
        return rc;
    if (!p.s)
        return err_set(e, ENOENT, "iface_id: no interface %.64s", id);
    keep_limit(&vm->cfg.nets[p.s->cfg].rx_rate_limiter, rx);
    keep_limit(&vm->cfg.nets[p.s->cfg].tx_rate_limiter, tx);
    return loop_call(&vm->loop, patch_net, &p);
}
