# SPDX-License-Identifier: Apache-2.0
"""What is wrong is refused by the name of its field, changes nothing, and can be put right afterwards."""
import json
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
import unittest

import lib
import tiny
from lib import GuestCase, guest

PAGE = 4096


class BadInput(GuestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="mayfly-bad-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def path(self, name, content=None):
        p = os.path.join(self.dir, name)
        if content is not None:
            with open(p, "wb") as f:
                f.write(content)
        return p

    def refused(self, m, method, path, body, *says):
        """400 with one sentence that says so; configuration and state as before."""
        before = self.seen(m)
        status, data = m.api(method, path, body, check=False)
        self.assertEqual((status, list(data or [])), (400, ["fault_message"]), (path, body))
        text = data["fault_message"]
        for word in says:
            self.assertIn(word, text, (path, body))
        self.assertNotIn("\n", text)
        self.assertEqual(self.seen(m), before)
        return text

    def seen(self, m):
        """What a refused request may not change; when a guest calls itself ready is the guest's affair."""
        state = m.get("/")
        for ready in ("guest_ready", "guest_ready_here"):
            state.pop(ready)
        return m.get("/vm/config"), state

    def works(self, m):
        """The same monitor still starts a guest."""
        m.put("/boot-source", kernel_image_path=self.path("good", tiny.elf(tiny.say("fine\n") + tiny.POWER_OFF)))
        m.put("/actions", action_type="InstanceStart")
        self.assertEqual(m.wait_exit(30), 0, m.err())
        self.assertIn("fine\n", m.out())

    def odd_paths(self):
        fifo = self.path("fifo")
        if not os.path.exists(fifo):
            os.mkfifo(fifo)
        sock = self.path("socket")
        if not os.path.exists(sock):
            s = socket.socket(socket.AF_UNIX)
            self.addCleanup(s.close)
            s.bind(sock)
        loop = self.path("loop")
        if not os.path.islink(loop):
            os.symlink(loop, loop)
        # A sanitizer's runtime reads /proc, so a build with one may.
        proc = {} if lib.SANITIZED else {"/proc/self/mem": "", "/proc/self/status": ""}
        return {**proc, "/no/such/file": "No such file", self.dir: "directory", fifo: "FIFO", sock: "",
                loop: "", "/dev/zero": "", "/dev/kvm": "", "/proc/self/fd/0": "", "relative/none": "",
                "fd:0": "no descriptor", "fd:": "no descriptor", "fd:-1": "no descriptor", "fd:99999999999": "no descriptor"}


class Files(BadInput):
    def test_paths_that_are_no_data_files(self):
        m = self.monitor("--log-path", "/dev/null")
        kernel = guest()
        for path, says in self.odd_paths().items():
            self.refused(m, "PUT", "/boot-source", {"kernel_image_path": path}, "kernel_image_path", says)
            self.refused(m, "PUT", "/boot-source", {"kernel_image_path": kernel, "initrd_path": path}, "initrd_path", says)
            for ro in (False, True):
                self.refused(m, "PUT", "/drives/d", {"drive_id": "d", "is_root_device": False, "path_on_host": path,
                                                     "is_read_only": ro}, "path_on_host", says)
            self.refused(m, "PUT", "/drives/d", {"drive_id": "d", "is_root_device": False, "cow_path": path,
                                                 "path_on_host": self.path("disk", bytes(4096))}, "cow_path", says)
        self.works(m)

    def test_unreadable_files(self):
        # Root reads everything, so the monitor runs as nobody here (where that user may open /dev/kvm).
        kvm = os.open("/dev/kvm", os.O_RDWR)
        self.addCleanup(os.close, kvm)
        secret = self.path("secret", bytes(4096))
        os.chmod(secret, 0)
        os.chmod(self.dir, 0o777)
        sock = self.path("api")
        p = subprocess.Popen([lib.MAYFLY, "--api-sock", sock, "--passed-fd", f"kvm={kvm}", "--log-path", "/dev/null"],
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, user=65534,
                             group=65534, extra_groups=[], pass_fds=[kvm])
        self.addCleanup(p.stderr.close)
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        m = lib.Monitor.__new__(lib.Monitor)
        m.p, m.sock, m.out_path, m.err_path = p, sock, "/dev/null", "/dev/null"
        m.wait_for(lambda: os.path.exists(sock) and m.try_connect(), 10, "API socket")
        self.refused(m, "PUT", "/boot-source", {"kernel_image_path": secret}, "kernel_image_path", "Permission denied")
        drive = {"drive_id": "d", "is_root_device": False, "path_on_host": secret}
        self.refused(m, "PUT", "/drives/d", drive, "path_on_host", "Permission denied")
        os.chmod(secret, 0o444)
        self.refused(m, "PUT", "/drives/d", drive, "path_on_host", "Permission denied")  # read-only is not enough
        m.put("/drives/d", **drive, is_read_only=True)

    def test_sinks(self):
        m = self.monitor()
        link = self.path("link")
        os.symlink(self.path("target"), link)
        for path, says in (("/no/such/dir/file", "No such file"), (self.dir, "directory"), (link, "symbolic link"),
                           ("fd:0", "no descriptor"), ("/proc/self/comm", ""), ("/dev/kvm", "")):
            self.refused(m, "PUT", "/logger", {"log_path": path}, "log_path", says)
            self.refused(m, "PUT", "/metrics", {"metrics_path": path}, "metrics_path", says)
            self.refused(m, "PUT", "/serial", {"serial_out_path": path}, "serial_out_path", says)
        self.works(m)

    def test_drive_sizes(self):
        m = self.monitor("--log-path", "/dev/null")
        for n in (0, 1, 511, 513, 1 << 20 | 1):
            self.refused(m, "PUT", "/drives/d", {"drive_id": "d", "is_root_device": False,
                                                 "path_on_host": self.path("disk", bytes(n))}, "path_on_host", "512")
        self.works(m)

    def test_live_drive(self):
        m = self.monitor("--log-path", "/dev/null")
        one, two = self.disk(1), self.disk(1)
        m.boot(drives=[one, {"path_on_host": two, "is_read_only": True}])
        for path, says in self.odd_paths().items():
            self.refused(m, "PATCH", "/drives/disk0", {"drive_id": "disk0", "path_on_host": path}, "path_on_host", says)
        self.refused(m, "PATCH", "/drives/disk0", {"drive_id": "disk0", "path_on_host": self.path("odd", bytes(1000))},
                     "path_on_host", "512")
        self.refused(m, "PATCH", "/drives/disk0", {"drive_id": "disk0", "path_on_host": two}, "path_on_host", "in use")
        self.refused(m, "PATCH", "/drives/none", {"drive_id": "none", "path_on_host": one}, "drive_id", "none")
        self.refused(m, "PATCH", "/network-interfaces/none", {"iface_id": "none"}, "iface_id")


class Kernels(BadInput):
    """A kernel is read when the microVM starts; a bad one leaves it unstarted, and another may be put."""

    def test_every_kind_of_broken_kernel(self):
        with open(guest(), "rb") as f:
            whole = f.read()
        code = tiny.POWER_OFF.ljust(64, b"\xf4")
        bz = tiny.bzimage(code + bytes(PAGE))
        cases = {
            "empty": (b"", "kernel_image_path"),
            "text": (b"#!/bin/sh\n" * 200, "neither an ELF image nor a bzImage"),
            "short ELF": (whole[:40], "truncated"),
            "no program headers": (whole[:64], "program headers"),
            "cut in a segment": (whole[:5000], "truncated"),
            "32-bit": (tiny.elf(code, cls=1), "32-bit"),
            "other machine": (tiny.elf(code, machine=183), "x86-64"),
            "object file": (tiny.elf(code, kind=1), "executable"),
            "no segments": (tiny.elf(code, phnum=0), "program headers"),
            "too many segments": (tiny.elf(code, phnum=65535), "program headers"),
            "odd header size": (tiny.elf(code, phentsize=32), "program headers"),
            "headers past the end": (tiny.elf(code, phoff=1 << 62), "outside the file"),
            "overlap": (tiny.elf(code, [(tiny.LOAD, 16, PAGE, PAGE), (tiny.LOAD + 8, 16, PAGE, PAGE)]), "overlap"),
            "huge": (tiny.elf(code, [(tiny.LOAD, 16, 1 << 40, PAGE)]), "does not fit"),
            "wraps": (tiny.elf(code, [(tiny.LOAD, 16, 2 ** 64 - 1, PAGE)]), "does not fit"),
            "beyond RAM": (tiny.elf(code, [(1 << 30, 16, 16, PAGE)], entry=1 << 30), "does not fit"),
            "in the gap": (tiny.elf(code, [(0xd0000000, 16, 16, PAGE)], entry=0xd0000000), "does not fit"),
            "last address": (tiny.elf(code, [(2 ** 64 - 8, 16, 16, PAGE)]), "does not fit"),
            "below 1 MiB": (tiny.elf(code, [(0x1000, 16, 16, PAGE)], entry=0x1000), "below 1 MiB"),
            "more in the file": (tiny.elf(code, [(tiny.LOAD, 16, 8, PAGE)]), "larger in the file"),
            "offset past the end": (tiny.elf(code, [(tiny.LOAD, 16, 16, 1 << 62)]), "outside the file"),
            "entry outside": (tiny.elf(code, entry=tiny.LOAD + PAGE), "lies in no ELF segment"),
            "old bzImage": (tiny.bzimage(code, version=0x20b), "2.12"),
            "32-bit bzImage": (tiny.bzimage(code, xload=0), "64-bit"),
            "zImage": (tiny.bzimage(code, flags=0), "zImage"),
            "cut bzImage": (bz[:1100], "truncated"),
            "bzImage beyond RAM": (tiny.bzimage(code, pref=1 << 40), "do not fit"),
            "bzImage too large": (tiny.bzimage(code, init_size=0xffffffff), "do not fit"),
            "bzImage low": (tiny.bzimage(code, pref=0x1000), "below 1 MiB"),
        }
        m = self.monitor("--log-path", "/dev/null")
        for name, (content, says) in cases.items():
            with self.subTest(name):
                m.put("/boot-source", kernel_image_path=self.path("kernel", content))
                self.refused(m, "PUT", "/actions", {"action_type": "InstanceStart"}, "kernel_image_path", says)
        self.works(m)

    def test_initrds(self):
        m = self.monitor("--log-path", "/dev/null")
        kernel = self.path("kernel", tiny.elf(tiny.POWER_OFF))
        for content, says in ((b"", "empty"), (None, "do not fit")):
            path = self.path("initrd", content)
            if content is None:
                with open(path, "wb") as f:
                    f.truncate(128 << 20)
            m.put("/boot-source", kernel_image_path=kernel, initrd_path=path)
            self.refused(m, "PUT", "/actions", {"action_type": "InstanceStart"}, "initrd_path", says)
        self.works(m)

    def test_kernel_that_shrinks_after_the_request(self):
        m = self.monitor("--log-path", "/dev/null")
        path = self.path("kernel", tiny.elf(tiny.POWER_OFF + bytes(PAGE)))
        m.put("/boot-source", kernel_image_path=path)
        os.truncate(path, PAGE)
        self.refused(m, "PUT", "/actions", {"action_type": "InstanceStart"}, "kernel_image_path", "truncated")
        self.works(m)

    def test_command_lines(self):
        m = self.monitor("--log-path", "/dev/null")
        kernel = guest()
        for args, says in (("x" * 2048, "boot_args"), ("a\nb", "boot_args"), ("caf\u00e9", "boot_args"),
                           ("a\tb", "boot_args")):
            self.refused(m, "PUT", "/boot-source", {"kernel_image_path": kernel, "boot_args": args}, says)
        m.put("/boot-source", kernel_image_path=kernel, boot_args="x" * 2040)  # full, once pci=off is added
        self.refused(m, "PUT", "/actions", {"action_type": "InstanceStart"}, "boot_args")
        self.works(m)

    def test_start_without_a_kernel(self):
        m = self.monitor("--log-path", "/dev/null")
        self.refused(m, "PUT", "/actions", {"action_type": "InstanceStart"}, "kernel_image_path")
        self.works(m)


class Machine(BadInput):
    def test_sizes(self):
        m = self.monitor("--log-path", "/dev/null")
        for body, says in (({"vcpu_count": 0, "mem_size_mib": 64}, "vcpu_count"),
                           ({"vcpu_count": 33, "mem_size_mib": 64}, "vcpu_count"),
                           ({"vcpu_count": 3, "mem_size_mib": 64, "smt": True}, "vcpu_count"),
                           ({"vcpu_count": 1, "mem_size_mib": 0}, "mem_size_mib"),
                           ({"vcpu_count": 1, "mem_size_mib": 2 ** 32}, "mem_size_mib"),
                           ({"vcpu_count": 1, "mem_size_mib": 2 ** 64}, "mem_size_mib"),
                           ({"vcpu_count": 1, "mem_size_mib": 63, "huge_pages": "2M"}, "mem_size_mib"),
                           ({"vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "1G"}, "huge_pages"),
                           ({"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T2"}, "cpu_template"),
                           ({"vcpu_count": 1}, "mem_size_mib"), ({"mem_size_mib": 64}, "vcpu_count")):
            self.refused(m, "PUT", "/machine-config", body, says)
        self.works(m)

    @unittest.skipIf(lib.SANITIZED, "a sanitizer needs more address space than the limit here")
    def test_more_memory_than_the_process_may_have(self):
        limit = 16 << 30
        m = self.monitor("--log-path", "/dev/null",
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
        self.refused(m, "PUT", "/machine-config", {"vcpu_count": 4, "mem_size_mib": 32 << 10}, "address space")
        self.works(m)

    def test_huge_pages(self):
        m = self.monitor("--log-path", "/dev/null")
        with open("/proc/meminfo") as f:
            free = next(int(line.split()[1]) for line in f if line.startswith("HugePages_Free"))
        size = 2 * (free + 16)
        m.put("/machine-config", vcpu_count=1, mem_size_mib=size, huge_pages="2M")
        m.put("/boot-source", kernel_image_path=guest())
        self.refused(m, "PUT", "/actions", {"action_type": "InstanceStart"}, "huge_pages", str(size // 2))
        m.put("/machine-config", vcpu_count=1, mem_size_mib=64, huge_pages="2M" if free >= 32 else "Transparent")
        self.works(m)


class Devices(BadInput):
    def test_ids(self):
        m = self.monitor("--log-path", "/dev/null")
        disk = self.disk(1)
        for ident in ("a-b", "a.b", "a%2fb", "\u00e9", "a" * 65, "a b", "..", "a\u0000"):
            for path, body in ((f"/drives/{ident}", {"drive_id": ident, "is_root_device": False, "path_on_host": disk}),
                               (f"/network-interfaces/{ident}", {"iface_id": ident, "host_dev_name": "t"})):
                raw = path.encode()
                if any(c <= 0x20 or c >= 0x7f for c in raw):
                    continue  # such bytes do not pass HTTP: test_http tells
                self.refused(m, "PUT", path, body)
        for path in ("/drives/", "/drives", "/network-interfaces/"):
            self.refused(m, "PUT", path, {"drive_id": "", "iface_id": ""}, "ID cannot be empty")
        for key, path in (("drive_id", "/drives/x"), ("iface_id", "/network-interfaces/x")):
            base = {"is_root_device": False, "path_on_host": disk} if key == "drive_id" else {"host_dev_name": "t"}
            self.refused(m, "PUT", path, {**base, key: ""}, key)
            self.refused(m, "PUT", path, {**base, key: "y"}, "does not match")
            self.refused(m, "PUT", path, base, key)
        longest = "a" * 64
        m.put(f"/drives/{longest}", drive_id=longest, is_root_device=False, path_on_host=disk)
        self.works(m)

    def test_drives_in_conflict(self):
        m = self.monitor("--log-path", "/dev/null")
        one, two = self.disk(1), self.disk(1)

        def drive(ident, path, **more):
            return {"drive_id": ident, "is_root_device": False, "path_on_host": path, **more}
        m.put("/drives/a", **drive("a", one, is_root_device=True))
        self.refused(m, "PUT", "/drives/b", drive("b", two, is_root_device=True), "is_root_device", "a")
        self.refused(m, "PUT", "/drives/b", drive("b", one), "path_on_host", "in use")
        self.refused(m, "PUT", "/drives/b", drive("b", one, is_read_only=True), "path_on_host", "in use")
        self.refused(m, "PUT", "/drives/b", drive("b", two, socket="/s"), "socket")
        self.refused(m, "PUT", "/drives/b", {"drive_id": "b", "is_root_device": False}, "path_on_host")
        self.refused(m, "PUT", "/drives/b", drive("b", two, cow_path=two, is_read_only=True), "cow_path")
        # Replaced by what cannot be had, the drive that was there still holds its image.
        self.refused(m, "PUT", "/drives/a", drive("a", "/no/such/file"), "path_on_host")
        other = self.monitor("--log-path", "/dev/null")
        self.refused(other, "PUT", "/drives/x", drive("x", one), "path_on_host", "in use")
        self.refused(other, "PUT", "/drives/x", drive("x", one, is_read_only=True), "path_on_host", "in use")
        self.refused(m, "PUT", "/drives/a", drive("a", one, cow_path="/no/such/file"), "cow_path")
        self.refused(m, "PUT", "/drives/a", drive("a", one, cow_path=one), "cow_path", "in use")
        self.refused(other, "PUT", "/drives/x", drive("x", one), "path_on_host", "in use")
        layer = self.path("layer", b"")
        for _ in range(2):
            m.put("/drives/c", **drive("c", two, cow_path=layer))  # the same layer again
        self.refused(m, "PUT", "/drives/c", drive("c", two, cow_path=one), "cow_path", "in use")
        self.refused(other, "PUT", "/drives/x", drive("x", two), "path_on_host", "in use")
        self.refused(other, "PUT", "/drives/x", drive("x", two, cow_path=layer), "cow_path", "in use")
        two = self.disk(1)
        m.put("/drives/a", **drive("a", one))  # the same again, no longer the root
        m.put("/drives/b", **drive("b", two, is_root_device=True))
        self.assertEqual([d["drive_id"] for d in m.get("/vm/config")["drives"]], ["b", "a", "c"])
        for i in range(5):
            m.put(f"/drives/n{i}", **drive(f"n{i}", self.disk(1)))
        self.refused(m, "PUT", "/drives/n5", drive("n5", self.disk(1)), "drive_id")
        self.works(m)

    def test_interfaces_in_conflict(self):
        ns = self.netns(taps=2)
        m = self.monitor("--log-path", "/dev/null", netns=ns)

        def iface(ident, tap, **more):
            return {"iface_id": ident, "host_dev_name": tap, **more}
        for tap, says in (("none0", "does not exist"), ("", "host_dev_name"), ("a/b", ""), ("%d", ""), ("tap%d", ""),
                          ("x" * 16, ""), ("lo", ""), ("fd:0", "no descriptor"), ("../tap0", "")):
            self.refused(m, "PUT", "/network-interfaces/a", iface("a", tap), "host_dev_name", says)
        for mac in ("", "06:00:AC", "06-00-AC-1E-00-02", "zz:00:00:00:00:00", "00:00:00:00:00:00",
                    "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "06:00:AC:1E:00:02:03"):
            self.refused(m, "PUT", "/network-interfaces/a", iface("a", "tap0", guest_mac=mac), "guest_mac")
        for mtu in (0, 67, 65536, -1, 1.5, "1500"):
            self.refused(m, "PUT", "/network-interfaces/a", iface("a", "tap0", mtu=mtu), "mtu")
        m.put("/network-interfaces/a", **iface("a", "tap0", guest_mac="06:00:AC:1E:00:02"))
        self.refused(m, "PUT", "/network-interfaces/b", iface("b", "tap1", guest_mac="06:00:ac:1e:00:02"), "guest_mac", "a")
        self.refused(m, "PUT", "/network-interfaces/b", iface("b", "tap0"), "host_dev_name", "in use")
        other = self.monitor("--log-path", "/dev/null", netns=ns)
        self.refused(other, "PUT", "/network-interfaces/a", iface("a", "tap0"), "host_dev_name", "in use")
        self.refused(m, "PUT", "/network-interfaces/a", iface("a", "none0"), "host_dev_name")
        m.put("/network-interfaces/a", **iface("a", "tap0"))
        m.put("/network-interfaces/b", **iface("b", "tap1"))
        self.works(m)

    def test_wrong_kind_of_tap(self):
        ns = self.netns()
        ns.ip("tuntap", "add", "tun9", "mode", "tun")
        ns.ip("tuntap", "add", "multi9", "mode", "tap", "multi_queue")
        m = self.monitor("--log-path", "/dev/null", netns=ns)
        for tap in ("tun9", "multi9"):
            self.refused(m, "PUT", "/network-interfaces/a", {"iface_id": "a", "host_dev_name": tap}, "host_dev_name", tap)

    def test_limiters(self):
        m = self.monitor("--log-path", "/dev/null")
        disk = self.disk(1)
        for bucket in ({}, {"size": 1}, {"refill_time": 1}, {"size": -1, "refill_time": 1}, {"size": 2 ** 64, "refill_time": 1},
                       {"size": 1, "refill_time": 1, "burst": 1}, {"size": "1", "refill_time": 1}, []):
            for limit in ({"bandwidth": bucket}, {"ops": bucket}):
                self.refused(m, "PUT", "/drives/d", {"drive_id": "d", "is_root_device": False, "path_on_host": disk,
                                                     "rate_limiter": limit})
        self.works(m)


class Wire(BadInput):
    def raw(self, m, data):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(20)
        s.connect(m.sock)
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        out = b""
        try:
            while chunk := s.recv(65536):
                out += chunk
        except ConnectionResetError:
            pass
        s.close()
        return out

    def test_http(self):
        m = self.monitor("--log-path", "/dev/null")
        before = m.get("/vm/config")
        body = b'{"vcpu_count":7,"mem_size_mib":64}'
        good = b"PUT /machine-config HTTP/1.1\r\nContent-Length: 34\r\n\r\n" + body
        self.assertEqual(len(body), 34)

        def req(line=b"PUT /machine-config HTTP/1.1", *headers, eol=b"\r\n"):
            return line + eol + b"".join(h + eol for h in headers or (b"Content-Length: 34",)) + eol + body
        bad = [
            req(b"PUT /machine-config HTTP/1.2"), req(b"PUT /machine-config HTTP/0.9"), req(b"PUT /machine-config"),
            req(b"PUT  /machine-config HTTP/1.1"), req(b"PUT /machine-config  HTTP/1.1"), req(b" PUT /machine-config HTTP/1.1"),
            req(b"put /machine-config HTTP/1.1"), req(b"PUT /machine config HTTP/1.1"), req(b"PUT /\0 HTTP/1.1"),
            req(b"PUT /a\xff HTTP/1.1"), req(b"PUT /" + b"a" * 2000 + b" HTTP/1.1"), req(eol=b"\n"), req(eol=b"\r"),
            req(b"PUT /machine-config HTTP/1.1", b"Content-Length: 34", b"Content-Length: 34"),
            req(b"PUT /machine-config HTTP/1.1", b"Content-Length: 34", b"Content-Length: 5"),
            req(b"PUT /machine-config HTTP/1.1", b"Content-Length: 34, 34"), req(b"PUT /machine-config HTTP/1.1", b"Content-Length: +34"),
            req(b"PUT /machine-config HTTP/1.1", b"Content-Length: -1"), req(b"PUT /machine-config HTTP/1.1", b"Content-Length: 0x22"),
            req(b"PUT /machine-config HTTP/1.1", b"Content-Length: 3 4"), req(b"PUT /machine-config HTTP/1.1", b"Content-Length:"),
            req(b"PUT /machine-config HTTP/1.1", b"Content-Length: 99999999999999999999"),
            req(b"PUT /machine-config HTTP/1.1", b"Content-Length: 51201"),
            req(b"PUT /machine-config HTTP/1.1", b"Transfer-Encoding: chunked"),
            req(b"PUT /machine-config HTTP/1.1", b"Content-Length: 34", b"Transfer-Encoding: identity"),
            req(b"PUT /machine-config HTTP/1.1", b"Content-Length : 34"), req(b"PUT /machine-config HTTP/1.1", b" Content-Length: 34"),
            req(b"PUT /machine-config HTTP/1.1", b"A: b", b"\tc", b"Content-Length: 34"),
            req(b"PUT /machine-config HTTP/1.1", b"A\0: b", b"Content-Length: 34"),
            req(b"PUT /machine-config HTTP/1.1", b"A: \0", b"Content-Length: 34"),
            req(b"PUT /machine-config HTTP/1.1", b": b", b"Content-Length: 34"),
            req(b"PUT /machine-config HTTP/1.1", b"A: " + b"b" * 5000, b"Content-Length: 34"),
            req(b"PUT /machine-config HTTP/1.1", *[b"A: b"] * 33, b"Content-Length: 34"),
            req(b"PUT /machine-config HTTP/1.1", b"Content-Length: 34", b"Upgrade: h2c", b"Expect: 200-nothing"),
            good[:-1], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET", bytes(2000), os.urandom(500),
        ]
        for data in bad:
            with self.subTest(data[:80]):
                answer = self.raw(m, data)
                if answer:
                    self.assertTrue(answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 100 ")), answer[:200])
                    self.assertEqual(["fault_message"], list(json.loads(answer.rpartition(b"\r\n\r\n")[2])))
                self.assertEqual(m.get("/vm/config"), before)
        # What a smuggled body asks for is never done: the connection ends with the first bad request.
        smuggle = b"PUT /machine-config HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" + good
        self.assertEqual(self.raw(m, smuggle).count(b"HTTP/1.1 "), 1)
        self.assertEqual(m.get("/vm/config"), before)
        self.assertIn(b" 204 ", self.raw(m, good))
        self.works(m)

    def test_json(self):
        m = self.monitor("--log-path", "/dev/null")
        before = m.get("/vm/config")
        for text in ('{"vcpu_count":2,"mem_size_mib":64', '{"vcpu_count":2 "mem_size_mib":64}', "{'vcpu_count':2}", "[2,64]", "null",
                     "", " ", "{}", '{"vcpu_count":2,"mem_size_mib":64}x', '{"vcpu_count":2,"mem_size_mib":64,}',
                     '{"vcpu_count":2,"vcpu_count":2,"mem_size_mib":64}', '{"vcpu_count":2,"mem_size_mib":64,"x":1}',
                     '{"vcpu_count":2e0,"mem_size_mib":64}', '{"vcpu_count":02,"mem_size_mib":64}', '{"vcpu_count":0x2,"mem_size_mib":64}',
                     '{"vcpu_count":+2,"mem_size_mib":64}', '{"vcpu_count":-2,"mem_size_mib":64}', '{"vcpu_count":2.0,"mem_size_mib":64}',
                     '{"vcpu_count":1e999,"mem_size_mib":64}', '{"vcpu_count":18446744073709551618,"mem_size_mib":64}',
                     '{"vcpu_count":NaN,"mem_size_mib":64}', '{"vcpu_count":2,"mem_size_mib":64}\0', '{"a\\ud800":1}', '{"a\\x":1}',
                     '{"vcpu_count":' + "[" * 5000 + "]" * 5000 + "}", '{"a":' * 9 + "1" + "}" * 9, "[" * 50000,
                     '{"a":[' + ",".join("1" * 400) + "]}", '{"vcpu_count":2,"mem_size_mib":64,"smt":tru}', "\ufeff{}", '"' + "a" * 40000 + '"'):
            data = text.encode("utf-8")
            answer = self.raw(m, b"PUT /machine-config HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), (text[:60], answer[:200]))
            self.assertEqual(["fault_message"], list(json.loads(answer.rpartition(b"\r\n\r\n")[2])))
        self.assertEqual(m.get("/vm/config"), before)
        self.works(m)

    def test_descriptors_that_do_not_fit(self):
        m = self.monitor("--log-path", "/dev/null")
        before = m.get("/vm/config")
        r, w = os.pipe()
        self.addCleanup(os.close, r)
        self.addCleanup(os.close, w)
        ro = os.open(self.disk(1), os.O_RDONLY)
        self.addCleanup(os.close, ro)
        for path, body, fd in (("/drives/d", {"drive_id": "d", "is_root_device": False, "path_on_host": "fd:0"}, r),
                               ("/drives/d", {"drive_id": "d", "is_root_device": False, "path_on_host": "fd:0"}, ro),
                               ("/boot-source", {"kernel_image_path": "fd:0"}, w),
                               ("/network-interfaces/n", {"iface_id": "n", "host_dev_name": "fd:0"}, ro)):
            data = json.dumps(body).encode()
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(20)
            s.connect(m.sock)
            head = f"PUT {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            socket.send_fds(s, [head + data], [fd])
            answer = s.recv(65536)
            s.close()
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), (path, answer))
            self.assertIn(next(k for k, v in body.items() if v == "fd:0").encode(), answer)
        self.assertEqual(m.get("/vm/config"), before)
        fds = os.listdir(f"/proc/{m.p.pid}/fd")
        for _ in range(40):  # descriptors of refused requests do not pile up
            self.refused(m, "PUT", "/drives/d", {"drive_id": "d", "is_root_device": False, "path_on_host": "/no"})
        end = time.monotonic() + 5  # the last connection goes when its end was read
        while len(os.listdir(f"/proc/{m.p.pid}/fd")) > len(fds):
            self.assertLess(time.monotonic(), end)
        self.works(m)


class Process(BadInput):
    def test_socket_paths(self):
        plain = self.path("plain", b"keep me")
        for sock, says in ((plain, "no socket"), (self.dir, "no socket"), ("/no/such/dir/s", "API socket"),
                           ("/" + "x" * 120, "longer"), ("", "API socket")):
            p = subprocess.run([lib.MAYFLY, "--api-sock", sock], capture_output=True, text=True, timeout=30,
                               stdin=subprocess.DEVNULL)
            self.assertEqual((p.returncode, p.stderr.count("\n")), (1, 1), (sock, p.stderr))
            self.assertIn(says, p.stderr)
        with open(plain) as f:
            self.assertEqual(f.read(), "keep me")

    def test_directories(self):
        for d, status in (("relative", 153), ("/no/such/dir", 1), (self.path("plain", b""), 1)):
            p = subprocess.run([lib.MAYFLY, "--api-sock", self.path("s"), "--allow-dir", d], capture_output=True,
                               text=True, timeout=30, stdin=subprocess.DEVNULL)
            self.assertEqual(p.returncode, status, p.stderr)
            self.assertIn("--allow-dir", p.stderr)

    def test_config_files(self):
        for content in (b"", b"{", b"[]", b"\0" * 100, b'{"boot-source":1}', b'{"a":' * 100, os.urandom(1000)):
            p = subprocess.run([lib.MAYFLY, "--no-api", "--config-file", self.path("c", content)], capture_output=True,
                               text=True, timeout=30, stdin=subprocess.DEVNULL)
            self.assertEqual(p.returncode, 152, (content[:50], p.stderr))
            self.assertEqual(p.stderr.count("\n"), 1)
        os.mkfifo(self.path("fifo"))
        for path in (self.path("fifo"), self.dir, "/dev/zero", "/no/such/file"):
            p = subprocess.run([lib.MAYFLY, "--no-api", "--config-file", path], capture_output=True, text=True,
                               timeout=30, stdin=subprocess.DEVNULL)
            self.assertEqual(p.returncode, 1, p.stderr)
            self.assertIn("--config-file", p.stderr)


if __name__ == "__main__":
    unittest.main()
