# SPDX-License-Identifier: Apache-2.0
"""J10: on a kernel that lacks a feature the real binaries refuse to start and name it, never silently weaker. And when
the filters go up: before the first byte that is not trusted."""
import os
import re
import socket
import tempfile
import unittest

import lib
from test_jail import Base, numbers, setUpModule, tearDownModule

__all__ = ["setUpModule", "tearDownModule"]
WITHOUT = os.path.join(lib.BUILD, "without")
RESTRICTIONS, WORKERS = 11, 19  # IORING_REGISTER_RESTRICTIONS, ..._IOWQ_MAX_WORKERS
DUMPABLE, CAPBSET_DROP, SECUREBITS, NO_NEW_PRIVS, AMBIENT = 4, 24, 28, 38, 47  # prctl
NEW = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
       "net": 0x40000000}  # CLONE_NEW...


class Lacking(Base):
    def setUp(self):
        super().setUp()
        self.nr = numbers()

    def lacking(self, call, words):
        name = re.match(r"\w+", call)[0]
        return [WITHOUT, call.replace(name, str(self.nr[name]), 1), *words]

    def test_monitor(self):
        words = [lib.MAYFLY, "--api-sock", self.sock]
        for call, named in (("landlock_create_ruleset", "Landlock"), ("landlock_add_rule", "Landlock"),
                            ("landlock_restrict_self", "landlock_restrict_self"), ("close_range", "close_range"),
                            ("seccomp", "seccomp"), ("io_uring_setup", "io_uring"),
                            (f"io_uring_register::{RESTRICTIONS}", "restrict the io_uring"),
                            (f"io_uring_register::{WORKERS}", "restrict the io_uring"),
                            ("capset", "capset"),
                            (f"prctl:{NO_NEW_PRIVS}", "no_new_privs"), (f"prctl:{AMBIENT}", "ambient"),
                            (f"prctl:{DUMPABLE}", "DUMPABLE")):
            with self.subTest(call):
                self.refused(self.lacking(call, words), named)
                self.assertFalse(self.answers(), "it listens")

    def answers(self):
        with socket.socket(socket.AF_UNIX) as s:
            return s.connect_ex(self.sock) == 0

    def test_waived(self):
        script = os.path.join(self.dir, "mayfly")
        with open(script, "w") as f:
            f.write("#!/bin/sh\nexec " + " ".join(self.lacking("landlock_create_ruleset", [lib.MAYFLY])) + ' "$@"\n')
        os.chmod(script, 0o755)
        m = lib.Monitor("--allow-no-landlock", binary=script)
        try:
            self.assertEqual(m.get("/")["state"], "Not started")
            m.wait_for(lambda: "no Landlock: every file" in m.console(), 5, "the log's warning")
        finally:
            m.p.kill()
            m.p.wait()

    def test_strict(self):
        data = os.path.join(self.dir, "data")
        os.mkdir(data)
        spaces = [(f"clone+{NEW[n]:#x}", n, []) for n in ("user", "mount", "pid", "net", "ipc", "uts")]
        for call, named, flags in (*spaces, (f"unshare+{NEW['cgroup']:#x}", "cgroup namespace", []),
                                   ("close_range", "close_range", []), ("pivot_root", "pivot_root", []),
                                   ("mount", "root of the jail", []), ("umount2", "old root", []),
                                   ("mount_setattr", "mount_setattr", ["--dir", data]),
                                   (f"prctl:{SECUREBITS}", "user", []), (f"prctl:{CAPBSET_DROP}", "bounding", []),
                                   (f"prctl:{AMBIENT}", "ambient", []), ("capset", "capset", []),
                                   ("seccomp", "seccomp", []), ("landlock_create_ruleset", "Landlock", [])):
            with self.subTest(call):
                self.refused(self.lacking(call, self.strict_words(*flags)), named)
                self.assertFalse(os.path.exists(self.sock))

    def test_compat(self):
        spaces = [(f"unshare+{NEW[n]:#x}", n, []) for n in ("mount", "ipc", "uts", "cgroup")]
        for call, named, flags in (*spaces, (f"unshare+{NEW['pid']:#x}", "pid namespace", ["--new-pid-ns"]),
                                   ("setns", "--netns", ["--netns", "/proc/self/ns/net"]),
                                   ("close_range", "close_range", []), ("pivot_root", "pivot_root", []),
                                   ("mount", "mount", []), ("umount2", "old root", []),
                                   (f"prctl:{CAPBSET_DROP}", "bounding", []), (f"prctl:{AMBIENT}", "ambient", []),
                                   ("capset", "capset", []), ("seccomp", "seccomp", [])):
            with self.subTest(call):
                self.refused(self.lacking(call, self.compat_words(*flags)), named)


class Order(lib.GuestCase):
    # Each reads, or takes in, what somebody else wrote; the API's first byte comes by recvmsg.
    UNTRUSTED = re.compile(r"(accept4|recvmsg|openat2|readv|preadv2|pread64)\(|ioctl\(.*KVM_RUN")

    def test_filters_come_first(self):
        with tempfile.TemporaryDirectory(prefix="mayfly-order-") as tmp:
            script = os.path.join(tmp, "mayfly")
            with open(script, "w") as f:
                f.write(f'#!/bin/sh\nexec strace -D -ff -qq -o {tmp}/trace {lib.MAYFLY} "$@"\n')
            os.chmod(script, 0o755)
            net = self.netns()
            with lib.Monitor(binary=script, netns=net) as m:
                m.boot(netns=net)
                self.assertEqual(net.http("GET", "/")[0], 200)
            threads = []
            for name in os.listdir(tmp):
                if name.startswith("trace."):
                    with open(os.path.join(tmp, name), errors="replace") as f:
                        threads.append(f.read().splitlines())
        filtered = 0
        for lines in threads:
            up = [i for i, x in enumerate(lines) if x.startswith("seccomp(SECCOMP_SET_MODE_FILTER")]
            first = [i for i, x in enumerate(lines) if self.UNTRUSTED.match(x)]
            if not up and not first:
                continue  # asks KVM for its CPUID, and ends
            self.assertTrue(up, lines[first[0]] if first else "")
            filtered += 1
            if first:
                self.assertLess(up[0], first[0], lines[first[0]])
        self.assertGreaterEqual(filtered, 4)
        control = next(x for x in threads if any("accept4(" in y for y in x))
        self.assertIn("TSYNC", next(y for y in control if y.startswith("seccomp(SECCOMP_SET_MODE_FILTER")))


if __name__ == "__main__":
    unittest.main()
