#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a hostile neighbour can take: two jailed microVMs of equal weight on one CPU, one of them flooding.

The first spins, floods its serial port, its disk, its timer's interrupts, registers that are not there, or spins while
its tap is flooded; the second only spins. Printed is the second's part of the CPU time that both got, as a table in
Markdown: fair is 0.50, and the goal is within 10 % of that.
Needs root and the cpu controller (v1 or v2).
"""
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
import lib  # noqa: E402
from bench_jail import head  # noqa: E402
from test_jail import cgroup_v1, cgroup_v2  # noqa: E402
from test_jail_monitor import JailedMonitor  # noqa: E402

SECONDS = float(os.environ.get("BENCH_SECONDS", "5"))


def groups():
    try:
        cgroup_v1("cpuset")
        cgroup_v1("cpu")
        return ["--cgroup", "cpu.shares=512", "--cgroup", "cpuset.cpus=0"]
    except unittest.SkipTest:
        cgroup_v2("cpu", "cpuset")
        return ["--cgroup-version", "2", "--cgroup", "cpu.weight=50", "--cgroup", "cpuset.cpus=0"]


class Jailed:
    def __init__(self, tmp, name, kernel, flags, args="", spin=True):
        self.net, self.dir = lib.Netns(), os.path.join(tmp, name)
        os.makedirs(os.path.join(self.dir, "data"))
        os.chmod(self.dir, 0o755)
        shutil.copy(lib.guest(kernel), os.path.join(self.dir, "data", "kernel"))
        os.chmod(os.path.join(self.dir, "data", "kernel"), 0o644)
        with open(os.path.join(self.dir, "data", "disk"), "wb") as f:
            f.truncate(256 << 20)
        os.chown(f.name, 54321, 54321)
        sock = os.path.join(self.dir, "api")
        self.m = JailedMonitor(sock, self.dir, [
            os.path.join(lib.BUILD, "mayfly-jail"), "--strict", "--id", name, "--exec-file", lib.MAYFLY, "--uid",
            "54321", "--gid", "54321", "--api-sock", sock, "--netns", f"/run/netns/{self.net.name}", "--tap",
            "tap0", "--dir", os.path.join(self.dir, "data"), *flags])
        self.m.put("/boot-source", kernel_image_path="/data/kernel", boot_args=f"ip=172.30.0.2 gw=172.30.0.1 {args}")
        self.m.put("/drives/d", drive_id="d", path_on_host="/data/disk", is_root_device=False)
        self.m.put("/network-interfaces/e", iface_id="e", host_dev_name="tap0", guest_mac=self.net.mac)
        self.m.put("/actions", action_type="InstanceStart")
        with open(f"/proc/{self.m.p.pid}/task/{self.m.p.pid}/children") as f:
            self.pid = int(f.read())
        if kernel == "function" and spin:
            self.net.http("GET", "/spin?on=1")

    def cpu(self):
        with open(f"/proc/{self.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def flood(self, stop):
        s = self.net.socket(socket.AF_INET, socket.SOCK_DGRAM)
        while not stop.is_set():
            try:
                s.sendto(b"x" * 64, (self.net.guest, 9))
            except OSError:
                pass

    def end(self):
        self.m.p.terminate()
        self.m.p.wait()
        self.net.close()


def measure(tmp, name, flags, kernel="function", args="", spin=True, net_flood=False):
    a = Jailed(tmp, f"a{name}-{os.getpid()}", kernel, flags, args, spin)
    b = Jailed(tmp, f"b{name}-{os.getpid()}", "function", flags)
    stop = threading.Event()
    t = threading.Thread(target=a.flood, args=(stop,)) if net_flood else None
    try:
        if t:
            t.start()
        time.sleep(0.5)
        before = a.cpu(), b.cpu()
        time.sleep(SECONDS)
        used = a.cpu() - before[0], b.cpu() - before[1]
        part = used[1] / max(sum(used), 1)
        print(f"| {name} | {used[0] / 100:.2f} | {used[1] / 100:.2f} | {part:.3f} | "
              f"{'met' if abs(part - 0.5) <= 0.05 else '**MISSED**'} |", flush=True)
    finally:
        stop.set()
        if t:
            t.join()
        a.end()
        b.end()


def main():
    lib.need_root()
    flags = groups()
    tmp = tempfile.mkdtemp(prefix="mayfly-fair-")
    os.chmod(tmp, 0o755)
    disk = f"mode=blkbench bench.depth=64 bench.secs={SECONDS * 10 + 60:.0f} bench.op="
    print(f"{head()}; {SECONDS:.0f} s each; {' '.join(flags[1::2])}\n\n"
          "| the hostile one | its CPU time, s | the neighbour's, s | neighbour's part | 0.45 to 0.55 |\n"
          "| --- | --: | --: | --: | --- |", flush=True)
    try:
        measure(tmp, "spin", flags)
        measure(tmp, "serial", flags, "serialflood")
        measure(tmp, "network", flags, net_flood=True)
        measure(tmp, "disk-write", flags, args=disk + "randwrite", spin=False)
        measure(tmp, "disk-read", flags, args=disk + "randread", spin=False)
        measure(tmp, "interrupts", flags, args="tick=50000", spin=False)
        measure(tmp, "registers", flags, "storm", "rounds=0")
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    main()
