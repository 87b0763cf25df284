// SPDX-License-Identifier: Apache-2.0
// Live migration: what the API asks for. docs/migration.md has the protocol, the states and the failure table.
//
// Files: mig_api.c requests and what the control thread does for a migration; mig_send.c, mig_pages.c the source;
// mig_recv.c, mig_pull.c the target; mig_wire.c messages; mig_arbiter.c the record that decides who runs;
// mig_os.c sockets (mig_sock.c), userfaultfd and files behind struct mig_io (mig_priv.h), which the simulator replaces.
// Threads: everything here is for the control thread; the work is done by the helper thread.
#ifndef SNAPSHOT_MIG_H
#define SNAPSHOT_MIG_H

#include "snapshot/snapshot.h"

enum mig_mode { MIG_PRECOPY, MIG_POSTCOPY, MIG_HYBRID };
enum mig_late { MIG_LATE_CANCEL, MIG_LATE_POSTCOPY }; // what happens when timeout_ms is over
enum mig_verify { MIG_VERIFY_PAGES, MIG_VERIFY_RAM };

struct migration_channels { // "fd:N": connected stream sockets
    char urgent[CFG_PATH_MAX], bulk[CFG_PATH_MAX];
};

struct migration_send {
    struct migration_channels channels;
    char arbiter[CFG_PATH_MAX];
    bool allow_unarbitrated; // without an arbiter: only then
    enum mig_mode mode;
    uint32_t downtime_ms, bandwidth_mib_s, timeout_ms; // 0: 300, none, 600,000
    enum mig_late on_timeout;
    enum mig_verify verify;
};

struct migration_receive {
    struct migration_channels channels;
    char arbiter[CFG_PATH_MAX];
    bool allow_unarbitrated;
    uint32_t lease_ms;          // silence after which the reservation is given up; 0: 10,000
    bool resume_vm, has_resume; // absent: runs if it ran at the source
    struct snapshot_load over;  // its overrides and any_cpu alone
};

enum mig_role { MIG_NONE, MIG_SOURCE, MIG_TARGET };
enum mig_stage { // as the literature names them
    MIG_S_NONE,
    MIG_S_PRE,      // pre-migration: versions, features, identities compared
    MIG_S_RESERVE,  // reservation at the target
    MIG_S_PRECOPY,  // iterative pre-copy
    MIG_S_STOP,     // stop-and-copy
    MIG_S_COMMIT,   // commitment by the arbiter
    MIG_S_ACTIVATE, // activation; with a pull phase, until the last page is there
};
enum mig_state {
    MIG_IDLE,
    MIG_ACTIVE,
    MIG_PAUSED,  // the link is down during the pull: waits for recover
    MIG_UNKNOWN, // who owns the microVM cannot be told: paused until the arbiter answers
    MIG_DONE,
    MIG_FAILED, // nothing changed hands
    MIG_CANCELLED,
    MIG_LOST, // pages that only a dead source had are gone
};

#define MIG_HIST 20 // fault latencies: bucket i counts less than 2^i us; the last has the rest

struct migration_status {
    _Atomic uint32_t role, stage, state, mode;
    _Atomic uint64_t epoch, rounds, bytes, pages, zero_pages, total_pages, remaining_pages,
        dirty_pages_s, throttle;
    _Atomic uint64_t duplicates, requests, faults, recoveries;
    _Atomic uint64_t expected_downtime_us, downtime_us, total_us, hist[MIG_HIST];
    _Atomic bool arbitrated;
};

// All: 0, or -errno with the reason. send, receive and recover start the work and return.
int migration_send(struct vm *vm, const struct migration_send *s, struct passed_fds *fds,
                   struct err *e);
int migration_receive(struct vm *vm, const struct migration_receive *r, struct passed_fds *fds,
                      struct err *e);
int migration_recover(struct vm *vm, const struct migration_channels *c, struct passed_fds *fds,
                      struct err *e);
int migration_cancel(struct vm *vm, struct err *e);
// Source: the microVM has moved (or is given up), the process ends. Target with a dead source: LOST, likewise.
int migration_finalize(struct vm *vm, struct err *e);
// NULL: none yet. *why: the reason of a failure, "" if there is none.
const struct migration_status *migration_status(struct vm *vm, const char **why);
// -EBUSY while a migration owns the microVM: for every request that would change it.
int migration_refuse(struct vm *vm, struct err *e);
// At the end of the process: stops the work. False: threads hang on absent pages, leave without orderly end.
bool migration_end(struct vm *vm);

#endif
