# SPDX-License-Identifier: Apache-2.0
"""mayflyctl drain: every microVM of a directory of sockets to another host, some at a time."""
import json
import os
import re
import socket
import unittest

from ctlmig import Arrived, address, pids_beneath, results
from miglib import wait
from test_ctl_migrate import MoveCase


class Drain(MoveCase):
    TAPS = 6

    def setUp(self):
        super().setUp()
        for d in ("here", "there", "records"):
            os.mkdir(self.path(d))

    def boot_all(self, n):
        """vm0, vm1, ..., each with a tap, an address and a disk of its own."""
        self.vms = []
        for i in range(n):
            disk = self.path(f"vm{i}.img")
            with open(disk, "wb") as f:
                f.truncate(1 << 20)
            m = self.monitor(netns=self.lan.hosts[0])
            m.boot(f"ip=172.30.0.{2 + i}/24 gw=172.30.0.1", drives=[disk], mem=64, start=False)
            m.put("/network-interfaces/eth0", iface_id="eth0", host_dev_name=f"tap{i}",
                  guest_mac=f"06:00:AC:1E:00:{2 + i:02X}")
            m.put("/actions", action_type="InstanceStart")
            os.symlink(m.sock, self.path(f"here/vm{i}.sock"))
            self.vms.append(m)
        self.before = [self.ask(i) for i in range(n)]

    def ask(self, i):
        self.lan.guest = f"172.30.0.{2 + i}"
        return self.get("/counter")

    def receive_all(self, *args):
        r = self.ctl(1, "receive", "--listen", address(1), "--dir", self.path("there"), "--arbiter-dir",
                     self.path("records"), "--json", *args)
        r.wait_for("listening")
        return r

    def drain(self, *args):
        return self.ctl(0, "drain", self.path("here"), "--to", address(1), "--arbiter-dir", self.path("records"), *args)

    def test_six(self):
        self.boot_all(6)
        r = self.receive_all()
        d = self.drain("-n", 3, "--mode", "hybrid")
        out, err = self.ended(d)
        rows = re.findall(r"^(vm\d) +moved +([0-9.]+) +([0-9.]+) +0 *$", out, re.M)
        self.assertEqual([row[0] for row in rows], [f"vm{i}" for i in range(6)], out)
        for _, total, paused in rows:
            self.assertGreater(float(total), float(paused))
            self.assertGreater(float(paused), 0)
        self.assertIn("6 of 6 microVMs moved", out)
        self.assertIn("(6 of 6)", err)  # progress
        self.assertEqual([m.wait_exit() for m in self.vms], [0] * 6)
        for i in range(6):
            now = self.ask(i)
            self.assertEqual((now["boot"], now["counter"]), (self.before[i]["boot"], self.before[i]["counter"] + 1))
            m = Arrived(self.path(f"there/vm{i}.sock"), 0)
            self.assertEqual((m.state(), m.get("/migration")["state"]), ("Running", "done"))
        self.assertEqual(sorted(os.listdir(self.path("records"))), [f"vm{i}.arbiter" for i in range(6)])
        running = pids_beneath(self.dir)
        self.assertEqual(len(running), 6)
        status, out, _ = r.stop()  # the microVMs outlive it
        self.assertEqual((status, {n: (x["result"], x["pid"]) for n, x in results(out).items()}),
                         (0, {f"vm{i}": ("moved", running[self.path(f"there/vm{i}.sock")]) for i in range(6)}))
        self.assertEqual(pids_beneath(self.dir), running)
        self.ask(0)

    def test_some_stay(self):
        """One whose name is taken there, one whose tap is missing there, one empty monitor, one socket of the dead."""
        self.boot_all(4)
        fresh = self.monitor()
        os.symlink(fresh.sock, self.path("here/vm8.sock"))
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(self.path("here/vm9.sock"))
        dead.close()
        with open(self.path("here/readme"), "w"):
            pass
        self.lan.hosts[1].ip("link", "del", "tap2")
        taken = self.monitor()
        os.symlink(taken.sock, self.path("there/vm1.sock"))
        r = self.receive_all()
        out, _ = self.ended(self.drain("--json", "-n", 2, "--quiet"), 1)
        r.wait_for('"vm2","result":"stayed"')  # its monitor there has been taken away by then
        got = json.loads(out)
        each = {x["name"]: x for x in got["each"]}
        self.assertEqual({n: x["result"] for n, x in each.items()},
                         {"vm0": "moved", "vm1": "stayed", "vm2": "stayed", "vm3": "moved", "vm8": "no microVM",
                          "vm9": "no microVM"})
        self.assertEqual(got["moved"], 2)
        self.assertIn("serves", each["vm1"]["error"])
        self.assertIn("is Running where it was", each["vm2"]["error"])
        for i in range(4):
            self.assertEqual(self.ask(i)["boot"], self.before[i]["boot"])
        self.assertEqual([self.vms[i].state() for i in (1, 2)], ["Running", "Running"])
        self.assertEqual(taken.state(), "Not started")
        self.assertEqual(sorted(os.path.basename(s) for s in pids_beneath(self.path("there"))), ["vm0.sock", "vm3.sock"])

    def test_stopped(self):
        """SIGTERM: what has not begun is not tried, what is on its way is cancelled."""
        self.boot_all(3)
        self.lan.guest = "172.30.0.2"
        self.touch(24)
        self.receive_all()
        d = self.drain("-n", 1, "--mode", "precopy", "--bandwidth", 4, "--json")
        wait(self.vms[0], ("active",), stage="pre-copy")
        status, out, _ = d.stop()
        self.assertEqual((status, [x["result"] for x in json.loads(out)["each"]]),
                         (1, ["stayed", "not tried", "not tried"]))
        for i in range(3):
            self.ask(i)

    def test_nothing_there(self):
        out, _ = self.ended(self.drain())
        self.assertIn("0 of 0 microVMs moved", out)
        d = self.ctl(0, "drain", self.path("nowhere"), "--to", address(1), "--unarbitrated")
        self.assertIn("cannot open", self.ended(d, 1)[1])


if __name__ == "__main__":
    unittest.main()
