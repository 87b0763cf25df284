// SPDX-License-Identifier: Apache-2.0
// ELF64 kernels: program headers to guest memory, and the note that names the PVH entry.
#include "vmm/boot/load.h"

#include <elf.h>

#define MAX_PHDRS             64 // a kernel has fewer than ten
#define MAX_NOTES             16384
#define NOTE_XEN_PHYS32_ENTRY 18 // xen/include/public/elfnote.h

struct elf {
    const struct guest_mem *m;
    int fd;
    uint64_t size; // of the file
    unsigned n;
    Elf64_Phdr ph[MAX_PHDRS];
};

static int read_headers(struct elf *f, Elf64_Ehdr *h, struct err *e)
{
    int rc = boot_file_size(f->fd, &f->size, e);
    if (rc < 0)
        return rc;
    memset(h, 0, sizeof(*h));
    rc = boot_pread(f->fd, h, MIN(sizeof(*h), f->size), 0, e);
    if (rc < 0)
        return rc;
    if (f->size < SELFMAG || memcmp(h->e_ident, ELFMAG, SELFMAG) != 0)
        return err_set(e, ENOEXEC, "is not an ELF image");
    if (h->e_ident[EI_CLASS] == ELFCLASS32)
        return err_set(e, EINVAL, "is a 32-bit ELF image; only 64-bit kernels are supported");
    if (f->size < sizeof(*h))
        return err_set(e, EINVAL, "is a truncated ELF image");
    if (h->e_ident[EI_CLASS] != ELFCLASS64 || h->e_ident[EI_DATA] != ELFDATA2LSB ||
        h->e_ident[EI_VERSION] != EV_CURRENT || h->e_machine != EM_X86_64)
        return err_set(e, EINVAL, "is not a little-endian x86-64 ELF image");
    if (h->e_type != ET_EXEC && h->e_type != ET_DYN)
        return err_set(e, EINVAL, "is not an executable ELF image");
    if (h->e_phentsize != sizeof(Elf64_Phdr) || h->e_phnum == 0 || h->e_phnum > MAX_PHDRS)
        return err_set(e, EINVAL, "has %u ELF program headers of %u bytes; at most %d of %zu",
                       h->e_phnum, h->e_phentsize, MAX_PHDRS, sizeof(Elf64_Phdr));
    f->n = h->e_phnum;
    const uint64_t len = f->n * sizeof(Elf64_Phdr);
    if (h->e_phoff > f->size || len > f->size - h->e_phoff)
        return err_set(e, EINVAL, "has ELF program headers outside the file");
    return boot_pread(f->fd, f->ph, len, h->e_phoff, e);
}

static bool is_load(const Elf64_Phdr *p)
{
    return p->p_type == PT_LOAD && p->p_memsz > 0;
}

// Physical range against the file, RAM and every earlier segment. Memory past p_filesz needs no
// zeroing: it is fresh anonymous memory, and no other segment may overlap it.
static int check_segment(const struct elf *f, unsigned i, struct err *e)
{
    const Elf64_Phdr *p = &f->ph[i];
    if (p->p_filesz > p->p_memsz)
        return err_set(e, EINVAL, "ELF segment %u is larger in the file than in memory", i);
    if (p->p_offset > f->size || p->p_filesz > f->size - p->p_offset)
        return err_set(e, EINVAL, "ELF segment %u lies outside the file: truncated?", i);
    if (p->p_paddr < BOOT_HIMEM)
        return err_set(e, EINVAL, "ELF segment %u at 0x%llx lies below 1 MiB", i,
                       (unsigned long long)p->p_paddr);
    const uint64_t ram = f->m->r[0].size;
    if (p->p_paddr > ram || p->p_memsz > ram - p->p_paddr)
        return err_set(
            e, EINVAL,
            "ELF segment %u, 0x%llx bytes at 0x%llx, does not fit in %llu MiB of low RAM", i,
            (unsigned long long)p->p_memsz, (unsigned long long)p->p_paddr,
            (unsigned long long)(ram / MIB));
    for (unsigned j = 0; j < i; j++) {
        const Elf64_Phdr *q = &f->ph[j]; // already checked: no sum overflows
        if (is_load(q) && p->p_paddr < q->p_paddr + q->p_memsz &&
            q->p_paddr < p->p_paddr + p->p_memsz)
            return err_set(e, EINVAL, "ELF segments %u and %u overlap", j, i);
    }
    return 0;
}

