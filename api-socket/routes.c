// SPDX-License-Identifier: Apache-2.0
// The routes: which request means which call of vmm/vm.h, and when it may come.
#include "api-socket/api.h"
#include "api-socket/routes.h"
#include "api-socket/schema.h"
#include "vmm/log.h"

enum { PRE = 1, POST = 2, ANY = PRE | POST, HAS_ID = 4, CURRENT = 8, HOLD = 16 };
typedef int handler(struct api_call *c, union wire *w, struct err *e);
struct route {
    enum http_verb verb;
    const char *path, *sub; // first and, unless NULL, second part of the path
    unsigned
        flags; // CURRENT: the body changes the present machine configuration; HOLD: answer, then wake vCPUs
    handler *call;
    const struct json_type *type; // of the body, NULL: none
    const char *prefix;           // before the handler's error
    const char *metric;           // Firecracker's name, NULL: not counted
};

#define MALFORMED  "An error occurred when deserializing the json body of a request: %.180s."
#define WRONG_TIME "The requested operation is not supported %s starting the microVM."

static int get_info(struct api_call *c, union wire *w, struct err *e)
{
    static const char *const states[] = {"Not started", "Running", "Paused"};
    (void)w, (void)e;
    json_open(c->out, NULL, '{');
    json_str(c->out, "id", vm_id(c->vm));
    json_str(c->out, "state", states[vm_state(c->vm)]);
    json_str(c->out, "vmm_version", c->version);
    json_str(c->out, "app_name", "Mayfly");
    json_bool(c->out, "guest_ready", vm_guest_ready(c->vm, false));
    json_bool(c->out, "guest_ready_here", vm_guest_ready(c->vm, true));
    json_close(c->out, '}');
    return 0;
}

static int get_version(struct api_call *c, union wire *w, struct err *e)
{
    (void)w, (void)e;
    json_open(c->out, NULL, '{');
    json_str(c->out, "firecracker_version", c->version); // the key is the dialect's
    json_close(c->out, '}');
    return 0;
}

static int get_machine(struct api_call *c, union wire *w, struct err *e)
{
    (void)e;
    w->machine.c = vm_config(c->vm)->machine;
    json_struct(c->out, NULL, &t_machine, w);
    return 0;
}

static void write_net(struct json_out *o, const struct net_cfg *n)
{
    struct net_wire w = {.c = *n};
    const uint8_t *m = n->guest_mac;
    if (n->has_mac)
        snprintf(w.mac, sizeof(w.mac), "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3],
                 m[4], m[5]);
    json_struct(o, NULL, &t_net, &w);
}

static int get_config(struct api_call *c, union wire *w, struct err *e)
{
    static const char *const never_set[] = {"balloon", "cpu-config", "mmds-config",
                                            "vsock",   "entropy",    "memory-hotplug"};
    const struct vm_config *v = vm_config(c->vm);
    struct json_out *o = c->out;
    (void)e;
    json_open(o, NULL, '{');
    json_struct(o, "boot-source", &t_boot, &v->boot);
    w->machine.c = v->machine;
    json_struct(o, "machine-config", &t_machine, w);
    json_open(o, "drives", '[');
    for (unsigned i = 0; i < v->ndrives; i++) {
        w->drive = (struct drive_wire){.c = v->drives[i]};
        json_struct(o, NULL, &t_drive, w);
    }
    json_close(o, ']');
    json_open(o, "network-interfaces", '[');
    for (unsigned i = 0; i < v->nnets; i++)
        write_net(o, &v->nets[i]);
    json_close(o, ']');
    json_struct(o, "logger", v->has_logger ? &t_logger : NULL, &v->logger);
    json_struct(o, "metrics", v->has_metrics ? &t_metrics : NULL, &v->metrics);
    if (v->has_serial)
        json_struct(o, "serial", &t_serial, &v->serial);
    for (size_t i = 0; i < ARRAY_SIZE(never_set); i++)
        json_str(o, never_set[i], NULL);
    json_open(o, "pmem", '[');
    json_close(o, ']');
    json_close(o, '}');
    return 0;
}

