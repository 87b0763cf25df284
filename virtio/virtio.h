// SPDX-License-Identifier: Apache-2.0
// virtio/: split virtqueues, the MMIO transport (virtio 1.2 section 4.2), block and net.
//
// This room knows nothing of KVM, of io_uring or of the API. What it needs from the monitor it gets
// through struct vio_host; what the monitor needs from a device it asks through struct vio_ops.
//
// Threads. While the VM runs the *device thread* owns every device: all vio_ops but config_read,
// config_write and features run there. A vCPU thread enters only through vio_mmio_read and
// vio_mmio_write. Each device has one lock: the device thread holds it while it serves the device,
// the MMIO path takes it for every register but QueueNotify, InterruptStatus and InterruptACK,
// which are atomics. While the VM is paused (vCPUs stopped, device thread drained) all belongs to
// the control thread.
//
// Guest faults. A malformed ring, chain or register sequence calls vio_fault: the device sets
// DEVICE_NEEDS_RESET, raises a config interrupt, stops serving its queues and counts the fault. It
// never ends, hangs or slows the monitor, and a reset by the driver brings the device back.
//
// Reset with I/O in flight: Status reads non-zero until the last request has landed; only then are
// the queues forgotten and Status reads 0, so no late write ever reaches the guest
// (virtio 1.2, 2.1.1).
//
// Work bound: one call of vio_ops.kick pops at most queue-size chains per queue, then asks to be
// called again through host->again, so that a guest which refills while we drain cannot hold the
// thread.
#ifndef VIRTIO_VIRTIO_H
#define VIRTIO_VIRTIO_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include "vmm/base.h"
#include "vmm/mem/mem.h"

#define VIO_MMIO_SIZE  0x1000u
#define VIO_NOTIFY_OFF 0x50u // QueueNotify: the monitor puts an ioeventfd here
#define VIO_STATUS_OFF 0x70u
#define VIO_MAX_QUEUES 3u
#define VIO_QUEUE_SIZE 256u // largest queue a driver may choose
#define VIO_SEG_MAX    130u // descriptors of one chain that a device takes (header + 128 + status)

enum { VIO_ID_NET = 1, VIO_ID_BLOCK = 2 };

// Status bits (2.1) and interrupt causes (4.2.2).
enum {
    VIO_ST_ACKNOWLEDGE = 1,
    VIO_ST_DRIVER = 2,
    VIO_ST_DRIVER_OK = 4,
    VIO_ST_FEATURES_OK = 8,
    VIO_ST_NEEDS_RESET = 64,
    VIO_ST_FAILED = 128,
};
enum { VIO_INT_VRING = 1, VIO_INT_CONFIG = 2 };

#define VIO_F_INDIRECT_DESC (1ULL << 28)
#define VIO_F_EVENT_IDX     (1ULL << 29)
#define VIO_F_VERSION_1     (1ULL << 32)

// ---- plain state: what a snapshot carries for the transport, nothing else

struct virtq_state {
    uint16_t size;       // chosen by the driver: a power of two, 1 to VIO_QUEUE_SIZE
    uint16_t ready;      // 0 or 1
    uint16_t next_avail; // free-running index of the next chain to pop
    uint16_t next_used;  // free-running index of the next used element
    uint16_t signalled;  // next_used at the last interrupt, for EVENT_IDX
    uint16_t signalled_valid;
    uint64_t desc, avail, used; // guest-physical
};

struct vio_state {
    uint32_t status;
    uint32_t isr;
    uint32_t config_gen;
    uint32_t dev_feat_sel, drv_feat_sel, queue_sel;
    uint64_t drv_features; // accepted by the driver; fixed once FEATURES_OK
    struct virtq_state q[VIO_MAX_QUEUES];
};

// ---- queues (queue.c)

struct vio_dev;

