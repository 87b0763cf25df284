# SPDX-License-Identifier: Apache-2.0
"""Live migration between two hosts (namespaces on one bridge): what a guest was before, it is after, and its clients
do not notice; what fails leaves the guest where it was, or says loudly where it stands."""
import fcntl
import http.client
import json
import os
import socket
import struct
import tempfile
import threading
import time
import unittest
from unittest import mock

import lib
import test_api
from lib import ApiError, GuestCase, run
from miglib import CH, Lan, Wire, api_fds, begin, channels, request, wait


RARP = socket.htons(0x8035)
SO_TIMESTAMPNS = 35
F_OFD_SETLK = 37
HOPS = int(os.environ.get("MAYFLY_MIG_HOPS", 100))


class MigrationCase(GuestCase):
    def setUp(self):
        if not os.path.exists("/dev/userfaultfd"):
            self.skipTest("this kernel has no /dev/userfaultfd")
        self.lan = Lan()
        self.addCleanup(self.lan.close)
        self.where = 0
        fd, self.arbiter = tempfile.mkstemp(prefix="mayfly-arbiter-")
        os.close(fd)
        self.addCleanup(os.unlink, self.arbiter)

    def boot(self, **kw):
        m = self.monitor(netns=self.lan.hosts[0])
        m.boot(netns=self.lan.hosts[0], **kw)
        self.get("/counter")
        return m

    def target(self):
        return self.monitor(netns=self.lan.hosts[1 - self.where])

    def get(self, path, method="GET", body=None, **kw):
        status, out = self.lan.http(method, path, body, **kw)
        self.assertEqual(status, 200, out)
        return json.loads(out) if out[:1] in b"{[" and not path.startswith("/sector") else out

    def touch(self, mib, seed=7):
        self.get(f"/touch?mib={mib}&seed={seed}")
        return self.get(f"/sum?mib={mib}")["sum"]

    def move(self, src, dst, **kw):
        begin(src, dst, arbiter=self.arbiter, **kw)
        a, b = wait(src, seconds=60), wait(dst)
        self.where = 1 - self.where
        return a, b

    def gone(self, m, status=0):
        """The source's process ends."""
        m.put("/migration/finalize")
        self.assertEqual(m.wait_exit(), status)


def waiting_for_pages(pid):
    """The names of a process's threads that hang in a fault of absent memory."""
    out = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/wchan") as what, open(f"/proc/{pid}/task/{task}/comm") as name:
            if what.read() == "handle_userfault":
                out.add(name.read().strip())
    return out


class HeldAfterCommit(Wire):
    def forward(self, y, data):
        y.sendall(data)
        if len(data) % 40 == 0 and data[-40:-36] == b"\x0d\0\0\0":
            self.stalled.set()


