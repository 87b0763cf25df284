// SPDX-License-Identifier: Apache-2.0
// The block device: its configuration, its queue, its backing (virtio 1.2 section 5.2).
//
// A device that goes, or whose image is swapped, closes its descriptors:
// #syscalls:device close
// #syscalls:control close
#include "virtio/blk_priv.h"

// 5.2.3
#define F_SEG_MAX      (1ULL << 2)
#define F_RO           (1ULL << 5)
#define F_BLK_SIZE     (1ULL << 6)
#define F_FLUSH        (1ULL << 9)
#define F_TOPOLOGY     (1ULL << 10)
#define F_DISCARD      (1ULL << 13)
#define F_WRITE_ZEROES (1ULL << 14)

// 5.2.4: offsets in struct virtio_blk_config.
enum {
    C_CAPACITY = 0,      // le64, sectors
    C_SEG_MAX = 12,      // le32
    C_BLK_SIZE = 20,     // le32
    C_PHYS_EXP = 24,     // u8: logical blocks in a physical one, log2
    C_MIN_IO = 26,       // le16, logical blocks
    C_NUM_QUEUES = 34,   // le16
    C_DISC_SECTORS = 36, // le32
    C_DISC_SEG = 40,     // le32
    C_DISC_ALIGN = 44,   // le32, sectors
    C_WZ_SECTORS = 48,   // le32
    C_WZ_SEG = 52,       // le32
    C_WZ_MAY_UNMAP = 56, // u8
    C_SIZE = 60,
};
#define PHYS_EXP 3u // 4 KiB: the page cache's and the layer's block

static struct blk *of(struct vio_dev *d)
{
    return (struct blk *)d;
}

static uint64_t blk_features(const struct vio_dev *d)
{
    const struct blk_backing *k = &((const struct blk *)d)->now.b;
    return F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | (k->writeback ? F_FLUSH : 0) |
           (k->read_only ? F_RO : F_DISCARD | F_WRITE_ZEROES);
}

static void blk_config_read(struct vio_dev *d, uint32_t off, void *buf, uint32_t len)
{
    uint8_t c[C_SIZE] = {0};
    le64_put(c + C_CAPACITY, of(d)->now.b.bytes / BLK_SECTOR);
    le32_put(c + C_SEG_MAX, BLK_SEG_MAX);
    le32_put(c + C_BLK_SIZE, BLK_SECTOR);
    c[C_PHYS_EXP] = PHYS_EXP;
    le16_put(c + C_MIN_IO, 1u << PHYS_EXP);
    le16_put(c + C_NUM_QUEUES, 1);
    if (!of(d)->now.b.read_only) {
        le32_put(c + C_DISC_SECTORS, BLK_RANGE_SECTORS);
        le32_put(c + C_DISC_SEG, 1);
        le32_put(c + C_DISC_ALIGN, 1u << PHYS_EXP);
        le32_put(c + C_WZ_SECTORS, BLK_RANGE_SECTORS);
        le32_put(c + C_WZ_SEG, 1);
        c[C_WZ_MAY_UNMAP] = 1;
    }
    memset(buf, 0, len);
    if (off < C_SIZE)
        memcpy(buf, c + off, MIN(len, C_SIZE - off));
}

static void blk_config_write(struct vio_dev *d, uint32_t off, const void *buf, uint32_t len)
{
    (void)d; // nothing in it is the driver's to write: CONFIG_WCE is not offered
    (void)off;
    (void)buf;
    (void)len;
}

static void blk_timer(struct vio_dev *d)
{
    of(d)->throttled = false;
    blk_kick(d);
}

static int blk_activate(struct vio_dev *d)
{
    (void)d;
    return 0;
}

// Nothing is on the ring, so whatever else was in flight can be forgotten.
static void blk_reset(struct vio_dev *d)
{
    struct blk *b = of(d);
    b->throttled = false;
    b->free = b->full = b->flusher = b->flushes = NULL;
    b->full_end = &b->full;
    b->fl_end = &b->flushes;
    b->fresh = b->inflight = b->batch = 0;
    b->owed = 0;
    if (b->now.cow)
        cow_unstage(b->now.cow);
    // A swap that waits is left to the device thread: this may be a vCPU's, which may close nothing.
}

static void blk_quiesce(struct vio_dev *d, bool on)
{
    struct blk *b = of(d);
    b->quiet = on;
    b->throttled = false; // a timer that ran out meanwhile was not heard
    req_retry(b);
    blk_answer(b);
    blk_settle(b);
}

// A driver that resets waits only for what may still write into its memory.
static unsigned blk_inflight(const struct vio_dev *d)
{
    const struct blk *b = (const struct blk *)d;
    return d->active ? b->inflight : b->on_ring;
}

// ---- what it stands on

static int file_open(const struct vio_host *host, struct blk_file *f, int fd, struct err *e)
{
    *f = (struct blk_file){.fd = fd, .nowait = true};
    f->file = host->file_add(host->ctx, fd);
    return f->file < 0 ? err_set(e, -f->file, "no room for the drive's image on the ring") : 0;
}

// Whose a descriptor is when its file goes. A drive that grew shares its description, lock included,
// with its successor; the device's end gives the lock up.
enum owner { BORROWED, SHARED, LAST };

static void file_close(const struct vio_host *host, struct blk_file *f, enum owner own)
{
    if (f->file >= 0)
        host->file_del(host->ctx, f->file); // before the descriptor: the ring holds its lock too
    if (own == LAST)
        blk_unlock(f->fd);
    if (own != BORROWED)
        close_fdp(&f->fd);
}