static bool in_segment(const struct elf *f, uint64_t addr)
{
    for (unsigned i = 0; i < f->n; i++)
        if (is_load(&f->ph[i]) && addr >= f->ph[i].p_paddr &&
            addr - f->ph[i].p_paddr < f->ph[i].p_memsz)
            return true;
    return false;
}

// Walks one PT_NOTE segment (gABI, "Note Section"): 12-byte header, name and descriptor, each
// padded to the segment's alignment. All offsets are below 2^34, so sums in 64 bits cannot wrap.
static int find_pvh(const struct elf *f, const Elf64_Phdr *p, struct kernel_image *k, struct err *e)
{
    uint8_t buf[MAX_NOTES];
    const uint64_t align = p->p_align == 8 ? 8 : 4;

    if (p->p_offset > f->size || p->p_filesz > f->size - p->p_offset)
        return err_set(e, EINVAL, "ELF notes lie outside the file: truncated?");
    if (p->p_filesz > sizeof(buf))
        return err_set(e, EINVAL, "ELF notes are larger than %zu bytes", sizeof(buf));
    int rc = boot_pread(f->fd, buf, p->p_filesz, p->p_offset, e);
    if (rc < 0)
        return rc;
    for (uint64_t at = 0; at + sizeof(Elf64_Nhdr) <= p->p_filesz;) {
        Elf64_Nhdr n;
        memcpy(&n, buf + at, sizeof(n));
        const uint64_t name = at + sizeof(n), desc = ALIGN_UP(name + n.n_namesz, align);
        if (desc + n.n_descsz > p->p_filesz)
            return err_set(e, EINVAL, "ELF note at %llu is malformed", (unsigned long long)at);
        if (n.n_type == NOTE_XEN_PHYS32_ENTRY && n.n_namesz == sizeof("Xen") &&
            memcmp(buf + name, "Xen", sizeof("Xen")) == 0) {
            if (n.n_descsz != 4 && n.n_descsz != 8)
                return err_set(e, EINVAL, "PVH entry note has %u bytes, not 4 or 8", n.n_descsz);
            k->entry = n.n_descsz == 8 ? le64_get(buf + desc) : le32_get(buf + desc);
            k->pvh = true;
        }
        at = ALIGN_UP(desc + n.n_descsz, align);
    }
    return 0;
}

int elf_load(const struct guest_mem *m, int fd, struct kernel_image *k, struct err *e)
{
    struct elf f = {.m = m, .fd = fd};
    Elf64_Ehdr h;

    memset(k, 0, sizeof(*k));
    int rc = read_headers(&f, &h, e);
    k->entry = h.e_entry;
    // All headers are judged before the first byte of the kernel is copied.
    for (unsigned i = 0; rc == 0 && i < f.n; i++) {
        if (is_load(&f.ph[i])) {
            rc = check_segment(&f, i, e);
            k->end = MAX(k->end, f.ph[i].p_paddr + f.ph[i].p_memsz);
        } else if (f.ph[i].p_type == PT_NOTE) {
            rc = find_pvh(&f, &f.ph[i], k, e);
        }
    }
    if (rc < 0)
        return rc;
    if (!in_segment(&f, k->entry))
        return err_set(e, EINVAL, "%s entry 0x%llx lies in no ELF segment",
                       k->pvh ? "PVH" : "64-bit", (unsigned long long)k->entry);
    k->end = ALIGN_UP(k->end, PAGE_SIZE);
    for (unsigned i = 0; rc == 0 && i < f.n; i++)
        if (is_load(&f.ph[i]) && f.ph[i].p_filesz > 0)
            rc = boot_pread_guest(m, f.ph[i].p_paddr, fd, f.ph[i].p_filesz, f.ph[i].p_offset,
                                  "ELF segment", e);
    return rc;
}
