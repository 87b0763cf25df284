// SPDX-License-Identifier: Apache-2.0
// Dirty pages: KVM's log of what vCPUs wrote, joined with the monitor's own bitmap.
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "vmm/state.h"
#include "vmm/vm_priv.h"

int vm_dirty_track(struct vm *vm, bool on, struct err *e)
{
    bool was = vm->cfg.machine.track_dirty_pages;

    free(vm->dirty_log);
    vm->dirty_log = on ? malloc(vm->mem.size / PAGE_SIZE / 8) : NULL;
    if (on && !vm->dirty_log)
        return err_set(e, ENOMEM, "no memory for a dirty log");
    vm->cfg.machine.track_dirty_pages = on;
    int rc = kvm_log_dirty(vm, e);
    if (rc == 0)
        rc = mem_track(&vm->mem, on, e);
    if (rc)
        vm->cfg.machine.track_dirty_pages = was;
    return rc;
}

// The log is fetched a region at a time into the caller's bits; both regions begin on 64-page borders, since
// the gap does and memory is a whole number of MiB.
// #syscalls:control ioctl(KVM_GET_DIRTY_LOG@VM)
// #syscalls:helper ioctl(KVM_GET_DIRTY_LOG@VM)
int vm_dirty_fetch(struct vm *vm, uint64_t *bits, struct err *e)
{
    if (!vm->mem.dirty || !vm->dirty_log)
        return err_set(e, EINVAL, "dirty pages are not tracked");
    for (unsigned i = 0; i < vm->mem.n; i++) {
        const struct mem_region *r = &vm->mem.r[i];
        size_t words = r->size / PAGE_SIZE / 64, at = r->file_off / PAGE_SIZE / 64;
        uint64_t *log = vm->dirty_log;
        struct kvm_dirty_log k = {.slot = i, .dirty_bitmap = log};
        if (ioctl(vm->vm_fd, KVM_GET_DIRTY_LOG, &k))
            return err_set(e, errno, "KVM_GET_DIRTY_LOG: %s", strerror(errno));
        for (size_t w = 0; w < words; w++)
            bits[at + w] |= log[w] | mem_dirty_take(&vm->mem, at + w);
    }
    return 0;
}
