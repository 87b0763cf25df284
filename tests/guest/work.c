// SPDX-License-Identifier: Apache-2.0
// Memory to touch, to keep dirtying, and to add up: what snapshots and migration are tested with.
#include "http.h"

#define JSON "application/json"
#define PAGE 4096u

static struct {
    uint64_t pages, rate, at, from, round, written; // rate in pages/s, 0: as fast as the loop turns
} dirty;

// Where the n-th MiB of spare RAM lies; 0 beyond its end.
static uint64_t spare_pa(uint64_t mib)
{
    for (unsigned i = 0; i < ram_n; i++) {
        uint64_t n = ram[i].size >> 20;
        if (mib < n)
            return ram[i].base + (mib << 20);
        mib -= n;
    }
    return 0;
}

// The n-th MiB of spare RAM, or NULL beyond its end. The mapping is completed on the way.
static uint8_t *spare(uint64_t mib)
{
    uint64_t pa = spare_pa(mib);
    if (!pa)
        return NULL;
    map_ram(pa, 1 << 20);
    return at(pa);
}

static uint64_t spare_mib(void)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < ram_n; i++)
        n += ram[i].size >> 20;
    return n;
}

// Words that no page-level trick shrinks: the splitmix finisher over position and seed.
static void fill(uint64_t *p, uint64_t index, uint64_t seed)
{
    uint64_t s = seed + index * (1 << 17) * 0x9e3779b97f4a7c15u;
    for (unsigned i = 0; i < (1 << 20) / 8; i++) {
        s += 0x9e3779b97f4a7c15u;
        p[i] = (s ^ s >> 31) * 0xbf58476d1ce4e5b9u;
    }
}

static void touch(struct conn *c)
{
    uint64_t n = http_query_u64(c, "mib", 1), seed = http_query_u64(c, "seed", 1), t = rdtsc(), i;
    uint64_t from = http_query_u64(c, "from", 0), pa = spare_pa(from);
    bool light = http_query(c, "light");
    for (i = 0; i < n; i++) {
        uint8_t *p = spare(from + i);
        if (!p)
            break;
        if (!light)
            fill((uint64_t *)p, from + i, seed);
        for (unsigned k = 0; light && k < 1 << 20; k += PAGE)
            *(volatile uint64_t *)(p + k) = seed + from + i;
    }
    t = rdtsc() - t;
    http_reply(c, 200, JSON, "{\"mib\":%lu,\"at\":%lu,\"spare_mib\":%lu,\"ns\":%lu}\n", i, pa,
               spare_mib(), tsc_ns(t));
}

static void sum(struct conn *c)
{
    uint64_t n = http_query_u64(c, "mib", 1), h = 0xcbf29ce484222325u, t = rdtsc(), i;
    uint64_t from = http_query_u64(c, "from", 0);
    for (i = 0; i < n; i++) {
        const uint64_t *p = (const void *)spare(from + i);
        if (!p)
            break;
        for (unsigned k = 0; k < (1 << 20) / 8; k++)
            h = (h ^ p[k]) * 0x100000001b3u;
    }
    t = rdtsc() - t;
    http_reply(c, 200, JSON, "{\"mib\":%lu,\"sum\":\"%016lx\",\"ns\":%lu}\n", i, h, tsc_ns(t));
}

// Reads a word in each of n pages that lie in no order, and keeps how long each took; top=K: of the K slowest of
// the last such walk. So a guest tells what an absent page costs it.
static void walk(struct conn *c)
{
    static uint32_t took[4096], n;
    uint64_t pages = MIN(http_query_u64(c, "mib", 0), spare_mib()) << 8, sum = 0;
    if (pages) {
        n = (uint32_t)MIN(http_query_u64(c, "n", 1024), ARRAY_SIZE(took));
        for (uint32_t i = 0; i < n; i++) {
            uint64_t page = i * 2654435761u % pages, t = rdtsc();
            (void)*(volatile uint64_t *)(spare(page >> 8) + (page & 255) * PAGE);
            took[i] = (uint32_t)tsc_ns(rdtsc() - t);
        }
        for (uint32_t gap = n / 2; gap; gap /= 2)
            for (uint32_t i = gap, k; i < n; i++) {
                uint32_t v = took[i];
                for (k = i; k >= gap && took[k - gap] > v; k -= gap)
                    took[k] = took[k - gap];
                took[k] = v;
            }
    }
    uint32_t top = (uint32_t)MIN(http_query_u64(c, "top", n), n);
    if (!top) {
        http_reply(c, 400, JSON, "{\"error\":\"no walk yet\"}\n");
        return;
    }
    const uint32_t *slow = took + n - top;
    for (uint32_t i = 0; i < top; i++)
        sum += slow[i];
    http_reply(c, 200, JSON, "{\"n\":%u,\"ns\":%lu,\"p50_ns\":%u,\"p99_ns\":%u,\"max_ns\":%u}\n",
               top, sum, slow[top / 2], slow[top * 99 / 100], slow[top - 1]);
}

static void set_dirty(struct conn *c)
{
    uint64_t mib = MIN(http_query_u64(c, "mib", 0), spare_mib());
    dirty.pages = http_query(c, "off") ? 0 : mib << 8;
    dirty.rate = http_query_u64(c, "rate", 0) << 8;
    dirty.at = 0;
    dirty.from = rdtsc();
    http_reply(c, 200, JSON, "{\"mib\":%lu,\"rate_mib_s\":%lu,\"rounds\":%lu,\"pages\":%lu}\n",
               dirty.pages >> 8, dirty.rate >> 8, dirty.round, dirty.written);
}

static void dirty_page(void)
{
    uint8_t *p = spare(dirty.at >> 8) + (dirty.at & 255) * PAGE;
    *(volatile uint64_t *)p = dirty.round << 32 | dirty.at;
    dirty.written++;
    if (++dirty.at >= dirty.pages) {
        dirty.at = 0;
        dirty.round++;
    }
}

bool work_tick(uint64_t now)
{
    if (!dirty.pages)
        return false;
    if (!dirty.rate) {
        for (unsigned i = 0; i < 256; i++)
            dirty_page();
        return true;
    }
    uint64_t per_page = MAX(tsc_khz * 1000 / dirty.rate, 1);
    if (now - dirty.from > us_tsc(50000)) // a pause is not made up for
        dirty.from = now - us_tsc(1000);
    for (; now - dirty.from >= per_page; dirty.from += per_page)
        dirty_page();
    return false;
}

uint64_t work_next_timer(void)
{
    return dirty.pages && dirty.rate ? dirty.from + us_tsc(1000) : 0;
}

bool work_request(struct conn *c)
{
    if (http_is(c, "GET", "/touch"))
        touch(c);
    else if (http_is(c, "GET", "/sum"))
        sum(c);
    else if (http_is(c, "GET", "/walk"))
        walk(c);
    else if (http_is(c, "GET", "/dirty"))
        set_dirty(c);
    else
        return false;
    return true;
}
