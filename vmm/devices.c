// SPDX-License-Identifier: Apache-2.0
// The device table, and what the monitor does for virtio devices: interrupts, ring, timers, notes.
#include "vmm/vm_priv.h"

#include <poll.h>
#include <sys/eventfd.h>

// ---- struct vio_host

static void host_irq(void *ctx, unsigned slot)
{
    struct vm *vm = ctx;

    atomic_fetch_add_explicit(&vm->metrics.irqs, 1, memory_order_relaxed);
    ioapic_pulse(&vm->ioapic, PLAT_VIRTIO_GSI + slot);
}

static void host_again(void *ctx, unsigned slot)
{
    loop_again(&((struct vm *)ctx)->loop, slot);
}

static int host_io(void *ctx, struct vio_io *io)
{
    return loop_io(&((struct vm *)ctx)->loop, io);
}

struct file_call {
    struct loop *l;
    int fd;
};

static int call_file_add(void *arg)
{
    const struct file_call *c = arg;
    return loop_file_add(c->l, c->fd);
}

static int call_file_del(void *arg)
{
    const struct file_call *c = arg;
    loop_file_del(c->l, c->fd);
    return 0;
}

// Devices are made on the control thread, which may allocate; the ring listens to its own thread alone.
static int host_file_add(void *ctx, int fd)
{
    struct vm *vm = ctx;
    struct file_call c = {.l = &vm->loop, .fd = fd};
    return vm->state == VM_NOT_STARTED ? loop_file_hold(c.l, fd)
                                       : loop_call(c.l, call_file_add, &c);
}

static void host_file_del(void *ctx, int file)
{
    struct file_call c = {.l = &((struct vm *)ctx)->loop, .fd = file};
    loop_call(c.l, call_file_del, &c);
}

static void host_poll_in(void *ctx, unsigned slot, int file)
{
    struct loop *l = &((struct vm *)ctx)->loop;

    if (!l->linger[file].on)
        loop_linger(l, file); // packets come in
    loop_poll(l, file, slot, POLLIN);
}

static void host_poll_out(void *ctx, unsigned slot, int file)
{
    loop_poll(&((struct vm *)ctx)->loop, file, slot, POLLOUT);
}

static void host_timer(void *ctx, unsigned slot, uint64_t at_ns)
{
    loop_timer(&((struct vm *)ctx)->loop, slot, at_ns);
}

static const char *slot_name(const struct vm *vm, unsigned slot)
{
    const struct dev_slot *s = &vm->slot[slot];
    return s->kind == SLOT_BLK ? vm->cfg.drives[s->cfg].drive_id : vm->cfg.nets[s->cfg].iface_id;
}

static void host_note(void *ctx, unsigned slot, const char *what)
{
    struct vm *vm = ctx;
    LOG_GUEST(&vm->log, "%s: %s", slot_name(vm, slot), what);
}

void devices_init(struct vm *vm)
{
    vm->host = (struct vio_host){
        .ctx = vm,
        .irq = host_irq,
        .again = host_again,
        .io = host_io,
        .file_add = host_file_add,
        .file_del = host_file_del,
        .poll_in = host_poll_in,
        .poll_out = host_poll_out,
        .timer = host_timer,
        .note = host_note,
    };
}

// ---- events of the loop

// QEMU's hours (0, 50, 200, 450, 800, 1,250 ms), since a switch may have lost the first or learn the old port anew
// from a frame still on its way, and some between: a bridge drops what comes before it has seen that the tap has a
// carrier, which on a busy host takes it a second or more, and each round lost is time without the guest. A guest that
// speaks only when spoken to is lost for minutes if all are.
static void devices_announce(struct vm *vm)
{
    static const uint16_t wait_ms[] = {10,  20,  20,  50,   100,  100, 150,
                                       150, 200, 450, 1000, 2000, 4000};

    for (unsigned i = 0; i < vm->nslots; i++)
        if (vm->slot[i].kind == SLOT_NET)
            net_announce(vm->slot[i].net);
    if (vm->announced < ARRAY_SIZE(wait_ms))
        loop_timer(&vm->loop, SLOT_ANNOUNCE, now_ns() + wait_ms[vm->announced++] * 1000000ULL);
}