class Modes(MigrationCase):
    def one(self, mode, **kw):
        disk = self.disk()
        src = self.boot(drives=[disk], mem=256)
        data = os.urandom(512)
        self.get("/sector/9", "PUT", data)
        total = self.touch(24)
        before = self.get("/counter")
        dst = self.target()
        a, b = self.move(src, dst, mode=mode, **kw)
        after = self.get("/counter")
        self.assertEqual(before["boot"], after["boot"])
        self.assertEqual(before["counter"] + 1, after["counter"])
        self.assertEqual(total, self.get("/sum?mib=24")["sum"])
        self.assertEqual(data, self.get("/sector/9"))
        self.assertEqual(data, self.get("/sector/9"))
        more = os.urandom(512)
        self.get("/sector/10", "PUT", more)
        with open(disk, "rb") as f:
            f.seek(10 * 512)
            self.assertEqual(f.read(512), more)
        self.assertEqual([a["stage"], a["role"], b["role"]], ["activation", "source", "target"])
        self.assertEqual(dst.state(), "Running")
        for body in ({"state": "Resumed"}, {"state": "Paused"}):
            with self.assertRaisesRegex(ApiError, "runs elsewhere"):
                src.api("PATCH", "/vm", body)
        self.gone(src)
        self.get("/counter")
        return a, b

    def test_precopy(self):
        a, b = self.one("precopy", downtime_ms=20)
        self.assertGreaterEqual(a["rounds"], 1)
        self.assertEqual(b["faults"], 0)
        self.assertLess(a["bytes"], 1.02 * 4096 * a["pages"])

    def test_postcopy(self):
        a, b = self.one("postcopy")
        self.assertGreater(b["faults"], 0)
        self.assertGreaterEqual(sum(b["fault_latency_log2_us"]), b["requests"] - 8)
        self.assertEqual(b["duplicate_pages"], 0)
        self.assertEqual(a["pages"], b["pages"])
        self.assertLess(a["bytes"], 1.02 * 4096 * a["pages"])

    def test_hybrid(self):
        self.one("hybrid", verify="ram")

    def test_precopy_verified(self):
        self.one("precopy", verify="ram")

    def test_postcopy_verified(self):
        self.one("postcopy", verify="ram")

    def test_many_vcpus_and_paused(self):
        src = self.boot(vcpus=2, mem=64)
        src.patch("/vm", state="Paused")
        dst = self.target()
        self.move(src, dst, mode="precopy")
        self.assertEqual(dst.state(), "Paused")
        self.gone(src)
        dst.patch("/vm", state="Resumed")
        self.get("/counter")

    def test_busy_guest_goes_over_by_pull(self):
        """A guest that writes faster than the link takes it: on_timeout pulls. A pass takes most of the time there
        is, and the guest writes what was sent many times over meanwhile, unless it got no processor at all."""
        src = self.boot(mem=128)
        self.touch(48)
        wrote = self.get("/dirty?mib=48&rate=0")["pages"]
        dst = self.target()
        a, b = self.move(src, dst, mode="precopy", downtime_ms=1, bandwidth_mib_s=64, timeout_ms=600,
                         on_timeout="postcopy")
        wrote = self.get("/dirty?off")["pages"] - wrote
        self.assertGreater(wrote, a["pages"], (a, b))
        self.assertEqual(a["mode"], "hybrid", (a, b, wrote))
        self.get("/counter")

    def test_busy_guest_is_throttled(self):
        """Where pages may not be pulled, it gets less of the processor until the link keeps up; then all of it."""
        src = self.boot(mem=128)
        self.touch(48)
        self.get("/dirty?mib=24&rate=0")
        dst = self.target()
        a, b = self.move(src, dst, mode="precopy", downtime_ms=80, bandwidth_mib_s=200, timeout_ms=60000)
        self.assertEqual((a["mode"], b["faults"]), ("precopy", 0))
        self.assertGreaterEqual(a["throttle_percent"], 20, a)
        self.gone(src)
        one, now = self.get("/dirty?mib=48&rate=0")["pages"], time.monotonic()
        time.sleep(0.2)
        self.assertGreater((self.get("/dirty?off")["pages"] - one) / (time.monotonic() - now), 4096)

    def test_busy_guest_stays(self):
        src = self.boot(mem=128)
        self.touch(48)
        self.get("/dirty?mib=48&rate=0")
        dst = self.target()
        begin(src, dst, arbiter=self.arbiter, mode="precopy", downtime_ms=1, bandwidth_mib_s=200, timeout_ms=400)
        self.assertIn("did not converge", wait(src, ("failed",))["error"])
        wait(dst, ("failed",))
        self.assertEqual(src.state(), "Running")
        self.get("/dirty?off")
        self.move(src, dst, mode="hybrid")  # and both are ready for another go
        self.get("/counter")


class Client(threading.Thread):
    """A TCP download of a known pattern, for as long as it is wanted."""

    def __init__(self, lan):
        super().__init__(daemon=True)
        self.s = lan.connect(timeout=20)
        self.s.sendall(b"GET /download?mib=100000 HTTP/1.1\r\nHost: g\r\n\r\n")
        self.got, self.error, self.stop, self.gap = 0, None, False, 0.0
        self.start()

    def run(self):
        try:
            buf = b""
            while b"\r\n\r\n" not in buf:
                buf += self.s.recv(4096)
            buf = buf.partition(b"\r\n\r\n")[2]
            word, last = 0, time.monotonic()
            while not self.stop:
                n = len(buf) // 8
                if buf[:8 * n] != struct.pack(f"<{n}Q", *range(word, word + n)):
                    raise AssertionError(f"wrong bytes after {self.got}")
                word += n
                self.got += 8 * n
                data = self.s.recv(1 << 18)
                now = time.monotonic()
                self.gap, last = max(self.gap, now - last), now
                if not data:
                    raise AssertionError(f"ended after {self.got}")
                buf = buf[8 * n:] + data
        except Exception as e:  # told in the test's thread
            self.error = e


