// SPDX-License-Identifier: Apache-2.0
// Requests that the disk must finish: sectors out and in, discard, identity; the text of a
// configuration drive.
#include "http.h"

#define JOBS 8
#define HALF (64u << 10)
#define JSON "application/json"
#define TEXT "text/plain"

enum job_kind { JOB_READ, JOB_WRITE, JOB_OTHER };

// One request's disk work. A body is written while it arrives, through two halves of a buffer.
struct job {
    enum job_kind kind;
    bool used, ended, flushing;
    uint8_t status;    // worst so far
    struct conn *conn; // NULL once it is gone: the job only waits for its last completion
    struct blk *blk;
    unsigned flying, half; // requests in the device; the half being filled
    unsigned busy[2];
    uint32_t fill;
    uint64_t sector, start; // next to write; where the body began
    uint8_t *buf;           // 2 * HALF
};

static struct job jobs[JOBS];
static char whoami[SECTOR + 1];
static bool whoami_there, whoami_pending;
static struct blk *who;

static struct blk *device(const struct conn *c)
{
    uint64_t n = http_query_u64(c, "dev", 0);
    return n < blk_n ? &blks[n] : NULL;
}

static uint64_t path_number(const struct conn *c, const char *path)
{
    const char *s = c->http.target + str_len(path);
    return str_u64(&s);
}

static struct job *job_new(struct conn *c, enum job_kind kind, struct blk *b)
{
    for (unsigned i = 0; i < JOBS; i++) {
        struct job *j = &jobs[i];
        if (j->used)
            continue;
        uint8_t *buf = j->buf ? j->buf : arena(2 * HALF, 4096);
        *j = (struct job){.kind = kind, .used = true, .conn = c, .blk = b, .buf = buf};
        c->http.job = j;
        return j;
    }
    return NULL;
}

static void answer(struct job *j)
{
    struct conn *c = j->conn;
    if (j->status)
        http_reply(c, 500, TEXT, "the disk answered %u\n", j->status);
    else if (j->kind == JOB_READ)
        http_reply_body(c, BODY_MEMORY, j->buf, j->fill);
    else if (j->kind == JOB_WRITE)
        http_reply(c, 200, JSON,
                   "{\"sector\":%lu,\"bytes\":%lu,\"crc32\":\"%08x\",\"flushed\":%s}\n", j->start,
                   c->http.taken, c->http.crc, j->flushing ? "true" : "false");
    else
        http_reply(c, 200, TEXT, "%s\n", (const char *)j->buf);
}

static void progress(struct job *j);

static void finished(struct job *j, unsigned half, uint8_t status)
{
    j->flying--;
    j->busy[half] = 0;
    j->status = MAX(j->status, status);
    progress(j);
}

static void finished_0(struct blk_req *r, uint8_t status)
{
    finished(r->ctx, 0, status);
}

static void finished_1(struct blk_req *r, uint8_t status)
{
    finished(r->ctx, 1, status);
}

static void submit(struct job *j, enum blk_type type, uint64_t sector, void *buf, uint32_t len,
                   unsigned half)
{
    if (blk_submit(j->blk, type, sector, buf, len, half ? finished_1 : finished_0, j)) {
        j->flying++;
        j->busy[half] = 1;
    } else {
        j->status = 3; // no room in the ring, or the device does not take it
    }
}

static void write_half(struct job *j)
{
    uint32_t n = (j->fill + SECTOR - 1) / SECTOR * SECTOR;
    uint8_t *buf = j->buf + j->half * HALF;
    memset(buf + j->fill, 0, n - j->fill); // the last sector is padded
    submit(j, BLK_OUT, j->sector, buf, n, j->half);
    j->sector += n / SECTOR;
    j->half ^= 1;
    j->fill = 0;
}

// What remains once something completed: room for the body, the flush behind it, the answer.
static void progress(struct job *j)
{
    if (!j->conn) {
        j->used = j->flying;
        return;
    }
    struct conn *c = j->conn;
    if (j->kind == JOB_WRITE && !j->ended) {
        http_resume(c);
        return;
    }
    if (j->flying)
        return;
    if (j->kind == JOB_WRITE && !j->flushing && !j->status && j->blk->dev->features & BLK_F_FLUSH) {
        j->flushing = true;
        submit(j, BLK_FLUSH, 0, NULL, 0, 0);
        if (j->flying)
            return;
    }
    answer(j);
}

// ---- bodies ----

static bool is_put(const struct conn *c)
{
    return http_is(c, "PUT", "/sector/") || http_is(c, "POST", "/sector/");
}

bool disk_begin(struct conn *c)
{
    if (!is_put(c))
        return true;
    struct blk *b = device(c);
    struct job *j = b ? job_new(c, JOB_WRITE, b) : NULL;
    if (!j)
        return false;
    j->sector = j->start = path_number(c, "/sector/");
    return true;
}

bool disk_takes(const struct conn *c)
{
    return c->http.job && c->http.job->kind == JOB_WRITE;
}