static void on_kick(void *ctx, unsigned slot)
{
    struct vm *vm = ctx;
    if (slot == SLOT_ANNOUNCE)
        devices_announce(vm);
    else if (slot < vm->nslots)
        vio_kick(vm->slot[slot].d);
}

static void on_ready(void *ctx, unsigned slot)
{
    struct vm *vm = ctx;
    if (slot == SLOT_SERIAL)
        platform_serial_event(vm);
    else if (slot < vm->nslots)
        vio_readable(vm->slot[slot].d);
}

static void on_timer(void *ctx, unsigned slot, uint64_t now)
{
    struct vm *vm = ctx;
    (void)now;
    if (slot == SLOT_METRICS)
        vm_metrics_round(vm);
    else if (slot == SLOT_ANNOUNCE)
        devices_announce(vm);
    else if (slot == SLOT_SERIAL)
        platform_serial_event(vm);
    else if (slot < vm->nslots)
        vio_timer(vm->slot[slot].d);
}

static void on_io_done(void *ctx, struct vio_io *io, int res)
{
    (void)ctx;
    vio_io_done(io, res);
}

static int on_started(void *ctx)
{
    struct vm *vm = ctx;
    struct err e = {0};

    platform_serial_attach(vm);
    log_thread(&vm->log, "device");
    int rc = vm->opts.confine ? vm->opts.confine(VM_THREAD_DEVICE, &e) : 0;
    if (rc)
        LOG_E(&vm->log, "%s", e.msg);
    return rc;
}

static void on_failed(void *ctx, const char *text)
{
    char line[120];
    snprintf(line, sizeof(line), "the device thread failed: %s", text);
    vm_end(ctx, VM_EXIT_HOST, line);
}

const struct loop_ops devices_loop_ops = {
    .kick = on_kick,
    .ready = on_ready,
    .timer = on_timer,
    .io_done = on_io_done,
    .serial = platform_serial_ready,
    .started = on_started,
    .failed = on_failed,
};

// ---- the table

unsigned devices_layout(const struct vm *vm, struct boot_dev out[CFG_MAX_DEVS])
{
    unsigned n = vm->cfg.ndrives + vm->cfg.nnets;

    for (unsigned i = 0; i < n; i++)
        out[i] = (struct boot_dev){.mmio = PLAT_VIRTIO + i * (uint64_t)VIO_MMIO_SIZE,
                                   .gsi = PLAT_VIRTIO_GSI + i};
    return n;
}

static int create_blk(struct vm *vm, unsigned slot, unsigned cfg, struct err *e)
{
    const struct drive_cfg *c = &vm->cfg.drives[cfg];
    struct blk_backing b = {.fd = vm->disk[cfg].fd,
                            .cow_fd = vm->disk[cfg].cow_fd,
                            .bytes = vm->disk[cfg].bytes,
                            .read_only = c->is_read_only,
                            .writeback = c->writeback};
    struct dev_slot *s = &vm->slot[slot];

    s->blk = blk_new(&vm->host, &vm->mem, slot, &b, vm->disk[cfg].id, &c->rate_limiter, e);
    if (!s->blk)
        return -ENOMEM;
    vm->disk[cfg].fd = vm->disk[cfg].cow_fd = -1; // the device's now
    s->d = blk_dev(s->blk);
    s->kind = SLOT_BLK;
    s->cfg = cfg;
    return 0;
}

static int create_net(struct vm *vm, unsigned slot, unsigned cfg, struct err *e)
{
    const struct net_cfg *c = &vm->cfg.nets[cfg];
    struct net_setup n = {.tap_fd = vm->tap[cfg],
                          .has_mac = c->has_mac,
                          .allow_spoof = c->allow_mac_spoofing,
                          .mtu = c->mtu};
    struct dev_slot *s = &vm->slot[slot];

    memcpy(n.mac, c->guest_mac, sizeof(n.mac));
    s->net = net_new(&vm->host, &vm->mem, slot, &n, &c->rx_rate_limiter, &c->tx_rate_limiter, e);
    if (!s->net)
        return -ENOMEM;
    vm->tap[cfg] = -1;
    s->d = net_dev(s->net);
    s->kind = SLOT_NET;
    s->cfg = cfg;
    return 0;
}

