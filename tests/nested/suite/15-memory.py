#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""64 MiB to 6 GiB, on both sides of the gap below 4 GiB: the guest sees all of it and can write its far end."""
# timeout: 300
from lib import Guest, asset, check, faults, linux, note

for mib in (64, 128, 1024, 3072, 4096, 6144):
    g = Guest(linux(), asset("initrd.gz"), mem=mib, script="""
        grep MemTotal /proc/meminfo
        grep "System RAM" /proc/iomem
        # Half of the free memory, no more than the host of this guest has to spare.
        free=$(awk '/MemFree/ {print int($2 / 2048)}' /proc/meminfo); [ $free -lt 200 ] || free=200
        mount -t tmpfs -o size=${free}m none /tmp && dd if=/dev/zero bs=1M count=$free of=/tmp/fill 2>/dev/null || exit 1""")
    g.start()
    console = g.script_passed()
    total = int(g.expect(r"^MemTotal: +(\d+) kB")[1]) / 1024
    check(g.wait() == 0, f"exit status {g.process.returncode}")
    check(not faults(console), faults(console))
    # What a guest cannot see: its kernel, its page structures (1/64 of the whole) and the first MiB.
    check(total > mib * 0.97 - 40, f"{mib} MiB given, {total:.0f} MiB seen")
    high = [line for line in console.splitlines() if "System RAM" in line and int(line.split("-")[0], 16) >= 1 << 32]
    check(bool(high) == (mib > 3072), f"{mib} MiB: above 4 GiB there is {high}")
    note(f"{mib} MiB: guest sees {total:.0f} MiB")
    g.close()
