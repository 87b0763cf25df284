#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A guest that writes every port, MMIO registers over the whole gap, every MSR and every IPI: the monitor lives, answers
its API and ends the guest as documented when the guest is beyond help. What kills its own guest has one of its own."""
# timeout: 900
import re
import time

from lib import Guest, asset, check, note

# The TSC and kvmclock of old, TSC_ADJUST, the deadline, kvmclock; the APIC's base, its registers, EFER, the entry points of
# system calls, each of the segment bases.
FATAL = ((0x10, 0x13), (0x3b, 0x3c), (0x6e0, 0x6e1), (0x4b564d00, 0x4b564d02),
         (0x1b, 0x1c), (0x800, 0x880), (0xc0000080, 0xc0000081), (0xc0000081, 0xc0000085), (0xc0000100, 0xc0000101),
         (0xc0000101, 0xc0000102), (0xc0000102, 0xc0000103))
for what in ("ports", "mmio", "msrs", "ports 0x3f6 0x400", *(f"msrs {a:#x} {b:#x}" for a, b in FATAL), *(f"ipis {mode}" for mode in range(8))):
    g = Guest(asset("cloud-6.1", "vmlinuz"), asset("cloud-6.1", "initrd.gz"), vcpus=2, mem=256,
              args="iomem=relaxed msr.allow_writes=on mayfly.then=stay panic=1", script=f"probe {what}").start()
    g.up()
    # From here on a guest outlives what it does, or is given some seconds to show that it does not.
    outlives = what in ("ports", "mmio", "msrs")
    end = time.monotonic() + (120 if outlives else 4)
    slowest = 0
    while g.process.poll() is None and "script: exit" not in g.console() and time.monotonic() < end:
        start = time.monotonic()
        try:
            g.get("/")
        except OSError:
            g.wait(10)      # it refused because it has ended, or it must not have refused
            break
        slowest = max(slowest, time.monotonic() - start)
        time.sleep(0.2)
    if g.process.poll() is None:
        check(g.get("/")["state"] == "Running", "the API does not answer rightly")
        done = (re.findall(r"^probe: .*", g.console(), re.M) or ["the guest hangs"])[0]
    else:
        # A reset or a guest that KVM gave up on: 0 or the documented status, never a signal.
        check(g.process.returncode in (0, 3), f"{what}: the monitor ended with {g.process.returncode}\n{g.tail()}")
        done = f"guest ended the machine, exit status {g.process.returncode}"
    check(not outlives or done.endswith("done, 0"), f"{what}: {done}\n{g.tail()}")
    note(f"{what}: {done}; slowest API answer {slowest * 1000:.0f} ms")
    g.close()
