// SPDX-License-Identifier: Apache-2.0
// One migration in the monitor: the engine's struct mig and what it stands on.
#ifndef SNAPSHOT_MIG_OS_H
#define SNAPSHOT_MIG_OS_H

#include "snapshot/mig_priv.h"
#include "vmm/handover.h"
#include "vmm/state.h"

struct mig_run {
    struct mig m; // helper thread while a job runs
    struct vm *vm;
    int fd[2];   // channels, by enum mig_ch; helper
    int next[2]; // brought by recover: control writes, helper takes
    _Atomic bool brought;
    int arbiter, uffd; // -1: none
    size_t map_size;   // of this struct and its buffers
    void *bits;        // bitmaps
    size_t bits_size;
    enum mig_call what;  // of the call under way
    struct err call_err; // its reason
    // control thread
    struct passed_fds fds; // for overrides, until restore
    struct migration_receive rx;
    bool tracking, built;
};

extern const struct mig_io mig_os_io;
int mig_on_control(void *run); // performs run->what
int mig_alloc_bits(struct mig_run *r, struct err *e);
int mig_small_pages(const struct machine_cfg *c, struct err *e); // -ENOTSUP: it lies on larger ones

#endif
