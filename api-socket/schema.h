// SPDX-License-Identifier: Apache-2.0
// The dialect as tables: every object of the API, its fields, bounds, and where they are kept.
//
// A wire struct stands where the wire says more than, or says otherwise than, the configuration.
// Ids come first in theirs, so that routes compare them with the path in one place.
#ifndef API_SCHEMA_H
#define API_SCHEMA_H

#include "api-socket/json.h"
#include "snapshot/snapshot.h"
#include "vmm/config.h"

struct machine_wire {
    struct machine_cfg c;
    uint8_t cpu_template; // index; 0 is "None", the only one there is
};
struct drive_wire {
    struct drive_cfg c;
    char socket[CFG_PATH_MAX]; // vhost-user: known, never there
};
struct drive_patch {
    char drive_id[CFG_ID_MAX + 1];
    char path_on_host[CFG_PATH_MAX];
    struct limiter_cfg rate_limiter;
};
struct net_wire {
    struct net_cfg c;
    char mac[18];
};
struct net_patch {
    char iface_id[CFG_ID_MAX + 1];
    struct limiter_cfg rx, tx;
};
enum action { ACT_START, ACT_FLUSH_METRICS, ACT_CTRL_ALT_DEL };
struct action_wire {
    enum action type;
};
struct state_wire {
    bool resumed; // enum Paused, Resumed
};

union wire {
    struct machine_wire machine;
    struct boot_cfg boot;
    struct drive_wire drive;
    struct drive_patch drive_patch;
    struct net_wire net;
    struct net_patch net_patch;
    struct logger_cfg logger;
    struct metrics_cfg metrics;
    struct serial_cfg serial;
    struct action_wire action;
    struct state_wire state;
    struct snapshot_create create;
    struct snapshot_load load;
};

extern const struct json_type t_machine, t_machine_patch, t_boot, t_drive, t_drive_patch, t_net,
    t_net_patch, t_logger, t_metrics, t_serial, t_action, t_state, t_create, t_load;

#endif
