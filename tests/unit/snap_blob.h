// SPDX-License-Identifier: Apache-2.0
// Blobs to break: a saved microVM with something in every field, and a checksum that is always right.
#ifndef TESTS_UNIT_SNAP_BLOB_H
#define TESTS_UNIT_SNAP_BLOB_H

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "snapshot/codec.h"

// Every byte of state that the codec carries gets a value that is not its neighbour's.
static inline struct vm_saved *blob_sample(unsigned vcpus)
{
    struct vm_saved *s = vm_saved_new(vcpus);
    uint8_t n = 1;

    s->machine = (struct machine_cfg){.vcpu_count = vcpus, .mem_size_mib = 128, .smt = true};
    s->ready = true;
    s->cpuid.nent = 3;
    for (unsigned i = 0; i < 3; i++)
        s->cpuid.e[i] = (struct kvm_cpuid_entry2){.function = i, .eax = 17 * i, .edx = ~i};
    s->clock = (struct vm_clock){.clock_ns = 0x1122334455667788, .realtime_ns = 99};
    s->ioapic = (struct ioapic_state){.id = 1, .sel = 2, .rte = {3, 4}, .pending = 5};
    s->serial.rx_len = 2;
    s->i8042.status = 0x1c;
    s->ndevs = 2;
    s->dev[0].kind = SAVED_BLK;
    snprintf(s->dev[0].blk.cfg.drive_id, 8, "root");
    snprintf(s->dev[0].blk.cfg.path_on_host, 16, "/disk");
    s->dev[0].blk.bytes = 1 << 20;
    s->dev[0].vio.q[0] =
        (struct virtq_state){.size = 8, .ready = 1, .desc = 0x1000, .used = 0x2000};
    s->dev[1].kind = SAVED_NET;
    snprintf(s->dev[1].net.cfg.iface_id, 8, "eth0");
    snprintf(s->dev[1].net.cfg.host_dev_name, 8, "tap0");
    s->dev[1].net.rx.bytes.tokens = 77;
    for (unsigned i = 0; i < vcpus; i++) {
        struct vcpu_state *v = &s->vcpu[i];
        memset(&v->regs, n++, sizeof(v->regs));
        memset(v->lapic.regs, 7, 100);
        v->nmsrs = 2;
        v->msr[0] = (struct vcpu_msr){0x10, i};
        v->msr[1] = (struct vcpu_msr){0x174, 5};
        v->xcrs.nr_xcrs = 1;
        v->xcrs.xcrs[0].value = 7;
        v->xsave_size = 4096;
        v->xsave[575] = 9;
        v->events.sipi_vector = 3;
    }
    return s;
}

static inline void blob_seal(uint8_t *buf, size_t len)
{
    le64_put(buf + SNAP_LEN_AT, len);
    le64_put(buf + 56, XXH64(buf + SNAP_HEAD, len - SNAP_HEAD, XXH64(buf, 56, 0)));
}

static inline size_t blob_make(const struct vm_saved *s, uint8_t *buf)
{
    struct snap_blob b = {.id = {1, 2, 3}, .parent = {4}, .info = {.monitor = "test", .id = "vm"}};
    size_t len = 0;
    struct err e;

    return codec_encode(&b, s, buf, SNAP_STATE_MAX, &len, &e) ? 0 : len;
}

#endif
