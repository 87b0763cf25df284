# SPDX-License-Identifier: Apache-2.0
"""mayflyctl serve and pull: microVMs of one snapshot start on other hosts (namespaces) before their memory is there."""
import contextlib
import json
import os
import shutil
import signal
import struct
import tempfile
import time
import unittest

from ctlmig import Arrived, Ctl, pids_beneath, results
from lib import GuestCase
from miglib import wait
from servelib import PORT, Fleet, template

VERIFY = ("--verify",)


class ServeCase(GuestCase):
    MEM, TOUCH, WORKING_SET, PULLERS = 128, 8, True, 2

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not os.path.exists("/dev/userfaultfd"):
            raise unittest.SkipTest("this kernel has no /dev/userfaultfd")
        cls.files = tempfile.mkdtemp(prefix="mayfly-serve-")
        cls.addClassCleanup(shutil.rmtree, cls.files, True)
        cls.lan = Fleet(cls.PULLERS)
        cls.addClassCleanup(cls.lan.close)
        cls.sum = template(cls.lan.hosts[0], cls.files, cls.MEM, cls.TOUCH, cls.WORKING_SET)["sum"]

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="mayfly-pull-")
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.addCleanup(self.end_all)
        self.addCleanup(lambda: [self.lan.link(h, True) for h in self.lan.hosts])

    def end_all(self):
        for sock, pid in pids_beneath(self.dir).items():
            Arrived(sock, pid).close()
        for h in self.lan.hosts:
            h.free_tap()

    def path(self, name):
        return os.path.join(self.dir, name)

    def ctl(self, host, *args):
        c = Ctl(host, *args)
        self.addCleanup(c.close)
        return c

    def serve(self, *args, first=True):
        more = ["--working-set", self.files + "/ws"] if first and self.WORKING_SET else []
        s = self.ctl(self.lan, "serve", "--listen", f":{PORT}", "--snapshot", self.files + "/state", "--mem",
                     self.files + "/mem", *more, "--json", *args)
        s.wait_for("listening")
        return s

    def pull(self, host, name="vm", *args):
        return self.ctl(self.lan.hosts[host], "pull", f"{self.lan.addr}:{PORT}", "--api-sock", self.path(name + ".sock"),
                        "--spawn", "--json", *args)

    def monitor_of(self, name="vm", seconds=20):
        """The monitor that pull started, once its microVM runs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sock = self.path(name + ".sock")
            pid = pids_beneath(self.dir).get(sock)
            try:
                if pid and Arrived(sock, pid).state() == "Running":
                    return Arrived(sock, pid)
            except OSError:
                pass
            time.sleep(0.005)
        raise AssertionError(f"{name} does not run")

    def get(self, host, path, method="GET", **kw):
        kw.setdefault("retry", 30)
        status, out = self.lan.hosts[host].http(method, path, **kw)
        self.assertEqual(status, 200, out)
        return json.loads(out) if out[:1] in b"{[" and not path.startswith("/sector") else out

    def whole(self, host, **kw):
        self.assertEqual(self.get(host, f"/sum?mib={self.TOUCH}", timeout=60, **kw)["sum"], self.sum)

    def ended(self, c, status=0, seconds=60):
        got, out, err = c.end(seconds)
        self.assertEqual(got, status, out + err)
        return out, err

    def served(self, s):
        """What the server said of each session, in order."""
        out, err = s.stop()[1:]
        return [json.loads(x) for x in out.splitlines()], err


class Serve(ServeCase):
    MEM, TOUCH = 256, 64

    def test_runs_before_its_memory(self):
        """It answers while most of its memory is on the other host, each with an identity of its own; then all is right."""
        s = self.serve("--bandwidth", 24, *VERIFY)
        calls = [self.pull(i, f"vm{i}") for i in (0, 1)]
        said = [self.get(i, "/counter") for i in (0, 1)]
        left = [self.monitor_of(f"vm{i}").get("/migration")["remaining_pages"] for i in (0, 1)]
        self.assertGreater(min(left), 4000)
        self.assertEqual([x["generation"] for x in said], [1, 1])
        self.assertNotEqual(self.get(0, "/rand"), self.get(1, "/rand"))
        self.whole(0)
        got = [results(self.ended(c)[0])[f"vm{i}"] for i, c in enumerate(calls)]
        self.whole(1)
        for x in got:
            self.assertEqual((x["result"], x["error"], x["target"]["state"]), ("moved", None, "done"))
        self.assertGreater(got[0]["target"]["requests"], 0)  # /sum was faster than the push
        lines, _ = self.served(s)
        self.assertEqual([(x["result"], x["error"]) for x in lines], [("served", "")] * 2)
        for x in lines:
            self.assertGreater(x["first_pages"], 10)
            self.assertLess(x["start_ms"], x["total_ms"] / 2)

    def test_without_a_working_set(self):
        s = self.serve(*VERIFY, first=False)
        p = self.pull(0)
        self.whole(0)
        x = results(self.ended(p)[0])["vm"]["target"]
        self.assertEqual((x["mode"], x["rounds"], x["state"]), ("postcopy", 0, "done"))
        self.assertEqual(self.served(s)[0][0]["first_pages"], 0)

    def test_into_a_monitor_that_waits(self):
        """Without --spawn, as text; the microVM goes on when the server is gone."""
        s, m = self.serve(), self.monitor(netns=self.lan.hosts[0])
        p = self.ctl(self.lan.hosts[0], "pull", f"{self.lan.addr}:{PORT}", "--api-sock", m.sock, "--name", "it")
        self.assertRegex(self.ended(p)[0], r"^it is here: pid 0, .*; 0 recoveries")
        s.stop()
        self.whole(0)
        self.assertEqual(m.get("/migration")["arbitrated"], False)

    def test_puller_dies(self):
        """Killed in the midst of its pull: the others go on, and so does the server."""
        s = self.serve("--bandwidth", 24)
        a, b = self.pull(0, "a"), self.pull(1, "b")
        self.get(0, "/counter"), self.get(1, "/counter")
        dead = self.monitor_of("a")
        os.kill(dead.pid, signal.SIGKILL)
        self.assertIn("does not answer", self.ended(a, 3)[1])
        self.whole(1)
        self.ended(b)
        self.lan.hosts[0].free_tap()
        c = self.pull(0, "c")
        self.whole(0)
        self.ended(c)
        lines, _ = self.served(s)
        self.assertEqual({x["name"]: x["result"] for x in lines}, {"a": "broken", "b": "served", "c": "served"})

    def test_connections_cut(self):
        """Twice: pull connects again by itself, and what is absent comes, no more."""
        s = self.serve("--bandwidth", 16, *VERIFY)
        p = self.pull(0)
        m = self.monitor_of()
        for n in (1, 2):
            time.sleep(0.3)
            self.lan.hosts[0].exec("ss", "-K", "dst", self.lan.addr, "dport", "=", str(PORT))
            self.recovered(m, n)
        self.whole(0)
        x = results(self.ended(p)[0])["vm"]["target"]
        self.assertEqual((x["recoveries"], x["state"]), (2, "done"))
        lines, _ = self.served(s)
        self.came_back(lines, 2)
        self.assertLess(sum(x["pages"] for x in lines), 1.2 * self.TOUCH * 256 + 2000)

    def came_back(self, lines, n):
        """The first session broke; n or, where the first words were lost too, more came back, and the last was whole."""
        self.assertEqual([x["again"] for x in lines], [False] + [True] * (len(lines) - 1))
        self.assertEqual([x["result"] for x in lines], ["broken"] * (len(lines) - 1) + ["served"])
        self.assertGreater(len(lines), n)

    def recovered(self, m, n):
        end = time.monotonic() + 20
        while m.get("/migration")["recoveries"] < n:
            self.assertLess(time.monotonic(), end, m.get("/migration"))
            time.sleep(0.01)

    def test_link_silent_and_another_server(self):
        """The link carries nothing for longer than the monitor bears it, and another server of the same files is there
        when it comes back: it knows nothing of this puller, and serves what its bitmap lacks."""
        s = self.serve("--bandwidth", 8)
        p = self.pull(0)
        m = self.monitor_of()
        self.get(0, "/counter")
        self.lan.link(self.lan.hosts[0], False)
        wait(m, ("paused",))
        self.assertGreater(m.get("/migration")["remaining_pages"], 1000)
        first, _ = self.served(s)
        s = self.serve()
        self.lan.link(self.lan.hosts[0], True)
        self.whole(0)
        self.ended(p)
        self.came_back([{"again": False, "result": "broken"}] + self.served(s)[0], 1)
        self.assertNotIn("served", [x["result"] for x in first])

    def test_taken_up_again(self):
        """pull dies, the link breaks: with --session another goes on; a server of another snapshot is none."""
        other = tempfile.mkdtemp(prefix="mayfly-serve-")
        self.addCleanup(shutil.rmtree, other, True)
        template(self.lan.hosts[1], other, self.MEM, 1, False)
        s = self.serve("--bandwidth", 8)
        p = self.pull(0, "vm", "--retry", 1)
        m = self.monitor_of()
        s.close()
        err = self.ended(p, 3)[1]
        self.assertIn("the link is broken", err)
        session = err.split("--session ")[1].split()[0]
        again = ["pull", f"{self.lan.addr}:{PORT}", "--api-sock", m.sock, "--session", session, "--json"]
        s = self.ctl(self.lan, "serve", "--listen", f":{PORT}", "--snapshot", other + "/state", "--mem", other + "/mem")
        s.wait_for("listening")
        self.ended(self.ctl(self.lan.hosts[0], *again, "--retry", 2), 3)
        self.assertGreater(m.get("/migration")["remaining_pages"], 1000)
        s.stop()
        s = self.serve()
        self.ended(self.ctl(self.lan.hosts[0], *again))
        self.whole(0)

    def test_moves_on(self):
        """What was pulled is a microVM like any other: it moves to a third host, by a record that is made for it."""
        self.serve()
        self.ended(self.pull(0))
        m, record = self.monitor_of(), self.path("arbiter")
        self.get(0, "/counter")
        r = self.ctl(self.lan.hosts[1], "receive", "--listen", ":7000", "--api-sock", self.path("there.sock"), "--spawn",
                     "--arbiter", record)
        r.wait_for("listening")
        self.ended(self.ctl(self.lan.hosts[0], "migrate", self.lan.hosts[1].addr + ":7000", "--api-sock", m.sock,
                            "--arbiter", record))
        self.ended(r)
        self.whole(1)


class Many(ServeCase):
    PULLERS = 20

    def test_twenty_at_once(self):
        s = self.serve(*VERIFY)
        calls = [self.pull(i, f"vm{i}") for i in range(self.PULLERS)]
        for i in range(self.PULLERS):
            self.whole(i, retry=300)    # one emulated processor for twenty guests
        self.assertEqual(len({self.get(i, "/rand") for i in range(self.PULLERS)}), self.PULLERS)
        for c in calls:
            self.ended(c, seconds=120)
        lines, _ = self.served(s)
        self.assertEqual(sorted(x["name"] for x in lines if x["result"] == "served"),
                         sorted(f"vm{i}" for i in range(self.PULLERS)))


class Disks(ServeCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.image = cls.files + "/disk.img"
        with open(cls.image, "wb") as f:
            f.write(os.urandom(4 << 20))
        template(cls.lan.hosts[0], cls.files, cls.MEM, cls.TOUCH, True, drives=[cls.image])
        cls.there = cls.files + "/there.img"  # as if it had been copied to the other hosts
        shutil.copy(cls.image, cls.there)

    def test_layers(self):
        """Two hosts' microVMs over one image, each with a layer of its own; the image stays as it was."""
        self.serve()
        with open(self.there, "rb") as f:
            base = f.read()
        more = ["--drive", "disk0=" + self.there, "--layer", "disk0=" + self.path("%n.layer")]
        for i in (0, 1):
            self.ended(self.pull(i, f"vm{i}", *more))
        data = [os.urandom(512) for _ in (0, 1)]
        for i in (0, 1):
            self.get(i, "/sector/9", method="PUT", body=data[i])
        for i in (0, 1):
            self.assertEqual(self.get(i, "/sector/9"), data[i])
            self.assertEqual(self.get(i, "/sector/10"), base[5120:5632])
            self.assertGreater(os.path.getsize(self.path(f"vm{i}.layer")), 0)
        with open(self.there, "rb") as f:
            self.assertEqual(f.read(), base)

    def test_held_or_missing(self):
        """An image that another microVM writes to, and one that is not there: refused before anything runs."""
        s = self.serve()
        self.ended(self.pull(0, "a", "--drive", "disk0=" + self.there))
        err = self.ended(self.pull(1, "b", "--drive", "disk0=" + self.there), 1)[1]
        self.assertIn("in use by another microVM", err)
        err = self.ended(self.pull(1, "c", "--drive", "disk0=" + self.path("none")), 1)[1]
        self.assertIn("path_on_host", err)
        self.ended(self.pull(1, "d", "--drive", "disk0=" + self.there, "--layer", "disk0=/nowhere/x"), 1)
        self.get(0, "/sector/9")
        self.assertEqual(len(pids_beneath(self.dir)), 1)
        self.assertEqual([x["result"] for x in self.served(s)[0]], ["served", "broken", "broken"])


