// SPDX-License-Identifier: Apache-2.0
// AML writer: opcodes by ACPI 6.3 section 20.2, resource descriptors by section 6.4.
#include "vmm/boot/aml.h"

#define NAME_OP    0x08
#define STRING_OP  0x0d
#define BUFFER_OP  0x11
#define WORD_OP    0x0b
#define DWORD_OP   0x0c
#define EXT_PREFIX 0x5b

void aml_bytes(struct aml *a, const void *p, size_t n)
{
    if (n > a->cap - a->n) {
        a->overflow = true;
        return;
    }
    memcpy(a->p + a->n, p, n);
    a->n += n;
}

void aml_u8(struct aml *a, uint8_t v)
{
    aml_bytes(a, &v, 1);
}

void aml_int(struct aml *a, uint64_t v)
{
    if (v <= 1) { // ZeroOp, OneOp
        aml_u8(a, (uint8_t)v);
        return;
    }
    // BytePrefix 0x0a, WordPrefix 0x0b, DWordPrefix 0x0c, QWordPrefix 0x0e; hosts are
    // little-endian.
    const unsigned len = v <= UINT8_MAX ? 1 : v <= UINT16_MAX ? 2 : v <= UINT32_MAX ? 4 : 8;
    aml_u8(a, (uint8_t)(len == 8 ? 0x0e : len == 4 ? DWORD_OP : 0x09 + len));
    aml_bytes(a, &v, len);
}

// A package length of three bytes always: it counts itself, and 20 bits are ample.
#define PKG_LEN 3

size_t aml_open(struct aml *a, enum aml_op op)
{
    if (op >> 8)
        aml_u8(a, EXT_PREFIX);
    aml_u8(a, (uint8_t)(op & 0xff));
    const size_t mark = a->n;
    aml_bytes(a, "\0\0\0", PKG_LEN);
    return mark;
}

void aml_close(struct aml *a, size_t mark)
{
    if (a->overflow)
        return;
    const size_t len = a->n - mark;
    a->p[mark] = (uint8_t)(0x80 | (len & 0xf)); // two more bytes follow
    a->p[mark + 1] = (uint8_t)(len >> 4);
    a->p[mark + 2] = (uint8_t)(len >> 12);
}

void aml_string(struct aml *a, const char *s)
{
    aml_u8(a, STRING_OP);
    aml_bytes(a, s, strlen(s) + 1);
}

void aml_name(struct aml *a, const char *seg)
{
    aml_u8(a, NAME_OP);
    aml_bytes(a, seg, 4);
}

void aml_name_int(struct aml *a, const char *seg, uint64_t v)
{
    aml_name(a, seg);
    aml_int(a, v);
}

void aml_name_string(struct aml *a, const char *seg, const char *s)
{
    aml_name(a, seg);
    aml_string(a, s);
}

size_t aml_device(struct aml *a, const char *seg, const char *hid)
{
    const size_t mark = aml_open(a, AML_DEVICE);
    aml_bytes(a, seg, 4);
    aml_name_string(a, "_HID", hid);
    return mark;
}

// DefBuffer: BufferOp PkgLength BufferSize ByteList; the size is kept a word, filled in at the end.
size_t aml_crs_open(struct aml *a)
{
    aml_name(a, "_CRS");
    aml_u8(a, BUFFER_OP);
    const size_t mark = a->n;
    aml_bytes(a, (const uint8_t[]){0, 0, 0, WORD_OP, 0, 0}, PKG_LEN + 3);
    return mark;
}

void aml_crs_close(struct aml *a, size_t mark)
{
    aml_bytes(a, (const uint8_t[]){0x79, 0}, 2); // end tag, checksum not used
    if (!a->overflow)
        le16_put(a->p + mark + PKG_LEN + 1, (uint16_t)(a->n - mark - PKG_LEN - 3));
    aml_close(a, mark);
}

void aml_crs_memory(struct aml *a, uint64_t base, uint32_t len)
{
    uint8_t d[12] = {0x86, 9, 0, 1}; // 32-bit fixed memory range, 9 bytes, read-write
    le32_put(d + 4, (uint32_t)base); // every device lies below 4 GiB
    le32_put(d + 8, len);
    aml_bytes(a, d, sizeof(d));
}

void aml_crs_io(struct aml *a, uint16_t port, uint8_t len)
{
    uint8_t d[8] = {0x47, 1, 0, 0, 0, 0, 1, len}; // I/O port, decodes 16 bits, alignment 1
    le16_put(d + 2, port);
    le16_put(d + 4, port);
    aml_bytes(a, d, sizeof(d));
}

void aml_crs_irq(struct aml *a, uint32_t gsi)
{
    uint8_t d[9] = {0x89, 6, 0, 3, 1}; // extended interrupt: consumer, edge, active high, exclusive
    le32_put(d + 5, gsi);
    aml_bytes(a, d, sizeof(d));
}