// One queue of a device. Ring pointers are translated once, at activation, and stay valid until
// reset since guest memory never moves. Ring fields are accessed only inside queue.c.
struct virtq {
    struct virtq_state s;
    struct guest_mem *mem;
    bool event_idx, indirect;
    uint16_t avail_seen;                    // the driver's idx when it was last looked at
    void *desc, *avail, *used;              // NULL unless activated
    uint64_t inflight[VIO_QUEUE_SIZE / 64]; // heads popped, not yet pushed: a second pop is a fault
};

// A popped descriptor chain, wholly translated: iov[0..nr) are device-readable, iov[nr..nr+nw)
// device-writable, in order. Every length was checked; sums fit in 32 bits.
struct vchain {
    uint16_t head;
    uint16_t nr, nw;
    uint32_t rbytes, wbytes;
    struct iovec iov[VIO_SEG_MAX];
};

// Translates and checks the rings of q->s (alignment, in RAM, size, no overlap). 0, or -EINVAL: the
// guest's fault.
int virtq_activate(struct virtq *q, struct guest_mem *mem, uint64_t features);
void virtq_deactivate(struct virtq *q);

// Next available chain. 1: *c is filled; 0: nothing available; -EINVAL: the guest broke the ring
// (the caller calls vio_fault). Indices are loaded once with acquire; descriptors are copied, then
// judged.
int virtq_pop(struct virtq *q, struct vchain *c);

// Puts back the chain popped last (rate limit, full backend): the next pop returns it again.
void virtq_unpop(struct virtq *q, const struct vchain *c);

// Completes a chain by writing its used element; virtq_publish makes all pushed so far visible.
void virtq_push(struct virtq *q, uint16_t head, uint32_t written);
void virtq_publish(struct virtq *q);

// Whether an interrupt is due for what was published since the last call (EVENT_IDX or flags).
bool virtq_want_irq(struct virtq *q);

// Tells the driver (not) to kick. virtq_enable_kick returns true when chains are waiting already:
// pop again before sleeping, or a kick is lost.
void virtq_disable_kick(struct virtq *q);
bool virtq_enable_kick(struct virtq *q);
bool virtq_has_avail(struct virtq *q);

// Copies up to len bytes at offset off of the device-readable part, each byte read once: judge the
// copy. Returns the number copied, less than len when the chain is shorter.
uint32_t vchain_read(const struct vchain *c, uint32_t off, void *buf, uint32_t len);

// ---- what a device asks of the monitor

enum vio_op { VIO_IO_READV, VIO_IO_WRITEV, VIO_IO_FSYNC, VIO_IO_FALLOCATE };

// A slow operation on the ring. Owned by the device, untouched until done runs (on the device
// thread, device lock held) with res >= 0 or -errno.
struct vio_io {
    enum vio_op op;
    int file; // from host->file_add
    struct iovec *iov;
    unsigned niov;
    uint64_t off, len; // FALLOCATE: the range
    uint32_t flags;    // FALLOCATE: mode; FSYNC: IORING_FSYNC_*; READV, WRITEV: RWF_*
    void (*done)(struct vio_dev *d, struct vio_io *io, int res);
    struct vio_dev *dev; // set by the device
};

// Services of the monitor. All but irq and again are for the device thread (or the control thread
// while the VM is not running).
struct vio_host {
    void *ctx;
    void (*irq)(void *ctx, unsigned slot);   // any thread: pulse the device's GSI
    void (*again)(void *ctx, unsigned slot); // any thread: call vio_kick soon
    int (*io)(void *ctx, struct vio_io *io); // 0, or -EBUSY: ring full, retry after a done
    int (*file_add)(void *ctx, int fd);      // fixed-file index, or -errno
    void (*file_del)(void *ctx, int file);
    void (*poll_in)(void *ctx, unsigned slot, int file);     // one shot: vio_readable when readable
    void (*poll_out)(void *ctx, unsigned slot, int file);    // one shot: vio_readable when writable
    void (*timer)(void *ctx, unsigned slot, uint64_t at_ns); // one shot: vio_timer; 0 disarms
    void (*note)(void *ctx, unsigned slot, const char *what); // rate-limited log line
};

