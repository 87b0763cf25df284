// SPDX-License-Identifier: Apache-2.0
// Makes and edits the CPUID table a guest sees.
#include <sys/ioctl.h>

#include "vmm/vcpu/cpuid.h"

// #syscalls:config ioctl(KVM_GET_SUPPORTED_CPUID@KVM)
// #syscalls:config ioctl(KVM_SET_CPUID2@VCPU)

_Static_assert(offsetof(struct cpuid_table, e) == sizeof(struct kvm_cpuid2),
               "struct cpuid_table is handed to KVM as struct kvm_cpuid2");

#define BIT(n) (1u << (n))

#define HIDE_LEAF 0xffffffffu

// Hidden because their state is not saved: a guest that used them would not survive a snapshot.
static const struct {
    uint32_t leaf, subleaf;
    enum cpuid_reg reg;
    uint32_t bits;
} hidden[] = {
    {0x1, 0, CPUID_ECX, BIT(2) | BIT(5) | BIT(15)},           // DTES64, VMX, PDCM
    {0x1, 0, CPUID_EDX, BIT(21)},                             // DS
    {0x7, 0, CPUID_EBX, BIT(2) | BIT(14) | BIT(25)},          // SGX, MPX, PT
    {0x7, 0, CPUID_ECX, BIT(7) | BIT(30) | BIT(31)},          // SHSTK, SGX_LC, PKS
    {0x7, 0, CPUID_EDX, BIT(19) | BIT(20)},                   // ARCH_LBR, IBT
    {0xd, 0, CPUID_EAX, BIT(3) | BIT(4) | BIT(17) | BIT(18)}, // MPX, AMX
    {0xd, 1, CPUID_EAX, BIT(4)},                              // XFD
    {0xd, 1, CPUID_ECX, HIDE_LEAF},                           // supervisor states
    {0xd, 1, CPUID_EDX, HIDE_LEAF},
    {0x7, 0, CPUID_EDX, BIT(22) | BIT(24) | BIT(25)},                 // AMX
    {0x80000001, 0, CPUID_ECX, BIT(2) | BIT(10) | BIT(23) | BIT(24)}, // SVM, IBS, PERFCTR
};

static const uint32_t hidden_leaf[] = {
    0xa, 0x12, 0x14, 0x1c, 0x1d, 0x1e, 0x8000000a, 0x8000001b, 0x80000022, 0x80000026,
};

int cpuid_supported(int kvm_fd, struct cpuid_table *t, struct err *e)
{
    memset(t, 0, sizeof(*t));
    t->nent = CPUID_MAX;
    if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, t) < 0)
        return err_set(e, errno, "KVM_GET_SUPPORTED_CPUID: %s", strerror(errno));
    return 0;
}

int cpuid_set(int vcpu_fd, const struct cpuid_table *t, struct err *e)
{
    if (ioctl(vcpu_fd, KVM_SET_CPUID2, t) < 0)
        return err_set(e, errno, "KVM_SET_CPUID2: %s", strerror(errno));
    return 0;
}

const struct kvm_cpuid_entry2 *cpuid_get(const struct cpuid_table *t, uint32_t leaf,
                                         uint32_t subleaf)
{
    for (uint32_t i = 0; i < t->nent; i++) {
        const struct kvm_cpuid_entry2 *x = &t->e[i];
        bool indexed = x->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        if (x->function == leaf && (!indexed || x->index == subleaf))
            return x;
    }
    return NULL;
}

struct kvm_cpuid_entry2 *cpuid_find(struct cpuid_table *t, uint32_t leaf, uint32_t subleaf)
{
    const struct kvm_cpuid_entry2 *x = cpuid_get(t, leaf, subleaf);
    return x ? &t->e[x - t->e] : NULL;
}

static uint32_t *reg_of(struct kvm_cpuid_entry2 *x, enum cpuid_reg r)
{
    uint32_t *const reg[] = {&x->eax, &x->ebx, &x->ecx, &x->edx};
    return reg[r];
}

static struct kvm_cpuid_entry2 *add(struct cpuid_table *t, uint32_t leaf, uint32_t subleaf,
                                    bool indexed)
{
    if (t->nent == CPUID_MAX)
        return NULL;
    struct kvm_cpuid_entry2 *x = &t->e[t->nent++];
    *x = (struct kvm_cpuid_entry2){
        .function = leaf, .index = subleaf, .flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0};
    return x;
}

