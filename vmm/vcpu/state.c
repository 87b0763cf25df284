// SPDX-License-Identifier: Apache-2.0
// Saves and loads a vCPU's registers in the order KVM needs.
//
// Save: MP_STATE first, because reading it makes KVM accept pending INIT and SIPI, which changes
// registers and local APIC; VCPU_EVENTS last. Load: SREGS before LAPIC (APIC base), LAPIC before
// MSRS (the deadline needs the timer's mode), the TSC before its deadline, VCPU_EVENTS after REGS
// (an injection is tied to RIP).
#include "vmm/vcpu/state.h"

#include <sys/ioctl.h>

// #syscalls:config ioctl(KVM_CHECK_EXTENSION@VM, KVM_GET_MSR_INDEX_LIST@KVM, KVM_GET_TSC_KHZ@VCPU)
// #syscalls:config ioctl(KVM_GET_DEBUGREGS@VCPU, KVM_GET_MSRS@VCPU, KVM_SET_MSRS@VCPU)
// #syscalls:control ioctl(KVM_GET_MP_STATE@VCPU, KVM_GET_REGS@VCPU, KVM_GET_SREGS@VCPU)
// #syscalls:control ioctl(KVM_GET_XSAVE@VCPU, KVM_GET_XSAVE2@VCPU, KVM_GET_XCRS@VCPU)
// #syscalls:control ioctl(KVM_GET_DEBUGREGS@VCPU, KVM_GET_LAPIC@VCPU, KVM_GET_TSC_KHZ@VCPU)
// #syscalls:control ioctl(KVM_GET_MSRS@VCPU, KVM_GET_VCPU_EVENTS@VCPU, KVM_KVMCLOCK_CTRL@VCPU)
// #syscalls:control ioctl(KVM_GET_CLOCK@VM)
// #syscalls:config ioctl(KVM_SET_MP_STATE@VCPU, KVM_SET_REGS@VCPU, KVM_SET_SREGS@VCPU)
// #syscalls:config ioctl(KVM_SET_XSAVE@VCPU, KVM_SET_XCRS@VCPU, KVM_SET_DEBUGREGS@VCPU)
// #syscalls:config ioctl(KVM_SET_LAPIC@VCPU, KVM_SET_TSC_KHZ@VCPU, KVM_SET_VCPU_EVENTS@VCPU)
// #syscalls:config ioctl(KVM_SET_CLOCK@VM)
// #syscalls:control clock_gettime

#define MSR_TSC          0x10u
#define MSR_TSC_DEADLINE 0x6e0u
#define MSR_DEBUGCTL     0x1d9u
#define APIC_LVTT        0x320 // timer's vector entry; bits 18:17 are its mode, 2 = deadline
#define XSAVE_MIN        576   // legacy area and header
#define LOWEST_KHZ       1000u
#define HIGHEST_KHZ      100000000u

// The MSRs a Linux guest's state lives in, in the order of loading. What SREGS and LAPIC carry
// (EFER, APIC base, FS and GS base, x2APIC) is not here; what CPUID hides is not either.
// clang-format off
static const uint32_t allowed[] = {
    MSR_TSC, 0x3b,                                                  // TSC_ADJUST
    0x174, 0x175, 0x176,                                            // SYSENTER
    0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000102,     // SYSCALL, KERNEL_GS_BASE
    0xc0000103,                                                     // TSC_AUX
    0x277, 0x2ff, 0x250, 0x258, 0x259,                              // PAT, MTRRs
    0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207,
    0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f,
    0x3a, 0x48, 0x8b, 0xce, 0xe1, 0x10a,      // FEAT_CTL, SPEC_CTRL, UCODE_REV, PLATFORM_INFO, UMWAIT, ARCH_CAP
    0x122, 0x140, 0x1a0, 0x17a, 0x1d9, 0xda0, // TSX_CTRL, FEATURES, MISC_ENABLE, MCG_STATUS, DEBUGCTL, XSS
    0xc0010015, 0xc001011f,                                         // HWCR, VIRT_SPEC_CTRL
    0x4b564d00, 0x4b564d01,                                         // kvmclock: wall, system
    0x4b564d06, 0x4b564d02, 0x4b564d03, 0x4b564d04, 0x4b564d05,     // async page fault, steal time, PV EOI, poll
    0x4b564d08,                                                     // migration control
    MSR_TSC_DEADLINE,
};
// clang-format on
_Static_assert(ARRAY_SIZE(allowed) <= VCPU_MAX_MSRS, "every allowed MSR fits");