class Traffic(MigrationCase):
    def test_download_survives_ten_moves(self):
        src = self.boot()
        c = Client(self.lan)
        last = 0
        for hop in range(10):
            self.wait_progress(c, last)
            last = c.got
            dst = self.target()
            self.move(src, dst, mode=("precopy", "postcopy", "hybrid")[hop % 3], downtime_ms=20)
            self.gone(src)
            src.close()
            src = dst
        self.wait_progress(c, last)
        c.stop = True
        c.join(20)
        self.assertIsNone(c.error)
        self.assertEqual(self.get("/counter")["counter"], 2)

    def test_ping_pong(self):
        """To and fro, MAYFLY_MIG_HOPS times (100): it is one guest all the way, with one owner after the other."""
        src = self.boot(mem=64)
        total, began = self.touch(4), self.get("/counter")
        for hop in range(HOPS):
            dst = self.target()
            self.move(src, dst, mode=("precopy", "postcopy", "hybrid")[hop % 3])
            self.gone(src)
            src.close()
            src = dst
        now = self.get("/counter")
        self.assertEqual((now["boot"], now["counter"]), (began["boot"], began["counter"] + 1))
        self.assertEqual(total, self.get("/sum?mib=4")["sum"])
        self.assertEqual(src.get("/migration")["epoch"], HOPS + 1)

    def wait_progress(self, c, last):
        end = time.monotonic() + 20
        while c.got <= last + 100000:
            self.assertIsNone(c.error)
            self.assertLess(time.monotonic(), end, f"no progress after {c.got}")
            time.sleep(0.005)

    def test_disk_writes_go_on(self):
        disk = self.disk(16)
        src = self.boot(drives=[disk])
        wrote, stop, errors = [], threading.Event(), []

        def writer():
            n = 0
            while not stop.is_set():
                data = struct.pack("<Q", n) * 64
                try:
                    status, _ = self.lan.http("PUT", f"/sector/{n % 1000}", data, timeout=10, retry=10)
                    if status != 200:
                        errors.append(status)
                    wrote.append(data)
                except OSError as e:
                    errors.append(e)
                n += 1
        t = threading.Thread(target=writer)
        t.start()
        for mode in ("precopy", "postcopy", "hybrid"):
            dst = self.target()
            self.move(src, dst, mode=mode)
            self.gone(src)
            src = dst
            enough, end = len(wrote) + 3, time.monotonic() + 30
            while len(wrote) < enough and not errors:
                self.assertLess(time.monotonic(), end, f"no write went through after a move by {mode}")
                time.sleep(0.01)
        stop.set()
        t.join()
        self.assertEqual(errors, [])
        with open(disk, "rb") as f:
            image = f.read(1000 * 512)
        for i, data in enumerate(wrote[-1000:], max(0, len(wrote) - 1000)):
            self.assertEqual(image[i % 1000 * 512:][:512], data, i)


    def test_announced_once_it_runs(self):
        """Switches hear of the move from the target, not before it owns the guest, and again: they may have missed it."""
        src = self.boot()
        heard = self.lan.socket(socket.AF_PACKET, socket.SOCK_RAW, RARP)
        self.addCleanup(heard.close)
        heard.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        heard.bind(("lan", 0))
        heard.settimeout(0.001)
        frames = []

        def listen(until):
            while not until():
                try:
                    frame, (stamp,), *_ = heard.recvmsg(100, 100)
                    frames.append((struct.unpack("q8x", stamp[2])[0] + struct.unpack("8xq", stamp[2])[0] / 1e9, frame))
                except TimeoutError:
                    pass
        self.touch(32)
        self.get("/dirty?mib=32&rate=0")  # pre-copy lasts until the guest is told to be still
        dst = self.target()
        begin(src, dst, arbiter=self.arbiter, mode="precopy", bandwidth_mib_s=256)
        wait(src, ("active",), stage="pre-copy")
        self.forwards()
        self.get("/dirty?off")
        early = [0]  # when the target was last seen without the guest

        def committed():
            now = time.time()
            if dst.get("/migration")["stage"] not in ("pre-copy", "stop-and-copy"):
                return True
            early[0] = now
            return False
        listen(committed)
        wait(src), wait(dst)
        end = time.monotonic() + 1.5
        listen(lambda: time.monotonic() > end)
        self.assertGreater(frames[0][0], early[0])
        mac = bytes.fromhex(self.lan.hosts[0].mac.replace(":", ""))
        self.assertEqual({(f[:6], f[6:12]) for _, f in frames}, {(b"\xff" * 6, mac)})
        self.assertEqual(len(frames), 11)
        self.assertGreater(frames[-1][0] - frames[0][0], 0.4)

    def forwards(self):
        """The tap was opened at the reservation: the bridge sees its link before the guest is there."""
        end = time.monotonic() + 20
        for where, port in ((self.lan, "h1"), (self.lan.hosts[1], "up0"), (self.lan.hosts[1], "tap0")):
            while "state forwarding" not in run("ip", "-n", where.name, "-d", "link", "show", port):
                self.assertLess(time.monotonic(), end, port)
                time.sleep(0.01)