static void drop_leaf(struct cpuid_table *t, uint32_t leaf)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->nent; i++)
        if (t->e[i].function != leaf)
            t->e[n++] = t->e[i];
    memset(&t->e[n], 0, (t->nent - n) * sizeof(t->e[0]));
    t->nent = n;
}

static uint32_t order(uint32_t n) // smallest k with 2^k >= n
{
    uint32_t k = 0;
    while (BIT(k) < n)
        k++;
    return k;
}

bool cpuid_hides(uint32_t leaf)
{
    for (size_t i = 0; i < ARRAY_SIZE(hidden_leaf); i++)
        if (hidden_leaf[i] == leaf)
            return true;
    return false;
}

void cpuid_hide(struct cpuid_table *t)
{
    for (size_t i = 0; i < ARRAY_SIZE(hidden); i++) {
        struct kvm_cpuid_entry2 *x = cpuid_find(t, hidden[i].leaf, hidden[i].subleaf);
        if (x)
            *reg_of(x, hidden[i].reg) &= ~hidden[i].bits;
    }
    uint32_t n = 0; // in one go: a load does this, too
    for (uint32_t i = 0; i < t->nent; i++)
        if (!cpuid_hides(t->e[i].function))
            t->e[n++] = t->e[i];
    memset(&t->e[n], 0, (t->nent - n) * sizeof(t->e[0]));
    t->nent = n;
}

// Extended topology, leaves 0xb and 0x1f (SDM vol. 2, CPUID): level 0 threads of a core, level 1
// the package.
static int ext_topology(struct cpuid_table *t, uint32_t leaf, const struct cpuid_topology *topo)
{
    uint32_t threads = topo->smt && topo->vcpus > 1 ? 2 : 1;
    drop_leaf(t, leaf);
    for (uint32_t level = 0; level < 3; level++) {
        struct kvm_cpuid_entry2 *x = add(t, leaf, level, true);
        if (!x)
            return -E2BIG;
        x->ecx = level;
        if (level == 2) // ends the list
            break;
        x->eax = order(level ? topo->vcpus : threads);
        x->ebx = level ? topo->vcpus : threads;
        x->ecx |= (level + 1) << 8;
    }
    return 0;
}

// Cache leaves (4 of Intel, 0x8000001d of AMD): EAX[25:14] is how many ids share the cache, less
// one; the third level is the package's, the ones below the core's.
static void caches(struct cpuid_table *t, const struct cpuid_topology *topo)
{
    uint32_t package = BIT(order(topo->vcpus)) - 1;
    uint32_t core = topo->smt && topo->vcpus > 1 ? 1 : 0;
    for (uint32_t i = 0; i < t->nent; i++) {
        struct kvm_cpuid_entry2 *x = &t->e[i];
        if ((x->function != 4 && x->function != 0x8000001d) || !(x->eax & 0x1f))
            continue;
        uint32_t sharing = (x->eax >> 5 & 7) >= 3 ? package : core;
        x->eax = (x->eax & 0x3fff) | sharing << 14;
        if (x->function == 4) // EAX[31:26]: core ids of the package, less one
            x->eax |= (package >> core) << 26;
    }
}

static int topology(struct cpuid_table *t, const struct cpuid_topology *topo)
{
    bool smt = topo->smt && topo->vcpus > 1;
    struct kvm_cpuid_entry2 *x = cpuid_find(t, 1, 0);
    if (!x)
        return -EINVAL;
    x->ebx = (x->ebx & 0xff00) | BIT(order(topo->vcpus)) << 16;     // keeps the CLFLUSH size
    x->edx = (x->edx & ~BIT(28)) | (topo->vcpus > 1 ? BIT(28) : 0); // HTT: more than one id
    caches(t, topo);
    if ((x = cpuid_find(t, 0x80000008, 0))) // AMD: threads less one, size of their ids
        x->ecx = topo->vcpus > 1 ? (topo->vcpus - 1) | order(topo->vcpus) << 12 : 0;
    if ((x = cpuid_find(t, 0x80000001, 0)) && cpuid_find(t, 0x8000001e, 0)) // CMP_LEGACY of AMD
        x->ecx = (x->ecx & ~BIT(1)) | (topo->vcpus > 1 ? BIT(1) : 0);
    if ((x = cpuid_find(t, 0x8000001e, 0)))
        *x = (struct kvm_cpuid_entry2){.function = 0x8000001e, .ebx = smt ? 1u << 8 : 0};
    if (cpuid_find(t, 0x1f, 0) && ext_topology(t, 0x1f, topo))
        return -E2BIG;
    return ext_topology(t, 0xb, topo);
}

