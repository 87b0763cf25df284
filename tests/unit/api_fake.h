// SPDX-License-Identifier: Apache-2.0
// A microVM that only remembers what it was asked: vmm/vm.h for the API's unit tests.
#ifndef TESTS_UNIT_API_FAKE_H
#define TESTS_UNIT_API_FAKE_H

#include <pthread.h>
#include <sys/socket.h>

#include "vmm/log.h"
#include "snapshot/mig.h"
#include "snapshot/snapshot.h"
#include "vmm/vm.h"

struct vm {
    enum vm_state state;
    struct vm_config cfg;
    struct log log;
    const char *fail; // the next call fails with this sentence
    unsigned calls;   // that changed or tried to change something
    char last[32];
    char counted[64];
    char path[CFG_PATH_MAX];
    bool had_rx, had_tx;
    int taken; // the descriptor that put_drive took for fd:0
    int peer;  // > 0: the client's end of the connection
    bool held;
    _Atomic unsigned freed; // holds that ended
    unsigned early;         // those that did before the client had its answer
    unsigned nfds;
    unsigned pause_ms; // how long vm_pause takes
};

static inline struct vm fake_vm(void)
{
    struct vm v = {.taken = -1};
    v.cfg.machine = (struct machine_cfg){.vcpu_count = 1, .mem_size_mib = 128};
    atomic_store(&v.log.level, -1);
    return v;
}

static int did(struct vm *vm, const char *what, struct err *e)
{
    vm->calls++;
    snprintf(vm->last, sizeof(vm->last), "%s", what);
    return vm->fail ? err_set(e, EINVAL, "%s", vm->fail) : 0;
}

const char *vm_id(const struct vm *vm)
{
    (void)vm;
    return "fake-1";
}
enum vm_state vm_state(const struct vm *vm)
{
    return vm->state;
}
const struct vm_config *vm_config(const struct vm *vm)
{
    return &vm->cfg;
}
struct log *vm_log(struct vm *vm)
{
    return &vm->log;
}
void vm_count_api(struct vm *vm, enum vm_api_kind kind, const char *what, bool failed,
                  uint64_t took_us)
{
    (void)took_us;
    snprintf(vm->counted, sizeof(vm->counted), "%d %s %d", (int)kind, what, failed);
}

