// SPDX-License-Identifier: Apache-2.0
// Inside migration: messages, the engine of either side, and struct mig_io, behind which lie I/O, clock, storage
// and the microVM, so that the simulator links these very objects.
//
// Each side is one sequential program on the helper thread: mig_source, mig_target. It waits in io->wait alone.
// What belongs to the control thread (pause, save, restore) it asks for with io->call and learns by MIG_EV_CALLED.
#ifndef SNAPSHOT_MIG_PRIV_H
#define SNAPSHOT_MIG_PRIV_H

#include <sys/uio.h>

#include "snapshot/mig.h"
#include "vmm/mem/pages.h"

#define MIG_VERSION  1u
#define MIG_F_CLONE  1ull // what comes is a copy of a snapshot: it becomes a microVM of its own
#define MIG_FEATURES MIG_F_CLONE // bits of HELLO that are known here: a peer with others is refused
#define MIG_HEAD     40u
#define MIG_RUN      32u // pages of one message, at most
#define MIG_PAYLOAD  (MIG_RUN * (uint32_t)PAGE_SIZE)
#define MIG_PULL_RUN 16u // pages of one message during the pull: an urgent one waits for no more
#define MIG_ID       16
#define MIG_BLOB_MAX (1024 * 1024 + 4096)
// In front of a state: how many disks, inode and bytes of each.
#define MIG_DISKS     (4 + 16 * CFG_MAX_DRIVES)
#define MIG_BEAT_NS   (NSEC_PER_SEC / 2)
#define MIG_SILENT_NS (5 * NSEC_PER_SEC)  // see struct mig's silence
#define MIG_STEP_NS   (30 * NSEC_PER_SEC) // one step of a peer that is there takes no longer
#define MIG_MS        1000000ULL
// How long a guest that is throttled runs between two holds: longer than it takes to see that one ended, so that its
// share is what was asked for. At 95 % it stands still for 76 ms.
#define MIG_SLICE_MS 4

enum mig_ch { MIG_URGENT, MIG_BULK };

enum mig_type {  // S: from the source, T: from the target; u: urgent, b: bulk channel
    M_HELLO = 1, // Sub   who, which session, what kind
    M_WELCOME,   // Tu    arg: version; payload: the target's id
    M_SHAPE,     // Sb    state of a first short pause, and the disks' identities; in pieces
    M_ACCEPT,    // Tu    reserved; arg: lease in ms
    M_REFUSE,    // Tu    payload: why
    M_PAGES,     // Sub   arg: first page; payload: the pages
    M_ZERO,      // Sub   arg: first page, arg2: how many
    M_ROUND,     // Sb    a pass over the memory ends
    M_ROUND_OK,  // Tu    everything before it is in place
    M_ABSENT,    // Sb    arg: first word; payload: bitmap of pages that will be pulled
    M_STATE,     // Sb    the state; in pieces
    M_PREPARED,  // Tu    the microVM stands; arg: sum of RAM
    M_COMMIT,    // Su    arg: the epoch that the target may take
    M_RUNNING,   // Tu    it took it
    M_WANT,      // Tu    arg: a page that somebody waits for
    M_BITMAP,    // Tu    after a reconnection, arg: first word; payload: pages still absent
    M_DRAINED,   // Tu    nothing is absent; arg: pages pulled, arg2: sum of RAM
    M_FREE,      // Su    the source has let go
    M_PING,      // STu   still there
    M_TYPES,
};

struct mig_msg {
    uint32_t type, len;
    uint64_t arg, arg2;
    const uint8_t *data; // valid until the next mig_get on this channel
};

enum {
    MIG_EV_URGENT_IN = 1,
    MIG_EV_BULK_IN = 2,
    MIG_EV_URGENT_OUT = 4,
    MIG_EV_BULK_OUT = 8,
    MIG_EV_FAULT = 16,
    MIG_EV_CALLED = 32, // a call has ended, or somebody set a flag of struct mig: always waited for
};

enum mig_call {     // what the control thread is asked to do
    MIG_C_LOOK,     // S: pause, save into blob, resume; dirty tracking on unless postcopy
    MIG_C_HOLD,     // S: the guest stands still for its share of the time
    MIG_C_STOP,     // S: pause, flush, save into blob; page bits for a pull
    MIG_C_LETGO,    // S: locks of disks released
    MIG_C_RESUME,   // S: locks again, tracking off, resume
    MIG_C_RESERVE,  // T: blob judged, memory reserved
    MIG_C_RESTORE,  // T: blob becomes a paused microVM
    MIG_C_ACTIVATE, // T: disks locked, announced, resume
    MIG_C_ABANDON,  // T: the reservation is taken away; after RESTORE the process ends
    MIG_C_LOST,     // T: pages are gone for ever, the process ends
};

enum mig_store { MIG_LOCK, MIG_UNLOCK, MIG_READ, MIG_WRITE, MIG_SYNC };

struct mig_io {
    // Some bytes, -EAGAIN, or -errno; recv: 0 is the end.
    long (*send)(void *c, enum mig_ch ch, const struct iovec *v, int n);
    long (*recv)(void *c, enum mig_ch ch, void *buf, size_t n);
    void (*hangup)(void *c);    // closes both channels
    bool (*reconnect)(void *c); // takes the channels that recover brought, if it did
    unsigned (*wait)(void *c, unsigned want,
                     uint64_t until); // those of want that are there; 0: time is over
    uint64_t (*now)(void *c);         // ns
    int (*dirty)(void *c, uint64_t *bits);
    int (*arm)(void *c, const uint64_t *absent); // drops those pages and traps their touch
    void (*disarm)(void *c);
    int (*place)(void *c, uint64_t page, uint64_t n,
                 const void *data);           // NULL: zeros; wakes who waits
    int (*fault)(void *c, uint64_t *page);    // 1: somebody waits for it, 0: nobody new
    int (*call)(void *c, enum mig_call what); // starts it
    int (*called)(void *c);                   // its result; -EAGAIN: not yet
    int (*store)(void *c, enum mig_store op, void *buf, size_t n, uint64_t at);
};

