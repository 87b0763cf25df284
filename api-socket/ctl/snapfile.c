// SPDX-License-Identifier: Apache-2.0
// snapshot describe and snapshot merge: what stands in the files, and a Diff laid over its base.
#include <fcntl.h>
#include <sys/stat.h>

#include "api-socket/ctl/ctl.h"
#include "api-socket/ctl/merge.h"
#include "snapshot/codec.h"
#include "snapshot/memfile.h"

// ---- JSON and lines for people, from the same calls

struct show {
    bool json;
    bool first; // of the object under way
};

static void quoted(const char *s)
{
    putchar('"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            printf("\\%c", *s);
        else if ((unsigned char)*s < 0x20 || (unsigned char)*s == 0x7f)
            printf("\\u%04x", (unsigned)*s);
        else
            putchar(*s);
    }
    putchar('"');
}

static void key(struct show *s, const char *name)
{
    if (s->json)
        printf("%s\"%s\":", s->first ? "" : ",", name);
    else
        printf("  %-18s", name);
    s->first = false;
}

static void text(struct show *s, const char *name, const char *v)
{
    key(s, name);
    if (s->json)
        quoted(v);
    else // a file is not trusted with the terminal
        for (; *v; v++)
            putchar((unsigned char)*v < 0x20 || *v == 0x7f ? '?' : *v);
    if (!s->json)
        putchar('\n');
}

static void number(struct show *s, const char *name, uint64_t v, const char *unit)
{
    key(s, name);
    printf("%llu", (unsigned long long)v);
    if (!s->json)
        printf("%s%s\n", *unit ? " " : "", unit);
}

static void truth(struct show *s, const char *name, bool v)
{
    key(s, name);
    printf("%s%s", s->json ? (v ? "true" : "false") : v ? "yes" : "no", s->json ? "" : "\n");
}

static void begin(struct show *s, const char *name)
{
    if (s->json)
        printf("%s\"%s\":{", s->first ? "" : ",", name);
    else
        printf("%s\n", name);
    s->first = true;
}

static void end(struct show *s)
{
    if (s->json)
        putchar('}');
    s->first = false;
}

// ---- describe

static void limiter(struct show *s, const char *name, const struct limiter_cfg *l)
{
    char t[160];

    if (!l->set)
        return;
    snprintf(t, sizeof(t), "%llu bytes, %llu ops each %llu/%llu ms",
             (unsigned long long)(l->bandwidth.set ? l->bandwidth.size : 0),
             (unsigned long long)(l->ops.set ? l->ops.size : 0),
             (unsigned long long)l->bandwidth.refill_ms, (unsigned long long)l->ops.refill_ms);
    text(s, name, t);
}

static void drive(struct show *s, const struct saved_dev *d)
{
    const struct drive_cfg *c = &d->blk.cfg;

    text(s, "path_on_host", c->path_on_host);
    if (c->cow_path[0])
        text(s, "cow_path", c->cow_path);
    number(s, "bytes", d->blk.bytes, "");
    truth(s, "is_root_device", c->is_root_device);
    truth(s, "is_read_only", c->is_read_only);
    text(s, "cache_type", c->writeback ? "Writeback" : "Unsafe");
    limiter(s, "rate_limiter", &c->rate_limiter);
}

static void iface(struct show *s, const struct saved_dev *d)
{
    const struct net_cfg *c = &d->net.cfg;
    char mac[18];

    text(s, "host_dev_name", c->host_dev_name);
    snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", c->guest_mac[0], c->guest_mac[1],
             c->guest_mac[2], c->guest_mac[3], c->guest_mac[4], c->guest_mac[5]);
    if (c->has_mac)
        text(s, "guest_mac", mac);
    if (c->mtu)
        number(s, "mtu", c->mtu, "");
    limiter(s, "rx_rate_limiter", &c->rx_rate_limiter);
    limiter(s, "tx_rate_limiter", &c->tx_rate_limiter);
}

