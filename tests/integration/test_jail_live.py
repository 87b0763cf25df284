# SPDX-License-Identifier: Apache-2.0
"""Jailed monitors at work, seen from outside: what they hold while they migrate and while they load a snapshot is as
little as at rest (J4, J7), and a guest's disk has the tasks it needs within the jail's own limits."""
import os
import subprocess
import threading
import unittest

from miglib import Lan, begin, wait
from test_jail import GID, NAMESPACES, SANITIZED, UID, pids_group, status
from test_jail_monitor import OF_COMPAT, Base, setUpModule

__all__ = ["setUpModule"]
SPARE_SOCKS = 4  # see vm_priv.h
WORKERS = 4  # for files, see loop_init


@unittest.skipIf(SANITIZED, "a sanitizer's runtime needs the dynamic loader, which no jail holds")
class Tasks(Base):
    def workers(self, pid):
        """How many of the kernel's workers the ring has."""
        count = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{task}/comm") as f:
                    count += f.read().startswith("iou-wrk")
            except OSError:
                pass  # it ended
        return count

    def load(self, m, net):
        """Six clients write, flush and discard at once. (statuses, the most workers seen)"""
        self.boot(m, net, cache="Writeback")
        pid, statuses, most = self.jailed(m), [], 0

        def client(i):
            for n in range(8):
                for method, path, body in (("PUT", f"/sector/{i}", b"x" * 512), ("GET", "/flush", None),
                                           ("GET", f"/discard?sector={64 + 8 * (8 * i + n)}&n=8", None)):
                    statuses.append((path, net.http(method, path, body)[0]))

        clients = [threading.Thread(target=client, args=(i,)) for i in range(6)]
        for t in clients:
            t.start()
        while any(t.is_alive() for t in clients):
            most = max(most, self.workers(pid))
        self.assertEqual(len(statuses), 6 * 8 * 3)
        self.assertEqual([s for s in statuses if s[1] != 200], [])
        self.power_off(m, net)
        return most

    def test_default_limit(self):
        """As many tasks as a strict jail gives when it is not asked; the ring's workers are a few of them."""
        net = self.netns()
        most = self.load(self.strict(net), net)
        self.assertTrue(1 <= most <= WORKERS, most)

    def test_smallest_limits(self):
        """What docs/jail.md says must be left, by both kinds of limit: sixteen beyond the vCPU."""
        net = self.netns()
        flags, _ = pids_group(17)
        most = self.load(self.strict(net, flags=[*flags, "--resource-limit", "nproc=17"]), net)
        self.assertTrue(1 <= most <= WORKERS, most)


@unittest.skipIf(SANITIZED, "a sanitizer's runtime needs the dynamic loader, which no jail holds")
class Migrating(Base):
    """Two jails on two hosts, held where the source sends and where the target pulls."""
    SLOW = {"bandwidth_mib_s": 4}

    def setUp(self):
        super().setUp()
        if not os.path.exists("/dev/userfaultfd"):
            self.skipTest("this kernel has no /dev/userfaultfd")
        self.lan = Lan()
        self.addCleanup(self.lan.close)
        self.top = self.dir

    def move(self, start, look, folder):
        sides = []
        for name, host in zip(("source", "target"), self.lan.hosts):
            self.dir = os.path.join(self.top, name)
            os.mkdir(self.dir)
            sides.append(start(host))
        src, dst = sides
        self.start(src, self.lan.hosts[0], folder)
        self.assertEqual(self.lan.http("GET", "/touch?mib=8&seed=1")[0], 200)
        begin(src, dst, **self.SLOW)
        for m in sides:
            wait(m, ("active",), stage="pre-copy")
        look(src, "sends")
        look(dst, "receives")
        src.put("/migration/cancel")
        wait(src, ("cancelled",))
        wait(dst, ("failed",))
        begin(src, dst, mode="postcopy", **self.SLOW)
        wait(dst, ("active",), stage="activation")
        look(src, "serves")
        look(dst, "pulls")
        wait(src), wait(dst)
        look(dst, "runs")
        self.assertEqual(self.lan.http("GET", "/counter")[0], 200)

    def look_closely(self, pid, does, own, proc):
        """The sender has what it has at rest and two channels; what is not configured yet has its devices' files, but no
        devices, and sockets that it may still need for a page server."""
        configured = does != "receives"
        self.assert_confined(pid, configured)
        files = [*own, r"/out$", r"/net/tun$|^/tun", r"disk$"]
        files += [r"^socket:$"] * (0 if does == "runs" else 2 if configured else 2 + SPARE_SOCKS)
        self.assert_fds(pid, files, eventfds=5 if configured else 3, proc=proc,
                        pulled=does in ("pulls", "runs"), configured=configured)

    def test_strict(self):
        def look(m, does):
            pid = self.jailed(m)
            self.look_closely(pid, does, [r"/dev/net/tun$|^/tun", r"data$"], True)
            self.assert_apart(pid, NAMESPACES, ["data"])

        self.move(self.strict, look, "/data")

    def test_compat(self):
        self.fill(self.data)

        def start(host):
            m, root = self.compat(host)
            for name in ("kernel", "disk"):
                os.link(os.path.join(self.data, name), os.path.join(root, name))
            return m

        def look(m, does):
            self.look_closely(m.p.pid, does, [], False)
            self.assert_apart(m.p.pid, OF_COMPAT, ["dev", "disk", "kernel", "mayfly", "mayfly.pid", "run"])

        self.move(start, look, "")


