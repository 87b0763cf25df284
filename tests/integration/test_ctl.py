# SPDX-License-Identifier: Apache-2.0
"""mayflyctl: every subcommand against real monitors."""
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from lib import BUILD, COUNT, SANITIZED, GuestCase, Netns

CTL = os.path.join(BUILD, "mayflyctl")
GUEST = "172.30.0.2/24"


def ctl(*args, check=True, **kw):
    p = subprocess.run([CTL, *map(str, args)], capture_output=True, text=True, timeout=120, **kw)
    if check and p.returncode:
        raise AssertionError(f"mayflyctl {' '.join(map(str, args))}: {p.returncode}: {p.stdout}{p.stderr}")
    return p


def kept(name):
    """The network namespace of a clone, as the helpers of lib know one."""
    ns = Netns.__new__(Netns)
    ns.name, ns.tap = name, "tap0"
    ns.host, ns.guest, ns.mac = "172.30.0.1", "172.30.0.2", "06:00:AC:1E:00:02"
    return ns


def namespaces(prefix):
    return sorted(n for n in os.listdir("/run/netns") if n.startswith(prefix)) if os.path.isdir("/run/netns") else []


class CtlCase(GuestCase):
    allow = ("--allow-dir", tempfile.gettempdir())  # disk() makes images there

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="mayfly-ctl-")
        self.addCleanup(shutil.rmtree, self.dir, True)
        self.prefix = f"t{os.getpid()}x{next(COUNT)}-"

    def path(self, name):
        return os.path.join(self.dir, name)

    def recorded(self, drives=(), keep=False):
        """A guest that was booted, paused and saved as a.state and a.mem."""
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot("mayfly.vmgenid=0xd0000", netns=ns, drives=drives)
        self.assertEqual(ns.http("GET", "/counter")[0], 200)
        m.patch("/vm", state="Paused")
        m.put("/snapshot/create", snapshot_path=self.path("a.state"), mem_file_path=self.path("a.mem"))
        if not keep:
            m.kill()
            ns.close()
        return m, ns

    def with_disks(self):
        self.base = self.disk(1, b"base" * 128)
        config = self.disk(0.0625, b"id=template\n")
        return self.recorded([self.base, {"drive_id": "config", "path_on_host": config, "is_read_only": True}])

    def clone(self, *args, check=True, **kw):
        args = ["clone", "--snapshot", self.path("a.state"), "--mem", self.path("a.mem"), "--guest", GUEST,
                "--prefix", self.prefix, "--dir", self.path("clones"), *self.allow, *args]
        p = ctl(*args, check=check, **kw)
        return json.loads(p.stdout) if "--json" in args and p.stdout else p


