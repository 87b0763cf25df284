// SPDX-License-Identifier: Apache-2.0
// CPUID: the table a guest sees, made once per VM from what KVM supports, with per-vCPU ids set in
// place; modifiers from /cpu-config; and the comparison of a recorded table with this host.
//
// What a snapshot cannot carry is not shown: no nested virtualization, no PMU, no SGX, no processor
// trace, no supervisor shadow stacks. Pure functions on plain data but for cpuid_supported and
// cpuid_set. Any thread.
#ifndef VMM_VCPU_CPUID_H
#define VMM_VCPU_CPUID_H

#include <linux/kvm.h>

#include "vmm/base.h"

#define CPUID_MAX     256 // KVM_MAX_CPUID_ENTRIES of x86
#define CPUID_MAX_MOD 128

struct cpuid_table { // laid out as struct kvm_cpuid2: handed to KVM as it is
    uint32_t nent, padding;
    struct kvm_cpuid_entry2 e[CPUID_MAX];
};

struct cpuid_topology {
    uint32_t vcpus;    // 1 to CFG_MAX_VCPUS
    bool smt;          // two threads per core
    bool tsc_deadline; // KVM_CAP_TSC_DEADLINE_TIMER
    uint32_t tsc_khz;  // for the timing leaf 0x40000010; 0: unknown, no leaf
};

enum cpuid_reg { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

struct cpuid_mod { // reg = (reg & ~filter) | (value & filter)
    uint32_t leaf, subleaf;
    enum cpuid_reg reg;
    uint32_t filter, value;
};

struct msr_mod {
    uint32_t index;
    uint64_t filter, value;
};

struct cpu_mods { // PUT /cpu-config, as plain data
    unsigned ncpuid, nmsr;
    struct cpuid_mod cpuid[CPUID_MAX_MOD];
    struct msr_mod msr[CPUID_MAX_MOD];
};

// KVM_GET_SUPPORTED_CPUID on /dev/kvm: once per process.
int cpuid_supported(int kvm_fd, struct cpuid_table *t, struct err *e);

// Makes the VM's table. The ids in it are those of vCPU 0.
int cpuid_build(const struct cpuid_table *supported, const struct cpuid_topology *topo,
                struct cpuid_table *t, struct err *e);

// Takes out what no guest is shown; cpuid_build does so, too. cpuid_hides: the whole leaf is.
void cpuid_hide(struct cpuid_table *t);
bool cpuid_hides(uint32_t leaf);

// Sets the leaves that tell a vCPU who it is (its index is its x2APIC id). In place, microseconds.
void cpuid_set_id(struct cpuid_table *t, uint32_t id);

// KVM_SET_CPUID2. Before the vCPU's first KVM_RUN.
int cpuid_set(int vcpu_fd, const struct cpuid_table *t, struct err *e);

// NULL when absent. For leaves without subleaves, subleaf is not looked at.
struct kvm_cpuid_entry2 *cpuid_find(struct cpuid_table *t, uint32_t leaf, uint32_t subleaf);
const struct kvm_cpuid_entry2 *cpuid_get(const struct cpuid_table *t, uint32_t leaf,
                                         uint32_t subleaf);

// -EINVAL names the leaf that the table lacks; the table is then unchanged.
int cpuid_apply_modifiers(struct cpuid_table *t, const struct cpuid_mod *m, unsigned n,
                          struct err *e);

// A recorded table, hostile: sizes and flags. -EINVAL.
int cpuid_check(const struct cpuid_table *t, struct err *e);

// Refuses (-ENOTSUP) what the record has and the host has not: vendor, physical address width, the
// first missing feature by name (bits that have none by their place), a hidden leaf, the place of XSAVE components, XCR0
// bits. `host` is what cpuid_hide leaves; xcr0: what any vCPU has set. tsc_khz 0 in either: not compared; tsc_scaling: the
// host can run a guest at another frequency.
int vcpu_host_compare(const struct cpuid_table *recorded, uint64_t xcr0, uint32_t tsc_khz,
                      const struct cpuid_table *host, uint32_t host_tsc_khz, bool tsc_scaling,
                      struct err *e);

// Whether two frequencies are one within 250 ppm, what NTP may slew: no scaling needed.
bool tsc_khz_close(uint32_t a, uint32_t b);

#endif
