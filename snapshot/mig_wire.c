// SPDX-License-Identifier: Apache-2.0
// Messages of migration: framing, checksums, order; blobs and bitmaps in pieces; heartbeats.
#include <nmmintrin.h>

#include "snapshot/mig_priv.h"

// The header. All integers little-endian. The head's checksum is seeded with session, channel and direction, so
// a message of another session or channel is a damaged one; seq makes one that is repeated, lost or late so.
enum { AT_TYPE = 0, AT_LEN = 4, AT_ARG = 8, AT_ARG2 = 16, AT_SEQ = 24, AT_SUM = 32, AT_HEAD = 36 };

// KVM hosts have had SSE4.2 since 2008.
__attribute__((target("sse4.2"))) uint32_t mig_crc(uint32_t seed, const void *p, size_t n)
{
    const uint8_t *b = p;
    uint64_t c = ~seed;

    for (; n >= 8; n -= 8, b += 8)
        c = _mm_crc32_u64(c, le64_get(b));
    for (; n; n--, b++)
        c = _mm_crc32_u8((uint32_t)c, *b);
    return ~(uint32_t)c;
}

// One checksum over those of the pages: a page's stands on its own, three at once keep the CPU's unit busy.
__attribute__((target("sse4.2"))) static uint32_t pages_crc(const uint8_t *p, size_t n)
{
    uint32_t all = 0;

    for (; n >= PAGE_SIZE; n -= PAGE_SIZE, p += PAGE_SIZE) {
        uint64_t a = 1, b = 2, c = 3, d = 4;
        for (size_t i = 0; i < PAGE_SIZE / 4; i += 8) {
            a = _mm_crc32_u64(a, le64_get(p + i));
            b = _mm_crc32_u64(b, le64_get(p + PAGE_SIZE / 4 + i));
            c = _mm_crc32_u64(c, le64_get(p + PAGE_SIZE / 2 + i));
            d = _mm_crc32_u64(d, le64_get(p + 3 * PAGE_SIZE / 4 + i));
        }
        const uint64_t part[3] = {a | b << 32, c | d << 32, all};
        all = mig_crc(0, part, sizeof(part));
    }
    return all;
}

uint64_t mig_page_sum(uint64_t page, const void *data)
{
    uint64_t x = (page << 32 | pages_crc(data, PAGE_SIZE)) * 0x9e3779b97f4a7c15ULL;
    return x ^ x >> 29;
}

static uint32_t payload_crc(uint32_t type, const void *p, size_t n)
{
    return type == M_PAGES ? pages_crc(p, n) : mig_crc(0, p, n);
}

static uint32_t head_crc(const struct mig *m, enum mig_ch ch, bool tx, const uint8_t *h)
{
    bool from_source = tx == (atomic_load(&m->st.role) == MIG_SOURCE);
    uint8_t key[MIG_ID + 1];

    // HELLO brings the session; until then, and in it, the key is zero.
    memset(key, 0, MIG_ID);
    if (le32_get(h + AT_TYPE) != M_HELLO)
        memcpy(key, m->session, MIG_ID);
    key[MIG_ID] = (uint8_t)(ch << 1 | from_source);
    return mig_crc(mig_crc(0, key, sizeof(key)), h, AT_HEAD);
}

void mig_fresh_link(struct mig *m)
{
    for (int i = 0; i < 2; i++)
        m->ch[i].tx = m->ch[i].rx = m->ch[i].got = 0;
    m->heard = m->said = m->io->now(m->ctx);
    m->seen = 0;
    m->gathered = 0;
}

static unsigned ev_out(enum mig_ch ch)
{
    return ch == MIG_URGENT ? MIG_EV_URGENT_OUT : MIG_EV_BULK_OUT;
}

