# SPDX-License-Identifier: Apache-2.0
"""The migration demo: ten moves under a download, then a link that is cut in the middle of a pull."""
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from lib import Monitor  # noqa: E402
from miglib import Lan, Wire, begin, request, wait  # noqa: E402
from test_migration import Client  # noqa: E402


def bold(text):
    print(f"\033[1m{text}\033[0m", flush=True)


class Demo:
    def __init__(self):
        self.lan = Lan()
        self.where, self.vm = 0, Monitor(netns=self.lan.hosts[0])
        fd, self.arbiter = tempfile.mkstemp(prefix="mayfly-arbiter-")
        os.close(fd)
        self.disk = tempfile.NamedTemporaryFile(prefix="mayfly-disk-")
        self.disk.truncate(16 << 20)

    def close(self):
        self.vm.close()
        self.lan.close()
        os.unlink(self.arbiter)

    def move(self, mode, wires=(), **kw):
        """Moves it to the other host; the link of each wire but the last is cut during the pull."""
        dst = Monitor(netns=self.lan.hosts[1 - self.where])
        begin(self.vm, dst, wires and wires[0].pairs, arbiter=self.arbiter, mode=mode, downtime_ms=20, **kw)
        for i, w in enumerate(wires[:-1]):
            wait(dst, ("active",), stage="activation")
            time.sleep(0.3)
            w.cut()
            left = wait(dst, ("paused",))["remaining_pages"]
            wait(self.vm, ("paused",))
            print(f"  link cut with {left} pages absent; the microVM is {dst.state()}, and waits where it needs one")
            request(dst, "recover", [p[1] for p in wires[i + 1].pairs])
            request(self.vm, "recover", [p[0] for p in wires[i + 1].pairs])
        a, b = wait(self.vm, seconds=60), wait(dst, seconds=60)
        self.vm.put("/migration/finalize")
        self.vm.wait_exit()
        self.vm.close()
        self.vm, self.where = dst, 1 - self.where
        return a, b

    def run(self):
        bold("1. Two hosts on one network; a microVM on the first, with a disk that both reach")
        self.vm.boot(netns=self.lan.hosts[0], drives=[self.disk.name], mem=256)
        print("  GET / ->", self.lan.http("GET", "/")[1].decode().strip())
        self.lan.http("GET", "/touch?mib=32&seed=1")
        total = self.lan.http("GET", "/sum?mib=32")[1].split(b",")[0]
        bold("2. A download from it begins, and it moves ten times")
        c = Client(self.lan)
        print("  move  mode      paused      pages sent  pulled on demand  total       downloaded")
        for hop in range(10):
            mode = ("precopy", "postcopy", "hybrid")[hop % 3]
            a, b = self.move(mode)
            time.sleep(0.2)
            if c.error:
                raise SystemExit(f"demo-migration: the download failed: {c.error}")
            print(f"  {hop + 1:4}  {mode:8} {a['downtime_us'] / 1000:6.1f} ms {a['pages']:13} {b['requests']:17} "
                  f"{a['total_us'] / 1000:7.1f} ms {c.got >> 20:8} MiB")
        c.stop = True
        c.join(10)
        print(f"  every byte was the right one; the client's longest wait: {c.gap * 1000:.0f} ms")
        bold("3. The link is cut in the middle of a pull, twice, and recovered")
        wires = [Wire() for _ in range(3)]
        a, b = self.move("postcopy", wires, bandwidth_mib_s=8)
        for w in wires:
            w.close()
        print(f"  {b['recoveries']} recoveries, {b['remaining_pages']} pages absent")
        after = self.lan.http("GET", "/sum?mib=32", timeout=30)[1].split(b",")[0]
        if after != total or not total:
            raise SystemExit(f"demo-migration: memory differs: {total} {after}")
        print("  its 32 MiB of memory are what they were")
        bold("demo-migration: everything worked")


if __name__ == "__main__":
    demo = Demo()
    try:
        demo.run()
    finally:
        demo.close()
