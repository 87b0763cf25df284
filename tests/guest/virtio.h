// SPDX-License-Identifier: Apache-2.0
// virtio-mmio version 2 and split rings, driver side (virtio 1.2, sections 2.7 and 4.2).
//
// Exits are dear: 28 us each where KVM is software. So interrupts are asked for only before sleep,
// doorbells ring only when the device wants them (event index), and the interrupt status register
// is read
// - at once when an interrupt brought nothing in the used rings (then it tells of the
// configuration), and
// - else at most once in ISR_PERIOD: an edge needs no acknowledgement, a used ring tells of itself,
// and a
//   configuration change that came together with used buffers is seen that little later.
#ifndef TESTS_GUEST_VIRTIO_H
#define TESTS_GUEST_VIRTIO_H

#include "guest.h"

#define VIRTIO_NET 1
#define VIRTIO_BLK 2

#define VIRTIO_F_INDIRECT  (1ull << 28)
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

#define VIRTIO_ACK         1u
#define VIRTIO_DRIVER      2u
#define VIRTIO_DRIVER_OK   4u
#define VIRTIO_FEATURES_OK 8u
#define VIRTIO_NEEDS_RESET 64u
#define VIRTIO_FAILED      128u

enum {
    MMIO_MAGIC = 0x00,
    MMIO_VERSION = 0x04,
    MMIO_DEVICE = 0x08,
    MMIO_VENDOR = 0x0c,
    MMIO_FEATURES = 0x10,
    MMIO_FEATURES_SEL = 0x14,
    MMIO_DRIVER_FEATURES = 0x20,
    MMIO_DRIVER_FEATURES_SEL = 0x24,
    MMIO_QUEUE_SEL = 0x30,
    MMIO_QUEUE_MAX = 0x34,
    MMIO_QUEUE_NUM = 0x38,
    MMIO_QUEUE_READY = 0x44,
    MMIO_NOTIFY = 0x50,
    MMIO_ISR = 0x60,
    MMIO_ISR_ACK = 0x64,
    MMIO_STATUS = 0x70,
    MMIO_DESC = 0x80,
    MMIO_AVAIL = 0x90,
    MMIO_USED = 0xa0,
    MMIO_GENERATION = 0xfc,
    MMIO_CONFIG = 0x100,
};

#define DESC_NEXT     1
#define DESC_WRITE    2
#define DESC_INDIRECT 4

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

struct sg {
    void *p;
    uint32_t len;
};

struct vdev {
    uint64_t base, features;
    uint32_t gsi, id;
    unsigned n;         // irqs[16 + n]
    uint32_t irqs_seen; // value of that counter when vdev_config_changed last looked
    bool progressed;    // the previous turn found used buffers: its interrupt may come late
    uint64_t isr_due;   // when the status register must be read, 0: it need not
    uint64_t isr_reads;
};

struct vq {
    struct vdev *dev;
    uint16_t index, size, free, free_head, avail_idx, last_used, kicked;
    struct desc *desc;
    volatile uint16_t *avail; // flags, idx, ring[size], used_event
    volatile uint16_t *used;  // flags, idx, {id, len}[size], avail_event
    void **cookie;
};

unsigned vdev_scan(struct vdev *out, unsigned max); // from the command line, in its order
bool vdev_start(struct vdev *d, uint64_t wanted);   // reset up to FEATURES_OK
bool vq_setup(struct vq *q, struct vdev *d, uint16_t index, uint16_t max);
void vdev_ok(struct vdev *d);
uint8_t vdev_status(const struct vdev *d);
bool vdev_config_changed(struct vdev *d, uint64_t now,
                         bool progress); // call once per turn of the loop

// One buffer of `out` readable, then `in` writable parts. False when the ring is full.
bool vq_add(struct vq *q, const struct sg *sg, unsigned out, unsigned in, void *cookie);
void vq_kick(struct vq *q);                // one doorbell for all since the last kick, if wanted
void *vq_get(struct vq *q, uint32_t *len); // a used buffer's cookie, or NULL
bool vq_arm(struct vq *q,
            uint16_t after); // interrupt once `after` more are used; true: that is already so
void vq_break(struct vq *q); // publishes a head that cannot be, to see NEEDS_RESET come
bool vq_pending(const struct vq *q);

#endif