static int put_machine(struct api_call *c, union wire *w, struct err *e)
{
    if (w->machine.cpu_template != 0)
        return err_set(e, EINVAL, "cpu_template: Mayfly has no CPU templates");
    return vm_put_machine(c->vm, &w->machine.c, e);
}

static int put_drive(struct api_call *c, union wire *w, struct err *e)
{
    if (w->drive.socket[0])
        return err_set(e, EINVAL, "socket: Mayfly has no vhost-user drives");
    if (!w->drive.c.path_on_host[0])
        return err_set(e, EINVAL, "path_on_host is missing");
    return vm_put_drive(c->vm, &w->drive.c, c->fds, e);
}

static int patch_drive(struct api_call *c, union wire *w, struct err *e)
{
    struct drive_patch *p = &w->drive_patch;
    if (!p->path_on_host[0] && !p->rate_limiter.set) // Firecracker: refresh a vhost-user drive
        return err_set(e, EINVAL, "Running method expected different backend.");
    return vm_patch_drive(c->vm, p->drive_id, p->path_on_host[0] ? p->path_on_host : NULL,
                          p->rate_limiter.set ? &p->rate_limiter : NULL, c->fds, e);
}

static int put_net(struct api_call *c, union wire *w, struct err *e)
{
    if (w->net.mac[0]) {
        if (cfg_parse_mac(w->net.mac, w->net.c.guest_mac) != 0)
            return err_set(e, EINVAL, "guest_mac: not a unicast address like 02:00:00:00:00:01");
        w->net.c.has_mac = true;
    }
    return vm_put_net(c->vm, &w->net.c, c->fds, e);
}

static int patch_net(struct api_call *c, union wire *w, struct err *e)
{
    struct net_patch *p = &w->net_patch;
    return vm_patch_net(c->vm, p->iface_id, p->rx.set ? &p->rx : NULL, p->tx.set ? &p->tx : NULL,
                        e);
}

static int put_logger(struct api_call *c, union wire *w, struct err *e)
{
    if (w->logger.level > LOG_TRACE)
        w->logger.level = LOG_WARN; // "Warning"
    return vm_put_logger(c->vm, &w->logger, c->fds, e);
}

#define PLAIN(name, member, function)                                 \
    static int name(struct api_call *c, union wire *w, struct err *e) \
    {                                                                 \
        return function(c->vm, &w->member, c->fds, e);                \
    }
PLAIN(put_boot, boot, vm_put_boot)
PLAIN(put_metrics, metrics, vm_put_metrics)
PLAIN(put_serial, serial, vm_put_serial)
PLAIN(put_create, create, snapshot_create)
PLAIN(put_load, load, snapshot_load)
PLAIN(put_working_set, working_set, snapshot_working_set)
PLAIN(put_send, send, migration_send)
PLAIN(put_receive, receive, migration_receive)
PLAIN(put_recover, recover.channels, migration_recover)

#define BARE(name, function)                                          \
    static int name(struct api_call *c, union wire *w, struct err *e) \
    {                                                                 \
        (void)w;                                                      \
        return function(c->vm, e);                                    \
    }
BARE(put_cancel, migration_cancel)
BARE(put_finalize, migration_finalize)

static int get_migration(struct api_call *c, union wire *w, struct err *e)
{
    (void)w, (void)e;
    api_migration(c);
    return 0;
}

static int put_cpu(struct api_call *c, union wire *w, struct err *e)
{
    struct cpu_mods mods;
    int rc = cpu_from_wire(&w->cpu, &mods, e);
    return rc ? rc : vm_put_cpu(c->vm, &mods, e);
}

