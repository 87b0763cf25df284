// SPDX-License-Identifier: Apache-2.0
// GET /migration: how far it is, and how long it took.
#include "api-socket/routes.h"
#include "snapshot/mig.h"

void api_migration(struct api_call *c)
{
    static const char *const roles[] = {"none", "source", "target"};
    static const char *const modes[] = {"precopy", "postcopy", "hybrid"};
    static const char *const stages[] = {"none",      "pre-migration", "reservation",
                                         "pre-copy",  "stop-and-copy", "commitment",
                                         "activation"};
    static const char *const states[] = {"idle", "active", "paused",    "unknown",
                                         "done", "failed", "cancelled", "lost"};
    const struct migration_status none = {0}, *s;
    const char *why;
    struct json_out *o = c->out;

    s = migration_status(c->vm, &why);
    s = s ? s : &none;
    json_open(o, NULL, '{');
    json_str(o, "role", roles[s->role]);
    json_str(o, "stage", stages[s->stage]);
    json_str(o, "state", states[s->state]);
    json_str(o, "mode", s->role ? modes[s->mode] : NULL);
    json_bool(o, "arbitrated", s->arbitrated);
    const struct {
        const char *key;
        uint64_t value;
    } n[] = {{"epoch", s->epoch},
             {"rounds", s->rounds},
             {"bytes", s->bytes},
             {"pages", s->pages},
             {"zero_pages", s->zero_pages},
             {"duplicate_pages", s->duplicates},
             {"total_pages", s->total_pages},
             {"remaining_pages", s->remaining_pages},
             {"dirty_pages_s", s->dirty_pages_s},
             {"throttle_percent", s->throttle},
             {"requests", s->requests},
             {"faults", s->faults},
             {"recoveries", s->recoveries},
             {"expected_downtime_us", s->expected_downtime_us},
             {"downtime_us", s->downtime_us},
             {"total_us", s->total_us}};
    for (size_t i = 0; i < ARRAY_SIZE(n); i++)
        json_uint(o, n[i].key, n[i].value);
    json_open(o, "fault_latency_log2_us", '[');
    for (size_t i = 0; i < MIG_HIST; i++)
        json_uint(o, NULL, s->hist[i]);
    json_close(o, ']');
    json_str(o, "error", why[0] ? why : NULL);
    json_close(o, '}');
}
