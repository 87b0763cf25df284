// SPDX-License-Identifier: Apache-2.0
// How a guest learns that it is a clone: VMGenID (Microsoft, "Virtual Machine Generation ID") and
// VMClock (Linux include/uapi/linux/vmclock-abi.h), both in reserved RAM below 1 MiB.
//
// Control thread, with no vCPU running. After vmgenid_bump raise PLAT_GED_GSI and PLAT_VMCLOCK_GSI,
// after vmclock_disrupt PLAT_VMCLOCK_GSI, so that the guest looks.
#ifndef VMM_BOOT_IDENTITY_H
#define VMM_BOOT_IDENTITY_H

#include "vmm/mem/mem.h"

// A new microVM: `id` is 16 random bytes from the caller.
void vmgenid_init(const struct guest_mem *m, const uint8_t id[16]);

// A microVM loaded from a snapshot: fresh random bytes; VMClock's generation and disruption move
// on.
void vmgenid_bump(const struct guest_mem *m, const uint8_t id[16]);

// A microVM that arrived from another host: still the same machine, but its clock has jumped.
void vmclock_disrupt(const struct guest_mem *m);

#endif
