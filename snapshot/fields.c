// SPDX-License-Identifier: Apache-2.0
// What of each state struct goes onto the wire, and in which order. A new member is a new row at
// the end of its table with `since` = the new SNAP_VERSION.
#include "snapshot/codec.h"

#define MEMB(s, m) (((struct s *)0)->m)
#define AT(s, m)   .off = offsetof(struct s, m)
#define INT(s, m)                                               \
    {                                                           \
        F_INT, AT(s, m), .size = sizeof(MEMB(s, m)), .count = 1 \
    }
#define INTS(s, m)                                                                      \
    {                                                                                   \
        F_INT, AT(s, m), .size = sizeof(MEMB(s, m[0])), .count = ARRAY_SIZE(MEMB(s, m)) \
    }
#define BOOL(s, m)                              \
    {                                           \
        F_BOOL, AT(s, m), .size = 1, .count = 1 \
    }
#define STR(s, m)                                               \
    {                                                           \
        F_STR, AT(s, m), .size = 1, .count = sizeof(MEMB(s, m)) \
    }
#define SUB(s, m, t)                             \
    {                                            \
        F_SUB, AT(s, m), .count = 1, .sub = &(t) \
    }
#define SUBS(s, m, t)                                                 \
    {                                                                 \
        F_SUB, AT(s, m), .count = ARRAY_SIZE(MEMB(s, m)), .sub = &(t) \
    }
#define TAIL(s, m)                                               \
    {                                                            \
        F_TAIL, AT(s, m), .size = 1, .count = sizeof(MEMB(s, m)) \
    }
#define LIST(s, m, n, t)                                                                   \
    {                                                                                      \
        F_LIST, AT(s, m), .count = ARRAY_SIZE(MEMB(s, m)), .n_off = offsetof(struct s, n), \
                          .sub = &(t)                                                      \
    }
