// SPDX-License-Identifier: Apache-2.0
// Starts the other vCPUs by INIT and SIPI, counts those that run, tells, and powers off. cpus=N: how many to expect.
#include "guest.h"

#define LAPIC_ICR 0xfee00300u
#define TRAMPOLINE \
    0x10000u // below 640 KiB, page 0x10; the boot information there was read long ago
#define ALL_BUT_ME (3u << 18)
#define INIT       0x4500u
#define SIPI       0x4600u

// Real mode: count me in, then sleep for ever. CS is 0x1000, so the counter is at offset 0x20.
static const uint8_t code[] = {0xfa, 0xf0, 0x2e, 0xff, 0x06, 0x20, 0x00, 0xf4, 0xeb, 0xfd};

static void wait_us(uint64_t us)
{
    for (uint64_t t = rdtsc(); rdtsc() - t < us_tsc(us);)
        __asm__ volatile("pause");
}

void guest_main(void)
{
    volatile uint16_t *count = at(TRAMPOLINE + 0x20);
    uint64_t want = arg_u64("cpus", 1);
    uint8_t *to = at(TRAMPOLINE);
    memset(to, 0, 0x40);
    memcpy(to, code, sizeof(code));
    announce_ready();
    wr32(LAPIC_ICR, ALL_BUT_ME | INIT);
    wait_us(10000);
    for (unsigned i = 0; i < 2; i++) {
        wr32(LAPIC_ICR, ALL_BUT_ME | SIPI | TRAMPOLINE >> 12);
        wait_us(1000);
    }
    for (unsigned i = 0; i < 2000 && *count + 1u < want; i++)
        wait_us(1000);
    wait_us(50000); // also one too many must show
    say("smp: %u of %lu vCPUs online\n", *count + 1u, want);
}
