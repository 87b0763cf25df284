# SPDX-License-Identifier: Apache-2.0
"""Snapshots end to end: what a guest was before, it is after; what is refused changes nothing."""
import http.client
import json
import os
import re
import shutil
import signal
import struct
import tempfile
import threading
import time
import unittest

from lib import BUILD, SANITIZED, ApiError, GuestCase, Monitor, guest, run
from miglib import api_fds


class SnapshotCase(GuestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="mayfly-snap-")
        self.addCleanup(shutil.rmtree, self.dir, True)

    def monitor(self, *args, **kw):
        m = super().monitor(*args, **kw)
        self.monitors = getattr(self, "monitors", []) + [m]
        return m

    def path(self, name):
        return os.path.join(self.dir, name)

    def create(self, m, name="a", check=True, **kw):
        kw = {"snapshot_path": self.path(name + ".state"), "mem_file_path": self.path(name + ".mem"), **kw}
        return m.api("PUT", "/snapshot/create", kw, check)

    def load(self, m, name="a", check=True, **kw):
        body = {"snapshot_path": self.path(name + ".state"), "resume_vm": True,
                "mem_backend": {"backend_type": "File", "backend_path": self.path(name + ".mem")}, **kw}
        body = {k: v for k, v in body.items() if v is not None}
        return m.api("PUT", "/snapshot/load", body, check)

    def get(self, ns, path, **kw):
        status, body = ns.http("GET", path, **kw)
        self.assertEqual(status, 200, body)
        return json.loads(body) if body[:1] in b"{[" else body

    def saved(self, ns, name="a", keep=False, boot=None, **kw):
        """A guest that was booted, paused and saved; ended unless keep."""
        m = self.monitor(netns=ns)
        m.boot(netns=ns, **(boot or {}))
        self.get(ns, "/counter")
        m.patch("/vm", state="Paused")
        self.create(m, name, **kw)
        if not keep:
            m.kill(signal.SIGTERM)  # in order: its tap and locks are free when it is gone
        return m


