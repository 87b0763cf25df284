# SPDX-License-Identifier: Apache-2.0
"""Memory from a page server: Firecracker's handshake, and servers that die, fall silent, or never read."""
import array
import ctypes
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import struct
import threading
import time
import unittest

from lib import ApiError
from miglib import api_fds
from test_snapshot import SnapshotCase

UFFDIO_COPY, UFFDIO_ZEROPAGE = 0xC028AA03, 0xC020AA04


class Server:
    """A page server in a thread. mode: serve; silent: reads faults and never answers; deaf: never reads;
    die: closes everything after `after` pages."""

    def __init__(self, path, mem, mode="serve", after=0):
        self.mode, self.after, self.pages = mode, after, 0
        self.regions = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.file = open(mem, "rb")
        self.map = mmap.mmap(self.file.fileno(), 0, prot=mmap.PROT_READ)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        self.conn, _ = self.listener.accept()
        data, control, _, _ = self.conn.recvmsg(65536, socket.CMSG_SPACE(4))
        self.regions = json.loads(data)
        fds = array.array("i")
        fds.frombytes(control[0][2][:4])
        uffd = fds[0]
        while not self.stop.is_set():
            if self.mode == "deaf":
                self.stop.wait(0.1)
                continue
            if not select.select([uffd], [], [], 0.1)[0]:
                continue
            try:
                msg = os.read(uffd, 32)
            except BlockingIOError:
                continue
            if msg[0] == 0x12 and self.mode != "silent":
                self.place(uffd, struct.unpack_from("<Q", msg, 16)[0] & ~4095)
            if self.mode == "die" and self.pages >= self.after:
                break
        os.close(uffd)
        self.conn.close()

    def place(self, uffd, addr):
        self.pages += 1
        for r in self.regions:
            off = addr - r["base_host_virt_addr"]
            if 0 <= off < r["size"]:
                page = ctypes.create_string_buffer(self.map[r["offset"] + off:r["offset"] + off + 4096], 4096)
                try:
                    fcntl.ioctl(uffd, UFFDIO_COPY, struct.pack("<QQQQq", addr, ctypes.addressof(page), 4096, 0, 0))
                except FileExistsError:
                    pass

    def close(self):
        self.stop.set()
        self.thread.join(5)
        for f in (self.listener, self.map, self.file):
            f.close()


class Uffd(SnapshotCase):
    def serve(self, *args, **kw):
        path = self.path(f"pager{len(os.listdir(self.dir))}.sock")
        s = Server(path, self.path("a.mem"), *args, **kw)
        self.addCleanup(s.close)
        s.path = path
        return s

    def load_from(self, m, server, **kw):
        return self.load(m, mem_backend={"backend_type": "Uffd", "backend_path": server.path}, **kw)

    def test_serves(self):
        ns = self.netns()
        self.saved(ns, boot={"args": "tick=10"})
        s = self.serve()
        m = self.monitor(netns=ns)
        self.load_from(m, s)
        a = self.get(ns, "/counter")
        self.assertGreaterEqual(a["counter"], 2)
        self.assertEqual(len(s.regions), 1)
        self.assertEqual(set(s.regions[0]), {"base_host_virt_addr", "size", "offset", "page_size", "page_size_kib"})
        self.assertEqual(s.regions[0]["size"], 128 << 20)
        self.assertGreater(s.pages, 10)
        # A snapshot of it is whole: what was never touched is fetched for it.
        m.patch("/vm", state="Paused")
        self.create(m, "b")
        m.kill()
        m2 = self.monitor(netns=ns)
        self.load(m2, "b")
        self.assertEqual(self.get(ns, "/counter")["boot"], a["boot"])

    def test_orderly_end(self):
        ns = self.netns()
        self.saved(ns)
        m = self.monitor(netns=ns)
        self.load_from(m, self.serve())
        self.get(ns, "/poweroff")
        self.assertEqual(m.wait_exit(), 0, m.err())

    def fails(self, text, **kw):
        ns = self.netns()
        self.saved(ns, boot={"args": "tick=50"})
        s = self.serve(**kw)
        m = self.monitor(netns=ns)
        t = time.monotonic()
        try:
            self.load_from(m, s)
        except (OSError, ApiError):
            pass
        self.assertEqual(m.wait_exit(12), 5, m.err())
        self.assertLess(time.monotonic() - t, 9)
        self.assertIn(text, m.err())

    def test_dies(self):
        self.fails("hung up", mode="die", after=20)

    def test_dies_at_once(self):
        self.fails("hung up", mode="die", after=1)

    def test_silent(self):
        self.fails("owes a page", mode="silent")

    def test_deaf(self):
        self.fails("owes a page", mode="deaf")

    def test_hung_up_but_serves(self):
        """A server that closes its connection and serves on is as good as any."""
        ns = self.netns()
        self.saved(ns)
        s = self.serve()
        m = self.monitor(netns=ns)
        self.load_from(m, s)
        self.get(ns, "/counter")
        s.conn.shutdown(socket.SHUT_RDWR)
        for seed in range(4):
            ns.http("GET", f"/touch?mib=4&seed={seed}", timeout=20)
            time.sleep(0.3)
        self.get(ns, "/counter")

    def test_failed_after_the_handshake(self):
        """A load that fails with the page server connected leaves the process ready for another, of either kind."""
        ns, disk = self.netns(), self.disk()
        self.saved(ns, boot={"drives": [disk]})
        m = self.monitor(netns=ns)
        fds = lambda: len(os.listdir(f"/proc/{m.p.pid}/fd"))
        gone = [{"drive_id": "disk0", "path_on_host": "/nonexistent"}]
        self.assertEqual(m.state(), "Not started")  # by then all that it opens at its start is open
        before = fds()
        for i in range(3):
            s = self.serve()
            with self.assertRaisesRegex(ApiError, "nonexistent"):
                self.load_from(m, s, drive_overrides=gone)
            with self.assertRaisesRegex(ApiError, "nonexistent"):
                self.load(m, drive_overrides=gone)
        self.assertLessEqual(fds(), before + 1, "descriptors pile up")
        self.load_from(m, self.serve(), track_dirty_pages=True)
        self.get(ns, "/counter")
        m.kill(signal.SIGTERM)
        m = self.monitor(netns=ns)
        for i in range(4):
            with self.assertRaisesRegex(ApiError, "nonexistent"):
                self.load_from(m, self.serve(), drive_overrides=gone)
        server = self.serve()
        with self.assertRaisesRegex(ApiError, "pass a connection as fd:N"):
            self.load_from(m, server)
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(server.path)
            status, body = api_fds(m.sock, "PUT", "/snapshot/load", {
                "snapshot_path": self.path("a.state"), "resume_vm": True,
                "mem_backend": {"backend_type": "Uffd", "backend_path": "fd:0"}}, [s.fileno()])
        self.assertEqual(status, 204, body)
        self.get(ns, "/counter")

    def test_nobody_there(self):
        ns = self.netns()
        self.saved(ns)
        m = self.monitor(netns=ns)
        for path in ("/nonexistent/sock", self.path("a.mem")):
            status, body = self.load(m, check=False, mem_backend={"backend_type": "Uffd", "backend_path": path})
            self.assertEqual(status, 400)
            self.assertIn("cannot connect", body["fault_message"])
        self.load_from(m, self.serve())  # ready for another
        self.get(ns, "/counter")


if __name__ == "__main__":
    unittest.main()
