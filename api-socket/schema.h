// SPDX-License-Identifier: Apache-2.0
// The dialect as tables: every object of the API, its fields, bounds, and where they are kept.
//
// A wire struct stands where the wire says more than, or says otherwise than, the configuration.
// Ids come first in theirs, so that routes compare them with the path in one place.
#ifndef API_SCHEMA_H
#define API_SCHEMA_H

#include "api-socket/json.h"
#include "snapshot/mig.h"
#include "snapshot/snapshot.h"
#include "vmm/config.h"
#include "vmm/vm.h"

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

// PUT /cpu-config: numbers and bit masks are strings on the wire.
struct cpu_reg_wire {
    uint8_t reg; // enum cpuid_reg
    char bitmap[40];
};
struct cpu_leaf_wire {
    char leaf[12], subleaf[12];
    uint64_t flags; // of struct kvm_cpuid_entry2; accepted for the dialect's sake
    struct cpu_reg_wire mod[4];
    unsigned nmods;
};
struct cpu_msr_wire {
    char addr[12], bitmap[80];
};
struct cpu_wire {
    struct cpu_leaf_wire leaf[32];
    struct cpu_msr_wire msr[64];
    unsigned nleaves, nmsrs;
};

struct recover_wire {
    struct migration_channels channels;
};

union wire {
    struct cpu_wire cpu;
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
    struct snapshot_working_set working_set;
    struct migration_send send;
    struct migration_receive receive;
    struct recover_wire recover;
};

// Turns the strings of a cpu_wire into numbers. -EINVAL names the field.
int cpu_from_wire(const struct cpu_wire *w, struct cpu_mods *out, struct err *e);

extern const struct json_type t_machine, t_machine_patch, t_boot, t_drive, t_drive_patch, t_net,
    t_net_patch, t_logger, t_metrics, t_serial, t_action, t_state, t_create, t_load, t_working_set,
    t_send, t_receive, t_recover, t_nothing, t_cpu;

#endif
