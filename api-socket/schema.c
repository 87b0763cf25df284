// SPDX-License-Identifier: Apache-2.0
// The dialect's tables; openapi.yaml says the same for readers outside, a test holds them together.
#include "api-socket/schema.h"

#define AT(s, m) offsetof(struct s, m), sizeof(((struct s *)0)->m)
#define TYPE(s, f)                         \
    {                                      \
        sizeof(struct s), f, ARRAY_SIZE(f) \
    }
#define REQ    JSON_REQUIRED
#define OPT    JSON_NULLABLE
#define NO_HAS .has = JSON_NO_HAS

// clang-format off
static const struct json_field bucket_f[] = {
    {"size", J_UINT, REQ, AT(bucket_cfg, size), NO_HAS, .max = UINT64_MAX},
    {"one_time_burst", J_UINT, OPT, AT(bucket_cfg, one_time_burst), NO_HAS, .max = UINT64_MAX},
    {"refill_time", J_UINT, REQ, AT(bucket_cfg, refill_ms), NO_HAS, .max = UINT64_MAX},
};
static const struct json_type t_bucket = TYPE(bucket_cfg, bucket_f);

static const struct json_field limiter_f[] = {
    {"bandwidth", J_OBJ, OPT, AT(limiter_cfg, bandwidth), offsetof(struct limiter_cfg, bandwidth.set), .sub = &t_bucket},
    {"ops", J_OBJ, OPT, AT(limiter_cfg, ops), offsetof(struct limiter_cfg, ops.set), .sub = &t_bucket},
};
static const struct json_type t_limiter = TYPE(limiter_cfg, limiter_f);

static const char *const huge_names[] = {"None", "Transparent", "2M", NULL};
static const char *const template_names[] = {"None", "C3", "T2", "T2S", "T2CL", "T2A", "V1N1", NULL};
#define MACHINE_FIELDS(need, rest)                                                                             \
    {"vcpu_count", J_UINT, need, AT(machine_wire, c.vcpu_count), NO_HAS, 1, CFG_MAX_VCPUS},                  \
    {"mem_size_mib", J_UINT, need, AT(machine_wire, c.mem_size_mib), NO_HAS, 1, CFG_MEM_MAX_MIB},            \
    {"smt", J_BOOL, rest, AT(machine_wire, c.smt), NO_HAS},                                                   \
    {"track_dirty_pages", J_BOOL, rest, AT(machine_wire, c.track_dirty_pages), NO_HAS},                       \
    {"huge_pages", J_ENUM, rest, AT(machine_wire, c.huge_pages), NO_HAS, .names = huge_names},                \
    {"cpu_template", J_ENUM, OPT | JSON_BIND_ONLY, AT(machine_wire, cpu_template), NO_HAS, .names = template_names}
static const struct json_field machine_f[] = {MACHINE_FIELDS(REQ, 0)};
static const struct json_field machine_patch_f[] = {MACHINE_FIELDS(OPT, OPT)};
const struct json_type t_machine = TYPE(machine_wire, machine_f);
const struct json_type t_machine_patch = TYPE(machine_wire, machine_patch_f);

static const struct json_field boot_f[] = {
    {"kernel_image_path", J_STR, REQ, AT(boot_cfg, kernel_image_path), NO_HAS, .min = 1},
    {"initrd_path", J_STR, OPT, AT(boot_cfg, initrd_path), NO_HAS, .min = 1},
    {"boot_args", J_STR, OPT, AT(boot_cfg, boot_args), .has = offsetof(struct boot_cfg, has_args)},
};
const struct json_type t_boot = TYPE(boot_cfg, boot_f);

static const char *const cache_names[] = {"Unsafe", "Writeback", NULL};
static const char *const engine_names[] = {"Sync", "Async", NULL};
static const struct json_field drive_f[] = {
    {"drive_id", J_STR, REQ, AT(drive_wire, c.drive_id), NO_HAS, .min = 1},
    {"partuuid", J_STR, OPT, AT(drive_wire, c.partuuid), NO_HAS, .min = 1},
    {"is_root_device", J_BOOL, REQ, AT(drive_wire, c.is_root_device), NO_HAS},
    {"cache_type", J_ENUM, 0, AT(drive_wire, c.writeback), NO_HAS, .names = cache_names},
    {"is_read_only", J_BOOL, OPT, AT(drive_wire, c.is_read_only), NO_HAS},
    {"path_on_host", J_STR, OPT, AT(drive_wire, c.path_on_host), NO_HAS, .min = 1},
    {"rate_limiter", J_OBJ, OPT, AT(drive_wire, c.rate_limiter), offsetof(struct drive_wire, c.rate_limiter.set), .sub = &t_limiter},
    {"io_engine", J_ENUM, OPT, AT(drive_wire, c.io_engine_async), NO_HAS, .names = engine_names},
    {"socket", J_STR, OPT, AT(drive_wire, socket), NO_HAS, .min = 1},
    {"cow_path", J_STR, OPT | JSON_OMIT, AT(drive_wire, c.cow_path), NO_HAS, .min = 1},
};
const struct json_type t_drive = TYPE(drive_wire, drive_f);

