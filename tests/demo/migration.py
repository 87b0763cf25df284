# SPDX-License-Identifier: Apache-2.0
"""The migration demo: a microVM moves to and fro under a download, a link is cut in the middle of a pull, a host is
drained; all with mayflyctl, as docs/migrating.md has it."""
import json
import os
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from ctlmig import Arrived, Ctl, Pair, address, pids_beneath, results  # noqa: E402
from lib import Monitor  # noqa: E402
from test_migration import Client  # noqa: E402

GUESTS = 4


def bold(text):
    print(f"\033[1m{text}\033[0m", flush=True)


def expect(what, status=0):
    got, out, err = what.end()
    if got != status:
        raise SystemExit(f"demo-migration: {' '.join(what.p.args)}: status {got}\n{out}{err}")
    return out


class Demo:
    def __init__(self):
        self.lan = Pair(GUESTS)
        self.dir = tempfile.mkdtemp(prefix="mayfly-demo-")
        self.where, self.hops, self.booted = 0, 0, []

    def close(self):
        for sock, pid in pids_beneath(self.dir).items():
            Arrived(sock, pid).close()
        for m in self.booted:
            m.close()
        self.lan.close()
        shutil.rmtree(self.dir)

    def path(self, name):
        return os.path.join(self.dir, name)

    def boot(self, i):
        """On the first host: vm0, vm1, ..., each with a tap, an address and a disk."""
        with open(self.path(f"vm{i}.img"), "wb") as f:
            f.truncate(16 << 20)
        m = Monitor(netns=self.lan.hosts[0])
        self.booted.append(m)
        m.boot(f"ip=172.30.0.{2 + i}/24 gw=172.30.0.1", drives=[self.path(f"vm{i}.img")], start=False)
        m.put("/network-interfaces/eth0", iface_id="eth0", host_dev_name=f"tap{i}", guest_mac=f"06:00:AC:1E:00:0{2 + i}")
        m.put("/actions", action_type="InstanceStart")
        return m

    def move(self, sock, *args, meanwhile=None):
        """The microVM to the other host. (its socket there, what migrate says, what receive says)"""
        self.where, self.hops = 1 - self.where, self.hops + 1
        hosts, record = self.lan.hosts, ["--arbiter", self.path("vm0.arbiter"), "--json"]
        r = Ctl(hosts[self.where], "receive", "--listen", address(self.where), "--spawn", "--api-sock",
                self.path(f"vm0-{self.hops}.sock"), *record)
        r.wait_for("listening")
        m = Ctl(hosts[1 - self.where], "migrate", address(self.where), "--api-sock", sock, "--name", "vm0", *record, *args)
        if meanwhile:
            meanwhile(m)
        a, b = json.loads(expect(m)), results(expect(r))["vm0"]
        return b["socket"], a, b

    def sum(self):
        return self.lan.http("GET", "/sum?mib=32", timeout=30)[1].split(b",")[0]

    def ten_moves(self, sock):
        c = Client(self.lan)
        print("  mayflyctl receive --listen 10.77.0.2:7000 --api-sock B --spawn --arbiter A    (there)")
        print("  mayflyctl migrate 10.77.0.2:7000 --api-sock S --arbiter A --mode M            (here)")
        print("  move  mode      paused      pages sent  pulled on demand  total       downloaded")
        for hop in range(10):
            mode = ("precopy", "postcopy", "hybrid")[hop % 3]
            sock, a, b = self.move(sock, "--mode", mode, "--downtime", 20)
            time.sleep(0.2)
            if c.error:
                raise SystemExit(f"demo-migration: the download failed: {c.error}")
            print(f"  {hop + 1:4}  {mode:8} {a['downtime_ms']:6.1f} ms {a['source']['pages']:13} "
                  f"{b['target']['requests']:17} {a['total_ms']:7.1f} ms {c.got >> 20:8} MiB")
        c.stop = True
        c.join(10)
        print(f"  every byte was the right one; the client's longest wait: {c.gap * 1000:.0f} ms")
        return sock

    def cut(self, m):
        m.wait_for("activation")
        time.sleep(0.3)
        print("  the cable between the hosts is pulled in the middle of the pull...")
        self.lan.link(False)
        m.wait_for("the link is broken")
        self.lan.link(True)
        print("  ...and back; mayflyctl connects anew")

    def drain(self):
        """Three more at the host where it is now not; all that is there goes to the other."""
        for d in ("here", "there", "records"):
            os.mkdir(self.path(d))
        for i in range(1, GUESTS):
            os.symlink(self.boot(i).sock, self.path(f"here/vm{i}.sock"))
        host = 1
        r = Ctl(self.lan.hosts[host], "receive", "--listen", address(host), "--dir", self.path("there"), "--arbiter-dir",
                self.path("records"))
        r.wait_for("listening")
        out = expect(Ctl(self.lan.hosts[1 - host], "drain", self.path("here"), "--to", address(host), "--arbiter-dir",
                         self.path("records"), "-n", 2))
        print("  " + out.strip().replace("\n", "\n  "))
        r.stop()

    def run(self):
        bold("1. Two hosts, joined by a cable; a microVM on the first, with a disk that both reach")
        sock = self.boot(0).sock
        print("  GET / ->", self.lan.http("GET", "/")[1].decode().strip())
        self.lan.http("GET", "/touch?mib=32&seed=1")
        total = self.sum()
        bold("2. A download from it begins, and it moves ten times")
        sock = self.ten_moves(sock)
        bold("3. The link breaks in the middle of a pull, and is mended")
        _, a, b = self.move(sock, "--mode", "postcopy", "--bandwidth", 8, meanwhile=self.cut)
        print(f"  {a['recoveries']} recovery, {b['target']['remaining_pages']} pages absent")
        if self.sum() != total or not total:
            raise SystemExit("demo-migration: memory differs")
        print("  its 32 MiB of memory are what they were")
        bold("4. A host is drained")
        self.drain()
        bold("demo-migration: everything worked")


if __name__ == "__main__":
    demo = Demo()
    try:
        demo.run()
    finally:
        demo.close()
