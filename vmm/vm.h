// SPDX-License-Identifier: Apache-2.0
// One microVM and its life: the leaf header that api-socket/ and snapshot/ stand on.
//
//   vm_new ── vm_put_* (configure) ──> vm_start ──> Running <── vm_pause / vm_resume ──> Paused
//      └────── vm_load_* (snapshot) ───────────────────────────────^
//
// Every function here is for the control thread alone, unless it says otherwise. A function that
// fails returns -errno, says in *e which field is wrong and why, and leaves the microVM as it was.
// Wrong state (configuring a started VM, pausing one that was not started) is -EPERM with
// Firecracker's sentence.
//
// Everything that does not depend on the request is built by vm_new: /dev/kvm, the VM, its vCPUs,
// its threads, the ring. vm_put_machine rebuilds what its size changes, so that vm_start and a
// snapshot load find all of it ready.
//
// Pause is one handshake: vCPUs leave KVM_RUN (immediate_exit and a signal), the device thread
// drains what is in flight and parks. From then until resume the control thread owns every state
// there is.
#ifndef VMM_VM_H
#define VMM_VM_H

#include "vmm/config.h"
#include "vmm/vcpu/cpuid.h"

struct vm;
struct vm_metrics;

enum vm_state { VM_NOT_STARTED, VM_RUNNING, VM_PAUSED };

// How the process ends; the value is its exit status.
enum vm_exit {
    VM_EXIT_OK = 0,       // guest powered off, rebooted, Ctrl-Alt-Del; or SIGTERM, SIGINT, SIGHUP
    VM_EXIT_FAILURE = 1,  // set-up failed
    VM_EXIT_ARGS = 153,   // command line
    VM_EXIT_CONFIG = 152, // configuration file
    VM_EXIT_GUEST = 3,    // KVM gave up on the guest: internal error, failed emulation
    VM_EXIT_HOST = 4,   // the host failed the monitor: a vCPU or the device thread could not go on
    VM_EXIT_MEMORY = 5, // a memory file shrank under a running guest, or its page server died
};

// Threads and descriptors by the names that filters know them by; vmm/main.c maps them to jail/.
enum vm_thread { VM_THREAD_VCPU, VM_THREAD_DEVICE, VM_THREAD_CONTROL, VM_THREAD_HELPER };
enum vm_fd { VM_FD_KVM, VM_FD_VM, VM_FD_RING, VM_FD_UFFD, VM_FD_VCPU };

struct handed_tap { // an attached tap that came open with the process
    const char *name;
    int fd;
};

struct vm_opts {
    char id[CFG_ID_MAX + 1];
    bool boot_timer;
    const char *const *allow_dirs; // --allow-dir, absolute
    const int *allow_fds;          // the same, opened O_PATH | O_DIRECTORY
    unsigned nallow;
    int pagemap_fd; // /proc/self/pagemap, or 0: snapshots read all of memory
    int uffd_info;  // /proc/self/fdinfo of VM_FD_UFFD, or 0
    int uffd_dev;   // /dev/userfaultfd, or 0: no memory behind it
    int kvm_fd;     // /dev/kvm as handed in, or 0: opened by vm_new
    int serial_out; // where the guest's console goes unless serial_out_path says otherwise; -1:
                    // nowhere
    int serial_in;  // a terminal or pipe the console reads, or -1
    const struct handed_tap *taps; // taken before /dev/net/tun is asked; outlive the vm
    unsigned ntaps;
    uint64_t start_time_us, start_cpu_us, parent_cpu_us;
    // Confines the calling thread, and moves a descriptor to its fixed number (index: vCPU). NULL:
    // no-op.
    int (*confine)(enum vm_thread kind, struct err *e);
    int (*pin)(int fd, enum vm_fd which, unsigned index, struct err *e);
};

// Builds everything but threads, so that the caller can give privileges up in between; vm_arm then
// starts the device thread and vCPU 0, each of which confines itself first.
int vm_new(struct vm **out, const struct vm_opts *o, struct err *e);
int vm_arm(struct vm *vm, struct err *e);
// Orderly end: vCPUs and device thread stopped, ring left and files unregistered before any
// descriptor is given back, so that a successor finds its taps and locks free.
void vm_free(struct vm *vm);

const char *vm_id(const struct vm *vm);
enum vm_state vm_state(const struct vm *vm);
const struct vm_config *vm_config(const struct vm *vm);
// The guest wrote the ready port; here: since this process started or loaded it, so that a clone tells its own.
bool vm_guest_ready(const struct vm *vm, bool here);

// Readable when the microVM has ended (any thread may have ended it); then vm_exit_status tells
// how. Also when the helper asks for something: then vm_ended is false, and vm_answer's turn is come.
int vm_exit_fd(const struct vm *vm);
// Ends it as VM_EXIT_OK, unless it ended before.
void vm_stop(struct vm *vm, const char *why);
bool vm_ended(const struct vm *vm);
enum vm_exit vm_exit_status(const struct vm *vm, const char **why);

// ---- before the start
// Paths are opened here, through `fds` when they read "fd:N" (fds NULL: fd:N is refused).

int vm_put_machine(struct vm *vm, const struct machine_cfg *c, struct err *e);
// CPUID and MSR modifiers, all or none of them; a later call replaces an earlier one.
int vm_put_cpu(struct vm *vm, const struct cpu_mods *m, struct err *e);
int vm_put_boot(struct vm *vm, const struct boot_cfg *c, struct passed_fds *fds, struct err *e);
int vm_put_drive(struct vm *vm, const struct drive_cfg *c, struct passed_fds *fds, struct err *e);
int vm_put_net(struct vm *vm, const struct net_cfg *c, struct passed_fds *fds, struct err *e);
int vm_put_logger(struct vm *vm, const struct logger_cfg *c, struct passed_fds *fds, struct err *e);
int vm_put_metrics(struct vm *vm, const struct metrics_cfg *c, struct passed_fds *fds,
                   struct err *e);
int vm_put_serial(struct vm *vm, const struct serial_cfg *c, struct passed_fds *fds, struct err *e);

// ---- life cycle

int vm_start(struct vm *vm, struct err *e);
int vm_pause(struct vm *vm, struct err *e);  // idempotent
int vm_resume(struct vm *vm, struct err *e); // idempotent
// A start, load or resume between the two wakes its vCPUs in vm_release, so that the caller can answer first:
// a woken vCPU may take the very processor that the answer would be written on.
void vm_hold(struct vm *vm);
void vm_release(struct vm *vm);
int vm_ctrl_alt_del(struct vm *vm, struct err *e);
int vm_flush_metrics(struct vm *vm, struct err *e);
void vm_flush_console(struct vm *vm); // what the guest wrote last, as far as the reader takes it

// ---- after the start
// path: NULL leaves the image, rl NULL (or absent buckets) the limits.

int vm_patch_drive(struct vm *vm, const char *id, const char *path, const struct limiter_cfg *rl,
                   struct passed_fds *fds, struct err *e);
int vm_patch_net(struct vm *vm, const char *id, const struct limiter_cfg *rx,
                 const struct limiter_cfg *tx, struct err *e);

// ---- counters the API keeps

enum vm_api_kind { API_GET, API_PUT, API_PATCH };
// Counts an answered request under `what` ("drive", "machine_cfg", ...: Firecracker's metric
// names).
void vm_count_api(struct vm *vm, enum vm_api_kind kind, const char *what, bool failed,
                  uint64_t took_us);
struct log *vm_log(struct vm *vm);

#endif