static int put_all(struct mig *m, enum mig_ch ch, struct iovec *v, int n)
{
    while (n) {
        long k = m->io->send(m->ctx, ch, v, n);
        if (k < 0 && k != -EAGAIN)
            return (int)k;
        for (; k > 0 && n && (size_t)k >= v->iov_len; v++, n--)
            k -= (long)v->iov_len;
        if (n && k > 0) {
            v->iov_base = (char *)v->iov_base + k;
            v->iov_len -= (size_t)k;
        }
        while (n && !v->iov_len)
            v++, n--;
        if (!n || k != -EAGAIN)
            continue;
        bool serve = ch == MIG_BULK && atomic_load(&m->st.role) == MIG_SOURCE;
        uint64_t until = m->io->now(m->ctx) + MIG_SILENT_NS;
        unsigned ev = m->io->wait(m->ctx, ev_out(ch) | (serve ? MIG_EV_URGENT_IN : 0u), until);
        if (!ev && m->io->now(m->ctx) >= until)
            return -ETIMEDOUT;
        if (m->stop || (m->cancel && !m->offered))
            return -ECANCELED;
        int rc = ev & MIG_EV_URGENT_IN ? mig_serve(m) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

int mig_put(struct mig *m, enum mig_ch ch, enum mig_type type, uint64_t arg, uint64_t arg2,
            const void *p, size_t len)
{
    uint8_t h[MIG_HEAD] = {0};
    struct iovec v[2] = {{.iov_base = h, .iov_len = MIG_HEAD}, {.iov_len = len}};

    memcpy(&v[1].iov_base, &p, sizeof(p)); // sendmsg's vector has no const
    le32_put(h + AT_TYPE, type);
    le32_put(h + AT_LEN, (uint32_t)len);
    le64_put(h + AT_ARG, arg);
    le64_put(h + AT_ARG2, arg2);
    le64_put(h + AT_SEQ, ++m->ch[ch].tx);
    le32_put(h + AT_SUM, payload_crc(type, p, len));
    le32_put(h + AT_HEAD, head_crc(m, ch, true, h));
    m->said = m->io->now(m->ctx);
    atomic_fetch_add(&m->st.bytes, MIG_HEAD + len);
    m->round_bytes += MIG_HEAD + len;
    return put_all(m, ch, v, len ? 2 : 1);
}

// What a head may claim, before a byte of payload is taken.
static bool head_sane(const struct mig *m, enum mig_ch ch, const uint8_t *h)
{
    uint32_t type = le32_get(h + AT_TYPE), len = le32_get(h + AT_LEN);

    return type && type < M_TYPES && len <= MIG_PAYLOAD &&
           le64_get(h + AT_SEQ) == m->ch[ch].rx + 1 &&
           (type == M_HELLO || le32_get(h + AT_HEAD) == head_crc(m, ch, false, h));
}

int mig_get(struct mig *m, enum mig_ch ch, struct mig_msg *out)
{
    struct mig_chan *c = &m->ch[ch];

    for (;;) {
        uint32_t want = MIG_HEAD;
        if (c->got >= MIG_HEAD) {
            if (c->got == MIG_HEAD && !head_sane(m, ch, c->buf))
                return -EBADMSG;
            want += le32_get(c->buf + AT_LEN);
        }
        if (c->got >= MIG_HEAD && c->got == want)
            break;
        long k = m->io->recv(m->ctx, ch, c->buf + c->got, want - c->got);
        if (k == -EAGAIN)
            return 0;
        if (k <= 0)
            return k ? (int)k : -EPIPE;
        c->got += (uint32_t)k;
    }
    const uint8_t *h = c->buf;
    *out = (struct mig_msg){.type = le32_get(h + AT_TYPE),
                            .len = le32_get(h + AT_LEN),
                            .arg = le64_get(h + AT_ARG),
                            .arg2 = le64_get(h + AT_ARG2),
                            .data = h + MIG_HEAD};
    c->got = 0;
    c->rx++;
    if (le32_get(h + AT_SUM) != payload_crc(out->type, out->data, out->len) ||
        le32_get(h + AT_HEAD) != head_crc(m, ch, false, h))
        return -EBADMSG;
    m->heard = m->io->now(m->ctx);
    return 1;
}

int mig_put_blob(struct mig *m, enum mig_type type)
{
    int rc = 0;

    for (size_t at = 0, n; at < m->blob_len && rc == 0; at += n) {
        n = MIN(m->blob_len - at, MIG_PAYLOAD);
        rc = mig_put(m, MIG_BULK, type, at, m->blob_len, m->blob + at, n);
    }
    return rc;
}

int mig_take_blob(struct mig *m, const struct mig_msg *g)
{
    if (g->arg == 0) {
        m->blob_got = 0;
        m->blob_len = g->arg2;
    }
    if (!g->len || g->arg != m->blob_got || g->arg2 != m->blob_len || m->blob_len > MIG_BLOB_MAX ||
        g->len > m->blob_len - m->blob_got)
        return -EBADMSG;
    memcpy(m->blob + m->blob_got, g->data, g->len);
    m->blob_got += g->len;
    return m->blob_got == m->blob_len;
}

int mig_put_bits(struct mig *m, enum mig_ch ch, enum mig_type type)
{
    int rc = 0;

    for (uint64_t at = 0, n; at < m->nwords && rc == 0; at += n) {
        n = MIN(m->nwords - at, MIG_PAYLOAD / 8);
        rc = mig_put(m, ch, type, at, m->nwords, m->todo + at, n * 8);
    }
    return rc;
}

int mig_take_bits(struct mig *m, const struct mig_msg *g, uint64_t *bits)
{
    if (!g->len || g->len % 8 || g->arg != m->gathered || g->arg2 != m->nwords ||
        g->len / 8 > m->nwords - m->gathered)
        return -EBADMSG;
    memcpy(bits + g->arg, g->data, g->len);
    m->gathered += g->len / 8;
    if (m->gathered < m->nwords)
        return 0;
    m->gathered = 0;
    return m->npages % 64 && bits[m->nwords - 1] >> (m->npages % 64) ? -EBADMSG : 1;
}

uint64_t mig_count(const struct mig *m, const uint64_t *bits)
{
    uint64_t n = 0;

    for (uint64_t i = 0; i < m->nwords; i++)
        n += (unsigned)__builtin_popcountll(bits[i]);
    return n;
}

int mig_call_wait(struct mig *m, enum mig_call what)
{
    int rc = m->io->call(m->ctx, what);

    if (rc == 0)
        while ((rc = m->io->called(m->ctx)) == -EAGAIN)
            m->io->wait(m->ctx, 0, UINT64_MAX);
    return rc;
}

int mig_beat(struct mig *m)
{
    uint64_t now = m->io->now(m->ctx);

    if (now - m->heard >= m->silence)
        return -ETIMEDOUT;
    return now - m->said >= MIG_BEAT_NS ? mig_put(m, MIG_URGENT, M_PING, 0, 0, NULL, 0) : 0;
}

int mig_fail(struct mig *m, int rc, const char *what)
{
    static const char *const why[][2] = {{"the peer is gone", "the peer is silent"},
                                         {"the stream is damaged", "it was cancelled"}};
    if (rc == -EPIPE || rc == -ECONNRESET || rc == -ETIMEDOUT)
        err_set(m->e.msg[0] ? NULL : &m->e, 1, "%s: %s", what, why[0][rc == -ETIMEDOUT]);
    else if (rc == -EBADMSG || rc == -ECANCELED)
        err_set(m->e.msg[0] ? NULL : &m->e, 1, "%s: %s", what, why[1][rc == -ECANCELED]);
    else
        err_set(m->e.msg[0] ? NULL : &m->e, 1, "%s: %s", what, strerror(-rc));
    return rc;
}
