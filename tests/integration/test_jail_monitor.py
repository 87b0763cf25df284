# SPDX-License-Identifier: Apache-2.0
"""The real monitor, jailed and plain: what a live microVM holds (J4, J7), and what it cannot reach."""
import glob
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
import unittest

import lib
from test_jail import GID, JAIL, NAMESPACES, SANITIZED, UID, ns, pids_group, status

ARGS = "ip={guest} gw={host}"
# Once its tap is in use: the tap as handed over and as attached, the disk, the log's stream, --dir.
STRICT_FILES = [r"/dev/net/tun|/net/tun|^/tun", r"/net/tun|^/tun", r"disk$", r"/out$", r"data$"]
OF_COMPAT = ("mnt", "net", "ipc", "uts", "cgroup")


def setUpModule():
    lib.need_root()
    lib.need_kvm()


class JailedMonitor(lib.Monitor):
    """A monitor that mayfly-jail started; words are the jail's own."""

    def __init__(self, sock, folder, words):
        self.dir = folder
        self.sock = sock
        self.out_path, self.err_path = os.path.join(self.dir, "out"), os.path.join(self.dir, "err")
        with open(self.out_path, "wb") as o, open(self.err_path, "wb") as e:
            self.p = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=o, stderr=e)
        self.wait_for(lambda: os.path.exists(self.sock) and self.try_connect(), 10, "API socket")