int vm_put_machine(struct vm *vm, const struct machine_cfg *c, struct err *e)
{
    int r = did(vm, "machine", e);
    if (r == 0)
        vm->cfg.machine = *c;
    return r;
}
int vm_put_cpu(struct vm *vm, const struct cpu_mods *m, struct err *e)
{
    (void)m;
    return did(vm, "cpu", e);
}
int vm_put_boot(struct vm *vm, const struct boot_cfg *c, struct passed_fds *fds, struct err *e)
{
    (void)fds;
    vm->cfg.boot = *c;
    vm->cfg.has_boot = true;
    return did(vm, "boot", e);
}
int vm_put_drive(struct vm *vm, const struct drive_cfg *c, struct passed_fds *fds, struct err *e)
{
    if (cfg_check_id(c->drive_id, "drive_id", e) != 0)
        return -EINVAL;
    vm->nfds = fds ? fds->n : 0;
    if (!fds && strncmp(c->path_on_host, "fd:", 3) == 0)
        return err_set(e, EINVAL, "path_on_host: no descriptor in a file");
    if (fds && strncmp(c->path_on_host, "fd:", 3) == 0) {
        unsigned n = (unsigned)atoi(c->path_on_host + 3);
        if (n >= fds->n)
            return err_set(e, EINVAL, "path_on_host: no such descriptor");
        vm->taken = steal_fd(&fds->fd[n]);
    }
    vm->cfg.drives[vm->cfg.ndrives++ % CFG_MAX_DRIVES] = *c;
    return did(vm, "drive", e);
}
int vm_put_net(struct vm *vm, const struct net_cfg *c, struct passed_fds *fds, struct err *e)
{
    (void)fds;
    vm->cfg.nets[vm->cfg.nnets++ % CFG_MAX_NETS] = *c;
    return did(vm, "net", e);
}
int vm_put_logger(struct vm *vm, const struct logger_cfg *c, struct passed_fds *fds, struct err *e)
{
    (void)fds;
    vm->cfg.logger = *c;
    vm->cfg.has_logger = true;
    return did(vm, "logger", e);
}
int vm_put_metrics(struct vm *vm, const struct metrics_cfg *c, struct passed_fds *fds,
                   struct err *e)
{
    (void)fds;
    vm->cfg.metrics = *c;
    vm->cfg.has_metrics = true;
    return did(vm, "metrics", e);
}
int vm_put_serial(struct vm *vm, const struct serial_cfg *c, struct passed_fds *fds, struct err *e)
{
    (void)fds;
    vm->cfg.serial = *c;
    vm->cfg.has_serial = true;
    return did(vm, "serial", e);
}
bool vm_guest_ready(const struct vm *vm, bool here)
{
    (void)vm, (void)here;
    return false;
}
void vm_hold(struct vm *vm)
{
    vm->held = true;
}
void vm_release(struct vm *vm)
{
    char c;
    vm->early += vm->held && vm->peer > 0 && recv(vm->peer, &c, 1, MSG_PEEK | MSG_DONTWAIT) != 1;
    atomic_fetch_add(&vm->freed, vm->held);
    vm->held = false;
}
int vm_start(struct vm *vm, struct err *e)
{
    int r = did(vm, "start", e);
    vm->state = r ? vm->state : VM_RUNNING;
    return r;
}
int vm_pause(struct vm *vm, struct err *e)
{
    usleep(vm->pause_ms * 1000);
    vm->state = VM_PAUSED;
    return did(vm, "pause", e);
}
int vm_resume(struct vm *vm, struct err *e)
{
    vm->state = VM_RUNNING;
    return did(vm, "resume", e);
}
int vm_ctrl_alt_del(struct vm *vm, struct err *e)
{
    return did(vm, "cad", e);
}
int vm_flush_metrics(struct vm *vm, struct err *e)
{
    return did(vm, "flush", e);
}
int vm_patch_drive(struct vm *vm, const char *id, const char *path, const struct limiter_cfg *rl,
                   struct passed_fds *fds, struct err *e)
{
    (void)id, (void)fds;
    snprintf(vm->path, sizeof(vm->path), "%s", path ? path : "");
    vm->had_rx = rl != NULL;
    return did(vm, "patch_drive", e);
}
int vm_patch_net(struct vm *vm, const char *id, const struct limiter_cfg *rx,
                 const struct limiter_cfg *tx, struct err *e)
{
    (void)id;
    vm->had_rx = rx != NULL;
    vm->had_tx = tx != NULL;
    return did(vm, "patch_net", e);
}

int snapshot_create(struct vm *vm, const struct snapshot_create *c, struct passed_fds *fds,
                    struct err *e)
{
    (void)vm, (void)c, (void)fds;
    return err_set(e, ENOTSUP, "no snapshots here");
}

int snapshot_working_set(struct vm *vm, const struct snapshot_working_set *c,
                         struct passed_fds *fds, struct err *e)
{
    (void)vm, (void)c, (void)fds;
    return err_set(e, ENOTSUP, "no snapshots here");
}

int snapshot_load(struct vm *vm, const struct snapshot_load *l, struct passed_fds *fds,
                  struct err *e)
{
    (void)vm, (void)l, (void)fds;
    return err_set(e, ENOTSUP, "no snapshots here");
}

#define NO_MIGRATION(name, type)                                                         \
    int name(struct vm *vm, const struct type *c, struct passed_fds *fds, struct err *e) \
    {                                                                                    \
        (void)vm, (void)c, (void)fds;                                                    \
        return err_set(e, ENOTSUP, "no migration here");                                 \
    }
NO_MIGRATION(migration_send, migration_send)
NO_MIGRATION(migration_receive, migration_receive)
NO_MIGRATION(migration_recover, migration_channels)

int migration_cancel(struct vm *vm, struct err *e)
{
    return did(vm, "migration_cancel", e);
}
int migration_finalize(struct vm *vm, struct err *e)
{
    return did(vm, "migration_finalize", e);
}
const struct migration_status *migration_status(struct vm *vm, const char **why)
{
    (void)vm;
    *why = "";
    return NULL;
}
int migration_refuse(struct vm *vm, struct err *e)
{
    (void)vm, (void)e;
    return 0;
}

#endif
