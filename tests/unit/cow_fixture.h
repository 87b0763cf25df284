// SPDX-License-Identifier: Apache-2.0
// A drive on a copy-on-write layer under test, and a model of what it must hold.
#ifndef TESTS_UNIT_COW_FIXTURE_H
#define TESTS_UNIT_COW_FIXTURE_H

#define FX_DEFINE
#include "tests/unit/blk_fixture.h"
#include "tests/unit/vio_fake.h"

#define BLOCKS   16u
#define SECTORS  (BLOCKS * 8 + 1) // the last block is a short one
#define DISK     (SECTORS * 512u)
#define DATA_OFF 8192u
#define FILE_LEN (DATA_OFF + (BLOCKS + 1) * 4096u)

static struct fx f;
static int base, layer;
static uint8_t model[SECTORS]; // the byte each sector is filled with

static inline void setup_with(bool writeback)
{
    base = fx_file("/tmp", DISK, O_RDONLY);
    layer = fx_file("/tmp", 0, O_RDWR);
    const struct blk_backing k = {
        .fd = base, .cow_fd = layer, .bytes = DISK, .writeback = writeback};
    ck_assert_int_eq(fx_init(&f, &k, NULL), 0);
    fx_calls.bitmap_end = DATA_OFF;
    fx_calls.nlog = 0;
    for (unsigned i = 0; i < SECTORS; i++)
        model[i] = (uint8_t)(i + 1);
}

static inline void setup(void)
{
    setup_with(false);
}

static inline void teardown(void)
{
    fx_end(&f);
}

static inline void offer_write(unsigned req, unsigned sector, unsigned n, uint8_t with)
{
    memset(fx_at(&f, FX_DATA + 0x10000 * req), with, n * 512);
    memset(model + sector, with, n);
    fx_req(&f, req, REQ_OUT, sector, FX_DATA + 0x10000 * req, n * 512);
}

static inline void do_write(unsigned sector, unsigned n, uint8_t with)
{
    offer_write(0, sector, n, with);
    fx_pump(&f);
    ck_assert_uint_eq(fx_status(&f, 0), ST_OK);
}

static inline void check_model(struct fx *x)
{
    ck_assert_uint_eq(fx_ask(x, REQ_IN, 0, FX_DATA + 0x180000, DISK), ST_OK);
    for (unsigned i = 0; i < SECTORS; i++)
        ck_assert_msg(fx_filled(fx_at(x, FX_DATA + 0x180000 + 512 * i), model[i], 512),
                      "sector %u holds %#x, not %#x", i, *fx_at(x, FX_DATA + 0x180000 + 512 * i),
                      model[i]);
}

// What a new monitor finds in the layer at this moment, while the old one is as good as dead.
static inline void check_after_kill(void)
{
    static struct fx x;
    const struct fx_calls keep = fx_calls;
    const struct blk_backing k = {.fd = dup(base), .cow_fd = dup(layer), .bytes = DISK};
    ck_assert_int_eq(fx_init(&x, &k, NULL), 0);
    check_model(&x);
    fx_end(&x);
    fx_calls = keep;
}

static inline void do_range(uint32_t type, unsigned sector, unsigned n)
{
    ck_assert_uint_eq(fx_ask_range(&f, type, sector, n, 0), ST_OK);
    for (unsigned s = sector; s < sector + n; s++) {
        const unsigned first = s / 8 * 8, last = MIN(first + 8, SECTORS);
        if (type == REQ_ZERO || (first >= sector && last <= sector + n))
            model[s] = 0;
    }
}

#endif