class Base(unittest.TestCase):
    def setUp(self):
        import tempfile
        self.dir = tempfile.mkdtemp(prefix="mayfly-jm-")
        os.chmod(self.dir, 0o755)
        self.data = os.path.join(self.dir, "data")
        os.mkdir(self.data)
        self.addCleanup(shutil.rmtree, self.dir, True)

    def fill(self, folder):
        shutil.copy(lib.guest(), os.path.join(folder, "kernel"))
        with open(os.path.join(folder, "disk"), "wb") as f:
            f.truncate(1 << 20)
        for name in ("kernel", "disk"):
            os.chown(os.path.join(folder, name), UID, GID)

    def netns(self):
        net = lib.Netns()
        self.addCleanup(net.close)
        return net

    def end(self, m):
        if m.p.poll() is None:
            m.p.kill()
        m.p.wait()

    def ended(self, m):
        m.p.wait(10)
        return m.err()

    def strict(self, net, *tail, flags=()):
        if not os.path.exists(os.path.join(self.data, "disk")):  # else it may be another's, who runs
            self.fill(self.data)
        m = JailedMonitor(os.path.join(self.dir, "api"), self.dir, [
            JAIL, "--strict", "--id", f"m{os.getpid()}-{next(lib.COUNT)}", "--exec-file", lib.MAYFLY,
            "--uid", str(UID), "--gid", str(GID), "--api-sock", os.path.join(self.dir, "api"),
            "--netns", f"/run/netns/{net.name}", "--tap", "tap0", "--dir", self.data, *flags, "--", *tail])
        self.addCleanup(self.end, m)
        return m

    def compat(self, net):
        ident = f"m{os.getpid()}-{next(lib.COUNT)}"
        base = os.path.join(self.dir, "jailer")
        root = os.path.join(base, "mayfly", ident, "root")
        m = JailedMonitor(os.path.join(root, "run", "api.socket"), self.dir, [
            JAIL, "--id", ident, "--exec-file", lib.MAYFLY, "--uid", str(UID), "--gid", str(GID),
            "--chroot-base-dir", base, "--netns", f"/run/netns/{net.name}",
            "--resource-limit", "no-file=1024", "--", "--api-sock", "/run/api.socket"])
        self.addCleanup(self.end, m)
        return m, root

    def jailed(self, m):
        """The monitor's own pid, behind mayfly-jail."""
        with open(f"/proc/{m.p.pid}/task/{m.p.pid}/children") as f:
            return int(f.read())

    def answer_to(self, uid, sock):
        """What the API says to a process of that user."""
        r, w = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(sock)
                    try:
                        s.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    except BrokenPipeError:
                        pass  # refused before it was asked
                    os.write(w, s.recv(4096))
            finally:
                os._exit(0)
        os.close(w)
        with open(r, "rb") as f:
            said = f.read().decode()
        os.waitpid(pid, 0)
        return said

    def boot(self, m, net, *more, **kw):
        self.start(m, net, *more, **kw)
        self.assertEqual(net.http("GET", "/")[0], 200)

    def start(self, m, net, folder="/data", cache="Unsafe"):
        m.put("/boot-source", kernel_image_path=f"{folder}/kernel",
              boot_args=ARGS.format(guest=net.guest, host=net.host))
        m.put("/drives/d", drive_id="d", path_on_host=f"{folder}/disk", is_root_device=False,
              is_read_only=False, cache_type=cache)
        m.put("/network-interfaces/e", iface_id="e", host_dev_name="tap0", guest_mac=net.mac)
        m.put("/actions", action_type="InstanceStart")

    def power_off(self, m, net):
        try:
            net.http("GET", "/poweroff", retry=0, timeout=5)
        except OSError:
            pass
        self.assertEqual(m.p.wait(10), 0, m.err() + m.out())

    def assert_confined(self, pid, configured=True):
        """J7: every thread, no capability, two filters; the control thread's second comes with the microVM."""
        end = time.monotonic() + 5
        while self.filters(pid, configured) and time.monotonic() < end:
            time.sleep(0.01)  # one that begins has its own in a moment
        self.assertEqual(self.filters(pid, configured), [])

    def filters(self, pid, configured):
        """Threads that have other than two filters. That they have one, and nothing else, is asserted."""
        tasks, odd = os.listdir(f"/proc/{pid}/task"), []
        self.assertGreaterEqual(len(tasks), 3)
        for task in tasks:
            try:
                st = status(f"{pid}/task/{task}")
            except (FileNotFoundError, ProcessLookupError):
                continue  # a worker of the ring that ended
            if st["Name"].startswith("kvm-nx"):
                continue  # the kernel's own worker, a copy of the control thread at that time
            self.assertEqual((st["Seccomp"], st["NoNewPrivs"]), ("2", "1"), task)
            for cap in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                self.assertEqual(int(st[cap], 16), 0, cap)
            want = "2" if configured or int(task) != pid else "1"
            if st.get("Seccomp_filters", want) != want:
                odd.append((st["Name"], st["Seccomp_filters"]))
        return odd

    def assert_apart(self, pid, names, root):
        """J4: namespaces of its own, and what its root holds."""
        for name in names:
            self.assertNotEqual(ns(pid, name), ns("self", name), name)
        self.assertEqual(sorted(os.listdir(f"/proc/{pid}/root/")), root)

    def fds(self, pid):
        out = {}
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                out[int(fd)] = re.sub(r"\[\d+\]", "", os.readlink(f"/proc/{pid}/fd/{fd}"))
            except FileNotFoundError:
                pass  # a connection that just ended
        return out

    def assert_fds(self, pid, files, **kw):
        """Within a moment: the connection that was served last may not be closed yet."""
        end = time.monotonic() + 5
        while True:
            try:
                return self.fds_are(pid, files, **kw)
            except AssertionError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def fds_are(self, pid, files, eventfds=5, proc=True, pulled=False, configured=True):
        """The exact list: standard streams, fixed numbers, the signalfd, an eventfd for the end, the helper, the ring
        and each device, the named files. New ones may take 40 numbers more, see main.c."""
        got = self.fds(pid)
        self.assertLessEqual({0, 1, 2}, set(got))
        want = {208: "/dev/kvm", 209: "anon_inode:kvm-vm", 210: "anon_inode:[io_uring]", 214: "socket:",
                224: "anon_inode:kvm-vcpu:0"}
        if os.path.exists("/dev/userfaultfd"):
            want[212] = "/dev/userfaultfd"
        if pulled:
            want[211] = "anon_inode:[userfaultfd]"
        if proc:  # a compat jail has none
            want[213], want[215] = f"/proc/{pid}/pagemap", f"/proc/{pid}/fdinfo/211"
        self.assertEqual({n: v for n, v in got.items() if n >= 200}, want)
        rest = sorted(v for n, v in got.items() if 2 < n < 200)
        with open(f"/proc/{pid}/limits") as f:
            soft, hard = map(int, re.search(r"Max open files +(\d+) +(\d+)", f.read()).groups())
        self.assertEqual(soft, hard)
        self.assertLessEqual(soft, 40 + 3 + len(rest) if configured else 256)
        for pattern in [*files, *[r"^anon_inode:\[eventfd\]$"] * eventfds, r"^anon_inode:\[signalfd\]$"]:
            found = [v for v in rest if re.search(pattern, v)]
            self.assertTrue(found, f"{pattern} in {rest}")
            rest.remove(found[0])
        self.assertEqual(rest, [])


