# SPDX-License-Identifier: Apache-2.0
"""mayfly-jail from outside and from inside (J1-J10): a stand-in for a hijacked monitor runs in it."""
import errno
import glob
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
import unittest

import lib

JAIL = os.path.join(lib.BUILD, "mayfly-jail")
GUEST = os.path.join(lib.BUILD, "misbehave")
SANITIZED = re.search(r"address|thread|undefined", os.path.basename(lib.BUILD)) is not None
UID = 20000 + 2 * (os.getpid() % 20000)  # its own: limits count for all processes of a user
GID = UID + 1
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")


def setUpModule():
    lib.need_root()
    lib.need_kvm()
    if SANITIZED:
        raise unittest.SkipTest("a sanitizer's runtime needs the dynamic loader, which no jail holds")


def remove_group(path):
    """A control group stays busy for a moment after its last process was reaped."""
    for last in [False] * 100 + [True]:
        try:
            return os.rmdir(path)
        except OSError as e:
            if last or e.errno != errno.EBUSY:
                raise
            time.sleep(0.05)


def tearDownModule():
    for parent in glob.glob("/sys/fs/cgroup/misbehave") + glob.glob("/sys/fs/cgroup/*/misbehave"):
        try:
            os.rmdir(parent)
        except OSError:
            pass


def status(pid):
    with open(f"/proc/{pid}/status") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def ns(pid, name):
    return os.stat(f"/proc/{pid}/ns/{name}").st_ino


def cgroup_v1(controller):
    try:
        with open("/proc/mounts") as f:
            for line in f:
                _, where, kind, options, *_ = line.split()
                if kind == "cgroup" and controller in options.split(","):
                    return where
    except OSError:
        pass
    raise unittest.SkipTest(f"this host mounts no cgroup v1 hierarchy with {controller}")


def has_v1(controller):
    try:
        return bool(cgroup_v1(controller))
    except unittest.SkipTest:
        return False


def device():
    """MAJOR:MINOR of a whole disk of this host."""
    for name in sorted(os.listdir("/sys/block")):
        if not name.startswith(("loop", "ram", "zram", "dm-", "md")):
            with open(f"/sys/block/{name}/dev") as f:
                return f.read().strip()
    raise unittest.SkipTest("this host has no disk")


def cgroup_v2(*controllers):
    with open("/proc/mounts") as f:
        for line in f:
            _, where, kind, *_ = line.split()
            if kind == "cgroup2":
                with open(os.path.join(where, "cgroup.controllers")) as g:
                    if set(controllers) <= set(g.read().split()):
                        return where
    raise unittest.SkipTest(f"this host has no cgroup v2 controllers {', '.join(controllers)}")


def pids_group(limit):
    """(flags that limit tasks, where the groups are), by whichever version this host has."""
    try:
        return ["--cgroup", f"pids.max={limit}"], cgroup_v1("pids")
    except unittest.SkipTest:
        return ["--cgroup-version", "2", "--cgroup", f"pids.max={limit}"], cgroup_v2("pids")


