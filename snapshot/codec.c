// SPDX-License-Identifier: Apache-2.0
// Walks the tables in either direction, and frames what they yield into checked sections.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "snapshot/codec.h"

#define MAGIC "MAYFLYST"
#define ARCH  "x86_64"

// Offsets in the header; SNAP_LEN_AT and SNAP_HEAD are in the codec's header.
enum { AT_VERSION = 8, AT_ZERO = 12, AT_ID = 24, AT_PARENT = 40, AT_SUM = 56 };

enum section_type { // rising on the wire; a reader skips unknown ones that have the bit OPTIONAL
    S_INFO = 1,
    S_MACHINE,
    S_CPUID,
    S_CLOCK,
    S_IOAPIC,
    S_SERIAL,
    S_I8042,
    S_BLK = 0x100,  // + index of the drive
    S_NET = 0x200,  // + index of the interface
    S_VCPU = 0x300, // + index of the vCPU
    S_OPTIONAL = 0x40000000,
};

// Sections that stand there once, each of a whole struct within vm_saved.
static const struct {
    uint32_t type;
    const char *name;
    size_t off;
    const struct table *t;
} fixed[] = {
    {S_MACHINE, "machine", 0, &t_snap_machine},
    {S_CPUID, "cpuid", offsetof(struct vm_saved, cpuid), &t_snap_cpuid},
    {S_CLOCK, "clock", offsetof(struct vm_saved, clock), &t_snap_clock},
    {S_IOAPIC, "ioapic", offsetof(struct vm_saved, ioapic), &t_snap_ioapic},
    {S_SERIAL, "serial", offsetof(struct vm_saved, serial), &t_snap_serial},
    {S_I8042, "i8042", offsetof(struct vm_saved, i8042), &t_snap_i8042},
};

// ---- values

static void move(struct codec *c, void *v, size_t n)
{
    if (c->bad || n > (size_t)(c->end - c->p)) {
        c->bad = true;
        return;
    }
    memcpy(c->out ? (void *)c->p : v, c->out ? v : c->p, n);
    c->p += n;
}

static uint32_t move_count(struct codec *c, uint32_t n, uint32_t max, size_t size)
{
    move(c, &n, size);
    c->bad |= n > max;
    return c->bad ? 0 : n;
}

static void move_bool(struct codec *c, void *v)
{
    uint8_t b = 0;
    memcpy(&b, v, c->out ? 1 : 0);
    move(c, &b, 1);
    c->bad |= b > 1;
    if (!c->bad)
        memcpy(v, &b, 1);
}

static void move_str(struct codec *c, char *s, uint32_t cap)
{
    uint32_t n = move_count(c, c->out ? (uint32_t)strnlen(s, cap) : 0, cap - 1, 2);
    move(c, s, n);
    if (c->out || c->bad)
        return;
    s[n] = 0;
    c->bad |= strlen(s) != n;
}

static void move_tail(struct codec *c, uint8_t *s, uint32_t cap)
{
    uint32_t n = c->out ? cap : 0;
    while (n && !s[n - 1])
        n--;
    n = move_count(c, n, cap, 4);
    move(c, s, n);
    if (!c->out && !c->bad)
        memset(s + n, 0, cap - n);
}

static void move_field(struct codec *c, const struct field *f, void *s)
{
    uint8_t *m = (uint8_t *)s + f->off;
    uint32_t n = f->count;

    if (f->kind == F_INT)
        move(c, m, (size_t)f->size * f->count);
    else if (f->kind == F_BOOL)
        move_bool(c, m);
    else if (f->kind == F_STR)
        move_str(c, (char *)m, f->count);
    else if (f->kind == F_TAIL)
        move_tail(c, m, f->count);
    if (f->kind == F_LIST) {
        uint8_t *at = (uint8_t *)s + f->n_off;
        n = move_count(c, le32_get(at), f->count, 4);
        le32_put(at, n);
    }
    if (f->kind == F_LIST || f->kind == F_SUB)
        for (uint32_t i = 0; i < n && !c->bad; i++)
            codec_walk(c, f->sub, m + (size_t)i * f->sub->size);
}

// A member that the blob's version did not have keeps the zero it was made with.
void codec_walk(struct codec *c, const struct table *t, void *s)
{
    for (unsigned i = 0; i < t->n && !c->bad; i++)
        if (t->f[i].since <= c->version)
            move_field(c, &t->f[i], s);
}

