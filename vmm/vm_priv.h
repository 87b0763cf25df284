// SPDX-License-Identifier: Apache-2.0
// struct vm, for vmm/ alone. Who owns a field is said beside it: C control thread, D device thread
// (C while paused or not started), V any vCPU thread (C while parked), L locks itself.
#ifndef VMM_VM_PRIV_H
#define VMM_VM_PRIV_H

#include <stdatomic.h>
#include <termios.h>

#include "virtio/blk.h"
#include "virtio/net.h"
#include "vmm/boot/boot.h"
#include "vmm/dev/dev.h"
#include "vmm/helper.h"
#include "vmm/log.h"
#include "vmm/loop.h"
#include "vmm/mem/mem.h"
#include "vmm/metrics.h"
#include "vmm/state.h"
#include "vmm/vcpu/state.h"
#include "vmm/vcpu/vcpu.h"
#include "vmm/vm.h"

// The static device table: two kinds of device, and no third.
enum slot_kind { SLOT_EMPTY, SLOT_BLK, SLOT_NET, SLOT_KINDS };
_Static_assert(SLOT_KINDS - 1 == 2, "the device table has two entries");

struct dev_slot {
    enum slot_kind kind;
    unsigned cfg;      // index into cfg.drives or cfg.nets
    struct vio_dev *d; // of blk or net
    struct blk *blk;
    struct net *net;
    int kick_fd;   // ioeventfd
    int kick_file; // its place in the ring's table
};

#define SPARE_SOCKS 4 // connections to page servers that loads may make, all but the last in vain

struct disk { // what a drive's path opened to, locked
    int fd, cow_fd;
    uint64_t bytes;
    char id[20];
};

struct vm {
    struct vm_opts opts;           // C
    struct vm_config cfg;          // C
    enum vm_state state;           // C
    struct log log;                // L
    struct vm_metrics metrics;     // atomics
    uint64_t t_new, t_new_cpu;     // C: clocks at vm_new, for the boot timer
    uint64_t t_start, t_start_cpu; // C before the start, then read-only

    int kvm_fd, vm_fd;                    // C
    size_t run_size;                      // C
    struct cpuid_table cpuid_host, cpuid; // C: what KVM supports, what the guest sees
    struct {                              // C: KVM being asked for the former, while the VM is made
        pthread_t thread;
        bool on;
        int rc;
        struct err err;
    } cpuid_ask;
    struct vcpu_caps caps;     // C: of vCPU state, as this host has them
    struct cpu_mods *mods;     // C: /cpu-config, or NULL
    struct guest_mem mem;      // map: C while quiet; bytes: the guest's
    uint64_t *dirty_log;       // C: scratch for KVM's log while pages are tracked
    struct vm_lineage lineage; // C
    int spare_sock
        [SPARE_SOCKS]; // C: unconnected, AF_UNIX, until the microVM is configured; -1: used
    struct machine_cfg before_load; // C: what a failed load goes back to
    struct vcpu_gate gate;          // L
    struct vcpu vcpu[CFG_MAX_VCPUS];
    unsigned nvcpus; // C
    bool armed;      // threads exist
    bool held, owed; // vm_hold: vCPUs are not woken; they are at vm_release

    struct helper helper;               // jobs from C
    struct loop loop;                   // D, with calls from any
    struct vio_host host;               // const after vm_new
    struct dev_slot slot[CFG_MAX_DEVS]; // table: C while quiet; devices: D
    unsigned nslots;
    struct ioapic ioapic;            // L
    struct serial serial;            // L
    struct i8042 i8042;              // L
    int serial_out, serial_out_file; // D
    int serial_in, serial_in_file;   // D; -1: none
    struct limiter serial_limit;     // D
    uint8_t serial_buf[512];         // D: taken from the port, not yet written
    size_t serial_held;              // D
    struct termios tty;
    bool tty_raw; // C

    int kernel_fd, initrd_fd;         // C
    struct disk disk[CFG_MAX_DRIVES]; // C until the start, beside cfg.drives
    int tap[CFG_MAX_NETS];            // C until the start