uint32_t disk_window(const struct conn *c)
{
    const struct job *j = c->http.job;
    if (j->status)
        return 2 * HALF; // swallowed: the answer tells of it
    uint32_t n = j->busy[j->half] ? 0 : HALF - j->fill;
    return n + (j->busy[j->half ^ 1] ? 0 : HALF);
}

uint32_t disk_data(struct conn *c, const uint8_t *p, uint32_t n)
{
    struct job *j = c->http.job;
    uint32_t took = 0;
    if (j->status)
        return n;
    while (took < n && !j->busy[j->half]) {
        uint32_t k = MIN(n - took, HALF - j->fill);
        memcpy(j->buf + j->half * HALF + j->fill, p + took, k);
        took += k;
        j->fill += k;
        if (j->fill == HALF)
            write_half(j);
    }
    return took;
}

// ---- requests ----

static void about(struct conn *c)
{
    char text[1024];
    size_t n = 0;
    for (unsigned i = 0; i < blk_n; i++) {
        const struct blk *b = &blks[i];
        uint64_t f = b->dev->features;
        n += fmt(
            text + n, sizeof(text) - n,
            "%s{\"sectors\":%lu,\"read_only\":%d,\"flush\":%d,\"discard\":%d,\"write_zeroes\":%d,"
            "\"event_idx\":%d,\"seg_max\":%u,\"queue\":%u,\"changes\":%lu}",
            i ? "," : "", b->capacity, !!(f & BLK_F_RO), !!(f & BLK_F_FLUSH), !!(f & BLK_F_DISCARD),
            !!(f & BLK_F_WRITE_ZEROES), !!(f & VIRTIO_F_EVENT_IDX), b->seg_max, b->q.size,
            b->capacity_changes);
    }
    text[n] = 0;
    http_reply(c, 200, JSON, "[%s]\n", text);
}

static void start(struct conn *c, enum job_kind kind, enum blk_type type, uint64_t sector,
                  uint64_t n)
{
    struct blk *b = device(c);
    struct job *j = b ? job_new(c, kind, b) : NULL;
    if (!j) {
        http_reply(c, 503, TEXT, "no such disk, or too much at once\n");
        return;
    }
    if (kind == JOB_READ)
        n = MIN(n, 2 * HALF / SECTOR);
    else
        fmt((char *)j->buf, HALF, "done");
    memset(j->buf, 0, type == BLK_ID ? 21 : 0);
    uint32_t len = type == BLK_ID ? 20 : (uint32_t)MIN(n, 0x7fffff) * SECTOR;
    j->fill = len;
    submit(j, type, sector, j->buf, len, 0);
    if (!j->flying)
        answer(j);
}

static void tell_whoami(struct conn *c)
{
    if (whoami_there)
        http_reply(c, 200, TEXT, "%s", whoami);
    else
        http_reply(c, 404, TEXT, "no second disk\n");
}

bool disk_request(struct conn *c)
{
    uint64_t sector = http_query_u64(c, "sector", 0), n = http_query_u64(c, "n", 1);
    if (c->http.job) { // a body that has come to its end
        struct job *j = c->http.job;
        j->ended = true;
        if (j->fill && !j->status)
            write_half(j);
        progress(j);
    } else if (http_is(c, "GET", "/sector/")) {
        start(c, JOB_READ, BLK_IN, path_number(c, "/sector/"), n);
    } else if (http_is(c, "GET", "/disk")) {
        about(c);
    } else if (http_is(c, "GET", "/disk/id")) {
        start(c, JOB_OTHER, BLK_ID, 0, 0);
    } else if (http_is(c, "GET", "/flush")) {
        start(c, JOB_OTHER, BLK_FLUSH, 0, 0);
    } else if (http_is(c, "GET", "/discard")) {
        start(c, JOB_OTHER, BLK_DISCARD, sector, n);
    } else if (http_is(c, "GET", "/zero")) {
        start(c, JOB_OTHER, BLK_ZEROES, sector, n);
    } else if (http_is(c, "GET", "/whoami")) {
        tell_whoami(c);
    } else {
        return false;
    }
    return true;
}

void disk_gone(struct conn *c)
{
    struct job *j = c->http.job;
    if (!j)
        return;
    c->http.job = NULL;
    j->conn = NULL;
    j->used = j->flying;
}

// ---- the configuration drive: the second disk's first sector, as text ----

static void whoami_read(struct blk_req *r, uint8_t status)
{
    (void)r;
    whoami_there = !status;
    whoami_pending = false;
}

void disk_who_again(void)
{
    if (who && !whoami_pending)
        whoami_pending = blk_submit(who, BLK_IN, 0, whoami, SECTOR, whoami_read, NULL);
}

bool disk_who_pending(void)
{
    return whoami_pending;
}

void disk_init(void)
{
    who = blk_n > 1 ? &blks[1] : NULL;
    disk_who_again();
}

void disk_config_changed(struct blk *b)
{
    blk_read_config(b);
    b->capacity_changes++;
    if (b == who)
        disk_init();
}
