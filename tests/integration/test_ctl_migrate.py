# SPDX-License-Identifier: Apache-2.0
"""mayflyctl migrate, receive and drain: real monitors on two hosts (namespaces joined by a veth)."""
import json
import os
import shutil
import signal
import socket
import tempfile
import time

import unittest

from ctlmig import Arrived, Ctl, Pair, address, pids_beneath, results
from lib import GuestCase
from miglib import wait
from test_migration import Client


class MoveCase(GuestCase):
    TAPS = 1

    def setUp(self):
        if not os.path.exists("/dev/userfaultfd"):
            self.skipTest("this kernel has no /dev/userfaultfd")
        self.lan = Pair(self.TAPS)
        self.addCleanup(self.lan.close)
        self.dir = tempfile.mkdtemp(prefix="mayfly-move-")  # the storage that both reach
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.addCleanup(lambda: [Arrived(s, p).close() for s, p in pids_beneath(self.dir).items()])
        self.where = 0
        self.record = self.path("vm.arbiter")

    def path(self, name):
        return os.path.join(self.dir, name)

    def ctl(self, host, *args):
        c = Ctl(self.lan.hosts[host], *args)
        self.addCleanup(c.close)
        return c

    def boot(self, **kw):
        m = self.monitor(netns=self.lan.hosts[0])
        m.boot(netns=self.lan.hosts[0], **kw)
        self.get("/counter")
        return m

    def get(self, path, method="GET", body=None):
        status, out = self.lan.http(method, path, body)
        self.assertEqual(status, 200, out)
        return json.loads(out) if out[:1] in b"{[" and not path.startswith("/sector") else out

    def touch(self, mib):
        self.get(f"/touch?mib={mib}&seed=7")
        return self.get(f"/sum?mib={mib}")["sum"]

    def receive(self, host, *args, record=True):
        more = ["--arbiter", self.record] if record else []
        r = self.ctl(host, "receive", "--listen", address(host), *more, "--json", *args)
        r.wait_for("listening")
        return r

    def migrate(self, sock, host, *args, record=True):
        more = ["--arbiter", self.record] if record else []
        return self.ctl(1 - host, "migrate", address(host), "--api-sock", sock, "--name", "vm", *more, "--json", *args)

    def ended(self, c, status=0):
        got, out, err = c.end()
        self.assertEqual(got, status, out + err)
        return out, err

    def arrived(self, r):
        x = results(self.ended(r)[0])["vm"]
        self.assertEqual(x["result"], "moved")
        m = Arrived(x["socket"], x["pid"])
        self.addCleanup(m.close)
        self.assertEqual(m.state(), "Running")
        return m, x


