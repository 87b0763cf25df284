#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""64 MiB to 6 GiB, on both sides of the gap below 4 GiB: the guest sees all of it, and where there is memory above 4 GiB
it is written and reads back."""
# timeout: 300
from lib import Guest, asset, check, linux, no_faults, note

for mib in (64, 128, 1024, 3072, 4096, 6144):
    g = Guest(linux(), asset("initrd.gz"), mem=mib, script="""
        grep MemTotal /proc/meminfo
        grep "System RAM" /proc/iomem
        # Half of the free memory, no more than the host of this guest has to spare.
        free=$(awk '/MemFree/ {print int($2 / 2048)}' /proc/meminfo); [ $free -lt 200 ] || free=200
        normal() { awk '/zone/ {z = $4} z == "Normal" && $1 == "pages" {n += $3} END {print n + 0}' /proc/zoneinfo; }
        head -c 1048576 /dev/urandom >/block || exit 2
        before=$(normal)
        mount -t tmpfs -o size=${free}m none /tmp || exit 1
        for i in $(seq 2 $free); do cat /block; done >/tmp/fill || exit 3
        echo "written above 4 GiB: $(( (before - $(normal)) / 256 )) MiB"
        want=$(sha256sum </block)
        for i in $(seq 2 16 $free); do
            [ "$(dd if=/tmp/fill bs=1M skip=$((i - 2)) count=1 2>/dev/null | sha256sum)" = "$want" ] || exit 4
        done""")
    g.start()
    console = g.script_passed()
    total = int(g.expect(r"^MemTotal: +(\d+) kB")[1]) / 1024
    check(g.wait() == 0, f"exit status {g.process.returncode}")
    no_faults(g.console())    # it has ended: all of it
    # What a guest cannot see: its kernel, its page structures (1/64 of the whole) and the first MiB.
    check(total > mib * 0.97 - 40, f"{mib} MiB given, {total:.0f} MiB seen")
    high = [line for line in console.splitlines() if "System RAM" in line and int(line.split("-")[0], 16) >= 1 << 32]
    check(bool(high) == (mib > 3072), f"{mib} MiB: above 4 GiB there is {high}")
    written = int(g.expect(r"^written above 4 GiB: (-?\d+) MiB")[1])
    check(written > 100 or mib <= 3072, f"{mib} MiB: of 200 MiB written only {written} lie above 4 GiB")
    note(f"{mib} MiB: {written} MiB written above 4 GiB, guest sees {total:.0f} MiB")
    g.close()
