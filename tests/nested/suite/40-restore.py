#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A running Linux guest is snapshotted and restored in a new process: it goes on where it was, its disk and processors
with it, clocks forward only and at the host's pace."""
# lane: quick
# timeout: 240
import os
import re
import time

from lib import WORK, Guest, Monitor, asset, check, linux, no_faults, note

for name, kernel, initrd in (("6.12", linux(), asset("initrd.gz")),
                             ("Debian 6.1", asset("cloud-6.1", "vmlinuz"), asset("cloud-6.1", "initrd.gz"))):
    g = Guest(kernel, initrd, vcpus=2, mem=256, script="""
        for i in $(seq 1 1000); do
            echo "tick $i $(cut -d' ' -f1 /proc/uptime) $(date +%s) $(dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | head -c 8)"
            sleep 0.1
        done""").start()
    check(g.up()[0].endswith(" 2 processors"), f"not both processors are up: {g.up()[0]}")
    g.expect(r"^tick 5 .* #!mayfly$")
    g.patch("/vm", state="Paused")
    state, memory = os.path.join(WORK, "state"), os.path.join(WORK, "memory")
    start = time.monotonic()
    g.put("/snapshot/create", snapshot_path=state, mem_file_path=memory, snapshot_type="Full")
    took = time.monotonic() - start
    last = re.findall(r"^tick (\d+) ([\d.]+) (\d+)", g.console(), re.M)[-1]
    g.close()
    time.sleep(3)
    m = Monitor()
    start = time.monotonic()
    m.put("/snapshot/load", snapshot_path=state, mem_backend={"backend_type": "File", "backend_path": memory}, resume_vm=True)
    loaded = time.monotonic() - start
    begin, end = int(last[0]) + 3, int(last[0]) + 33
    m.expect(rf"^tick {begin} .* #!mayfly$")
    start = time.monotonic()
    m.expect(rf"^tick {end} .* #!mayfly$")
    passed = time.monotonic() - start
    ticks = [(int(a), float(b)) for a, b in re.findall(r"^tick (\d+) ([\d.]+) \d+ #!mayfly$", m.console(), re.M)]
    at = dict(ticks)
    check(abs(at[end] - at[begin] - passed) < 1, f"{passed:.2f} s passed, the restored guest counts {at[end] - at[begin]:.2f} s")
    steps = [b[1] - a[1] for a, b in zip(ticks, ticks[1:])]
    check(min(steps) >= 0 and ticks[0][1] >= float(last[1]), "time ran backwards")
    no_faults(m.console())
    note(f"{name}: create {took * 1000:.0f} ms, load {loaded * 1000:.0f} ms, largest step of uptime {max(steps):.2f} s, "
         f"{passed:.2f} s outside are {at[end] - at[begin]:.2f} s of uptime")
    m.close()
    os.unlink(state)
    os.unlink(memory)
