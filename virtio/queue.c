// SPDX-License-Identifier: Apache-2.0
// Split virtqueues, device side (virtio 1.2 section 2.7), against a hostile driver.
//
// Every field of the rings is loaded exactly once, into a private copy, and only the copy is
// judged and used: another vCPU may rewrite guest memory between any two of our instructions.
#include "virtio/virtio.h"

enum { DESC_F_NEXT = 1, DESC_F_WRITE = 2, DESC_F_INDIRECT = 4 };
enum { AVAIL_F_NO_INTERRUPT = 1, USED_F_NO_NOTIFY = 1 };
#define DESC_SIZE     16u
#define INDIRECT_MAX  VIO_QUEUE_SIZE // longest indirect table, in descriptors
#define AVAIL_SIZE(n) (6u + 2u * (n))
#define USED_SIZE(n)  (6u + 8u * (n))

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};
_Static_assert(sizeof(struct desc) == DESC_SIZE, "virtio 1.2, 2.7.5");

// Indirect tables may lie at any address, hence the unaligned, volatile loads. The race with the
// guest is by design: nothing here trusts the value.
__attribute__((no_sanitize("thread"))) static struct desc copy_desc(const void *table, uint32_t i)
{
    struct __attribute__((packed)) raw {
        uint64_t addr;
        uint32_t len;
        uint16_t flags, next;
    };
    const volatile struct raw *r = (const struct raw *)table + i;
    return (struct desc){.addr = r->addr, .len = r->len, .flags = r->flags, .next = r->next};
}

static uint16_t load16(void *ring, size_t index, int order)
{
    uint16_t *p = (uint16_t *)ring + index;
    return order == __ATOMIC_ACQUIRE ? __atomic_load_n(p, __ATOMIC_ACQUIRE)
                                     : __atomic_load_n(p, __ATOMIC_RELAXED);
}

static void store16(void *ring, size_t index, uint16_t v)
{
    __atomic_store_n((uint16_t *)ring + index, v, __ATOMIC_RELAXED);
}

// avail: flags, idx, ring[size], used_event. used: flags, idx, {id, len}[size], avail_event.
static uint16_t avail_idx(const struct virtq *q)
{
    return load16(q->avail, 1, __ATOMIC_ACQUIRE);
}

static void ring_written(const struct virtq *q)
{
    if (q->mem->dirty)
        mem_dirty(q->mem, q->used, USED_SIZE(q->s.size));
}

static bool overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
    return a < b + blen && b < a + alen; // both lie in RAM: no sum overflows
}

int virtq_activate(struct virtq *q, struct guest_mem *mem, uint64_t features)
{
    const struct virtq_state *s = &q->s;
    const uint64_t n = s->size;
    if (n == 0 || n > VIO_QUEUE_SIZE || (n & (n - 1)) || s->desc % 16 || s->avail % 2 ||
        s->used % 4)
        return -EINVAL;
    void *desc = mem_at(mem, s->desc, DESC_SIZE * n, MEM_READ);
    void *avail = mem_at(mem, s->avail, AVAIL_SIZE(n), MEM_READ);
    void *used = mem_at(mem, s->used, USED_SIZE(n), MEM_WRITE);
    if (!desc || !avail || !used || overlap(s->desc, DESC_SIZE * n, s->avail, AVAIL_SIZE(n)) ||
        overlap(s->desc, DESC_SIZE * n, s->used, USED_SIZE(n)) ||
        overlap(s->avail, AVAIL_SIZE(n), s->used, USED_SIZE(n)))
        return -EINVAL;
    q->mem = mem;
    q->event_idx = features & VIO_F_EVENT_IDX;
    q->indirect = features & VIO_F_INDIRECT_DESC;
    q->desc = desc;
    q->avail = avail;
    q->used = used;
    q->avail_seen = s->next_avail;
    memset(q->inflight, 0, sizeof(q->inflight));
    return 0;
}

void virtq_deactivate(struct virtq *q)
{
    q->desc = q->avail = q->used = NULL;
    memset(q->inflight, 0, sizeof(q->inflight));
}

static bool inflight(const struct virtq *q, uint16_t head)
{
    return q->inflight[head / 64] >> (head % 64) & 1;
}

static void inflight_flip(struct virtq *q, uint16_t head)
{
    q->inflight[head / 64] ^= 1ULL << (head % 64);
}

// Adds one descriptor's segment. Readable ones come first (2.7.4.2).
static int add_segment(const struct virtq *q, struct vchain *c, const struct desc *d)
{
    const bool write = d->flags & DESC_F_WRITE;
    if (c->nr + c->nw >= VIO_SEG_MAX || (!write && c->nw > 0))
        return -EINVAL;
    // Linux never sends length 0; refusing it keeps every segment's arithmetic simple.
    if (d->len == 0 || (uint64_t)c->rbytes + c->wbytes + d->len > UINT32_MAX)
        return -EINVAL;
    void *p = mem_at(q->mem, d->addr, d->len, write ? MEM_WRITE : MEM_READ);
    if (!p)
        return -EINVAL;
    c->iov[c->nr + c->nw] = (struct iovec){.iov_base = p, .iov_len = d->len};
    if (write) {
        c->nw++;
        c->wbytes += d->len;
    } else {
        c->nr++;
        c->rbytes += d->len;
    }
    return 0;
}