// ---- what the monitor asks of a device

struct vio_ops {
    uint32_t id; // VIO_ID_*
    unsigned queues;
    uint64_t (*features)(const struct vio_dev *d); // VERSION_1, EVENT_IDX, INDIRECT_DESC are added
    void (*config_read)(struct vio_dev *d, uint32_t off, void *buf, uint32_t len); // lock held
    void (*config_write)(struct vio_dev *d, uint32_t off, const void *buf, uint32_t len);
    int (*activate)(struct vio_dev *d);          // DRIVER_OK: queues are live; -errno: guest fault
    void (*reset)(struct vio_dev *d);            // nothing in flight: forget everything
    void (*kick)(struct vio_dev *d);             // serve every queue
    void (*readable)(struct vio_dev *d);         // a polled file is ready
    void (*timer)(struct vio_dev *d);            // rate limiter refilled, announce due
    void (*quiesce)(struct vio_dev *d, bool on); // stop taking new work, told repeatedly; or go on
    unsigned (*inflight)(const struct vio_dev *d); // requests on the ring
};

struct vio_dev {
    const struct vio_ops *ops;
    const struct vio_host *host;
    struct guest_mem *mem;
    unsigned slot; // index in the monitor's device table
    pthread_mutex_t lock;
    struct vio_state s; // registers; a live queue's state is in queue[].s, copied by vio_save
    struct virtq queue[VIO_MAX_QUEUES];
    _Atomic uint32_t isr;
    _Atomic uint64_t faults; // guest faults counted
    bool active;             // DRIVER_OK seen and no fault since
    bool quiesced;
    bool reset_pending; // Status was written 0 with requests in flight
    pthread_cond_t reset_done;
};

void vio_init(struct vio_dev *d, const struct vio_ops *ops, const struct vio_host *host,
              struct guest_mem *mem, unsigned slot);

// Register access by a vCPU: off < VIO_MMIO_SIZE, len 1, 2, 4 or 8. Any width, order and value is
// survived; registers take 32-bit accesses, config space any. A write that asks for work (notify,
// activation) is carried to the device thread by host->again.
uint64_t vio_mmio_read(struct vio_dev *d, uint32_t off, unsigned len);
void vio_mmio_write(struct vio_dev *d, uint32_t off, unsigned len, uint64_t v);

// After a write to Status by a vCPU: waits until a reset that it began is complete, at most a
// second. Linux's driver does not read Status back, and would set the device up in the midst of it.
void vio_reset_wait(struct vio_dev *d);

// Device thread entries: they take the lock and honour quiesce, faults and pending resets.
void vio_kick(struct vio_dev *d);
void vio_readable(struct vio_dev *d);
void vio_timer(struct vio_dev *d);
void vio_io_done(struct vio_io *io, int res);

void vio_signal(struct vio_dev *d, struct virtq *q); // publish, interrupt if wanted; lock held
void vio_config_changed(struct vio_dev *d);          // generation + 1, config interrupt; lock held
void vio_fault(struct vio_dev *d, const char *what); // DEVICE_NEEDS_RESET; lock held

// Pause: stops new work; true when nothing is in flight (call again after each completion). Resume
// (on = false) re-examines all queues. Device thread.
bool vio_quiesce(struct vio_dev *d, bool on);

// State out of and into a paused device. vio_load validates every field as hostile (drv_features a
// subset of what is offered, status a legal combination, each ring in RAM, each used/avail distance
// within the queue) and re-activates; it does not interrupt. Errors: -EINVAL with the field named.
void vio_save(struct vio_dev *d, struct vio_state *out);
int vio_load(struct vio_dev *d, const struct vio_state *in, struct err *e);

#endif
