// SPDX-License-Identifier: Apache-2.0
// mayflyctl snapshot merge, inside: outside of the trusted base, since the monitor never merges. Any thread.
#ifndef CTL_MERGE_H
#define CTL_MERGE_H

#include "vmm/base.h"

// Writes into the empty file `out` the Full memory file that `diff` makes of the Full `base`. Reads
// diff's bitmap, not its holes; touches neither input. -EINVAL: they do not belong together.
int merge_memory(int base, int diff, int out, struct err *e);

#endif
