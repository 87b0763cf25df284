# SPDX-License-Identifier: Apache-2.0
"""mayfly-jail from outside and from inside (J1-J10): a stand-in for a hijacked monitor runs in it."""
import ast
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


def numbers():
    """What the kernel's headers call each system call."""
    with open(os.path.join(lib.BUILD, "gen", "numbers.h")) as f:
        return {name: int(n) for name, n in re.findall(r"__NR_(\w+) (\d+)", f.read())}


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
        """Every class and test that the threat model names stands in the file, and the class, that it is named with."""
        with open(os.path.join(lib.ROOT, "docs", "threat-model.md")) as f:
            text = f.read()
        named = 0
        for m in re.finditer(r"`(test_\w+)(\.py`(?:\s+(?:[A-Z]\w+|test_\w+)[,;]?)*|`(?:\s+[a-z]\w*,?)*)", text):
            python = m[2].startswith(".py")
            have = self.found_in(os.path.join(lib.ROOT, "tests", *(
                ("integration", m[1] + ".py") if python else ("unit", m[1] + ".c"))))
            where = None
            for word in re.findall(r"\w+", m[2].partition("`")[2]):
                named += 1
                if word[0].isupper():
                    where = word
                    self.assertIn(where, have, m[0])
                else:
                    self.assertTrue(any(word in have[c] for c in have if where in (None, c)), f"{word} in {m[0]}")
        self.assertGreater(named, 120)

    def found_in(self, path):
        """{class: names of its functions}; those of a C file have no class."""
        with open(path) as f:
            text = f.read()
        if path.endswith(".c"):
            return {None: {a or b for a, b in re.findall(r"START_TEST\((\w+)\)|static void (\w+)\(void\)", text)}}
        return {c.name: {f.name for f in c.body if isinstance(f, ast.FunctionDef)}
                for c in ast.parse(text).body if isinstance(c, ast.ClassDef)}


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
        self.assertGreater(started, 0)
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

    def test_cgroup_v2(self):
        parent = os.path.join(cgroup_v2("pids", "memory", "cpu", "io"), f"mayfly-{os.getpid()}")
        group = os.path.join(parent, self.vm_id)
        wanted = {"pids.max": "77", "memory.max": "104857600", "cpu.weight": "50",
                  "io.max": f"{device()} rbps=max wbps=10485760 riops=max wiops=max"}
        flags = [w for name, value in wanted.items() for w in ("--cgroup", f"{name}={value}")]
        p = self.hold(self.compat_words("--cgroup-version", "2", *flags, "--parent-cgroup", os.path.basename(parent),
                                        tail=["hold"]))
        try:
            for name, value in {**wanted, "cgroup.procs": str(p.pid)}.items():
                with open(os.path.join(group, name)) as f:
                    self.assertEqual(f.read().strip(), value, name)
            with open(f"/proc/{p.pid}/cgroup") as f:
                self.assertIn(f"0::/{os.path.basename(parent)}/{self.vm_id}\n", f.read())
        finally:
            p.kill()
            p.wait()
            remove_group(group)
            remove_group(parent)


if __name__ == "__main__":
    unittest.main()
