// SPDX-License-Identifier: Apache-2.0
// vmm/boot: from a kernel file to a first instruction. Loaders, command line, ACPI tables.
//
// Control thread only, before the first KVM_RUN. Every byte of a kernel or initrd is hostile:
// offsets and sizes are checked against the file and against RAM, nothing is mapped or executed in
// the monitor. All guest memory is reached through mem_at. Errors: -EINVAL/-EFBIG/-EIO with the
// reason; guest memory may then hold parts of the kernel, and the caller takes its backing away.
//
// Layout (as Firecracker's, so that kernels see what they know): GDT 0x500 (code 0x08, data 0x10, TSS
// 0x18; code is 64-bit for LINUX64, 32-bit for PVH), IDT 0x520, PVH start
// info 0x6000, zero page 0x7000, boot stack 0x8ff0, page tables from 0x9000 to at most 0xdfff, command
// line 0x20000, ACPI tables from the RSDP at 0xe0000 on, kernel at or above 1 MiB, initrd page-aligned
// at the top of low RAM. 0x9fc00 to 1 MiB is reserved in the guest's memory map and begins with the MP tables; VMGenID
// and VMClock lie there too (vmm/boot/identity.h, which the caller of boot_load also calls).
#ifndef VMM_BOOT_BOOT_H
#define VMM_BOOT_BOOT_H

#include "vmm/config.h"
#include "vmm/mem/mem.h"

#define BOOT_GDT       0x500ULL
#define BOOT_IDT       0x520ULL
#define BOOT_PVH_INFO  0x6000ULL
#define BOOT_ZERO_PAGE 0x7000ULL
#define BOOT_STACK     0x8ff0ULL
#define BOOT_PML4      0x9000ULL
#define BOOT_CMDLINE   0x20000ULL
#define BOOT_RSDP      0xe0000ULL
#define BOOT_HIMEM     0x100000ULL

// What the guest's platform looks like: shared by ACPI and the device table (vmm/dev/platform.h has
// the addresses).
struct boot_dev {
    uint64_t mmio; // base of a 4 KiB virtio-mmio window
    uint32_t gsi;
};

struct boot_request {
    const struct guest_mem *mem;
    int kernel_fd, initrd_fd; // initrd_fd -1: none
    const char *cmdline;      // complete, as composed by boot_cmdline
    unsigned vcpus;
    unsigned ndevs;
    struct boot_dev dev[CFG_MAX_DEVS];
};

enum boot_entry_kind {
    BOOT_ENTRY_PVH,    // 32-bit protected mode, paging off, %ebx = start info (Xen PVH / HVM direct
                       // boot ABI)
    BOOT_ENTRY_LINUX64 // 64-bit long mode, identity page tables, %rsi = zero page (Linux boot
                       // protocol)
};

struct boot_entry { // register state of vCPU 0, made by vmm/vcpu from this
    enum boot_entry_kind kind;
    uint64_t rip, rsi_or_rbx, rsp;
    uint64_t cr3; // LINUX64
};

// Loads kernel, initrd, command line, boot parameters, page tables or start info, and ACPI tables.
// The loader is found by content: ELF with PVH note, else 64-bit ELF, else bzImage (protocol
// >= 2.12 with XLF_KERNEL_64).
int boot_load(const struct boot_request *rq, struct boot_entry *out, struct err *e);

// Composes the final command line into out: the caller's arguments (or the default ones), root
// device and virtio_mmio.device= entries placed before any "--". Errors: -E2BIG when it does not
// fit in CFG_CMDLINE_MAX, named.
int boot_cmdline(const struct vm_config *c, const struct boot_dev *dev, unsigned ndevs,
                 char out[CFG_CMDLINE_MAX], struct err *e);

// Parts, visible for their tests and fuzzers.
struct kernel_image {
    uint64_t entry; // 64-bit entry, or PVH entry when pvh
    uint64_t end;   // first guest address past the kernel, page-aligned: the initrd must lie above
    bool pvh;
    bool bzimage;
    uint8_t setup_hdr[0x80]; // bzImage: header bytes 0x1f1.. to copy into the zero page
    uint32_t init_size;
};
int elf_load(const struct guest_mem *m, int fd, struct kernel_image *k,
             struct err *e); // -ENOEXEC: not ELF
int bzimage_load(const struct guest_mem *m, int fd, struct kernel_image *k, struct err *e);
int acpi_write(const struct boot_request *rq, struct err *e);

#endif
