// SPDX-License-Identifier: Apache-2.0
// The migration simulator: both sides and the arbiter's storage in one process, driven by one seed.
//
// It links the monitor's own objects of snapshot/mig_*.c; behind struct mig_io stand a network of byte queues, a
// clock that jumps, a storage with a cache on each host, and microVMs that are an array of pages and a guest that
// reads and writes them. Each engine is a coroutine that gives way in io->wait alone.
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include "snapshot/mig_priv.h"

#define SIM_PAGES  192u
#define SIM_WORDS  (SIM_PAGES / 64)
#define SIM_STACK  (512 * 1024)
#define SIM_VCPUS  2
#define SIM_BLOB   5000
#define SIM_MS     1000000ULL
#define SIM_RECORD 1024
#define SIM_LINKS  8
#define SIM_FAULTS 3
#define SIM_EACH   (SIM_STACK + 3 * MIG_PAYLOAD + 2 * MIG_HEAD + MIG_BLOB_MAX)
#define SIM_ARENA  (2 * (SIM_EACH + SIM_PAGES * PAGE_SIZE))

enum { SRC, DST };

struct sim_seg { // bytes on their way
    struct sim_seg *next;
    uint64_t at;
    uint32_t len, off;
    uint8_t b[];
};

struct sim_pipe {                         // one direction of one channel
    struct sim_seg *first, **last, *held; // held: a message that goes after
    unsigned held_for;                    // so many others
    uint64_t bytes, until;                // in flight; when its last byte arrives
    bool ended, reset, hole;              // FIN; RST; everything vanishes
};

struct sim_link {
    struct sim_pipe p[2][2]; // by sender, channel
};

enum sim_what {
    F_CRASH_SELF,
    F_CRASH_PEER,
    F_FREEZE_SELF,
    F_CUT,
    F_CUT_ONE,
    F_HOLE,
    F_HOLE_ONE_WAY,
    F_STALL,
    F_TRUNCATE,
    F_DUPLICATE,
    F_REORDER,
    F_FLIP,
    F_FLIP_HEAD,
    F_CANCEL,
    F_STORE_DOWN,
    F_STORE_EIO,
    F_GARBAGE,
    F_KINDS
};

struct sim_fault { // at the nth message of a type that a side sends
    enum sim_what what;
    int side;
    uint32_t type;
    unsigned nth;
    bool done;
};

struct sim_side {
    struct mig m;
    int index;
    // coroutine
    void *sp;
    uint8_t *stack;
    bool started, returned, dead,
        frozen; // frozen: the host hangs; dead to all but its peer's timeouts
    int rc;
    unsigned want;
    uint64_t until;
    bool woken;
    // microVM
    struct guest_mem mem;
    uint64_t dirty[SIM_WORDS], present[SIM_WORDS], bits[2][SIM_WORDS];
    bool exists, running, tracking, armed, lost;
    struct {
        bool blocked;
        uint64_t page;
    } vcpu[SIM_VCPUS];
    uint64_t faults[16]; // not yet read
    unsigned nfaults;
    // calls to the control thread
    bool calling, call_done;
    enum mig_call call;
    uint64_t call_at;
    int call_rc;
    uint64_t touch[4]; // pages that a restore touches
    unsigned ntouch;
    // storage as this host sees it: what it wrote and did not sync
    bool cached[2];
    uint8_t cache[SIM_RECORD];
    // links
    struct sim_link *link, *next_link;
    uint64_t seen_paused;
};

struct sim {
    uint64_t seed, rng, now;
    uint8_t *arena; // SIM_ARENA bytes, of one run after the other
    int verbose;
    struct sim_side side[2];
    struct sim_link links[SIM_LINKS];
    unsigned nlinks;
    struct sim_fault fault[SIM_FAULTS];
    unsigned nfaults, fired, sent[2][M_TYPES];
    uint8_t blob[SIM_BLOB];    // device state at the last stop
    uint64_t truth[SIM_PAGES]; // what the guest wrote last into each page; 0: never
    uint64_t counter;
    // shared storage
    uint8_t record[SIM_RECORD];
    uint32_t record_len;
    int lock;            // side that holds the record, or -1
    uint64_t store_back; // unreachable until
    int store_eio;       // operations until one fails, 0: none
    int disk;            // side that holds the disk's lock, or -1
    const char *bad;     // what went wrong
    void *main_sp;
    struct sim_side *self; // whose coroutine runs
    bool diskless, gave_up, was_cancelled;
};

uint64_t sim_rand(struct sim *s, uint64_t below);
bool sim_chance(struct sim *s, unsigned percent);
void sim_yield(struct sim *s);
void sim_bad(struct sim *s, const char *what);
void sim_log(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// net
struct sim_link *sim_connect(struct sim *s);
void sim_net_free(struct sim *s);
long sim_send(void *c, enum mig_ch ch, const struct iovec *v, int n);
long sim_recv(void *c, enum mig_ch ch, void *buf, size_t n);
void sim_hangup(void *c);
bool sim_reconnect(void *c);
unsigned sim_events(struct sim_side *d, unsigned want);
uint64_t sim_next_arrival(struct sim *s);
void sim_crash(struct sim *s, struct sim_side *d, bool silent);

// machine
extern const struct mig_io sim_io;
struct sim *sim_of(void *c);
void sim_machine_init(struct sim_side *d, uint8_t *ram);
void sim_guest(struct sim *s, struct sim_side *d);
bool sim_call_ready(struct sim *s, struct sim_side *d);
void sim_call_run(struct sim *s, struct sim_side *d);
void sim_wake_vcpus(struct sim_side *d);
void sim_check_memory(struct sim *s, struct sim_side *d);
void sim_store_crash(struct sim *s, struct sim_side *d);

void sim_run(struct sim *s);

#endif
