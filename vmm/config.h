// SPDX-License-Identifier: Apache-2.0
// Configuration as plain data: what the API, the config file and snapshots describe a microVM with.
//
// Strings are bounded arrays, always terminated; an empty string means absent. Any path field may
// hold "fd:N", the N-th descriptor that came with the same request; never in a file.
#ifndef VMM_CONFIG_H
#define VMM_CONFIG_H

#include "virtio/ratelimit.h"
#include "vmm/base.h"

#define CFG_PATH_MAX    1024
#define CFG_ID_MAX      64   // longest id, without its terminator
#define CFG_CMDLINE_MAX 2048 // with its terminator, as Linux's COMMAND_LINE_SIZE on x86
#define CFG_MAX_VCPUS   32
#define CFG_MAX_DRIVES  8
#define CFG_MAX_NETS    8
#define CFG_MAX_DEVS    (CFG_MAX_DRIVES + CFG_MAX_NETS)
#define CFG_MAX_FDS     16 // descriptors passed with one request
#define CFG_MEM_MAX_MIB (512 * 1024)

enum huge_pages { HUGE_NONE, HUGE_TRANSPARENT, HUGE_2M };

struct machine_cfg {
    uint32_t vcpu_count;   // 1 to CFG_MAX_VCPUS; with smt, 1 or even
    uint32_t mem_size_mib; // > 0
    bool smt;
    bool track_dirty_pages;
    enum huge_pages huge_pages;
};

struct boot_cfg {
    char kernel_image_path[CFG_PATH_MAX];
    char initrd_path[CFG_PATH_MAX];
    char boot_args[CFG_CMDLINE_MAX];
    bool has_args; // absent boot_args means the default command line
};

struct drive_cfg {
    char drive_id[CFG_ID_MAX + 1];
    char path_on_host[CFG_PATH_MAX];
    char cow_path[CFG_PATH_MAX]; // Mayfly's own: private copy-on-write layer over a read-only base
    char partuuid[40];
    bool is_root_device;
    bool is_read_only;
    bool writeback;       // cache_type: Unsafe (false, default) or Writeback
    bool io_engine_async; // accepted for the dialect's sake; both engines are the same here
    struct limiter_cfg rate_limiter;
};

struct net_cfg {
    char iface_id[CFG_ID_MAX + 1];
    char host_dev_name[CFG_PATH_MAX]; // a tap's name (at most 15 bytes) or fd:N
    uint8_t guest_mac[6];
    bool has_mac;
    bool allow_mac_spoofing; // Mayfly's own
    uint16_t mtu;            // 0: absent; 68 to 65535
    struct limiter_cfg rx_rate_limiter, tx_rate_limiter;
};

enum log_level { LOG_OFF, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

struct logger_cfg { // fields absent in a request keep their value; has_* tells which came
    char log_path[CFG_PATH_MAX];
    enum log_level level;
    bool has_level, show_level, has_show_level, show_log_origin, has_show_log_origin;
    char module[64];
};

struct metrics_cfg {
    char metrics_path[CFG_PATH_MAX];
    bool emit_id;
};

struct serial_cfg {
    char serial_out_path[CFG_PATH_MAX];
    struct bucket_cfg rate_limiter;
};

struct vm_config {
    struct machine_cfg machine;
    struct boot_cfg boot;
    bool has_boot;
    unsigned ndrives;
    struct drive_cfg drives[CFG_MAX_DRIVES]; // root first
    unsigned nnets;
    struct net_cfg nets[CFG_MAX_NETS];
    struct logger_cfg logger;
    bool has_logger;
    struct metrics_cfg metrics;
    bool has_metrics;
    struct serial_cfg serial;
    bool has_serial;
};

// Descriptors that came with one request. vm_* functions take what they use (the entry becomes -1);
// the caller closes the rest with fds_close.
struct passed_fds {
    unsigned n;
    int fd[CFG_MAX_FDS];
};

static inline void fds_close(struct passed_fds *f)
{
    for (unsigned i = 0; i < f->n; i++)
        close_fdp(&f->fd[i]);
    f->n = 0;
}

// Validity that needs no host: ids, bounds, combinations. 0 or -EINVAL with the field named.
int cfg_check_id(const char *id, const char *field, struct err *e);
int cfg_check_machine(const struct machine_cfg *m, struct err *e);
int cfg_check_cmdline(const char *args, struct err *e); // printable ASCII, length
int cfg_parse_mac(const char *s, uint8_t mac[6]); // "AA:BB:CC:DD:EE:FF", unicast; 0 or -EINVAL

#endif
