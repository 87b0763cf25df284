#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The processor a guest sees: KVM's signature and paravirtual features as KVM offers them, x2APIC and TSC-deadline,
topology leaves right on every processor for 1, 2, 3, 8 and 32 of them; kvmclock and the TSC deadline timer in use."""
# timeout: 400
import array
import fcntl
import re
import struct

from lib import Guest, asset, check, linux, no_faults, note

KVM_GET_SUPPORTED_CPUID = 0xc008ae05


def offered(function):
    """EAX of a leaf as this host's KVM offers it."""
    table = array.array("B", struct.pack("<II", 256, 0) + bytes(256 * 40))
    with open("/dev/kvm", "rb+", buffering=0) as kvm:
        fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, table)
    count, = struct.unpack_from("<I", table)
    leaves = [struct.unpack_from("<IIIIIII", table, 8 + 40 * i) for i in range(count)]
    return next(x[3] for x in leaves if x[0] == function)


# kvmclock, async page faults, PV EOI, PV unhalt, PV TLB flush, yield, PV IPI, stable clock and all else: as KVM offers it.
OFFERED = offered(0x40000001)
for n in (1, 2, 3, 8, 32):
    g = Guest(linux(), asset("initrd.gz"), vcpus=n, mem=512, script="""
        probe cpuid || exit 1
        cat /sys/devices/system/clocksource/clocksource0/available_clocksource
        cat /sys/devices/system/clockevents/clockevent0/current_device
        cat /sys/devices/system/cpu/cpu0/topology/core_cpus_list /sys/devices/system/cpu/cpu0/topology/package_cpus_list""")
    console = g.start().script_passed(200)
    check(g.wait() == 0, f"exit status {g.process.returncode}")
    no_faults(g.console())    # it has ended: all of it
    leaf = {}
    for cpu, num, sub, *regs in re.findall(r"^cpuid (\d+) (\w+) (\w+): (\w+) (\w+) (\w+) (\w+)$", console, re.M):
        leaf[int(cpu), int(num, 16), int(sub, 16)] = [int(r, 16) for r in regs]
    check(len({k[0] for k in leaf}) == n, f"{n} processors expected")
    signature = b"".join(r.to_bytes(4, "little") for r in leaf[0, 0x40000000, 0][1:])
    check(signature == b"KVMKVMKVM\0\0\0", f"signature {signature}")
    features = leaf[0, 0x40000001, 0][0]
    check(all(leaf[cpu, 0x40000001, 0][0] == OFFERED for cpu in range(n)), f"KVM offers {OFFERED:#x}, seen is {features:#x}")
    for bit, name in ((3, "kvmclock"), (4, "async page faults"), (6, "PV EOI"), (9, "PV TLB flush"), (24, "stable kvmclock")):
        check(features >> bit & 1, f"{name} is not offered ({features:#x})")
    ids = set()
    for cpu in range(n):
        one = leaf[cpu, 1, 0]
        check(one[2] >> 31 & 1 and one[2] >> 21 & 1 and one[2] >> 24 & 1, "hypervisor, x2APIC or TSC-deadline bit missing")
        apic = one[1] >> 24
        ids.add(apic)
        core = leaf[cpu, 0xb, 1]
        if leaf[cpu, 0, 0][0] >= 0xb:
            check(leaf[cpu, 0xb, 0][3] == apic, f"cpu {cpu}: leaf 0xb says {leaf[cpu, 0xb, 0][3]}, leaf 1 {apic}")
            check(leaf[cpu, 0xb, 0][2] >> 8 & 255 == 1 and (core[2] >> 8 & 255 == 2), "leaf 0xb: level types")
            check(core[1] & 0xffff == n, f"leaf 0xb: {core[1] & 0xffff} processors in the package, not {n}")
            check(1 << (core[0] & 31) >= n, "leaf 0xb: shift too small")
        if n > 1:
            check(one[3] >> 28 & 1 and one[1] >> 16 & 255 >= n, f"leaf 1: {one[1] >> 16 & 255} logical processors")
        vendor = b"".join(leaf[cpu, 0, 0][i].to_bytes(4, "little") for i in (1, 3, 2))
        if vendor == b"AuthenticAMD":
            check(leaf[cpu, 0x80000008, 0][2] & 255 == n - 1, "leaf 0x80000008: cores")
            check(leaf[cpu, 0x8000001e, 0][0] == apic or not leaf[cpu, 0x80000001, 0][2] >> 22 & 1, "leaf 0x8000001e: APIC id")
    check(len(ids) == n, "APIC ids are not unique")
    check("kvm-clock" in console, "no kvmclock")
    check("lapic-deadline" in console, "the deadline timer is not in use")
    note(f"{n} processors: KVM features {features:#x}, " +
         (re.search(r"^.*kvm-clock.*$", console, re.M) or [""])[0])
    g.close()
