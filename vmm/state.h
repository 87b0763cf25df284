// SPDX-License-Identifier: Apache-2.0
// A paused microVM as plain data: what snapshots and migration carry, and how it becomes a microVM again.
//
// A leaf for snapshot/. Control thread only. vm_save copies a paused VM's state out; vm_restore judges every
// field as an enemy's, then builds a paused VM from it in one that was not started. Memory is not in here:
// it is reached through vm_mem, and is backed (file, anonymous, or behind userfaultfd) between vm_restore_shape
// and vm_restore, because restoring clocks makes KVM touch guest pages.
//
//   restore: vm_restore_shape -> back the memory -> vm_restore -> VM_PAUSED -> vm_resume
//   any failure: vm_restore_undo, and the process is ready for another request.
#ifndef VMM_STATE_H
#define VMM_STATE_H

#include "virtio/virtio.h"
#include "vmm/config.h"
#include "vmm/dev/dev.h"
#include "vmm/mem/mem.h"
#include "vmm/vcpu/cpuid.h"
#include "vmm/vcpu/state.h"
#include "vmm/vm.h"

enum saved_kind { SAVED_BLK = 1, SAVED_NET = 2 };

struct saved_dev {
    enum saved_kind kind;
    struct vio_state vio;
    union {
        struct {
            struct drive_cfg cfg; // path as configured; an override replaces it before vm_restore
            uint64_t
                bytes; // of the image when saved: another size is refused; 0: any, and the guest
                       // is told that its drive changed (an override)
            struct limiter limit;
        } blk;
        struct {
            struct net_cfg cfg;
            struct limiter rx, tx;
        } net;
    };
};

struct vm_saved {
    struct machine_cfg machine;
    struct cpuid_table cpuid; // of vCPU 0
    struct vm_clock clock;
    struct ioapic_state ioapic;
    struct serial_state serial;
    struct i8042_state i8042;
    bool ready; // the guest had written the ready port
    unsigned ndevs;
    struct saved_dev dev[CFG_MAX_DEVS]; // by slot
    unsigned nvcpus;
    struct vcpu_state *vcpu; // nvcpus of them, allocated with the struct
};

// Zeroed, with its vCPUs; a mapping of its own, which every filter allows. NULL: out of memory.
struct vm_saved *vm_saved_new(unsigned nvcpus);
void vm_saved_free(struct vm_saved *s);

// Copies the state of a paused VM. -EPERM: not paused.
int vm_save(struct vm *vm, struct vm_saved *out, struct err *e);

// What a snapshot's memory is made of and reached by.
struct guest_mem *vm_mem(struct vm *vm);

struct vm_restore_opts {
    bool track_dirty_pages;
    bool advance_clock; // kvmclock and TSC run on by wall-clock time (clock_realtime, migration)
    bool any_cpu;       // go on though the recorded CPU has what this host lacks
    bool resume;        // it runs when this returns, else it is paused
    bool new_identity;  // a clone: VMGenID and VMClock change, interfaces announce themselves
    bool opened; // disks and taps are those of vm_restore_open; what waits in the taps is dropped
    struct passed_fds *fds; // for fd:N in paths of *in; NULL: refused
};

// Judges `in` (with this host: CPUID, XCR0, MSRs, TSC frequency, named) and gives the VM its number of vCPUs and
// its reservation of memory, when they are not what vm_put_machine made already. -EPERM once anything but the
// machine was configured.
int vm_saved_check(struct vm *vm, const struct vm_saved *in, const struct vm_restore_opts *o,
                   struct err *e); // what vm_restore_shape judges, alone
int vm_restore_shape(struct vm *vm, const struct vm_saved *in, const struct vm_restore_opts *o,
                     struct err *e);
// Opens disks and taps ahead of vm_restore, after vm_restore_shape: what can be refused is refused early, and a tap
// takes part in its bridge long before it is needed.
int vm_restore_open(struct vm *vm, const struct vm_saved *in, struct passed_fds *fds,
                    struct err *e);
// Opens disks and taps, makes the devices, loads all state. Memory is backed.
int vm_restore(struct vm *vm, const struct vm_saved *in, const struct vm_restore_opts *o,
               struct err *e);
// Takes everything of a failed load away again.
void vm_restore_undo(struct vm *vm);

// ---- dirty pages ------------------------------------------------------------------------------------------
// One bit a page, by file_off: what vCPUs wrote (KVM's log) and what the monitor wrote, together.

int vm_dirty_track(struct vm *vm, bool on, struct err *e);
// Moves the pages dirtied since the last call into bits (mem->size / PAGE_SIZE of them, in 64-bit words) by OR.
// The VM may run. -EINVAL: not tracked.
int vm_dirty_fetch(struct vm *vm, uint64_t *bits, struct err *e);

// ---- what snapshot/ remembers of a microVM between requests --------------------------------------------------

#define SNAP_ID 16

enum mem_origin {
    MEM_FRESH, // anonymous: what is present was written since the boot
    MEM_FILE,  // a private map of mem_fd: what is anonymous was written since the load
    MEM_PAGED, // anonymous behind a page server: what is absent exists elsewhere
};

struct vm_lineage {
    enum mem_origin origin;
    uint8_t secret[16];     // random, never shown: sessions are made of it
    uint8_t seed[12];       // random, of this process: ids are made of it
    uint32_t made;          // ids handed out
    uint8_t base[SNAP_ID];  // snapshot that the next Diff stands on; all zero: none
    int mem_fd;             // MEM_FILE: the file below; else -1
    const uint64_t *copied; // MEM_FILE: pages that a working set copied ahead of time; NULL: none
    int server;             // MEM_PAGED: connection to the page server; else -1
    uint64_t *seen;         // MEM_PAGED: the watch's bitmap
    _Atomic bool ending;    // the helper must come back from where it is
    bool prefetching;       // it was given a working set to bring in
};
struct vm_lineage *vm_lineage(struct vm *vm);
int vm_pagemap_fd(const struct vm *vm); // /proc/self/pagemap, or -1
int vm_uffd_info(const struct vm *vm);  // what the kernel says of the userfaultfd, or -1

// ---- files: the paths of snapshots are opened by the same rules as all others (vmm/paths.c) ------------------

// flags: O_RDONLY or O_RDWR. A regular file's descriptor, or -errno.
int path_open(struct vm *vm, const char *path, const char *field, int flags, struct passed_fds *fds,
              struct err *e);

// A connection to a listening Unix socket (or fd:N, connected). Its socket was made beforehand, one of a few: -EBUSY
// when all were connected.
int path_connect(struct vm *vm, const char *path, const char *field, struct passed_fds *fds,
                 struct err *e);

// A file that appears under its name only when it is whole: made beside it under another name.
struct new_file {
    int fd, dir; // dir -1: a descriptor was passed, which is written to as it is
    char name[256], temp[280];
    enum { NEW_UNNAMED, NEW_NAMED, NEW_SWAPPED } how; // swapped: temp is now the older file's
};
int path_create(struct vm *vm, const char *path, const char *field, struct passed_fds *fds,
                struct new_file *f, struct err *e);
int path_sync(struct new_file *f, const char *field, struct err *e); // the bytes are on disk
bool path_same(const struct new_file *a, const struct new_file *b);  // they would be one file
// Gives all of them their names, in this order, replacing what was there, and makes that lasting. All or none: on
// failure every name has what it had before. A crash in between leaves an older file under its temporary name.
int path_commit(struct new_file *const f[], unsigned n, struct err *e);
void path_abandon(struct new_file *f); // for _cleanup_: closes; what has no name goes away

#endif
