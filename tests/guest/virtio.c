// SPDX-License-Identifier: Apache-2.0
// virtio-mmio transport and split virtqueues, driver side.
#include "virtio.h"

#define ISR_PERIOD_US 10000

unsigned vdev_scan(struct vdev *out, unsigned max)
{
    unsigned n = 0;
    for (const char *s = NULL; n < max && (s = arg_next("virtio_mmio.device", s));) {
        str_u64(&s); // the size, as in 4K@0xc0001000:5
        while (*s && *s != '@' && *s != ' ')
            s++;
        if (*s != '@')
            continue;
        s++;
        struct vdev d = {.base = str_u64(&s), .n = n};
        if (*s == ':') {
            s++;
            d.gsi = (uint32_t)str_u64(&s);
        }
        if (rd32(d.base + MMIO_MAGIC) != 0x74726976 || rd32(d.base + MMIO_VERSION) != 2)
            continue;
        d.id = rd32(d.base + MMIO_DEVICE);
        if (!d.id)
            continue;
        irq_route(d.gsi, n);
        out[n++] = d;
    }
    return n;
}

uint8_t vdev_status(const struct vdev *d)
{
    return (uint8_t)rd32(d->base + MMIO_STATUS);
}

bool vdev_start(struct vdev *d, uint64_t wanted)
{
    uint64_t b = d->base;
    wr32(b + MMIO_STATUS, 0);
    for (unsigned i = 0; rd32(b + MMIO_STATUS); i++) // 4.2.2.2: done when it reads back as zero
        if (i > 100000)
            return false;
    wr32(b + MMIO_STATUS, VIRTIO_ACK);
    wr32(b + MMIO_STATUS, VIRTIO_ACK | VIRTIO_DRIVER);
    wr32(b + MMIO_FEATURES_SEL, 1);
    uint64_t offered = (uint64_t)rd32(b + MMIO_FEATURES) << 32;
    wr32(b + MMIO_FEATURES_SEL, 0);
    offered |= rd32(b + MMIO_FEATURES);
    d->features = offered & (wanted | VIRTIO_F_VERSION_1);
    wr32(b + MMIO_DRIVER_FEATURES_SEL, 0);
    wr32(b + MMIO_DRIVER_FEATURES, (uint32_t)d->features);
    wr32(b + MMIO_DRIVER_FEATURES_SEL, 1);
    wr32(b + MMIO_DRIVER_FEATURES, (uint32_t)(d->features >> 32));
    wr32(b + MMIO_STATUS, VIRTIO_ACK | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
    return vdev_status(d) & VIRTIO_FEATURES_OK;
}

void vdev_ok(struct vdev *d)
{
    wr32(d->base + MMIO_STATUS, VIRTIO_ACK | VIRTIO_DRIVER | VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK);
}

static void write_addr(uint64_t reg, const volatile void *p)
{
    wr32(reg, (uint32_t)(uintptr_t)p);
    wr32(reg + 4, (uint32_t)((uintptr_t)p >> 32));
}

bool vq_setup(struct vq *q, struct vdev *d, uint16_t index, uint16_t max)
{
    wr32(d->base + MMIO_QUEUE_SEL, index);
    uint16_t size = (uint16_t)MIN(rd32(d->base + MMIO_QUEUE_MAX), max);
    if (!size)
        return false;
    if (!q->desc) { // a queue set up again after a reset keeps its memory
        q->desc = arena(sizeof(struct desc) * size, 64);
        q->avail = arena(6 + 2 * (size_t)size, 64);
        q->used = arena(6 + 8 * (size_t)size, 64);
        q->cookie = arena(sizeof(void *) * size, 64);
    }
    q->dev = d;
    q->index = index;
    q->size = q->free = size;
    q->free_head = q->avail_idx = q->last_used = q->kicked = 0;
    q->avail[0] = q->avail[1] = q->used[0] = q->used[1] = 0;
    for (uint16_t i = 0; i < size; i++)
        q->desc[i].next = (uint16_t)(i + 1);
    wr32(d->base + MMIO_QUEUE_NUM, size);
    write_addr(d->base + MMIO_DESC, q->desc);
    write_addr(d->base + MMIO_AVAIL, q->avail);
    write_addr(d->base + MMIO_USED, q->used);
    wr32(d->base + MMIO_QUEUE_READY, 1);
    return true;
}

bool vq_add(struct vq *q, const struct sg *sg, unsigned out, unsigned in, void *cookie)
{
    unsigned n = out + in;
    if (!n || q->free < n)
        return false;
    uint16_t head = q->free_head, i = head, last = head;
    for (unsigned k = 0; k < n; k++) {
        struct desc *e = &q->desc[i];
        e->addr = (uint64_t)sg[k].p;
        e->len = sg[k].len;
        e->flags = (uint16_t)((k >= out ? DESC_WRITE : 0) | (k + 1 < n ? DESC_NEXT : 0));
        last = i;
        i = e->next;
    }
    q->free_head = q->desc[last].next;
    q->free = (uint16_t)(q->free - n);
    q->cookie[head] = cookie;
    q->avail[2 + (q->avail_idx & (q->size - 1))] = head;
    q->avail_idx++;
    BARRIER(); // x86 keeps stores in order; the compiler must too (2.7.13.2)
    q->avail[1] = q->avail_idx;
    return true;
}

void vq_kick(struct vq *q)
{
    uint16_t was = q->kicked, now = q->avail_idx;
    if (was == now)
        return;
    q->kicked = now;
    MFENCE(); // our index must be out before we read what the device wants (2.7.13.4.1)
    bool want = !(q->used[0] & 1);
    if (q->dev->features & VIRTIO_F_EVENT_IDX) {
        uint16_t event = q->used[2 + 4 * q->size];
        want = (uint16_t)(now - event - 1) < (uint16_t)(now - was);
    }
    if (want)
        wr32(q->dev->base + MMIO_NOTIFY, q->index);
}

void vq_break(struct vq *q)
{
    q->avail[2 + (q->avail_idx++ & (q->size - 1))] = 0xffff;
    BARRIER();
    q->avail[1] = q->avail_idx;
    q->kicked = q->avail_idx;
    wr32(q->dev->base + MMIO_NOTIFY, q->index);
}

bool vq_pending(const struct vq *q)
{
    return q->used[1] != q->last_used;
}

void *vq_get(struct vq *q, uint32_t *len)
{
    if (!vq_pending(q))
        return NULL;
    BARRIER(); // pairs with the device's store of used->idx after the element
    const volatile uint16_t *e = q->used + 2 + 4 * (q->last_used & (q->size - 1));
    uint16_t head = e[0], i = head;
    *len = e[2] | (uint32_t)e[3] << 16;
    q->last_used++;
    if (head >= q->size) {
        say("guest: used id %u of queue %u\n", head, q->index);
        return NULL;
    }
    uint16_t n = 1;
    for (; q->desc[i].flags & DESC_NEXT; n++)
        i = q->desc[i].next;
    q->desc[i].next = q->free_head;
    q->free_head = head;
    q->free = (uint16_t)(q->free + n);
    return q->cookie[head];
}

bool vq_arm(struct vq *q, uint16_t after)
{
    q->avail[2 + q->size] = (uint16_t)(q->last_used + after - 1);
    MFENCE(); // the wish must be out before the last look (2.7.7.1)
    return (uint16_t)(q->used[1] - q->last_used) >= after;
}

bool vdev_config_changed(struct vdev *d, uint64_t now, bool progress)
{
    uint32_t n = irqs[16 + d->n];
    bool came = n != d->irqs_seen, now_progressed = progress;
    progress |= d->progressed;
    d->progressed = now_progressed;
    d->irqs_seen = n;
    if (came && progress && !d->isr_due)
        d->isr_due = now + us_tsc(ISR_PERIOD_US);
    bool due = d->isr_due && (int64_t)(now - d->isr_due) >= 0;
    if (!due && !(came && !progress))
        return false;
    d->isr_due = 0;
    d->isr_reads++;
    uint32_t isr = rd32(d->base + MMIO_ISR);
    if (isr)
        wr32(d->base + MMIO_ISR_ACK, isr);
    return isr & 2;
}
