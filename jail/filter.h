// SPDX-License-Identifier: Apache-2.0
// Internal to jail/: the BPF programs that the build generates from the #syscalls declarations.
#ifndef JAIL_FILTER_H
#define JAIL_FILTER_H

#include "jail/jail.h"

#include <linux/filter.h>

struct jail_prog {
    const struct sock_filter *insn;
    unsigned short count;
};

extern const struct jail_prog jail_progs[JAIL_FILTER_COUNT];
extern const char *const jail_syscall_names[512]; // DEBUG builds only; NULL where there is no call

#endif
