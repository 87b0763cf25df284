// SPDX-License-Identifier: Apache-2.0
// A snapshot served to many pullers: each starts a microVM of its own on another host before its memory is there.
// docs/migrating.md tells how it is used.
//
// Files: serve.c the command, who may come in; servefile.c the snapshot's files; servepull.c one puller, by the very
// source of a migration (snapshot/mig_priv.h) over a snapshot instead of a microVM. pull.c is the other host's command.
// Threads: one for each connection until its line came, then one for each puller; they share what is here alone.
// A session is its two connections: what a puller that comes back needs stands in its own bitmap, so nothing is kept of
// those that went, and another server of the same files can take up where one ended.
#ifndef CTL_SERVE_H
#define CTL_SERVE_H

#include "api-socket/ctl/mig.h"
#include "snapshot/codec.h"
#include "snapshot/mig_priv.h"

struct served { // constant once it is open, and then any thread's
    uint8_t id[SNAP_ID];
    uint8_t *blob; // as it goes to a target: MIG_DISKS, the state
    size_t blob_len;
    struct guest_mem mem;   // the memory file, mapped to be read
    uint64_t *data, *first; // bits of pages that are no hole; of those that go before it starts
    uint64_t nfirst;
    uint64_t sum; // of all memory, if it is verified
};

// wset NULL: none. Errors: whatever is wrong with a file, by name.
int served_open(struct served *t, const char *state, const char *mem, const char *wset,
                struct err *e);

#define HALVES_MAX  64  // connections whose other is awaited
#define HEARING_MAX 128 // connections whose line is awaited

struct half {
    struct link_line line;
    int fd; // -1: none
    uint64_t since;
};

struct server {
    struct served t;
    uint64_t pullers_max, limit_s, bandwidth; // bandwidth: MiB a second for each, 0: no cap
    bool verify, json, quiet;
    int listener, signals;
    _Atomic unsigned
        starting; // pullers whose microVMs do not run yet: they go before memory that can wait
    pthread_mutex_t lock; // for what follows
    uint64_t pullers, hearing;
    int heard[HEARING_MAX]; // a ring of those whose line is awaited; -1: none
    struct half half[HALVES_MAX];
};

// Serves one puller to its end, closes both connections, and says how it went. A thread of its own.
void serve_puller(struct server *s, const struct link_line *l, int fd[2]);

#endif