static int put_action(struct api_call *c, union wire *w, struct err *e)
{
    struct err why = {0};
    bool started = vm_state(c->vm) != VM_NOT_STARTED;
    if (started != (w->action.type != ACT_START))
        return err_set(e, EPERM, WRONG_TIME, started ? "after" : "before");
    if (w->action.type == ACT_FLUSH_METRICS)
        return vm_flush_metrics(c->vm, e);
    if (w->action.type == ACT_CTRL_ALT_DEL)
        return vm_ctrl_alt_del(c->vm, e);
    int r = vm_start(c->vm, &why);
    return r ? err_set(e, -r, "Start microvm error: %.220s", why.msg) : 0;
}

static int patch_vm(struct api_call *c, union wire *w, struct err *e)
{
    return w->state.resumed ? vm_resume(c->vm, e) : vm_pause(c->vm, e);
}

// clang-format off
static const struct route routes[] = {
    {VERB_GET, "", NULL, ANY, get_info, NULL, "", "instance_info"},
    {VERB_GET, "version", NULL, ANY, get_version, NULL, "", "vmm_version"},
    {VERB_GET, "machine-config", NULL, ANY, get_machine, NULL, "", "machine_cfg"},
    {VERB_GET, "vm", "config", ANY, get_config, NULL, "", NULL},
    {VERB_PUT, "cpu-config", NULL, PRE, put_cpu, &t_cpu, "CPU config error: ", "cpu_cfg"},
    {VERB_PUT, "actions", NULL, ANY | HOLD, put_action, &t_action, "", "actions"},
    {VERB_PUT, "boot-source", NULL, PRE, put_boot, &t_boot, "Boot source error: ", "boot_source"},
    {VERB_PUT, "machine-config", NULL, PRE, put_machine, &t_machine, "Machine config error: ", "machine_cfg"},
    {VERB_PATCH, "machine-config", NULL, PRE | CURRENT, put_machine, &t_machine_patch, "Machine config error: ", "machine_cfg"},
    {VERB_PUT, "drives", NULL, PRE | HAS_ID, put_drive, &t_drive, "Drive config error: ", "drive"},
    {VERB_PATCH, "drives", NULL, POST | HAS_ID, patch_drive, &t_drive_patch, "Drive config error: ", "drive"},
    {VERB_PUT, "network-interfaces", NULL, PRE | HAS_ID, put_net, &t_net, "Network config error: ", "network"},
    {VERB_PATCH, "network-interfaces", NULL, POST | HAS_ID, patch_net, &t_net_patch, "Network config error: ", "network"},
    {VERB_PUT, "logger", NULL, PRE, put_logger, &t_logger, "Logger error: ", "logger"},
    {VERB_PUT, "metrics", NULL, PRE, put_metrics, &t_metrics, "Metrics error: ", "metrics"},
    {VERB_PUT, "serial", NULL, PRE, put_serial, &t_serial, "Serial config error: ", "serial"},
    {VERB_PATCH, "vm", NULL, POST | HOLD, patch_vm, &t_state, "Internal Vmm error: ", NULL},
    {VERB_GET, "migration", NULL, ANY, get_migration, NULL, "", NULL},
    {VERB_PUT, "migration", "send", POST, put_send, &t_send, "Migration error: ", NULL},
    {VERB_PUT, "migration", "receive", PRE, put_receive, &t_receive, "Migration error: ", NULL},
    {VERB_PUT, "migration", "recover", ANY, put_recover, &t_recover, "Migration error: ", NULL},
    {VERB_PUT, "migration", "cancel", ANY, put_cancel, &t_nothing, "Migration error: ", NULL},
    {VERB_PUT, "migration", "finalize", ANY, put_finalize, &t_nothing, "Migration error: ", NULL},
    {VERB_PUT, "snapshot", "create", POST, put_create, &t_create, "Create snapshot error: ", NULL},
    {VERB_PUT, "snapshot", "working-set", POST, put_working_set, &t_working_set, "Working set error: ", NULL},
    {VERB_PUT, "snapshot", "load", PRE | HOLD, put_load, &t_load, "Load snapshot error: ", NULL},
};

