// SPDX-License-Identifier: Apache-2.0
// What every virtio device shares behind its registers: life, faults, interrupts, pause, state.
//
// #syscalls:device futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)
// #syscalls:control futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)
#include "virtio/mmio.h"

void vio_init(struct vio_dev *d, const struct vio_ops *ops, const struct vio_host *host,
              struct guest_mem *mem, unsigned slot)
{
    memset(d, 0, sizeof(*d));
    d->ops = ops;
    d->host = host;
    d->mem = mem;
    d->slot = slot;
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->reset_done, NULL);
    for (unsigned i = 0; i < VIO_MAX_QUEUES; i++)
        d->queue[i].s.signalled_valid = 1;
}

uint64_t vio_offered(const struct vio_dev *d)
{
    return d->ops->features(d) | VIO_F_VERSION_1 | VIO_F_EVENT_IDX | VIO_F_INDIRECT_DESC;
}

bool vio_features_ok(const struct vio_dev *d, uint64_t features)
{
    return (features & VIO_F_VERSION_1) && !(features & ~vio_offered(d));
}

static unsigned in_flight(const struct vio_dev *d)
{
    return d->ops->inflight ? d->ops->inflight(d) : 0;
}

static void deactivate(struct vio_dev *d)
{
    d->active = false;
    for (unsigned i = 0; i < VIO_MAX_QUEUES; i++)
        virtq_deactivate(&d->queue[i]);
}

int vio_activate(struct vio_dev *d)
{
    int rc = 0;
    for (unsigned i = 0; i < d->ops->queues && rc == 0; i++)
        if (d->queue[i].s.ready)
            rc = virtq_activate(&d->queue[i], d->mem, d->s.drv_features);
    if (rc == 0)
        rc = d->ops->activate(d);
    if (rc < 0) {
        deactivate(d);
        return -EINVAL;
    }
    d->active = true;
    return 0;
}

static void forget(struct vio_dev *d)
{
    const uint32_t gen = d->s.config_gen; // goes on, lest a driver mistake new config for old
    deactivate(d);
    d->s = (struct vio_state){.config_gen = gen};
    for (unsigned i = 0; i < VIO_MAX_QUEUES; i++)
        d->queue[i].s = (struct virtq_state){.signalled_valid = 1};
    atomic_store(&d->isr, 0);
    d->reset_pending = false;
    d->ops->reset(d);
    pthread_cond_broadcast(&d->reset_done);
}

// #syscalls:vcpu futex(FUTEX_WAIT_BITSET_PRIVATE|FUTEX_CLOCK_REALTIME)
void vio_reset_wait(struct vio_dev *d)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    pthread_mutex_lock(&d->lock);
    while (d->reset_pending && rc == 0)
        rc = pthread_cond_timedwait(&d->reset_done, &d->lock, &until);
    pthread_mutex_unlock(&d->lock);
}

void vio_reset(struct vio_dev *d)
{
    d->active = false;
    if (in_flight(d) > 0)
        d->reset_pending = true; // vio_io_done goes on; until then Status keeps its bits
    else
        forget(d);
}

void vio_kick(struct vio_dev *d)
{
    pthread_mutex_lock(&d->lock);
    if (d->active && !d->quiesced)
        d->ops->kick(d);
    pthread_mutex_unlock(&d->lock);
}

void vio_readable(struct vio_dev *d)
{
    pthread_mutex_lock(&d->lock);
    if (d->active && !d->quiesced && d->ops->readable)
        d->ops->readable(d);
    pthread_mutex_unlock(&d->lock);
}

void vio_timer(struct vio_dev *d)
{
    pthread_mutex_lock(&d->lock);
    if (d->active && !d->quiesced && d->ops->timer)
        d->ops->timer(d);
    pthread_mutex_unlock(&d->lock);
}

void vio_io_done(struct vio_io *io, int res)
{
    struct vio_dev *d = io->dev;
    pthread_mutex_lock(&d->lock);
    io->done(d, io, res);
    if (d->reset_pending && in_flight(d) == 0)
        forget(d);
    pthread_mutex_unlock(&d->lock);
}

static void interrupt(struct vio_dev *d, uint32_t cause)
{
    // The cause first, then the interrupt: its handler reads InterruptStatus.
    atomic_fetch_or(&d->isr, cause);
    d->host->irq(d->host->ctx, d->slot);
}

void vio_signal(struct vio_dev *d, struct virtq *q)
{
    virtq_publish(q);
    if (virtq_want_irq(q))
        interrupt(d, VIO_INT_VRING);
}

