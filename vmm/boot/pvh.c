// SPDX-License-Identifier: Apache-2.0
// PVH (x86/HVM direct boot ABI, xen/include/public/arch-x86/hvm/start_info.h): start info
// version 1.
#include "vmm/boot/load.h"

#define START_MAGIC 0x336ec578

struct start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist, cmdline, rsdp, memmap;
    uint32_t memmap_entries, reserved;
};

struct module {
    uint64_t addr, size, cmdline, reserved;
};

struct memmap_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};

// All three side by side from BOOT_PVH_INFO on: no padding, each 8-byte aligned.
struct pvh_area {
    struct start_info info;
    struct module initrd;
    struct memmap_entry map[E820_MAX];
};
_Static_assert(sizeof(struct start_info) == 56, "start info, version 1");
_Static_assert(sizeof(struct module) == 32 && sizeof(struct memmap_entry) == 24, "PVH ABI");

int pvh_setup(const struct boot_request *rq, const struct kernel_image *k, const struct initrd *ird,
              struct boot_entry *out, struct err *e)
{
    struct e820_range map[E820_MAX];
    struct pvh_area a = {
        .info = {.magic = START_MAGIC,
                 .version = 1,
                 .nr_modules = ird->size > 0,
                 .modlist = ird->size ? BOOT_PVH_INFO + offsetof(struct pvh_area, initrd) : 0,
                 .cmdline = BOOT_CMDLINE,
                 .rsdp = BOOT_RSDP,
                 .memmap = BOOT_PVH_INFO + offsetof(struct pvh_area, map),
                 .memmap_entries = boot_e820(rq->mem, map)},
        .initrd = {.addr = ird->addr, .size = ird->size},
    };
    for (unsigned i = 0; i < a.info.memmap_entries; i++)
        a.map[i] = (struct memmap_entry){map[i].addr, map[i].size, map[i].type, 0};
    if (mem_write(rq->mem, BOOT_PVH_INFO, &a, sizeof(a)) < 0 || boot_write_gdt(rq->mem, false) < 0)
        return err_set(e, EFAULT, "no RAM for PVH start info");
    *out = (struct boot_entry){
        .kind = BOOT_ENTRY_PVH, .rip = k->entry, .rsi_or_rbx = BOOT_PVH_INFO, .rsp = BOOT_STACK};
    return 0;
}