static void devices(struct show *s, const struct vm_saved *v)
{
    char name[CFG_ID_MAX + 16];

    for (unsigned i = 0; i < v->ndevs; i++) {
        const struct saved_dev *d = &v->dev[i];
        bool blk = d->kind == SAVED_BLK;
        snprintf(name, sizeof(name), "%s", blk ? d->blk.cfg.drive_id : d->net.cfg.iface_id);
        // An id comes out of the file: nothing but what an API would have taken goes into a key.
        for (char *p = name; *p; p++)
            if (*p == '"' || *p == '\\' || (unsigned char)*p < 0x20)
                *p = '?';
        if (!s->json)
            printf("%s ", blk ? "drive" : "interface");
        begin(s, name);
        text(s, "kind", blk ? "drive" : "interface");
        blk ? drive(s, d) : iface(s, d);
        number(s, "driver_features", d->vio.drv_features, "");
        end(s);
    }
}

static void ids(struct show *s, const uint8_t *id, const uint8_t *parent)
{
    char t[2 * SNAP_ID + 1];
    static const uint8_t none[SNAP_ID];

    snap_id_text(id, t);
    text(s, "id", t);
    snap_id_text(parent, t);
    if (memcmp(parent, none, SNAP_ID))
        text(s, "parent", t);
}

static void head(struct show *s, const struct snap_blob *b, size_t len, unsigned version)
{
    time_t when = (time_t)(b->info.realtime_ns / NSEC_PER_SEC);
    struct tm tm;
    char t[40] = "";

    text(s, "file", "state");
    number(s, "version", version, "");
    number(s, "file_bytes", len, "");
    ids(s, b->id, b->parent);
    text(s, "arch", b->info.arch);
    text(s, "monitor", b->info.monitor);
    text(s, "microvm", b->info.id);
    if (gmtime_r(&when, &tm))
        strftime(t, sizeof(t), "%Y-%m-%dT%H:%M:%SZ", &tm);
    text(s, "recorded", t);
}

static void machine(struct show *s, const struct vm_saved *v)
{
    static const char *const huge[] = {"None", "Transparent", "2M"};
    const struct machine_cfg *m = &v->machine;

    begin(s, "machine");
    number(s, "vcpu_count", m->vcpu_count, "");
    number(s, "mem_size_mib", m->mem_size_mib, "MiB");
    truth(s, "smt", m->smt);
    truth(s, "track_dirty_pages", m->track_dirty_pages);
    text(s, "huge_pages", m->huge_pages <= HUGE_2M ? huge[m->huge_pages] : "unknown");
    truth(s, "guest_ready", v->ready);
    number(s, "cpuid_leaves", v->cpuid.nent, "");
    number(s, "tsc_khz", v->vcpu[0].tsc_khz, "kHz");
    number(s, "xcr0", v->vcpu[0].xcrs.nr_xcrs ? v->vcpu[0].xcrs.xcrs[0].value : 0, "");
    number(s, "msrs", v->vcpu[0].nmsrs, "");
    number(s, "clock_ns", v->clock.clock_ns, "ns");
    end(s);
}

static int show_state(struct show *s, const uint8_t *buf, size_t len, struct err *e)
{
    struct vm_saved *v = NULL;
    struct snap_blob b;

    int rc = codec_decode(buf, len, &b, &v, e);
    if (rc)
        return rc;
    head(s, &b, len, le32_get(buf + 8));
    machine(s, v);
    begin(s, "devices");
    if (!s->json)
        printf("  %u\n", v->ndevs);
    devices(s, v);
    end(s);
    vm_saved_free(v);
    return 0;
}

static int show_memory(struct show *s, int fd, struct err *e)
{
    struct memfile_head h;
    struct stat st = {0};

    int rc = memfile_head(fd, &h, NULL, e);
    if (rc || fstat(fd, &st))
        return rc ? rc : err_set(e, errno, "%s", strerror(errno));
    text(s, "file", "memory");
    text(s, "type", h.kind == MEMFILE_FULL ? "Full" : "Diff");
    ids(s, h.id, h.parent);
    number(s, "mem_size_mib", h.mem_size / MIB, "MiB");
    number(s, "allocated_bytes", (uint64_t)st.st_blocks * 512, "");
    return 0;
}

