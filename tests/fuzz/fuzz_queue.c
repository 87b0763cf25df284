// SPDX-License-Identifier: Apache-2.0
// Fuzzes one virtqueue over guest memory of any content: a chain that is handed out lies in RAM,
// within its limits, and no head is out twice; the used ring is the only place written.
#include "tests/fuzz/fuzz_vio.h"

static void check(const struct guest_mem *m, const struct virtq *q, const struct vchain *c)
{
    uint64_t r = 0, w = 0;
    fz_require(c->head < q->s.size && c->nr + c->nw > 0 && c->nr + c->nw <= VIO_SEG_MAX);
    for (unsigned i = 0; i < (unsigned)c->nr + c->nw; i++) {
        const uint8_t *p = c->iov[i].iov_base;
        fz_require(c->iov[i].iov_len > 0 && p >= m->r[0].host &&
                   (size_t)(p - m->r[0].host) + c->iov[i].iov_len <= FZ_RAM);
        *(i < c->nr ? &r : &w) += c->iov[i].iov_len;
    }
    fz_require(r == c->rbytes && w == c->wbytes && r + w <= UINT32_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct guest_mem mem;
    static struct vchain c;
    struct in in = {data, size};
    const uint64_t features = take(&in, 1) << 28;
    struct virtq q = {.s = {.ready = 1}};
    q.s.size = (uint16_t)(1u << take(&in, 1) % 9);
    q.s.next_avail = q.s.next_used = q.s.signalled = (uint16_t)take(&in, 2);
    q.s.desc = take(&in, 2) * 16;
    q.s.avail = take(&in, 2) * 2;
    q.s.used = take(&in, 2) * 4;
    uint8_t ops[32];
    for (size_t i = 0; i < sizeof(ops); i++)
        ops[i] = (uint8_t)take(&in, 1);
    fz_memory(&mem, &in, FZ_IMAGE);
    if (virtq_activate(&q, &mem, features) < 0)
        return 0;
    uint16_t out[VIO_QUEUE_SIZE];
    unsigned n = 0, popped = 0;
    for (size_t i = 0; i < sizeof(ops); i++) {
        switch (ops[i] % 8) {
        case 0:
        case 1:
        case 2: {
            const int rc = virtq_pop(&q, &c);
            fz_require(rc >= -EINVAL && rc <= 1 && (rc >= 0 || rc == -EINVAL));
            if (rc != 1)
                break;
            check(&mem, &q, &c);
            for (unsigned k = 0; k < n; k++)
                fz_require(out[k] != c.head);
            uint8_t copy[64];
            fz_require(vchain_read(&c, ops[i], copy, 64) ==
                       (c.rbytes > ops[i] ? MIN(64u, c.rbytes - ops[i]) : 0));
            if (ops[i] & 0x80)
                virtq_unpop(&q, &c);
            else
                out[n++] = c.head, popped++;
            break;
        }
        case 3:
        case 4:
            if (n > 0)
                virtq_push(&q, out[--n], ops[i]);
            break;
        case 5:
            virtq_publish(&q);
            virtq_want_irq(&q);
            break;
        case 6:
            virtq_disable_kick(&q);
            break;
        default:
            virtq_enable_kick(&q);
        }
        fz_require(n <= q.s.size && (uint16_t)(q.s.next_avail - q.s.next_used) == n);
    }
    virtq_deactivate(&q);
    fz_require(virtq_pop(&q, &c) == 0);
    return 0;
}
