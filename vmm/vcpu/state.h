// SPDX-License-Identifier: Apache-2.0
// What a vCPU is between two instructions, as plain data: save, check, load, in KVM's order.
//
// Control thread, with every vCPU parked and no access pending. vcpu_state_load is for a vCPU that
// never ran and has its CPUID set; guest memory and whoever serves its faults come first, since
// clock and steal-time MSRs make KVM touch guest pages. Source: KVM API section 4; the order is
// explained in state.c.
#ifndef VMM_VCPU_STATE_H
#define VMM_VCPU_STATE_H

#include <linux/kvm.h>

#include "vmm/vcpu/cpuid.h"

#define VCPU_MAX_MSRS  96
#define VCPU_XSAVE_MAX 12288 // AVX-512, PKRU and AMX tiles are 11008 bytes

struct vcpu_msr {
    uint32_t index;
    uint64_t value;
};

// What this host's KVM can save: found once, on a vCPU whose CPUID is set.
struct vcpu_caps {
    uint32_t xsave_size; // bytes of KVM_GET_XSAVE2; 4096 where there is only KVM_GET_XSAVE
    bool xsave2, xcrs, debugregs, tsc_khz, tsc_scaling;
    uint32_t host_tsc_khz; // 0: unknown
    uint32_t nmsrs;
    uint32_t msr[VCPU_MAX_MSRS]; // allow-listed and readable here, in the order of loading
};

struct vcpu_state {
    uint32_t mp_state;    // KVM_MP_STATE_*
    uint32_t tsc_khz;     // 0: unknown
    uint64_t realtime_ns; // CLOCK_REALTIME when the TSC was read
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_debugregs debugregs; // zero where KVM has none
    struct kvm_xcrs xcrs;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    uint32_t nmsrs;
    struct vcpu_msr msr[VCPU_MAX_MSRS];
    uint32_t xsave_size;
    _Alignas(64) uint8_t xsave[VCPU_XSAVE_MAX]; // zero past xsave_size
};

struct vm_clock { // kvmclock of the VM
    uint64_t clock_ns;
    uint64_t realtime_ns; // CLOCK_REALTIME at the same moment
};

int vcpu_caps_get(int kvm_fd, int vm_fd, int vcpu_fd, struct vcpu_caps *c, struct err *e);

int vcpu_state_save(int vcpu_fd, const struct vcpu_caps *c, struct vcpu_state *s, struct err *e);
// advance: the TSC has run on since the save, by wall-clock time, else it goes on where it stopped.
// any_cpu: MSRs that this host lacks are left out, and so is what its XSAVE area has no room for (KVM refuses the latter
// if the guest uses it).
int vcpu_state_load(int vcpu_fd, const struct vcpu_caps *c, const struct vcpu_state *s,
                    bool advance, bool any_cpu, struct err *e);

// Judges a state that came from outside before anything of it reaches KVM: sizes, counts, ranges,
// each MSR allow-listed and there once. With caps (NULL: not asked) also what this host cannot
// take: a non-zero MSR it lacks, a larger XSAVE area. -EINVAL or -ENOTSUP, named.
int vcpu_state_check(const struct vcpu_state *s, const struct vcpu_caps *c, struct err *e);

// The TSC of a saved state at `realtime_ns` (a guest that was away must not see its TSC and kvmclock
// disagree, nor a migration hide its own downtime). Never backwards. 0: the state has none.
uint64_t vcpu_tsc_at(const struct vcpu_state *s, uint64_t realtime_ns);

// NULL when the state lacks it.
const struct vcpu_msr *vcpu_state_msr(const struct vcpu_state *s, uint32_t index);

// KVM_KVMCLOCK_CTRL: tells a paused guest's watchdogs that time passed. A guest without kvmclock is
// no error; the return value is only to be counted.
int vcpu_tell_paused(int vcpu_fd);

// PUT /cpu-config, on a vCPU that never ran. -EINVAL names the MSR.
int vcpu_apply_msr_modifiers(int vcpu_fd, const struct vcpu_caps *c, const struct msr_mod *m,
                             unsigned n, struct err *e);

int vm_clock_save(int vm_fd, struct vm_clock *c, struct err *e);
// After every vcpu_state_load, right before the vCPUs run. advance: kvmclock has run on since the
// save, by wall-clock time; else it goes on where it stopped.
int vm_clock_load(int vm_fd, const struct vm_clock *c, bool advance, struct err *e);

#endif
