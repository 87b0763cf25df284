#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""InstanceStart to the first line of init, Mayfly beside Firecracker (PEER_FIRECRACKER) in turns: same kernel, initrd
and command line; and the monitor's memory outside the guest's, which has a bound. Times are measured here and judged by
the reader, but for a gross loss: what else the machine does moves them, unless its time counts instructions."""
# timeout: 900
import re
from statistics import median

from lib import MAYFLY, PEER, Guest, asset, check, goal, linux, note

RUNS = 5
ARGS = "quiet pci=off mayfly.then=stay"
peers = {"mayfly": MAYFLY}
if PEER:
    peers["firecracker"] = PEER
else:
    note("PEER_FIRECRACKER is unset: no comparison")
for kernel_name, kernel, initrd, mem in (
        ("microvm 6.12", linux(), asset("initrd.gz"), 128),
        ("Debian 6.1", asset("cloud-6.1", "vmlinux"), asset("cloud-6.1", "initrd.gz"), 256)):
    times = {name: [] for name in peers}
    rss = {name: [] for name in peers}
    with open(kernel, "rb") as f:
        f.read()    # none is the first to read it
    for _ in range(RUNS):
        for name, binary in peers.items():
            took, asleep = None, 0.8 * min(sum(times.values(), []), default=0)
            while took is None:
                g = Guest(kernel, initrd, ARGS, mem=mem, binary=binary)
                took, asleep = g.start().first_line(asleep), 0
                if took is None:
                    g.close()
            times[name].append(took)
            g.up()
            rss[name].append(g.rss_kib())
            g.close()
    # What no monitor can save: the kernel's own work, by its own clock.
    g = Guest(kernel, initrd, ARGS, mem=mem, script="dmesg | grep 'Run /init as init'").start()
    floor = float(re.search(r"^\[ *([\d.]+)\] Run /init", g.script_passed(), re.M)[1])
    g.close()
    note(f"{kernel_name}: floor {floor * 1000:.0f} ms, the kernel's own work until it starts init, by its clock")
    for name in peers:
        t = sorted(times[name])
        note(f"{kernel_name}: {name} start to first line of init, median {median(t) * 1000:.0f} ms "
             f"({t[0] * 1000:.0f} to {t[-1] * 1000:.0f}), RSS outside guest memory {median(rss[name])} KiB")
    goal(f"{kernel_name}: monitor's RSS, MiB", median(rss["mayfly"]) / 1024, 1)
    check(median(rss["mayfly"]) <= 1024, f"{kernel_name}: the monitor's RSS is {rss['mayfly']} KiB")
    if PEER:
        ratio = median(times["mayfly"]) / median(times["firecracker"])
        goal(f"{kernel_name}: start to init, Mayfly / Firecracker", ratio, 1)
        check(ratio < 1.3, f"{kernel_name}: {ratio:.2f} times Firecracker's time")
