// SPDX-License-Identifier: Apache-2.0
// VMGenID and VMClock: no clock reading is offered, only the two counters.
#include "vmm/boot/identity.h"

#include "vmm/dev/platform.h"

// struct vmclock_abi, by offset.
enum {
    VC_MAGIC = 0,       // u32 "VCLK"
    VC_SIZE = 4,        // u32, of the region
    VC_VERSION = 8,     // u16
    VC_COUNTER_ID = 10, // u8; 0xff: no counter, so no time is given
    VC_SEQ = 12,        // u32, odd while an update is under way
    VC_DISRUPTION = 16, // u64
    VC_FLAGS = 24,      // u64; bit 8: generation counter present, bit 9: changes are notified
    VC_GENERATION = 104,
    VC_LEN = 112,
};

static void vmclock_write(const struct guest_mem *m, uint32_t seq, uint64_t disruption,
                          uint64_t generation)
{
    uint8_t c[VC_LEN] = "VCLK";
    le32_put(c + VC_SIZE, (uint32_t)PAGE_SIZE);
    le16_put(c + VC_VERSION, 1);
    c[VC_COUNTER_ID] = 0xff;
    le32_put(c + VC_SEQ, seq);
    le64_put(c + VC_DISRUPTION, disruption);
    le64_put(c + VC_FLAGS, 1U << 8 | 1U << 9);
    le64_put(c + VC_GENERATION, generation);
    mem_write(m, PLAT_VMCLOCK, c, sizeof(c)); // cannot fail: RAM is 1 MiB at least
}

// The guest may have written anything here; it could only deceive itself. A reader that was stopped
// half-way sees another even sequence number and starts again.
static void vmclock_move(const struct guest_mem *m, uint64_t generations)
{
    uint8_t c[VC_LEN];
    if (mem_read(m, PLAT_VMCLOCK, c, sizeof(c)) < 0)
        return;
    vmclock_write(m, (le32_get(c + VC_SEQ) | 1) + 1, le64_get(c + VC_DISRUPTION) + 1,
                  le64_get(c + VC_GENERATION) + generations);
}

void vmgenid_init(const struct guest_mem *m, const uint8_t id[16])
{
    mem_write(m, PLAT_VMGENID, id, 16);
    vmclock_write(m, 0, 0, 0);
}

void vmgenid_bump(const struct guest_mem *m, const uint8_t id[16])
{
    mem_write(m, PLAT_VMGENID, id, 16);
    vmclock_move(m, 1);
}

void vmclock_disrupt(const struct guest_mem *m)
{
    vmclock_move(m, 0);
}
