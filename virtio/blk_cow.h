// SPDX-License-Identifier: Apache-2.0
// The copy-on-write layer: a sparse file over a read-only base of the same size, and a bitmap that
// tells which 4 KiB blocks the layer holds. No image format is ever probed: the layer is made by
// cow_format, for one base, and anything else is refused.
//
// On disk, little-endian:
//
//     0        header, one 4 KiB page: magic "MAYFLYCW", version, block size, size of the base,
//              the base's modification time, offsets, checksum (layout: blk_cow.c)
//     4096     bitmap, one bit per block, lowest bit first, padded with zeros to 4 KiB
//     data_off block i of the disk at data_off + i * 4096; a hole reads as zeros
//
// Order. Data goes to the file before the bit that names it, so whenever the monitor dies, a set
// bit stands for complete data. With FLUSH offered (write-back) bits reach the file only in a
// guest's flush, between two fdatasyncs (cow_stage, fdatasync, cow_commit, fdatasync), so that this
// holds across a power cut too, and when the microVM pauses or ends; what was written and not
// flushed may be lost when the monitor is killed, as on a disk that loses power. Without FLUSH
// (Unsafe) bits are written at once: killing the monitor loses nothing, a power cut may.
//
// Threads: made by the control thread, then owned by the device thread, like the device.
#ifndef VIRTIO_BLK_COW_H
#define VIRTIO_BLK_COW_H

#include "vmm/base.h"

#define COW_BLOCK 4096ULL

struct cow {
    int fd;            // borrowed
    uint64_t bytes;    // of the disk
    uint64_t data_off; // of block 0 in the file
    size_t pages;      // of the bitmap
    uint64_t *bits;    // what the layer holds, as of now
    uint64_t *stage;   // what a flush under way is about to save
    uint64_t *dirty;   // bitmap pages that differ from the file ...
    uint64_t *staged;  // ... and those in `stage`
    uint8_t *bounce;   // COW_BLOCK bytes for each request of the pool, touched when used
};

// Makes fd, an empty regular file, a layer over base_fd, `bytes` long: every block still the
// base's. Errors: -EINVAL, or of the writes.
int cow_format(int fd, int base_fd, uint64_t bytes, struct err *e);

// Opens a layer (an empty file becomes a fresh one). Every field is checked; nothing in the file
// can make an access leave it. Errors: -EINVAL with the field named, -ENOMEM, or of the reads.
int cow_open(struct cow **out, int fd, int base_fd, uint64_t bytes, struct err *e);
void cow_free(struct cow *c);

bool cow_has(const struct cow *c, uint64_t block);
// Bytes from off, at most len, that lie together in the layer (*held) or in the base.
uint64_t cow_run(const struct cow *c, uint64_t off, uint64_t len, bool *held);
// The blocks of [off, off + len) are complete in the layer.
void cow_set(struct cow *c, uint64_t off, uint64_t len);
// Writes one whole block into the layer and holds it.
int cow_put(struct cow *c, uint64_t block, const void *data);

// Writes the bitmap pages that changed. 0 or -errno: they stay to be written.
int cow_save(struct cow *c);
// The same around a flush: freeze what there is; write what was frozen; or take it back.
bool cow_stage(struct cow *c); // true: there is something to commit
int cow_commit(struct cow *c);
void cow_unstage(struct cow *c);

// Whole-buffer positioned I/O, for files: 0 or -errno (-EIO: the file ended).
int blk_pread(int fd, void *buf, size_t len, uint64_t off);
int blk_pwrite(int fd, const void *buf, size_t len, uint64_t off);

#endif