struct msr_buf { // laid out as struct kvm_msrs
    uint32_t nmsrs, pad;
    struct kvm_msr_entry e[VCPU_MAX_MSRS];
};
_Static_assert(offsetof(struct msr_buf, e) == sizeof(struct kvm_msrs), "msr_buf is a kvm_msrs");

static int kvm(int fd, unsigned long rq, const void *arg, const char *name, struct err *e)
{
    if (ioctl(fd, rq, arg) < 0)
        return err_set(e, errno, "%s: %s", name, strerror(errno));
    return 0;
}

#define KVM_TRY(fd, rq, arg)                    \
    do {                                        \
        int rc_ = kvm((fd), rq, (arg), #rq, e); \
        if (rc_)                                \
            return rc_;                         \
    } while (0)

static bool is_mtrr(uint32_t index)
{
    return (index >= 0x200 && index <= 0x20f) || (index >= 0x250 && index <= 0x26f) ||
           index == 0x2ff;
}

static bool in_list(uint32_t index, const uint32_t *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] == index)
            return true;
    return false;
}

// The allow-list, less what KVM does not list (MTRRs it never lists) and what this vCPU cannot
// read.
static int find_msrs(int kvm_fd, int vcpu_fd, struct vcpu_caps *c, struct err *e)
{
    struct { // laid out as struct kvm_msr_list
        uint32_t nmsrs, index[1024];
    } l = {.nmsrs = ARRAY_SIZE(l.index)};
    struct msr_buf b = {0};
    KVM_TRY(kvm_fd, KVM_GET_MSR_INDEX_LIST, &l);
    for (size_t i = 0; i < ARRAY_SIZE(allowed); i++)
        if (is_mtrr(allowed[i]) || in_list(allowed[i], l.index, l.nmsrs))
            b.e[b.nmsrs++].index = allowed[i];
    while (b.nmsrs) {
        int n = ioctl(vcpu_fd, KVM_GET_MSRS, &b);
        if (n < 0)
            return err_set(e, errno, "KVM_GET_MSRS: %s", strerror(errno));
        if ((uint32_t)n >= b.nmsrs)
            break;
        b.nmsrs--; // KVM stopped at entry n
        memmove(&b.e[n], &b.e[n + 1], (b.nmsrs - (uint32_t)n) * sizeof(b.e[0]));
    }
    c->nmsrs = b.nmsrs;
    for (uint32_t i = 0; i < b.nmsrs; i++)
        c->msr[i] = b.e[i].index;
    return 0;
}

int vcpu_caps_get(int kvm_fd, int vm_fd, int vcpu_fd, struct vcpu_caps *c, struct err *e)
{
    struct kvm_debugregs d;
    memset(c, 0, sizeof(*c));
    int size = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
    c->xsave2 = size > 0;
    c->xsave_size = size > 0 ? (uint32_t)size : (uint32_t)sizeof(struct kvm_xsave);
    if (c->xsave_size > VCPU_XSAVE_MAX)
        return err_set(e, ENOTSUP, "KVM's XSAVE area is %u bytes, more than %u", c->xsave_size,
                       VCPU_XSAVE_MAX);
    c->xcrs = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XCRS) > 0;
    c->debugregs = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_DEBUGREGS) > 0 &&
                   ioctl(vcpu_fd, KVM_GET_DEBUGREGS, &d) == 0;
    c->tsc_khz = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GET_TSC_KHZ) > 0;
    c->tsc_scaling = ioctl(vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0;
    int khz = c->tsc_khz ? ioctl(vcpu_fd, KVM_GET_TSC_KHZ, 0) : 0;
    c->host_tsc_khz = khz > 0 ? (uint32_t)khz : 0;
    return find_msrs(kvm_fd, vcpu_fd, c, e);
}