// What Firecracker has and Mayfly never will, by the first part of a path or a file's section.
static const struct { const char *path, *name; } never[] = {
    {"vsock", "vsock device"},     {"balloon", "balloon device"}, {"mmds", "metadata service (MMDS)"},
    {"pmem", "pmem device"},       {"entropy", "entropy device"}, {"hotplug", "memory hotplug"},
    {"mmds-config", "metadata service (MMDS)"}, {"memory-hotplug", "memory hotplug"},
};
// clang-format on

void api_fault(struct json_out *out, const char *msg)
{
    out->len = 0;
    out->comma = out->overflow = false;
    json_open(out, NULL, '{');
    json_str(out, "fault_message", msg);
    json_close(out, '}');
}

static int check_never(const char *name, struct err *e)
{
    for (size_t i = 0; i < ARRAY_SIZE(never); i++)
        if (strcmp(name, never[i].path) == 0)
            return err_set(e, ENODEV,
                           "Mayfly has no %s: a microVM has drives and network interfaces.",
                           never[i].name);
    return 0;
}

static const struct route *find(enum http_verb verb, const char *first, const char *second)
{
    for (const struct route *r = routes; r < routes + ARRAY_SIZE(routes); r++)
        if (r->verb == verb && strcmp(first, r->path) == 0 &&
            (!r->sub || strcmp(second, r->sub) == 0))
            return r;
    return NULL;
}

// One request whose body is the object at tok, or one section of a file (id NULL), or one element.
static int perform(struct api_call *c, const struct route *r, const struct json_doc *d, int tok,
                   const char *id, struct err *e)
{
    // So large that libc maps it: pages that stay untouched cost nothing, the others go back at the end.
    _cleanup_(free_ptrp) union wire *w = calloc(1, MAX(sizeof(*w), 256 * KIB));
    struct err why = {0};
    unsigned now = vm_state(c->vm) == VM_NOT_STARTED ? PRE : POST;
    if (!w)
        return err_set(e, ENOMEM, "out of memory");
    if (r->flags & CURRENT)
        w->machine.c = vm_config(c->vm)->machine;
    if (r->type && json_bind(d, tok, r->type, w, &why) != 0)
        return err_set(e, EINVAL, MALFORMED, why.msg);
    if (r->flags & HAS_ID && id && strcmp(id, (const char *)w) != 0) // ids come first in wires
        return err_set(e, EINVAL, "The id from the path does not match the id from the body!");
    if (!(r->flags & now))
        return err_set(e, EPERM, WRONG_TIME, now == PRE ? "before" : "after");
    if (r->flags & HOLD)
        vm_hold(c->vm);
    int rc =
        r->verb != VERB_GET && strcmp(r->path, "migration") ? migration_refuse(c->vm, &why) : 0;
    rc = rc ? rc : r->call(c, w, &why);
    return rc ? err_set(e, -rc, "%s%.220s", r->prefix, why.msg) : 0;
}

// The next part of the path into out, cut where no name we know is as long. Leading slashes do not
// count and more parts than two are ignored, as in Firecracker.
static const char *part(const char *p, const char *end, char out[CFG_ID_MAX + 2])
{
    size_t n = 0;
    while (p < end && *p == '/')
        p++;
    for (; p < end && *p != '/'; p++)
        if (n < CFG_ID_MAX + 1) // one more than an id may have: too long stays too long
            out[n++] = *p;
    out[n] = 0;
    return p;
}

