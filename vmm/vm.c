// SPDX-License-Identifier: Apache-2.0
// The life of a microVM: built, armed, started, paused and resumed, ended.
#include "vmm/vm_priv.h"
#include "vmm/handover.h"

#include <linux/kvm.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "vmm/boot/identity.h"
#include "vmm/state.h"

static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

static void set_defaults(struct vm *vm)
{
    vm->cfg.machine = (struct machine_cfg){.vcpu_count = 1, .mem_size_mib = 128};
    vm->kvm_fd = vm->vm_fd = vm->kernel_fd = vm->initrd_fd = vm->metrics_fd = -1;
    vm->serial_out = vm->serial_in = vm->serial_in_file = vm->serial_out_file = -1;
    for (unsigned i = 0; i < CFG_MAX_DRIVES; i++)
        vm->disk[i].fd = vm->disk[i].cow_fd = -1;
    for (unsigned i = 0; i < CFG_MAX_NETS; i++)
        vm->tap[i] = -1;
    for (unsigned i = 0; i < CFG_MAX_DEVS; i++)
        vm->slot[i].kick_fd = vm->slot[i].kick_file = -1;
    vm->loop.wake_fd = vm->lineage.mem_fd = vm->lineage.server = -1;
}

static int build(struct vm *vm, struct err *e)
{
    int rc = kvm_open(vm, e);
    if (rc == 0)
        rc = kvm_add_vcpus(vm, vm->cfg.machine.vcpu_count, e);
    if (rc == 0)
        rc = kvm_set_memory(vm, vm->cfg.machine.mem_size_mib * MIB, e);
    return rc;
}

