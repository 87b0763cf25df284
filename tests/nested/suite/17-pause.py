#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A guest paused for 10 s goes on without soft lock-up or stall messages, its clocks right: monotonic time and the wall
clock run on through the pause and keep the host's pace, timers fire neither early nor late, and the TSC and the deadline
timer stay what they are driven by."""
# timeout: 180
import re
import signal
import time

from lib import Guest, asset, check, linux, no_faults, note

PAUSE = 10
for name, kernel, initrd, n in (("Debian 6.1", asset("cloud-6.1", "vmlinuz"), asset("cloud-6.1", "initrd.gz"), 2),
                                ("6.12", linux(), asset("initrd.gz"), 2)):
    g = Guest(kernel, initrd, vcpus=n, script="""
        clock=/sys/devices/system/clocksource
        for i in $(seq 1 200); do
            echo "tick $i $(cut -d' ' -f1 /proc/uptime) $(date +%s) $(cat $clock/clocksource0/current_clocksource) $(cat /sys/devices/system/clockevents/clockevent0/current_device)"
            [ ! -e /tmp/stop ] && sleep 0.2
        done""").start()
    g.expect(r"^tick 5 ")
    first = time.monotonic()
    g.patch("/vm", state="Paused")
    check(g.get("/")["state"] == "Paused", "not paused")
    quiet = len(g.console())
    time.sleep(PAUSE)
    check(len(g.console()) == quiet, "a paused guest wrote to its console")
    g.patch("/vm", state="Resumed")
    last = int(re.findall(r"^tick (\d+) ", g.console(), re.M)[-1])
    g.expect(rf"^tick {last + 20} ")
    # Stopped from outside (a debugger, a frozen cgroup) the monitor goes on too, and still answers.
    g.process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    g.process.send_signal(signal.SIGCONT)
    g.expect(rf"^tick {last + 40} ")
    check(g.get("/")["state"] == "Running", "the API does not answer after SIGCONT")
    passed = time.monotonic() - first
    no_faults(g.console())
    ticks = [(int(a), float(b), int(c), d) for a, b, c, d in
             re.findall(r"^tick (\d+) ([\d.]+) (\d+) (.*)$", g.console(), re.M)]
    check([t[0] for t in ticks] == list(range(1, len(ticks) + 1)), f"ticks are missing: {ticks}")
    steps = [b[1] - a[1] for a, b in zip(ticks, ticks[1:])]
    check(min(steps) >= 0.19, f"a timer of 0.2 s fired after {min(steps):.2f} s")
    check(PAUSE <= max(steps) < PAUSE + 3, f"uptime advanced {max(steps):.2f} s over a pause of {PAUSE} s")
    # The second largest is the stop from outside.
    check(sorted(steps)[-3] < 2, f"a timer of 0.2 s fired after {sorted(steps)[-3]:.2f} s")
    up, wall = ticks[last + 39][1] - ticks[4][1], ticks[last + 39][2] - ticks[4][2]
    drivers = {t[3] for t in ticks}
    check(drivers in ({"kvm-clock lapic-deadline"}, {"tsc lapic-deadline"}), f"time is driven by {drivers}")
    check(abs(up - passed) < 1 and abs(wall - up) < 1.5, f"{passed:.2f} s passed, in the guest {up:.2f} s of uptime and "
          f"{wall:.2f} s of wall clock")
    note(f"{name}: over a pause of {PAUSE} s uptime advances {max(steps):.2f} s; ticks of 0.2 s take {min(steps):.2f} to "
         f"{sorted(steps)[-3]:.2f} s; {passed:.2f} s outside are {up:.2f} s of uptime")
    g.close()