class Full(SnapshotCase):
    def test_goes_on(self):
        ns = self.netns()
        disk = self.disk()
        m = self.saved(ns, keep=True, boot={"drives": [disk]})
        size = os.stat(self.path("a.mem"))
        self.assertLess(size.st_blocks * 512, 4 << 20, "zero pages are holes")
        self.assertEqual(sorted(os.listdir(self.dir)), ["a.mem", "a.state"])
        m.patch("/vm", state="Resumed")
        first = self.get(ns, "/counter")
        m.kill()
        m2 = self.monitor(netns=ns)
        self.load(m2)
        again = self.get(ns, "/counter")
        self.assertEqual((first["boot"], first["counter"]), (again["boot"], again["counter"]))
        self.assertEqual(m2.state(), "Running")
        conf = m2.get("/vm/config")
        self.assertEqual(conf["drives"][0]["path_on_host"], disk)
        self.assertEqual(conf["machine-config"]["mem_size_mib"], 128)

    def test_disk_is_right(self):
        ns = self.netns()
        disk = self.disk()
        m = self.saved(ns, keep=True, boot={"drives": [disk]})
        m.kill()
        m2 = self.monitor(netns=ns)
        self.load(m2)
        data = os.urandom(512)
        self.assertEqual(ns.http("PUT", "/sector/9", data)[0], 200)
        self.assertEqual(ns.http("GET", "/sector/9")[1], data)
        with open(disk, "rb") as f:
            f.seek(9 * 512)
            self.assertEqual(f.read(512), data)

    def test_load_paused(self):
        ns = self.netns()
        self.saved(ns)
        m = self.monitor(netns=ns)
        self.load(m, resume_vm=None)
        self.assertEqual(m.state(), "Paused")
        m.patch("/vm", state="Resumed")
        self.get(ns, "/counter")

    def test_clone_is_another(self):
        """VMGenID moves on, so the guest reseeds: two clones of one moment never say the same."""
        ns = self.netns()
        self.saved(ns, boot={"args": "mayfly.vmgenid=0xd0000"})
        said = set()
        for _ in range(2):
            with Monitor(netns=ns) as m:
                self.load(m)
                self.assertEqual(self.get(ns, "/counter")["generation"], 1)
                said.add(self.get(ns, "/rand"))
        self.assertEqual(len(said), 2)

    def test_clone_tells_that_it_is_ready(self):
        """The recorded guest was ready, but the clone is when it says so itself: after it learned who it is."""
        ns, disk, config = self.netns(), self.disk(), self.disk(fill=b"id=template")
        m = self.saved(ns, keep=True, boot={"args": "mayfly.vmgenid=0xd0000", "drives": [disk, config]})
        self.assertTrue(m.get("/")["guest_ready_here"])
        m.kill(signal.SIGTERM)
        m = self.monitor(netns=ns)
        m.put("/metrics", metrics_path=self.path("metrics"))
        self.load(m, resume_vm=None)
        info = m.get("/")
        self.assertEqual((info["guest_ready"], info["guest_ready_here"]), (True, False))
        m.patch("/vm", state="Resumed")
        m.wait_for(lambda: m.get("/")["guest_ready_here"], 5, "ready clone")
        m.put("/actions", action_type="FlushMetrics")
        with open(self.path("metrics")) as f:
            self.assertGreater(json.loads(f.read().splitlines()[-1])["mayfly"]["guest_ready_us"], 0)
        self.get(ns, "/counter")

    def test_connection_survives(self):
        """A TCP connection lives through the pause in which a snapshot is made."""
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        self.get(ns, "/counter")
        s = ns.connect()
        s.sendall(b"GET /counter HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b"200", s.recv(4096))
        m.patch("/vm", state="Paused")
        self.create(m)
        s.sendall(b"GET /counter HTTP/1.1\r\nHost: x\r\n\r\n")
        m.patch("/vm", state="Resumed")
        self.assertIn(b"200", s.recv(4096))
        s.close()


class Cycles(SnapshotCase):
    def test_cycles_under_load(self):
        """Saved and restored again and again, mid-request: one TCP connection lives through all of it, the
        counter misses no beat, the disk holds what was written. A lost interrupt would end the talk."""
        cycles = int(os.environ.get("MAYFLY_CYCLES", "80"))
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[self.disk()], args="tick=200")
        self.get(ns, "/counter")
        s = ns.connect(timeout=20)
        reader = s.makefile("rb")
        last = 0
        for i in range(cycles):
            sector = 8 + i % 100
            body = (b"%08d" % i) * 64
            s.sendall(b"PUT /sector/%d HTTP/1.1\r\nHost: x\r\nContent-Length: 512\r\n\r\n" % sector + body)
            s.sendall(b"GET /sector/%d HTTP/1.1\r\nHost: x\r\n\r\n" % sector)
            m.patch("/vm", state="Paused")
            self.create(m)
            m.kill()
            m.close()
            m = self.monitor(netns=ns)
            end = time.monotonic() + 10  # the kernel gives a killed monitor's locks back when it gets to it
            while self.load(m, check=False)[0] == 400 and time.monotonic() < end:
                time.sleep(0.05)
            for want in (None, body):
                status, got = self.answer(reader)
                self.assertEqual(status, 200)
                if want:
                    self.assertEqual(got, want, f"cycle {i}")
            s.sendall(b"GET /counter HTTP/1.1\r\nHost: x\r\n\r\n")
            count = json.loads(self.answer(reader)[1])["counter"]
            self.assertGreater(count, last)
            last = count
        s.close()

    def answer(self, f):
        status = int(f.readline().split()[1])
        n = 0
        while (line := f.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                n = int(line.split(b":")[1])
        return status, f.read(n)


def merge(base, diff, out):
    """What mayflyctl does, told again from docs/snapshot-format.md alone."""
    with open(base, "rb") as f:
        mem = bytearray(f.read())
    with open(diff, "rb") as f:
        over = f.read()
    size = len(mem) - 4096
    magic, version, kind = struct.unpack_from("<8sII", over, size)
    assert (magic, version, kind) == (b"MAYFLYMM", 1, 2), (magic, version, kind)
    assert over[size + 32:size + 48] == mem[size + 16:size + 32], "the diff's parent is the base"
    pages = 0
    for p in range(size // 4096):
        if over[size + 4096 + p // 8] >> (p % 8) & 1:
            mem[p * 4096:(p + 1) * 4096] = over[p * 4096:(p + 1) * 4096]
            pages += 1
    with open(out, "wb") as f:
        f.write(mem[:size])
    return pages


class Diff(SnapshotCase):
    def check(self, ns, m, name, base, most):
        """The guest of m is paused and saved as diff `name`; base plus diff is a Full of the same moment."""
        self.create(m, name, snapshot_type="Diff")
        self.create(m, name + "-full")
        pages = merge(self.path(base + ".mem"), self.path(name + ".mem"), self.path("merged"))
        self.assertLess(pages, most)
        self.assertGreater(pages, 0)
        with open(self.path("merged"), "rb") as f, open(self.path(name + "-full.mem"), "rb") as g:
            want = g.read()[:-4096]
            self.assertTrue(f.read() == want, "base + diff is not what memory was")

    def test_of_a_clone(self):
        """A clone's dirty pages are its anonymous ones: nothing was tracked."""
        ns = self.netns()
        self.saved(ns)
        m = self.monitor(netns=ns)
        self.load(m)
        self.get(ns, "/counter")
        ns.http("GET", "/touch?mib=1&seed=7")
        m.patch("/vm", state="Paused")
        self.check(ns, m, "d", "a", 1024)
        m.patch("/vm", state="Resumed")
        ns.http("GET", "/touch?mib=2&seed=8")
        m.patch("/vm", state="Paused")
        self.check(ns, m, "d2", "a", 1500)  # again over what was loaded, not over d

    def test_tracked(self):
        """A booted guest's dirty pages are KVM's log and the monitor's own writes."""
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.put("/machine-config", vcpu_count=1, mem_size_mib=128, track_dirty_pages=True)
        m.boot(netns=ns, drives=[self.disk()])
        ns.http("GET", "/touch?mib=8&seed=1")
        m.patch("/vm", state="Paused")
        self.create(m, "a")
        m.patch("/vm", state="Resumed")
        self.get(ns, "/counter")
        ns.http("PUT", "/sector/3", b"x" * 5000)
        ns.http("GET", "/sector/3?n=10")
        ns.http("GET", "/touch?mib=1&seed=2")
        m.patch("/vm", state="Paused")
        self.check(ns, m, "d", "a", 1024)

    def became_zero(self):
        """How many pages held something in a.mem and are zeros in `merged`."""
        n = 0
        with open(self.path("a.mem"), "rb") as f, open(self.path("merged"), "rb") as g:
            while page := g.read(4096):
                n += any(f.read(4096)) and not any(page)
        return n

    def test_pages_that_became_zero(self):
        """A page of zeros is a hole in a file, but in a Diff it is a page that changed: the base's does not come back."""
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.put("/machine-config", vcpu_count=1, mem_size_mib=64, track_dirty_pages=True)
        m.boot(netns=ns)
        ns.http("GET", "/touch?mib=1&seed=5&light")
        m.patch("/vm", state="Paused")
        self.create(m)
        clone = self.monitor(netns=ns)
        for name in ("tracked", "cloned"):
            m.patch("/vm", state="Resumed")
            ns.http("GET", "/touch?mib=1&seed=0&light")
            m.patch("/vm", state="Paused")
            self.check(ns, m, name, "a", 2000)
            self.assertGreaterEqual(self.became_zero(), 256)
            if m is not clone:
                m.kill(signal.SIGTERM)
                self.load(clone, resume_vm=None)
                m = clone

    def test_alone(self):
        """A Diff without a base holds everything, and says that it is Full."""
        ns = self.netns()
        self.saved(ns, "whole", snapshot_type="Diff")
        m = self.monitor(netns=ns)
        self.load(m, "whole")
        self.get(ns, "/counter")

    def test_load_refused(self):
        ns = self.netns()
        self.saved(ns)
        m = self.monitor(netns=ns)
        self.load(m)
        m.patch("/vm", state="Paused")
        self.create(m, "d", snapshot_type="Diff")
        other = self.monitor(netns=ns)
        with self.assertRaisesRegex(ApiError, "merge it with that one first"):
            self.load(other, "d")


class Live(SnapshotCase):
    PAGES = 8 * 256

    def one_moment(self, name):
        """The guest of /dirty writes `round << 32 | n` into page n in turn: at any moment the pages before the
        one it is at are a round ahead of those behind it, and that is how memory must look in a snapshot."""
        with open(self.path(name + ".mem"), "rb") as f:
            mem = f.read()
        words = [struct.unpack_from("<II", mem, i * 4096) for i in range(len(mem) // 4096)]
        start = next(i for i in range(len(words) - self.PAGES)
                     if all(words[i + k][0] == k for k in (0, 1, 2, 100, self.PAGES - 1)) and words[i][1])
        rounds = []
        for k in range(self.PAGES):
            n, r = words[start + k]
            self.assertEqual(n, k)
            if not rounds or rounds[-1] != r:
                rounds.append(r)
        self.assertLessEqual(len(rounds), 2, f"pages of {len(rounds)} moments")
        self.assertTrue(len(rounds) == 1 or rounds[0] == rounds[1] + 1, rounds)

    def live(self, ns, m, name, rate, **kw):
        ns.http("GET", f"/dirty?mib=8&rate={rate}")
        time.sleep(0.3)
        self.get(ns, "/tsc?reset")
        self.create(m, name, live=True, **kw)
        self.assertEqual(m.state(), "Running")
        gap = self.get(ns, "/tsc")["gap_ns"] / 1e6
        first, last, pages = map(int, re.findall(
            r"live snapshot: the guest stood still for (\d+) us and for (\d+) us, in which (\d+) pages", m.log())[-1])
        self.assertGreater(min(first, last), 0)
        self.assertLess(pages, self.PAGES * 2)
        return gap

    def test_booted_then_clone(self):
        """Of a fresh boot and of a clone, while each writes memory; both snapshots are of one moment and load."""
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[self.disk()], args="spin=on")
        boot = self.get(ns, "/counter")["boot"]
        for name in ("a", "b", "c"):
            gap = self.live(ns, m, name, 100)
            self.one_moment(name)
            self.assertFalse(m.get("/machine-config")["track_dirty_pages"])
            self.assertLess(gap, 1000, "the guest stood still")  # how long is the benchmarks' business
            m.kill(signal.SIGTERM)
            m = self.monitor(netns=ns)
            self.load(m, name)
            self.assertEqual(self.get(ns, "/counter")["boot"], boot)

    def test_never_converges(self):
        """A guest that writes as fast as it can is stopped in the end, and is of one moment."""
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        self.get(ns, "/counter")
        self.live(ns, m, "a", 0)
        self.one_moment("a")
        m.kill(signal.SIGTERM)
        self.load(self.monitor(netns=ns))
        self.get(ns, "/counter")

    def test_diff(self):
        """Live Diffs, of a clone and of a tracked microVM."""
        ns = self.netns()
        self.saved(ns)
        m = self.monitor(netns=ns)
        self.load(m)
        self.live(ns, m, "d", 50, snapshot_type="Diff")
        merge(self.path("a.mem"), self.path("d.mem"), self.path("m.mem"))
        self.one_moment("m")
        m.kill(signal.SIGTERM)
        m = self.monitor(netns=ns)
        m.put("/machine-config", vcpu_count=1, mem_size_mib=128, track_dirty_pages=True)
        m.boot(netns=ns)
        self.get(ns, "/counter")
        self.create(m, "a", live=True)
        self.live(ns, m, "d", 50, snapshot_type="Diff")
        merge(self.path("a.mem"), self.path("d.mem"), self.path("m.mem"))
        self.one_moment("m")
        self.assertTrue(m.get("/machine-config")["track_dirty_pages"])

    def test_failure_goes_on(self):
        """No space: the guest runs on, nothing is left behind, the next one works."""
        ns = self.netns()
        small = self.path("small")
        os.mkdir(small)
        run("mount", "-t", "tmpfs", "-o", "size=256k", "none", small)
        self.addCleanup(run, "umount", small)
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        ns.http("GET", "/touch?mib=1")
        status, body = self.create(m, check=False, live=True, mem_file_path=os.path.join(small, "m"))
        self.assertEqual((status, os.listdir(small)), (400, []), body)
        self.assertNotIn("live snapshot:", m.log())
        self.assertEqual(m.state(), "Running")
        self.get(ns, "/counter")
        self.live(ns, m, "a", 50)
        self.one_moment("a")


class HugePages(SnapshotCase):
    """A microVM on the host's pool of 2 MiB pages is restored onto that pool, or refused: never onto small pages."""
    POOL = "/proc/sys/vm/nr_hugepages"

    def pool(self, pages):
        with open(self.POOL, "w") as f:
            f.write(str(pages))
        with open(self.POOL) as f:
            return int(f.read())

    def setUp(self):
        super().setUp()
        with open(self.POOL) as f:
            self.addCleanup(self.pool, int(f.read()))
        if self.pool(80) < 80:
            self.skipTest("the host has no 80 huge pages of 2 MiB to give")

    def huge_kib(self, m):
        with open(f"/proc/{m.p.pid}/status") as f:
            return int(re.search(r"^HugetlbPages:\s+(\d+)", f.read(), re.M)[1])

    def test_restored_on_the_pool(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.put("/machine-config", vcpu_count=1, mem_size_mib=128, huge_pages="2M", track_dirty_pages=True)
        m.boot(netns=ns)
        ns.http("GET", "/touch?mib=4&seed=3")
        want = self.get(ns, "/sum?mib=4")["sum"]
        m.patch("/vm", state="Paused")
        self.create(m)
        m.kill(signal.SIGTERM)
        m = self.monitor(netns=ns)
        self.load(m, track_dirty_pages=True)
        self.assertEqual(self.get(ns, "/sum?mib=4")["sum"], want)
        self.assertGreater(self.huge_kib(m), 4 << 10)
        ns.http("GET", "/touch?mib=1&seed=9")
        want = self.get(ns, "/sum?mib=4")["sum"]
        m.patch("/vm", state="Paused")
        self.create(m, "d", snapshot_type="Diff")
        m.kill(signal.SIGTERM)
        self.assertLess(merge(self.path("a.mem"), self.path("d.mem"), self.path("x")), 2000)
        run(os.path.join(BUILD, "mayflyctl"), "snapshot", "merge", *map(self.path, ("a.mem", "d.mem", "m.mem")))
        m = self.monitor(netns=ns)
        self.load(m, snapshot_path=self.path("d.state"), mem_backend=None, mem_file_path=self.path("m.mem"))
        self.assertEqual(self.get(ns, "/sum?mib=4")["sum"], want)

    def test_refused(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.put("/machine-config", vcpu_count=1, mem_size_mib=128, huge_pages="2M")
        m.boot(netns=ns)
        with self.assertRaisesRegex(ApiError, "huge_pages 2M"):
            m.put("/migration/send", mode="hybrid", allow_unarbitrated=True,
                  channels={"urgent": "fd:0", "bulk": "fd:1"})
        self.get(ns, "/counter")
        m.patch("/vm", state="Paused")
        self.create(m)
        m.kill(signal.SIGTERM)
        m = self.monitor(netns=ns)
        with self.assertRaisesRegex(ApiError, "mem_backend: not for .* huge_pages 2M"):
            self.load(m, mem_backend={"backend_type": "Uffd", "backend_path": self.path("none")})
        with self.assertRaisesRegex(ApiError, "working_set_path: not for .* huge_pages 2M"):
            self.load(m, working_set_path=self.path("a.state"))
        self.pool(0)
        with self.assertRaisesRegex(ApiError, "not so many free huge pages"):
            self.load(m)
        self.pool(80)
        self.load(m)
        self.get(ns, "/counter")


class WorkingSet(SnapshotCase):
    def record(self, ns, work, name="ws", **kw):
        m = self.monitor(netns=ns)
        self.load(m, **kw)
        for path in work:
            self.assertEqual(ns.http("GET", path)[0], 200)
        m.put("/snapshot/working-set", working_set_path=self.path(name))
        return m

    def count(self, name="ws"):
        with open(self.path(name), "rb") as f:
            data = f.read()
        half = (len(data) - 48) // 2
        return [bin(int.from_bytes(data[48 + i * half:48 + (i + 1) * half], "little")).count("1") for i in (0, 1)]

    def test_record_and_prefetch(self):
        ns = self.netns()
        self.saved(ns, keep=True).patch("/vm", state="Resumed")
        ns.http("GET", "/touch?mib=4&seed=1")  # so that the snapshot has data to read and to overwrite
        m = self.monitors[-1]
        m.patch("/vm", state="Paused")
        self.create(m)
        m.kill(signal.SIGTERM)
        m = self.record(ns, ["/touch?mib=1&seed=2", "/sum?mib=4"])
        want = self.get(ns, "/sum?mib=4")
        m.kill(signal.SIGTERM)
        written, read = self.count()
        self.assertGreaterEqual(written, 256)
        self.assertLess(written, 1000)
        self.assertGreaterEqual(read, 700)
        m = self.monitor(netns=ns)
        self.load(m, working_set_path=self.path("ws"))
        m.wait_out(f"working set: {written + read} pages are here")
        m.put("/snapshot/working-set", working_set_path=self.path("again"))
        self.assertGreaterEqual(self.count("again")[0], written - 16, "the written set is there before it is written")
        # What was copied ahead of time but not written is in no Diff.
        m.patch("/vm", state="Paused")
        self.create(m, "d", snapshot_type="Diff")
        self.create(m, "d-full")
        self.assertLess(merge(self.path("a.mem"), self.path("d.mem"), self.path("merged")), 200)
        with open(self.path("merged"), "rb") as f, open(self.path("d-full.mem"), "rb") as g:
            self.assertTrue(f.read() == g.read()[:-4096])
        m.patch("/vm", state="Resumed")
        ns.http("GET", "/touch?mib=1&seed=2")
        self.assertEqual(self.get(ns, "/sum?mib=4")["sum"], want["sum"])

    def test_goes_on_while_the_guest_runs(self):
        """The load does not wait for a large working set; meanwhile the guest serves, and a Diff and
        an orderly end find nothing amiss."""
        ns = self.netns()
        m = self.saved(ns, keep=True, boot={"mem": 512})
        m.patch("/vm", state="Resumed")
        ns.http("GET", "/touch?mib=300&seed=1")
        m.patch("/vm", state="Paused")
        self.create(m)
        m.kill(signal.SIGTERM)
        m = self.record(ns, ["/touch?mib=300&seed=2"])
        m.kill(signal.SIGTERM)
        m = self.monitor(netns=ns)
        self.load(m, working_set_path=self.path("ws"))
        self.assertNotIn("working set:", m.log(), "the load waited for all of it")
        ns.http("GET", "/touch?mib=2&seed=3")
        m.patch("/vm", state="Paused")
        self.create(m, "d", snapshot_type="Diff")
        self.create(m, "d-full")
        run(os.path.join(BUILD, "mayflyctl"), "snapshot", "merge", *map(self.path, ("a.mem", "d.mem", "merged")))
        run("cmp", "-n", str(512 << 20), self.path("merged"), self.path("d-full.mem"))
        m.patch("/vm", state="Resumed")
        m.wait_out("pages are here", 30)
        m.kill(signal.SIGTERM)
        for sig, status in ((signal.SIGTERM, 0), (signal.SIGKILL, -9)):
            m = self.monitor(netns=ns)
            self.load(m, working_set_path=self.path("ws"))
            m.p.send_signal(sig)
            self.assertEqual(m.wait_exit(5), status)

    def test_of_a_load_that_failed(self):
        """A load that brought a small working set in and then failed leaves nothing of it to a later, larger one."""
        ns, disk = self.netns(), self.disk()
        self.saved(ns, "small", boot={"mem": 16, "drives": [disk]})
        self.saved(ns, boot={"mem": 512})
        m = self.monitor(netns=ns)
        self.load(m, "small")
        self.get(ns, "/counter")
        m.put("/snapshot/working-set", working_set_path=self.path("ws"))
        m.kill(signal.SIGTERM)
        m = self.monitor(netns=ns)
        gone = [{"drive_id": "disk0", "path_on_host": "/nonexistent"}]

        def size():
            with open(f"/proc/{m.p.pid}/status") as f:
                return int(re.search(r"^VmSize:\s+(\d+)", f.read(), re.M)[1])
        for i in range(45):
            with self.assertRaisesRegex(ApiError, "nonexistent"):
                self.load(m, "small", working_set_path=self.path("ws"), drive_overrides=gone)
            before = size() if i == 4 else 0 if i < 4 else before
        if not SANITIZED:  # a sanitizer keeps what was freed
            self.assertLess(size() - before, 40, "KiB that failed loads left mapped")
        mapped = m.get("/vm/config")["machine-config"]["mem_size_mib"]
        self.assertEqual(mapped, 128, "the failed load's size of memory")
        self.load(m)
        ns.http("GET", "/touch?mib=64&seed=1")
        m.patch("/vm", state="Paused")
        self.create(m, "d", snapshot_type="Diff")
        self.create(m, "d-full")
        run(os.path.join(BUILD, "mayflyctl"), "snapshot", "merge", *map(self.path, ("a.mem", "d.mem", "merged")))
        run("cmp", "-n", str(512 << 20), self.path("merged"), self.path("d-full.mem"))

    def test_refused(self):
        ns = self.netns()
        self.saved(ns)
        self.saved(ns, "b")
        self.record(ns, []).kill(signal.SIGTERM)
        with open(self.path("ws"), "rb") as f:
            good = f.read()
        m = self.monitor(netns=ns)
        bad = {"short": good[:-1], "long": good[:40], "flip": good[:100] + bytes([good[100] ^ 1]) + good[101:]}
        for name, data in bad.items():
            with open(self.path(name), "wb") as f:
                f.write(data)
            with self.assertRaisesRegex(ApiError, "working set|damaged"):
                self.load(m, working_set_path=self.path(name))
        with self.assertRaisesRegex(ApiError, "not a working set of this"):
            self.load(m, "b", working_set_path=self.path("ws"))
        with self.assertRaisesRegex(ApiError, "cannot open"):
            self.load(m, working_set_path=self.path("none"))
        self.load(m)
        self.get(ns, "/counter")
        m.kill(signal.SIGTERM)
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        with self.assertRaisesRegex(ApiError, "loaded from a File"):
            m.put("/snapshot/working-set", working_set_path=self.path("ws2"))


class Refused(SnapshotCase):
    @staticmethod
    def room(folder):
        st = os.statvfs(folder)
        return st.f_bavail * st.f_bsize

    def refuse(self, m, text, **kw):
        status, body = self.load(m, check=False, **kw)
        self.assertEqual(status, 400, body)
        self.assertRegex(body["fault_message"], text)

    def test_bad_then_good(self):
        """Each refusal names the part at fault and leaves the process ready for another load."""
        ns = self.netns()
        disk, other = self.disk(), self.disk(8)
        self.saved(ns, boot={"drives": [disk]})
        self.saved(ns, "b")
        with open(self.path("a.mem"), "rb") as f:
            whole = f.read()
        for name, data in (("short", whole[:-5000]), ("cut", whole[:4096]), ("empty", b"")):
            with open(self.path(name), "wb") as f:
                f.write(data)
        os.mkfifo(self.path("fifo"))
        big = self.path("big")
        with open(big, "wb") as f:
            f.truncate((1 << 20) + 1)
        m = self.monitor(netns=ns)

        def mem(path):
            return {"mem_backend": {"backend_type": "File", "backend_path": path}}
        self.refuse(m, "snapshot_path: cannot open", snapshot_path=self.path("none"))
        self.refuse(m, "snapshot_path: .*FIFO", snapshot_path=self.path("fifo"))
        self.refuse(m, "at most 1048576", snapshot_path=big)
        self.refuse(m, "not a microVM state file", snapshot_path=self.path("a.mem") + "x"
                    if os.path.exists(self.path("a.memx")) else self.path("empty"))
        for f in ("short", "cut", "empty"):
            self.refuse(m, "not a whole memory file", **mem(self.path(f)))
        self.refuse(m, "FIFO", **mem(self.path("fifo")))
        self.refuse(m, "memory of snapshot", **mem(self.path("b.mem")))
        self.refuse(m, "exactly one", mem_file_path=self.path("a.mem"))
        self.refuse(m, "exactly one", mem_backend=None)
        self.refuse(m, "no interface eth7", network_overrides=[{"iface_id": "eth7", "host_dev_name": "tap0"}])
        self.refuse(m, "no drive nix", drive_overrides=[{"drive_id": "nix", "path_on_host": disk}])
        self.refuse(m, "tap's name", network_overrides=[{"iface_id": "eth0", "host_dev_name": "x" * 20}])
        self.refuse(m, "cannot open", drive_overrides=[{"drive_id": "disk0", "path_on_host": "/nonexistent"}])
        os.truncate(disk, 1 << 20)
        self.refuse(m, "disk0: its image has 1048576 bytes", )
        os.truncate(disk, 16 << 20)
        self.assertEqual(m.state(), "Not started")
        self.load(m, drive_overrides=[{"drive_id": "disk0", "path_on_host": other}])
        self.get(ns, "/counter")
        end = time.monotonic() + 5
        while self.get(ns, "/disk")[0]["changes"] != 1:
            self.assertLess(time.monotonic(), end, "the guest saw no change of its drive")

    def test_state_damaged(self):
        ns = self.netns()
        self.saved(ns)
        with open(self.path("a.state"), "rb") as f:
            good = f.read()
        m = self.monitor(netns=ns)
        for at, what in ((0, "not a microVM state"), (8, "format version"), (16, "its header says"),
                         (24, "damaged"), (57, "damaged"), (1000, "damaged")):
            bad = bytearray(good)
            bad[at] ^= 1
            with open(self.path("bad"), "wb") as f:
                f.write(bad)
            self.refuse(m, what, snapshot_path=self.path("bad"))
        self.load(m)
        self.get(ns, "/counter")

    def test_one_owner(self):
        """Two loads of one snapshot on one writable disk are refused; on a read-only one they are not."""
        ns, ns2 = self.netns(), self.netns()
        disk = self.disk()
        for name, ro in (("a", False), ("ro", True)):
            self.saved(ns, name, boot={"drives": [{"path_on_host": disk, "is_read_only": ro}]})
        first, second = self.monitor(netns=ns), self.monitor(netns=ns2)
        self.load(first)
        self.refuse(second, "disk0|in use|lock|owner")
        self.get(ns, "/counter")
        first.kill()
        third = self.monitor(netns=ns)
        self.load(third, "ro")
        self.load(second, "ro")
        self.get(ns, "/counter")
        self.get(ns2, "/counter")

    def test_every_rule_of_the_contract(self):
        try:
            from test_api import Contract
        except ImportError as e:  # PyYAML
            self.skipTest(str(e))
        ns = self.netns()
        contract = Contract()
        m = self.saved(ns, keep=True)
        fresh = self.monitor(netns=ns)
        path = self.path("a.state")
        bases = {
            "create": (m, {"snapshot_path": path + "x", "mem_file_path": path + "y", "snapshot_type": "Full"}),
            "load": (fresh, {"snapshot_path": path, "track_dirty_pages": False, "resume_vm": False,
                             "mem_backend": {"backend_type": "File", "backend_path": self.path("a.mem")},
                             "working_set_path": path,
                             "network_overrides": [{"iface_id": "eth0", "host_dev_name": ns.tap}],
                             "drive_overrides": []})}
        for name, (mon, base) in bases.items():
            schema = contract.body(contract.doc["paths"]["/snapshot/" + name]["put"])
            self.assertEqual([], contract.errors(schema, base))
            for field, body in contract.misfits(schema, base):
                status, answer = mon.api("PUT", "/snapshot/" + name, body, check=False)
                self.assertEqual((status, list(answer)), (400, ["fault_message"]), body)
                self.assertIn(field, answer["fault_message"], body)
        self.assertEqual(sorted(os.listdir(self.dir)), ["a.mem", "a.state"])
        m.kill()
        self.load(fresh)

    def test_wrong_time(self):
        ns = self.netns()
        m = self.saved(ns, keep=True)
        for body in ({}, {"snapshot_type": "Half"}):
            with self.assertRaises(ApiError):
                self.create(m, **body, snapshot_path="") if not body else self.create(m, **body)
        self.refuse(m, "not supported after starting")
        m.patch("/vm", state="Resumed")
        status, body = self.create(m, "late", check=False)
        self.assertIn("not paused", body["fault_message"])
        fresh = self.monitor(netns=ns)
        with self.assertRaisesRegex(ApiError, "before starting"):
            self.create(fresh, "never")
        fresh.put("/boot-source", kernel_image_path=guest())
        self.refuse(fresh, "boot-specific")

    def test_memory_cut_short(self):
        """A memory file cut short under a running guest ends that microVM, with one line and status 5."""
        ns = self.netns()
        self.saved(ns, boot={"args": "tick=50"})
        m = self.monitor(netns=ns)
        self.load(m)
        os.truncate(self.path("a.mem"), 0)
        try:
            ns.http("GET", "/sum?mib=1", timeout=1, retry=0)
        except OSError:
            pass
        self.assertEqual(m.wait_exit(), 5, m.err())
        self.assertEqual(m.err().count("guest memory is gone"), 1)

    def test_older_pair_stays(self):
        """The second of the two names cannot be had: the first has its older file again, and that snapshot loads."""
        m = self.monitor()  # in no namespace: what is mounted here holds for it, too
        m.boot()
        m.patch("/vm", state="Paused")
        self.create(m)
        old = {n: (os.stat(self.path(n)).st_ino, os.stat(self.path(n)).st_size) for n in ("a.state", "a.mem")}
        for fixed in ("a.state", "a.mem"):  # nothing can be renamed over what something is mounted on
            run("mount", "--bind", self.path(fixed), self.path(fixed))
            try:
                status, body = self.create(m, check=False)
            finally:
                run("umount", self.path(fixed))
            self.assertEqual(status, 400)
            self.assertIn(f"cannot name the new file {fixed}", body["fault_message"])
            self.assertEqual({n: (os.stat(self.path(n)).st_ino, os.stat(self.path(n)).st_size) for n in old}, old)
            self.assertEqual(sorted(os.listdir(self.dir)), sorted(old))
        os.mkdir(self.path("b.state"))
        status, body = self.create(m, "b", check=False)
        self.assertIn("Is a directory", body["fault_message"])
        self.assertEqual(sorted(os.listdir(self.dir)), ["a.mem", "a.state", "b.state"])
        os.rmdir(self.path("b.state"))
        self.create(m)  # over the older pair: both are new, nothing is left beside them
        self.assertEqual(sorted(os.listdir(self.dir)), sorted(old))
        self.assertEqual({n for n in old if os.stat(self.path(n)).st_ino == old[n][0]}, set())
        m.kill(signal.SIGTERM)
        m = self.monitor()
        self.load(m)
        self.assertEqual(m.state(), "Running")

    def test_one_file_for_both(self):
        ns = self.netns()
        m = self.saved(ns, keep=True)
        os.symlink(self.dir, self.path("link"))
        for other in ("a.state", "link/a.state", "./a.state"):
            status, body = self.create(m, check=False, mem_file_path=os.path.join(self.dir, other))
            self.assertEqual((status, "are one file" in body["fault_message"]), (400, True), body)
        with open(self.path("one"), "wb") as f, open(self.path("one"), "wb") as g:
            status, body = api_fds(m.sock, "PUT", "/snapshot/create",
                                   {"snapshot_path": "fd:0", "mem_file_path": "fd:1"}, [f.fileno(), g.fileno()])
        self.assertEqual((status, "are one file" in body["fault_message"]), (400, True), body)
        os.unlink(self.path("link"))
        os.unlink(self.path("one"))
        self.assertEqual(sorted(os.listdir(self.dir)), ["a.mem", "a.state"])
        m.kill(signal.SIGTERM)
        self.load(self.monitor(netns=ns))
        self.get(ns, "/counter")

    def test_killed_while_writing(self):
        """A monitor that is killed at any moment of a create leaves the older pair, or the newer one: whole."""
        ns = self.netns()
        self.saved(ns)

        def ids():
            with open(self.path("a.state"), "rb") as f, open(self.path("a.mem"), "rb") as g:
                g.seek(os.path.getsize(self.path("a.mem")) - 4096)
                return f.read(40)[24:40], g.read(32)[16:32]
        killed = 0
        for i in range(8):
            before = ids()
            m = self.monitor(netns=ns)
            self.load(m)
            ns.http("GET", f"/touch?mib=16&seed={i}")
            m.patch("/vm", state="Paused")
            timer = threading.Timer(0.002 * i, m.p.kill)
            timer.start()
            try:
                self.create(m)
            except (OSError, http.client.HTTPException):
                killed += 1
            timer.join()
            m.kill()
            state, mem = ids()
            self.assertTrue(state == mem, f"state and memory of two snapshots after a kill {2 * i} ms into a create")
            self.assertTrue(state == before[0] or i, "nothing can have been written at once")
            for n in os.listdir(self.dir):
                if n.endswith(".part"):
                    os.unlink(self.path(n))
        self.assertGreater(killed, 0, "every create was faster than the kill")
        self.load(self.monitor(netns=ns))
        self.get(ns, "/counter")

    def test_no_space(self):
        """A full disk while writing: refused, nothing left behind, the older snapshot is whole."""
        ns = self.netns()
        small = self.path("small")
        os.mkdir(small)
        run("mount", "-t", "tmpfs", "-o", "size=256k", "none", small)
        self.addCleanup(run, "umount", small)
        m = self.saved(ns, keep=True)
        m.patch("/vm", state="Resumed")
        ns.http("GET", "/touch?mib=1")
        m.patch("/vm", state="Paused")
        older = os.path.join(small, "m")
        with open(older, "wb") as f:
            f.write(b"older")
        for files in ({"mem_file_path": older}, {"snapshot_path": older}):
            if "snapshot_path" in files:
                with open(os.path.join(small, "fill"), "wb") as f:
                    f.write(bytes(self.room(small) - 4096))
            status, body = self.create(m, check=False, **files)
            self.assertEqual(status, 400)
            self.assertIn("No space", body["fault_message"])
            with open(older, "rb") as f:
                self.assertEqual(f.read(), b"older")
            self.assertEqual(set(os.listdir(small)) - {"fill"}, {"m"})
        self.assertEqual(sorted(os.listdir(self.dir)), ["a.mem", "a.state", "small"])
        m.patch("/vm", state="Resumed")
        self.get(ns, "/counter")
        m.kill()
        self.load(self.monitor(netns=ns))
        self.get(ns, "/counter")


if __name__ == "__main__":
    unittest.main()
