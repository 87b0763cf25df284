// SPDX-License-Identifier: Apache-2.0
// bzImage kernels (Linux Documentation/arch/x86/boot.rst): setup header and 64-bit entry.
#include "vmm/boot/load.h"

// Offsets of setup_header fields in the file and in the zero page alike.
enum {
    SETUP_SECTS = 0x1f1, // u8, sectors after the first; 0 means 4
    BOOT_FLAG = 0x1fe,
    JUMP = 0x201, // u8 displacement of a short jump over the header: its length, less 0x202
    HEADER = 0x202,
    VERSION = 0x206,
    LOADFLAGS = 0x211,
    XLOADFLAGS = 0x236,
    PREF_ADDRESS = 0x258,
    INIT_SIZE = 0x260,
    HDR_END = 0x264, // what protocol 2.12 surely has
};

static int check_header(const uint8_t *h, struct err *e)
{
    if (le16_get(h + BOOT_FLAG) != 0xaa55 || memcmp(h + HEADER, "HdrS", 4) != 0)
        return err_set(e, EINVAL, "is neither an ELF image nor a bzImage");
    if (le16_get(h + VERSION) < 0x20c)
        return err_set(e, EINVAL, "is a bzImage of boot protocol %u.%02u; 2.12 or later is needed",
                       h[VERSION + 1], h[VERSION]);
    if (!(h[LOADFLAGS] & 1)) // LOADED_HIGH
        return err_set(e, EINVAL, "is a zImage: it loads below 1 MiB");
    if (!(le16_get(h + XLOADFLAGS) & 1)) // XLF_KERNEL_64
        return err_set(e, EINVAL, "is a bzImage without a 64-bit entry (XLF_KERNEL_64)");
    if (HEADER + h[JUMP] < HDR_END)
        return err_set(e, EINVAL, "has a setup header that ends too early");
    return 0;
}

int bzimage_load(const struct guest_mem *m, int fd, struct kernel_image *k, struct err *e)
{
    uint8_t h[SETUP_SECTS + sizeof(k->setup_hdr)];
    uint64_t size;

    memset(k, 0, sizeof(*k));
    int rc = boot_file_size(fd, &size, e);
    if (rc < 0)
        return rc;
    if (size < sizeof(h))
        return err_set(e, EINVAL, "is neither an ELF image nor a bzImage: too short");
    rc = boot_pread(fd, h, sizeof(h), 0, e);
    if (rc == 0)
        rc = check_header(h, e);
    if (rc < 0)
        return rc;
    const uint64_t setup = ((h[SETUP_SECTS] ? h[SETUP_SECTS] : 4U) + 1) * 512U;
    if (size <= setup + BOOT_ENTRY_OFF)
        return err_set(e, EINVAL, "is a truncated bzImage");
    // The preferred address: a relocatable kernel loaded lower would move itself there anyway, so
    // RAM must hold init_size bytes from it on in any case.
    const uint64_t addr = le64_get(h + PREF_ADDRESS), ram = m->r[0].size;
    const uint64_t need = MAX(size - setup, (uint64_t)le32_get(h + INIT_SIZE));
    if (addr < BOOT_HIMEM)
        return err_set(e, EINVAL, "wants to be loaded below 1 MiB");
    if (addr > ram || need > ram - addr)
        return err_set(
            e, EINVAL, "needs 0x%llx bytes at 0x%llx, which do not fit in %llu MiB of low RAM",
            (unsigned long long)need, (unsigned long long)addr, (unsigned long long)(ram / MIB));
    k->bzimage = true;
    k->entry = addr + BOOT_ENTRY_OFF;
    k->end = ALIGN_UP(addr + need, PAGE_SIZE);
    k->init_size = le32_get(h + INIT_SIZE);
    const size_t hdr = HEADER + (size_t)h[JUMP] - SETUP_SECTS;
    memcpy(k->setup_hdr, h + SETUP_SECTS, MIN(sizeof(k->setup_hdr), hdr));
    return boot_pread_guest(m, addr, fd, size - setup, setup, "bzImage", e);
}