def head(kind, length=0, arg=0, arg2=0, seq=1):
    return struct.pack("<IIQQQII", kind, length, arg, arg2, seq, 0, 0)


class Hostile(ServeCase):
    def line(self, text, answer=None):
        s = self.lan.hosts[0].connect(PORT, host=self.lan.addr)
        self.addCleanup(s.close)
        s.sendall(text)
        if answer is not None:
            got = s.recv(1000)
            self.assertTrue(got.startswith(b"no ") and answer in got, (text, got))
        return s

    def pair(self, verb="pull", session="ab" * 16):
        both = [self.line(f"mayfly-move 1 {verb} {session} {ch} x\n".encode()) for ch in ("urgent", "bulk")]
        self.assertEqual(both[1].recv(3), b"ok\n")
        return both

    def lives(self, s):
        self.assertIsNone(s.p.poll())
        p = self.pull(1, f"good{time.monotonic_ns()}")
        self.whole(1)
        self.ended(p)
        self.end_all()

    def test_lines(self):
        s = self.serve()
        session = b"0" * 32
        for line, answer in ((b"GET / HTTP/1.1\r\n", b"no mayflyctl"),
                             (b"x" * 500 + b"\n", b"longer than a line"),
                             (b"mayfly-move 2 pull %s urgent vm\n" % session, b"version 2"),
                             (b"mayfly-move 1 pull %s urgent ../vm\n" % session, b"a name has"),
                             (b"mayfly-move 1 pull %s - vm\n" % session, b"no such"),
                             (b"mayfly-move 1 open %s bulk vm\n" % session, b"mayflyctl pull"),
                             (b"mayfly-move 1 end %s - -\n" % session, b"mayflyctl pull")):
            self.line(line, answer)
        self.lives(s)

    def test_silent_crowds(self):
        """Connections that say nothing, or bring one channel alone, fill tables and keep nobody out."""
        s = self.serve()
        crowd = [self.line(b"") for _ in range(300)]
        crowd += [self.line(b"mayfly-move 1 pull %032x urgent vm\n" % i) for i in range(100)]
        self.lives(s)
        self.assertLess(len(os.listdir(f"/proc/{self.server_pid(s)}/task")), 300)
        for c in crowd:
            c.close()
        self.lives(s)

    def test_confined(self):
        """Once it listens it has no capability, gains none, and still serves."""
        s = self.serve()
        with open(f"/proc/{self.server_pid(s)}/status") as f:
            status = dict(x.split(":", 1) for x in f.read().splitlines())
        self.assertEqual({int(status[k], 16) for k in ("CapEff", "CapPrm", "CapInh", "CapAmb")}, {0})
        self.assertEqual(status["NoNewPrivs"].strip(), "1")
        self.lives(s)

    def server_pid(self, s):
        """ip netns exec becomes the command."""
        return s.p.pid

    def test_bytes_on_the_channels(self):
        """What no target sends: each ends that session alone, soon, and costs the server nothing lasting."""
        s = self.serve()
        bad = [os.urandom(4096), head(2, 1 << 31), head(3), head(99), head(2, 16, seq=7) + b"x" * 16, head(15, arg=5),
               head(16, 8, 0, 1) + b"\xff" * 8, b"\0" * 40, head(5, 65536) + b"\x1b]0;x" * 13000]
        fds = len(os.listdir(f"/proc/{self.server_pid(s)}/fd"))
        for i, raw in enumerate(bad):
            for verb in ("pull", "again"):
                urgent, bulk = self.pair(verb, f"{i:031x}{'01'[verb == 'again']}")
                urgent.settimeout(10)
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # as soon as it sees through us
                    urgent.sendall(raw)
                    bulk.sendall(raw)
                    while urgent.recv(65536):
                        pass
                urgent.close(), bulk.close()
        self.lives(s)
        self.assertLessEqual(len(os.listdir(f"/proc/{self.server_pid(s)}/fd")), fds + 1)
        lines, err = self.served(s)
        self.assertEqual([x["result"] for x in lines], ["broken"] * 2 * len(bad) + ["served"])
        self.assertNotIn("\x1b", err)

    def test_one_that_stands_still(self):
        """A paired puller that reads nothing is given up; meanwhile, and with --max 2, another is served; a third is not."""
        s = self.serve("--max", 2)
        urgent, bulk = self.pair()
        t = time.monotonic()
        self.lives(s)
        other = self.pair(session="cd" * 16)
        self.line(b"mayfly-move 1 pull %s urgent vm\n" % (b"0" * 32), b"2 pullers are served already")
        urgent.settimeout(15)
        while urgent.recv(65536):
            pass
        self.assertLess(time.monotonic() - t, 20)
        for x in (urgent, bulk, *other):
            x.close()

    def test_limit(self):
        """One that takes its memory too slowly has had its time; it may come again."""
        self.serve("--limit", 1, "--bandwidth", 4)
        p = self.pull(0)
        self.whole(0)
        self.assertGreater(results(self.ended(p)[0])["vm"]["target"]["recoveries"], 0)


