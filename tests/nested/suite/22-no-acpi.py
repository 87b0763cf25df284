#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A kernel without ACPI: the processors and the IOAPIC are in the MP tables, the devices on the command line."""
# timeout: 120
from lib import Guest, asset, check, disk, linux, no_faults, note

for vcpus in (1, 2):
    d = disk(4)
    g = Guest(linux(), asset("initrd.gz"), "acpi=off mayfly.then=reboot", vcpus=vcpus, drives=[d],
              script="test ! -e /sys/firmware/acpi/tables && echo found >/dev/vda && sync && dmesg | grep MPTABLE && "
                     "echo online $(nproc) && grep virtio0 /proc/interrupts").start()
    console = g.script_passed()
    check(f"online {vcpus}" in console, f"not {vcpus} processors\n{console}")
    check("IO-APIC" in console, f"no interrupt through the IOAPIC\n{console}")
    with open(d, "rb") as f:
        check(f.read(6) == b"found\n", "the disk was not written")
    check(g.wait() == 0, f"exit status {g.process.returncode}")
    no_faults(g.console())
    note(f"acpi=off: up with {vcpus} processors, disk written")