class Failures(MigrationCase):
    SLOW = {"bandwidth_mib_s": 4}

    def begin_slow(self, mode, mib=16, wire=None, **kw):
        src = self.boot()
        self.total = self.touch(mib)
        dst = self.target()
        begin(src, dst, wire and wire.pairs, arbiter=self.arbiter, mode=mode, **{**self.SLOW, **kw})
        return src, dst

    def pulling(self, dst):
        wait(dst, ("active",), stage="activation")

    def test_target_dies_in_precopy(self):
        src, dst = self.begin_slow("precopy")
        wait(src, ("active",), stage="pre-copy")
        dst.kill()
        self.assertIn("gone", wait(src, ("failed",))["error"])
        self.assertEqual(src.state(), "Running")
        self.assertEqual(self.total, self.get("/sum?mib=16")["sum"])
        self.move(src, self.target(), mode="precopy")  # once more, with better luck
        self.assertEqual(self.total, self.get("/sum?mib=16")["sum"])

    def test_source_dies_in_precopy(self):
        src, dst = self.begin_slow("precopy")
        wait(dst, ("active",), stage="pre-copy")
        src.kill()
        self.assertIn("gone", wait(dst, ("failed",))["error"])
        self.assertEqual(dst.state(), "Not started")

    def test_cancel(self):
        src, dst = self.begin_slow("precopy")
        wait(src, ("active",), stage="pre-copy")
        with self.assertRaisesRegex(ApiError, "under way"):
            src.patch("/vm", state="Paused")
        src.put("/migration/cancel")
        wait(src, ("cancelled",))
        self.assertEqual(src.state(), "Running")
        self.get("/counter")
        wait(dst, ("failed",))

    def test_many_cancelled_under_traffic(self):
        """The record of dirty pages comes and goes while the device thread writes into it."""
        src, dst = self.boot(drives=[self.disk()]), self.target()
        stop = threading.Event()

        def load():
            while not stop.is_set():
                self.get("/sector/3", "PUT", b"x" * 512)
                self.get("/touch?mib=1")
        t = threading.Thread(target=load)
        t.start()
        try:
            for _ in range(25):
                begin(src, dst, arbiter=self.arbiter, mode="precopy", bandwidth_mib_s=1)
                wait(src, ("active",), stage="pre-copy")
                src.put("/migration/cancel")
                wait(src, ("cancelled",))
                wait(dst, ("failed",))
        finally:
            stop.set()
            t.join()
        self.assertFalse(src.get("/machine-config")["track_dirty_pages"])
        self.move(src, dst)
        self.get("/counter")

    def test_cancel_at_the_target(self):
        src, dst = self.begin_slow("precopy")
        wait(dst, ("active",), stage="pre-copy")
        dst.put("/migration/cancel")
        wait(dst, ("cancelled",))
        wait(src, ("failed",))
        self.get("/counter")

    def test_link_dies_twice_in_the_pull(self):
        wires = [Wire() for _ in range(3)]
        for w in wires:
            self.addCleanup(w.close)
        src, dst = self.begin_slow("postcopy", wire=wires[0])
        for i in (1, 2):
            self.pulling(dst)
            self.get("/counter")
            wires[i - 1].cut()
            a, b = wait(src, ("paused",)), wait(dst, ("paused",))
            self.assertGreater(b["remaining_pages"], 0)
            self.assertEqual(dst.state(), "Running")
            with self.assertRaisesRegex(ApiError, "under way"):
                dst.patch("/vm", state="Paused")
            request(dst, "recover", [p[1] for p in wires[i].pairs])
            request(src, "recover", [p[0] for p in wires[i].pairs])
        self.assertEqual(self.total, self.get("/sum?mib=16", timeout=30)["sum"])
        a, b = wait(src), wait(dst)
        self.assertEqual(b["recoveries"], 2)
        self.assertEqual(b["remaining_pages"], 0)
        self.gone(src)
        self.get("/counter")

    def test_damaged_byte_in_the_pull(self):
        wires = [Wire(), Wire()]
        for w in wires:
            self.addCleanup(w.close)
        src, dst = self.begin_slow("postcopy", wire=wires[0])
        self.pulling(dst)
        wires[0].flip_at = wires[0].count + 100000
        self.assertIn("damaged", wait(dst, ("paused",))["error"])
        wait(src, ("paused",))
        request(dst, "recover", [p[1] for p in wires[1].pairs])
        request(src, "recover", [p[0] for p in wires[1].pairs])
        self.assertEqual(self.total, self.get("/sum?mib=16", timeout=30)["sum"])
        wait(src), wait(dst)

    def test_stranger_on_the_recovery_channel(self):
        wires = [Wire() for _ in range(2)]
        for w in wires:
            self.addCleanup(w.close)
        src, dst = self.begin_slow("postcopy", wire=wires[0])
        self.pulling(dst)
        wires[0].cut()
        wait(src, ("paused",)), wait(dst, ("paused",))
        pairs = channels()
        request(dst, "recover", [p[1] for p in pairs])
        for p in pairs:
            p[0].sendall(os.urandom(40 + 112))
        wait(dst, ("paused",))
        time.sleep(0.05)
        self.assertEqual(wait(dst, ("paused",))["recoveries"], 0)
        request(dst, "recover", [p[1] for p in wires[1].pairs])
        request(src, "recover", [p[0] for p in wires[1].pairs])
        self.assertEqual(self.total, self.get("/sum?mib=16", timeout=30)["sum"])

    def test_source_dies_in_the_pull(self):
        src, dst = self.begin_slow("postcopy")
        self.pulling(dst)
        src.kill()
        wait(dst, ("paused",))
        dst.put("/migration/finalize")
        self.assertEqual(dst.wait_exit(), 5)
        self.assertIn("LOST", dst.err())

    def test_target_dies_in_the_pull(self):
        src, dst = self.begin_slow("postcopy")
        self.pulling(dst)
        dst.kill()
        wait(src, ("paused",))
        self.assertEqual(src.state(), "Paused")
        with self.assertRaises(ApiError):
            src.patch("/vm", state="Resumed")
        self.gone(src)

    def test_kernel_waits_for_absent_pages(self):
        """The device thread at its rings and KVM in the vCPU's are served as the guest's own code is: with the link
        held still from the commit they hang in a fault, and go on when it moves again."""
        w = HeldAfterCommit()
        self.addCleanup(w.close)
        src, dst = self.begin_slow("postcopy", wire=w)
        self.pulling(dst)
        seen, end = set(), time.monotonic() + 4  # less than a silence that breaks the link
        while seen < {"device", "vcpu 0"} and time.monotonic() < end:
            seen |= waiting_for_pages(dst.p.pid)
        answers = dst.state()  # the control thread hangs on nothing
        w.stalled.clear()
        self.assertEqual((seen, answers), ({"device", "vcpu 0"}, "Running"))
        self.get("/counter")
        self.assertEqual(self.total, self.get("/sum?mib=16", timeout=30)["sum"])
        b = wait(dst)
        self.assertEqual((b["recoveries"], b["remaining_pages"]), (0, 0))
        self.assertGreaterEqual(sum(b["fault_latency_log2_us"]), b["requests"] - 8)
        wait(src)

    def test_a_signal_ends_a_target_that_waits_for_pages(self):
        w = HeldAfterCommit()
        self.addCleanup(w.close)
        # A leak checker would stop all threads first, and one that waits for a page does not stop.
        with mock.patch.dict(os.environ, ASAN_OPTIONS="detect_leaks=0"):
            src, dst = self.begin_slow("postcopy", wire=w)
        self.pulling(dst)
        end = time.monotonic() + 10
        while "device" not in waiting_for_pages(dst.p.pid):
            self.assertLess(time.monotonic(), end)
        dst.p.terminate()
        self.assertEqual(dst.wait_exit(), 0)

    def test_arbiter_out_of_reach(self):
        """Nobody runs while the record cannot be had, and it is said why; when it can, one does."""
        src, dst = self.begin_slow("precopy", mib=8)
        wait(src, ("active",), stage="pre-copy")
        with open(self.arbiter, "rb+") as held:
            fcntl.fcntl(held, F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
            self.assertIn("the arbiter does not answer", wait(src, ("unknown",))["error"])
            self.assertEqual((src.state(), dst.get("/")["state"]), ("Paused", "Paused"))
            time.sleep(1)
            self.assertEqual((wait(src, ("unknown",))["role"], src.state()), ("source", "Paused"))
        wait(src, ("failed",))
        self.assertEqual(src.state(), "Running")
        self.assertEqual(dst.wait_exit(20), 1)
        self.assertEqual(self.total, self.get("/sum?mib=8")["sum"])
        self.where = 0
        self.move(src, self.target(), mode="precopy")

    def test_silent_peer(self):
        """A link that stays up and carries nothing is found by its silence, in 5 s."""
        w = Wire()
        self.addCleanup(w.close)
        src, dst = self.begin_slow("precopy", wire=w)
        wait(src, ("active",), stage="pre-copy")
        w.stalled.set()
        self.assertEqual(wait(src, ("failed",), 20)["state"], "failed")
        self.assertEqual(src.state(), "Running")
        self.get("/counter")
        w.stalled.clear()


class Refused(MigrationCase):
    def test_another_disk(self):
        disk, other = self.disk(), self.disk()
        src = self.boot(drives=[disk])
        dst = self.target()
        begin(src, dst, arbiter=self.arbiter, mode="postcopy",
              receive={"drive_overrides": [{"drive_id": "disk0", "path_on_host": other}]})
        self.assertIn("not the file that the source has", wait(src, ("failed",))["error"])
        wait(dst, ("failed",))
        self.assertEqual(src.state(), "Running")
        link = disk + ".link"
        os.link(disk, link)
        self.addCleanup(os.unlink, link)
        begin(src, dst, arbiter=self.arbiter, mode="postcopy",
              receive={"drive_overrides": [{"drive_id": "disk0", "path_on_host": link}]})
        wait(src), wait(dst)
        self.get("/counter")

    def test_locks_change_hands(self):
        """A third monitor cannot have the disk: not from the source, not from the target, not in the pull."""
        disk = self.disk()
        src, third = self.boot(drives=[disk]), self.monitor()

        def refused():
            with self.assertRaisesRegex(ApiError, "in use"):
                third.put("/drives/d", drive_id="d", path_on_host=disk, is_root_device=False)
        self.touch(8)
        refused()
        dst = self.target()
        begin(src, dst, arbiter=self.arbiter, mode="postcopy", bandwidth_mib_s=8)
        wait(dst, ("active",), stage="activation")
        refused()
        wait(src), wait(dst)
        self.gone(src)  # its locks had gone before
        refused()
        dst.kill()
        third.put("/drives/d", drive_id="d", path_on_host=disk, is_root_device=False)

    def test_a_failed_target_locks_disks_again(self):
        """What a receive may do, open a disk that the source still owns, ends with it."""
        disk = self.disk()
        src = self.boot(drives=[disk])
        dst = self.target()
        begin(src, dst, arbiter=self.arbiter, mode="postcopy",
              receive={"network_overrides": [{"iface_id": "eth0", "host_dev_name": "nosuch"}]})
        self.assertIn("nosuch", wait(dst, ("failed",))["error"])
        self.assertEqual(wait(src, ("failed",))["stage"], "reservation")  # refused before anything moved
        self.assertEqual((src.state(), dst.state()), ("Running", "Not started"))
        with self.assertRaisesRegex(ApiError, "in use"):
            dst.put("/drives/disk0", drive_id="disk0", path_on_host=disk, is_root_device=False)
        self.get("/counter")

    def test_arbiter(self):
        src, dst = self.boot(), self.target()
        for m, what, more in ((src, "send", {"mode": "precopy"}), (dst, "receive", {})):
            pairs = channels()
            status, out = api_fds(m.sock, "PUT", "/migration/" + what, {"channels": CH, **more},
                                  [p[0].fileno() for p in pairs])
            self.assertEqual(status, 400)
            self.assertIn("arbiter", out["fault_message"])
        a, b = begin(src, dst, mode="precopy"), None  # allow_unarbitrated
        a, b = wait(src), wait(dst)
        self.assertEqual([a["arbitrated"], b["arbitrated"]], [False, False])

    def test_record_of_another(self):
        src, dst = self.boot(), self.target()
        self.move(src, dst, mode="precopy")
        self.gone(src)
        self.where = 0
        lan = Lan()
        self.addCleanup(lan.close)
        m = self.monitor(netns=lan.hosts[0])
        m.boot(netns=lan.hosts[0])
        t = self.monitor(netns=lan.hosts[1])
        begin(m, t, arbiter=self.arbiter, mode="precopy")
        self.assertIn("another", wait(m, ("failed",))["error"])
        self.assertEqual(m.state(), "Running")

    def test_contract(self):
        """Every body is held to openapi.yaml, every answer of GET too."""
        if test_api.yaml is None:
            self.skipTest("python3-yaml is not installed")
        c = test_api.Contract()
        m, fresh = self.boot(), self.target()
        over = {"network_overrides": [{"iface_id": "eth0", "host_dev_name": "tap0"}],
                "drive_overrides": [{"drive_id": "d", "path_on_host": "/x", "cow_path": "/y"}]}
        base = {"send": {"channels": CH, "mode": "precopy", "arbiter": "/x", "allow_unarbitrated": False,
                         "downtime_ms": 1, "bandwidth_mib_s": 1, "timeout_ms": 1, "on_timeout": "cancel",
                         "verify": "ram"},
                "receive": {"channels": CH, "arbiter": "/x", "allow_unarbitrated": False, "lease_ms": 100,
                            "resume_vm": True, "any_cpu": False, **over},
                "recover": {"channels": CH}, "cancel": {}, "finalize": {}}
        tried = 0
        for what, body in base.items():
            schema = c.body(c.doc["paths"]["/migration/" + what]["put"])
            self.assertEqual(c.errors(schema, body), [], what)
            mon = fresh if what == "receive" else m
            for field, bad in c.misfits(schema, body):
                status, out = mon.api("PUT", "/migration/" + what, bad, check=False)
                self.assertEqual(status, 400, (what, bad))
                self.assertIn(field, out["fault_message"], (what, bad))
                tried += 1
        self.assertGreater(tried, 100)
        schema = c.doc["components"]["schemas"]["Migration"]
        self.assertEqual(c.errors(schema, m.get("/migration")), [])
        self.assertEqual(m.get("/migration")["state"], "idle")
        begin(m, fresh, arbiter=self.arbiter, mode="hybrid")
        for x in (m, fresh):
            wait(x)
            self.assertEqual(c.errors(schema, x.get("/migration")), [])


if __name__ == "__main__":
    unittest.main()
