// SPDX-License-Identifier: Apache-2.0
// The state codec: a paused microVM as bytes, for the state file and for a migration stream alike.
//
// A blob is a header (magic, version, length, ids, checksum) and sections (type, length, value) in
// rising order of type. docs/snapshot-format.md describes every byte. Decoding judges shape alone:
// lengths, order, counts, booleans, strings; what values mean is judged by vm_restore_shape.
// Pure functions on the caller's bytes; any thread.
#ifndef SNAPSHOT_CODEC_H
#define SNAPSHOT_CODEC_H

#include "vmm/state.h"

#define SNAP_STATE_MAX   (1024 * 1024)
#define SNAP_HEAD        64 // bytes of the header; the blob's length stands at SNAP_LEN_AT
#define SNAP_LEN_AT      16
#define SNAP_VERSION     1u
#define SNAP_VERSION_MIN 1u // oldest that can be read: N - 1 once there is one

// ---- tables: one row says how one member goes onto the wire and comes back

enum field_kind {
    F_INT,  // integers of `size` bytes, `count` of them, little-endian
    F_BOOL, // one byte, 0 or 1
    F_STR,  // char[count]: u16 length, bytes without a NUL
    F_SUB,  // `count` structs of `sub`
    F_LIST, // u32 n <= count, n structs of `sub`; n lives in a 32-bit member at n_off
    F_TAIL, // count bytes: u32 n, n bytes; the rest is zero
};

struct table;
struct field {
    enum field_kind kind;
    uint32_t off, size, count, n_off, since; // since: first format version that has it
    const struct table *sub;
};
struct table {
    const struct field *f;
    unsigned n;
    uint32_t size; // of the struct
};

// A cursor over bytes; `out` says in which direction values move. Once bad, nothing moves any more.
struct codec {
    uint8_t *p, *end;
    uint32_t version;
    bool out, bad;
};
void codec_walk(struct codec *c, const struct table *t, void *s);

extern const struct table t_snap_info, t_snap_machine, t_snap_cpuid, t_snap_clock, t_snap_ioapic,
    t_snap_serial, t_snap_i8042, t_snap_blk, t_snap_net, t_snap_vcpu;

// ---- blobs

struct snap_info { // about the recording; for people but for arch, which must be ours
    char arch[16], monitor[32], id[CFG_ID_MAX + 1];
    uint64_t realtime_ns;
};

struct snap_blob {
    uint8_t id[SNAP_ID], parent[SNAP_ID]; // parent all zero: none
    struct snap_info info;
};

// Writes the blob into buf. -ENOSPC: it does not fit.
int codec_encode(const struct snap_blob *b, const struct vm_saved *s, uint8_t *buf, size_t cap,
                 size_t *len, struct err *e);

// Reads a blob of exactly len bytes; *out is the caller's, for vm_saved_free. -EINVAL and -ENOTSUP,
// with the part named.
int codec_decode(const uint8_t *buf, size_t len, struct snap_blob *b, struct vm_saved **out,
                 struct err *e);

// The length of the whole blob, from its first SNAP_HEAD bytes: for streams. 0: not a blob.
uint32_t codec_length(const uint8_t *head);

// ---- shared by snapshots and migration
// Sets the bits of every page that may hold something but zeros.
int snap_all_pages(struct vm *vm, uint64_t *bits, struct err *e);
// Puts other taps and disks into s, as the load says.
struct snapshot_load;
int snap_override(const struct snapshot_load *l, struct vm_saved *s, struct err *e);

void snap_id_text(const uint8_t id[SNAP_ID], char text[2 * SNAP_ID + 1]);

#endif