struct mig_chan {
    uint64_t tx, rx; // messages so far: each carries its number
    uint32_t got;    // bytes of the message under way
    uint8_t *buf;    // MIG_HEAD + MIG_PAYLOAD
};

struct mig_wait { // a page that was asked for, for the histogram
    uint64_t page, since;
};

struct mig {
    const struct mig_io *io;
    void *ctx;
    struct migration_status st;
    struct err e;
    _Atomic bool cancel, stop, give_up; // set by the control thread, then a wake-up
    struct guest_mem *mem;
    uint64_t npages, nwords;

    enum mig_mode mode;
    bool arbitrated, verify, late_pull, clone;
    bool peer_ran; // S: the guest ran when it began; T: so says the source
    uint64_t downtime_ns, bytes_s, timeout_ns, lease_ns;

    uint8_t session[MIG_ID], uuid[MIG_ID], self[MIG_ID], peer[MIG_ID];
    uint64_t epoch; // this side's last known; the microVM's, once it owns it
    bool known;     // uuid and epoch are the microVM's from an earlier migration
    struct mig_chan ch[2];
    uint64_t heard, said; // clock of the last message from, to the peer
    uint32_t seen;        // types that came, as bits: the source waits for them
    uint64_t seen_arg[M_TYPES], seen_arg2[M_TYPES];

    uint8_t *blob; // MIG_BLOB_MAX; state on its way
    size_t blob_len, blob_got;
    uint64_t *todo;         // S: pages to send. T: pages absent
    uint64_t *aux;          // S: a round's pages. T: absent pages that were asked for
    uint8_t *stage;         // S: MIG_PAYLOAD, a run as it was when its checksum was made
    uint64_t cursor, asked; // S: where bulk goes on; clock of the last page that was asked for
    uint64_t hold_at;       // S: a guest that is throttled is held again
    uint64_t begun, paused_at, round_at, round_bytes;
    uint64_t pulled, sum;
    uint64_t progress; // T: when a page came last, or all had come
    uint64_t silence;  // a peer not heard of for so long is gone
    uint64_t gathered; // words of a bitmap so far
    // S: paused, the offer may stand in the record, the target was told, it runs there.
    // T: reserved, state came, it stands, the offer came, the arbiter gave it to us, it runs, faults are trapped.
    bool paused, offered, committed, running, accepted, whole, restored, armed;
    bool up, calling, drained, freed; // T: the link; a call under way; told the source; it answered
    enum mig_call call;
    struct mig_wait waits[32];
};

int mig_source(struct mig *m);
int mig_target(struct mig *m);

// ---- mig_wire.c
uint32_t mig_crc(uint32_t seed, const void *p, size_t n); // CRC-32C
// Sends a whole message; during the wait for room the source still answers its urgent channel (mig_serve).
int mig_put(struct mig *m, enum mig_ch ch, enum mig_type type, uint64_t arg, uint64_t arg2,
            const void *p, size_t len);
// 1: a message; 0: none whole yet; -errno: the channel is broken (-EPIPE: ended, -EBADMSG: damaged).
int mig_get(struct mig *m, enum mig_ch ch, struct mig_msg *out);
int mig_put_blob(struct mig *m, enum mig_type type);                 // blob, in pieces, on bulk
int mig_take_blob(struct mig *m, const struct mig_msg *g);           // 1: whole
int mig_put_bits(struct mig *m, enum mig_ch ch, enum mig_type type); // todo, in pieces
int mig_take_bits(struct mig *m, const struct mig_msg *g, uint64_t *bits); // 1: whole
void mig_fresh_link(struct mig *m);
uint64_t mig_page_sum(uint64_t page, const void *data);
uint64_t mig_count(const struct mig *m, const uint64_t *bits);
int mig_call_wait(struct mig *m, enum mig_call what); // starts a call and waits for its end
int mig_beat(struct mig *m); // pings when due; -ETIMEDOUT when the peer has been silent too long
int mig_fail(struct mig *m, int rc, const char *what); // keeps the first reason

// ---- mig_pages.c
int mig_serve(struct mig *m);                  // the source's urgent channel: everything that came
int mig_send_round(struct mig *m, bool first); // aux, page by page, as it is now
int mig_push(struct mig *m);                   // the next run of todo on bulk
uint64_t mig_ram_sum(struct mig *m, const uint64_t *skip);

// ---- mig_pull.c
int mig_take_pages(struct mig *m, const struct mig_msg *g);
int mig_on_faults(struct mig *m);
int mig_want_again(struct mig *m); // what is still waited for, over a new link

// ---- mig_arbiter.c
enum arb_state { ARB_OWNED = 1, ARB_OFFERED };
// What the record says. 0: read; -ENOENT: nobody has written yet; -errno: out of reach.
struct arb_record {
    uint64_t gen;
    enum arb_state state;
    uint64_t epoch;
    uint8_t uuid[MIG_ID], owner[MIG_ID], heir[MIG_ID];
};
int arb_first(struct mig *m); // S: the record is ours, or is made so
int arb_offer(struct mig *m); // S: (ours, e) -> offered to peer as e + 1
int arb_take(struct mig *m);  // T: offered to us -> ours
int arb_settle(
    struct mig *m); // S: takes an offer back. 0: ours again, -ESTALE: the peer's, else out of reach

#endif
