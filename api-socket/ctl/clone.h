// SPDX-License-Identifier: Apache-2.0
// mayflyctl clone: N microVMs of one snapshot, started side by side.
//
// clone.c reads the command line and the snapshot, makes what may exist beforehand (namespaces,
// folder), runs and reports; clonerun.c holds the workers that start clones and the loop that hears
// them; clonedisk.c makes layers and configuration drives; cloneshow.c prints.
// Threads: a worker fills a struct clone and hands it over through a pipe; then it is the loop's.
#ifndef CTL_CLONE_H
#define CTL_CLONE_H

#include "api-socket/ctl/ctl.h"
#include "snapshot/codec.h"

#define CLONE_ANSWER 1024

struct clone {
    char name[64];
    char sock[CTL_PATH];
    bool ns_made; // its namespace is ours to take away
    bool pooled;  // its monitor is a pool's shell, of which sock is the socket
    pid_t pid;
    int api, probe;
    bool heard;                                  // the loop has it
    bool loaded, counted;                        // counted: done, well or not
    uint64_t t_spawn, t_loaded, t_first, t_last; // CLOCK_MONOTONIC; t_first: connection made
    size_t len;
    char answer[CLONE_ANSWER]; // the guest's whole HTTP answer, as much of it as fits
    int status;
    struct err e; // why it failed; empty: it has not
};

struct job {
    // as asked
    const char *state, *mem, *prefix, *dir, *data, *data_drive, *pool, *mayfly, *get;
    uint64_t n, port, timeout_s, window, workers;
    bool keep, json, table, clock, no_get;
    bool again; // ask: the clones run already
    struct net_plan net;
    // the snapshot
    struct vm_saved *saved;
    int state_fd, mem_fd;
    char *text; // of --data, unless it is a folder
    size_t text_len;
    // the run
    struct clone *c;
    uint64_t made;                         // namespaces that this run made
    uint64_t t_ns, t_start, t_end, t_gone; // namespaces took; first to last; orderly end took
    _Atomic uint64_t next, inflight;
    int epoll, room,
        handoff
            [2]; // handoff: a pipe of clones that were started; room: an eventfd semaphore of clones that may be under way
    uint64_t done, failed;
    const char *nets[CFG_MAX_NETS]; // interface ids of the snapshot
    unsigned nnets;
    struct opt_list allow; // as asked: where images may lie
    struct opt_list
        dirs; // that and the folders of the snapshot, absolute: all that a monitor opens by itself
};

// Beneath j->dirs alone. whole_path: an absolute one, the caller's to free; NULL: errno.
char *whole_path(const char *path);
int image_allowed(const struct job *j, const char *path, struct err *e);
// Opens or makes what clone i gets for its drives; appends to fds and to the overrides' text.
int disk_overrides(const struct job *j, const struct clone *c, uint64_t i, int *fds, unsigned *nfds,
                   char *out, size_t size, struct err *e);
void disk_remove(const struct job *j, const struct clone *c); // layers that have names

// What clone --keep left in j->dir: names, numbers, whose namespaces; *pool is filled if they are a pool's.
int clone_list(struct job *j, char pool[CTL_PATH], struct err *e);
void job_free(struct job *j); // what it points at
int clone_make_namespaces(struct job *j, struct err *e);
int clone_run(struct job *j, struct err *e);
void clone_finish(struct job *j); // ends the clones, or leaves a list of them
void show_progress(const struct job *j, bool last);
void show_result(const struct job *j);

// poolwire.c: n idle shells; sock and pid of each clone are filled.
int pool_take(const char *dir, struct clone *c, uint64_t n, struct err *e);
int pool_release(const char *dir, const struct clone *c, uint64_t n, struct err *e);
int pool_status(const char *dir, struct err *e); // prints it

#endif