// Root first among the drives, drives before interfaces: the order of cfg, and so of vda, vdb, eth0.
int devices_create(struct vm *vm, struct err *e)
{
    int rc = 0;

    for (unsigned i = 0; i < vm->cfg.ndrives && rc == 0; i++, vm->nslots += rc == 0)
        rc = create_blk(vm, vm->nslots, i, e);
    for (unsigned i = 0; i < vm->cfg.nnets && rc == 0; i++, vm->nslots += rc == 0)
        rc = create_net(vm, vm->nslots, i, e);
    return rc;
}

static int watch_all(void *arg)
{
    struct vm *vm = arg;

    int rc = loop_files_put(&vm->loop);
    for (unsigned i = 0; i < vm->nslots && rc == 0; i++) {
        int f = vm->slot[i].kick_file = loop_file_add(&vm->loop, vm->slot[i].kick_fd);
        if (f < 0)
            return f;
        loop_watch(&vm->loop, f, i);
        if (vm->slot[i].kind == SLOT_NET)
            loop_linger(&vm->loop, f);
    }
    return rc;
}

struct attach_call {
    struct vm *vm;
    int (*then)(void *);
    void *arg;
};

static int attach(void *arg)
{
    const struct attach_call *c = arg;
    int rc = watch_all(c->vm);
    return rc || !c->then ? rc : c->then(c->arg);
}

// #syscalls:config eventfd2
int devices_attach(struct vm *vm, int (*then)(void *), void *arg, struct err *e)
{
    struct attach_call c = {vm, then, arg};

    for (unsigned i = 0; i < vm->nslots; i++) {
        vm->slot[i].kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (vm->slot[i].kick_fd < 0)
            return err_set(e, errno, "eventfd: %s", strerror(errno));
        int rc = kvm_ioeventfd(vm, i, true, e);
        if (rc)
            return rc;
    }
    e->msg[0] = 0;
    int rc = loop_call(&vm->loop, attach, &c);
    return rc && !e->msg[0] ? err_set(e, -rc, "cannot watch the doorbells: %s", strerror(-rc)) : rc;
}

static int quiesce_all(void *arg)
{
    struct vm *vm = arg;
    bool quiet = true;

    for (unsigned i = 0; i < vm->nslots; i++)
        quiet &= vio_quiesce(vm->slot[i].d, true);
    return quiet ? 0 : -EAGAIN;
}

int devices_quiesce(struct vm *vm)
{
    return loop_call(&vm->loop, quiesce_all, vm);
}

static int resume_all(void *arg)
{
    struct vm *vm = arg;

    for (unsigned i = 0; i < vm->nslots; i++)
        vio_quiesce(vm->slot[i].d, false);
    return 0;
}

void devices_resume(struct vm *vm)
{
    loop_call(&vm->loop, resume_all, vm);
}

static int unwatch_all(void *arg)
{
    struct vm *vm = arg;

    for (unsigned i = 0; i < vm->nslots; i++)
        loop_file_del(&vm->loop, vm->slot[i].kick_file);
    vm->nslots = 0; // events still under way find no device
    return 0;
}

// No vCPU runs, nothing is in flight.
void devices_free(struct vm *vm)
{
    unsigned n = vm->nslots;

    loop_call(&vm->loop, unwatch_all, vm);
    for (unsigned i = 0; i < n; i++) {
        struct dev_slot *s = &vm->slot[i];
        if (s->kind == SLOT_BLK)
            blk_free(s->blk);
        else if (s->kind == SLOT_NET)
            net_free(s->net);
        close_fdp(&s->kick_fd);
        *s = (struct dev_slot){.kick_fd = -1, .kick_file = -1};
    }
}

struct dev_slot *devices_find(struct vm *vm, enum slot_kind kind, const char *id)
{
    for (unsigned i = 0; i < vm->nslots; i++) {
        if (vm->slot[i].kind == kind && !strcmp(slot_name(vm, i), id))
            return &vm->slot[i];
    }
    return NULL;
}