// ---- encode

static void put_section(struct codec *c, uint32_t type, const struct table *t, const void *s)
{
    uint32_t len = 0;
    void *mutable;
    memcpy(&mutable, &s, sizeof(mutable)); // out: the walk reads alone
    move(c, &type, 4);
    uint8_t *at = c->p;
    move(c, &len, 4);
    codec_walk(c, t, mutable);
    if (!c->bad)
        le32_put(at, (uint32_t)(c->p - at) - 4);
}

static uint64_t checksum(const uint8_t *buf, size_t len)
{
    return XXH64(buf + SNAP_HEAD, len - SNAP_HEAD, XXH64(buf, AT_SUM, 0));
}

int codec_encode(const struct snap_blob *b, const struct vm_saved *s, uint8_t *buf, size_t cap,
                 size_t *len, struct err *e)
{
    struct codec c = {.p = buf + SNAP_HEAD,
                      .end = buf + MIN(cap, (size_t)SNAP_STATE_MAX),
                      .version = SNAP_VERSION,
                      .out = true};
    struct snap_info info = b->info;
    unsigned blk = 0, net = 0;

    if (cap < SNAP_HEAD)
        return err_set(e, ENOSPC, "no room for the state");
    snprintf(info.arch, sizeof(info.arch), ARCH);
    put_section(&c, S_INFO, &t_snap_info, &info);
    for (size_t i = 0; i < ARRAY_SIZE(fixed); i++)
        put_section(&c, fixed[i].type, fixed[i].t, (const uint8_t *)s + fixed[i].off);
    for (unsigned i = 0; i < s->ndevs; i++) {
        if (s->dev[i].kind == SAVED_BLK)
            put_section(&c, S_BLK + blk++, &t_snap_blk, &s->dev[i]);
        else
            put_section(&c, S_NET + net++, &t_snap_net, &s->dev[i]);
    }
    for (unsigned i = 0; i < s->nvcpus; i++)
        put_section(&c, S_VCPU + i, &t_snap_vcpu, &s->vcpu[i]);
    if (c.bad)
        return err_set(e, ENOSPC, "the state does not fit into %d bytes", SNAP_STATE_MAX);
    *len = (size_t)(c.p - buf);
    memcpy(buf, MAGIC, 8);
    le32_put(buf + AT_VERSION, SNAP_VERSION);
    le32_put(buf + AT_ZERO, 0);
    le64_put(buf + SNAP_LEN_AT, *len);
    memcpy(buf + AT_ID, b->id, SNAP_ID);
    memcpy(buf + AT_PARENT, b->parent, SNAP_ID);
    le64_put(buf + AT_SUM, checksum(buf, *len));
    return 0;
}

// ---- decode

uint32_t codec_length(const uint8_t *head)
{
    uint64_t len = le64_get(head + SNAP_LEN_AT);
    bool ok = !memcmp(head, MAGIC, 8) && len >= SNAP_HEAD && len <= SNAP_STATE_MAX;
    return ok ? (uint32_t)len : 0;
}

static int check_head(const uint8_t *buf, size_t len, struct err *e)
{
    if (len < SNAP_HEAD || memcmp(buf, MAGIC, 8))
        return err_set(e, EINVAL, "not a microVM state file of Mayfly");
    uint32_t version = le32_get(buf + AT_VERSION);
    if (version < SNAP_VERSION_MIN || version > SNAP_VERSION)
        return err_set(e, ENOTSUP, "state format version %u, this monitor reads %u to %u", version,
                       SNAP_VERSION_MIN, SNAP_VERSION);
    if (le64_get(buf + SNAP_LEN_AT) != len || len > SNAP_STATE_MAX || le32_get(buf + AT_ZERO))
        return err_set(e, EINVAL, "the state file has %zu bytes, its header says %llu", len,
                       (unsigned long long)le64_get(buf + SNAP_LEN_AT));
    if (le64_get(buf + AT_SUM) != checksum(buf, len))
        return err_set(e, EINVAL, "the state file is damaged: its checksum does not match");
    return 0;
}

