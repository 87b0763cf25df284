#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PATCH of a running guest's drive and network: it sees the new image and its size; a rate limit takes and lifts."""
# timeout: 180
import re

from lib import Guest, asset, check, disk, linux, note, tap

tap("tape0", "172.31.0.1/24")
small, large = disk(8), disk(24)
with open(large, "r+b") as f:
    f.write(b"a new image")
g = Guest(linux(), asset("initrd.gz"), "mayfly.ip=172.31.0.2/24,172.31.0.1 mayfly.then=stay", drives=[small],
          nets=["tape0"], script="""
    disk=/dev/vda
    echo "size $(cat /sys/block/vda/size)"
    until [ "$(cat /sys/block/vda/size)" = 49152 ]; do sleep 0.1; done
    echo "size $(cat /sys/block/vda/size): $(dd if=/dev/vda bs=11 count=1 2>/dev/null)"
    until [ -e /sys/block/none ]; do
        start=$(cut -d' ' -f1 /proc/uptime)
        dd if=/dev/vda of=/dev/null bs=64k count=32 iflag=direct 2>/dev/null
        echo "read 2 MiB: $start $(cut -d' ' -f1 /proc/uptime)"
        sleep 0.2
    done""").start()
g.expect(r"^size 16384$")
g.patch("/drives/d0", drive_id="d0", path_on_host=large)
g.expect(r"^size 49152: a new image$")


def last_read(count):
    """Seconds of the count-th read from now."""
    done = len(re.findall(r"^read 2 MiB: .*\n", g.console().replace("\r", ""), re.M))
    found = g.expect(rf"(?:^read 2 MiB: [\d.]+ [\d.]+\n[^r]*){{{done + count}}}", 60)[0].split()
    return float(found[-1]) - float(found[-2])


free = last_read(2)
g.patch("/drives/d0", drive_id="d0", rate_limiter={"bandwidth": {"size": 1 << 20, "refill_time": 1000}})
slow = last_read(3)
g.patch("/drives/d0", drive_id="d0", rate_limiter={"bandwidth": {"size": 0, "refill_time": 0}})
again = last_read(3)
note(f"2 MiB read in {free:.2f} s, limited to 1 MiB/s {slow:.2f} s, limit lifted {again:.2f} s")
check(slow > 1.5, "the limit did not take")
check(again < slow / 2, "the limit was not lifted")

g.patch("/network-interfaces/n0", iface_id="n0", rx_rate_limiter={"ops": {"size": 1, "refill_time": 1000}})
g.patch("/network-interfaces/n0", iface_id="n0", rx_rate_limiter={"ops": {"size": 0, "refill_time": 0}})
check(g.process.poll() is None, "the monitor ended")
g.close()
