// SPDX-License-Identifier: Apache-2.0
// Floods COM1: bytes=N of it (0, the default: for ever), which the monitor must neither store nor wait for.
#include "guest.h"

void guest_main(void)
{
    uint64_t n = arg_u64("bytes", 0);
    announce_ready();
    for (uint64_t i = 0; !n || i < n; i++)
        outb(0x3f8, i % 64 == 63 ? '\n' : (uint8_t)('0' + i % 64));
    say("\nserialflood: done\n");
}
