#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PATCH of a running guest's drive and network: it sees the new image and its size; rate limits of the drive and of both
directions of the network take and lift."""
# timeout: 180
import re
import socket
import threading
import time

from lib import Guest, asset, check, disk, linux, note, tap

tap("tape0", "172.31.0.1/24")
go = threading.Event()


def listen(handler):
    """A port; the handler gets the guest's connection once the network's turn has come."""
    s = socket.create_server(("172.31.0.1", 0))

    def serve():
        c, _ = s.accept()
        go.wait()
        try:
            while handler(c):
                pass
        except OSError:
            pass    # the guest has ended
    threading.Thread(target=serve, daemon=True).start()
    return s.getsockname()[1]


to_guest, from_guest = listen(lambda c: c.send(bytes(16384))), listen(lambda c: c.recv(65536))
small, large = disk(8), disk(24)
with open(large, "r+b") as f:
    f.write(b"a new image")
g = Guest(linux(), asset("initrd.gz"), "mayfly.ip=172.31.0.2/24,172.31.0.1 mayfly.then=stay", drives=[small],
          nets=["tape0"], script=f"""
    busybox nc 172.31.0.1 {to_guest} </dev/null >/dev/null &
    busybox nc 172.31.0.1 {from_guest} </dev/zero >/dev/null &
    echo "size $(cat /sys/block/vda/size)"
    until [ "$(cat /sys/block/vda/size)" = 49152 ]; do sleep 0.1; done
    echo "size $(cat /sys/block/vda/size): $(dd if=/dev/vda bs=11 count=1 2>/dev/null)"
    until [ -e /sys/block/none ]; do
        start=$(cut -d' ' -f1 /proc/uptime)
        dd if=/dev/vda of=/dev/null bs=64k count=32 iflag=direct 2>/dev/null
        echo "read 2 MiB: $start $(cut -d' ' -f1 /proc/uptime)"
        echo "net $(cut -d' ' -f1 /proc/uptime) $(cat /sys/class/net/eth0/statistics/rx_bytes /sys/class/net/eth0/statistics/tx_bytes | xargs)"
        sleep 0.2
    done""").start()
g.expect(r"^size 16384$")
g.patch("/drives/d0", drive_id="d0", path_on_host=large)
g.expect(r"^size 49152: a new image$")


def last_read(count):
    """Seconds of the count-th read from now."""
    done = len(re.findall(r"^read 2 MiB: .*\n", g.console().replace("\r", ""), re.M))
    found = g.expect(rf"(?:^read 2 MiB: [\d.]+ [\d.]+\n[^r]*){{{done + count}}}", 90)[0].split()
    return float(found[-1]) - float(found[-2])


free = last_read(2)
g.patch("/drives/d0", drive_id="d0", rate_limiter={"bandwidth": {"size": 512 << 10, "refill_time": 1000}})
slow = last_read(3)
g.patch("/drives/d0", drive_id="d0", rate_limiter={"bandwidth": {"size": 0, "refill_time": 0}})
again = last_read(3)
note(f"2 MiB read in {free:.2f} s, limited to 512 KiB/s {slow:.2f} s, limit lifted {again:.2f} s")
check(slow > 3, "the limit did not take")
check(again < slow / 2, "the limit was not lifted")


def rates(seconds=3):
    """KiB a second that the guest counts in and out from a second after now."""
    def counts():
        return [[float(x) for x in line] for line in re.findall(r"^net ([\d.]+) (\d+) (\d+)$", g.console(), re.M)]
    end = counts()[-1][0] + 1 + seconds
    deadline = time.monotonic() + 60
    while (now := counts())[-1][0] < end:
        check(time.monotonic() < deadline, f"the guest no longer counts\n{g.tail()}")
        time.sleep(0.1)
    window = [c for c in now if c[0] >= end - seconds]
    return [(window[-1][i] - window[0][i]) / 1024 / (window[-1][0] - window[0][0]) for i in (1, 2)]


go.set()
free = rates()
for direction, limiter in enumerate(("rx_rate_limiter", "tx_rate_limiter")):
    g.patch("/network-interfaces/n0", iface_id="n0", **{limiter: {"bandwidth": {"size": 64 << 10, "refill_time": 1000}}})
    slow = rates()[direction]
    g.patch("/network-interfaces/n0", iface_id="n0", **{limiter: {"bandwidth": {"size": 0, "refill_time": 0}}})
    again = rates()[direction]
    note(f"{limiter}: {free[direction]:.0f} KiB/s, limited to 64 KiB/s {slow:.0f} KiB/s, limit lifted {again:.0f} KiB/s")
    check(slow < 80, f"{limiter} did not take")
    check(free[direction] > 2 * slow and again > 2 * slow, f"{limiter} was not lifted")
g.close()