class Base(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="mayfly-jail-")
        os.chmod(self.dir, 0o755)
        self.base = os.path.join(self.dir, "base")
        self.sock = os.path.join(self.dir, "api")
        self.vm_id = f"t{os.getpid()}-{next(lib.COUNT)}"
        self.exec = os.path.join(self.dir, "misbehave")
        shutil.copy(GUEST, self.exec)
        self.root = os.path.join(self.base, "misbehave", self.vm_id, "root")
        self.running = []

    def tearDown(self):
        for p in self.running:
            if p.poll() is None:
                p.terminate()  # a strict jail removes its group then
            p.communicate(timeout=10)
        shutil.rmtree(self.dir, ignore_errors=True)

    def compat_words(self, *flags, tail=()):
        return [JAIL, "--id", self.vm_id, "--exec-file", self.exec, "--uid", str(UID), "--gid", str(GID),
                "--chroot-base-dir", self.base, *flags, "--", *tail]

    def strict_words(self, *flags, tail=(), ids=True):
        return [JAIL, "--strict", "--id", self.vm_id, "--exec-file", self.exec, "--api-sock", self.sock,
                *(["--uid", str(UID), "--gid", str(GID)] if ids else []), *flags, "--", *tail]

    def run_jail(self, words, **kw):
        return subprocess.run(words, capture_output=True, text=True, timeout=30, **kw)

    def hold(self, words, **kw):
        """Starts a jail that lives until the test ends; returns it once the monitor is confined."""
        p = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)
        self.running.append(p)
        p.reports = []
        for line in p.stdout:
            if line == "confined\n":
                return p
            p.reports.append(json.loads(line))
        self.fail(f"ended early: {p.stderr.read()}")

    def child(self, p):
        """The monitor's pid: the jail's only child in strict mode."""
        with open(f"/proc/{p.pid}/task/{p.pid}/children") as f:
            return int(f.read())

    def report(self, words, which=0, **kw):
        p = self.run_jail(words, **kw)
        lines = [x for x in p.stdout.splitlines() if x.startswith("{")]
        self.assertGreater(len(lines), which, p.stderr + p.stdout)
        return json.loads(lines[which])

    def refused(self, words, text, **kw):
        p = self.run_jail(words, **kw)
        self.assertEqual(p.returncode, 1, p.stdout + p.stderr)
        self.assertIn(text, p.stderr)
        self.assertNotIn("confined", p.stdout)


class Arguments(Base):
    def test_refused(self):
        good = {"--id": "a", "--exec-file": self.exec, "--uid": "1", "--gid": "1"}
        for flag, value in (
                ("--id", "../x"), ("--id", ""), ("--id", "a" * 65), ("--id", "a_b"), ("--id", "a/b"),
                ("--id", "a b"), ("--id", "\u00e9"), ("--uid", "-1"), ("--uid", "x"), ("--uid", "4294967295"),
                ("--gid", "1x"), ("--gid", "99999999999999999999"), ("--cgroup", "cpu.shares"),
                ("--cgroup", "../x.y=1"), ("--cgroup", "cpu/x.y=1"), ("--cgroup", "cpu=1"),
                ("--cgroup", ".=1"), ("--cgroup", "cpu.shares="), ("--cgroup-version", "3"),
                ("--cgroup-version", "0"), ("--parent-cgroup", "../x"), ("--parent-cgroup", "/x"),
                ("--parent-cgroup", "a//b"), ("--resource-limit", "cpu=1"), ("--resource-limit", "fsize=-1"),
                ("--resource-limit", "fsize=1k"), ("--exec-file", "/"), ("--exec-file", "/tmp/.."),
                ("--tap", "tap0"), ("--dir", "/tmp"), ("--allow-uid", "0"), ("--allow-uid", "root"),
                ("--api-sock-mode", "888"), ("--api-sock-mode", "0660"), ("--api-sock-mode", "1777"),
                ("--api-sock-owner", "0"), ("--api-sock-owner", "0:x"), ("--api-sock-owner", "0:0"),
                ("--surprise", "1"), ("surprise", "1")):
            with self.subTest(f"{flag} {value}"):
                words = [w for k, v in {**good, flag: value}.items() for w in (k, v)]
                text = flag if flag.startswith("--") else "unknown flag"
                self.refused([JAIL, *words], "--api-sock" if flag.startswith("--api-sock") else text)

    def test_missing_value_and_flags(self):
        self.refused([JAIL], "--id")
        self.refused([JAIL, "--id"], "--id")
        self.refused([JAIL, "--id", "a"], "--exec-file")
        self.refused([JAIL, "--id", "a", "--exec-file", self.exec], "--uid")
        self.refused([JAIL, "--strict", "--id", "a", "--exec-file", self.exec], "--api-sock")
        self.refused([JAIL, "--id=a", "--exec-file=/x", "--uid=1", "--gid=1", "--", *["x"] * 65], "64")

    def test_version_and_help(self):
        self.assertIn("mayfly-jail v", self.run_jail([JAIL, "--version"]).stdout)
        self.assertIn("--chroot-base-dir", self.run_jail([JAIL, "--help"]).stdout)


