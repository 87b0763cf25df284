#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A guest paused for 10 s goes on without soft lock-up or stall messages, its clocks steady: monotonic time does not
run backwards, timers fire, the TSC stays the clock it was."""
# timeout: 180
import re
import signal
import time

from lib import Guest, asset, check, faults, linux, note

PAUSE = 10
for name, kernel, initrd, n in (("Debian 6.1", asset("cloud-6.1", "vmlinuz"), asset("cloud-6.1", "initrd.gz"), 2),
                                ("6.12", linux(), asset("initrd.gz"), 2)):
    g = Guest(kernel, initrd, vcpus=n, script="""
        for i in $(seq 1 200); do
            echo "tick $i $(cut -d' ' -f1 /proc/uptime) $(date +%s)"
            [ ! -e /tmp/stop ] && sleep 0.2
        done""").start()
    g.expect(r"^tick 5 ")
    g.patch("/vm", state="Paused")
    check(g.get("/")["state"] == "Paused", "not paused")
    quiet = len(g.console())
    time.sleep(PAUSE)
    check(len(g.console()) == quiet, "a paused guest wrote to its console")
    g.patch("/vm", state="Resumed")
    last = int(re.findall(r"^tick (\d+) ", g.console(), re.M)[-1])
    g.expect(rf"^tick {last + 20} ")
    ticks = [(int(a), float(b), int(c)) for a, b, c in re.findall(r"^tick (\d+) ([\d.]+) (\d+)$", g.console(), re.M)]
    steps = [b[1] - a[1] for a, b in zip(ticks, ticks[1:])]
    check(min(steps) >= 0, f"time ran backwards: {min(steps)}")
    # Stopped from outside (a debugger, a frozen cgroup) the monitor goes on too, and still answers.
    g.process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    g.process.send_signal(signal.SIGCONT)
    g.expect(rf"^tick {last + 40} ")
    check(g.get("/")["state"] == "Running", "the API does not answer after SIGCONT")
    check(not faults(g.console()), faults(g.console()))
    note(f"{name}: largest step of uptime over a pause of {PAUSE} s: {max(steps):.2f} s, others at most "
         f"{sorted(steps)[-2]:.2f} s")
    g.close()
