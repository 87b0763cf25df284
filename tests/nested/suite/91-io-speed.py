#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a Linux guest gets of its disk and network, Mayfly beside Firecracker (PEER_FIRECRACKER) in turns: the same guest,
image and tap; timed by the guest's clock. It reports, the reader judges."""
# timeout: 900
import re
import socket
from statistics import median

from lib import MAYFLY, PEER, Guest, asset, disk, goal, linux, listen, skip, tap

if not PEER:
    skip("PEER_FIRECRACKER is unset: no comparison")
RUNS, MIB = 5, 8
CHUNK = bytes(1 << 20)
tap("taps0", "172.29.1.1/24")


def send(c):
    for _ in range(MIB):
        c.sendall(CHUNK)


def receive(c):
    while c.recv(1 << 18):
        pass


def answer(c):
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := c.recv(64):
        c.sendall(data)


sender, receiver, echo = listen("172.29.1.1", send), listen("172.29.1.1", receive), listen("172.29.1.1", answer)
# What is timed, and how many units that is.
STEPS = {
    "blk read 4 KiB, IOPS": (2000, "dd if=/dev/vdb of=/dev/null bs=4k count=2000 iflag=direct"),
    "blk write 4 KiB, IOPS": (2000, "dd if=/dev/zero of=/dev/vdb bs=4k count=2000 oflag=direct"),
    "blk read 128 KiB, MiB/s": (64, "dd if=/dev/vdb of=/dev/null bs=128k count=512 iflag=direct"),
    "blk write 128 KiB, MiB/s": (64, "dd if=/dev/zero of=/dev/vdb bs=128k count=512 oflag=direct"),
    "net in, MiB/s": (MIB, f"busybox nc 172.29.1.1 {sender} </dev/null >/dev/null"),
    "net out, MiB/s": (MIB, f"dd if=/dev/zero bs=64k count={MIB * 16} | busybox nc 172.29.1.1 {receiver}"),
}
ROUNDS = 500
PING = f"""import socket, time
s = socket.create_connection(("172.29.1.1", {echo}))
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
a = time.monotonic()
for _ in range({ROUNDS}):
    s.sendall(b"x")
    s.recv(64)
print("step {len(STEPS)}:", a, time.monotonic())"""
script = "\n".join(f"""
    t=$(cut -d' ' -f1 /proc/uptime); {command} 2>/dev/null || exit {i + 1}
    echo "step {i}: $t $(cut -d' ' -f1 /proc/uptime)" """ for i, (_, command) in enumerate(STEPS.values()))
script += f"\npython3 -c '{PING}' || exit 99"
STEPS["net round trips a second"] = (ROUNDS, PING)
image = disk(64)
rates = {name: {step: [] for step in STEPS} for name in ("mayfly", "firecracker")}
for _ in range(RUNS):
    for name, binary in (("mayfly", MAYFLY), ("firecracker", PEER)):
        g = Guest(linux(), args="quiet pci=off mayfly.ip=172.29.1.2/24,172.29.1.1 mayfly.then=stay", mem=256, binary=binary,
                  root=asset("debian.ext4"), root_ro=True, drives=[image], nets=["taps0"], script=script).start()
        console = g.script_passed(200)
        g.close()
        for i, (step, (units, _)) in enumerate(STEPS.items()):
            a, b = re.search(rf"^step {i}: ([\d.]+) ([\d.]+)$", console, re.M).groups()
            rates[name][step].append(units / max(float(b) - float(a), 0.01))
for step in STEPS:
    mine, theirs = (median(rates[name][step]) for name in ("mayfly", "firecracker"))
    goal(f"{step}: Mayfly {mine:.0f}, Firecracker {theirs:.0f}, Firecracker / Mayfly", theirs / mine, 1)