@unittest.skipIf(SANITIZED, "a sanitizer's runtime needs the dynamic loader, which no jail holds")
class Loading(Base):
    """A snapshot is held where its files have just been opened: what a hostile one is read with."""

    def snapshot(self, m, net, folder):
        self.boot(m, net, folder)
        m.patch("/vm", state="Paused")
        m.put("/snapshot/create", snapshot_path=f"{folder}/state", mem_file_path=f"{folder}/mem")
        m.p.terminate()
        m.p.wait(10)

    def load(self, m, net, pid, folder, own, proc):
        """Held once it has opened the first of its files, or the second: nothing of it was parsed by then."""
        files = [*own, r"/out$", *[r"^socket:$"] * (1 + SPARE_SOCKS), r"/state$", r"/mem$"]
        opened = 1 + self.rounds % 2
        self.rounds += 1
        held = subprocess.Popen(["strace", "-qq", "-o", "/dev/null", "-p", str(pid), "-e", "trace=openat2", "-e",
                                 f"inject=openat2:delay_exit=60000000:when={opened}"])
        answers = []
        asked = threading.Thread(target=lambda: answers.append(m.put(
            "/snapshot/load", snapshot_path=f"{folder}/state", resume_vm=True,
            mem_backend={"backend_type": "File", "backend_path": f"{folder}/mem"})))
        try:
            m.wait_for(lambda: status(pid)["TracerPid"] == str(held.pid), 10, "tracer")
            asked.start()
            last = ("state", "mem")[opened - 1]
            m.wait_for(lambda: f"{folder}/{last}" in self.fds(pid).values(), 10, last)
            self.assert_confined(pid, configured=False)
            self.assert_fds(pid, files if opened == 2 else files[:-1], eventfds=3, proc=proc, configured=False)
        finally:
            held.terminate()
            held.wait()
        asked.join()
        self.assertEqual(answers, [(204, None)])
        self.assertEqual(net.http("GET", "/")[0], 200)
        self.assert_confined(pid)
        m.p.terminate()
        m.p.wait(10)

    rounds = 0

    def test_strict(self):
        os.chown(self.data, UID, GID)
        net = self.netns()
        self.snapshot(self.strict(net), net, "/data")
        for _ in range(2):
            m = self.strict(net)
            m.get("/")  # the socket was there before the jail
            pid = self.jailed(m)
            self.assert_apart(pid, NAMESPACES, ["data"])
            self.load(m, net, pid, "/data", [r"/dev/net/tun$|^/tun", r"data$"], True)

    def test_compat(self):
        self.fill(self.data)
        net = self.netns()
        m, first = self.compat(net)
        for name in ("kernel", "disk"):
            os.link(os.path.join(self.data, name), os.path.join(first, name))
        self.snapshot(m, net, "")
        for _ in range(2):
            m, root = self.compat(net)
            for name in ("disk", "state", "mem"):
                os.link(os.path.join(first, name), os.path.join(root, name))
            self.assert_apart(m.p.pid, OF_COMPAT, ["dev", "disk", "mayfly", "mayfly.pid", "mem", "run", "state"])
            self.load(m, net, m.p.pid, "", [], False)


if __name__ == "__main__":
    unittest.main()
