#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A guest that writes every port, MMIO registers over the whole gap, every MSR and every kind of IPI: the monitor lives,
answers its API and ends the guest as documented when the guest is beyond help."""
# timeout: 500
import re
import time

from lib import Guest, asset, check, note

for what in ("ports", "mmio", "msrs", "ipis"):
    g = Guest(asset("cloud-6.1", "vmlinuz"), asset("cloud-6.1", "initrd.gz"), vcpus=2, mem=256,
              args="iomem=relaxed msr.allow_writes=on mayfly.then=stay panic=1", script=f"probe {what}").start()
    g.up()
    end = time.monotonic() + 90
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
    note(f"{what}: {done}; slowest API answer {slowest * 1000:.0f} ms")
    g.close()
