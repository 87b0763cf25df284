// SPDX-License-Identifier: Apache-2.0
// Compares what a guest was recorded with to what this host can give it, feature by feature.
#include "vmm/vcpu/cpuid.h"

// Names of bits, lowest first; "-" and those behind the last have none (SDM vol. 2, CPUID; AMD APM vol. 3, appendix
// E; KVM cpuid.rst).
static const struct {
    uint32_t leaf, subleaf;
    enum cpuid_reg reg;
    const char *names;
} features[] = {
    {0x1, 0, CPUID_ECX,
     "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - "
     "pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline aes xsave - avx f16c rdrand "
     "hypervisor"},
    {0x1, 0, CPUID_EDX,
     "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds "
     "acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"},
    {0x7, 0, CPUID_EBX,
     "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm "
     "zero_fcs mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt "
     "avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"},
    {0x7, 0, CPUID_ECX,
     "prefetchwt1 avx512vbmi umip pku - waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq "
     "avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid kl bus_lock_detect "
     "cldemote - movdiri movdir64b enqcmd sgx_lc pks"},
    {0x7, 0, CPUID_EDX,
     "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear "
     "rtm_always_abort - tsx_force_abort serialize hybrid tsxldtrk - pconfig arch_lbr ibt - "
     "amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities "
     "core_capabilities ssbd"},
    {0x7, 1, CPUID_EAX,
     "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd - - fzrm fsrs fsrc - - - - fred "
     "lkgs - - amx_fp16 hreset avx_ifma - - lam"},
    {0xd, 0, CPUID_EAX,
     "xcr0_x87 xcr0_sse xcr0_avx xcr0_bndregs xcr0_bndcsr xcr0_opmask xcr0_zmm_hi256 "
     "xcr0_hi16_zmm - xcr0_pkru - - - - - - - xcr0_tilecfg xcr0_tiledata"},
    {0xd, 1, CPUID_EAX, "xsaveopt xsavec xgetbv1 xsaves xfd"},
    {0x80000001, 0, CPUID_ECX,
     "lahf_lm - svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit "
     "wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc "
     "perfctr_llc mwaitx"},
    {0x80000001, 0, CPUID_EDX,
     "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - "
     "mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"},
    {0x80000007, 0, CPUID_EDX, "- - - - - - - - invariant_tsc"},
    {0x80000008, 0, CPUID_EBX,
     "clzero irperf xsaveerptr - rdpru - - - mcommit wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp "
     "- amd_stibp_always_on - - - - - ppin amd_ssbd virt_ssbd amd_ssb_no - amd_psfd"},
    {0x40000001, 0, CPUID_EAX,
     "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf kvm_steal_time "
     "kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi "
     "kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int kvm_msi_ext_dest_id "
     "kvm_hc_map_gpa_range kvm_migration_control - - - - - - kvm_clocksource_stable"},
    {0x80000021, 0, CPUID_EAX,
     "no_nested_data_bp - lfence_rdtsc - - - nullseg_clears_base - autoibrs"},
    {0x7, 1, CPUID_EDX, "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16"},
    {0x7, 2, CPUID_EDX, "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no"},
    // Nameless, but told to the guest all the same.
    {0x6, 0, CPUID_EAX, NULL},
    {0x7, 1, CPUID_EBX, NULL},
    {0xd, 0, CPUID_EDX, NULL},
    {0xd, 1, CPUID_ECX, NULL},
    {0xd, 1, CPUID_EDX, NULL},
    {0x80000007, 0, CPUID_EBX, NULL},
    {0x8000001f, 0, CPUID_EAX, NULL},
};

// Bits a record may have and KVM not report: this monitor or KVM sets them itself (x2APIC, deadline
// timer, OSXSAVE, hypervisor in leaf 1; HTT; CMP_LEGACY; TOPOEXT).
static uint32_t ours(uint32_t leaf, enum cpuid_reg reg)
{
    if (leaf == 0x1)
        return reg == CPUID_ECX ? 1u << 21 | 1u << 24 | 1u << 27 | 1u << 31 : 1u << 28;
    return leaf == 0x80000001 && reg == CPUID_ECX ? 1u << 1 | 1u << 22 : 0;
}