// Memory of the process itself: everything is allocated before the microVM is configured.
// #syscalls:config brk mmap(!PROT_EXEC) mremap munmap
int vm_new(struct vm **out, const struct vm_opts *o, struct err *e)
{
    struct vm *vm = calloc(1, sizeof(*vm));
    if (!vm)
        return err_set(e, ENOMEM, "out of memory");
    set_defaults(vm);
    vm->opts = *o;
    vm->t_new = now_ns();
    vm->t_new_cpu = cpu_ns();
    if (getrandom(vm->lineage.seed, sizeof(vm->lineage.seed), 0) < 0 ||
        getrandom(vm->lineage.secret, sizeof(vm->lineage.secret), 0) < 0) {
        free(vm);
        return err_set(e, errno, "getrandom: %s", strerror(errno));
    }
    log_init(&vm->log, o->id, platform_log_fd());
    log_thread(&vm->log, "mayfly");
    platform_init(vm);
    devices_init(vm);
    // #syscalls:boot socket
    for (unsigned i = 0; i < SPARE_SOCKS; i++)
        vm->spare_sock[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    vm->exit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    vm->helper_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    atomic_store(&vm->pvm, kvm_is_pvm());
    vm_catch_sigbus();
    int rc = vcpu_signals(e);
    if (rc == 0)
        rc = kvm_ask(vm, e);
    if (rc == 0)
        rc = loop_init(&vm->loop, &devices_loop_ops, vm, e);
    if (rc == 0 && o->pin) {
        int fd = o->pin(vm->loop.ring.ring_fd, VM_FD_RING, 0, e);
        vm->loop.ring.ring_fd = vm->loop.ring.enter_ring_fd = fd;
        rc = MIN(fd, 0);
    }
    if (rc == 0)
        rc = build(vm, e);
    if (rc == 0)
        rc = platform_serial_open(vm, NULL, NULL, e);
    if (rc) {
        vm_free(vm);
        return rc;
    }
    *out = vm;
    return 0;
}

static int helper_started(void *ctx)
{
    struct vm *vm = ctx;
    struct err e = {0};

    log_thread(&vm->log, "helper");
    int rc = vm->opts.confine ? vm->opts.confine(VM_THREAD_HELPER, &e) : 0;
    if (rc)
        vm_end(vm, VM_EXIT_HOST, e.msg);
    return rc;
}

int vm_arm(struct vm *vm, struct err *e)
{
    int rc = loop_start(&vm->loop, e);
    for (unsigned i = 0; i < vm->nvcpus && rc == 0; i++)
        rc = vcpu_thread(&vm->vcpu[i], e);
    if (rc == 0)
        rc = helper_start(&vm->helper, helper_started, vm, e);
    vm->armed = rc == 0;
    uint64_t since = vm->opts.start_time_us ? vm->opts.start_time_us : vm->t_new / 1000;
    atomic_store(&vm->metrics.startup_us, now_ns() / 1000 - since);
    atomic_store(&vm->metrics.startup_cpu_us,
                 cpu_ns() / 1000 - vm->opts.start_cpu_us + vm->opts.parent_cpu_us);
    return rc;
}

// A machine with fewer vCPUs: the VM in KVM is made anew, everything else stays.
int vm_rebuild(struct vm *vm, struct err *e)
{
    int kvm = steal_fd(&vm->kvm_fd);

    vcpu_stop(vm->vcpu, vm->nvcpus, false);
    kvm_close(vm);
    vm->kvm_fd = kvm;
    bool armed = vm->armed;
    vm->armed = false;
    vcpu_gate_init(&vm->gate);
    int rc = build(vm, e);
    for (unsigned i = 0; armed && i < vm->nvcpus && rc == 0; i++)
        rc = vcpu_thread(&vm->vcpu[i], e);
    vm->armed = armed;
    if (rc) // half a machine is none: nothing could run on it
        vm_end(vm, VM_EXIT_HOST, "the microVM could not be rebuilt in KVM");
    return rc;
}

void vm_drop_disks(struct vm *vm)
{
    for (unsigned i = 0; i < CFG_MAX_DRIVES; i++) {
        close_fdp(&vm->disk[i].fd);
        close_fdp(&vm->disk[i].cow_fd);
        vm->disk[i].fd = vm->disk[i].cow_fd = -1;
    }
    for (unsigned i = 0; i < CFG_MAX_NETS; i++) {
        close_fdp(&vm->tap[i]);
        vm->tap[i] = -1;
    }
    vm->cfg.ndrives = vm->cfg.nnets = 0;
}

static void drop_spares(struct vm *vm)
{
    for (unsigned i = 0; i < SPARE_SOCKS; i++) {
        close_fdp(&vm->spare_sock[i]);
        vm->spare_sock[i] = -1;
    }
}

void vm_free(struct vm *vm)
{
    if (vm->nvcpus)
        vcpu_stop(vm->vcpu, vm->nvcpus, true);
    if (vm->armed)
        devices_quiesce(vm); // requests in flight land before their files go
    atomic_store(&vm->lineage.ending, true);
    vm_wake_helper(vm);
    helper_end(&vm->helper);
    vm_flush_console(vm);
    loop_end(&vm->loop);
    if (vm->metrics_fd >= 0)
        vm_emit_metrics(vm);
    devices_free(vm);
    vm_drop_disks(vm);
    platform_serial_close(vm);
    close_fdp(&vm->kernel_fd);
    close_fdp(&vm->initrd_fd);
    close_fdp(&vm->metrics_fd);
    close_fdp(&vm->exit_fd);
    close_fdp(&vm->helper_fd);
    close_fdp(&vm->lineage.mem_fd);
    close_fdp(&vm->lineage.server);
    drop_spares(vm);
    kvm_close(vm);
    if (atomic_load(&vm->log.fd) > STDERR_FILENO)
        close(atomic_load(&vm->log.fd));
    free(vm->lineage.seen);
    free(vm->dirty_log);
    free(vm->mods);
    free(vm);
}

const char *vm_id(const struct vm *vm)
{
    return vm->opts.id;
}

enum vm_state vm_state(const struct vm *vm)
{
    return vm->state;
}

const struct vm_config *vm_config(const struct vm *vm)
{
    return &vm->cfg;
}

bool vm_guest_ready(const struct vm *vm, bool here)
{
    return here ? atomic_load(&vm->metrics.guest_ready_us) : atomic_load(&vm->ready);
}

int vm_exit_fd(const struct vm *vm)
{
    return vm->exit_fd;
}

struct log *vm_log(struct vm *vm)
{
    return &vm->log;
}

int vm_refuse_state(struct vm *vm, bool want_started, struct err *e)
{
    bool started = vm->state != VM_NOT_STARTED;

    if (atomic_load(&vm->ended)) // half a start may lie behind: nothing is built on it
        return err_set(e, EPERM, "The microVM has ended.");
    if (started == want_started)
        return 0;
    return err_set(e, EPERM, "The requested operation is not supported %s starting the microVM.",
                   started ? "after" : "before");
}

// ---- start

// #syscalls:config getrandom
static int load_guest(struct vm *vm, struct err *e)
{
    static const enum mem_pages pages[] = {[HUGE_NONE] = MEM_PAGES_HOST,
                                           [HUGE_TRANSPARENT] = MEM_PAGES_TRANSPARENT,
                                           [HUGE_2M] = MEM_PAGES_2M};
    char cmdline[CFG_CMDLINE_MAX];
    uint8_t id[16];
    struct boot_entry entry = {0};
    struct boot_request rq = {.mem = &vm->mem,
                              .kernel_fd = vm->kernel_fd,
                              .initrd_fd = vm->initrd_fd,
                              .cmdline = cmdline,
                              .vcpus = vm->cfg.machine.vcpu_count};

    rq.ndevs = devices_layout(vm, rq.dev);
    int rc = boot_cmdline(&vm->cfg, rq.dev, rq.ndevs, cmdline, e);
    if (rc == 0)
        rc = mem_back_anon(&vm->mem, pages[vm->cfg.machine.huge_pages], e);
    if (rc == 0)
        rc = boot_load(&rq, &entry, e);
    if (rc == 0 && getrandom(id, sizeof(id), 0) == sizeof(id))
        vmgenid_init(&vm->mem, id);
    if (rc == 0)
        rc = vcpu_set_boot_regs(vm->vcpu[0].fd, entry.kind == BOOT_ENTRY_LINUX64, entry.rip,
                                entry.rsi_or_rbx, entry.rsp, entry.cr3, BOOT_GDT, BOOT_IDT, e);
    // Memory is write-back, as firmware leaves it: where the MTRRs are off, Linux does without its PAT.
    const struct msr_mod mtrr_def_type = {0x2ff, UINT64_MAX, 1 << 11 | 6};
    for (unsigned i = 0; i < vm->nvcpus && rc == 0; i++)
        rc = vcpu_apply_msr_modifiers(vm->vcpu[i].fd, &vm->caps, &mtrr_def_type, 1, e);
    for (unsigned i = 0; vm->mods && i < vm->nvcpus && rc == 0; i++)
        rc = vcpu_apply_msr_modifiers(vm->vcpu[i].fd, &vm->caps, vm->mods->msr, vm->mods->nmsr, e);
    return rc;
}

int vm_configured(struct vm *vm, struct err *e)
{
    drop_spares(vm); // who needed one has connected
    if (atomic_load(&vm->pvm))
        LOG_W(&vm->log,
              "this host's KVM is PVM (no VMX or SVM): a kernel built for PVM guests may run, "
              "an ordinary one cannot");
    return vm->opts.confine ? vm->opts.confine(VM_THREAD_CONTROL, e) : 0;
}

static void let_go(struct vm *vm)
{
    vm->owed = vm->held;
    if (!vm->held)
        vcpu_go(vm->vcpu, vm->nvcpus);
}

void vm_hold(struct vm *vm)
{
    vm->held = true;
}

void vm_release(struct vm *vm)
{
    vm->held = false;
    if (vm->owed)
        let_go(vm);
}

int vm_start(struct vm *vm, struct err *e)
{
    int rc = vm_refuse_state(vm, false, e);
    if (rc)
        return rc;
    if (!vm->cfg.has_boot)
        return err_set(e, EINVAL, "kernel_image_path: cannot start without a boot source");
    vm->t_start = now_ns();
    vm->t_start_cpu = cpu_ns();
    rc = load_guest(vm, e);
    if (rc == 0 && vm->cfg.machine.track_dirty_pages)
        rc = vm_dirty_track(vm, true, e);
    if (rc) { // as before the request: it may be made again
        mem_unback(&vm->mem);
        return rc;
    }
    if ((rc = devices_create(vm, e)) || (rc = devices_attach(vm, NULL, NULL, e))) {
        vm_end(vm, VM_EXIT_FAILURE,
               e->msg); // descriptors are spent: a second start could not succeed
        return rc;
    }
    close_fdp(&vm->kernel_fd);
    close_fdp(&vm->initrd_fd);
    vm->kernel_fd = vm->initrd_fd = -1;
    if ((rc = vm_configured(vm, e))) {
        vm_end(vm, VM_EXIT_FAILURE, e->msg);
        return rc;
    }
    vm->state = VM_RUNNING;
    let_go(vm);
    return 0;
}

// Once for the API's clock and once for the monitor's own: the same here, since no queue lies between.
static void count_latency(struct vm *vm, const char *api, const char *vmm, uint64_t since)
{
    uint64_t us = (now_ns() - since) / 1000;

    vm_count_api(vm, API_PATCH, api, false, us);
    vm_count_api(vm, API_PATCH, vmm, false, us);
}

int vm_pause(struct vm *vm, struct err *e)
{
    uint64_t t = now_ns();
    int rc = vm_refuse_state(vm, true, e);
    if (rc || vm->state == VM_PAUSED)
        return rc;
    vcpu_park(vm->vcpu, vm->nvcpus);
    if ((rc = devices_quiesce(vm)))
        return err_set(e, -rc, "the device thread could not be drained: %s", strerror(-rc));
    vm->state = VM_PAUSED;
    count_latency(vm, "pause_vm", "vmm_pause_vm", t);
    return 0;
}

void vm_go(struct vm *vm)
{
    for (unsigned i = 0; i < vm->nvcpus; i++)
        if (vcpu_tell_paused(vm->vcpu[i].fd))
            atomic_fetch_add(&vm->metrics.kvmclock_ctrl_fails, 1);
    vm->state = VM_RUNNING;
    let_go(vm);
}

int vm_resume(struct vm *vm, struct err *e)
{
    uint64_t t = now_ns();
    int rc = vm_refuse_state(vm, true, e);
    if (rc || vm->state == VM_RUNNING)
        return rc;
    if (vm->disks_unlocked &&
        (rc = vm_disks_lock(vm, true, e))) // a migration gave them up, in vain
        return rc;
    devices_resume(vm);
    vm_go(vm);
    count_latency(vm, "resume_vm", "vmm_resume_vm", t);
    return 0;
}

int vm_ctrl_alt_del(struct vm *vm, struct err *e)
{
    int rc = vm_refuse_state(vm, true, e);
    return rc ? rc : i8042_ctrl_alt_del(&vm->i8042, e);
}

int vm_flush_metrics(struct vm *vm, struct err *e)
{
    int rc = vm_refuse_state(vm, true, e);
    if (rc)
        return rc;
    if (vm->metrics_fd < 0)
        return err_set(e, EINVAL, "metrics were not configured");
    loop_call(&vm->loop, vm_metrics_round, vm);
    return 0;
}