static int describe(const char *path, bool json, struct err *e)
{
    struct show s = {.json = json, .first = true};
    uint8_t *buf = malloc(SNAP_STATE_MAX + 1);

    _cleanup_(close_fdp) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd < 0 || !buf ? -1 : pread(fd, buf, SNAP_STATE_MAX + 1, 0);
    if (n < 0) {
        free(buf);
        return err_set(e, errno, "cannot read %s: %s", path, strerror(errno));
    }
    if (json)
        putchar('{');
    // A state file says so in its first bytes, a memory file at its end.
    bool state = n >= SNAP_HEAD && codec_length(buf);
    int rc = state ? show_state(&s, buf, (size_t)n, e) : show_memory(&s, fd, e);
    if (rc && !state && n <= SNAP_STATE_MAX) {
        struct vm_saved *v = NULL;
        struct snap_blob b;
        struct err why = {0};
        // Neither: a damaged head of a state file is told more exactly by its own reader.
        if (n >= 8 && !memcmp(buf, "MAYFLYST", 8) && codec_decode(buf, (size_t)n, &b, &v, &why))
            *e = why;
    }
    free(buf);
    if (json && rc == 0)
        printf("}\n");
    return rc;
}

// ---- merge

static int merge(const char *base, const char *diff, const char *out, struct err *e)
{
    char temp[CTL_PATH + 32];
    _cleanup_(close_fdp) int b = open(base, O_RDONLY | O_CLOEXEC);
    if (b < 0)
        return err_set(e, errno, "cannot open %s: %s", base, strerror(errno));
    _cleanup_(close_fdp) int d = open(diff, O_RDONLY | O_CLOEXEC);
    if (d < 0)
        return err_set(e, errno, "cannot open %s: %s", diff, strerror(errno));
    // A new inode always: a clone may have the old one mapped.
    if (snprintf(temp, sizeof(temp), "%s.%d.part", out, getpid()) >= (int)sizeof(temp))
        return err_set(e, ENAMETOOLONG, "%.100s...: too long", out);
    _cleanup_(close_fdp) int o = open(temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (o < 0)
        return err_set(e, errno, "cannot make %s: %s", temp, strerror(errno));
    int rc = merge_memory(b, d, o, e);
    if (rc == 0 && fsync(o))
        rc = err_set(e, errno, "cannot sync %s: %s", temp, strerror(errno));
    if (rc == 0 && rename(temp, out))
        rc = err_set(e, errno, "cannot name it %s: %s", out, strerror(errno));
    if (rc)
        unlink(temp);
    return rc;
}

int cmd_snapshot(int argc, char **argv)
{
    const char *rest[4] = {NULL};
    bool json = false, help = false;
    const struct opt o[] = {{"--json", OPT_FLAG, &json, "describe: as JSON"},
                            {"--help", OPT_FLAG, &help, "this"}};
    struct err e = {0};

    int n = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 4);
    bool is_describe = n == 2 && !strcmp(rest[0], "describe");
    bool is_merge = n == 4 && !strcmp(rest[0], "merge");
    if (help || (!is_describe && !is_merge)) {
        opts_help(help ? stdout : stderr,
                  "snapshot describe FILE [--json]   a state or memory file\n"
                  "       mayflyctl snapshot merge BASE DIFF OUT       memory files; the merged\n"
                  "       memory belongs to the Diff's state file, which stays as it is",
                  o, ARRAY_SIZE(o));
        return help ? 0 : 2;
    }
    int rc = is_merge ? merge(rest[1], rest[2], rest[3], &e) : describe(rest[1], json, &e);
    return rc ? ctl_fail(&e) : 0;
}
