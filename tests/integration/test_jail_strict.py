# SPDX-License-Identifier: Apache-2.0
"""mayfly-jail in strict mode, from outside and from inside (J1-J10), around a stand-in for a hijacked monitor."""
import json
import os
import re
import signal
import socket
import stat
import time
import unittest

import lib
from test_jail import (GID, NAMESPACES, UID, Base, cgroup_v1, cgroup_v2, device, ns, pids_group, setUpModule,
                       status, tearDownModule)

__all__ = ["setUpModule", "tearDownModule"]


class Strict(Base):
    def test_inside(self):  # J3, J4
        r = self.report(self.strict_words(tail=["raw"]), env={"SECRET": "1"}, extra_groups=[0, 1])
        uffd = {"212": "20000"} if os.path.exists("/dev/userfaultfd") else {}
        want = {"3": "40000", "208": "20000", "214": "140000", **uffd}
        self.assertEqual({k: v for k, v in r["fds"].items() if int(k) > 2}, want)
        self.assertEqual((r["uid"], r["gid"], r["groups"], r["environ"]), (UID, GID, 0, 0))
        self.assertEqual((r["pid"], r["ppid"], r["leader"]), (1, 0, 1))
        self.assertEqual((r["root"], r["root_writable"], r["nnp"]), ([], 0, 1))
        for key in ("eff", "perm", "inh", "bounding", "ambient"):
            self.assertEqual(r[key], 0, key)
        r = self.report(self.strict_words(tail=["raw"]), which=1)
        self.assertEqual(r["dumpable"], 0)
        self.assertNotIn("3", r["fds"])  # procfs gave the page map and is gone
        self.assertEqual(r["fds"]["213"], "100000")

    def test_outside(self):  # J4, J7
        p = self.hold(self.strict_words(tail=["hold", "final"]))
        pid = self.child(p)
        for name in NAMESPACES:
            self.assertNotEqual(ns(pid, name), ns("self", name), name)
        with open(f"/proc/{pid}/mountinfo") as f:
            lines = f.readlines()
        self.assertEqual(len(lines), 1)
        self.assertRegex(lines[0], r" / / ro,nosuid,nodev,noexec,")
        self.assertEqual(os.listdir(f"/proc/{pid}/root/"), [])
        with open(f"/proc/{pid}/uid_map") as f:
            self.assertEqual(f.read().split(), [str(UID), str(UID), "1"])
        with open(f"/proc/{pid}/setgroups") as f:
            self.assertEqual(f.read(), "deny\n")
        tasks = os.listdir(f"/proc/{pid}/task")
        self.assertEqual(len(tasks), 2)
        for task in tasks:
            st = status(f"{pid}/task/{task}")
            self.assertEqual((st["Seccomp"], st["NoNewPrivs"]), ("2", "1"))
            for cap in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                self.assertEqual(int(st[cap], 16), 0, cap)
        self.assertEqual(st["Umask"], "0077")
        with open(f"/proc/{pid}/environ", "rb") as f:
            self.assertEqual(f.read(), b"")
        # What the supervisor keeps: its three streams.
        self.assertEqual(set(os.listdir(f"/proc/{p.pid}/fd")), {"0", "1", "2"})

    def test_mounts_stay_inside(self):
        """On a host whose mounts are shared, as systemd has them."""
        words = self.strict_words(tail=["hold"])
        p = self.hold(["unshare", "-m", "--propagation", "shared", *words])
        with open(f"/proc/{p.pid}/mountinfo") as f:
            text = f.read()
        self.assertIn(" shared:", text)
        self.assertNotIn(" - tmpfs jail ", text)
        with open(f"/proc/{self.child(p)}/mountinfo") as f:
            self.assertEqual(len(f.readlines()), 1)

    def test_deeds(self):  # J5, J9: through the whole jail, under filter A and under the final one
        for tail in ([], ["final"]):
            for deed in ("socket", "exec", "fork", "mmap-exec", "mprotect-exec", "open", "mount", "unshare",
                         "ptrace", "io_uring", "kill", "ioctl"):
                with self.subTest(f"{deed} {tail}"):
                    p = self.run_jail(self.strict_words(tail=[*tail, "act", deed]))
                    self.assertIn("confined", p.stdout, p.stderr)
                    self.assertNotIn("survived", p.stdout)
                    self.assertIn(p.returncode, (128 + signal.SIGSYS, 148))

    def test_heap(self):  # the final filter answers brk with "no room"; malloc then maps
        p = self.run_jail(self.strict_words(tail=["final", "act", "malloc"]))
        self.assertIn("survived", p.stdout, p.stderr)
        self.assertEqual(p.returncode, 4)

    def test_socket(self):  # mode and owner; refused while live; a stale one replaced; removed at the end
        p = self.hold(self.strict_words(tail=["hold"]))
        st = os.stat(self.sock)
        self.assertTrue(stat.S_ISSOCK(st.st_mode))
        self.assertEqual((st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)), (UID, GID, 0o600))
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(self.sock)
        self.refused(self.strict_words(), "somebody listens")
        self.assertTrue(os.path.exists(self.sock))
        os.kill(self.child(p), signal.SIGKILL)
        self.assertEqual(p.wait(10), 128 + signal.SIGKILL)
        self.assertFalse(os.path.exists(self.sock))
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(self.sock)
        self.assertIn("confined", self.run_jail(self.strict_words()).stdout)

    def test_socket_as_asked(self):
        self.hold(self.strict_words("--api-sock-mode", "0660", "--api-sock-owner", "777:888", tail=["hold"]))
        st = os.stat(self.sock)
        self.assertEqual((st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)), (777, 888, 0o660))

    def test_limits(self):
        self.assertEqual(self.limits(), {"file size": 1 << 40, "core file size": 0, "open files": 256,
                                         "locked memory": 0, "processes": 64})
        flags = [w for k in ("fsize=1000000", "no-file=300", "nproc=40")
                 for w in ("--resource-limit", k)]
        self.assertEqual(self.limits(*flags), {"file size": 1000000, "core file size": 0, "open files": 256,
                                               "locked memory": 0, "processes": 40})

    def limits(self, *flags):
        self.sock += "x"
        p = self.hold(self.strict_words(*flags, tail=["hold"]))
        with open(f"/proc/{self.child(p)}/limits") as f:
            found = re.findall(r"^Max (file size|core file size|open files|locked memory|processes) +(\d+) +(\d+)",
                               f.read(), re.M)
        for name, soft, hard in found:
            self.assertEqual(soft, hard, name)
        return {name: int(hard) for name, _, hard in found}

    def test_tasks_limit_holds(self):
        """No room for a second thread, and none for the child that waits for the old root's unmount."""
        p = self.run_jail(self.strict_words("--resource-limit", "nproc=1", tail=["hold"]))
        self.assertNotIn("confined", p.stdout)
        self.assertIn("confined", self.run_jail(self.strict_words("--resource-limit", "nproc=1")).stdout)
        self.assertIn("confined", self.run_jail(self.strict_words(*pids_group(1)[0])).stdout)

    def test_socket_path_is_not_followed(self):
        target = os.path.join(self.dir, "target")
        for kind in ("file", "link"):
            with self.subTest(kind):
                if kind == "file":
                    with open(self.sock, "w") as f:
                        f.write("precious")
                else:
                    if os.path.lexists(self.sock):
                        os.unlink(self.sock)
                    os.symlink(target, self.sock)
                self.refused(self.strict_words(), "--api-sock")
                self.assertFalse(os.path.exists(target))
                self.assertTrue(os.path.lexists(self.sock))

    def test_signals(self):
        p = self.hold(self.strict_words(tail=["hold"]))
        pid = self.child(p)
        p.terminate()  # the stand-in has no handler, and init of a namespace ignores what it does not handle
        self.assertEqual(p.wait(10), 128 + signal.SIGKILL)
        self.assertFalse(os.path.exists(f"/proc/{pid}"))
        self.assertFalse(os.path.exists(self.sock))

    def test_supervisor_killed(self):
        p = self.hold(self.strict_words(tail=["hold"]))
        pid = self.child(p)
        p.kill()
        p.wait()
        end = time.monotonic() + 10
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
            time.sleep(0.01)
        self.assertFalse(os.path.exists(f"/proc/{pid}"))

    def test_dirs(self):
        data = os.path.join(self.dir, "data")
        os.mkdir(data)
        for name in ("disk", "secret"):
            with open(os.path.join(data, name), "w") as f:
                f.write(name)
        os.chown(os.path.join(data, "disk"), UID, GID)
        os.mknod(os.path.join(data, "null"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.chmod(os.path.join(data, "null"), 0o666)
        os.symlink("/etc/passwd", os.path.join(data, "link"))
        for path, want in (("/data/disk", "ok"), ("/data/secret", "Permission denied"),
                           ("/data/null", "Permission denied"), ("/data/link", "No such file"),
                           ("/data/../etc/passwd", "No such file"), ("/proc/1/mem", "No such file"),
                           (os.path.join(data, "disk"), "No such file")):
            with self.subTest(path):
                p = self.run_jail(self.strict_words("--dir", data, tail=["open", path]))
                self.assertIn(f"open: {want}", p.stdout, p.stderr)

    def test_tap(self):
        net = lib.Netns()
        try:
            words = self.strict_words("--netns", f"/run/netns/{net.name}", "--tap", "tap0", tail=["raw"])
            self.assertEqual(self.report(words)["tap"], "tap0")
            self.refused(self.strict_words("--netns", f"/run/netns/{net.name}", "--tap", "tap9"), "tap9")
        finally:
            net.close()

    def test_tap_of_another_namespace(self):
        net = lib.Netns()
        try:
            self.refused(self.strict_words("--tap", "tap0"), "no such interface")
            self.refused(self.strict_words("--netns", "/nonexistent", "--tap", "tap0"), "--netns")
        finally:
            net.close()

    def test_same_id_twice(self):  # J2, strict: made exclusively
        flags, where = pids_group(50)
        p = self.hold(self.strict_words(*flags, tail=["hold"]))
        first, self.sock = self.sock, self.sock + "2"
        self.refused(self.strict_words(*flags), "exists already")
        self.assertTrue(os.path.exists(first))
        p.terminate()
        p.wait(10)
        self.assertFalse(os.path.exists(os.path.join(where, "misbehave", self.vm_id)))

    def test_cgroup_v1(self):
        pids = cgroup_v1("pids")
        p = self.hold(self.strict_words("--cgroup", "pids.max=50", tail=["hold"]))
        pid = self.child(p)
        with open(f"/proc/{pid}/cgroup") as f:
            self.assertIn(f"pids:/misbehave/{self.vm_id}\n", f.read())
        held, end = [], time.monotonic() + 10
        while held != [str(pid)] and time.monotonic() < end:  # what unmounts the old root soon ends
            with open(f"{pids}/misbehave/{self.vm_id}/cgroup.procs") as f:
                held = f.read().split()
            self.assertNotIn(str(p.pid), held)  # the supervisor is not held to it
        self.assertEqual(held, [str(pid)])

    def test_cgroup_v2(self):
        mount = cgroup_v2("pids", "memory", "cpu", "io")
        limit = f"{device()} rbps=max wbps=10485760 riops=max wiops=max"
        p = self.hold(self.strict_words("--cgroup-version", "2", "--cgroup", "pids.max=50", "--cgroup",
                                        "memory.max=104857600", "--cgroup", "cpu.weight=50", "--cgroup",
                                        f"io.max={limit}", tail=["hold"]))
        pid = self.child(p)
        with open(f"/proc/{pid}/cgroup") as f:
            self.assertIn(f"0::/misbehave/{self.vm_id}", f.read())
        for name, value in (("pids.max", "50"), ("memory.max", "104857600"), ("cpu.weight", "50"),
                            ("io.max", limit)):
            with open(f"{mount}/misbehave/{self.vm_id}/{name}") as f:
                self.assertEqual(f.read().strip(), value)
        p.terminate()
        p.wait(10)
        self.assertFalse(os.path.exists(f"{mount}/misbehave/{self.vm_id}"))

    def test_pids_limit_holds(self):
        p = self.run_jail(self.strict_words(*pids_group(1)[0], tail=["hold"]))
        self.assertNotEqual(p.returncode, 0)
        self.assertNotIn("confined", p.stdout)

    def test_daemonize(self):
        p = self.run_jail(self.strict_words("--daemonize", tail=["hold"]))
        self.assertEqual(p.returncode, 0, p.stderr)
        # Who listens: the supervisor is the parent of the only process with this id.
        found = [int(d) for d in os.listdir("/proc") if d.isdigit() and self.cmdline(d).startswith(
            b"misbehave\0--id\0" + self.vm_id.encode())]
        end = time.monotonic() + 10
        while not found and time.monotonic() < end:
            time.sleep(0.01)
            found = [int(d) for d in os.listdir("/proc") if d.isdigit() and self.cmdline(d).startswith(
                b"misbehave\0--id\0" + self.vm_id.encode())]
        self.assertEqual(len(found), 1)
        supervisor = int(status(found[0])["PPid"])
        self.assertNotEqual(os.getsid(supervisor), os.getsid(0))
        self.assertEqual(os.readlink(f"/proc/{supervisor}/fd/1"), "/dev/null")
        os.kill(supervisor, signal.SIGTERM)
        while os.path.exists(self.sock) and time.monotonic() < end:
            time.sleep(0.01)
        self.assertFalse(os.path.exists(self.sock))

    def cmdline(self, pid):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                return f.read()
        except OSError:
            return b""

    def test_without_root(self):
        """As an ordinary user who may open /dev/kvm (a private mount namespace grants it here)."""
        os.chown(self.dir, UID, GID)
        node = os.path.join(self.dir, "kvm")
        os.mknod(node, 0o600 | stat.S_IFCHR, os.stat("/dev/kvm").st_rdev)
        os.chown(node, UID, GID)
        script = f'mount --bind {node} /dev/kvm && exec setpriv --reuid {UID} --regid {GID} --clear-groups "$@"'
        words = ["unshare", "-m", "sh", "-c", script, "sh", *self.strict_words(tail=["raw"], ids=False)]
        r = self.report(words)
        self.assertEqual((r["uid"], r["gid"], r["pid"], r["bounding"], r["root"]), (UID, GID, 1, 0, []))

    def test_user_namespaces_forbidden(self):  # J10
        script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
        words = ["unshare", "-U", "-r", "sh", "-c", script, "sh",
                 *self.strict_words("--uid", "0", "--gid", "0", ids=False)]
        self.refused(words, "namespaces")
        self.assertFalse(os.path.exists(self.sock))


if __name__ == "__main__":
    unittest.main()
