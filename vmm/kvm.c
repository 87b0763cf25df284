// SPDX-License-Identifier: Apache-2.0
// The VM as KVM sees it: order of creation is irqchip, vCPUs, memory slots, ioeventfds (a split
// irqchip after a vCPU is -EEXIST; ioeventfds before a slot make it wait for a grace period).
#include "vmm/vm_priv.h"

#include <cpuid.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

static int pin(struct vm *vm, int fd, enum vm_fd which, unsigned index, struct err *e)
{
    return vm->opts.pin && fd >= 0 ? vm->opts.pin(fd, which, index, e) : fd;
}

static void *ask(void *arg)
{
    struct vm *vm = arg;

    vm->cpuid_ask.rc = cpuid_supported(vm->kvm_fd, &vm->cpuid_host, &vm->cpuid_ask.err);
    return NULL;
}

// Which CPUID it supports costs KVM a trap for each leaf where the host is a virtual machine itself, 0.3 ms
// together. So a thread asks while the VM is made; it is gone before privileges are given away.
// #syscalls:boot openat
int kvm_ask(struct vm *vm, struct err *e)
{
    int fd = vm->opts.kvm_fd > 0 ? vm->opts.kvm_fd : open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return err_set(e, errno, "cannot open /dev/kvm: %s%s", strerror(errno),
                       errno == ENOENT ? " (this host has no KVM)" : "");
    vm->kvm_fd = pin(vm, fd, VM_FD_KVM, 0, e);
    if (vm->kvm_fd < 0)
        return vm->kvm_fd;
    vm->cpuid_ask.on = pthread_create(&vm->cpuid_ask.thread, NULL, ask, vm) == 0;
    if (!vm->cpuid_ask.on)
        ask(vm);
    return 0;
}

static int answer(struct vm *vm, struct err *e)
{
    if (vm->cpuid_ask.on)
        pthread_join(vm->cpuid_ask.thread, NULL);
    vm->cpuid_ask.on = false;
    if (vm->cpuid_ask.rc && e)
        *e = vm->cpuid_ask.err;
    return vm->cpuid_ask.rc;
}

// Again when a smaller machine is rebuilt:
// #syscalls:config ioctl(KVM_GET_VCPU_MMAP_SIZE@KVM, KVM_CREATE_VM@KVM)
// #syscalls:config ioctl(KVM_SET_IDENTITY_MAP_ADDR@VM, KVM_SET_TSS_ADDR@VM, KVM_ENABLE_CAP@VM)
int kvm_open(struct vm *vm, struct err *e)
{
    int rs = ioctl(vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (rs < (int)sizeof(struct kvm_run))
        return err_set(e, EIO, "KVM_GET_VCPU_MMAP_SIZE: %s", strerror(errno));
    vm->run_size = (size_t)rs;
    do // a ring that was left a moment ago still interrupts
        vm->vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0UL);
    while (vm->vm_fd < 0 && errno == EINTR);
    if (vm->vm_fd < 0)
        return err_set(e, errno, "KVM_CREATE_VM: %s", strerror(errno));
    vm->vm_fd = pin(vm, vm->vm_fd, VM_FD_VM, 0, e);
    if (vm->vm_fd < 0)
        return vm->vm_fd;
    uint64_t idmap = PLAT_KVM_IDMAP;
    // Only Intel without unrestricted guests needs these two; elsewhere they are accepted and
    // unused.
    ioctl(vm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &idmap);
    ioctl(vm->vm_fd, KVM_SET_TSS_ADDR, (unsigned long)PLAT_KVM_TSS);
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {PLAT_IOAPIC_PINS}};
    if (ioctl(vm->vm_fd, KVM_ENABLE_CAP, &split))
        return err_set(e, errno, "this KVM has no split irqchip: %s", strerror(errno));
    // So that an instruction KVM cannot emulate comes back with its bytes, not as a #UD storm.
    struct kvm_enable_cap emu = {.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE, .args = {1}};
    ioctl(vm->vm_fd, KVM_ENABLE_CAP, &emu);
    // A PMU's counters are not saved with a vCPU, so there is none (AMD's old counters have no CPUID
    // bit that would hide them).
    struct kvm_enable_cap pmu = {.cap = KVM_CAP_PMU_CAPABILITY, .args = {KVM_PMU_CAP_DISABLE}};
    ioctl(vm->vm_fd, KVM_ENABLE_CAP, &pmu);
    return 0;
}

// #syscalls:config ioctl(KVM_SET_USER_MEMORY_REGION@VM)
static int set_slot(struct vm *vm, unsigned i, const struct mem_region *r, struct err *e)
{
    struct kvm_userspace_memory_region k = {
        .slot = i,
        .guest_phys_addr = r->gpa,
        .memory_size = r->size,
        .userspace_addr = (uint64_t)(uintptr_t)r->host,
        .flags = r->size && vm->cfg.machine.track_dirty_pages ? KVM_MEM_LOG_DIRTY_PAGES : 0,
    };
    if (ioctl(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &k))
        return err_set(e, errno, "KVM_SET_USER_MEMORY_REGION: %s", strerror(errno));
    return 0;
}

static void drop_slots(struct vm *vm)
{
    for (unsigned i = 0; i < vm->mem.n; i++) {
        struct mem_region none = {.gpa = vm->mem.r[i].gpa};
        set_slot(vm, i, &none, NULL);
    }
    mem_free(&vm->mem);
}

