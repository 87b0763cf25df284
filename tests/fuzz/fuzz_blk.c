// SPDX-License-Identifier: Apache-2.0
// Fuzzes the block device: chains of any shape, headers of any content, a ring that answers in any
// order with any result, resets and pauses in between. The device must survive, answer everything
// and never move a byte outside of guest memory or past the image.
#define FX_DEFINE
#include "tests/unit/blk_fixture.h"

#define DISK (64 * KIB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct in {
    const uint8_t *p;
    size_t left;
};

static uint8_t byte(struct in *in)
{
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->p++;
}

static uint32_t word(struct in *in)
{
    const uint32_t a = byte(in), b = byte(in), c = byte(in), d = byte(in);
    return a | b << 8 | c << 16 | d << 24;
}

// Mostly sensible, since the rest ends early.
static void offer(struct fx *f, struct in *in)
{
    static const uint32_t types[] = {REQ_IN,   REQ_OUT,  REQ_FLUSH, REQ_GETID,
                                     REQ_TRIM, REQ_ZERO, 2,         UINT32_MAX};
    static const uint32_t lens[] = {1, 16, 15, 512, 4096, 17, 511, 1024};
    struct seg s[20];
    const uint8_t shape = byte(in), n = shape % 20;
    const unsigned slot = byte(in) % 16;
    const uint64_t h = fx_hdr(f, slot, types[byte(in) % 8], byte(in));
    if (shape & 0x80) // far or absurd sectors, and ranges
        le64_put(fx_at(f, h + 8), (uint64_t)word(in) << (byte(in) % 64));
    le64_put(fx_at(f, h + 16), byte(in));
    le32_put(fx_at(f, h + 24), shape & 0x40 ? word(in) : byte(in));
    le32_put(fx_at(f, h + 28), byte(in) % 3);
    s[0] = (struct seg){h, shape & 0x20 ? 32 : 16, false};
    for (unsigned i = 1; i <= n && i < 19; i++) {
        const uint8_t k = byte(in);
        s[i] = (struct seg){FX_DATA + 0x1000u * (k % 64), k & 0x80 ? word(in) : lens[k >> 4 & 7],
                            k & 0x40};
    }
    const unsigned last = MIN(n, 18u) + 1;
    s[last] = (struct seg){h + 32, 1, true};
    fx_offer(f, s, shape & 0x10 ? last : last + 1);
}

static void step(struct fx *f, struct in *in)
{
    static const int results[] = {0, 0, 0, -EIO, -ENOSPC, -EAGAIN, -EOPNOTSUPP, -EINTR};
    const uint8_t op = byte(in);
    switch (op % 10) {
    case 0:
    case 1:
    case 2:
        offer(f, in);
        break;
    case 3:
    case 4:
        fx_kick(f);
        break;
    case 5:
    case 6:
        if (f->nring)
            fx_land(f, op / 10 % f->nring, results[byte(in) % 8], byte(in));
        break;
    case 7:
        fx_calls.block_reads = op & 0x10;
        fx_calls.short_to = op & 0x20 ? byte(in) : 0;
        f->busy = byte(in) % 4;
        break;
    case 8:
        vio_quiesce(f->d, op & 0x10);
        break;
    default:
        wr32(f->d, 0x70, 0);
        if (!f->d->reset_pending)
            fx_start(f);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct fx f;
    struct in in = {data, size};
    const uint8_t how = byte(&in);
    const struct blk_backing k = {.fd = memfd_create("disk", 0),
                                  .cow_fd = how & 1 ? memfd_create("layer", 0) : -1,
                                  .bytes = DISK,
                                  .read_only = (how & 7) == 6,
                                  .writeback = how & 2};
    if (ftruncate(k.fd, DISK) < 0 || fx_init(&f, &k, NULL) < 0)
        abort();
    while (in.left > 0)
        step(&f, &in);
    vio_quiesce(f.d, false);
    f.busy = 0;
    fx_pump(&f);
    const bool idle = f.b->inflight == 0 || !f.d->active;
    struct stat st;
    if (!idle || fstat(k.fd, &st) < 0 || st.st_size != (off_t)DISK)
        abort();
    fx_end(&f);
    return 0;
}