// Timing leaf as VMware defined it and KVM guests read it: EAX the TSC, EBX the APIC bus, in kHz.
static int timing(struct cpuid_table *t, uint32_t tsc_khz)
{
    struct kvm_cpuid_entry2 *x = cpuid_find(t, 0x40000000, 0);
    if (!x || !tsc_khz)
        return 0;
    x->eax = MAX(x->eax, 0x40000010u);
    drop_leaf(t, 0x40000010);
    if (!(x = add(t, 0x40000010, 0, false)))
        return -E2BIG;
    x->eax = tsc_khz;
    x->ebx = 1000000; // KVM's APIC bus runs at 1 GHz
    return 0;
}

int cpuid_build(const struct cpuid_table *supported, const struct cpuid_topology *topo,
                struct cpuid_table *t, struct err *e)
{
    *t = *supported;
    cpuid_hide(t);
    struct kvm_cpuid_entry2 *x = cpuid_find(t, 1, 0);
    if (!x || !cpuid_find(t, 0, 0))
        return err_set(e, ENOTSUP, "KVM offers no CPUID leaf 0 or 1");
    // The deadline timer is told by a capability, not by KVM_GET_SUPPORTED_CPUID.
    x->ecx = (x->ecx & ~BIT(24)) | (topo->tsc_deadline ? BIT(24) : 0) | BIT(21) | BIT(31);
    if (topology(t, topo) || timing(t, topo->tsc_khz))
        return err_set(e, E2BIG, "the CPUID table has no room for the topology");
    cpuid_set_id(t, 0);
    return 0;
}

void cpuid_set_id(struct cpuid_table *t, uint32_t id)
{
    struct kvm_cpuid_entry2 *x = cpuid_find(t, 0xb, 0);
    uint32_t shift = x ? x->eax & 0x1f : 0;
    for (uint32_t i = 0; i < t->nent; i++) {
        x = &t->e[i];
        if (x->function == 1)
            x->ebx = (x->ebx & 0x00ffffff) | id << 24;
        else if (x->function == 0xb || x->function == 0x1f)
            x->edx = id;
        else if (x->function == 0x8000001e) {
            x->eax = id;
            x->ebx = (x->ebx & ~0xffu) | id >> shift;
        }
    }
}

int cpuid_apply_modifiers(struct cpuid_table *t, const struct cpuid_mod *m, unsigned n,
                          struct err *e)
{
    for (unsigned i = 0; i < n; i++)
        if (!cpuid_find(t, m[i].leaf, m[i].subleaf) || m[i].reg > CPUID_EDX)
            return err_set(e, EINVAL, "cpuid_modifiers: leaf %#x subleaf %#x is not in the table",
                           m[i].leaf, m[i].subleaf);
    for (unsigned i = 0; i < n; i++) {
        uint32_t *r = reg_of(cpuid_find(t, m[i].leaf, m[i].subleaf), m[i].reg);
        *r = (*r & ~m[i].filter) | (m[i].value & m[i].filter);
    }
    return 0;
}

int cpuid_check(const struct cpuid_table *t, struct err *e)
{
    if (t->nent == 0 || t->nent > CPUID_MAX)
        return err_set(e, EINVAL, "cpuid: %u entries, not 1 to %u", t->nent, CPUID_MAX);
    for (uint32_t i = 0; i < t->nent; i++)
        if (t->e[i].flags & ~(uint32_t)KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
            return err_set(e, EINVAL, "cpuid: leaf %#x has unknown flags %#x", t->e[i].function,
                           t->e[i].flags);
    return 0;
}
