# SPDX-License-Identifier: Apache-2.0
"""The monitor itself, hijacked (J1, J5, J6, J8, J9): in real jails, with its guest running, each kind of thread tries
what is forbidden to it. tests/jail/hijack.c says how it is brought to that."""
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

import lib
from test_jail import GID, JAIL, SANITIZED, UID, numbers

HIJACKED = os.path.join(lib.BUILD, "mayfly-hijacked")
KINDS = ("vcpu", "device", "control", "helper")
DEBUG = "debug" in os.path.basename(lib.BUILD)
# Answered by every filter with an error of its own: brk, restart_syscall. The kernel lets no filter see its own
# trampolines' calls, uretprobe and uprobe, which do nothing for others.
ANSWERED, EXEMPT = {"brk", "restart_syscall"}, {335, 336}
RING = {1: "READV", 2: "WRITEV", 3: "FSYNC", 6: "POLL_ADD", 7: "POLL_REMOVE", 17: "FALLOCATE"}


def setUpModule():
    lib.need_root()
    lib.need_kvm()
    if SANITIZED:
        raise unittest.SkipTest("a sanitizer's runtime needs the dynamic loader, which no jail holds")


def denied(r):
    return r["signal"] == signal.SIGSYS or (DEBUG and r["status"] == 148)


def passes(kind):
    """Calls that a thread of this kind may make with any arguments, and with the bogus ones that are tried."""
    with open(os.path.join(lib.BUILD, "gen", "syscalls.txt")) as f:
        found = re.findall(rf"^{kind} +(\w+)\((?:!PROT_EXEC)?\) ", f.read(), re.M)
    return set(found) | ANSWERED | ({"exit_group"} if DEBUG else set())


class Hijacked(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="mayfly-hijack-")
        self.addCleanup(shutil.rmtree, self.dir, True)
        os.chmod(self.dir, 0o755)
        self.data = os.path.join(self.dir, "data")
        os.mkdir(self.data)

    def fill(self, folder, prefix):
        shutil.copy(lib.guest(), os.path.join(folder, "kernel"))
        with open(os.path.join(folder, "disk"), "wb") as f:
            f.truncate(1 << 20)
        with open(os.path.join(folder, "vm.json"), "w") as f:
            json.dump({"machine-config": {"vcpu_count": 1, "mem_size_mib": 32},
                       "boot-source": {"kernel_image_path": prefix + "/kernel"},
                       "drives": [{"drive_id": "d", "path_on_host": prefix + "/disk", "is_root_device": False,
                                   "is_read_only": True}]}, f)
        for name in ("kernel", "disk", "vm.json"):
            os.chown(os.path.join(folder, name), UID, GID)

    def run_words(self, words):
        p = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=400)
        results = [json.loads(x) for x in p.stdout.splitlines() if x.startswith('{"deed"')]
        self.assertTrue(results, p.stderr[-2000:])
        for r in results:
            self.assertNotEqual(r["state"], "never acted", f"{r} {p.stderr[-1000:]}")
        return results

    def strict(self, kind, what):
        self.fill(self.data, "/data")
        return self.run_words([
            JAIL, "--strict", "--id", f"h{os.getpid()}-{next(lib.COUNT)}", "--exec-file", HIJACKED, "--uid", str(UID),
            "--gid", str(GID), "--api-sock", os.path.join(self.dir, "api"), "--dir", self.data, "--",
            "--no-api", "--config-file", "/data/vm.json", "--misbehave", kind, what])

    def compat(self, kind, what):
        ident = f"h{os.getpid()}-{next(lib.COUNT)}"
        root = os.path.join(self.dir, "base", os.path.basename(HIJACKED), ident, "root")
        os.makedirs(root)
        self.fill(root, "")
        return self.run_words([
            JAIL, "--id", ident, "--exec-file", HIJACKED, "--uid", str(UID), "--gid", str(GID),
            "--chroot-base-dir", os.path.join(self.dir, "base"), "--", "--no-api", "--config-file", "/vm.json",
            "--misbehave", kind, what])

    def plain(self, kind, what):
        self.fill(self.data, self.data)
        for name in ("kernel", "disk"):  # root without capabilities opens its own alone
            os.chown(os.path.join(self.data, name), 0, 0)
        return self.run_words([HIJACKED, "--id", "h", "--allow-dir", self.data, "--no-api", "--config-file",
                               os.path.join(self.data, "vm.json"), "--misbehave", kind, what])

    def test_every_number(self):  # J5, J6
        by_name = numbers()
        for kind in KINDS:
            with self.subTest(kind):
                allowed = {by_name[n] for n in passes(kind)}
                results = self.strict(kind, "calls")
                self.assertEqual(sorted(r["n"] for r in results), list(range(512)))
                self.assertEqual({r["n"] for r in results if not denied(r)} - EXEMPT, allowed)

    def test_x32(self):  # J5
        for kind in KINDS:
            with self.subTest(kind):
                results = self.strict(kind, "x32")
                self.assertEqual(len(results), 560)
                self.assertEqual([r for r in results if not denied(r)], [])

    def test_ring(self):  # J8: past every filter, on the device thread's own ring
        results = {r["n"]: r["value"] for r in self.strict("device", "ring")}
        self.assertEqual(len(results), 72)
        refused = {n for n, value in results.items() if value == -errno.EACCES}
        unknown = {n for n, value in results.items() if value == -errno.EINVAL} - set(RING)
        self.assertEqual(refused & set(RING), set())
        self.assertEqual(refused | unknown | set(RING), set(results))
        self.assertGreater(len(refused), 30)
        if unknown:  # an opcode that this kernel has no name for: above all others
            self.assertGreater(min(unknown), max(refused | set(RING)))

    def test_deeds(self):  # J1, J5, J8, J9
        for mode in (self.strict, self.compat, self.plain):
            for kind in KINDS:
                with self.subTest(f"{mode.__name__} {kind}"):
                    results = {r["deed"]: r for r in mode(kind, "deeds")}
                    self.assertGreater(len(results), 35)
                    for name, r in results.items():
                        if not denied(r):
                            self.assertEqual(r["state"], "returned", name)
                            self.assertLess(r["value"], 0, name)
                    # What is no system call of this kind, or has a telling argument, must have been deadly.
                    alive = {name for name, r in results.items() if not denied(r)}
                    self.assertLessEqual(alive, {
                        "control": {n for n in results if n.startswith(("open_", "rename_", "unlink_"))} -
                                   {"open_old_plainly", "open_by_handle"} | {"dup_pinned"},
                        "device": {"ring_plain_file", "ring_beyond", "ring_linked"}}.get(kind, set()))


if __name__ == "__main__":
    unittest.main()
