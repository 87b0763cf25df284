// SPDX-License-Identifier: Apache-2.0
// The MMIO transport's registers and the driver's way through them (virtio 1.2, 2.1, 3.1, 4.2).
//
// Whatever the guest writes, in whatever order and width, ends in one of three ways: it takes
// effect, it is ignored, or the device sets DEVICE_NEEDS_RESET.
//
// #syscalls:vcpu futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)
#include "virtio/mmio.h"

#define MAGIC  0x74726976u // "virt"
#define VENDOR 0x594c464du // "MFLY"

enum { // 4.2.2
    REG_MAGIC = 0x000,
    REG_VERSION = 0x004,
    REG_DEVICE_ID = 0x008,
    REG_VENDOR_ID = 0x00c,
    REG_DEV_FEAT = 0x010,
    REG_DEV_FEAT_SEL = 0x014,
    REG_DRV_FEAT = 0x020,
    REG_DRV_FEAT_SEL = 0x024,
    REG_QUEUE_SEL = 0x030,
    REG_QUEUE_NUM_MAX = 0x034,
    REG_QUEUE_NUM = 0x038,
    REG_QUEUE_READY = 0x044,
    REG_QUEUE_NOTIFY = VIO_NOTIFY_OFF,
    REG_ISR = 0x060,
    REG_ISR_ACK = 0x064,
    REG_STATUS = VIO_STATUS_OFF,
    REG_DESC_LO = 0x080,
    REG_DESC_HI = 0x084,
    REG_AVAIL_LO = 0x090,
    REG_AVAIL_HI = 0x094,
    REG_USED_LO = 0x0a0,
    REG_USED_HI = 0x0a4,
    REG_SHM_LEN_LO = 0x0b0,
    REG_SHM_LEN_HI = 0x0b4,
    REG_SHM_BASE_LO = 0x0b8,
    REG_SHM_BASE_HI = 0x0bc,
    REG_CONFIG_GEN = 0x0fc,
    REG_CONFIG = 0x100,
};

#define STEPS (VIO_ST_ACKNOWLEDGE | VIO_ST_DRIVER | VIO_ST_FEATURES_OK | VIO_ST_DRIVER_OK)

static struct virtq *selected(struct vio_dev *d)
{
    return d->s.queue_sel < d->ops->queues ? &d->queue[d->s.queue_sel] : NULL;
}

static uint32_t read_reg(struct vio_dev *d, uint32_t off)
{
    const struct virtq *q = selected(d);
    switch (off) {
    case REG_MAGIC:
        return MAGIC;
    case REG_VERSION:
        return 2;
    case REG_DEVICE_ID:
        return d->ops->id;
    case REG_VENDOR_ID:
        return VENDOR;
    case REG_DEV_FEAT:
        return d->s.dev_feat_sel < 2 ? (uint32_t)(vio_offered(d) >> (32 * d->s.dev_feat_sel)) : 0;
    case REG_QUEUE_NUM_MAX:
        return q ? VIO_QUEUE_SIZE : 0;
    case REG_QUEUE_READY:
        return q ? q->s.ready : 0;
    case REG_STATUS:
        return d->s.status;
    case REG_SHM_LEN_LO: // no shared memory regions: all ones (4.2.2)
    case REG_SHM_LEN_HI:
    case REG_SHM_BASE_LO:
    case REG_SHM_BASE_HI:
        return UINT32_MAX;
    case REG_CONFIG_GEN:
        return d->s.config_gen;
    default:
        return 0;
    }
}

uint64_t vio_mmio_read(struct vio_dev *d, uint32_t off, unsigned len)
{
    if (off >= VIO_MMIO_SIZE || len == 0 || len > 8)
        return 0;
    if (off < REG_CONFIG && (len != 4 || off % 4))
        return 0;
    if (off == REG_ISR)
        return atomic_load(&d->isr);
    uint64_t v = 0;
    pthread_mutex_lock(&d->lock);
    if (off >= REG_CONFIG)
        d->ops->config_read(d, off - REG_CONFIG, &v, len);
    else
        v = read_reg(d, off);
    pthread_mutex_unlock(&d->lock);
    return v;
}

static void set_half(uint64_t *reg, bool high, uint32_t v)
{
    *reg = high ? (*reg & UINT32_MAX) | (uint64_t)v << 32 : (*reg & ~(uint64_t)UINT32_MAX) | v;
}

