// SPDX-License-Identifier: Apache-2.0
// The command line: Firecracker's options for what both have, and Mayfly's own.
#ifndef VMM_ARGS_H
#define VMM_ARGS_H

#include "vmm/config.h"

#define ARGS_MAX_DIRS   16
#define ARGS_MAX_UIDS   8
#define ARGS_MAX_PASSED 24

struct args {
    const char *api_sock;    // --api-sock
    const char *id;          // --id
    const char *config_file; // --config-file
    bool no_api, no_seccomp, boot_timer, version, help;
    struct logger_cfg logger; // --log-path --level --module --show-level --show-log-origin
    bool has_logger;
    const char *metrics_path;
    size_t max_payload;   // --http-api-max-payload-size, bytes
    unsigned socket_mode; // --api-sock-mode, octal
    unsigned nuids;
    uint32_t uids[ARGS_MAX_UIDS]; // --allow-uid: peers that may use the socket; none: whoever can
                                  // open it
    unsigned ndirs;
    const char *dirs[ARGS_MAX_DIRS]; // --allow-dir
    unsigned npassed;
    const char *passed[ARGS_MAX_PASSED]; // --passed-fd NAME=N: what the jail hands over
    bool allow_no_landlock;
    uint64_t start_time_us, start_cpu_us, parent_cpu_us;
};

// Parses argv. 0, or -EINVAL with a sentence that names the option. Strings point into argv.
int args_parse(int argc, char **argv, struct args *a, struct err *e);
int args_level(const char *s, enum log_level *out); // "Info", any case; -EINVAL
void args_help(FILE *to);

#endif
