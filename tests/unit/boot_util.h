// SPDX-License-Identifier: Apache-2.0
// What the boot tests share: files in memory, guest memory, and a search for stray writes.
#ifndef TESTS_UNIT_BOOT_UTIL_H
#define TESTS_UNIT_BOOT_UTIL_H

#include <check.h>
#include <elf.h>
#include <sys/mman.h>

#include "vmm/boot/load.h"

#define ck_fails(rc, want, text)                                        \
    do {                                                                \
        ck_assert_int_eq((rc), (want));                                 \
        ck_assert_msg(strstr(e.msg, (text)) != NULL, "got: %s", e.msg); \
    } while (0)

static inline int file_of(const void *p, size_t n)
{
    int fd = memfd_create("image", MFD_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    if (n > 0)
        ck_assert_int_eq(pwrite(fd, p, n, 0), (ssize_t)n);
    return fd;
}

static inline void ram(struct guest_mem *m, uint64_t size)
{
    ck_assert_int_eq(mem_reserve(m, size, NULL), 0);
    ck_assert_int_eq(mem_back_anon(m, false, NULL), 0);
}

static inline const uint8_t *at(const struct guest_mem *m, uint64_t gpa, uint64_t len)
{
    const uint8_t *p = mem_at(m, gpa, len, MEM_READ);
    ck_assert_ptr_nonnull(p);
    return p;
}

struct area {
    uint64_t gpa, len;
};

static inline bool covered(const struct area *a, unsigned n, uint64_t gpa)
{
    for (unsigned i = 0; i < n; i++)
        if (gpa >= a[i].gpa && gpa - a[i].gpa < a[i].len)
            return true;
    return false;
}

// Every byte outside the areas is still zero, and untouched pages stayed untouched (a touched page
// costs host memory in each microVM).
static inline void only_written(const struct guest_mem *m, const struct area *a, unsigned n)
{
    for (unsigned r = 0; r < m->n; r++) {
        const uint64_t pages = m->r[r].size / PAGE_SIZE;
        unsigned char *there = malloc(pages);
        ck_assert_int_eq(mincore(m->r[r].host, m->r[r].size, there), 0);
        for (uint64_t p = 0; p < pages; p++) {
            if (!(there[p] & 1))
                continue;
            for (uint64_t b = 0; b < PAGE_SIZE; b++) {
                const uint64_t off = p * PAGE_SIZE + b;
                if (m->r[r].host[off] != 0 && !covered(a, n, m->r[r].gpa + off))
                    ck_abort_msg("stray write at 0x%llx", (unsigned long long)(m->r[r].gpa + off));
            }
        }
        free(there);
    }
}

// An ELF image with up to 8 program headers and its contents from 4 KiB on.
struct elf_image {
    Elf64_Ehdr h;
    Elf64_Phdr ph[8];
    uint8_t pad[4096 - sizeof(Elf64_Ehdr) - 8 * sizeof(Elf64_Phdr)];
    uint8_t text[4096];
    uint8_t data[4096];
    uint8_t note[256];
};

static inline Elf64_Phdr load(uint64_t off, uint64_t paddr, uint64_t filesz, uint64_t memsz)
{
    return (Elf64_Phdr){
        .p_type = PT_LOAD, .p_offset = off, .p_paddr = paddr, .p_filesz = filesz, .p_memsz = memsz};
}

// Text at 1 MiB, data with bss at 2 MiB - 64 KiB; entry at 1 MiB + 0x10.
static inline void elf_make(struct elf_image *f)
{
    memset(f, 0, sizeof(*f));
    memcpy(f->h.e_ident, ELFMAG, SELFMAG);
    f->h.e_ident[EI_CLASS] = ELFCLASS64;
    f->h.e_ident[EI_DATA] = ELFDATA2LSB;
    f->h.e_ident[EI_VERSION] = EV_CURRENT;
    f->h.e_type = ET_EXEC;
    f->h.e_machine = EM_X86_64;
    f->h.e_phentsize = sizeof(Elf64_Phdr);
    f->h.e_phoff = offsetof(struct elf_image, ph);
    f->h.e_phnum = 2;
    f->h.e_entry = 0x100010;
    f->ph[0] = load(offsetof(struct elf_image, text), 0x100000, 4096, 4096);
    f->ph[1] = load(offsetof(struct elf_image, data), 0x1f0000, 4000, 0x8000);
    memset(f->text, 0x90, sizeof(f->text));
    memset(f->data, 0xda, sizeof(f->data));
}

// Appends a note at `off` of the note area; returns where the next goes.
static inline uint32_t elf_note(struct elf_image *f, uint32_t off, const char *name, uint32_t type,
                                const void *desc, uint32_t len)
{
    const Elf64_Nhdr n = {(Elf64_Word)strlen(name) + 1, len, type};
    memcpy(f->note + off, &n, sizeof(n));
    memcpy(f->note + off + sizeof(n), name, n.n_namesz);
    off += (uint32_t)sizeof(n) + ((n.n_namesz + 3) & ~3U);
    memcpy(f->note + off, desc, len);
    return off + ((len + 3) & ~3U);
}

static inline void elf_notes(struct elf_image *f, uint64_t len)
{
    f->ph[2] = (Elf64_Phdr){.p_type = PT_NOTE,
                            .p_offset = offsetof(struct elf_image, note),
                            .p_filesz = len,
                            .p_align = 4};
    f->h.e_phnum = 3;
}

// A bzImage of boot protocol 2.12: 2 setup sectors more, then `payload` bytes of 0xb2.
static inline size_t bz_make(uint8_t *f, size_t cap, size_t payload)
{
    const size_t setup = 3 * 512;
    ck_assert_uint_le(setup + payload, cap);
    memset(f, 0, cap);
    f[0x1f1] = 2;
    le16_put(f + 0x1fe, 0xaa55);
    f[0x201] = 0x6a;
    memcpy(f + 0x202, "HdrS", 4);
    le16_put(f + 0x206, 0x20c);
    f[0x211] = 1;
    le32_put(f + 0x22c, 0x7fffffff);
    le32_put(f + 0x230, 0x200000);
    f[0x234] = 1;
    le16_put(f + 0x236, 1);
    le64_put(f + 0x258, 0x100000);
    le32_put(f + 0x260, 0x80000);
    memset(f + setup, 0xb2, payload);
    return setup + payload;
}

#endif
