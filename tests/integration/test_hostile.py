# SPDX-License-Identifier: Apache-2.0
"""Guests that break the rules of virtio: the device says NEEDS_RESET or an error, the monitor and the rest go on."""
import array
import os
import re
import unittest
import zlib

from lib import GuestCase, guest


class Hostile(GuestCase):
    def run_cases(self, prefix, least, drive=None):
        """Runs the cases whose names begin with prefix on a disk and a tap; at least so many must have run."""
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(f"case={prefix}", kernel=guest("hostile"), netns=ns, drives=[drive or self.disk(8)])
        m.wait_exit(120)
        out = m.out()
        found = re.search(r"HOSTILE cases=(\d+) bad=(\d+)", out)
        self.assertTrue(found, out[-2000:])
        bad = [line for line in out.splitlines() if " BAD " in line]
        self.assertEqual((int(found[2]), bad), (0, []))
        self.assertGreaterEqual(int(found[1]), least)
        self.assertEqual(m.p.returncode, 0, m.err())
        return out

    def test_rings(self):
        self.run_cases("Q", 70)

    def test_requests(self):
        self.run_cases("B", 15)

    def test_read_only_disk(self):
        drive = {"path_on_host": self.disk(8), "is_read_only": True}
        self.assertIn("CASE B3-read-only blk ok", self.run_cases("B3", 1, drive))

    def test_frames(self):
        self.run_cases("N", 10)

    def test_registers(self):
        self.run_cases("M", 6)


class Recovery(GuestCase):
    """An honest driver after a fault: it starts the device again and its work goes on."""

    def booted(self, args=""):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(args, netns=ns, drives=[self.disk(8)])
        return ns, m

    def stats(self, ns):
        return ns.http("GET", "/stats")[1].decode()

    def test_devices_start_again(self):
        ns, m = self.booted()
        for n, device in enumerate(("blk", "net", "blk", "net"), 1):
            self.assertEqual(ns.http("GET", f"/break/{device}")[0], 200)
            m.wait_for(lambda: f'"resets":{n},' in self.stats(ns), 5, f"reset {n}")
            body = os.urandom(512)
            self.assertEqual(ns.http("PUT", "/sector/3", body)[0], 200)
            self.assertEqual(ns.http("GET", "/sector/3")[1], body)
        self.assertIsNone(m.p.poll())

    def test_streams_survive_lost_frames(self):
        ns, _ = self.booted("net.loss=50")
        status, body = ns.http("GET", "/download?mib=8", timeout=60, retry=60)
        words = array.array("Q", body)
        self.assertEqual((status, words), (200, array.array("Q", range(1 << 20))))
        sent = os.urandom(4 << 20)
        answer = ns.http("PUT", "/sink", sent, timeout=60, retry=60)[1].decode()
        self.assertIn(f'"crc32":"{zlib.crc32(sent):08x}"', answer)
        self.assertNotIn('"lost":0,', self.stats(ns))


if __name__ == "__main__":
    unittest.main()
