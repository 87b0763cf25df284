// SPDX-License-Identifier: Apache-2.0
// Fuzzes the MMIO transport with a device that pops and answers whatever comes: any sequence of
// accesses, kicks, pauses, landings, saves and loads. An active device always has a legal status.
#include "tests/fuzz/fuzz_vio.h"

struct dev {
    struct vio_dev d;
    unsigned inflight;
    uint8_t config[20];
};

static struct dev *of(struct vio_dev *d)
{
    return (struct dev *)d;
}

static uint64_t features(const struct vio_dev *d)
{
    (void)d;
    return 0x21;
}

static void config_read(struct vio_dev *d, uint32_t off, void *buf, uint32_t len)
{
    memset(buf, 0, len);
    if (off < sizeof(of(d)->config))
        memcpy(buf, of(d)->config + off, MIN(len, (uint32_t)sizeof(of(d)->config) - off));
}

static void config_write(struct vio_dev *d, uint32_t off, const void *buf, uint32_t len)
{
    if (off < sizeof(of(d)->config))
        memcpy(of(d)->config + off, buf, MIN(len, (uint32_t)sizeof(of(d)->config) - off));
}

static int activate(struct vio_dev *d)
{
    return of(d)->config[0] == 0xff ? -EINVAL : 0;
}

static void reset(struct vio_dev *d)
{
    fz_require(of(d)->inflight == 0 && !d->queue[0].desc);
}

static void kick(struct vio_dev *d)
{
    static struct vchain c;
    fz_require(d->active && !d->quiesced && !d->reset_pending);
    for (unsigned i = 0; i < 2; i++) {
        const int rc = virtq_pop(&d->queue[i], &c);
        if (rc < 0) {
            vio_fault(d, "ring");
            return;
        }
        if (rc && i == 0 && c.head % 2)
            of(d)->inflight++; // answered later, if ever
        else if (rc)
            virtq_push(&d->queue[i], c.head, c.wbytes);
        vio_signal(d, &d->queue[i]);
    }
}

static unsigned inflight(const struct vio_dev *d)
{
    return ((const struct dev *)d)->inflight;
}

static const struct vio_ops ops = {.id = 9,
                                   .queues = 2,
                                   .features = features,
                                   .config_read = config_read,
                                   .config_write = config_write,
                                   .activate = activate,
                                   .reset = reset,
                                   .kick = kick,
                                   .readable = kick,
                                   .timer = kick,
                                   .inflight = inflight};

static void done(struct vio_dev *d, struct vio_io *io, int res)
{
    (void)io;
    of(d)->inflight--;
    virtq_push(&d->queue[0], (uint16_t)(unsigned)res, 1);
    vio_signal(d, &d->queue[0]);
}

static void step(struct dev *t, struct in *in)
{
    struct vio_io io = {.done = done, .dev = &t->d};
    const uint8_t op = (uint8_t)take(in, 1);
    struct vio_state s;
    switch (op & 15) {
    case 0:
        vio_kick(&t->d);
        break;
    case 1:
        if (t->inflight > 0)
            vio_io_done(&io, (int)take(in, 1));
        break;
    case 2:
        fz_require(vio_quiesce(&t->d, op & 16) || t->inflight > 0);
        break;
    case 3:
        vio_readable(&t->d);
        vio_timer(&t->d);
        break;
    case 4:
        if (t->inflight == 0) {
            vio_save(&t->d, &s);
            if (op & 16)
                memcpy((uint8_t *)&s + take(in, 1) % (sizeof(s) - 8), &(uint64_t){take(in, 8)}, 8);
            vio_load(&t->d, &s, NULL);
        }
        break;
    case 5:
        fz_bring_up(&t->d, take(in, 4));
        break;
    case 6:
        vio_config_changed(&t->d);
        break;
    case 7:
        fz_offer(t->d.mem, in);
        break;
    default: {
        static const unsigned lens[] = {4, 4, 4, 4, 1, 2, 8, 3};
        const uint32_t off = (uint32_t)(op & 8 ? take(in, 1) * 4 % 0x120 : take(in, 2));
        const unsigned len = op & 8 ? 4 : lens[op >> 5];
        if (op & 16)
            vio_mmio_read(&t->d, off, len);
        else
            vio_mmio_write(&t->d, off, len, take(in, op & 32 ? 1 : 4));
    }
    }
    fz_require(!t->d.active || t->d.s.status == 15);
    fz_require(!(t->d.isr & ~3u));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct guest_mem mem;
    static struct dev t;
    struct in in = {data, size};
    memset(&t.config, 0, sizeof(t.config));
    t.inflight = 0;
    vio_init(&t.d, &ops, &fz_host, &mem, 0);
    fz_memory(&mem, &in, 0);
    while (in.left > 0)
        step(&t, &in);
    t.inflight = 0;
    vio_mmio_write(&t.d, 0x70, 4, 0);
    pthread_mutex_destroy(&t.d.lock);
    return 0;
}
