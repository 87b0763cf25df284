# SPDX-License-Identifier: Apache-2.0
"""Snapshots end to end: what a guest was before, it is after; what is refused changes nothing."""
import json
import os
import shutil
import tempfile
import time
import unittest

from lib import ApiError, GuestCase


class SnapshotCase(GuestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="mayfly-snap-")
        self.addCleanup(shutil.rmtree, self.dir, True)

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
        return json.loads(body) if body[:1] == b"{" else body

    def saved(self, ns, name="a", keep=False, boot=None, **kw):
        """A guest that was booted, paused and saved; ended unless keep."""
        m = self.monitor(netns=ns)
        m.boot(netns=ns, **(boot or {}))
        self.get(ns, "/counter")
        m.patch("/vm", state="Paused")
        self.create(m, name, **kw)
        if not keep:
            m.kill()
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


if __name__ == "__main__":
    unittest.main()
