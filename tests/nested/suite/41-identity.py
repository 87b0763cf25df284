#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clones of a Linux guest: the kernel reseeds its random numbers (VMGenID), so that two clones draw different ones; wall
clock as asked; a Python function answers after the restore, over the connection that its clients make anew."""
# lane: quick
# timeout: 300
import os
import re
import time
import urllib.request

from lib import WORK, Guest, Monitor, asset, check, copy_of, linux, no_faults, note, tap

STATE, MEMORY = os.path.join(WORK, "state"), os.path.join(WORK, "memory")


def save(g):
    g.patch("/vm", state="Paused")
    g.put("/snapshot/create", snapshot_path=STATE, mem_file_path=MEMORY, snapshot_type="Full")
    g.close()


def load(**more):
    m = Monitor()
    m.put("/snapshot/load", snapshot_path=STATE, mem_backend={"backend_type": "File", "backend_path": MEMORY},
          resume_vm=True, **more)
    return m


TICK = r"^tick (\d+) (\d+) ([0-9a-f-]{36}) (\d+)$"
g = Guest(linux(), asset("initrd.gz"), mem=256, script="""
    for i in $(seq 1 1000); do
        r=$(dmesg | grep -c 'crng reseeded due to virtual machine fork')
        echo "tick $i $(date +%s) $(cat /proc/sys/kernel/random/uuid) $r"
        sleep 0.1
    done""").start()
g.expect(r"^tick 3 .* 0$")
save(g)
time.sleep(5)
drawn, late = [], {}
for clone, realtime in enumerate((False, True, True)):
    m = load(clock_realtime=realtime)
    asked = time.time()
    m.expect(r"^tick \d+ \d+ \S+ [1-9]", 30)   # the kernel says that it reseeded
    first = [x for x in re.findall(TICK, m.console(), re.M) if x[3] != "0"][0]
    drawn.append(first[2])
    late[clone] = asked - int(first[1])
    no_faults(m.console())
    m.close()
check(len(set(drawn)) == len(drawn), f"clones drew the same random numbers: {drawn}")
check(late[0] > 3 and all(abs(late[i]) < 3 for i in (1, 2)), f"wall clock behind by {late} s")
note(f"wall clock behind the host's: {late[0]:.0f} s as it was, {late[1]:.0f} s with clock_realtime")

tap("tapf0", "172.30.0.1/24")
root = copy_of(asset("debian.ext4"))
g = Guest(linux(), args="mayfly.ip=172.30.0.2/24,172.30.0.1 mayfly.function=8080", root=root, mem=512,
          nets=["tapf0"]).start()
g.expect(r"^function: listening")


def answer(path):
    with urllib.request.urlopen(f"http://172.30.0.2:8080/{path}", timeout=60) as r:
        return r.read().decode()


check("/before" in answer("before"), "no answer before the snapshot")
save(g)
m = load()
start = time.monotonic()
check("/after" in answer("after"), "no answer after the restore")
note(f"Python function answered {time.monotonic() - start:.2f} s after the restore")
no_faults(m.console())
m.close()
