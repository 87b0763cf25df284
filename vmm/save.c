// SPDX-License-Identifier: Apache-2.0
// A paused microVM to plain data, and back: every field judged before anything of it is used.
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/random.h>

#include "vmm/boot/identity.h"
#include "vmm/state.h"
#include "vmm/vm_priv.h"

struct vm_lineage *vm_lineage(struct vm *vm)
{
    return &vm->lineage;
}

int vm_uffd_info(const struct vm *vm)
{
    return vm->opts.uffd_info > 0 ? vm->opts.uffd_info : -1;
}

int vm_pagemap_fd(const struct vm *vm)
{
    return vm->opts.pagemap_fd > 0 ? vm->opts.pagemap_fd : -1;
}

struct guest_mem *vm_mem(struct vm *vm)
{
    return &vm->mem;
}

static void save_dev(struct vm *vm, const struct dev_slot *d, struct saved_dev *out)
{
    vio_save(d->d, &out->vio);
    if (d->kind == SLOT_BLK) {
        out->kind = SAVED_BLK;
        out->blk.cfg = vm->cfg.drives[d->cfg];
        out->blk.bytes = blk_bytes(d->blk);
        out->blk.limit = *blk_limiter(d->blk);
    } else {
        out->kind = SAVED_NET;
        out->net.cfg = vm->cfg.nets[d->cfg];
        out->net.rx = *net_limiter(d->net, true);
        out->net.tx = *net_limiter(d->net, false);
    }
}

int vm_save(struct vm *vm, struct vm_saved *out, struct err *e)
{
    int rc = 0;

    if (vm->state != VM_PAUSED || out->nvcpus != vm->nvcpus)
        return err_set(e, EPERM, "the microVM is not paused");
    out->machine = vm->cfg.machine;
    out->cpuid = vm->cpuid;
    out->ready = atomic_load(&vm->ready);
    for (unsigned i = 0; i < vm->nvcpus && rc == 0; i++)
        rc = vcpu_state_save(vm->vcpu[i].fd, &vm->caps, &out->vcpu[i], e);
    if (rc == 0)
        rc = vm_clock_save(vm->vm_fd, &out->clock, e);
    if (rc)
        return rc;
    ioapic_save(&vm->ioapic, &out->ioapic);
    serial_save(&vm->serial, &out->serial);
    i8042_save(&vm->i8042, &out->i8042);
    out->ndevs = vm->nslots;
    for (unsigned i = 0; i < vm->nslots; i++)
        save_dev(vm, &vm->slot[i], &out->dev[i]);
    return 0;
}

// ---- restore: judge ---------------------------------------------------------------------------------------

static int check_dev(const struct saved_dev *d, unsigned i, struct err *e)
{
    if (d->kind == SAVED_BLK)
        return cfg_check_id(d->blk.cfg.drive_id, "drive_id", e);
    if (d->kind == SAVED_NET)
        return cfg_check_id(d->net.cfg.iface_id, "iface_id", e);
    return err_set(e, EINVAL, "device %u: unknown kind %u", i, (unsigned)d->kind);
}

int vm_saved_check(struct vm *vm, const struct vm_saved *in, const struct vm_restore_opts *o,
                   struct err *e)
{
    struct cpuid_table host;
    unsigned blk = 0, net = 0;
    uint64_t xcr0 = 0;

    int rc = cfg_check_machine(&in->machine, e);
    if (rc == 0 && in->nvcpus != in->machine.vcpu_count)
        rc = err_set(e, EINVAL, "vcpu_count %u, but %u vCPU states", in->machine.vcpu_count,
                     in->nvcpus);
    if (rc == 0)
        rc = cpuid_check(&in->cpuid, e);
    for (unsigned i = 0; i < in->nvcpus && rc == 0; i++) {
        rc = vcpu_state_check(&in->vcpu[i], o->any_cpu ? NULL : &vm->caps, e);
        xcr0 |= in->vcpu[i].xcrs.nr_xcrs ? in->vcpu[i].xcrs.xcrs[0].value : 0;
        if (rc == 0 && in->vcpu[i].tsc_khz != in->vcpu[0].tsc_khz)
            rc = err_set(e, EINVAL, "vCPU %u: another TSC frequency than vCPU 0's", i);
    }
    if (rc == 0 && in->ndevs > CFG_MAX_DEVS)
        rc = err_set(e, EINVAL, "%u devices", in->ndevs);
    for (unsigned i = 0; i < in->ndevs && rc == 0; i++) {
        rc = check_dev(&in->dev[i], i, e);
        blk += in->dev[i].kind == SAVED_BLK;
        net += in->dev[i].kind == SAVED_NET;
        // Drives come first in the table, so slots and configuration agree.
        if (rc == 0 && in->dev[i].kind == SAVED_BLK && net)
            rc = err_set(e, EINVAL, "device %u: a drive behind an interface", i);
    }
    if (rc == 0 && (blk > CFG_MAX_DRIVES || net > CFG_MAX_NETS))
        rc = err_set(e, EINVAL, "%u drives and %u interfaces", blk, net);
    if (rc || o->any_cpu)
        return rc;
    host = vm->cpuid_host;
    cpuid_hide(&host);
    return vcpu_host_compare(&in->cpuid, xcr0, in->vcpu[0].tsc_khz, &host, vm->caps.host_tsc_khz,
                             vm->caps.tsc_scaling, e);
}

