// SPDX-License-Identifier: Apache-2.0
// snapshot/: a microVM into two files and back. The only header that api-socket/ sees.
//
// Files: codec.c and fields.c (state as bytes), memfile.c (memory as a file), create.c, load.c.
// docs/snapshot-format.md describes both files, docs/snapshots.md what a guest must do.
// Invariants: nothing is ever written into a file that has its name, so a clone's memory cannot
// change under it; a load judges everything it read before KVM, a disk or a tap sees any of it.
// Threads: control thread.
#ifndef SNAPSHOT_SNAPSHOT_H
#define SNAPSHOT_SNAPSHOT_H

#include "vmm/vm.h"

enum snapshot_type { SNAPSHOT_FULL, SNAPSHOT_DIFF };

struct snapshot_create { // paths may be fd:N, empty files open for writing
    char snapshot_path[CFG_PATH_MAX], mem_file_path[CFG_PATH_MAX];
    enum snapshot_type type;
    bool live; // of a running microVM, which goes on while its memory is written
};

enum mem_backend { MEM_BACKEND_FILE, MEM_BACKEND_UFFD };
struct mem_backend_cfg {
    enum mem_backend type;
    char path[CFG_PATH_MAX];
};

struct net_override {
    char iface_id[CFG_ID_MAX + 1], host_dev_name[CFG_PATH_MAX];
};
struct drive_override {
    char drive_id[CFG_ID_MAX + 1], path_on_host[CFG_PATH_MAX], cow_path[CFG_PATH_MAX];
};

struct snapshot_load { // paths may be fd:N
    char snapshot_path[CFG_PATH_MAX];
    char mem_file_path[CFG_PATH_MAX]; // deprecated spelling of a File backend; or the next two
    struct mem_backend_cfg mem_backend;
    bool has_mem_backend;
    char working_set_path[CFG_PATH_MAX]; // pages to bring in, beside the load and the guest
    bool track_dirty_pages, resume_vm, clock_realtime;
    bool any_cpu; // load although this host's CPU lacks what the recording one had
    unsigned nnets, ndrives;
    struct net_override nets[CFG_MAX_NETS];
    struct drive_override drives[CFG_MAX_DRIVES];
};

struct snapshot_working_set {
    char working_set_path[CFG_PATH_MAX];
};

// The microVM is paused, or it runs and `live` is set. On failure nothing has its name but what had it before.
int snapshot_create(struct vm *vm, const struct snapshot_create *c, struct passed_fds *fds,
                    struct err *e);

// Nothing but the machine, logger and metrics was configured. On failure the process is ready for
// another load.
int snapshot_load(struct vm *vm, const struct snapshot_load *l, struct passed_fds *fds,
                  struct err *e);

// Which pages were touched since the load, into a file for later loads of the same snapshot. Loaded from a File;
// running or paused.
int snapshot_working_set(struct vm *vm, const struct snapshot_working_set *c,
                         struct passed_fds *fds, struct err *e);

#endif