static const struct json_field drive_patch_f[] = {
    {"drive_id", J_STR, REQ, AT(drive_patch, drive_id), NO_HAS, .min = 1},
    {"path_on_host", J_STR, OPT, AT(drive_patch, path_on_host), NO_HAS, .min = 1},
    {"rate_limiter", J_OBJ, OPT, AT(drive_patch, rate_limiter), offsetof(struct drive_patch, rate_limiter.set), .sub = &t_limiter},
};
const struct json_type t_drive_patch = TYPE(drive_patch, drive_patch_f);

static const struct json_field net_f[] = {
    {"iface_id", J_STR, REQ, AT(net_wire, c.iface_id), NO_HAS, .min = 1},
    {"host_dev_name", J_STR, REQ, AT(net_wire, c.host_dev_name), NO_HAS, .min = 1},
    {"guest_mac", J_STR, OPT, AT(net_wire, mac), NO_HAS, .min = 17},
    {"mtu", J_UINT, OPT, AT(net_wire, c.mtu), NO_HAS, 68, 65535},
    {"rx_rate_limiter", J_OBJ, OPT, AT(net_wire, c.rx_rate_limiter), offsetof(struct net_wire, c.rx_rate_limiter.set), .sub = &t_limiter},
    {"tx_rate_limiter", J_OBJ, OPT, AT(net_wire, c.tx_rate_limiter), offsetof(struct net_wire, c.tx_rate_limiter.set), .sub = &t_limiter},
    {"allow_mac_spoofing", J_BOOL, JSON_OMIT, AT(net_wire, c.allow_mac_spoofing), NO_HAS},
};
const struct json_type t_net = TYPE(net_wire, net_f);

static const struct json_field net_patch_f[] = {
    {"iface_id", J_STR, REQ, AT(net_patch, iface_id), NO_HAS, .min = 1},
    {"rx_rate_limiter", J_OBJ, OPT, AT(net_patch, rx), offsetof(struct net_patch, rx.set), .sub = &t_limiter},
    {"tx_rate_limiter", J_OBJ, OPT, AT(net_patch, tx), offsetof(struct net_patch, tx.set), .sub = &t_limiter},
};
const struct json_type t_net_patch = TYPE(net_patch, net_patch_f);

// As enum log_level; the last is another word for Warn.
static const char *const level_names[] = {"Off", "Error", "Warn", "Info", "Debug", "Trace", "Warning", NULL};
static const struct json_field logger_f[] = {
    {"log_path", J_STR, OPT, AT(logger_cfg, log_path), NO_HAS, .min = 1},
    {"level", J_ENUM, OPT | JSON_ANY_CASE, AT(logger_cfg, level), offsetof(struct logger_cfg, has_level), .names = level_names},
    {"show_level", J_BOOL, OPT, AT(logger_cfg, show_level), .has = offsetof(struct logger_cfg, has_show_level)},
    {"show_log_origin", J_BOOL, OPT, AT(logger_cfg, show_log_origin), .has = offsetof(struct logger_cfg, has_show_log_origin)},
    {"module", J_STR, OPT, AT(logger_cfg, module), NO_HAS, .min = 1},
};
const struct json_type t_logger = TYPE(logger_cfg, logger_f);

static const struct json_field metrics_f[] = {
    {"metrics_path", J_STR, REQ, AT(metrics_cfg, metrics_path), NO_HAS, .min = 1},
    {"emit_id", J_BOOL, OPT | JSON_OMIT, AT(metrics_cfg, emit_id), NO_HAS},
};
const struct json_type t_metrics = TYPE(metrics_cfg, metrics_f);

static const struct json_field serial_f[] = {
    {"serial_out_path", J_STR, OPT, AT(serial_cfg, serial_out_path), NO_HAS, .min = 1},
    {"rate_limiter", J_OBJ, OPT, AT(serial_cfg, rate_limiter), offsetof(struct serial_cfg, rate_limiter.set), .sub = &t_bucket},
};
const struct json_type t_serial = TYPE(serial_cfg, serial_f);

static const char *const action_names[] = {"InstanceStart", "FlushMetrics", "SendCtrlAltDel", NULL};
static const struct json_field action_f[] = {
    {"action_type", J_ENUM, REQ, AT(action_wire, type), NO_HAS, .names = action_names},
};
const struct json_type t_action = TYPE(action_wire, action_f);