static uint64_t realtime(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

static int save_msrs(int fd, const struct vcpu_caps *c, struct vcpu_state *s, struct err *e)
{
    struct msr_buf b = {.nmsrs = c->nmsrs};
    for (uint32_t i = 0; i < c->nmsrs; i++)
        b.e[i].index = c->msr[i];
    s->realtime_ns = realtime();
    int n = ioctl(fd, KVM_GET_MSRS, &b);
    if (n < 0)
        return err_set(e, errno, "KVM_GET_MSRS: %s", strerror(errno));
    if ((uint32_t)n != c->nmsrs)
        return err_set(e, EIO, "KVM cannot read MSR %#x", c->msr[n]);
    s->nmsrs = c->nmsrs;
    for (uint32_t i = 0; i < c->nmsrs; i++)
        s->msr[i] = (struct vcpu_msr){b.e[i].index, b.e[i].data};
    return 0;
}

int vcpu_state_save(int fd, const struct vcpu_caps *c, struct vcpu_state *s, struct err *e)
{
    struct kvm_mp_state mp = {0};
    memset(s, 0, sizeof(*s));
    KVM_TRY(fd, KVM_GET_MP_STATE, &mp);
    s->mp_state = mp.mp_state;
    KVM_TRY(fd, KVM_GET_REGS, &s->regs);
    KVM_TRY(fd, KVM_GET_SREGS, &s->sregs);
    s->xsave_size = c->xsave_size;
    if (c->xsave2)
        KVM_TRY(fd, KVM_GET_XSAVE2, s->xsave);
    else
        KVM_TRY(fd, KVM_GET_XSAVE, s->xsave);
    if (c->xcrs)
        KVM_TRY(fd, KVM_GET_XCRS, &s->xcrs);
    if (c->debugregs)
        KVM_TRY(fd, KVM_GET_DEBUGREGS, &s->debugregs);
    KVM_TRY(fd, KVM_GET_LAPIC, &s->lapic);
    int khz = c->tsc_khz ? ioctl(fd, KVM_GET_TSC_KHZ, 0) : 0;
    s->tsc_khz = khz > 0 ? (uint32_t)khz : 0;
    int rc = save_msrs(fd, c, s, e);
    if (rc)
        return rc;
    KVM_TRY(fd, KVM_GET_VCPU_EVENTS, &s->events);
    return 0;
}

const struct vcpu_msr *vcpu_state_msr(const struct vcpu_state *s, uint32_t index)
{
    for (uint32_t i = 0; i < s->nmsrs; i++)
        if (s->msr[i].index == index)
            return &s->msr[i];
    return NULL;
}

static bool deadline_mode(const struct vcpu_state *s)
{
    return (le32_get(&s->lapic.regs[APIC_LVTT]) >> 17 & 3) == 2;
}

// A timer that has fired shows a deadline of 0, but KVM may still hold its interrupt where no ioctl
// can see it. A guest in deadline mode therefore gets one that is due at once: a spurious tick
// instead of a vCPU that sleeps for ever.
static uint64_t msr_value(const struct vcpu_state *s, const struct vcpu_msr *m, uint64_t now)
{
    const struct vcpu_msr *tsc = vcpu_state_msr(s, MSR_TSC);
    if (m->index == MSR_TSC_DEADLINE && m->value == 0 && tsc && deadline_mode(s))
        return tsc->value;
    return m == tsc ? vcpu_tsc_at(s, now) : m->value;
}

static int load_msrs(int fd, const struct vcpu_caps *c, const struct vcpu_state *s, bool advance,
                     struct err *e)
{
    struct msr_buf b = {0};
    // Read here, as vm_clock_load reads it beside its own call: what lies between the two is no time to either.
    const uint64_t now = advance ? realtime() : 0;
    for (uint32_t i = 0; i < c->nmsrs; i++) { // in the order of the allow-list, not of the record
        const struct vcpu_msr *m = vcpu_state_msr(s, c->msr[i]);
        // Where AMD's KVM has no LBR support, any write to DEBUGCTL is a line in the host's log.
        if (m && (m->value || m->index != MSR_DEBUGCTL))
            b.e[b.nmsrs++] =
                (struct kvm_msr_entry){.index = m->index, .data = msr_value(s, m, now)};
    }
    int n = ioctl(fd, KVM_SET_MSRS, &b);
    if (n < 0)
        return err_set(e, errno, "KVM_SET_MSRS: %s", strerror(errno));
    if ((uint32_t)n != b.nmsrs)
        return err_set(e, EINVAL, "KVM refuses the value %#llx of MSR %#x",
                       (unsigned long long)b.e[n].data, b.e[n].index);
    return 0;
}

int vcpu_state_load(int fd, const struct vcpu_caps *c, const struct vcpu_state *s, bool advance,
                    bool any_cpu, struct err *e)
{
    struct kvm_mp_state mp = {.mp_state = s->mp_state};
    int rc = vcpu_state_check(s, any_cpu ? NULL : c, e);
    if (rc)
        return rc;
    if (s->tsc_khz && c->tsc_khz && !tsc_khz_close(s->tsc_khz, c->host_tsc_khz) &&
        ioctl(fd, KVM_SET_TSC_KHZ, (unsigned long)s->tsc_khz) < 0)
        return err_set(e, errno, "KVM_SET_TSC_KHZ %u: %s", s->tsc_khz, strerror(errno));
    KVM_TRY(fd, KVM_SET_MP_STATE, &mp);
    KVM_TRY(fd, KVM_SET_REGS, &s->regs);
    KVM_TRY(fd, KVM_SET_SREGS, &s->sregs);
    KVM_TRY(fd, KVM_SET_XSAVE, s->xsave); // KVM reads c->xsave_size bytes
    if (c->xcrs)
        KVM_TRY(fd, KVM_SET_XCRS, &s->xcrs);
    if (c->debugregs)
        KVM_TRY(fd, KVM_SET_DEBUGREGS, &s->debugregs);
    KVM_TRY(fd, KVM_SET_LAPIC, &s->lapic);
    if ((rc = load_msrs(fd, c, s, advance, e)))
        return rc;
    KVM_TRY(fd, KVM_SET_VCPU_EVENTS, &s->events);
    return 0;
}

static int check_msrs(const struct vcpu_state *s, const struct vcpu_caps *c, struct err *e)
{
    if (s->nmsrs > VCPU_MAX_MSRS)
        return err_set(e, EINVAL, "vcpu: %u MSRs, more than %u", s->nmsrs, VCPU_MAX_MSRS);
    for (uint32_t i = 0; i < s->nmsrs; i++) {
        uint32_t index = s->msr[i].index;
        if (!in_list(index, allowed, ARRAY_SIZE(allowed)))
            return err_set(e, EINVAL, "vcpu: MSR %#x is not one a snapshot may set", index);
        if (vcpu_state_msr(s, index) != &s->msr[i])
            return err_set(e, EINVAL, "vcpu: MSR %#x comes twice", index);
        if (c && s->msr[i].value && !in_list(index, c->msr, c->nmsrs))
            return err_set(e, ENOTSUP, "vcpu: this host's KVM has no MSR %#x", index);
    }
    return 0;
}

int vcpu_state_check(const struct vcpu_state *s, const struct vcpu_caps *c, struct err *e)
{
    const struct kvm_vcpu_events *v = &s->events;
    if (s->mp_state > KVM_MP_STATE_SIPI_RECEIVED)
        return err_set(e, EINVAL, "vcpu: unknown MP state %u", s->mp_state);
    if (s->tsc_khz && (s->tsc_khz < LOWEST_KHZ || s->tsc_khz > HIGHEST_KHZ))
        return err_set(e, EINVAL, "vcpu: a TSC frequency of %u kHz cannot be", s->tsc_khz);
    if (s->xsave_size < XSAVE_MIN || s->xsave_size > VCPU_XSAVE_MAX)
        return err_set(e, EINVAL, "vcpu: an XSAVE area of %u bytes", s->xsave_size);
    if (c && s->xsave_size > c->xsave_size)
        return err_set(e, ENOTSUP, "vcpu: XSAVE area of %u bytes, this host's has %u",
                       s->xsave_size, c->xsave_size);
    if (s->xcrs.nr_xcrs > 1 || s->xcrs.flags || (s->xcrs.nr_xcrs && s->xcrs.xcrs[0].xcr))
        return err_set(e, EINVAL, "vcpu: an extended control register other than XCR0");
    if (s->debugregs.flags)
        return err_set(e, EINVAL, "vcpu: unknown debug register flags");
    if (v->flags & ~(uint32_t)(KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
                               KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM))
        return err_set(e, EINVAL, "vcpu: unknown event flags %#x", v->flags);
    if (v->exception.nr > 31)
        return err_set(e, EINVAL, "vcpu: exception %u", v->exception.nr);
    return check_msrs(s, c, e);
}

int vcpu_apply_msr_modifiers(int fd, const struct vcpu_caps *c, const struct msr_mod *m, unsigned n,
                             struct err *e)
{
    for (unsigned i = 0; i < n; i++)
        if (!in_list(m[i].index, c->msr, c->nmsrs))
            return err_set(e, EINVAL, "msr_modifiers: MSR %#x is not one a guest can be given here",
                           m[i].index);
    for (unsigned i = 0; i < n; i++) {
        struct msr_buf b = {.nmsrs = 1, .e[0].index = m[i].index};
        KVM_TRY(fd, KVM_GET_MSRS, &b);
        b.e[0].data = (b.e[0].data & ~m[i].filter) | (m[i].value & m[i].filter);
        if (ioctl(fd, KVM_SET_MSRS, &b) != 1)
            return err_set(e, EINVAL, "msr_modifiers: KVM refuses the value %#llx of MSR %#x",
                           (unsigned long long)b.e[0].data, m[i].index);
    }
    return 0;
}

uint64_t vcpu_tsc_at(const struct vcpu_state *s, uint64_t realtime_ns)
{
    const struct vcpu_msr *tsc = vcpu_state_msr(s, MSR_TSC);
    uint64_t away = realtime_ns > s->realtime_ns ? realtime_ns - s->realtime_ns : 0;
    return !tsc ? 0 : tsc->value + (uint64_t)((unsigned __int128)away * s->tsc_khz / 1000000);
}

int vcpu_tell_paused(int fd)
{
    return ioctl(fd, KVM_KVMCLOCK_CTRL, 0) < 0 && errno != EINVAL ? -errno : 0;
}

int vm_clock_save(int vm_fd, struct vm_clock *c, struct err *e)
{
    struct kvm_clock_data k = {0};
    KVM_TRY(vm_fd, KVM_GET_CLOCK, &k);
    c->clock_ns = k.clock;
    // Before the first KVM_RUN, and on kernels before 5.16, the pair comes without its wall clock.
    c->realtime_ns = k.flags & KVM_CLOCK_REALTIME ? k.realtime : realtime();
    return 0;
}

int vm_clock_load(int vm_fd, const struct vm_clock *c, bool advance, struct err *e)
{
    uint64_t now = realtime();
    struct kvm_clock_data k = {.clock = c->clock_ns};
    if (advance && now > c->realtime_ns)
        k.clock += now - c->realtime_ns;
    KVM_TRY(vm_fd, KVM_SET_CLOCK, &k);
    return 0;
}