static void store_close(const struct vio_host *host, struct blk_store *s, enum owner own)
{
    if (s->cow) {
        cow_unstage(s->cow);
        cow_save(s->cow); // as good as can be had: nobody is left to tell of a failure
    }
    cow_free(s->cow);
    file_close(host, &s->top, own);
    file_close(host, &s->base, own);
}

// On failure the descriptors stay the caller's.
static int store_open(const struct vio_host *host, struct blk_store *s, const struct blk_backing *k,
                      struct err *e)
{
    const bool layer = k->cow_fd >= 0;
    *s = (struct blk_store){.b = *k, .base = {.fd = -1, .file = -1}, .top = {.fd = -1, .file = -1}};
    int rc = k->bytes == 0 || k->bytes % BLK_SECTOR
                 ? err_set(e, EINVAL, "a drive's size must be a positive multiple of 512")
                 : 0;
    if (rc == 0 && layer)
        rc = cow_open(&s->cow, k->cow_fd, k->fd, k->bytes, e);
    if (rc == 0)
        rc = file_open(host, &s->top, layer ? k->cow_fd : k->fd, e);
    if (rc == 0 && layer)
        rc = file_open(host, &s->base, k->fd, e);
    if (rc < 0)
        store_close(host, s, BORROWED);
    return rc;
}

void blk_settle(struct blk *b)
{
    if (blk_inflight(&b->dev) > 0)
        return;
    if (b->quiet && b->now.cow && cow_save(b->now.cow) < 0)
        b->dev.host->note(b->dev.host->ctx, b->dev.slot, "cannot save the layer's bitmap");
    if (!b->swapping)
        return;
    store_close(b->dev.host, &b->now, SHARED);
    b->now = b->next;
    memcpy(b->id, b->next_id, sizeof(b->id));
    b->swapping = false;
    blk_count(&b->m.config_changes, 1);
    vio_config_changed(&b->dev);
    b->dev.host->again(b->dev.host->ctx, b->dev.slot); // what was not taken meanwhile
}

// ---- making and changing one

struct blk *blk_new(const struct vio_host *host, struct guest_mem *mem, unsigned slot,
                    const struct blk_backing *k, const char id[20], const struct limiter_cfg *rl,
                    struct err *e)
{
    static const struct vio_ops ops = {
        .id = VIO_ID_BLOCK,
        .queues = 1,
        .features = blk_features,
        .config_read = blk_config_read,
        .config_write = blk_config_write,
        .activate = blk_activate,
        .reset = blk_reset,
        .kick = blk_kick,
        .timer = blk_timer,
        .quiesce = blk_quiesce,
        .inflight = blk_inflight,
    };
    struct blk *b = calloc(1, sizeof(*b));
    if (b)
        b->pool = calloc(VIO_QUEUE_SIZE, sizeof(*b->pool)); // touched only as far as used
    if (!b || !b->pool || store_open(host, &b->now, k, e) < 0) {
        if (!b || !b->pool)
            err_set(e, ENOMEM, "no memory for a block device");
        if (b)
            free(b->pool);
        free(b);
        return NULL;
    }
    vio_init(&b->dev, &ops, host, mem, slot);
    memcpy(b->id, id, sizeof(b->id));
    b->full_end = &b->full;
    b->fl_end = &b->flushes;
    limiter_init(&b->limiter, rl, now_ns());
    return b;
}

void blk_free(struct blk *b)
{
    if (!b)
        return;
    store_close(b->dev.host, &b->now, LAST);
    if (b->swapping)
        store_close(b->dev.host, &b->next, LAST);
    pthread_mutex_destroy(&b->dev.lock);
    free(b->pool);
    free(b);
}

int blk_swap(struct blk *b, const struct blk_backing *nb, const char id[20], struct err *e)
{
    struct blk_store s;
    // A layer belongs to its base, and what the driver negotiated cannot change under it.
    if (nb->cow_fd >= 0 || b->now.cow)
        return err_set(e, EINVAL, "a drive with a copy-on-write layer keeps its image");
    if (nb->read_only != b->now.b.read_only || nb->writeback != b->now.b.writeback)
        return err_set(e, EINVAL, "is_read_only and cache_type of a drive in use cannot change");
    int rc = store_open(b->dev.host, &s, nb, e);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&b->dev.lock);
    if (b->swapping)
        store_close(b->dev.host, &b->next, SHARED);
    b->next = s;
    memcpy(b->next_id, id, sizeof(b->next_id));
    b->swapping = true;
    blk_settle(b);
    rc = b->swapping;
    pthread_mutex_unlock(&b->dev.lock);
    return rc;
}

void blk_limit(struct blk *b, const struct limiter_cfg *rl)
{
    pthread_mutex_lock(&b->dev.lock);
    limiter_patch(&b->limiter, rl, now_ns());
    b->throttled = false;
    pthread_mutex_unlock(&b->dev.lock);
    b->dev.host->again(b->dev.host->ctx, b->dev.slot);
}

struct vio_dev *blk_dev(struct blk *b)
{
    return &b->dev;
}

struct blk_metrics *blk_metrics(struct blk *b)
{
    return &b->m;
}

struct limiter *blk_limiter(struct blk *b)
{
    return &b->limiter;
}

int blk_fd(struct blk *b)
{
    pthread_mutex_lock(&b->dev.lock);
    int fd = b->swapping ? b->next.b.fd : b->now.b.fd;
    pthread_mutex_unlock(&b->dev.lock);
    return fd;
}

uint64_t blk_bytes(const struct blk *b)
{
    return b->now.b.bytes;
}