int vm_restore_shape(struct vm *vm, const struct vm_saved *in, const struct vm_restore_opts *o,
                     struct err *e)
{
    struct machine_cfg want = in->machine;

    int rc = vm_refuse_state(vm, false, e);
    if (rc)
        return rc;
    if (vm->cfg.has_boot || vm->cfg.ndrives || vm->cfg.nnets)
        return err_set(
            e, EPERM,
            "loading a snapshot is not allowed after configuring boot-specific resources");
    if ((rc = vm_saved_check(vm, in, o, e)))
        return rc;
    want.track_dirty_pages = o->track_dirty_pages;
    vm->before_load = vm->cfg.machine;
    return vm_put_machine(vm, &want, e);
}

// ---- restore: build ---------------------------------------------------------------------------------------

int vm_restore_open(struct vm *vm, const struct vm_saved *in, struct passed_fds *fds, struct err *e)
{
    int rc = 0;

    for (unsigned i = 0; i < in->ndevs && rc == 0; i++) {
        const struct saved_dev *d = &in->dev[i];
        if (d->kind == SAVED_NET) {
            rc = vm_put_net(vm, &d->net.cfg, fds, e);
            // A second one of the same name took the first one's place: slots would have no device.
            if (rc == 0 && vm->cfg.ndrives + vm->cfg.nnets != i + 1)
                rc = err_set(e, EINVAL, "interface %s is recorded twice", d->net.cfg.iface_id);
            continue;
        }
        rc = vm_put_drive(vm, &d->blk.cfg, fds, e);
        if (rc == 0 && strcmp(vm->cfg.drives[i].drive_id, d->blk.cfg.drive_id))
            rc = err_set(e, EINVAL, "drive %s is recorded out of order", d->blk.cfg.drive_id);
        if (rc == 0 && d->blk.bytes && vm->disk[i].bytes != d->blk.bytes)
            rc =
                err_set(e, EINVAL, "drive %s: its image has %llu bytes, the snapshot recorded %llu",
                        d->blk.cfg.drive_id, (unsigned long long)vm->disk[i].bytes,
                        (unsigned long long)d->blk.bytes);
    }
    return rc;
}

// The state comes from the same stranger as the one that disks and taps were opened for.
static int check_opened(const struct vm *vm, const struct vm_saved *in, struct err *e)
{
    const struct vm_config *c = &vm->cfg;
    bool same = in->ndevs == c->ndrives + c->nnets;

    for (unsigned i = 0; same && i < in->ndevs; i++) {
        const struct saved_dev *d = &in->dev[i];
        if (i < c->ndrives)
            same = d->kind == SAVED_BLK &&
                   !memcmp(&d->blk.cfg, &c->drives[i], sizeof(d->blk.cfg)) &&
                   (!d->blk.bytes || d->blk.bytes == vm->disk[i].bytes);
        else
            same = d->kind == SAVED_NET &&
                   !memcmp(&d->net.cfg, &c->nets[i - c->ndrives], sizeof(d->net.cfg));
    }
    return same ? 0 : err_set(e, EINVAL, "the state is of other devices than were reserved");
}

struct load_call {
    struct vm *vm;
    const struct vm_saved *in;
    const struct vm_restore_opts *o;
    struct err *e;
};

static void load_blk(struct dev_slot *s, const struct saved_dev *d, uint64_t now)
{
    *blk_limiter(s->blk) = d->blk.limit;
    limiter_rebase(blk_limiter(s->blk), now);
    if (!d->blk.bytes) {
        pthread_mutex_lock(&s->d->lock);
        vio_config_changed(s->d);
        pthread_mutex_unlock(&s->d->lock);
    }
}

