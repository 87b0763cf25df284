// SPDX-License-Identifier: Apache-2.0
// Where the metrics of one microVM come from, and when its requests are counted.
#include "vmm/vm_priv.h"

void vm_count_api(struct vm *vm, enum vm_api_kind kind, const char *what, bool failed,
                  uint64_t took_us)
{
    metrics_count_api(&vm->metrics, kind, what, failed, took_us);
}

void vm_emit_metrics(struct vm *vm)
{
    struct metrics_sources s = {
        .id = vm->cfg.metrics.emit_id ? vm->opts.id : NULL,
        .serial = &vm->serial,
        .i8042 = &vm->i8042,
        .log = &vm->log,
        .vcpu = vm->vcpu,
        .nvcpus = vm->nvcpus,
        .ndevs = vm->nslots,
    };
    for (unsigned i = 0; i < vm->nslots; i++) {
        const struct dev_slot *d = &vm->slot[i];
        bool blk = d->kind == SLOT_BLK;
        s.dev[i] = (struct metrics_device){
            .id = blk ? vm->cfg.drives[d->cfg].drive_id : vm->cfg.nets[d->cfg].iface_id,
            .blk = blk ? blk_metrics(d->blk) : NULL,
            .net = blk ? NULL : net_metrics(d->net),
            .faults = d->d->faults,
        };
    }
    if (metrics_write(&vm->metrics, &s, vm->metrics_fd) == -E2BIG)
        LOG_E(&vm->log, "a line of metrics exceeds %u bytes", METRICS_LINE);
}

#define METRICS_EVERY_NS (60 * NSEC_PER_SEC)

// All lines are written by the device thread, so that no two mix; only where metrics were asked for does a
// sleeping guest's monitor wake once a minute.
int vm_metrics_round(void *ctx)
{
    struct vm *vm = ctx;

    vm_emit_metrics(vm);
    loop_timer(&vm->loop, SLOT_METRICS, now_ns() + METRICS_EVERY_NS);
    return 0;
}