// A queue takes its shape between FEATURES_OK and DRIVER_OK, and none while it is ready: whatever
// was checked at activation stays true until reset.
static void write_queue(struct vio_dev *d, uint32_t off, uint32_t v)
{
    struct virtq *q = selected(d);
    const uint32_t st = d->s.status;
    if (!q || !(st & VIO_ST_FEATURES_OK) || (st & (VIO_ST_DRIVER_OK | VIO_ST_FAILED)))
        return;
    if (off == REG_QUEUE_READY) {
        q->s.ready = v == 1;
        return;
    }
    if (q->s.ready)
        return;
    switch (off) {
    case REG_QUEUE_NUM: // judged at activation; what is too large for the field is no size at all
        q->s.size = v <= VIO_QUEUE_SIZE ? (uint16_t)v : 0;
        break;
    case REG_DESC_LO:
    case REG_DESC_HI:
        set_half(&q->s.desc, off == REG_DESC_HI, v);
        break;
    case REG_AVAIL_LO:
    case REG_AVAIL_HI:
        set_half(&q->s.avail, off == REG_AVAIL_HI, v);
        break;
    default:
        set_half(&q->s.used, off == REG_USED_HI, v);
        break;
    }
}

static void driver_ok(struct vio_dev *d)
{
    d->s.status |= VIO_ST_DRIVER_OK;
    if (vio_activate(d) < 0)
        vio_fault(d, "cannot be activated as the driver set it up");
    else
        d->host->again(d->host->ctx, d->slot); // chains may wait already
}

static void write_status(struct vio_dev *d, uint32_t v)
{
    const uint32_t cur = d->s.status & ~(uint32_t)VIO_ST_NEEDS_RESET;
    if (d->reset_pending)
        return;
    if (v == 0) {
        vio_reset(d);
        return;
    }
    const uint32_t add = v & (STEPS | VIO_ST_FAILED) & ~cur;
    if (cur & ~v) // 2.1.1: a driver must not clear a bit but by reset
        return;
    if (add & VIO_ST_FAILED) {
        d->s.status |= VIO_ST_FAILED;
        d->active = false;
        return;
    }
    if (d->s.status & (VIO_ST_FAILED | VIO_ST_NEEDS_RESET)) // only a reset leads out
        return;
    // 3.1.1: one step at a time, each on top of all the ones before.
    if (add == VIO_ST_ACKNOWLEDGE && cur == 0)
        d->s.status |= VIO_ST_ACKNOWLEDGE;
    else if (add == VIO_ST_DRIVER && cur == VIO_ST_ACKNOWLEDGE)
        d->s.status |= VIO_ST_DRIVER;
    else if (add == VIO_ST_FEATURES_OK && cur == (VIO_ST_ACKNOWLEDGE | VIO_ST_DRIVER)) {
        if (vio_features_ok(d, d->s.drv_features))
            d->s.status |= VIO_ST_FEATURES_OK;
    } else if (add == VIO_ST_DRIVER_OK && cur == (STEPS & ~VIO_ST_DRIVER_OK))
        driver_ok(d);
}

static void write_reg(struct vio_dev *d, uint32_t off, uint32_t v)
{
    switch (off) {
    case REG_DEV_FEAT_SEL:
        d->s.dev_feat_sel = v;
        break;
    case REG_DRV_FEAT_SEL:
        d->s.drv_feat_sel = v;
        break;
    case REG_DRV_FEAT: // words past the second hold no feature we offer: refused when not zero
        if (!(d->s.status & VIO_ST_DRIVER) || (d->s.status & VIO_ST_FEATURES_OK))
            break;
        if (d->s.drv_feat_sel < 2)
            set_half(&d->s.drv_features, d->s.drv_feat_sel == 1, v);
        else if (v)
            vio_fault(d, "driver accepts a feature beyond bit 63");
        break;
    case REG_QUEUE_SEL:
        d->s.queue_sel = v;
        break;
    case REG_QUEUE_NUM:
    case REG_QUEUE_READY:
    case REG_DESC_LO:
    case REG_DESC_HI:
    case REG_AVAIL_LO:
    case REG_AVAIL_HI:
    case REG_USED_LO:
    case REG_USED_HI:
        write_queue(d, off, v);
        break;
    case REG_STATUS:
        write_status(d, v);
        break;
    default: // read-only, reserved, SHMSel: no effect
        break;
    }
}

void vio_mmio_write(struct vio_dev *d, uint32_t off, unsigned len, uint64_t v)
{
    if (off >= VIO_MMIO_SIZE || len == 0 || len > 8)
        return;
    if (off < REG_CONFIG && (len != 4 || off % 4))
        return;
    if (off == REG_QUEUE_NOTIFY) {
        if ((uint32_t)v < d->ops->queues)
            d->host->again(d->host->ctx, d->slot);
        return;
    }
    if (off == REG_ISR_ACK) {
        atomic_fetch_and(&d->isr, ~(uint32_t)v);
        return;
    }
    pthread_mutex_lock(&d->lock);
    if (off >= REG_CONFIG)
        d->ops->config_write(d, off - REG_CONFIG, &v, len);
    else
        write_reg(d, off, (uint32_t)v);
    pthread_mutex_unlock(&d->lock);
}
