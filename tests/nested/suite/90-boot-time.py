#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""InstanceStart to the first line of init, Mayfly beside Firecracker (PEER_FIRECRACKER) in turns: same kernel, initrd
and command line; and the monitor's memory outside the guest's. Measured here, judged by the reader: no time limit."""
# timeout: 900
from statistics import median

from lib import PEER, Guest, MAYFLY, asset, linux, note

RUNS = 5
peers = {"mayfly": MAYFLY}
if PEER:
    peers["firecracker"] = PEER
else:
    note("PEER_FIRECRACKER is unset: no comparison")
for kernel_name, kernel, initrd in (("microvm 6.12", linux(), asset("initrd.gz")),
                                    ("Debian 6.1", asset("cloud-6.1", "vmlinux"), asset("cloud-6.1", "initrd.gz"))):
    times = {name: [] for name in peers}
    rss = {name: [] for name in peers}
    for _ in range(RUNS):
        for name, binary in peers.items():
            g = Guest(kernel, initrd, "quiet pci=off mayfly.then=stay", mem=128 if "micro" in kernel_name else 256,
                      binary=binary)
            g.start()
            times[name].append(g.first_line())
            g.up()
            rss[name].append(g.rss_kib())
            g.close()
    for name in peers:
        t = sorted(times[name])
        note(f"{kernel_name}: {name} start to first line of init, median {median(t) * 1000:.0f} ms "
             f"({t[0] * 1000:.0f} to {t[-1] * 1000:.0f}), RSS outside guest memory {median(rss[name])} KiB")
    if PEER:
        note(f"{kernel_name}: ratio {median(times['mayfly']) / median(times['firecracker']):.2f}")
