#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Debian's stock cloud kernels, unmodified, as bzImage with an initrd: they find the virtio devices through ACPI alone
(they have no virtio_mmio.device= support), reach a Debian root on virtio-blk, and see a VMGenID where they know it."""
# lane: quick
# timeout: 240
from lib import Guest, asset, check, no_faults, note, tap

tap("tapc0")
for version in ("6.1", "6.12"):
    # These kernels know no virtio_mmio.device=, hence what they find they found through ACPI.
    script = """
        grep -q "root=/dev/vda" /proc/cmdline || exit 1
        mount | grep -q "^/dev/vda on / type ext4" || exit 2
        [ "$(ls /sys/bus/virtio/devices | wc -l)" = 3 ] || exit 3
        [ "$(ls -d /sys/bus/acpi/devices/LNRO0005:* | wc -l)" -ge 3 ] || exit 4
        [ "$(cat /sys/class/net/eth0/address)" = 06:00:00:00:00:01 ] || exit 5
        [ ! -d /sys/bus/acpi/drivers/vmgenid ] || ls -d /sys/bus/acpi/drivers/vmgenid/VMGEN* || ls -d /sys/bus/platform/drivers/vmgenid/*:* || exit 6
        grep . /sys/devices/system/clocksource/clocksource0/current_clocksource
        cat /etc/debian_version"""
    g = Guest(asset(f"cloud-{version}", "vmlinuz"), asset(f"cloud-{version}", "initrd.gz"), "mayfly.root=/dev/vda",
              root=asset("debian.ext4"), root_ro=True, mem=512, script=script, nets=["tapc0"]).start()
    console = g.script_passed()
    check(g.wait() == 0, f"exit status {g.process.returncode}")
    no_faults(g.console())    # it has ended: all of it
    note(f"Debian's {version} cloud kernel: {g.up()[0][6:]}")
    g.close()