class Docs(unittest.TestCase):
    def test_table(self):
        with open(os.path.join(lib.BUILD, "gen", "syscalls.txt")) as f:
            table = f.read()
        table = table.split("\n\n")[0] + "\n"
        sums = "".join(re.findall(r"^(?:system call|count|union) .*\n", table, re.M))
        for name, quoted in (("docs/threat-model.md", table), ("README.md", sums)):
            with open(os.path.join(lib.ROOT, name)) as f:
                block = re.search(r"<!-- syscalls -->\n+```\n(.*?)```\n", f.read(), re.S)
            self.assertEqual(block and block[1], quoted, f"{name}: run `make syscalls-doc`")


    def test_names(self):
        """Every test that the threat model names is there."""
        have = set()
        for path in glob.glob(os.path.join(lib.ROOT, "tests", "*", "test_*")):
            have.add(os.path.splitext(os.path.basename(path))[0])
            with open(path, errors="replace") as f:
                have |= set(re.findall(r"def (test_\w+)", f.read()))
        with open(os.path.join(lib.ROOT, "docs", "threat-model.md")) as f:
            self.assertEqual(set(re.findall(r"\btest_\w+", f.read())) - have, set())


class Compat(Base):
    def test_layout(self):
        p = self.run_jail(self.compat_words(tail=["raw"]))
        self.assertIn("confined", p.stdout, p.stderr)
        r = json.loads(p.stdout.splitlines()[0])
        self.assertEqual(set(r["root"]) - {"made"}, {"dev", "run", "misbehave", "misbehave.pid"})
        st = os.stat(self.root)
        self.assertEqual((st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)), (UID, GID, 0o700))
        for name, rdev in (("kvm", (10, 232)), ("net/tun", (10, 200)), ("urandom", (1, 9))):
            st = os.lstat(os.path.join(self.root, "dev", name))
            self.assertTrue(stat.S_ISCHR(st.st_mode))
            self.assertEqual((os.major(st.st_rdev), os.minor(st.st_rdev)), rdev)
            self.assertEqual((st.st_uid, stat.S_IMODE(st.st_mode)), (UID, 0o600))
        st = os.stat(os.path.join(self.root, "misbehave"))
        self.assertEqual((st.st_uid, stat.S_IMODE(st.st_mode)), (0, 0o755))

    def test_inside(self):  # J3, J4
        extra = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(extra, True)
        r = self.report(self.compat_words(tail=["raw"]), pass_fds=(extra,), env={"SECRET": "1"},
                        extra_groups=[0, 1, 2])
        os.close(extra)
        self.assertEqual(set(r["fds"]), {"0", "1", "2"})
        self.assertEqual((r["uid"], r["gid"], r["groups"], r["environ"]), (UID, GID, 0, 0))
        for key in ("eff", "perm", "inh", "bounding", "ambient"):
            self.assertEqual(r[key], 0, key)
        self.assertEqual(r["nnp"], 1)

    def test_outside(self):
        p = self.hold(self.compat_words("--netns", self.netns(), tail=["hold"]))
        for name in ("mnt", "net", "ipc", "uts", "cgroup"):
            self.assertNotEqual(ns(p.pid, name), ns("self", name), name)
        self.assertEqual(ns(p.pid, "net"), ns(self.running[0].pid, "net"))
        with open(f"/proc/{p.pid}/mountinfo") as f:
            self.assertEqual(len(f.readlines()), 1)  # the old root is gone
        with open(f"{self.root}/misbehave.pid") as f:
            self.assertEqual(int(f.read()), p.pid)
        st = status(p.pid)
        self.assertEqual(st["Umask"], "0077")
        self.assertEqual(st["Seccomp"], "2")

    def netns(self):
        p = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
        self.running.append(p)
        p.stdout.readline()
        return f"/proc/{p.pid}/ns/net"

    def test_new_pid_ns_and_daemonize(self):
        p = self.run_jail(self.compat_words("--new-pid-ns", "--daemonize", tail=["hold"]),)
        self.assertEqual(p.returncode, 0, p.stderr)
        end, pid = time.monotonic() + 10, 0
        while time.monotonic() < end and not pid:
            try:
                with open(f"{self.root}/misbehave.pid") as f:
                    pid = int(f.read())
                if status(pid)["Seccomp"] != "2":
                    pid = 0
            except (OSError, ValueError, KeyError):
                time.sleep(0.01)
        self.assertTrue(pid)
        try:
            self.assertNotEqual(ns(pid, "pid"), ns("self", "pid"))
            self.assertEqual(status(pid)["NSpid"].split()[-1], "1")
            self.assertEqual(os.stat(f"/proc/{pid}/fd/1").st_rdev, os.stat("/dev/null").st_rdev)
            self.assertNotEqual(os.getsid(pid), os.getsid(0))
        finally:
            os.kill(pid, signal.SIGKILL)

    def test_existing_tree_is_used(self):  # J2, compat: orchestrators link files in before
        os.makedirs(self.root, 0o755)
        with open(os.path.join(self.root, "kernel"), "w") as f:
            f.write("k")
        os.link(os.path.join(self.root, "kernel"), os.path.join(self.root, "linked"))
        r = self.report(self.compat_words(tail=["raw"]))
        self.assertLessEqual({"kernel", "linked"}, set(r["root"]))
        self.assertIn("confined", self.run_jail(self.compat_words()).stdout)  # and once more after a run

    def test_strangers_tree_is_refused(self):  # J2
        os.makedirs(self.root, 0o755)
        for path in (self.root, os.path.dirname(self.root), os.path.dirname(os.path.dirname(self.root))):
            with self.subTest(path):
                os.chown(path, 12345, 12345)
                self.refused(self.compat_words(), "strangers")
                os.chown(path, 0, 0)
                os.chmod(path, 0o777)
                self.refused(self.compat_words(), "strangers")
                os.chmod(path, 0o755)

    def test_links_and_fifos(self):  # J1
        victim = os.path.join(self.dir, "victim")
        os.mkdir(victim)
        parts = [os.path.join(self.base, "misbehave"),
                 os.path.join(self.base, "misbehave", self.vm_id), self.root]
        for part in parts:
            for kind in ("symlink", "fifo", "file"):
                with self.subTest(f"{kind} at {os.path.relpath(part, self.base)}"):
                    os.makedirs(os.path.dirname(part), exist_ok=True)
                    if kind == "symlink":
                        os.symlink(victim, part)
                    elif kind == "fifo":
                        os.mkfifo(part)
                    else:
                        with open(part, "w"):
                            pass
                    self.refused(self.compat_words(), "jail directory")
                    os.unlink(part)
                    shutil.rmtree(self.base)
        self.assertEqual(os.listdir(victim), [])
        self.assertEqual(os.stat(victim).st_uid, 0)

    def test_links_inside(self):  # J1: what a former monitor left in its own directory
        victim = os.path.join(self.dir, "victim")
        os.mkdir(victim)
        with open(os.path.join(victim, "file"), "w") as f:
            f.write("precious")
        for name in ("misbehave", "misbehave.pid", "dev", "dev/net", "dev/kvm", "dev/net/tun", "run"):
            for kind in (os.symlink, os.link):
                with self.subTest(f"{kind.__name__} at {name}"):
                    path = os.path.join(self.root, name)
                    os.makedirs(os.path.dirname(path))
                    directory = name in ("dev", "dev/net", "run")
                    kind(victim if directory and kind is os.symlink else os.path.join(victim, "file"), path)
                    p = self.run_jail(self.compat_words())
                    self.assertEqual("confined" in p.stdout, not directory, p.stderr)
                    with open(os.path.join(victim, "file")) as f:
                        self.assertEqual(f.read(), "precious")
                    self.assertEqual(os.listdir(victim), ["file"])
                    self.assertEqual(os.stat(os.path.join(victim, "file")).st_uid, 0)
                    shutil.rmtree(self.base)

    def test_swap_race(self):  # J1: the directory becomes a link to elsewhere while the jail is built
        victim = os.path.join(self.dir, "victim")
        os.makedirs(os.path.join(victim, "root"))
        part = os.path.join(self.base, "misbehave", self.vm_id)
        link = part + ".link"
        os.makedirs(part)
        os.symlink(victim, link)
        stop = threading.Event()

        def swap():
            renameat2 = lib.LIBC.renameat2
            while not stop.is_set():
                renameat2(-100, part.encode(), -100, link.encode(), 2)  # RENAME_EXCHANGE

        t = threading.Thread(target=swap)
        t.start()
        started = 0
        try:
            for _ in range(40):
                started += "confined" in self.run_jail(self.compat_words()).stdout
        finally:
            stop.set()
            t.join()
        self.assertEqual(os.listdir(victim), ["root"])
        self.assertEqual(os.listdir(os.path.join(victim, "root")), [])
        self.assertEqual(os.stat(os.path.join(victim, "root")).st_uid, 0)

    def test_failure_leaves_nothing(self):
        self.refused(self.compat_words("--netns", "/nonexistent"), "--netns")
        self.refused(self.compat_words("--cgroup", "nocontroller.x=1"), "nocontroller")
        self.assertFalse(os.path.exists(os.path.join(self.base, "misbehave")))
        self.exec = os.path.join(self.dir, "absent")
        self.refused(self.compat_words(), "--exec-file")
        self.assertEqual(os.listdir(self.base), [])

    def test_limits(self):
        p = self.hold(self.compat_words("--resource-limit", "fsize=123456", tail=["hold"]))
        with open(f"/proc/{p.pid}/limits") as f:
            text = f.read()
        self.assertRegex(text, r"Max file size +123456 +123456")
        self.assertRegex(text, r"Max core file size +0 +0")
        self.assertRegex(text, r"Max open files +256 +256")

    def test_cgroup_v1(self):
        pids, cpuset = cgroup_v1("pids"), cgroup_v1("cpuset")
        parent = f"mayfly-{os.getpid()}"
        wanted = {"cpu": ("cpu.shares", "512"), "memory": ("memory.limit_in_bytes", str(1 << 28)),
                  "blkio": ("blkio.throttle.write_bps_device", f"{device()} 10485760")}
        wanted = {c: w for c, w in wanted.items() if has_v1(c)}
        more = [w for name, value in wanted.values() for w in ("--cgroup", f"{name}={value}")]
        p = self.hold(self.compat_words("--cgroup", "pids.max=77", "--cgroup", "cpuset.cpus=0", *more,
                                        "--parent-cgroup", parent, tail=["hold"]))
        mounts = [pids, cpuset, *(cgroup_v1(c) for c in wanted)]
        try:
            for controller, (name, value) in wanted.items():
                with open(f"{cgroup_v1(controller)}/{parent}/{self.vm_id}/{name}") as f:
                    self.assertEqual(f.read().strip(), value)
                with open(f"{cgroup_v1(controller)}/{parent}/{self.vm_id}/cgroup.procs") as f:
                    self.assertEqual(f.read().split(), [str(p.pid)])
            with open(f"/proc/{p.pid}/cgroup") as f:
                text = f.read()
            self.assertIn(f"pids:/{parent}/{self.vm_id}", text)
            self.assertRegex(text, f"cpuset:/{parent}/{self.vm_id}")
            with open(f"{pids}/{parent}/{self.vm_id}/pids.max") as f:
                self.assertEqual(f.read(), "77\n")
            with open(f"{cpuset}/{parent}/{self.vm_id}/cpuset.mems") as f:
                self.assertTrue(f.read().strip())
        finally:
            p.kill()
            p.wait()
            for mount in mounts:
                for group in (f"{mount}/{parent}/{self.vm_id}", f"{mount}/{parent}"):
                    remove_group(group)


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
        words = ["unshare", "-U", "-r", "sh", "-c", script, "sh", *self.strict_words("--uid", "0", "--gid", "0", ids=False)]
        self.refused(words, "namespaces")
        self.assertFalse(os.path.exists(self.sock))


if __name__ == "__main__":
    unittest.main()
