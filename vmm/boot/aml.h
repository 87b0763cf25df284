// SPDX-License-Identifier: Apache-2.0
// A small writer of ACPI Machine Language (ACPI 6.3, chapter 20): what our DSDT needs, no more.
//
// Bytes go to the caller's buffer; what does not fit is dropped and `overflow` says so, so that
// only the end result needs a check. Packages nest: aml_open returns a mark that aml_close takes.
#ifndef VMM_BOOT_AML_H
#define VMM_BOOT_AML_H

#include "vmm/base.h"

struct aml {
    uint8_t *p;
    size_t n, cap;
    bool overflow;
};

// One or two opcode bytes (0x5b.. when the extended prefix belongs to it).
enum aml_op {
    AML_SCOPE = 0x10,
    AML_PACKAGE = 0x12,
    AML_METHOD = 0x14,
    AML_DEVICE = 0x5b82,
    AML_IF = 0xa0,
};

void aml_bytes(struct aml *a, const void *p, size_t n);
void aml_u8(struct aml *a, uint8_t v);
void aml_int(struct aml *a, uint64_t v); // shortest integer constant

size_t aml_open(struct aml *a, enum aml_op op); // opcode and a length that aml_close fills in
void aml_close(struct aml *a, size_t mark);

void aml_string(struct aml *a, const char *s);
void aml_name(struct aml *a, const char *seg); // Name (SEG_, ...: the value follows
void aml_name_int(struct aml *a, const char *seg, uint64_t v);
void aml_name_string(struct aml *a, const char *seg, const char *s);
size_t aml_device(struct aml *a, const char *seg, const char *hid);

// Name (_CRS, ResourceTemplate () {...}): descriptors between open and close.
size_t aml_crs_open(struct aml *a);
void aml_crs_memory(struct aml *a, uint64_t base, uint32_t len); // Memory32Fixed, ReadWrite
void aml_crs_io(struct aml *a, uint16_t port, uint8_t len);
void aml_crs_irq(struct aml *a, uint32_t gsi); // Edge, ActiveHigh, Exclusive
void aml_crs_close(struct aml *a, size_t mark);

#endif
