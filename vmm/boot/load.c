// SPDX-License-Identifier: Apache-2.0
// boot_load: tells the kernel's format by its content and puts everything in its place.
//
// Files are read when the microVM starts, before the control thread's final filter:
// #syscalls:config pread64 newfstatat
#include "vmm/boot/load.h"
#include "vmm/dev/platform.h"

#include <sys/stat.h>

int boot_file_size(int fd, uint64_t *size, struct err *e)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_set(e, EIO, "cannot be examined: %m");
    if (!S_ISREG(st.st_mode))
        return err_set(e, EINVAL, "is not a regular file");
    *size = (uint64_t)st.st_size;
    return 0;
}

int boot_pread(int fd, void *buf, uint64_t n, uint64_t off, struct err *e)
{
    uint8_t *p = buf;
    while (n > 0) {
        ssize_t r = pread(fd, p, n, (off_t)off);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return err_set(e, EIO, "cannot be read: %m");
        if (r == 0)
            return err_set(e, EIO, "is truncated");
        p += r;
        off += (uint64_t)r;
        n -= (uint64_t)r;
    }
    return 0;
}

int boot_pread_guest(const struct guest_mem *m, uint64_t gpa, int fd, uint64_t n, uint64_t off,
                     const char *what, struct err *e)
{
    void *p = gpa >= BOOT_HIMEM && gpa < MEM_GAP_START ? mem_at(m, gpa, n, MEM_WRITE) : NULL;
    if (!p)
        return err_set(e, EINVAL, "%s at 0x%llx, %llu bytes, does not lie in RAM above 1 MiB", what,
                       (unsigned long long)gpa, (unsigned long long)n);
    mem_dense(m, gpa, n);
    return boot_pread(fd, p, n, off, e);
}

unsigned boot_e820(const struct guest_mem *m, struct e820_range out[E820_MAX])
{
    unsigned n = 0;
    out[n++] = (struct e820_range){0, BOOT_EBDA, E820_RAM};
    out[n++] = (struct e820_range){BOOT_EBDA, BOOT_HIMEM - BOOT_EBDA, E820_RESERVED};
    for (unsigned i = 0; i < m->n; i++) {
        const uint64_t from = MAX(m->r[i].gpa, BOOT_HIMEM), to = m->r[i].gpa + m->r[i].size;
        if (from < to)
            out[n++] = (struct e820_range){from, to - from, E820_RAM};
    }
    return n;
}

// At the top of low RAM, as far as possible from what the kernel unpacks to; an old bzImage says
// how high it can reach.
static int load_initrd(const struct boot_request *rq, const struct kernel_image *k,
                       struct initrd *out, struct err *e)
{
    uint64_t size, top = rq->mem->r[0].size;
    *out = (struct initrd){0};
    if (rq->initrd_fd < 0)
        return 0;
    int rc = boot_file_size(rq->initrd_fd, &size, e);
    if (rc < 0)
        return rc;
    if (size == 0)
        return err_set(e, EINVAL, "is empty");
    if (k->bzimage) // setup_header.initrd_addr_max, offset 0x22c: the last byte's highest address
        top = MIN(top, (uint64_t)le32_get(k->setup_hdr + (0x22c - 0x1f1)) + 1);
    if (size > top || ALIGN_DOWN(top - size, PAGE_SIZE) < k->end)
        return err_set(e, EFBIG, "%llu bytes do not fit between the kernel and the end of low RAM",
                       (unsigned long long)size);
    *out = (struct initrd){ALIGN_DOWN(top - size, PAGE_SIZE), size};
    return boot_pread_guest(rq->mem, out->addr, rq->initrd_fd, size, 0, "initrd", e);
}

// Where a PC's firmware would reset the machine. Linux jumps there in real mode when it has no better way: a kernel
// with EFI support on a hardware-reduced machine does so unless reboot= says otherwise.
static int write_reset_vector(const struct guest_mem *m)
{
    static const uint8_t code[] = {0xb0, 0xfe,           // mov $0xfe, %al
                                   0xe6, PLAT_I8042_CMD, // out %al, $0x64: pulse the reset line
                                   0xf4, 0xeb,           0xfd}; // hlt; jmp to it
    return mem_write(m, BOOT_RESET_VECTOR, code, sizeof(code));
}

int boot_load(const struct boot_request *rq, struct boot_entry *out, struct err *e)
{
    struct kernel_image k = {0};
    struct initrd ird;
    const size_t len = strlen(rq->cmdline) + 1;

    if (rq->ndevs > CFG_MAX_DEVS || rq->vcpus == 0 || rq->vcpus > CFG_MAX_VCPUS || rq->mem->n == 0)
        return err_set(e, EINVAL, "boot: too many devices or vCPUs, or no memory");
    if (len > CFG_CMDLINE_MAX)
        return err_set(e, E2BIG, "boot_args: longer than %d bytes", CFG_CMDLINE_MAX - 1);
    int rc = elf_load(rq->mem, rq->kernel_fd, &k, e);
    if (rc == -ENOEXEC)
        rc = bzimage_load(rq->mem, rq->kernel_fd, &k, e);
    if (rc < 0)
        return err_field(e, "kernel_image_path", rc == -ENOEXEC ? -EINVAL : rc);
    rc = load_initrd(rq, &k, &ird, e);
    if (rc < 0)
        return err_field(e, "initrd_path", rc);
    if (mem_write(rq->mem, BOOT_CMDLINE, rq->cmdline, len) < 0)
        return err_set(e, EFAULT, "no RAM for the command line");
    if (write_reset_vector(rq->mem) < 0)
        return err_set(e, EFAULT, "no RAM for the reset vector");
    rc = acpi_write(rq, e);
    if (rc < 0)
        return rc;
    return k.pvh ? pvh_setup(rq, &k, &ird, out, e) : linux_setup(rq, &k, &ird, out, e);
}
