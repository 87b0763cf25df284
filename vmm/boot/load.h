// SPDX-License-Identifier: Apache-2.0
// What the loaders share among themselves: bounded file reads, the memory map, where things went.
#ifndef VMM_BOOT_LOAD_H
#define VMM_BOOT_LOAD_H

#include "vmm/boot/boot.h"

#define BOOT_EBDA         0x9fc00ULL // from here to 1 MiB nothing is RAM to the guest
#define BOOT_RESET_VECTOR 0xffff0ULL // f000:fff0
#define BOOT_ENTRY_OFF    0x200ULL   // 64-bit entry of a bzImage, past its load address

enum e820_type { E820_RAM = 1, E820_RESERVED = 2 };

struct e820_range {
    uint64_t addr, size;
    enum e820_type type;
};
#define E820_MAX 4

// The guest's memory map, ascending; returns the number of ranges. Everything that ACPI, VMGenID
// and VMClock occupy lies in the reserved range below 1 MiB.
unsigned boot_e820(const struct guest_mem *m, struct e820_range out[E820_MAX]);

struct initrd {
    uint64_t addr, size; // size 0: none
};

// Size of a regular file, or -EINVAL: pipes and devices have no size to check offsets against.
int boot_file_size(int fd, uint64_t *size, struct err *e);

// Reads exactly n bytes at off. Errors: -EIO when the file ends early or cannot be read.
int boot_pread(int fd, void *buf, uint64_t n, uint64_t off, struct err *e);

// Reads n bytes of the file to guest memory; the whole range must be RAM at or above 1 MiB and
// below the gap, else -EINVAL with `what` named.
int boot_pread_guest(const struct guest_mem *m, uint64_t gpa, int fd, uint64_t n, uint64_t off,
                     const char *what, struct err *e);

// Zero page, page tables, GDT (linux.c); start info, GDT (pvh.c). They fill `out`.
int linux_setup(const struct boot_request *rq, const struct kernel_image *k,
                const struct initrd *ird, struct boot_entry *out, struct err *e);
int pvh_setup(const struct boot_request *rq, const struct kernel_image *k, const struct initrd *ird,
              struct boot_entry *out, struct err *e);
int boot_write_gdt(const struct guest_mem *m, bool long_mode);

#endif