class Refused(ServeCase):
    def fails(self, text, *args):
        s = self.ctl(self.lan, "serve", "--listen", f":{PORT}", *args)
        self.assertIn(text, self.ended(s, 1)[1])

    def test_files(self):
        state, mem, ws = (os.path.join(self.files, n) for n in ("state", "mem", "ws"))
        self.fails("cannot open", "--snapshot", self.path("no"), "--mem", mem)
        self.fails("not a microVM state file", "--snapshot", mem, "--mem", mem)
        self.fails("not a whole memory file", "--snapshot", state, "--mem", state)
        self.fails("not a working set", "--snapshot", state, "--mem", mem, "--working-set", state)
        other = tempfile.mkdtemp(prefix="mayfly-serve-")
        self.addCleanup(shutil.rmtree, other, True)
        template(self.lan.hosts[0], other, 128, 1, True)
        self.fails("not the whole memory of this state", "--snapshot", state, "--mem", other + "/mem")
        self.fails("not a working set of this", "--snapshot", state, "--mem", mem, "--working-set", other + "/ws")
        cut = self.path("cut")
        with open(ws, "rb") as f, open(cut, "wb") as g:
            g.write(f.read()[:-1])
        self.fails("not a working set", "--snapshot", state, "--mem", mem, "--working-set", cut)

    def test_no_tap(self):
        """The puller's host refuses: it says so, its monitor is gone, and the server goes on."""
        s = self.serve()
        p = self.pull(0, "vm", "--tap", "eth0=nope")
        self.assertIn("nope", self.ended(p, 1)[1])
        self.assertEqual(pids_beneath(self.dir), {})
        self.ended(self.pull(0, "vm", "--tap", "eth0=tap0"))
        self.whole(0)
        self.assertEqual([x["result"] for x in self.served(s)[0]], ["broken", "served"])

    def test_nobody_there(self):
        self.assertIn("Connection refused", self.ended(self.pull(0), 1)[1])
        r = self.ctl(self.lan, "receive", "--listen", f":{PORT}", "--api-sock", "none.sock", "--unarbitrated")
        r.wait_for("listening")
        self.assertIn("a microVM is waited for", self.ended(self.pull(0), 1)[1])
        self.assertEqual(pids_beneath(self.dir), {})

    def test_usage(self):
        for args in (["serve"], ["serve", "--listen", ":1"], ["serve", "--listen", ":1", "--snapshot", "a"],
                     ["serve", "--listen", ":1", "--snapshot", "a", "--mem", "b", "--max", "0"],
                     ["serve", "--listen", ":1", "--snapshot", "a", "--mem", "b", "x"],
                     ["pull"], ["pull", "h:1"], ["pull", "h:1", "--api-sock", "s", "--tap", "x"],
                     ["pull", "h:1", "--api-sock", "s", "--session", "x"], ["pull", "h:1", "--api-sock", "s", "--name", "/"]):
            self.assertEqual(self.ctl(None, *args).end()[0], 2, args)
        for c in ("serve", "pull"):
            out, _ = self.ended(self.ctl(None, c, "--help"))
            self.assertIn("xit status:", out)
            self.assertIn(c, self.ended(self.ctl(None, "--help"))[0])


if __name__ == "__main__":
    unittest.main()
