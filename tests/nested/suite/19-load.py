#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load from a Linux guest, checked end to end by checksum: TCP in both directions with the guest's offloads on and off,
and parallel direct and buffered disk traffic."""
# timeout: 600
import hashlib
import time

from lib import Guest, asset, check, disk, linux, listen, no_faults, note, tap

MIB = 8
tap("tapl0", "172.29.0.1/24")
CHUNK = hashlib.sha256(b"load").digest() * (1 << 15)      # 1 MiB
SUM = hashlib.sha256(CHUNK * MIB).hexdigest()
results = {}


def send(c):
    for _ in range(MIB):
        c.sendall(CHUNK)


def receive(c):
    h, n = hashlib.sha256(), 0
    while data := c.recv(1 << 18):
        h.update(data)
        n += len(data)
    results["received"] = (n, h.hexdigest())


sender, receiver = listen("172.29.0.1", send), listen("172.29.0.1", receive)
TCP = f"""
    t0=$(cut -d' ' -f1 /proc/uptime)
    echo "sum $(busybox nc 172.29.0.1 {sender} </dev/null | tee /tmp/data | sha256sum | cut -c1-64)"
    t1=$(cut -d' ' -f1 /proc/uptime)
    busybox nc 172.29.0.1 {receiver} </tmp/data || exit 1
    t2=$(cut -d' ' -f1 /proc/uptime)
    echo "times $t0 $t1 $t2" """
data = disk(192)
g = Guest(linux(), args="mayfly.ip=172.29.0.2/24,172.29.0.1", vcpus=2, mem=768, root=asset("debian.ext4"), root_ro=True,
          nets=["tapl0"], drives=[data], script=f"""
    # What the guest may switch: rx-checksumming is fixed in virtio's driver.
    all='^(tx-checksumming|tcp-segmentation-offload|generic-segmentation-offload|generic-receive-offload): '
    [ "$(ethtool -k eth0 | grep -cE "${{all}}on")" = 4 ] || {{ ethtool -k eth0; exit 2; }}
    echo "offloads on"; {TCP}
    ethtool -K eth0 tx off tso off gso off gro off || exit 3
    [ "$(ethtool -k eth0 | grep -cE "${{all}}off")" = 4 ] || {{ ethtool -k eth0; exit 4; }}
    echo "offloads off"; {TCP}
    # Four writers and readers at once, direct and buffered, each in its own part of the disk.
    part() {{
        dd if=/dev/urandom of=/tmp/part$1 bs=1M count=8 2>/dev/null
        dd if=/tmp/part$1 of=/dev/vdb bs=$2 seek=$(($1 * 33554432 / $2)) $3 2>/dev/null || return 1
        dd if=/dev/vdb bs=$2 skip=$(($1 * 33554432 / $2)) count=$((8388608 / $2)) iflag=direct 2>/dev/null |
            cmp - /tmp/part$1 || return 1
        echo "part $1 ok"
    }}
    mount -o remount,size=400m /tmp
    t0=$(cut -d' ' -f1 /proc/uptime)
    part 0 4096 "oflag=direct" & part 1 65536 "oflag=direct" & part 2 4096 "conv=fsync" & part 3 1048576 "conv=fsync" &
    wait
    echo "disk times $t0 $(cut -d' ' -f1 /proc/uptime)" """).start()
for mode in ("on", "off"):
    at = g.expect(rf"^offloads {mode}", 120).end()
    got = g.expect(r"^sum ([0-9a-f]{64})", 200, at)[1]
    check(got == SUM, f"offloads {mode}: the guest received other bytes")
    t = [float(x) for x in g.expect(r"^times ([\d. ]+)", 200, at)[1].split()]
    # The listener's thread may still be reading what the guest's kernel has sent.
    end = time.monotonic() + 20
    while results.get("received", (0, 0))[1] != SUM and time.monotonic() < end:
        time.sleep(0.1)
    check(results.get("received") == (MIB << 20, SUM), f"offloads {mode}: host received {results.get('received')}")
    results.clear()
    note(f"offloads {mode}: {MIB / (t[1] - t[0]):.1f} MiB/s in, {MIB / (t[2] - t[1]):.1f} MiB/s out")
t = [float(x) for x in g.expect(r"^disk times ([\d. ]+)", 300)[1].split()]
console = g.script_passed()
for part in range(4):
    check(f"part {part} ok" in console, f"disk part {part} did not verify")
check(g.wait() == 0, f"exit status {g.process.returncode}")
no_faults(g.console())    # it has ended: all of it
with open(data, "rb") as f:
    check(any(f.read(8 << 20)), "nothing arrived in the image")
note(f"disk: 32 MiB written and read back by four at once in {t[1] - t[0]:.1f} s")