class Migrate(MoveCase):
    def test_every_mode_under_a_download(self):
        """To and fro in each mode, each time into a monitor that receive starts; the client's connection lives on."""
        disk = self.path("disk.img")
        with open(disk, "wb") as f:
            f.truncate(16 << 20)
        src = self.boot(drives=[disk])
        total = self.touch(16)
        data = os.urandom(512)
        self.get("/sector/9", "PUT", data)
        boot = self.get("/counter")["boot"]
        c = Client(self.lan)
        for hop, mode in enumerate(["precopy", "postcopy", "hybrid"] * 2):
            host = 1 - self.where
            r = self.receive(host, "--api-sock", self.path(f"hop{hop}.sock"), "--spawn")
            out, err = self.ended(self.migrate(src.sock, host, "--mode", mode, "--downtime", 50))
            got = json.loads(out)
            self.assertEqual((got["result"], got["error"], got["source"]["mode"]), ("moved", None, mode))
            self.assertGreater(got["downtime_ms"], 0)
            self.assertGreater(got["total_ms"], got["downtime_ms"])
            self.assertIn("vm: ", err)  # progress, as lines
            if src is not None and hop == 0:
                self.assertEqual(src.wait_exit(), 0)  # finalized
            src, x = self.arrived(r)
            self.assertEqual(x["target"]["role"], "target")
            self.assertEqual(mode == "precopy", x["target"]["faults"] == 0)
            self.where, last = host, c.got
            end = time.monotonic() + 20
            while c.got <= last and not c.error and time.monotonic() < end:
                time.sleep(0.01)
            self.assertIsNone(c.error)
            self.assertGreater(c.got, last)
        c.stop = True
        c.join(20)
        self.assertIsNone(c.error)
        self.assertEqual((self.get("/sum?mib=16")["sum"], self.get("/sector/9")), (total, data))
        self.assertEqual(self.get("/counter")["boot"], boot)

    def test_into_a_monitor_that_waits(self):
        """Without --spawn; the source's process stays with --keep; text instead of JSON."""
        src, dst = self.boot(), self.monitor(netns=self.lan.hosts[1])
        r = self.ctl(1, "receive", "--listen", ":7000", "--api-sock", dst.sock, "--unarbitrated")
        r.wait_for("listening")
        m = self.ctl(0, "migrate", address(1), "--api-sock", src.sock, "--unarbitrated", "--keep")
        out, _ = self.ended(m)
        self.assertRegex(out, r"^api moved in [0-9.]+ ms, paused for [0-9.]+ ms: ")
        self.assertRegex(self.ended(r)[0], r"^api is here: pid 0, .*; 0 recoveries")
        self.assertEqual((src.get("/migration")["state"], dst.state()), ("done", "Running"))
        self.get("/counter")
        src.put("/migration/finalize")

    def test_sockets_are_tcp_without_delay(self):
        """What the monitors are handed: two connections of two hosts, TCP_NODELAY, a small buffer at bulk's source."""
        src = self.boot()
        self.touch(32)
        self.receive(1, "--api-sock", self.path("b.sock"), "--spawn")
        m = self.migrate(src.sock, 1, "--bandwidth", 4, "--mode", "precopy", "--bulk-buffer", 64)
        wait(src, ("active",), stage="pre-copy")
        seen = []
        for fd in os.listdir(f"/proc/{src.p.pid}/fd"):
            try:
                pid = os.pidfd_open(src.p.pid)
                s = socket.socket(fileno=pidfd_getfd(pid, int(fd)))
                os.close(pid)
            except OSError:
                continue
            if s.family == socket.AF_INET:
                seen.append((s.getpeername()[0], s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
                             s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 64 * 1024))
            s.close()
        self.assertEqual(sorted(seen), [("10.77.0.2", 1, False), ("10.77.0.2", 1, True)])
        m.stop(signal.SIGINT)

    def test_cancelled(self):
        """Ctrl-C before the commitment: it stays, and the receiver takes away what it had started."""
        src = self.boot()
        self.touch(32)
        r = self.receive(1, "--api-sock", self.path("b.sock"), "--spawn")
        m = self.migrate(src.sock, 1, "--bandwidth", 4, "--mode", "precopy")
        wait(src, ("active",), stage="pre-copy")
        status, out, err = m.stop(signal.SIGINT)
        self.assertEqual((status, json.loads(out)["result"]), (1, "stayed"))
        self.assertIn("cancelling", err)
        self.assertIn("is Running where it was", err)
        self.ended(r, 1)
        self.assertEqual((pids_beneath(self.dir), os.path.exists(self.path("b.sock"))), ({}, False))
        self.assertEqual(src.state(), "Running")
        self.get("/counter")


