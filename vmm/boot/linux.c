// SPDX-License-Identifier: Apache-2.0
// The Linux 64-bit boot protocol: zero page, identity page tables, GDT.
#include "vmm/boot/load.h"

// Offsets in struct boot_params (Linux Documentation/arch/x86/zero-page.rst).
enum {
    ZP_ACPI_RSDP = 0x070,
    ZP_E820_ENTRIES = 0x1e8,
    ZP_SETUP_HDR = 0x1f1,
    ZP_BOOT_FLAG = 0x1fe,
    ZP_HEADER = 0x202,
    ZP_VERSION = 0x206,
    ZP_TYPE_OF_LOADER = 0x210,
    ZP_RAMDISK_IMAGE = 0x218,
    ZP_RAMDISK_SIZE = 0x21c,
    ZP_CMD_LINE_PTR = 0x228,
    ZP_KERNEL_ALIGNMENT = 0x230,
    ZP_CMDLINE_SIZE = 0x238,
    ZP_SETUP_DATA = 0x250,
    ZP_E820_TABLE = 0x2d0, // of 20-byte entries
};

#define PTE_PRESENT_WRITE 3ULL
#define PTE_LARGE         0x80ULL

int boot_write_gdt(const struct guest_mem *m, bool long_mode)
{
    // Null, code at 0x08, data at 0x10, busy TSS at 0x18: flat 4 GiB, ring 0. KVM takes the
    // segments from their cached state; this is for a kernel that reloads a selector before its own
    // GDT.
    const uint64_t gdt[4] = {0, long_mode ? 0x00af9b000000ffffULL : 0x00cf9b000000ffffULL,
                             0x00cf93000000ffffULL, 0x00008b0000000067ULL};
    const uint64_t idt = 0;
    if (mem_write(m, BOOT_GDT, gdt, sizeof(gdt)) < 0)
        return -EFAULT;
    return mem_write(m, BOOT_IDT, &idt, sizeof(idt));
}

// Identity map in 2 MiB pages (1 GiB pages are not on every CPU), as many GiB as the kernel
// reaches: the protocol asks for kernel, zero page and command line.
static int write_page_tables(const struct guest_mem *m, uint64_t end)
{
    const uint64_t gib = (end + GIB - 1) / GIB, pdpt = BOOT_PML4 + PAGE_SIZE;
    uint8_t *t = mem_at(m, BOOT_PML4, (2 + gib) * PAGE_SIZE, MEM_WRITE);
    if (!t)
        return -EFAULT;
    le64_put(t, pdpt | PTE_PRESENT_WRITE);
    for (uint64_t i = 0; i < gib; i++)
        le64_put(t + PAGE_SIZE + i * 8, (pdpt + (i + 1) * PAGE_SIZE) | PTE_PRESENT_WRITE);
    for (uint64_t i = 0; i < gib * 512; i++)
        le64_put(t + 2 * PAGE_SIZE + i * 8, (i * 2 * MIB) | PTE_LARGE | PTE_PRESENT_WRITE);
    return 0;
}

static void fill_zero_page(uint8_t z[PAGE_SIZE], const struct boot_request *rq,
                           const struct kernel_image *k, const struct initrd *ird)
{
    struct e820_range map[E820_MAX];
    const unsigned n = boot_e820(rq->mem, map);

    if (k->bzimage) {
        memcpy(z + ZP_SETUP_HDR, k->setup_hdr, sizeof(k->setup_hdr));
    } else { // vmlinux has no setup header; the kernel looks at these
        le16_put(z + ZP_BOOT_FLAG, 0xaa55);
        memcpy(z + ZP_HEADER, "HdrS", 4);
        le16_put(z + ZP_VERSION, 0x20c);
        le32_put(z + ZP_KERNEL_ALIGNMENT, 0x1000000);
    }
    z[ZP_TYPE_OF_LOADER] = 0xff; // undefined loader
    le32_put(z + ZP_CMD_LINE_PTR, BOOT_CMDLINE);
    le32_put(z + ZP_CMDLINE_SIZE, (uint32_t)strlen(rq->cmdline));
    le32_put(z + ZP_RAMDISK_IMAGE, (uint32_t)ird->addr); // below the gap, so 32 bits hold both
    le32_put(z + ZP_RAMDISK_SIZE, (uint32_t)ird->size);
    le64_put(z + ZP_SETUP_DATA, 0);
    le64_put(z + ZP_ACPI_RSDP, BOOT_RSDP);
    z[ZP_E820_ENTRIES] = (uint8_t)n;
    for (unsigned i = 0; i < n; i++) {
        le64_put(z + ZP_E820_TABLE + i * 20, map[i].addr);
        le64_put(z + ZP_E820_TABLE + i * 20 + 8, map[i].size);
        le32_put(z + ZP_E820_TABLE + i * 20 + 16, map[i].type);
    }
}

int linux_setup(const struct boot_request *rq, const struct kernel_image *k,
                const struct initrd *ird, struct boot_entry *out, struct err *e)
{
    uint8_t z[PAGE_SIZE] = {0};
    fill_zero_page(z, rq, k, ird);
    if (mem_write(rq->mem, BOOT_ZERO_PAGE, z, sizeof(z)) < 0 ||
        write_page_tables(rq->mem, k->end) < 0 || boot_write_gdt(rq->mem, true) < 0)
        return err_set(e, EFAULT, "no RAM for boot parameters");
    *out = (struct boot_entry){.kind = BOOT_ENTRY_LINUX64,
                               .rip = k->entry,
                               .rsi_or_rbx = BOOT_ZERO_PAGE,
                               .rsp = BOOT_STACK,
                               .cr3 = BOOT_PML4};
    return 0;
}
