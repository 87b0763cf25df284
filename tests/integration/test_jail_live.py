# SPDX-License-Identifier: Apache-2.0
"""Jailed monitors at work, seen from outside: a guest's disk has the tasks it needs within the jail's own limits."""
import os
import threading
import unittest

from test_jail import SANITIZED, pids_group
from test_jail_monitor import Base, setUpModule

__all__ = ["setUpModule"]
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
        with open(f"/proc/{m.p.pid}/task/{m.p.pid}/children") as f:
            pid = int(f.read())
        statuses, most = [], 0

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


if __name__ == "__main__":
    unittest.main()