// Where a section's value belongs, and the name messages call it by. NULL: unknown, or not next of
// its kind, since device and vCPU indices count up from 0 without a gap.
static const struct table *find(uint32_t type, struct snap_blob *b, struct vm_saved *s, void **at,
                                const char **name)
{
    uint32_t i = type & 0xff, kind = type - i;
    unsigned nets = 0;

    for (unsigned d = 0; d < s->ndevs; d++)
        nets += s->dev[d].kind == SAVED_NET;
    if (type == S_INFO) {
        *at = &b->info, *name = "info";
        return &t_snap_info;
    }
    for (size_t k = 0; k < ARRAY_SIZE(fixed); k++)
        if (fixed[k].type == type) {
            *at = (uint8_t *)s + fixed[k].off, *name = fixed[k].name;
            return fixed[k].t;
        }
    if (kind == S_VCPU && i < CFG_MAX_VCPUS && i == s->nvcpus) {
        *at = &s->vcpu[s->nvcpus++], *name = "vcpu";
        return &t_snap_vcpu;
    }
    bool blk = kind == S_BLK && i < CFG_MAX_DRIVES && i == s->ndevs;
    bool net = kind == S_NET && i < CFG_MAX_NETS && i == nets;
    if (!blk && !net)
        return NULL;
    s->dev[s->ndevs].kind = blk ? SAVED_BLK : SAVED_NET;
    *at = &s->dev[s->ndevs++], *name = blk ? "drive" : "interface";
    return blk ? &t_snap_blk : &t_snap_net;
}

static int get_sections(struct codec *c, struct snap_blob *b, struct vm_saved *s, struct err *e)
{
    uint32_t last = 0, seen = 0;

    while (c->p < c->end) {
        uint32_t type = 0, len = 0;
        const char *name = "";
        void *at = NULL;
        move(c, &type, 4);
        move(c, &len, 4);
        if (c->bad || len > (size_t)(c->end - c->p))
            return err_set(e, EINVAL, "section %#x is longer than the state file", type);
        if (type <= last)
            return err_set(e, EINVAL, "section %#x comes twice or out of order", type);
        last = type;
        const struct table *t = find(type, b, s, &at, &name);
        if (!t && !(type & S_OPTIONAL))
            return err_set(e, ENOTSUP, "unknown section %#x", type);
        struct codec in = {.p = c->p, .end = c->p + len, .version = c->version};
        c->p += len;
        if (!t)
            continue;
        codec_walk(&in, t, at);
        if (in.bad || in.p != in.end)
            return err_set(e, EINVAL, "section %#x (%s) is malformed", type, name);
        seen |= type < 32 ? 1u << type : 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(fixed); i++)
        if (!(seen & 1u << fixed[i].type))
            return err_set(e, EINVAL, "the section %s is missing", fixed[i].name);
    if (!(seen & 1u << S_INFO))
        return err_set(e, EINVAL, "the section info is missing");
    if (!s->nvcpus || s->nvcpus != s->machine.vcpu_count)
        return err_set(e, EINVAL, "states of %u vCPUs, the machine has %u", s->nvcpus,
                       s->machine.vcpu_count);
    return strcmp(b->info.arch, ARCH)
               ? err_set(e, ENOTSUP, "recorded on a %s machine", b->info.arch)
               : 0;
}

int codec_decode(const uint8_t *buf, size_t len, struct snap_blob *b, struct vm_saved **out,
                 struct err *e)
{
    struct codec c = {.out = false};

    int rc = check_head(buf, len, e);
    if (rc)
        return rc;
    struct vm_saved *s = vm_saved_new(CFG_MAX_VCPUS);
    if (!s)
        return err_set(e, ENOMEM, "no memory for the state");
    s->nvcpus = 0;
    memset(b, 0, sizeof(*b));
    memcpy(b->id, buf + AT_ID, SNAP_ID);
    memcpy(b->parent, buf + AT_PARENT, SNAP_ID);
    memcpy(&c.p, &(const uint8_t *){buf + SNAP_HEAD}, sizeof(c.p)); // in: the walk only reads it
    c.end = c.p + (len - SNAP_HEAD);
    c.version = le32_get(buf + AT_VERSION);
    rc = get_sections(&c, b, s, e);
    if (rc) {
        vm_saved_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void snap_id_text(const uint8_t id[SNAP_ID], char text[2 * SNAP_ID + 1])
{
    for (unsigned i = 0; i < SNAP_ID; i++)
        snprintf(text + 2 * (size_t)i, 3, "%02x", id[i]);
}
