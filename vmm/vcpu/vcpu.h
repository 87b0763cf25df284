// SPDX-License-Identifier: Apache-2.0
// vmm/vcpu: one thread per vCPU, its KVM_RUN loop and its exits.
//
// A vCPU thread is in one of three places: parked at its gate, inside KVM_RUN, or serving an exit.
// The control thread moves it: vcpu_park stops all and returns when every thread is parked, with
// port and MMIO accesses completed (KVM finishes a pending access at the next KVM_RUN, so a thread
// parks only after an immediate exit); vcpu_go lets them run; vcpu_stop ends and joins them. While
// parked, registers belong to the control thread. Source: KVM API, sections 4.10 and 5
// (immediate_exit, exit reasons).
#ifndef VMM_VCPU_VCPU_H
#define VMM_VCPU_VCPU_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "vmm/base.h"

struct kvm_run;
struct vcpu;

#define VCPU_KICK_SIG SIGUSR1 // no-op handler without SA_RESTART: gets a thread out of KVM_RUN
#define VCPU_TICK_SIG SIGUSR2 // per-thread CPU-time timer: 5 s of guest execution have passed

enum vcpu_end {
    VCPU_END_RESET,    // triple fault or system reset: the guest is done
    VCPU_END_INTERNAL, // KVM_EXIT_INTERNAL_ERROR, failed entry or emulation: KVM gave up on the
                       // guest
    VCPU_END_HOST,     // KVM_RUN itself failed
    VCPU_END_MEMORY,   // memory behind the guest went away
};

// What exits need from the monitor. Called on the vCPU's thread.
struct vcpu_ops {
    void (*pio)(void *ctx, uint16_t port, bool write, unsigned len, uint8_t *data);
    void (*mmio)(void *ctx, uint64_t addr, bool write, unsigned len, uint8_t *data);
    void (*end)(void *ctx, struct vcpu *v, enum vcpu_end why, const char *text);
    void (*stalled)(void *ctx, struct vcpu *v,
                    uint64_t rip);             // no exit, same RIP for 10 s of CPU time
    int (*started)(void *ctx, struct vcpu *v); // first thing on the thread: its filter
};

enum vcpu_mode { VCPU_PARK, VCPU_RUN, VCPU_QUIT };

struct vcpu_gate { // shared by all vCPUs of a VM
    pthread_mutex_t lock;
    pthread_cond_t move; // mode changed
    pthread_cond_t idle; // a thread parked
    enum vcpu_mode mode;
    bool halted; // it never opens again
    unsigned parked;
};

struct vcpu {
    unsigned id;
    int fd;
    struct kvm_run *run;
    size_t run_size;
    pthread_t thread;
    bool has_thread;
    pid_t pid;         // of the process, for tgkill
    _Atomic pid_t tid; // 0 until the thread is about to reach its gate
    bool done;         // reported its end: stays parked whatever the gate says
    timer_t timer;
    bool has_timer;
    struct vcpu_gate *gate;
    const struct vcpu_ops *ops;
    void *ctx;
    time_t tick_due; // thread CPU time of the next look, in seconds
    uint64_t tick_rip, tick_exits;
    uint64_t exits; // owned by the thread
    _Atomic uint64_t n_pio_in, n_pio_out, n_mmio_read, n_mmio_write, n_failures;
};

void vcpu_gate_init(struct vcpu_gate *g);

// Creates vCPU `id` on vm_fd at descriptor `fd_slot` or anywhere when that is -1, and maps its
// kvm_run. Errors: KVM's.
int vcpu_create(struct vcpu *v, int vm_fd, unsigned id, size_t run_size, struct vcpu_gate *g,
                const struct vcpu_ops *ops, void *ctx, struct err *e);
// Starts its thread, parked.
int vcpu_thread(struct vcpu *v, struct err *e);
void vcpu_destroy(struct vcpu *v); // thread gone

// Signal handlers and the blocked-signal set of the process: once, before the first thread.
int vcpu_signals(struct err *e);

void vcpu_go(struct vcpu *all, unsigned n);
void vcpu_park(struct vcpu *all, unsigned n);
// Any thread, also a vCPU's: nobody enters the guest again after the exit under way. Waits for nobody.
void vcpu_halt(struct vcpu *all, unsigned n);
// Parks, ends and joins all threads; last: the process ends, too.
void vcpu_stop(struct vcpu *all, unsigned n, bool last);

// Register state of a first instruction: 32-bit protected mode as PVH wants it, or 64-bit long mode
// as Linux does (segments and page tables as vmm/boot laid them out).
int vcpu_set_boot_regs(int fd, bool long_mode, uint64_t rip, uint64_t rsi_or_rbx, uint64_t rsp,
                       uint64_t cr3, uint64_t gdt, uint64_t idt, struct err *e);

#endif