class Raw(CtlCase):
    def test_requests(self):
        m = self.monitor()
        self.assertEqual(json.loads(ctl("--socket", m.sock, "get", "/").stdout)["state"], "Not started")
        ctl("put", "/machine-config", '{"vcpu_count":1,"mem_size_mib":64}', "--socket", m.sock)
        self.assertEqual(json.loads(ctl("get", "/machine-config", "--socket=" + m.sock).stdout)["mem_size_mib"], 64)
        p = ctl("--socket", m.sock, "patch", "/vm", '{"state":"Paused"}', check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn("not supported before starting", p.stderr)

    def test_descriptors(self):
        self.recorded()
        ns = self.netns()
        m = self.monitor(netns=ns)
        ctl("--socket", m.sock, "put", "/snapshot/load",
            '{"snapshot_path":"fd:0","mem_backend":{"backend_type":"File","backend_path":"fd:1"},"resume_vm":true}',
            "--fd", self.path("a.state"), "--fd", self.path("a.mem"))
        self.assertEqual(json.loads(ns.http("GET", "/counter")[1])["counter"], 2)

    def test_wrong_usage(self):
        for args in (["get"], ["nothing"], ["get", "/", "--nothing"], ["snapshot", "describe"], ["clone", "-n", "x"],
                     ["pool", "take", "-n", "0"], ["end"], []):
            self.assertEqual(ctl(*args, check=False).returncode, 2, args)
        p = ctl("--socket", self.path("none"), "get", "/", check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn("cannot connect", p.stderr)


class Files(CtlCase):
    def test_describe(self):
        self.with_disks()
        s = json.loads(ctl("snapshot", "describe", self.path("a.state"), "--json").stdout)
        self.assertEqual((s["file"], s["arch"], s["machine"]["mem_size_mib"]), ("state", "x86_64", 128))
        self.assertTrue(s["machine"]["guest_ready"])
        self.assertEqual(set(s["devices"]), {"disk0", "config", "eth0"})
        self.assertEqual(s["devices"]["disk0"]["path_on_host"], self.base)
        self.assertEqual(s["devices"]["disk0"]["bytes"], 1 << 20)
        self.assertEqual(s["devices"]["eth0"]["guest_mac"], "06:00:ac:1e:00:02")
        m = json.loads(ctl("snapshot", "describe", self.path("a.mem"), "--json").stdout)
        self.assertEqual((m["file"], m["type"], m["id"], m["mem_size_mib"]), ("memory", "Full", s["id"], 128))
        text = ctl("snapshot", "describe", self.path("a.state")).stdout
        for word in (s["id"], self.base, "x86_64", "128 MiB"):
            self.assertIn(word, text)

    def test_describe_refuses(self):
        self.recorded()
        with open(self.path("a.state"), "rb") as f:
            good = f.read()
        bad = {"flipped": (good[:500] + bytes([good[500] ^ 1]) + good[501:], "checksum"),
               "short": (good[:-1], "bytes"), "empty": (b"", ""), "text": (b"hello" * 100, "")}
        for name, (data, word) in bad.items():
            with open(self.path(name), "wb") as f:
                f.write(data)
            p = ctl("snapshot", "describe", self.path(name), check=False)
            self.assertEqual(p.returncode, 1, name)
            self.assertIn(word, p.stderr, name)

    def test_merge(self):
        self.recorded()
        ns = self.netns()
        m = self.monitor(netns=ns)
        load = {"snapshot_path": self.path("a.state"), "resume_vm": True,
                "mem_backend": {"backend_type": "File", "backend_path": self.path("a.mem")}}
        m.put("/snapshot/load", **load)
        ns.http("GET", "/touch?mib=2&seed=7")
        want = json.loads(ns.http("GET", "/sum?mib=2")[1])["sum"]
        m.patch("/vm", state="Paused")
        m.put("/snapshot/create", snapshot_path=self.path("d.state"), mem_file_path=self.path("d.mem"),
              snapshot_type="Diff")
        m.kill()
        d = json.loads(ctl("snapshot", "describe", self.path("d.mem"), "--json").stdout)
        self.assertEqual(d["type"], "Diff")
        self.assertLess(d["allocated_bytes"], 8 << 20)
        ctl("snapshot", "merge", self.path("a.mem"), self.path("d.mem"), self.path("m.mem"))
        out = json.loads(ctl("snapshot", "describe", self.path("m.mem"), "--json").stdout)
        self.assertEqual((out["type"], out["id"]), ("Full", d["id"]))
        m2 = self.monitor(netns=ns)
        load["snapshot_path"] = self.path("d.state")
        load["mem_backend"]["backend_path"] = self.path("m.mem")
        m2.put("/snapshot/load", **load)
        self.assertEqual(json.loads(ns.http("GET", "/sum?mib=2")[1])["sum"], want)
        p = ctl("snapshot", "merge", self.path("m.mem"), self.path("d.mem"), self.path("x.mem"), check=False)
        self.assertIn("another snapshot", p.stderr)
        self.assertFalse(os.path.exists(self.path("x.mem")))
        self.assertEqual([n for n in os.listdir(self.dir) if n.endswith(".part")], [])


class Pool(CtlCase):
    def pool(self, *args):
        p = subprocess.Popen([CTL, "pool", "--dir", self.path("pool"), *args], stderr=subprocess.PIPE, text=True)

        def stop():
            p.terminate()  # with it go its idle monitors
            p.wait(20)
            p.stderr.close()
        self.addCleanup(stop)
        self.wait(lambda: os.path.exists(self.path("pool/pool.sock")), p)
        return p

    def wait(self, cond, p=None, seconds=10):
        end = time.monotonic() + seconds
        while not cond():
            self.assertLess(time.monotonic(), end, p.stderr.read() if p and p.poll() is not None else "too slow")
            time.sleep(0.01)

    def status(self):
        return ctl("pool", "status", "--dir", self.path("pool")).stdout

    def take(self, n=1):
        out = ctl("pool", "take", "--pid", "-n", n, "--dir", self.path("pool")).stdout.split()
        return [(int(out[i]), out[i + 1]) for i in range(0, len(out), 2)]

    def alive(self, pid):
        try:
            with open(f"/proc/{pid}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):  # or it goes while it is read
            return False

    def test_hands_out_and_refills(self):
        p = self.pool("--size", "2", "--mem", "64")
        self.wait(lambda: "idle 2 of 2" in self.status(), p)
        (pid, sock), = self.take()
        conf = json.loads(ctl("get", "/machine-config", "--socket", sock).stdout)
        self.assertEqual((conf["mem_size_mib"], conf["vcpu_count"]), (64, 1))
        self.wait(lambda: "idle 2 of 2, starting 0, taken 1" in self.status(), p)
        more = self.take(4)  # more than there are: made at once
        self.assertEqual(len({s for _, s in more} | {sock}), 5)
        for i, s in more + [(pid, sock)]:
            self.assertEqual(json.loads(ctl("get", "/", "--socket", s).stdout)["state"], "Not started")
            ctl("pool", "release", i, "--dir", self.path("pool"))
        self.wait(lambda: "taken 0" in self.status(), p)
        self.assertFalse(os.path.exists(sock))
        q = ctl("pool", "release", os.getpid(), "--dir", self.path("pool"), check=False)
        self.assertIn("not a monitor of this pool", q.stderr)

    def test_replaces_what_dies_and_ends(self):
        p = self.pool("--size", "2")
        self.wait(lambda: "idle 2 of 2" in self.status(), p)
        (pid, _), = self.take()
        self.wait(lambda: "idle 2 of 2" in self.status(), p)
        mine = subprocess.run(["pgrep", "-P", str(p.pid)], capture_output=True, text=True).stdout.split()
        idle = [int(x) for x in mine if int(x) != pid]
        os.kill(idle[0], signal.SIGKILL)
        self.wait(lambda: not self.alive(idle[0]) and "idle 2 of 2" in self.status(), p)
        mine = subprocess.run(["pgrep", "-P", str(p.pid)], capture_output=True, text=True).stdout.split()
        p.send_signal(signal.SIGTERM)
        self.assertEqual(p.wait(10), 0)
        self.assertTrue(self.alive(pid), "what was handed out is its caller's")
        os.kill(pid, signal.SIGKILL)
        self.assertEqual([x for x in mine if int(x) != pid and self.alive(x)], [])

    def test_spawn_that_fails_ends_nobody(self):
        """Programs that cannot be started leave shells without a process: no signal may go to number 0 for them."""
        lone = self.path("mayflyctl")  # no mayfly-jail lies beside this one
        shutil.copy(CTL, lone)
        for i, flags in enumerate((["--jail", "--uid", "51000", "--gid", "51000"], ["--mayfly", "/nonexistent"])):
            neighbour = subprocess.Popen(["sleep", "100"], process_group=0)
            where = self.path(f"none{i}")
            p = subprocess.Popen([lone, "pool", "--dir", where, "--size", "2", *flags], stderr=subprocess.PIPE,
                                 text=True, process_group=neighbour.pid)
            try:
                self.assertIn("cannot start", p.stderr.readline())
                status = lambda: ctl("pool", "status", "--dir", where).stdout
                self.wait(lambda: "idle 0 of 2, starting 0, taken 0" in status())
                p.send_signal(signal.SIGTERM)
                self.assertEqual(p.wait(20), 0)
                self.assertIsNone(neighbour.poll(), "the pool ended its whole process group")
                self.assertFalse(os.path.exists(where), "sockets of shells that never were are left behind")
            finally:
                neighbour.kill()
                neighbour.wait()
                p.kill()
                p.wait()
                p.stderr.close()

    def test_images_of_a_stranger(self):
        """A state file may name any file of the host as an image: only folders that the caller named are looked into,
        by mayflyctl as by the monitors that it starts."""
        secret = os.path.join(self.dir, "secret")
        os.mkdir(secret)
        inside = self.path("image")
        for path in (inside, os.path.join(secret, "image")):
            with open(path, "wb") as f:
                f.write(b"secret!!".ljust(1 << 20, b"."))
        snap = self.path("snap")
        os.mkdir(snap)
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[{"path_on_host": os.path.join(secret, "image"), "is_read_only": True}])
        m.patch("/vm", state="Paused")
        m.put("/snapshot/create", snapshot_path=snap + "/a.state", mem_file_path=snap + "/a.mem")
        m.kill()
        ns.close()
        p = self.pool("--size", "1")
        self.wait(lambda: "idle 1 of 1" in ctl("pool", "status", "--dir", self.path("pool")).stdout, p)

        def run(*args):
            return ctl("clone", "--snapshot", snap + "/a.state", "--mem", snap + "/a.mem", "--guest", GUEST, "--prefix",
                       self.prefix, "--dir", self.path("clones"), "--get", "/sector/0", *args, check=False)
        for pool in ((), ("--pool", self.path("pool"))):
            r = run(*pool)
            self.assertEqual(r.returncode, 1, r.stdout)
            self.assertIn("secret/image lies outside", r.stderr)
            r = run("--allow-dir", secret, *pool)
            self.assertEqual((r.returncode, "secret!!" in r.stdout), (0, True), r.stdout + r.stderr)
            os.rename(secret, self.path("elsewhere"))
            os.mkdir(secret)
            os.symlink(self.path("elsewhere/image"), os.path.join(secret, "image"))
            r = run("--allow-dir", secret, *pool)  # by its name it lies inside, by its link it does not
            self.assertEqual((r.returncode, "secret!!" in r.stdout), (1, False), r.stdout)
            self.assertRegex(r.stdout, "not beneath an allowed|cannot open")
            os.unlink(os.path.join(secret, "image"))
            os.rmdir(secret)
            os.rename(self.path("elsewhere"), secret)

    def test_clones_of_a_pool(self):
        self.with_disks()
        p = self.pool("--size", "3")
        self.wait(lambda: "idle 3 of 3" in self.status(), p)
        r = self.clone("-n", "5", "--pool", self.path("pool"), "--data", "-", "--get", "/whoami", "--json", input="x")
        self.assertEqual(r["answered"], 5)
        self.assertEqual([c["answer"].split("\n")[0] for c in r["each"]], [f"id={self.prefix}{i}" for i in range(5)])
        self.wait(lambda: "idle 3 of 3, starting 0, taken 0" in self.status(), p)

    def shells(self, p):
        """(user, limit of tasks) of each monitor that the pool has in a jail."""
        def children(pid):
            with open(f"/proc/{pid}/task/{pid}/children") as f:
                return f.read().split()
        for pid in (pid for jail in children(p.pid) for pid in children(jail)):
            with open(f"/proc/{pid}/status") as s, open(f"/proc/{pid}/limits") as limits:
                yield (re.search(r"^Uid:\t(\d+)", s.read(), re.M)[1],
                       re.search(r"Max processes +(\d+)", limits.read())[1])

    @unittest.skipIf(SANITIZED, "a sanitizer's runtime needs the dynamic loader, which no jail holds")
    def test_jailed_needs_a_user(self):
        for half in ([], ["--uid", "51000"], ["--gid", "51000"]):
            p = ctl("pool", "--dir", self.path("pool"), "--size", "1", "--jail", *half, check=False)
            self.assertEqual(p.returncode, 1)
            self.assertIn("--uid and --gid", p.stderr)

    @unittest.skipIf(SANITIZED, "a sanitizer's runtime needs the dynamic loader, which no jail holds")
    def test_jailed(self):
        self.with_disks()
        p = self.pool("--size", "2", "--jail", "--uid", "51000", "--gid", "51000", "--own-uids",
                      "--jail-flag=--resource-limit=nproc=50", "--jail-flag=--resource-limit=fsize=1000000000")
        self.wait(lambda: "idle 2 of 2" in self.status(), p)
        self.assertEqual(sorted(self.shells(p)), [("51000", "50"), ("51001", "50")])
        r = self.clone("-n", "3", "--pool", self.path("pool"), "--get", "/sector/0", "--json")
        self.assertEqual([c["answer"] for c in r["each"]], ["base" * 128] * 3)
        os.truncate(self.base, 2 << 20)
        q = self.clone("-n", "1", "--pool", self.path("pool"), check=False)
        self.assertIn("the snapshot recorded 1048576", q.stdout)


class Clones(CtlCase):
    def test_monitors_are_narrowed(self):
        """A clone's monitor may open what lies in the snapshot's folders and nothing else."""
        self.recorded()
        r = self.clone("-n", "1", "--keep", "--json")
        try:
            with open(f"/proc/{r['each'][0]['pid']}/cmdline") as f:
                args = f.read().split("\0")
            self.assertEqual([args[i + 1] for i, a in enumerate(args) if a == "--allow-dir"],
                             [tempfile.gettempdir(), self.dir])
            sock = os.path.join(self.path("clones"), self.prefix + "0.sock")
            ctl("--socket", sock, "patch", "/vm", '{"state": "Paused"}')
            p = ctl("--socket", sock, "put", "/snapshot/create", json.dumps(
                {"snapshot_path": "/var/lib/mayfly.state", "mem_file_path": "/var/lib/mayfly.mem"}), check=False)
            self.assertEqual((p.returncode, "not beneath an allowed" in p.stderr), (1, True), p.stderr)
        finally:
            ctl("end", self.path("clones"))

    def test_who_they_are(self):
        self.with_disks()
        r = self.clone("-n", "6", "--data", "-", "--get", "/whoami", "--json", input="greeting=hello\n")
        self.assertEqual((r["clones"], r["answered"], r["failed"]), (6, 6, 0))
        seen = []
        for i, c in enumerate(r["each"]):
            head, _, tail = c["answer"].partition("\n\n")
            d = dict(x.split("=", 1) for x in head.split("\n"))
            self.assertEqual((d["id"], d["index"], d["address"]), (f"{self.prefix}{i}", str(i), GUEST))
            self.assertEqual(tail.rstrip("\0"), "greeting=hello\n")
            self.assertLess(abs(int(d["time_ns"]) / 1e9 - time.time()), 60)
            seen.append(d["secret"])
        self.assertEqual(len(set(seen)), 6)
        self.assertTrue(all(re.fullmatch("[0-9a-f]{32}", s) for s in seen))
        self.assertEqual(namespaces(self.prefix), [])
        self.assertFalse(os.path.exists(self.path("clones")))

    def test_data_of_each(self):
        self.with_disks()
        os.mkdir(self.path("data"))
        for i in range(2):
            with open(self.path(f"data/{self.prefix}{i}"), "w") as f:
                f.write(f"mine={i}\n")
        r = self.clone("-n", "2", "--data", self.path("data"), "--get", "/whoami", "--json")
        for i, c in enumerate(r["each"]):
            self.assertIn(f"\n\nmine={i}\n", c["answer"])
        p = self.clone("-n", "3", "--data", self.path("data"), check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn(f"{self.prefix}2", p.stdout)

    def test_kept_clones_share_nothing(self):
        self.with_disks()
        r = self.clone("-n", "3", "--keep", "--json")
        self.addCleanup(ctl, "end", self.path("clones"), check=False)
        self.assertEqual(r["answered"], 3)
        ns = [kept(f"{self.prefix}{i}") for i in range(3)]
        for i, n in enumerate(ns):
            self.assertEqual(n.http("PUT", "/sector/5", bytes([65 + i]) * 512)[0], 200)
        for i, n in enumerate(ns):
            self.assertEqual(n.http("GET", "/sector/5")[1], bytes([65 + i]) * 512)
            self.assertEqual(n.http("GET", "/sector/0")[1], b"base" * 128)
            n.http("GET", "/counter")
        counters = [json.loads(n.http("GET", "/counter")[1]) for n in ns]
        self.assertEqual({c["generation"] for c in counters}, {1})
        self.assertEqual(len({n.http("GET", "/rand")[1] for n in ns}), 3)
        with open(self.base, "rb") as f:
            f.seek(5 * 512)
            self.assertEqual(f.read(512), bytes(512))
        p = self.clone("-n", "1", check=False)
        self.assertIn("mayflyctl end", p.stderr)
        pids = [c["pid"] for c in r["each"]]
        ctl("end", self.path("clones"))
        end = time.monotonic() + 5
        while any(os.path.exists(f"/proc/{p}") for p in pids) and time.monotonic() < end:
            time.sleep(0.01)
        self.assertEqual([p for p in pids if os.path.exists(f"/proc/{p}")], [])
        self.assertEqual(namespaces(self.prefix), [])
        self.assertFalse(os.path.exists(self.path("clones")))

    def test_layer_of_the_recorded(self):
        base = self.disk(1, b"base" * 128)
        layer = self.path("layer")
        open(layer, "w").close()
        m, ns = self.recorded([{"drive_id": "d", "path_on_host": base, "cow_path": layer}], keep=True)
        m.patch("/vm", state="Resumed")
        ns.http("PUT", "/sector/3", b"L" * 512)
        m.patch("/vm", state="Paused")
        m.put("/snapshot/create", snapshot_path=self.path("a.state"), mem_file_path=self.path("a.mem"))
        m.kill()
        r = self.clone("-n", "2", "--get", "/sector/3", "--json")
        self.assertEqual([c["answer"] for c in r["each"]], ["L" * 512] * 2)

    def test_made_before(self):
        self.recorded()
        ctl("netns", "make", "--prefix", self.prefix, "-n", "3", "--guest", GUEST)
        self.addCleanup(ctl, "netns", "remove", "--prefix", self.prefix, "-n", "3")
        for _ in range(3):  # the taps are free again at once
            r = self.clone("-n", "3", "--json")
            self.assertEqual((r["answered"], r["namespaces_made"]), (3, 0), r)
        self.assertEqual(len(namespaces(self.prefix)), 3)

    def test_table(self):
        self.recorded()
        p = self.clone("-n", "2")
        self.assertEqual(len(re.findall(rf"^{self.prefix}\d+ .*hello from mayfly", p.stdout, re.M)), 2, p.stdout)
        self.assertIn("2 of 2 clones answered", p.stdout)

    def test_failures_leave_nothing(self):
        self.recorded()
        with open(self.path("a.mem"), "r+b") as f:
            f.seek(-4090, os.SEEK_END)
            f.write(b"\xff")
        p = self.clone("-n", "2", check=False)
        self.assertEqual(p.returncode, 1)
        self.assertIn("memory file", p.stdout)
        self.assertIn("0 of 2 clones answered", p.stdout)
        self.assertEqual(namespaces(self.prefix), [])
        self.assertFalse(os.path.exists(self.path("clones")))
        p = self.clone("-n", "1", "--data", "-", check=False, input="")
        self.assertIn("no read-only drive 'config'", p.stderr)


if __name__ == "__main__":
    unittest.main()