class Refused(MoveCase):
    def fails(self, m, *words):
        out, err = self.ended(m, 1)
        for w in words:
            self.assertIn(w, err)
        self.assertEqual(json.loads(out)["result"], "stayed")

    def test_no_receiver(self):
        src = self.boot()
        self.fails(self.migrate(src.sock, 1), "not moved", "cannot connect: Connection refused")
        self.assertEqual((src.state(), src.get("/migration")["state"]), ("Running", "idle"))
        m = self.ctl(0, "migrate", "10.77.0.2:nope", "--api-sock", src.sock, "--unarbitrated")
        self.assertIn("10.77.0.2:nope: ", self.ended(m, 1)[1])
        self.fails(self.migrate(self.path("none.sock"), 1), "cannot connect to", "none.sock")
        fresh = self.monitor()
        self.fails(self.migrate(fresh.sock, 1), "there is no microVM to move: Not started")
        self.get("/counter")

    def test_something_else_listens(self):
        src = self.boot()
        s = self.lan.hosts[1].socket(socket.AF_INET, socket.SOCK_STREAM)
        s.bind(("10.77.0.2", 7000))
        s.listen()
        m = self.migrate(src.sock, 1)
        a, b = s.accept()[0], s.accept()[0]
        b.sendall(b"220 mail.example ESMTP\n")
        self.fails(m, "no mayflyctl receive")
        a.close(), b.close(), s.close()
        self.get("/counter")

    def test_the_target_refuses(self):
        """No monitor there; no tap there; a record of another microVM."""
        src = self.boot()
        r = self.receive(1, "--api-sock", self.path("none.sock"))
        self.fails(self.migrate(src.sock, 1), "the receiver refuses", "cannot connect to", "none.sock")
        self.assertEqual(r.p.poll(), None)  # nothing was begun: it waits for another
        r.stop()
        r = self.receive(1, "--api-sock", self.path("b.sock"), "--spawn", "--tap", "eth0=tap%n")
        self.fails(self.migrate(src.sock, 1), "is Running where it was")
        self.assertIn("tapvm", self.ended(r, 1)[1])
        self.assertEqual(pids_beneath(self.dir), {})
        with open(self.record, "wb") as f:
            f.write(os.urandom(1024))
        r = self.receive(1, "--api-sock", self.path("b.sock"), "--spawn")
        self.fails(self.migrate(src.sock, 1), "is Running where it was")
        self.get("/counter")

    def test_strangers(self):
        """What connects and is no mayflyctl takes nothing; a session that is unknown cannot come back."""
        r = self.receive(1, "--api-sock", self.path("b.sock"), "--spawn")
        session = "0" * 32
        for line, answer in ((b"GET / HTTP/1.1\r\n", b"no mayflyctl migrate"),
                             (b"x" * 500 + b"\n", b"longer than a line"),
                             (b"mayfly-move 2 open %s urgent vm\n" % session.encode(), b"version 2"),
                             (b"mayfly-move 1 open %s urgent ../vm\n" % session.encode(), b"a name has"),
                             (b"mayfly-move 1 open %s - vm\n" % session.encode(), b"no such"),
                             (b"mayfly-move 1 open %s bulk vm x\n" % session.encode(), b"no mayflyctl migrate"),
                             (b"mayfly-move 1 again %s bulk vm\n" % session.encode(), b"nothing is known"),
                             (b"mayfly-move 1 end %s - -\n" % session.encode(), b"nothing is known")):
            s = self.lan.hosts[0].connect(7000, host="10.77.0.2")
            s.sendall(line)
            got = s.recv(1000)
            self.assertTrue(got.startswith(b"no ") and answer in got, (line, got))
            s.close()
        silent = [self.lan.hosts[0].connect(7000, host="10.77.0.2") for _ in range(20)]
        src = self.boot()
        self.ended(self.migrate(src.sock, 1))
        self.arrived(r)
        for s in silent:
            s.close()

    def test_usage(self):
        for args in (["migrate"], ["migrate", "h:1"], ["migrate", "h:1", "--api-sock", "s"],
                     ["migrate", "h:1", "--api-sock", "s", "--arbiter", "a", "--unarbitrated"],
                     ["migrate", "h:1", "--api-sock", "s", "--arbiter", "a", "--mode", "x"],
                     ["migrate", "h:1", "--api-sock", "s", "--arbiter", "a", "--session", "x"],
                     ["receive"], ["receive", "--listen", ":1"], ["receive", "--listen", ":1", "--api-sock", "s"],
                     ["receive", "--listen", ":1", "--dir", "d", "--arbiter", "a"],
                     ["receive", "--listen", ":1", "--api-sock", "s", "--arbiter", "a", "--tap", "x"],
                     ["drain"], ["drain", "d"], ["drain", "d", "--to", "h:1"],
                     ["drain", "d", "--to", "h:1", "--arbiter-dir", "a", "-n", "0"]):
            self.assertEqual(self.ctl(0, *args).end()[0], 2, args)
        for c in ("migrate", "receive", "drain"):
            out, _ = self.ended(self.ctl(0, c, "--help"))
            self.assertIn("Exit status:", out)
            self.assertIn(c, self.ended(self.ctl(0, "--help"))[0])
        self.assertIn("HOST:PORT is wanted", self.ended(
            self.ctl(0, "migrate", "h", "--api-sock", "s", "--unarbitrated"), 1)[1])


