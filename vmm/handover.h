// SPDX-License-Identifier: Apache-2.0
// What migration asks of a microVM beside state.h: work on the helper thread, calls from there to the control
// thread, disks whose locks change hands, faults, announcements. A leaf for snapshot/.
#ifndef VMM_HANDOVER_H
#define VMM_HANDOVER_H

#include "vmm/vm.h"

// ---- helper and control thread: a job on the helper asks the control thread for what is the latter's alone.

int vm_job(struct vm *vm, void (*job)(void *), void *arg); // control: -EBUSY while one runs
bool vm_job_runs(struct vm *vm);
void vm_job_wait(struct vm *vm); // until none runs
// Helper: fn(arg) on the control thread, soon. One at a time.
void vm_ask(struct vm *vm, int (*fn)(void *), void *arg);
int vm_asked(struct vm *vm); // helper: fn's result, once; -EAGAIN: not yet
// Control: runs what was asked for, when vm_exit_fd is readable and the microVM has not ended.
void vm_answer(struct vm *vm);
int vm_helper_fd(
    struct vm *vm); // helper: readable after vm_wake_helper or an answer; vm_helper_awake rearms it
void vm_helper_awake(struct vm *vm);
void vm_wake_helper(struct vm *vm); // any thread

void **vm_migration(struct vm *vm); // snapshot/'s own, NULL at first

// ---- disks and network. Control thread, VM paused (announce: running too).

// Locks are left alone by vm_restore; vm_disks_lock(true) takes them, before the microVM runs.
void vm_disks_unlocked(struct vm *vm);
int vm_disks_lock(struct vm *vm, bool hold, struct err *e); // false: lets them go, and never fails
int vm_disks_sync(struct vm *vm, struct err *e);
// Which file a drive stands on: inode and bytes. False: no such drive.
bool vm_disk_is(struct vm *vm, unsigned drive, uint64_t id[2]);
// Now and thirteen times more within 8.25 s, by the device thread itself.
void vm_announce(struct vm *vm);

// ---- memory behind a userfaultfd, at its pinned descriptor. Control thread, before the microVM is configured.
int vm_uffd(struct vm *vm, struct err *e);

// The microVM is over here: the process ends with this status and line.
void vm_over(struct vm *vm, enum vm_exit how, const char *why);

#endif