static void load_net(struct dev_slot *s, const struct saved_dev *d, uint64_t now,
                     const struct vm_restore_opts *o)
{
    if (o->opened) // these came to the guest elsewhere
        net_drop_waiting(s->net);
    *net_limiter(s->net, true) = d->net.rx;
    *net_limiter(s->net, false) = d->net.tx;
    limiter_rebase(net_limiter(s->net, true), now);
    limiter_rebase(net_limiter(s->net, false), now);
    if (o->new_identity)
        net_announce(s->net);
}

// All that is the device thread's in one call, since each call costs two wake-ups.
static int load_devs(void *arg)
{
    struct load_call *c = arg;
    uint64_t now = now_ns();
    int rc = 0;

    for (unsigned i = 0; i < c->in->ndevs && rc == 0; i++) {
        const struct saved_dev *d = &c->in->dev[i];
        struct dev_slot *s = &c->vm->slot[i];
        vio_quiesce(s->d, true);
        if ((rc = vio_load(s->d, &d->vio, c->e)))
            return rc;
        if (d->kind == SAVED_BLK)
            load_blk(s, d, now);
        else
            load_net(s, d, now, c->o);
    }
    for (unsigned i = 0; i < c->in->ndevs && rc == 0 && c->o->resume; i++)
        vio_quiesce(c->vm->slot[i].d, false);
    return rc;
}

static int restore_cpus(struct vm *vm, const struct vm_saved *in, const struct vm_restore_opts *o,
                        struct err *e)
{
    int rc = 0;

    // A shell on a like host has this very table set already, and setting it is the dearest call here.
    bool same = vm->cpuid.nent == in->cpuid.nent &&
                !memcmp(vm->cpuid.e, in->cpuid.e, in->cpuid.nent * sizeof(in->cpuid.e[0]));
    vm->cpuid = in->cpuid;
    for (unsigned i = 0; i < vm->nvcpus && rc == 0 && !same; i++) {
        cpuid_set_id(&vm->cpuid, i);
        rc = cpuid_set(vm->vcpu[i].fd, &vm->cpuid, e);
    }
    cpuid_set_id(&vm->cpuid, 0);
    for (unsigned i = 0; i < vm->nvcpus && rc == 0; i++)
        rc = vcpu_state_load(vm->vcpu[i].fd, &vm->caps, &in->vcpu[i], o->advance_clock, o->any_cpu,
                             e);
    return rc ? rc : vm_clock_load(vm->vm_fd, &in->clock, o->advance_clock, e);
}

// The guest sees the interrupts with its first instructions; sources are edges, so order does not matter.
// #syscalls:config getrandom
static int new_identity(struct vm *vm, struct err *e)
{
    uint8_t id[16];

    if (getrandom(id, sizeof(id), 0) != sizeof(id))
        return err_set(e, EIO, "getrandom: %s", strerror(errno));
    vmgenid_bump(&vm->mem, id);
    ioapic_pulse(&vm->ioapic, PLAT_GED_GSI);
    ioapic_pulse(&vm->ioapic, PLAT_VMCLOCK_GSI);
    return 0;
}

int vm_restore(struct vm *vm, const struct vm_saved *in, const struct vm_restore_opts *o,
               struct err *e)
{
    struct load_call c = {.vm = vm, .in = in, .o = o, .e = e};

    vm->t_start = now_ns();
    int rc = o->opened ? check_opened(vm, in, e) : vm_restore_open(vm, in, o->fds, e);
    if (rc == 0)
        rc = restore_cpus(vm, in, o, e);
    if (rc == 0)
        rc = ioapic_load(&vm->ioapic, &in->ioapic, e);
    if (rc == 0)
        rc = serial_load(&vm->serial, &in->serial, e);
    if (rc == 0)
        rc = i8042_load(&vm->i8042, &in->i8042, e);
    if (rc == 0 && o->track_dirty_pages)
        rc = vm_dirty_track(vm, true, e);
    if (rc == 0)
        rc = devices_create(vm, e);
    if (rc == 0 && o->new_identity)
        rc = new_identity(vm, e);
    if (rc == 0)
        rc = devices_attach(vm, load_devs, &c, e);
    if (rc == 0)
        rc = vm_configured(vm, e);
    if (rc)
        return rc;
    atomic_store(&vm->ready, in->ready);
    vm->state = VM_PAUSED;
    if (o->resume)
        vm_go(vm);
    return 0;
}

static int reset_platform(void *vm)
{
    platform_reset(vm);
    return 0;
}

void vm_restore_undo(struct vm *vm)
{
    devices_free(vm);
    vm_drop_disks(vm);
    vm->disks_unlocked = false;
    mem_unback(&vm->mem);
    loop_call(&vm->loop, reset_platform, vm);
    vm->cfg.machine = vm->before_load;
    vm_rebuild(vm, NULL);
}