    int exit_fd, metrics_fd; // C
    int helper_fd;           // wakes the helper
    struct {                 // see vmm/handover.h
        int (*fn)(void *);
        void *arg;
        int rc;
        _Atomic int state;
    } ask;
    void *migration;     // C: snapshot/'s
    bool disks_unlocked; // C
    unsigned announced;  // D: rounds of announcements so far
    _Atomic int ended;   // 0, or 1 + enum vm_exit
    char end_text[200];  // written by the one who set `ended`
    _Atomic bool ready;
    _Atomic bool pvm;
};

// kvm.c: the VM in KVM.
int kvm_ask(struct vm *vm, struct err *e);                        // /dev/kvm, its CPUID under way
int kvm_open(struct vm *vm, struct err *e);                       // VM, split irqchip
int kvm_set_memory(struct vm *vm, uint64_t bytes, struct err *e); // reservation and slots
int kvm_log_dirty(struct vm *vm, struct err *e);                  // as cfg.machine says
int kvm_set_cpus(struct vm *vm, struct err *e);                   // CPUID of all, modified by mods
int kvm_add_vcpus(struct vm *vm, unsigned n, struct err *e); // from nvcpus to n, CPUID set for n
int kvm_ioeventfd(struct vm *vm, unsigned slot, bool on, struct err *e);
void kvm_msi(void *vm, uint64_t addr, uint32_t data); // any thread
bool kvm_is_pvm(void);                                // KVM that works without VMX or SVM
void kvm_close(struct vm *vm);

// platform.c: what vCPU exits reach, and legacy devices' wiring.
extern const struct vcpu_ops platform_vcpu_ops;
void platform_init(struct vm *vm);
void platform_reset(struct vm *vm); // (D), no vCPU runs: legacy devices as at power-on
int platform_log_fd(
    void); // standard output, where it could block by a description of its own that does not
int platform_serial_open(struct vm *vm, const char *path, struct passed_fds *fds, struct err *e);
void platform_serial_attach(struct vm *vm); // (D) at the start of the device thread's life
void platform_serial_close(struct vm *vm);
void platform_serial_ready(void *vm);      // (D) ops->serial
void platform_serial_event(struct vm *vm); // (D) a poll or timer of SLOT_SERIAL fired

// devices.c: the device table, and services of the monitor for virtio.
extern const struct loop_ops devices_loop_ops;
#define SLOT_SERIAL   CFG_MAX_DEVS       // pseudo slot: stdin, serial output, its limiter
#define SLOT_METRICS  (CFG_MAX_DEVS + 1) // pseudo slot: a line of metrics every minute
#define SLOT_ANNOUNCE (CFG_MAX_DEVS + 2) // pseudo slot: announcements after a migration
void devices_init(struct vm *vm);
int devices_create(struct vm *vm, struct err *e); // from cfg and the descriptors opened for it
// Ioeventfds, files given to the ring, kicks watched; then `then` (unless NULL) on the device thread.
int devices_attach(struct vm *vm, int (*then)(void *), void *arg, struct err *e);
int devices_quiesce(struct vm *vm); // returns when nothing is in flight
void devices_resume(struct vm *vm);
void devices_free(struct vm *vm);
struct dev_slot *devices_find(struct vm *vm, enum slot_kind kind, const char *id);
unsigned devices_layout(const struct vm *vm, struct boot_dev out[CFG_MAX_DEVS]);

// paths.c: the only opener of paths.
int path_open_sink(
    struct vm *vm, const char *path, const char *field, struct passed_fds *fds,
    struct err *e); // log, metrics, serial: made when absent, may be a FIFO, never blocks
int path_open_tun(struct vm *vm, const char *name, struct passed_fds *fds, struct err *e);

// end.c
void vm_catch_sigbus(void);

// vm.c
#define MEMORY_GONE "guest memory is gone: its file was cut short, or its page server ended"
int vm_configured(struct vm *vm,
                  struct err *e);  // helper parked, control thread's final filter stacked
void vm_drop_disks(struct vm *vm); // closes what was opened for drives and interfaces
void vm_go(struct vm *vm);         // devices are ready: vCPUs run
int vm_rebuild(struct vm *vm, struct err *e); // the VM in KVM made anew for cfg.machine
void vm_end(struct vm *vm, enum vm_exit how, const char *text); // any thread; the first one counts
int vm_refuse_state(struct vm *vm, bool want_started, struct err *e);

// count.c
void vm_emit_metrics(struct vm *vm); // (D), or C while no device thread runs
int vm_metrics_round(void *vm); // (D) a line now, and the next in a minute // metrics_fd is open

#endif
