// SPDX-License-Identifier: Apache-2.0
// Fuzz: any file as an ELF kernel is refused or ends up in RAM at or above 1 MiB, and nowhere else.
#include <sys/mman.h>

#include "vmm/boot/load.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RAM (4 * MIB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct guest_mem m;
    static int fd = -1;
    struct kernel_image k;
    struct boot_entry b;
    struct err e = {.msg = ""};

    if (fd < 0) {
        fd = memfd_create("kernel", MFD_CLOEXEC);
        if (fd < 0 || mem_reserve(&m, RAM, &e) < 0 || mem_back_anon(&m, false, &e) < 0)
            abort();
    }
    if (ftruncate(fd, 0) < 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
        abort();
    if (elf_load(&m, fd, &k, &e) < 0) {
        if (!e.msg[0])
            abort(); // a refusal says why
    } else if (k.entry < BOOT_HIMEM || k.entry >= k.end || k.end > RAM || k.bzimage) {
        abort();
    }
    const struct boot_request rq = {
        .mem = &m, .kernel_fd = fd, .initrd_fd = fd, .cmdline = "quiet", .vcpus = 1, .ndevs = 1};
    if (m.r[0].host[BOOT_HIMEM - 1] != 0 || m.r[0].host[0] != 0)
        abort();
    if (boot_load(&rq, &b, &e) == 0 && (b.rip < BOOT_HIMEM || b.rip >= RAM))
        abort();
    return 0;
}