static const char *const state_names[] = {"Paused", "Resumed", NULL};
static const struct json_field state_f[] = {
    {"state", J_ENUM, REQ, AT(state_wire, resumed), NO_HAS, .names = state_names},
};
const struct json_type t_state = TYPE(state_wire, state_f);

static const char *const snapshot_names[] = {"Full", "Diff", NULL};
static const struct json_field create_f[] = {
    {"snapshot_path", J_STR, REQ, AT(snapshot_create, snapshot_path), NO_HAS, .min = 1},
    {"mem_file_path", J_STR, REQ, AT(snapshot_create, mem_file_path), NO_HAS, .min = 1},
    {"snapshot_type", J_ENUM, 0, AT(snapshot_create, type), NO_HAS, .names = snapshot_names},
    {"live", J_BOOL, OPT, AT(snapshot_create, live), NO_HAS},
};
const struct json_type t_create = TYPE(snapshot_create, create_f);

static const char *const backend_names[] = {"File", "Uffd", NULL};
static const struct json_field backend_f[] = {
    {"backend_type", J_ENUM, REQ, AT(mem_backend_cfg, type), NO_HAS, .names = backend_names},
    {"backend_path", J_STR, REQ, AT(mem_backend_cfg, path), NO_HAS, .min = 1},
};
static const struct json_type t_backend = TYPE(mem_backend_cfg, backend_f);
static const struct json_field net_over_f[] = {
    {"iface_id", J_STR, REQ, AT(net_override, iface_id), NO_HAS, .min = 1},
    {"host_dev_name", J_STR, REQ, AT(net_override, host_dev_name), NO_HAS, .min = 1},
};
static const struct json_type t_net_over = TYPE(net_override, net_over_f);
static const struct json_field drive_over_f[] = {
    {"drive_id", J_STR, REQ, AT(drive_override, drive_id), NO_HAS, .min = 1},
    {"path_on_host", J_STR, OPT, AT(drive_override, path_on_host), NO_HAS, .min = 1},
    {"cow_path", J_STR, OPT, AT(drive_override, cow_path), NO_HAS, .min = 1},
};
static const struct json_type t_drive_over = TYPE(drive_override, drive_over_f);
static const struct json_field load_f[] = {
    {"snapshot_path", J_STR, REQ, AT(snapshot_load, snapshot_path), NO_HAS, .min = 1},
    {"mem_file_path", J_STR, OPT, AT(snapshot_load, mem_file_path), NO_HAS, .min = 1},
    {"mem_backend", J_OBJ, OPT, AT(snapshot_load, mem_backend), offsetof(struct snapshot_load, has_mem_backend), .sub = &t_backend},
    {"working_set_path", J_STR, OPT, AT(snapshot_load, working_set_path), NO_HAS, .min = 1},
    {"track_dirty_pages", J_BOOL, OPT, AT(snapshot_load, track_dirty_pages), NO_HAS},
    {"enable_diff_snapshots", J_BOOL, OPT, AT(snapshot_load, track_dirty_pages), NO_HAS},
    {"resume_vm", J_BOOL, OPT, AT(snapshot_load, resume_vm), NO_HAS},
    {"clock_realtime", J_BOOL, OPT, AT(snapshot_load, clock_realtime), NO_HAS},
    {"any_cpu", J_BOOL, OPT, AT(snapshot_load, any_cpu), NO_HAS},
    {"network_overrides", J_LIST, OPT, AT(snapshot_load, nets), offsetof(struct snapshot_load, nnets), .sub = &t_net_over},
    {"drive_overrides", J_LIST, OPT, AT(snapshot_load, drives), offsetof(struct snapshot_load, ndrives), .sub = &t_drive_over},
};
const struct json_type t_load = TYPE(snapshot_load, load_f);
static const struct json_field working_set_f[] = {
    {"working_set_path", J_STR, REQ, AT(snapshot_working_set, working_set_path), NO_HAS, .min = 1},
};
const struct json_type t_working_set = TYPE(snapshot_working_set, working_set_f);

