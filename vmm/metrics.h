// SPDX-License-Identifier: Apache-2.0
// Counters of the monitor itself; atomics, any thread.
#ifndef SHIM_M
#define SHIM_M
#include <stdatomic.h>
#include "vmm/base.h"
struct vm_metrics {
    _Atomic uint64_t msi_failed, guest_ready_us, unmapped_mmio, stalled_vcpus, irqs;
};
#endif