// A table is walked for at most as many steps as it has entries, so a loop ends as a fault.
static int walk(const struct virtq *q, struct vchain *c)
{
    const void *table = q->desc;
    uint32_t entries = q->s.size, steps = 0, i = c->head;
    bool nested = false;
    for (;;) {
        if (i >= entries || steps++ >= entries)
            return -EINVAL;
        const struct desc d = copy_desc(table, i);
        if (d.flags & DESC_F_INDIRECT) {
            // 2.7.5.3: the last direct descriptor may point to one table; tables do not nest.
            if (!q->indirect || nested || (d.flags & DESC_F_NEXT) || d.len == 0 ||
                d.len % DESC_SIZE || d.len / DESC_SIZE > INDIRECT_MAX)
                return -EINVAL;
            table = mem_at(q->mem, d.addr, d.len, MEM_READ);
            if (!table)
                return -EINVAL;
            nested = true;
            entries = d.len / DESC_SIZE;
            steps = i = 0;
            continue;
        }
        if (add_segment(q, c, &d) < 0)
            return -EINVAL;
        if (!(d.flags & DESC_F_NEXT))
            return 0;
        i = d.next;
    }
}

int virtq_pop(struct virtq *q, struct vchain *c)
{
    if (!q->desc)
        return 0;
    // Acquire: pairs with the driver's write barrier between filling the ring and moving idx
    // (2.7.13.3, virtio_wmb in virtqueue_add_split).
    // Looked at again only when what was seen is used up: the driver's writes to that line cost each look a miss.
    if (q->avail_seen == q->s.next_avail)
        q->avail_seen = avail_idx(q);
    const uint16_t waiting = (uint16_t)(q->avail_seen - q->s.next_avail);
    if (waiting == 0)
        return 0;
    if (waiting > q->s.size)
        return -EINVAL;
    const uint16_t slot = q->s.next_avail & (q->s.size - 1);
    c->head = load16(q->avail, 2u + slot, __ATOMIC_RELAXED);
    c->nr = c->nw = 0;
    c->rbytes = c->wbytes = 0;
    if (c->head >= q->s.size || inflight(q, c->head))
        return -EINVAL;
    if (walk(q, c) < 0)
        return -EINVAL;
    inflight_flip(q, c->head);
    q->s.next_avail++;
    return 1;
}

void virtq_unpop(struct virtq *q, const struct vchain *c)
{
    if (!inflight(q, c->head))
        return;
    inflight_flip(q, c->head);
    q->s.next_avail--;
}

void virtq_push(struct virtq *q, uint16_t head, uint32_t written)
{
    if (!q->used || head >= q->s.size || !inflight(q, head))
        return;
    inflight_flip(q, head);
    uint32_t *elem = (uint32_t *)q->used + 1 + 2u * (q->s.next_used & (q->s.size - 1));
    __atomic_store_n(&elem[0], head, __ATOMIC_RELAXED);
    __atomic_store_n(&elem[1], written, __ATOMIC_RELAXED);
    q->s.next_used++;
}

void virtq_publish(struct virtq *q)
{
    if (!q->used)
        return;
    // Release: data and used elements before idx; pairs with the driver's read barrier after it
    // has loaded idx (2.7.14, virtio_rmb in virtqueue_get_buf_ctx_split).
    __atomic_store_n((uint16_t *)q->used + 1, q->s.next_used, __ATOMIC_RELEASE);
    ring_written(q);
}

bool virtq_want_irq(struct virtq *q)
{
    const uint16_t old = q->s.signalled, now = q->s.next_used;
    const bool known = q->s.signalled_valid;
    if (!q->used || (known && old == now))
        return false;
    q->s.signalled = now;
    q->s.signalled_valid = 1;
    // Full barrier: our used idx must be visible before we look at what the driver wants. Pairs
    // with the driver's between storing used_event (or flags) and loading used idx (2.7.7.1,
    // virtio_store_mb in virtqueue_enable_cb_prepare/poll). Without it both may look too early
    // and the interrupt is lost.
    atomic_thread_fence(memory_order_seq_cst);
    if (!q->event_idx)
        return !(load16(q->avail, 0, __ATOMIC_RELAXED) & AVAIL_F_NO_INTERRUPT);
    const uint16_t event = load16(q->avail, 2u + q->s.size, __ATOMIC_RELAXED);
    return !known || (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

void virtq_disable_kick(struct virtq *q)
{
    // With EVENT_IDX a stale avail_event silences the driver: it kicks only on passing it.
    if (!q->used || q->event_idx)
        return;
    store16(q->used, 0, USED_F_NO_NOTIFY);
    ring_written(q);
}

bool virtq_enable_kick(struct virtq *q)
{
    if (!q->used)
        return false;
    if (q->event_idx)
        store16(q->used, 2u + 4u * q->s.size, q->s.next_avail);
    else
        store16(q->used, 0, 0);
    ring_written(q);
    // Full barrier: our wish must be visible before we look for chains a last time. Pairs with
    // the driver's between moving avail idx and loading avail_event (or flags) (2.7.13.4.1,
    // virtio_mb in virtqueue_kick_prepare_split). Without it a kick is lost and the queue sleeps.
    atomic_thread_fence(memory_order_seq_cst);
    return virtq_has_avail(q);
}

bool virtq_has_avail(struct virtq *q)
{
    return q->used && avail_idx(q) != q->s.next_avail;
}

uint32_t vchain_read(const struct vchain *c, uint32_t off, void *buf, uint32_t len)
{
    uint32_t done = 0;
    for (unsigned i = 0; i < c->nr && done < len; i++) {
        const struct iovec *v = &c->iov[i];
        if (off >= v->iov_len) {
            off -= (uint32_t)v->iov_len;
            continue;
        }
        const uint32_t n = MIN(len - done, (uint32_t)v->iov_len - off);
        memcpy((uint8_t *)buf + done, (const uint8_t *)v->iov_base + off, n);
        done += n;
        off = 0;
    }
    return done;
}