int kvm_set_memory(struct vm *vm, uint64_t bytes, struct err *e)
{
    struct guest_mem want;

    int rc = mem_reserve(&want, bytes, e);
    if (rc)
        return rc;
    drop_slots(vm);
    vm->mem = want;
    for (unsigned i = 0; i < vm->mem.n && rc == 0; i++)
        rc = set_slot(vm, i, &vm->mem.r[i], e);
    return rc;
}

// The flag alone changes, so the slots stay.
// #syscalls:control ioctl(KVM_SET_USER_MEMORY_REGION@VM)
int kvm_log_dirty(struct vm *vm, struct err *e)
{
    int rc = 0;

    for (unsigned i = 0; i < vm->mem.n && rc == 0; i++)
        rc = set_slot(vm, i, &vm->mem.r[i], e);
    return rc;
}

// CPUID tells each vCPU how many there are, so it is set anew for all when the number grows.
// #syscalls:config ioctl(KVM_CHECK_EXTENSION@VM, KVM_GET_TSC_KHZ@VCPU)
int kvm_set_cpus(struct vm *vm, struct err *e)
{
    struct cpuid_topology topo = {
        .vcpus = vm->nvcpus,
        .smt = vm->cfg.machine.smt,
        .tsc_deadline = ioctl(vm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0,
        .tsc_khz = (uint32_t)MAX(ioctl(vm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0), 0),
    };
    int rc = answer(vm, e);
    if (rc == 0)
        rc = cpuid_build(&vm->cpuid_host, &topo, &vm->cpuid, e);
    if (rc == 0 && vm->mods)
        rc = cpuid_apply_modifiers(&vm->cpuid, vm->mods->cpuid, vm->mods->ncpuid, e);
    for (unsigned i = 0; i < vm->nvcpus && rc == 0; i++) {
        cpuid_set_id(&vm->cpuid, i);
        rc = cpuid_set(vm->vcpu[i].fd, &vm->cpuid, e);
    }
    cpuid_set_id(&vm->cpuid, 0);
    return rc ? rc : vcpu_caps_get(vm->kvm_fd, vm->vm_fd, vm->vcpu[0].fd, &vm->caps, e);
}

// #syscalls:config ioctl(KVM_CREATE_VCPU@VM)
int kvm_add_vcpus(struct vm *vm, unsigned n, struct err *e)
{
    while (vm->nvcpus < n) {
        unsigned id = vm->nvcpus;
        struct vcpu *v = &vm->vcpu[id];
        int rc = vcpu_create(v, vm->vm_fd, id, vm->run_size, &vm->gate, &platform_vcpu_ops, vm, e);
        if (rc)
            return rc;
        v->fd = pin(vm, v->fd, VM_FD_VCPU, id, e);
        if (v->fd < 0) {
            int bad = v->fd;
            vcpu_destroy(v);
            return bad;
        }
        vm->nvcpus++;
        if (vm->armed && (rc = vcpu_thread(v, e)))
            return rc;
    }
    return kvm_set_cpus(vm, e);
}

// Any width, any value: one doorbell for all queues of a device.
// #syscalls:config ioctl(KVM_IOEVENTFD@VM)
int kvm_ioeventfd(struct vm *vm, unsigned slot, bool on, struct err *e)
{
    struct kvm_ioeventfd k = {
        .addr = PLAT_VIRTIO + slot * (uint64_t)VIO_MMIO_SIZE + VIO_NOTIFY_OFF,
        .len = 4,
        .fd = vm->slot[slot].kick_fd,
        .flags = on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN,
    };
    if (ioctl(vm->vm_fd, KVM_IOEVENTFD, &k))
        return err_set(e, errno, "KVM_IOEVENTFD: %s", strerror(errno));
    return 0;
}

// #syscalls:vcpu ioctl(KVM_SIGNAL_MSI@VM)
// #syscalls:device ioctl(KVM_SIGNAL_MSI@VM)
// #syscalls:control ioctl(KVM_SIGNAL_MSI@VM)
void kvm_msi(void *ctx, uint64_t addr, uint32_t data)
{
    struct vm *vm = ctx;
    struct kvm_msi m = {
        .address_lo = (uint32_t)addr, .address_hi = (uint32_t)(addr >> 32), .data = data};

    // 0 means that the guest blocked it, as a wire would; an error means a vector that no CPU
    // takes.
    if (ioctl(vm->vm_fd, KVM_SIGNAL_MSI, &m) < 0)
        atomic_fetch_add_explicit(&vm->metrics.msi_failed, 1, memory_order_relaxed);
}

// Every x86-64 has both leaves, and asking which is the highest costs a trap of its own in a virtual machine.
bool kvm_is_pvm(void)
{
    unsigned a, b, c, d;

    __cpuid(1, a, b, c, d);
    bool vmx = c & 1u << 5;
    __cpuid(0x80000001, a, b, c, d);
    return !vmx && !(c & 1u << 2);
}

void kvm_close(struct vm *vm)
{
    answer(vm, NULL);
    for (unsigned i = 0; i < vm->nvcpus; i++)
        vcpu_destroy(&vm->vcpu[i]);
    vm->nvcpus = 0;
    close_fdp(&vm->vm_fd);
    close_fdp(&vm->kvm_fd);
    vm->vm_fd = vm->kvm_fd = -1;
    mem_free(&vm->mem);
}
