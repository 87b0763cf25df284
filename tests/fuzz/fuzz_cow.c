// SPDX-License-Identifier: Apache-2.0
// Fuzzes the copy-on-write layer: as a file (header with a right checksum, bitmap, any length), and
// as a store against a model, whatever order the ring answers in.
#define FX_DEFINE
#include "tests/unit/blk_fixture.h"

#define DISK     (25 * 512u) // three blocks and a short one
#define SECTORS  (DISK / 512)
#define DATA_OFF 8192u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(struct fx *f, const uint8_t *model)
{
    if (fx_ask(f, REQ_IN, 0, FX_DATA + 0x100000, DISK) != ST_OK)
        abort();
    for (unsigned i = 0; model && i < SECTORS; i++)
        if (!fx_filled(fx_at(f, FX_DATA + 0x100000 + 512 * i), model[i], 512))
            abort();
}

static uint64_t sum_of(const uint8_t *h)
{
    uint64_t s = 0xcbf29ce484222325ULL;
    for (unsigned i = 0; i < 4096; i++)
        s = (s ^ (i >= 56 && i < 64 ? 0 : h[i])) * 0x100000001b3ULL;
    return s;
}

// Bytes of the input lie over a good layer at an offset of its choice.
static void as_a_file(int base, const uint8_t *in, size_t len)
{
    uint8_t h[4096];
    struct cow *c = NULL;
    int fd = memfd_create("layer", 0);
    if (len < 4 || cow_format(fd, base, DISK, NULL) < 0)
        abort();
    const off_t at = le16_get(in) % 8192;
    if (pwrite(fd, in + 4, len - 4, at) < 0 || pread(fd, h, 4096, 0) != 4096)
        abort();
    if (in[2] & 1) {
        le64_put(h + 56, sum_of(h));
        if (pwrite(fd, h, 4096, 0) != 4096)
            abort();
    }
    if ((in[2] & 2) && ftruncate(fd, le16_get(in + 2)) < 0)
        abort();
    if (cow_open(&c, fd, base, DISK, NULL) == 0) {
        static struct fx f;
        const struct blk_backing k = {.fd = dup(base), .cow_fd = fd, .bytes = DISK};
        cow_free(c);
        if (fx_init(&f, &k, NULL) < 0)
            abort();
        read_all(&f, NULL);
        fx_ask(&f, REQ_OUT, 1, FX_DATA, DISK - 512);
        fx_end(&f);
    } else {
        close(fd);
    }
}

static void as_a_store(int base, const uint8_t *in, size_t len)
{
    static struct fx f;
    const struct blk_backing k = {
        .fd = dup(base), .cow_fd = memfd_create("layer", 0), .bytes = DISK, .writeback = in[0] & 2};
    uint8_t model[SECTORS] = {0};
    if (fx_init(&f, &k, NULL) < 0)
        abort();
    for (; len >= 4; in += 4, len -= 4) {
        const unsigned at = in[1] % SECTORS, n = 1 + in[2] % (SECTORS - at);
        const unsigned what = in[0] % 8;
        fx_calls.block_reads = in[0] & 0x10;
        fx_calls.short_to = in[0] & 0x20 ? 1 + in[3] : 0;
        f.busy = in[0] >> 6;
        if (what < 4) {
            memset(fx_at(&f, FX_DATA), in[3], n * 512);
            memset(model + at, in[3], n);
            fx_req(&f, 0, REQ_OUT, at, FX_DATA, n * 512);
        } else if (what < 6) {
            for (unsigned s = at; s < at + n; s++) {
                const unsigned first = s / 8 * 8, last = MIN(first + 8, SECTORS);
                if (what == 4 || (first >= at && last <= at + n))
                    model[s] = 0;
            }
            fx_range(&f, 0, what == 4 ? REQ_ZERO : REQ_TRIM, at, n, in[3] & 1 && what == 4);
        } else if (what == 6 && k.writeback) {
            fx_req(&f, 0, REQ_FLUSH, 0, 0, 0);
        } else {
            read_all(&f, model);
            continue;
        }
        fx_pump(&f);
        if (fx_status(&f, 0) != ST_OK)
            abort();
    }
    read_all(&f, model);
    fx_end(&f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 5)
        return 0;
    int base = memfd_create("base", 0);
    const struct timespec t[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    if (ftruncate(base, DISK) < 0 || futimens(base, t) < 0)
        abort();
    if (data[0] & 1)
        as_a_file(base, data + 1, size - 1);
    else
        as_a_store(base, data + 1, size - 1);
    close(base);
    return 0;
}