static int route(struct api_call *c, const struct route **found, struct err *e)
{
    char first[CFG_ID_MAX + 2], second[CFG_ID_MAX + 2];
    const char *end = c->target + c->target_len;
    struct json_doc d;
    struct err why;
    int rc;

    part(part(c->target, end, first), end, second);
    if (c->verb == VERB_GET && c->body_len)
        return err_set(e, EINVAL, "GET request cannot have a body.");
    if ((c->verb == VERB_PUT || c->verb == VERB_PATCH) && !c->body_len)
        return err_set(e, EINVAL, "Empty %s request.", http_verb_name(c->verb));
    if ((rc = check_never(first, e)))
        return rc;
    const struct route *r = *found = find(c->verb, first, second);
    if (!r)
        return err_set(e, EINVAL, "Invalid request method and/or path: %s %s.",
                       http_verb_name(c->verb), first);
    if (r->flags & HAS_ID && (rc = cfg_check_id(second, "id", e)))
        return rc;
    // A fleet's CPU template is as large as a configuration file.
    unsigned tokens = r->type == &t_cpu ? JSON_TOKENS_MAX : JSON_BODY_TOKENS;
    if (r->type && json_parse(&d, c->body, c->body_len, tokens, &why) != 0)
        return err_set(e, EINVAL, MALFORMED, why.msg);
    if (r->flags & CURRENT && d.count == 1)
        return err_set(e, EINVAL, "Empty PATCH request.");
    return perform(c, r, &d, 0, second, e);
}

int api_route(struct api_call *c)
{
    static const enum vm_api_kind kinds[] = {
        [VERB_GET] = API_GET, [VERB_PUT] = API_PUT, [VERB_PATCH] = API_PATCH};
    const struct route *r = NULL;
    struct err e = {0};
    uint64_t t = now_ns();
    int rc = route(c, &r, &e);
    if (rc == 0 && c->out->overflow)
        rc = err_set(&e, EMSGSIZE, "The answer exceeds %zu bytes.", c->out->cap);
    if (rc)
        api_fault(c->out, e.msg);
    if (r && r->metric)
        vm_count_api(c->vm, kinds[c->verb], r->metric, rc != 0, (now_ns() - t) / 1000);
    LOG_AT(vm_log(c->vm), rc ? LOG_INFO : LOG_DEBUG, false, "%s %.*s: %s", http_verb_name(c->verb),
           (int)MIN(c->target_len, 128), c->target, rc ? e.msg : "done");
    return rc ? 400 : c->out->len ? 200 : 204;
}

static int section(struct api_call *c, const struct json_doc *d, int key, struct err *e)
{
    char name[32];
    const jsmntok_t *v = &d->tok[key + 1];
    bool empty = v->type == JSMN_ARRAY && v->size == key + 2;
    if (json_literal(d, key + 1) == 'n' || empty)
        return 0; // as GET /vm/config writes what is absent
    int rc = json_decode(d, key, name, sizeof(name)) < 0 ? -EINVAL : check_never(name, e);
    const struct route *r = rc == -EINVAL ? NULL : find(VERB_PUT, name, "");
    if (rc == -ENODEV)
        return rc;
    if (!r || (r->flags & ANY) != PRE) // a section is what may be put before the start
        return json_fail(d, v->start, e, "unknown section `%.*s`",
                         MIN(d->tok[key].end - d->tok[key].start, 40), d->text + d->tok[key].start);
    if (!(r->flags & HAS_ID))
        return perform(c, r, d, key + 1, NULL, e);
    if (v->type != JSMN_ARRAY)
        return json_fail(d, v->start, e, "%sexpected an array", r->prefix);
    for (int i = json_next(d, key + 1, 0); i && rc == 0; i = json_next(d, key + 1, i))
        rc = perform(c, r, d, i, NULL, e);
    return rc;
}

int api_apply_config(struct vm *vm, const char *json, size_t len, struct err *e)
{
    struct api_call c = {.vm = vm, .verb = VERB_PUT};
    struct json_doc d;
    bool has_boot = false;
    int rc = json_parse(&d, json, len, JSON_TOKENS_MAX, e);
    // The logger first, wherever it stands, so that the rest can be logged.
    for (int pass = 0; rc == 0 && pass < 2; pass++)
        for (int k = json_next(&d, 0, 0); rc == 0 && k; k = json_next(&d, 0, k)) {
            has_boot |= json_is(&d, k, "boot-source");
            if (json_is(&d, k, "logger") == (pass == 0))
                rc = section(&c, &d, k, e);
        }
    return rc == 0 && !has_boot ? err_set(e, EINVAL, "missing field `boot-source`") : rc;
}
