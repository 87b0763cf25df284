// SPDX-License-Identifier: Apache-2.0
// Ends in a triple fault, right after it was ready.
#include "guest.h"

void guest_main(void)
{
    announce_ready();
    say("triple: now\n");
    triple_fault();
}
