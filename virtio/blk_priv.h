// SPDX-License-Identifier: Apache-2.0
// Inside virtio-blk: the device's state, its request pool, and what blk.c, blk_queue.c,
// blk_parse.c, blk_req.c and blk_write.c ask of one another. Nothing outside virtio/blk*.c and its
// tests includes this.
//
// A request lives from virtq_pop to virtq_push. It is a small state machine: req_run moves it as
// far as it goes without blocking and, where it would block, hands one operation to the ring; when
// that lands, req_run goes on from there. A request has at most one operation on the ring.
#ifndef VIRTIO_BLK_PRIV_H
#define VIRTIO_BLK_PRIV_H

#include "virtio/blk.h"
#include "virtio/blk_cow.h"

#define BLK_SECTOR  512u
#define BLK_SEG_MAX 128u
#define BLK_ID_LEN  20u
#define BLK_HDR_LEN 16u
// What the device thread copies by itself before it looks after others: a longer request goes on
// through the ring, further requests wait for the next round, or until less is unfinished. So a guest
// that asks for gigabytes with each of 256 requests keeps neither a pause nor another device waiting.
#define BLK_TURN     (8 * MIB)
#define BLK_OWED     (64 * MIB)
#define BLK_ZERO_MAX (BLK_SEG_MAX * PAGE_SIZE) // zeros written by one operation
// One discard or write-zeroes request: bounds the zeros written by hand where the host's file
// system knows no better.
#define BLK_RANGE_SECTORS (128u * 1024 * 2)

enum blk_kind { BLK_READ, BLK_WRITE, BLK_FLUSH, BLK_ID, BLK_DISCARD, BLK_ZEROES };

// What req_run and its parts return beside -errno: the request's answer.
enum { REQ_DONE = 0, REQ_PENDING = 1 };

struct blk_req {
    struct vio_io io;     // first: io.done gives the request back
    struct blk_req *next; // in the free, ring-full or flush list
    enum blk_kind kind;
    uint8_t *status;   // the chain's last writable byte
    struct iovec *cur; // data not yet moved: segments of c.iov, the first one shortened as it goes
    unsigned n;
    uint64_t off, left; // where on the disk the rest lies, and how many bytes of it there are
    uint32_t landed;    // bytes put into the guest's buffers, from their beginning
    uint32_t bytes;     // of data, for the metrics
    size_t cut;         // bytes hidden from the last segment of the transfer under way
    unsigned retries;
    bool unmap, by_hand; // write-zeroes: may deallocate; the file system cannot, write zeros
    uint8_t flush_step;  // see run_flush
    bool copyup;         // the operation on the ring reads a base block, not guest data
    uint64_t up_block;   // number + 1 of the base block in this request's bounce page
    uint32_t up_have;    // bytes of it read
    struct iovec up;     // the rest of it
    struct vchain c;
};

struct blk_file {
    int fd;
    int file;    // fixed-file index on the ring, or -1
    bool nowait; // the file system takes RWF_NOWAIT (tmpfs does not, and never blocks)
};

struct blk_store { // what a drive stands on, opened
    struct blk_backing b;
    struct blk_file base; // under a layer: the image below; else unused
    struct blk_file top;  // takes writes and flushes: the layer, or the image itself
    struct cow *cow;      // NULL without a layer
};

struct blk {
    struct vio_dev dev; // first
    struct blk_store now, next;
    bool swapping; // `next` waits for requests in flight to land on `now`
    char id[BLK_ID_LEN], next_id[BLK_ID_LEN];
    struct limiter limiter;
    struct blk_metrics m;
    struct blk_req *pool; // VIO_QUEUE_SIZE of them: heads in flight are distinct, so never more
    struct blk_req *free; // used before
    unsigned fresh;       // pool entries never used yet, hence never touched
    unsigned inflight;    // requests popped and unfinished, wherever they are
    unsigned on_ring;     // of these, on the ring
    struct blk_req *full, **full_end;  // the ring was full
    struct blk_req *flusher;           // the flush that is at work on a layer
    struct blk_req *flushes, **fl_end; // flushes that wait for it
    unsigned batch;                    // finished since the driver was last told,
    uint64_t direct;                   // and bytes taken on since
    uint64_t kicked;                   // bytes taken on in the kick under way
    uint64_t owed;                     // of requests in flight
    uint64_t idle_ns;                  // when the queue was last seen empty
    unsigned vain, skip;               // see await_next
    bool throttled;                    // until the timer
    bool quiet;                        // paused: take no new work
};

static inline void blk_count(_Atomic uint64_t *c, uint64_t n)
{
    // One writer, so a plain add that readers never see torn.
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

// Judges the chain popped into r->c. REQ_DONE: r is ready to run; -EPROTO: no status byte can be
// written, the guest's fault; other -errno: the answer.
int req_parse(struct blk *b, struct blk_req *r);

// Goes on with r as far as possible. The answer (REQ_DONE or -errno), or REQ_PENDING.
int req_run(struct blk *b, struct blk_req *r);

// Answers r: status byte, used element, metrics; gives it back to the pool.
void req_finish(struct blk *b, struct blk_req *r, int rc);

// Takes another go at what the ring had no room for.
void req_retry(struct blk *b);

// Puts r->io on the ring (op, iov, off, len and flags are the caller's). REQ_PENDING or -errno.
int req_submit(struct blk *b, struct blk_req *r, enum vio_op op, const struct blk_file *f);

// The first `len` bytes at most of r's data as an iovec: cuts the last segment short where it must,
// until req_moved. Returns how many segments.
unsigned req_cut(struct blk_req *r, uint64_t len);
// n bytes of them were moved: undoes the cut, steps over them, marks guest pages written.
void req_moved(struct blk *b, struct blk_req *r, uint64_t n);

// Reads what can be had at once, short or -EAGAIN where it would block.
ssize_t blk_read_now(struct blk_file *f, const struct iovec *iov, unsigned n, uint64_t off);

// The parts of req_run that change the disk (blk_write.c): a write; a discard or write-zeroes, and
// what its operation on the ring answered (0: go on); a base block read for a partial write.
int req_write(struct blk *b, struct blk_req *r);
int req_zero(struct blk *b, struct blk_req *r);
int req_zero_landed(struct blk *b, struct blk_req *r, int res);

void blk_kick(struct vio_dev *d); // vio_ops.kick

// Tells the driver of what was finished since the last time.
void blk_answer(struct blk *b);

// Requests in flight came to none, perhaps: swap backing, save the layer's bitmap.
void blk_settle(struct blk *b);

#endif
