// SPDX-License-Identifier: Apache-2.0
// What the host lets a test do. Any thread.
#ifndef TESTS_UNIT_HOST_H
#define TESTS_UNIT_HOST_H

#include <fcntl.h>

#include "vmm/base.h"

// By opening it: root may see a /dev/kvm that its container does not let it open.
static inline bool kvm_is_ours(void)
{
    _cleanup_(close_fdp) int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    return fd >= 0;
}

#endif