static const struct json_field channels_f[] = {
    {"urgent", J_STR, REQ, AT(migration_channels, urgent), NO_HAS, .min = 1},
    {"bulk", J_STR, REQ, AT(migration_channels, bulk), NO_HAS, .min = 1},
};
static const struct json_type t_channels = TYPE(migration_channels, channels_f);
static const char *const mode_names[] = {"precopy", "postcopy", "hybrid", NULL};
static const char *const late_names[] = {"cancel", "postcopy", NULL};
static const char *const verify_names[] = {"pages", "ram", NULL};
static const struct json_field send_f[] = {
    {"channels", J_OBJ, REQ, AT(migration_send, channels), NO_HAS, .sub = &t_channels},
    {"arbiter", J_STR, OPT, AT(migration_send, arbiter), NO_HAS, .min = 1},
    {"allow_unarbitrated", J_BOOL, OPT, AT(migration_send, allow_unarbitrated), NO_HAS},
    {"mode", J_ENUM, REQ, AT(migration_send, mode), NO_HAS, .names = mode_names},
    {"downtime_ms", J_UINT, OPT, AT(migration_send, downtime_ms), NO_HAS, 1, 600000},
    {"bandwidth_mib_s", J_UINT, OPT, AT(migration_send, bandwidth_mib_s), NO_HAS, 1, 1000000},
    {"timeout_ms", J_UINT, OPT, AT(migration_send, timeout_ms), NO_HAS, 1, 86400000},
    {"on_timeout", J_ENUM, OPT, AT(migration_send, on_timeout), NO_HAS, .names = late_names},
    {"verify", J_ENUM, OPT, AT(migration_send, verify), NO_HAS, .names = verify_names},
};
const struct json_type t_send = TYPE(migration_send, send_f);
static const struct json_field receive_f[] = {
    {"channels", J_OBJ, REQ, AT(migration_receive, channels), NO_HAS, .sub = &t_channels},
    {"arbiter", J_STR, OPT, AT(migration_receive, arbiter), NO_HAS, .min = 1},
    {"allow_unarbitrated", J_BOOL, OPT, AT(migration_receive, allow_unarbitrated), NO_HAS},
    {"lease_ms", J_UINT, OPT, AT(migration_receive, lease_ms), NO_HAS, 100, 3600000},
    {"resume_vm", J_BOOL, OPT, AT(migration_receive, resume_vm), .has = offsetof(struct migration_receive, has_resume)},
    {"any_cpu", J_BOOL, OPT, AT(migration_receive, over.any_cpu), NO_HAS},
    {"network_overrides", J_LIST, OPT, AT(migration_receive, over.nets), offsetof(struct migration_receive, over.nnets), .sub = &t_net_over},
    {"drive_overrides", J_LIST, OPT, AT(migration_receive, over.drives), offsetof(struct migration_receive, over.ndrives), .sub = &t_drive_over},
};
const struct json_type t_receive = TYPE(migration_receive, receive_f);
static const struct json_field recover_f[] = {
    {"channels", J_OBJ, REQ, AT(recover_wire, channels), NO_HAS, .sub = &t_channels},
};
const struct json_type t_recover = TYPE(recover_wire, recover_f);
const struct json_type t_nothing = {0, NULL, 0};
static const char *const reg_names[] = {"eax", "ebx", "ecx", "edx", NULL};
static const struct json_field cpu_reg_f[] = {
    {"register", J_ENUM, REQ, AT(cpu_reg_wire, reg), NO_HAS, .names = reg_names},
    {"bitmap", J_STR, REQ, AT(cpu_reg_wire, bitmap), NO_HAS, .min = 3},
};
static const struct json_type t_cpu_reg = TYPE(cpu_reg_wire, cpu_reg_f);
static const struct json_field cpu_leaf_f[] = {
    {"leaf", J_STR, REQ, AT(cpu_leaf_wire, leaf), NO_HAS, .min = 1},
    {"subleaf", J_STR, REQ, AT(cpu_leaf_wire, subleaf), NO_HAS, .min = 1},
    {"flags", J_UINT, REQ, AT(cpu_leaf_wire, flags), NO_HAS, .max = 7},
    {"modifiers", J_LIST, REQ, AT(cpu_leaf_wire, mod), .has = offsetof(struct cpu_leaf_wire, nmods), .sub = &t_cpu_reg},
};
static const struct json_type t_cpu_leaf = TYPE(cpu_leaf_wire, cpu_leaf_f);
static const struct json_field cpu_msr_f[] = {
    {"addr", J_STR, REQ, AT(cpu_msr_wire, addr), NO_HAS, .min = 1},
    {"bitmap", J_STR, REQ, AT(cpu_msr_wire, bitmap), NO_HAS, .min = 3},
};
static const struct json_type t_cpu_msr = TYPE(cpu_msr_wire, cpu_msr_f);
static const struct json_field cpu_f[] = {
    {"cpuid_modifiers", J_LIST, OPT, AT(cpu_wire, leaf), .has = offsetof(struct cpu_wire, nleaves), .sub = &t_cpu_leaf},
    {"msr_modifiers", J_LIST, OPT, AT(cpu_wire, msr), .has = offsetof(struct cpu_wire, nmsrs), .sub = &t_cpu_msr},
};
const struct json_type t_cpu = TYPE(cpu_wire, cpu_f);
// clang-format on