@unittest.skipIf(SANITIZED, "a sanitizer's runtime needs the dynamic loader, which no jail holds")
class Jailed(Base):
    def test_strict(self):
        net = self.netns()
        m = self.strict(net)
        self.boot(m, net)
        pid = self.jailed(m)
        self.assert_confined(pid)
        self.assert_apart(pid, NAMESPACES, ["data"])
        self.assertNotIn("/dev/kvm", [v for n, v in self.fds(pid).items() if n < 200])
        self.assert_fds(pid, STRICT_FILES)
        self.power_off(m, net)
        self.assertFalse(os.path.exists(m.sock))
        self.assertFalse(os.path.exists(f"/proc/{pid}"))

    def test_restored(self):
        """The same holds for a microVM from a snapshot, and what it wrote is its user's alone."""
        net = self.netns()
        os.chown(self.data, UID, GID)
        m = self.strict(net)
        self.boot(m, net)
        m.patch("/vm", state="Paused")
        victim = os.path.join(self.dir, "victim")
        with open(victim, "w") as f:
            f.write("precious")
        for name in ("state", "mem"):  # a file that is there already is replaced, a link too
            os.symlink(victim, os.path.join(self.data, name))
        m.put("/snapshot/create", snapshot_path="/data/state", mem_file_path="/data/mem")
        for name in ("state", "mem"):
            st = os.lstat(os.path.join(self.data, name))
            self.assertTrue(stat.S_ISREG(st.st_mode))
            self.assertEqual((st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)), (UID, GID, 0o600))
        with open(victim) as f:
            self.assertEqual(f.read(), "precious")
        m.p.terminate()
        m.p.wait(10)
        again = self.strict(net)
        again.put("/snapshot/load", snapshot_path="/data/state",
                  mem_backend={"backend_type": "File", "backend_path": "/data/mem"}, resume_vm=True)
        self.assertEqual(net.http("GET", "/")[0], 200)
        pid = self.jailed(again)
        self.assert_confined(pid)
        self.assert_fds(pid, [*STRICT_FILES, r"mem$"])
        self.power_off(again, net)

    def test_orderly_end(self):
        """A signal to mayfly-jail ends the real monitor in order: log, status 0, socket and control group gone."""
        flags, where = pids_group(64)
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(sig.name):
                net = self.netns()
                m = self.strict(net, flags=flags)
                self.boot(m, net)
                pid = self.jailed(m)
                m.p.send_signal(sig)
                self.assertEqual(m.p.wait(10), 0, m.err())
                self.assertIn("a signal asked for it", m.console())
                self.assertFalse(os.path.exists(m.sock))
                self.assertFalse(os.path.exists(f"/proc/{pid}"))
                self.assertEqual([d for d in glob.glob(os.path.join(where, "mayfly", "m*")) if str(os.getpid()) in d], [])

    def test_task_limit(self):
        """The guest's disk while not one task more can start, then with the room that docs/jail.md asks for."""
        flags, where = pids_group(64)
        net = self.netns()
        m = self.strict(net, flags=flags)
        self.boot(m, net, cache="Writeback")
        group = next(d for d in glob.glob(os.path.join(where, "mayfly", "m*")) if f"m{os.getpid()}-" in d)
        with open(os.path.join(group, "pids.current")) as f:
            now = int(f.read())
        asked = (("PUT", "/sector/1", b"x" * 512), ("GET", "/flush", None), ("GET", "/discard?sector=8&n=8", None),
                 ("GET", "/sector/1", None))
        for limit, may in ((now, (200, 500)), (now + 16, (200,))):
            with open(os.path.join(group, "pids.max"), "w") as f:
                f.write(str(limit))
            for _ in range(3):
                for method, path, body in asked:
                    self.assertIn(net.http(method, path, body)[0], may, f"{path} at {limit} tasks")
        self.power_off(m, net)

    def test_file_size_limit(self):
        """A guest that writes where its jail's limit ends gets an error; the monitor is not killed for it."""
        net = self.netns()
        m = self.strict(net, flags=["--resource-limit", "fsize=524288"])
        self.boot(m, net)
        self.assertEqual(net.http("PUT", "/sector/1", b"x" * 512)[0], 200)
        self.assertEqual(net.http("PUT", "/sector/1500", b"x" * 512)[0], 500)
        self.assertEqual(net.http("PUT", "/sector/2", b"x" * 512)[0], 200)
        self.power_off(m, net)

    def test_memory_lock_limit(self):
        """The ring alone takes locked memory, and on some kernels none: no room for it ends the start with its name."""
        net = self.netns()
        try:
            m = self.strict(net, flags=["--resource-limit", "memlock=4096"])
            m.get("/")
        except (AssertionError, OSError) as e:  # it ended before or after it could be reached
            said = str(e) if isinstance(e, AssertionError) else self.ended(m)
            self.assertIn("RLIMIT_MEMLOCK", said)
            m = self.strict(net)
            m.get("/")
        pid = self.jailed(m)
        with open(f"/proc/{pid}/limits") as f:
            self.assertRegex(f.read(), r"Max locked memory +0 +0 ")

    def test_allowed_users(self):
        """SO_PEERCRED through the user namespace, where every user that it does not know is 65534."""
        for allow, yes, no in (((0, 1234), (0, 1234), (1235, 65534)), ((1234, 1234), (1234,), (0, 65534)),
                               ((UID,), (UID,), (0, 1234, 65534))):
            with self.subTest(allow):
                flags = [w for uid in allow for w in ("--allow-uid", str(uid))]
                m = self.strict(self.netns(), flags=["--api-sock-mode", "0666", *flags])
                for uid in yes:
                    self.assertIn(" 200 ", self.answer_to(uid, m.sock), uid)
                for uid in no:
                    self.assertIn("may not use the API", self.answer_to(uid, m.sock), uid)
                m.p.terminate()
                m.p.wait(10)

    def test_strict_refuses_paths(self):
        net = self.netns()
        m = self.strict(net)
        os.symlink("/kernel", os.path.join(self.data, "absolute"))
        os.symlink("../kernel", os.path.join(self.data, "up"))
        os.link("/etc/passwd" if os.stat("/etc/passwd").st_dev == os.stat(self.data).st_dev
                else os.path.join(self.data, "kernel"), os.path.join(self.data, "hard"))
        os.mkfifo(os.path.join(self.data, "fifo"))
        for path in ("/etc/passwd", "/proc/self/mem", "/data/../etc/passwd", "/data/absolute", "/data/up",
                     "/data/fifo", "/data", "/", "fd:0", "relative", lib.guest()):
            with self.subTest(path):
                code, body = m.api("PUT", "/boot-source", {"kernel_image_path": path}, check=False)
                self.assertEqual(code, 400)
                self.assertIn("kernel_image_path", body["fault_message"])
        code, _ = m.api("PUT", "/network-interfaces/e", {"iface_id": "e", "host_dev_name": "tap1"}, False)
        self.assertEqual(code, 400)

    def test_compat(self):
        """As orchestrators do it: the jailer first, files linked into its root afterwards."""
        net = self.netns()
        m, root = self.compat(net)
        self.fill(self.data)
        for name in ("kernel", "disk"):
            os.link(os.path.join(self.data, name), os.path.join(root, name))
        self.boot(m, net, "")
        self.assert_confined(m.p.pid)
        self.assert_fds(m.p.pid, [r"/net/tun$", r"disk$", r"/out$"], proc=False)
        with open(f"/proc/{m.p.pid}/mountinfo") as f:
            lines = f.readlines()
        self.assertEqual(len(lines), 1)
        self.assertRegex(lines[0], r" / rw,nosuid,noexec,")
        self.assert_apart(m.p.pid, OF_COMPAT, ["dev", "disk", "kernel", "mayfly", "mayfly.pid", "run"])
        # Not dumpable: what belongs to it in /proc is root's, though it runs as another user.
        self.assertEqual((os.stat(f"/proc/{m.p.pid}/environ").st_uid, status(m.p.pid)["Uid"].split()[0]), (0, str(UID)))
        writable = {d for d in ("", "dev", "dev/net", "run") if os.stat(os.path.join(root, d)).st_uid == UID}
        self.assertEqual(writable, {"", "run"})
        m.p.terminate()
        self.assertEqual(m.p.wait(10), 0)

    def test_compat_sees_its_own_taps(self):
        """It may open /dev/net/tun, but not what another namespace has, by whatever name."""
        mine, other = self.netns(), self.netns()
        other.ip("tuntap", "add", "other0", "mode", "tap", "vnet_hdr")
        for net, name, want in ((mine, "tap0", 204), (mine, "other0", 400), (other, "other0", 204)):
            with self.subTest(f"{net.name} {name}"):
                m, _ = self.compat(net)
                code, body = m.api("PUT", "/network-interfaces/e", {"iface_id": "e", "host_dev_name": name}, False)
                self.assertEqual(code, want, body)
                self.end(m)

    def test_neighbours(self):
        """Two microVMs with the same addresses and tap name, each in its own network namespace."""
        nets, seen = [self.netns(), self.netns()], []
        for net in nets:
            self.dir = os.path.join(self.dir, "n")
            self.data = os.path.join(self.dir, "data")
            os.makedirs(self.data)
            m = self.strict(net)
            self.boot(m, net)
        for net in nets:
            seen.append(net.http("GET", "/")[1])
        self.assertNotEqual(seen[0], seen[1])
        for net, own in zip(nets, seen):
            links = set(re.findall(r"^\d+: ([^:@]+)", net.exec("ip", "link").stdout, re.M))
            self.assertLessEqual(links, {"lo", "tap0", "sit0", "ip6tnl0", "tunl0", "gre0", "gretap0",
                                         "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"})
            self.assertEqual(net.http("GET", "/")[1], own)

    def test_bridged(self):
        """A guest that sends into its own namespace finds nobody; over the operator's bridge it finds the other."""
        a, b = self.netns(), self.netns()
        folders = [os.path.join(self.dir, "a"), os.path.join(self.dir, "b")]

        def guest(net, folder, addr, mac, more=""):
            self.dir, self.data = folder, os.path.join(folder, "data")
            os.makedirs(self.data, exist_ok=True)
            m = self.strict(net)
            m.put("/boot-source", kernel_image_path="/data/kernel", boot_args=f"ip={addr}/24 {more}")
            m.put("/network-interfaces/e", iface_id="e", host_dev_name="tap0", guest_mac=mac)
            m.put("/actions", action_type="InstanceStart")
            return m

        def ask():
            """Round trips from the first guest to the second, as the first one counted them."""
            m = guest(a, folders[0], "172.30.0.8", "06:00:ac:1e:00:08",
                      "mode=netbench bench.op=pingpong bench.dst=172.30.0.9 bench.secs=1")
            m.p.wait(30)
            said = re.sub(r"\d{4}-\d\d-\d\dT[^\n]*\n", "", m.console())  # the log goes there too, between its bytes
            found = re.search(r"BENCH (\{.*\})", said)
            self.assertTrue(found, m.console() + m.err())
            return json.loads(found[1])

        other = guest(b, folders[1], "172.30.0.9", "06:00:ac:1e:00:09")
        self.assertIn("nobody at the destination", ask().get("error", ""))
        a.ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b.name)
        for net in (a, b):
            net.ip("link", "add", "br0", "type", "bridge")
            for port in ("tap0", "cable"):
                net.ip("link", "set", port, "master", "br0")
            for link in ("cable", "br0"):
                net.ip("link", "set", link, "up")
        self.assertGreater(ask()["packets"], 0)
        other.p.terminate()
        other.p.wait(10)