static uint32_t value(const struct cpuid_table *t, uint32_t leaf, uint32_t subleaf,
                      enum cpuid_reg reg)
{
    const struct kvm_cpuid_entry2 *x = cpuid_get(t, leaf, subleaf);
    if (!x)
        return 0;
    const uint32_t v[] = {x->eax, x->ebx, x->ecx, x->edx};
    return v[reg];
}

static int missing(uint32_t leaf, uint32_t subleaf, enum cpuid_reg reg, const char *names,
                   uint32_t lost, struct err *e)
{
    int bit = __builtin_ctz(lost);
    for (int i = 0; i < bit && names; i++) {
        names = strchr(names, ' ');
        names += names ? 1 : 0;
    }
    if (names && *names && *names != '-')
        return err_set(e, ENOTSUP, "this host's CPU lacks the feature \"%.*s\"",
                       (int)strcspn(names, " "), names);
    return err_set(e, ENOTSUP, "this host's CPU lacks CPUID leaf %#x.%u E%cX bit %d", leaf, subleaf,
                   "ABCD"[reg], bit);
}

bool tsc_khz_close(uint32_t a, uint32_t b)
{
    uint64_t diff = a > b ? a - b : b - a;
    return diff * 1000000 <= (uint64_t)MAX(a, b) * 250;
}

// Leaves whose state is not carried; and where in the XSAVE area a component lies, which is the guest's own format.
static int compare_leaves(const struct cpuid_table *recorded, const struct cpuid_table *host,
                          struct err *e)
{
    for (uint32_t i = 0; i < recorded->nent; i++) {
        const struct kvm_cpuid_entry2 *x = &recorded->e[i];
        if (cpuid_hides(x->function) && (x->eax | x->ebx | x->ecx | x->edx))
            return err_set(e, ENOTSUP, "CPUID leaf %#x: its state cannot be carried", x->function);
        if (x->function != 0xd || x->index < 2 || !x->eax)
            continue;
        if (value(host, 0xd, x->index, CPUID_EAX) != x->eax ||
            value(host, 0xd, x->index, CPUID_EBX) != x->ebx)
            return err_set(e, ENOTSUP,
                           "this host's CPU keeps XSAVE component %u elsewhere, or has none",
                           x->index);
    }
    return 0;
}

int vcpu_host_compare(const struct cpuid_table *recorded, uint64_t xcr0, uint32_t tsc_khz,
                      const struct cpuid_table *host, uint32_t host_tsc_khz, bool tsc_scaling,
                      struct err *e)
{
    for (unsigned r = CPUID_EBX; r <= CPUID_EDX; r++)
        if (value(recorded, 0, 0, r) != value(host, 0, 0, r))
            return err_set(e, ENOTSUP, "the CPU vendor differs from this host's");
    if ((value(recorded, 0x80000008, 0, CPUID_EAX) & 0xff) >
        (value(host, 0x80000008, 0, CPUID_EAX) & 0xff))
        return err_set(e, ENOTSUP, "this host's CPU has fewer physical address bits (%u, not %u)",
                       value(host, 0x80000008, 0, CPUID_EAX) & 0xff,
                       value(recorded, 0x80000008, 0, CPUID_EAX) & 0xff);
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        uint32_t leaf = features[i].leaf, sub = features[i].subleaf;
        enum cpuid_reg reg = features[i].reg;
        uint32_t lost =
            value(recorded, leaf, sub, reg) & ~(value(host, leaf, sub, reg) | ours(leaf, reg));
        if (lost)
            return missing(leaf, sub, reg, features[i].names, lost, e);
    }
    int rc = compare_leaves(recorded, host, e);
    if (rc)
        return rc;
    uint64_t has = value(host, 0xd, 0, CPUID_EAX) | (uint64_t)value(host, 0xd, 0, CPUID_EDX) << 32;
    if (xcr0 & ~has & ~1ull)
        return err_set(e, ENOTSUP, "the guest's XCR0 %#llx has bits this host lacks (%#llx)",
                       (unsigned long long)xcr0, (unsigned long long)(xcr0 & ~has));
    if (tsc_khz && host_tsc_khz && !tsc_scaling && !tsc_khz_close(tsc_khz, host_tsc_khz))
        return err_set(e, ENOTSUP,
                       "the guest's TSC runs at %u kHz, this host's at %u kHz, and KVM here cannot "
                       "scale it",
                       tsc_khz, host_tsc_khz);
    return 0;
}
