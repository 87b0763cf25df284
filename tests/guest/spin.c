// SPDX-License-Identifier: Apache-2.0
// A vCPU that never exits by itself: what pause must still stop.
#include "guest.h"

void guest_main(void)
{
    announce_ready();
    say("spin: now\n");
    for (;;)
        BARRIER();
}
