# SPDX-License-Identifier: Apache-2.0
"""The binary as a process: what it is linked with, hosts that fail it, limits named on its command line."""
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import unittest

import lib
from lib import BUILD, MAYFLY, GuestCase, guest

WITHOUT = os.path.join(BUILD, "without")
IO_URING_SETUP, IOCTL, KVM_RUN = 425, 16, 0xae80
PT_LOAD, PT_DYNAMIC, PT_INTERP, DT_NEEDED, ET_DYN = 1, 2, 3, 1, 3


class Linked(unittest.TestCase):
    @unittest.skipIf(lib.SANITIZED, "a sanitizer's runtime needs the dynamic loader")
    def test_static_pie(self):
        """Position independent, with no interpreter and no library to look for, and nothing writable that executes."""
        for name in ("mayfly", "mayfly-jail", "mayflyctl"):
            with self.subTest(name), open(os.path.join(BUILD, name), "rb") as f:
                elf = f.read()
                self.assertEqual(elf[:6], b"\x7fELF\x02\x01")
                self.assertEqual(struct.unpack_from("<H", elf, 16)[0], ET_DYN)
                phoff, size, n = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
                parts = [struct.unpack_from("<IIQQQQ", elf, phoff + i * size) for i in range(n)]
                kinds = [p[0] for p in parts]
                self.assertIn(PT_LOAD, kinds)
                self.assertNotIn(PT_INTERP, kinds)
                at, length = next((p[2], p[5]) for p in parts if p[0] == PT_DYNAMIC)
                tags = [struct.unpack_from("<QQ", elf, at + i)[0] for i in range(0, length, 16)]
                self.assertIn(0, tags)
                self.assertNotIn(DT_NEEDED, tags)
                self.assertEqual([p for p in parts if p[1] & 3 == 3], [])


class Debug(GuestCase):
    BINARY = os.path.join(lib.ROOT, "build", "debug", "mayfly")

    @unittest.skipUnless(os.path.exists(BINARY), "no debug build (make DEBUG=1 monitor)")
    def test_no_seccomp_has_effect(self):
        """As the help says: in debug builds alone."""
        for args, mode in (((), "2"), (("--no-seccomp",), "0")):
            m = self.monitor(*args, binary=self.BINARY)
            m.get("/")
            with open(f"/proc/{m.p.pid}/status") as f:
                self.assertIn(f"\nSeccomp:\t{mode}\n", f.read(), args)


class Deps(unittest.TestCase):
    @unittest.skipUnless(shutil.which("make"), "no make")
    def test_without_root_one_command_is_printed(self):
        with tempfile.TemporaryDirectory() as bare:
            for name, text in (("dpkg-query", "exit 1"), ("id", "echo 1000"), ("apt-get", "touch " + bare + "/ran")):
                with open(os.path.join(bare, name), "w") as f:
                    f.write("#!/bin/sh\n" + text + "\n")
                os.chmod(f.name, 0o755)
            for target in ("deps", "check", "demo"):
                p = subprocess.run(["make", "--no-print-directory", target], cwd=lib.ROOT, capture_output=True, text=True,
                                   timeout=60, env={**os.environ, "PATH": bare + ":" + os.environ["PATH"], "MAKEFLAGS": ""})
                self.assertNotEqual(p.returncode, 0)
                self.assertRegex(p.stdout, r"\Aplease run: sudo apt-get install --no-install-recommends gcc [^\n]* openssl\n\Z")
            self.assertNotIn("ran", os.listdir(bare))


class FailingHost(GuestCase):
    def start(self, deny):
        script = self.disk(0)
        with open(script, "w") as f:
            f.write(f'#!/bin/sh\nexec {WITHOUT} {deny} {MAYFLY} "$@"\n')
        os.chmod(script, 0o755)
        return script

    def test_no_io_uring(self):
        m = self.monitor(binary=self.start(IO_URING_SETUP), api=False)
        self.assertEqual(m.wait_exit(10), 1)
        self.assertRegex(m.err(), r"\Amayfly: this host gives no io_uring \(.*\): see kernel.io_uring_disabled and seccomp\n\Z")

    def test_a_vcpu_that_cannot_go_on(self):
        m = self.monitor(binary=self.start(f"{IOCTL}::{KVM_RUN}"))
        m.boot(kernel=guest("spin"))
        self.assertEqual(m.wait_exit(10), 4)
        self.assertRegex(m.err(), r"\Amayfly: vCPU 0: KVM_RUN failed: .*\n\Z")


class Payload(GuestCase):
    def ask(self, m, n):
        body = json.dumps({"kernel_image_path": guest(), "boot_args": ""}).encode()
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect(m.sock)
            with contextlib.suppress(BrokenPipeError):  # refused by its length, before all of it was sent
                s.sendall(b"PUT /boot-source HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % n + body.ljust(n))
                s.shutdown(socket.SHUT_WR)
            answer = b""
            while part := s.recv(65536):
                answer += part
        return answer

    def test_longest_body(self):
        for args, limit in (([], 51200), (["--http-api-max-payload-size", "1000"], 1000),
                            (["--http-api-max-payload-size", "200000"], 200000)):
            with self.subTest(limit):
                m = self.monitor(*args)
                self.assertTrue(self.ask(m, limit).startswith(b"HTTP/1.1 204 "))
                refused = self.ask(m, limit + 1)
                self.assertTrue(refused.startswith(b"HTTP/1.1 400 "), refused)
                self.assertIn(b"fault_message", refused)
                self.assertEqual(m.get("/")["state"], "Not started")  # and others are served on

    def test_limits_of_the_limit(self):
        for value in ("0", "16777217", "-1", "many"):
            p = subprocess.run([MAYFLY, "--http-api-max-payload-size", value], capture_output=True, text=True)
            self.assertEqual(p.returncode, 153, p.stderr)
            self.assertIn("--http-api-max-payload-size", p.stderr.splitlines()[0])


if __name__ == "__main__":
    unittest.main()