class Plain(Base):
    def test_confined(self):
        net = self.netns()
        self.fill(self.data)
        os.chown(os.path.join(self.data, "disk"), 0, 0)  # root without capabilities opens its own alone
        m = lib.Monitor("--allow-dir", self.data, netns=net)
        self.addCleanup(self.end, m)
        self.boot(m, net, self.data)
        if not SANITIZED:
            self.assert_confined(m.p.pid)
            self.assert_fds(m.p.pid, [r"/net/tun", r"disk$", r"/out$", r"data$"])
        with open(f"/proc/{m.p.pid}/environ", "rb") as f:
            self.assertEqual(f.read().strip(b"\0"), b"")
        st = os.stat(m.sock)
        self.assertEqual(stat.S_IMODE(st.st_mode), 0o600)
        self.power_off(m, net)

    def test_paths(self):
        self.fill(self.data)
        outside = os.path.join(self.dir, "outside")
        shutil.copy(lib.guest(), outside)
        os.symlink(outside, os.path.join(self.data, "link"))
        m = lib.Monitor("--allow-dir", self.data)
        self.addCleanup(self.end, m)
        for path in (outside, os.path.join(self.data, "link"), os.path.join(self.data, "..", "outside"),
                     "/proc/self/exe", "/dev/null", "/dev/kvm"):
            with self.subTest(path):
                code, body = m.api("PUT", "/boot-source", {"kernel_image_path": path}, check=False)
                self.assertEqual(code, 400)
                self.assertIn("kernel_image_path", body["fault_message"])
        m.put("/boot-source", kernel_image_path=os.path.join(self.data, "kernel"))

    def test_paths_without_directories(self):
        m = lib.Monitor()
        self.addCleanup(self.end, m)
        for path in ("/dev/null", "/dev/kvm", "/proc/self/exe", "/proc/1/root/etc/passwd", "/sys/kernel/notes"):
            with self.subTest(path):
                code, _ = m.api("PUT", "/boot-source", {"kernel_image_path": path}, check=False)
                self.assertEqual(code, 400)
        m.put("/boot-source", kernel_image_path=lib.guest())

    def test_allowed_users(self):
        m = lib.Monitor("--allow-uid", "1234", "--allow-uid", "0", "--api-sock-mode", "666")
        self.addCleanup(self.end, m)
        os.chmod(os.path.dirname(m.sock), 0o755)
        for boot in (lambda: None, m.boot):
            boot()
            for uid in (1234, 0):
                self.assertIn(" 200 ", self.answer_to(uid, m.sock))
            for uid in (1235, 65534):
                self.assertIn("may not use the API", self.answer_to(uid, m.sock))

    def test_files_are_private(self):
        """Logs, metrics and snapshots, made under an open umask."""
        names = [os.path.join(self.data, n) for n in ("log", "metrics", "state", "mem")]
        m = lib.Monitor("--allow-dir", self.data, "--allow-dir", lib.GUESTS, "--log-path", names[0],
                        preexec_fn=lambda: os.umask(0))
        self.addCleanup(self.end, m)
        m.put("/metrics", metrics_path=names[1])
        m.boot()
        m.patch("/vm", state="Paused")
        m.put("/snapshot/create", snapshot_path=names[2], mem_file_path=names[3])
        for name in names:
            self.assertEqual(stat.S_IMODE(os.stat(name).st_mode), 0o600, name)
        self.assertEqual(sorted(os.listdir(self.data)), ["log", "mem", "metrics", "state"])

    def test_inherited(self):  # J3
        extra = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(extra, True)
        m = lib.Monitor(pass_fds=(extra,), env={"SECRET": "1"})
        self.addCleanup(self.end, m)
        os.close(extra)
        self.assertNotIn("/etc/passwd", self.fds(m.p.pid).values())

    def test_stopped_and_continued(self):
        """A stop interrupts timed waits; what resumes them is no call that a filter kills for."""
        net = self.netns()
        self.fill(self.data)
        os.chown(os.path.join(self.data, "disk"), 0, 0)
        m = lib.Monitor("--allow-dir", self.data, netns=net)
        self.addCleanup(self.end, m)
        for _ in range(2):
            for _ in range(20):
                os.kill(m.p.pid, signal.SIGSTOP)
                os.waitid(os.P_PID, m.p.pid, os.WSTOPPED | os.WNOWAIT)
                os.kill(m.p.pid, signal.SIGCONT)
                self.assertIn(m.get("/")["state"], ("Not started", "Running"))
            if m.get("/")["state"] == "Not started":
                self.boot(m, net, self.data)
        self.power_off(m, net)

    def test_no_seccomp_changes_nothing(self):
        if "debug" in os.path.basename(lib.BUILD):
            self.skipTest("--no-seccomp has effect in debug builds")
        m = lib.Monitor("--no-seccomp")
        self.addCleanup(self.end, m)
        m.wait_for(lambda: "filters stay on" in m.out() + m.err(), 5, "warning")
        for task in os.listdir(f"/proc/{m.p.pid}/task"):
            self.assertEqual(status(f"{m.p.pid}/task/{task}")["Seccomp"], "2")


if __name__ == "__main__":
    unittest.main()