void vio_config_changed(struct vio_dev *d)
{
    d->s.config_gen++;
    if (d->s.status & VIO_ST_DRIVER_OK)
        interrupt(d, VIO_INT_CONFIG);
}

void vio_fault(struct vio_dev *d, const char *what)
{
    atomic_fetch_add(&d->faults, 1);
    d->active = false;
    d->s.status |= VIO_ST_NEEDS_RESET;
    if (d->s.status & VIO_ST_DRIVER_OK) // 2.1.2
        interrupt(d, VIO_INT_CONFIG);
    d->host->note(d->host->ctx, d->slot, what);
}

bool vio_quiesce(struct vio_dev *d, bool on)
{
    pthread_mutex_lock(&d->lock);
    const bool was = d->quiesced;
    d->quiesced = on;
    // Told at every asking: a request may wait for room on a ring that others fill.
    if (d->ops->quiesce && (on || was))
        d->ops->quiesce(d, on);
    if (!on && was && d->active)
        d->host->again(d->host->ctx, d->slot);
    const bool idle = !on || in_flight(d) == 0;
    pthread_mutex_unlock(&d->lock);
    return idle;
}

void vio_save(struct vio_dev *d, struct vio_state *out)
{
    pthread_mutex_lock(&d->lock);
    *out = d->s;
    out->isr = atomic_load(&d->isr);
    for (unsigned i = 0; i < VIO_MAX_QUEUES; i++)
        out->q[i] = d->queue[i].s;
    pthread_mutex_unlock(&d->lock);
}

// What the status machine of mmio.c can have produced.
static bool status_is_legal(uint32_t st)
{
    static const uint32_t steps[] = {0, 1, 3, 11, 15};
    const uint32_t base = st & ~(uint32_t)(VIO_ST_NEEDS_RESET | VIO_ST_FAILED);
    for (size_t i = 0; i < ARRAY_SIZE(steps); i++)
        if (base == steps[i])
            return true;
    return false;
}

static int check_queue(const struct vio_state *s, unsigned i, unsigned queues, struct err *e)
{
    const struct virtq_state *q = &s->q[i];
    const bool shaped =
        q->ready || q->size || q->desc || q->avail || q->used || q->next_avail || q->next_used;
    if (shaped && i >= queues)
        return err_set(e, EINVAL, "queue %u: the device has %u", i, queues);
    if (q->ready > 1 || q->signalled_valid > 1 || q->size > VIO_QUEUE_SIZE)
        return err_set(e, EINVAL, "queue %u: ready %u, size %u", i, q->ready, q->size);
    if (q->ready && !(s->status & VIO_ST_FEATURES_OK))
        return err_set(e, EINVAL, "queue %u: ready before FEATURES_OK", i);
    // Popped, not pushed; and how far the last interrupt may lie behind.
    if ((uint16_t)(q->next_avail - q->next_used) > q->size)
        return err_set(e, EINVAL, "queue %u: next_avail %u is too far from next_used %u", i,
                       q->next_avail, q->next_used);
    return 0;
}

int vio_load(struct vio_dev *d, const struct vio_state *in, struct err *e)
{
    if (!status_is_legal(in->status))
        return err_set(e, EINVAL, "status %#x is not one a device can have", in->status);
    if (in->isr & ~(uint32_t)(VIO_INT_VRING | VIO_INT_CONFIG))
        return err_set(e, EINVAL, "isr %#x", in->isr);
    if ((in->status & VIO_ST_FEATURES_OK) && !vio_features_ok(d, in->drv_features))
        return err_set(e, EINVAL, "drv_features %#llx, offered are %#llx",
                       (unsigned long long)in->drv_features, (unsigned long long)vio_offered(d));
    for (unsigned i = 0; i < VIO_MAX_QUEUES; i++) {
        int rc = check_queue(in, i, d->ops->queues, e);
        if (rc < 0)
            return rc;
    }
    pthread_mutex_lock(&d->lock);
    int rc = 0;
    deactivate(d); // a device that lived before starts from what is loaded alone
    d->s = *in;
    for (unsigned i = 0; i < VIO_MAX_QUEUES; i++)
        d->queue[i].s = in->q[i];
    atomic_store(&d->isr, in->isr);
    const bool runs =
        (in->status & VIO_ST_DRIVER_OK) && !(in->status & (VIO_ST_NEEDS_RESET | VIO_ST_FAILED));
    if (runs && vio_activate(d) < 0) {
        rc = err_set(e, EINVAL, "queues: a ring is misaligned, overlaps or lies outside of RAM");
        forget(d);
    }
    pthread_mutex_unlock(&d->lock);
    return rc;
}