class Broken(MoveCase):
    def pulling(self, *args):
        src = self.boot()
        self.total = self.touch(24)
        r = self.receive(1, "--api-sock", self.path("b.sock"), "--spawn", *args)
        m = self.migrate(src.sock, 1, "--mode", "postcopy", "--bandwidth", 4)
        wait(src, ("active",), stage="activation")
        return src, r, m

    def over(self, r, m, recoveries):
        got = json.loads(self.ended(m)[0])
        self.assertEqual((got["result"], got["recoveries"] >= recoveries), ("moved", True))
        self.arrived(r)
        self.assertEqual(self.get("/sum?mib=24")["sum"], self.total)

    def test_veth_down_in_the_pull(self):
        """The link carries nothing for longer than the monitors bear it; it comes back, and so does the pull."""
        src, r, m = self.pulling()
        self.lan.link(False)
        m.wait_for("the link is broken")
        self.assertGreater(src.get("/migration")["remaining_pages"], 1000)
        time.sleep(1)
        self.lan.link(True)
        r.wait_for("the source is back")
        self.over(r, m, 1)

    def test_connections_killed_twice(self):
        src, r, m = self.pulling()
        for n in (1, 2):
            time.sleep(0.3)
            self.lan.hosts[0].exec("ss", "-K", "dst", "10.77.0.2", "dport", "=", "7000")
            end = time.monotonic() + 20
            while src.get("/migration")["recoveries"] < n and time.monotonic() < end:
                time.sleep(0.01)
            self.assertEqual(src.get("/migration")["recoveries"], n)
        self.over(r, m, 2)

    def test_both_tools_die_in_the_pull(self):
        """The monitors need them only to connect: with --session others take their place."""
        src, r, m = self.pulling()
        m.wait_for("activation")
        r.close(), m.close()
        self.lan.link(False)
        wait(src, ("paused",))
        self.lan.link(True)
        m = self.migrate(src.sock, 1, "--retry", 1, "--session", "f" * 32)
        out, err = self.ended(m, 3)
        self.assertIn("both sides keep what they have (session " + "f" * 32, err)
        self.assertEqual(json.loads(out)["result"], "between")
        r = self.receive(1, "--api-sock", self.path("b.sock"), "--session", "f" * 32)
        m = self.migrate(src.sock, 1, "--session", "f" * 32)
        self.assertEqual(json.loads(self.ended(m)[0])["recoveries"], 1)
        self.assertEqual(self.ended(r)[0].count('"moved"'), 1)
        self.assertEqual(self.get("/sum?mib=24")["sum"], self.total)

    def test_source_dies_in_the_pull(self):
        src, r, m = self.pulling("--retry", 1)
        src.kill()
        self.assertIn("does not answer", self.ended(m, 3)[1])
        out, err = self.ended(r, 3)
        self.assertIn("the link is broken", err)
        self.assertIn("/migration/finalize", err)
        self.assertEqual(results(out)["vm"]["result"], "between")
        self.assertEqual(len(pids_beneath(self.dir)), 1)  # what is there is left to a person


def pidfd_getfd(pidfd, fd):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    got = libc.syscall(438, pidfd, fd, 0)
    if got < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return got


if __name__ == "__main__":
    unittest.main()
