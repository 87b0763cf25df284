# SPDX-License-Identifier: Apache-2.0
"""What the two devices offer, taken up by a guest through the real binary: discard, zeroes, identity, flush, MTU; drives
that are block devices; memory above 4 GiB."""
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import unittest

from lib import ApiError, GuestCase, guest

MIB = 1 << 20


class Disk(GuestCase):
    def setUp(self):
        self.metrics = self.disk(0)

    def serve(self, *drives):
        self.ns = self.netns()
        self.m = self.monitor("--metrics-path", self.metrics, netns=self.ns)
        self.m.boot(netns=self.ns, drives=drives)
        return self.get("/disk")

    def get(self, path, status=200):
        got, body = self.ns.http("GET", path)
        self.assertEqual(got, status, f"{path}: {body}")
        return json.loads(body) if body[:1] in b"[{" else body

    def flushes(self):
        with open(self.metrics) as f:
            n = len(f.readlines())
        self.m.put("/actions", action_type="FlushMetrics")
        with open(self.metrics) as f:
            return sum(json.loads(x)["block_disk0"]["flush_count"] for x in f.readlines()[n:])

    @staticmethod
    def held(path):
        return os.stat(path).st_blocks * 512

    def content(self, path, at, n):
        with open(path, "rb") as f:
            f.seek(at)
            return f.read(n)

    def test_discard_gives_room_back_and_reads_as_zeroes(self):
        disk = self.disk(4, os.urandom(4 * MIB))
        with open(disk, "rb") as f:
            os.fsync(f.fileno())
        whole = self.held(disk)
        self.assertGreaterEqual(whole, 4 * MIB)
        offers = self.serve(disk)[0]
        self.assertEqual((offers["discard"], offers["write_zeroes"], offers["read_only"]), (1, 1, 0))
        before, behind = self.content(disk, 0, MIB), self.content(disk, 3 * MIB, MIB)
        self.get("/discard?sector=2048&n=4096")
        self.assertEqual(self.content(disk, MIB, 2 * MIB), bytes(2 * MIB))
        self.assertLessEqual(self.held(disk), whole - 2 * MIB)
        self.assertEqual(self.get("/sector/2048"), bytes(512))
        self.get("/zero?sector=1&n=9")  # not whole blocks of any file system
        self.assertEqual(self.content(disk, 0, 8192), before[:512] + bytes(9 * 512) + before[5120:8192])
        self.get("/zero?sector=8000&n=192")
        self.assertEqual(self.content(disk, 3 * MIB, MIB), behind[:8000 * 512 - 3 * MIB] + bytes(192 * 512))
        self.get("/discard?sector=8100&n=100", 500)  # beyond the end: refused, nothing done
        self.get("/zero?sector=8191&n=2", 500)
        self.assertEqual(self.content(disk, 2 * MIB + MIB, MIB)[:1000], behind[:1000])

    def test_read_only_drive_offers_neither(self):
        disk = self.disk(1, b"R" * MIB)
        offers = self.serve({"path_on_host": disk, "is_read_only": True})[0]
        self.assertEqual((offers["discard"], offers["write_zeroes"], offers["read_only"]), (0, 0, 1))
        self.get("/discard?sector=0&n=8", 500)
        self.get("/zero?sector=0&n=8", 500)
        self.assertEqual(self.content(disk, 0, MIB), b"R" * MIB)

    def test_identity_is_the_images(self):
        disk = self.disk(1)
        self.serve(disk)
        st = os.stat(disk)
        self.assertEqual(self.get("/disk/id").strip().decode(), f"{st.st_dev}{st.st_rdev}{st.st_ino}"[:20])

    def test_cache_type_decides_about_flush(self):
        offers = self.serve({"path_on_host": self.disk(1), "cache_type": "Writeback"})[0]
        self.assertEqual(offers["flush"], 1)
        self.flushes()
        self.get("/flush")
        status, body = self.ns.http("PUT", "/sector/3", b"f" * 512)
        self.assertEqual((status, json.loads(body)["flushed"]), (200, True))
        self.assertEqual(self.flushes(), 2)
        self.assertEqual(self.m.get("/vm/config")["drives"][0]["cache_type"], "Writeback")
        self.assertEqual(self.serve({"path_on_host": self.disk(1), "cache_type": "Unsafe"})[0]["flush"], 0)
        self.flushes()
        self.get("/flush", 500)
        self.assertEqual(json.loads(self.ns.http("PUT", "/sector/3", b"f" * 512)[1])["flushed"], False)
        self.assertEqual(self.flushes(), 0)

    def loop_device(self, image):
        p = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
        if p.returncode:
            self.skipTest(f"no loop device: {p.stderr.strip()}")
        node = p.stdout.strip()
        self.addCleanup(subprocess.run, ["losetup", "-d", node], check=True)
        return node

    def test_block_device_must_be_allowed(self):
        node = self.loop_device(self.disk(1))
        with self.assertRaises(ApiError) as c:
            self.monitor().boot(drives=[node], start=False)
        self.assertIn(f"path_on_host: cannot open {node}: Permission denied (device nodes: pass a descriptor, or name a "
                      "directory with --allow-dir)", str(c.exception))

    def test_block_device(self):
        image, where = self.disk(4, b"first".ljust(512, b".")), tempfile.mkdtemp(prefix="mayfly-dev-")
        self.addCleanup(shutil.rmtree, where)
        loop, node = self.loop_device(image), os.path.join(where, "node")
        os.mknod(node, 0o600 | stat.S_IFBLK, os.stat(loop).st_rdev)
        self.ns = self.netns()
        self.m = m = self.monitor("--allow-dir", where, "--allow-dir", os.path.dirname(guest()), netns=self.ns)
        m.boot(netns=self.ns, drives=[node])
        self.assertEqual(self.get("/disk")[0]["sectors"], 4 * MIB // 512)
        self.assertEqual(self.get("/sector/0")[:6], b"first.")
        data = os.urandom(64 * 512)
        self.assertEqual(self.ns.http("PUT", "/sector/100", data)[0], 200)
        self.assertEqual(self.get("/sector/100?n=64"), data)
        self.get("/zero?sector=100&n=8")
        self.get("/discard?sector=200&n=800")
        self.assertEqual(self.get("/sector/100?n=64"), bytes(8 * 512) + data[8 * 512:])
        self.get("/sector/8192", 500)
        with self.assertRaises(ApiError) as c:  # its owner is one, as an image's
            self.monitor("--allow-dir", where, "--allow-dir", os.path.dirname(guest())).boot(drives=[node], start=False)
        self.assertIn("in use", str(c.exception))
        os.truncate(image, 6 * MIB)
        subprocess.run(["losetup", "-c", loop], check=True)
        m.patch("/drives/disk0", drive_id="disk0", path_on_host=node)
        m.wait_for(lambda: self.get("/disk")[0]["sectors"] == 6 * MIB // 512, 5, "the new capacity")
        self.assertEqual(m.kill(signal.SIGTERM), 0)
        self.assertEqual(self.content(node, 108 * 512, 56 * 512), data[8 * 512:])


class Network(GuestCase):
    def test_mtu_is_told_and_kept(self):
        for mtu, mss in ((600, 560), (1500, 1460), (None, 1460)):
            with self.subTest(mtu=mtu):
                ns = self.netns()
                m = self.monitor(netns=ns)
                m.boot(netns=ns, net={"mtu": mtu})
                self.assertEqual(json.loads(ns.http("GET", "/stats")[1])["mtu"], mtu or 0)
                s = ns.connect()
                self.addCleanup(s.close)
                # What the guest announced; the host takes 12 bytes of it for its timestamps when both use them.
                self.assertIn(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), (mss, mss - 12))
                self.assertEqual(len(ns.http("GET", "/download?mib=1", timeout=30)[1]), MIB)


class Memory(GuestCase):
    def test_memory_beyond_the_gap(self):
        """4 GiB of it: 3 below the gap that devices have, 1 above 4 GiB; a word written there is not seen elsewhere."""
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns, mem=4096)

        def touch(start, mib, seed):
            got = json.loads(ns.http("GET", f"/touch?mib={mib}&from={start}&seed={seed}", timeout=30)[1])
            self.assertEqual(got["mib"], mib)
            return got["at"], got["spare_mib"]

        def total(start, mib):
            return json.loads(ns.http("GET", f"/sum?mib={mib}&from={start}", timeout=30)[1])["sum"]
        at, spare = touch(0, 8, 1)
        self.assertLess(at, 3 << 30)
        self.assertGreater(spare, 4064)
        low = total(0, 8)
        high = spare - 1024  # the first MiB above 4 GiB, and the last ones
        below = touch(high - 1, 1, 5)[0]
        self.assertEqual(below, (3 << 30) - MIB)
        self.assertEqual(touch(high, 8, 2)[0], 4 << 30)
        self.assertEqual(touch(spare - 8, 8, 3)[0], (5 << 30) - 8 * MIB)
        first, last = total(high, 8), total(spare - 8, 8)
        self.assertEqual(len({low, first, last}), 3)
        touch(0, 8, 4)
        self.assertNotEqual(total(0, 8), low)
        self.assertEqual((total(high, 8), total(spare - 8, 8)), (first, last))
        self.assertEqual(json.loads(ns.http("GET", f"/touch?mib=1&from={spare}")[1])["mib"], 0)


if __name__ == "__main__":
    unittest.main()