#define TABLE(name, s, ...)                               \
    static const struct field name##_f[] = {__VA_ARGS__}; \
    const struct table name = {name##_f, ARRAY_SIZE(name##_f), sizeof(struct s)}
#define PART(name, s, ...)                                \
    static const struct field name##_f[] = {__VA_ARGS__}; \
    static const struct table name = {name##_f, ARRAY_SIZE(name##_f), sizeof(struct s)}

// clang-format off
TABLE(t_snap_info, snap_info,
    STR(snap_info, arch), STR(snap_info, monitor), STR(snap_info, id), INT(snap_info, realtime_ns));

PART(machine, machine_cfg,
    INT(machine_cfg, vcpu_count), INT(machine_cfg, mem_size_mib), BOOL(machine_cfg, smt),
    BOOL(machine_cfg, track_dirty_pages), INT(machine_cfg, huge_pages));
TABLE(t_snap_machine, vm_saved, SUB(vm_saved, machine, machine), BOOL(vm_saved, ready));

PART(cpuid_entry, kvm_cpuid_entry2,
    INT(kvm_cpuid_entry2, function), INT(kvm_cpuid_entry2, index), INT(kvm_cpuid_entry2, flags),
    INT(kvm_cpuid_entry2, eax), INT(kvm_cpuid_entry2, ebx), INT(kvm_cpuid_entry2, ecx),
    INT(kvm_cpuid_entry2, edx));
TABLE(t_snap_cpuid, cpuid_table, LIST(cpuid_table, e, nent, cpuid_entry));

TABLE(t_snap_clock, vm_clock, INT(vm_clock, clock_ns), INT(vm_clock, realtime_ns));
TABLE(t_snap_ioapic, ioapic_state,
    INT(ioapic_state, id), INT(ioapic_state, sel), INTS(ioapic_state, rte), INT(ioapic_state, pending));
TABLE(t_snap_serial, serial_state,
    INT(serial_state, ier), INT(serial_state, lcr), INT(serial_state, mcr), INT(serial_state, scr),
    INT(serial_state, fcr), INT(serial_state, dll), INT(serial_state, dlm),
    INT(serial_state, lsr_overrun), INT(serial_state, thr_pending), INT(serial_state, rx_len),
    INTS(serial_state, rx));
TABLE(t_snap_i8042, i8042_state,
    INT(i8042_state, status), INT(i8042_state, ctrl), INT(i8042_state, outp), INT(i8042_state, cmd),
    INT(i8042_state, len), INTS(i8042_state, buf));

PART(virtq, virtq_state,
    INT(virtq_state, size), INT(virtq_state, ready), INT(virtq_state, next_avail),
    INT(virtq_state, next_used), INT(virtq_state, signalled), INT(virtq_state, signalled_valid),
    INT(virtq_state, desc), INT(virtq_state, avail), INT(virtq_state, used));
PART(vio, vio_state,
    INT(vio_state, status), INT(vio_state, isr), INT(vio_state, config_gen),
    INT(vio_state, dev_feat_sel), INT(vio_state, drv_feat_sel), INT(vio_state, queue_sel),
    INT(vio_state, drv_features), SUBS(vio_state, q, virtq));

PART(bucket_config, bucket_cfg,
    BOOL(bucket_cfg, set), INT(bucket_cfg, size), INT(bucket_cfg, one_time_burst),
    INT(bucket_cfg, refill_ms));
PART(limiter_config, limiter_cfg,
    BOOL(limiter_cfg, set), SUB(limiter_cfg, bandwidth, bucket_config),
    SUB(limiter_cfg, ops, bucket_config));
PART(bucket_state, bucket,
    SUB(bucket, cfg, bucket_config), INT(bucket, tokens), INT(bucket, burst), INT(bucket, debt));
PART(limiter_state, limiter, SUB(limiter, bytes, bucket_state), SUB(limiter, ops, bucket_state));

PART(drive, drive_cfg,
    STR(drive_cfg, drive_id), STR(drive_cfg, path_on_host), STR(drive_cfg, cow_path),
    STR(drive_cfg, partuuid), BOOL(drive_cfg, is_root_device), BOOL(drive_cfg, is_read_only),
    BOOL(drive_cfg, writeback), BOOL(drive_cfg, io_engine_async),
    SUB(drive_cfg, rate_limiter, limiter_config));
TABLE(t_snap_blk, saved_dev,
    SUB(saved_dev, vio, vio), SUB(saved_dev, blk.cfg, drive), INT(saved_dev, blk.bytes),
    SUB(saved_dev, blk.limit, limiter_state));

PART(net, net_cfg,
    STR(net_cfg, iface_id), STR(net_cfg, host_dev_name), INTS(net_cfg, guest_mac),
    BOOL(net_cfg, has_mac), BOOL(net_cfg, allow_mac_spoofing), INT(net_cfg, mtu),
    SUB(net_cfg, rx_rate_limiter, limiter_config), SUB(net_cfg, tx_rate_limiter, limiter_config));
TABLE(t_snap_net, saved_dev,
    SUB(saved_dev, vio, vio), SUB(saved_dev, net.cfg, net), SUB(saved_dev, net.rx, limiter_state),
    SUB(saved_dev, net.tx, limiter_state));

PART(segment, kvm_segment,
    INT(kvm_segment, base), INT(kvm_segment, limit), INT(kvm_segment, selector), INT(kvm_segment, type),
    INT(kvm_segment, present), INT(kvm_segment, dpl), INT(kvm_segment, db), INT(kvm_segment, s),
    INT(kvm_segment, l), INT(kvm_segment, g), INT(kvm_segment, avl), INT(kvm_segment, unusable));
PART(dtable, kvm_dtable, INT(kvm_dtable, base), INT(kvm_dtable, limit));
PART(regs, kvm_regs,
    INT(kvm_regs, rax), INT(kvm_regs, rbx), INT(kvm_regs, rcx), INT(kvm_regs, rdx), INT(kvm_regs, rsi),
    INT(kvm_regs, rdi), INT(kvm_regs, rsp), INT(kvm_regs, rbp), INT(kvm_regs, r8), INT(kvm_regs, r9),
    INT(kvm_regs, r10), INT(kvm_regs, r11), INT(kvm_regs, r12), INT(kvm_regs, r13), INT(kvm_regs, r14),
    INT(kvm_regs, r15), INT(kvm_regs, rip), INT(kvm_regs, rflags));
PART(sregs, kvm_sregs,
    SUB(kvm_sregs, cs, segment), SUB(kvm_sregs, ds, segment), SUB(kvm_sregs, es, segment),
    SUB(kvm_sregs, fs, segment), SUB(kvm_sregs, gs, segment), SUB(kvm_sregs, ss, segment),
    SUB(kvm_sregs, tr, segment), SUB(kvm_sregs, ldt, segment), SUB(kvm_sregs, gdt, dtable),
    SUB(kvm_sregs, idt, dtable), INT(kvm_sregs, cr0), INT(kvm_sregs, cr2), INT(kvm_sregs, cr3),
    INT(kvm_sregs, cr4), INT(kvm_sregs, cr8), INT(kvm_sregs, efer), INT(kvm_sregs, apic_base),
    INTS(kvm_sregs, interrupt_bitmap));
PART(debugregs, kvm_debugregs,
    INTS(kvm_debugregs, db), INT(kvm_debugregs, dr6), INT(kvm_debugregs, dr7), INT(kvm_debugregs, flags));
PART(xcr, kvm_xcr, INT(kvm_xcr, xcr), INT(kvm_xcr, value));
PART(xcrs, kvm_xcrs, LIST(kvm_xcrs, xcrs, nr_xcrs, xcr), INT(kvm_xcrs, flags));
PART(events, kvm_vcpu_events,
    INT(kvm_vcpu_events, exception.injected), INT(kvm_vcpu_events, exception.nr),
    INT(kvm_vcpu_events, exception.has_error_code), INT(kvm_vcpu_events, exception.pending),
    INT(kvm_vcpu_events, exception.error_code), INT(kvm_vcpu_events, interrupt.injected),
    INT(kvm_vcpu_events, interrupt.nr), INT(kvm_vcpu_events, interrupt.soft),
    INT(kvm_vcpu_events, interrupt.shadow), INT(kvm_vcpu_events, nmi.injected),
    INT(kvm_vcpu_events, nmi.pending), INT(kvm_vcpu_events, nmi.masked),
    INT(kvm_vcpu_events, sipi_vector), INT(kvm_vcpu_events, flags), INT(kvm_vcpu_events, smi.smm),
    INT(kvm_vcpu_events, smi.pending), INT(kvm_vcpu_events, smi.smm_inside_nmi),
    INT(kvm_vcpu_events, smi.latched_init), INT(kvm_vcpu_events, triple_fault.pending),
    INT(kvm_vcpu_events, exception_has_payload), INT(kvm_vcpu_events, exception_payload));
PART(msr, vcpu_msr, INT(vcpu_msr, index), INT(vcpu_msr, value));
TABLE(t_snap_vcpu, vcpu_state,
    INT(vcpu_state, mp_state), INT(vcpu_state, tsc_khz), INT(vcpu_state, realtime_ns),
    SUB(vcpu_state, regs, regs), SUB(vcpu_state, sregs, sregs), SUB(vcpu_state, debugregs, debugregs),
    SUB(vcpu_state, xcrs, xcrs), TAIL(vcpu_state, lapic.regs), SUB(vcpu_state, events, events),
    LIST(vcpu_state, msr, nmsrs, msr), INT(vcpu_state, xsave_size), TAIL(vcpu_state, xsave));
// clang-format on
