# SPDX-License-Identifier: Apache-2.0
"""Two hosts for bench-migration, and a guest that two monitors of a kind (Mayfly, QEMU) hand to each other."""
import glob
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from lib import Monitor, guest  # noqa: E402
from miglib import Lan, request  # noqa: E402

PORTS = itertools.count(7000)
BULK_SNDBUF = 32 << 10  # what waits here is before an urgent page on the target's one thread
BOOT = "spin=on"  # always polling: its largest gap is its own view of a stop, and QEMU's needs no interrupt


class Hosts(Lan):
    """Host 0 and 1 of a Lan with a veth of their own for the migration's channels, 10.77.0.1 and .2."""

    def __init__(self):
        super().__init__()
        a, b = self.hosts
        a.ip("link", "add", "mig0", "type", "veth", "peer", "name", "mig0", "netns", b.name)
        for i, h in enumerate(self.hosts):
            h.ip("addr", "add", f"10.77.0.{i + 1}/24", "dev", "mig0")
            h.ip("link", "set", "mig0", "up")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def at(self, i):
        return f"10.77.0.{i + 1}"

    def sent(self, i):
        """Bytes that left host i for the other, on the interface."""
        out = subprocess.run(["ip", "-n", self.hosts[i].name, "-s", "-j", "link", "show", "mig0"], capture_output=True,
                             check=True)
        return json.loads(out.stdout)[0]["stats64"]["tx"]["bytes"]

    def dial(self, to):
        """TCP channels from the other host to host `to`: [(source's, target's) urgent, bulk]."""
        out = []
        for bulk in (False, True):
            srv = self.hosts[to].socket(socket.AF_INET, socket.SOCK_STREAM)
            srv.bind((self.at(to), 0))
            srv.listen(1)
            s = self.hosts[1 - to].socket(socket.AF_INET, socket.SOCK_STREAM)
            if bulk:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BULK_SNDBUF)
            s.connect(srv.getsockname())
            t = srv.accept()[0]
            srv.close()
            for x in (s, t):
                x.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            out.append((s, t))
        return out


class Probe:
    """The outside: UDP echo of the guest, every millisecond."""

    def __init__(self, tool, lan):
        self.p = subprocess.Popen(["ip", "netns", "exec", lan.name, tool, "probe", lan.guest, "60000"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def end(self):
        """[(sent, round trip or None)], seconds of the monotonic clock."""
        out = self.p.communicate()[0].decode().split()
        return [(int(t) / 1e9, int(r) / 1e9 if int(r) >= 0 else None) for t, r in zip(out[::2], out[1::2])]


def outage_ms(samples):
    """The longest time without an answer, as far as one every millisecond can tell."""
    at = sorted(t + r for t, r in samples if r is not None)
    return max((b - a for a, b in zip(at, at[1:])), default=0) * 1000


class Mover:
    """A guest and the monitor that has it now. move() hands it over and tells what it took."""

    def __init__(self, hosts, tool, mem, touched):
        self.hosts, self.tool, self.mem, self.where = hosts, tool, mem, 0
        self.now = self.boot()
        try:
            self.get("/counter")
            if touched:
                self.get(f"/touch?mib={touched}", timeout=60)
        except BaseException:
            self.close()  # a guest that polls would take a core from all that follows
            raise

    def get(self, path, **kw):
        status, out = self.hosts.http("GET", path, **kw)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {out}")
        return json.loads(out)

    def move(self, probe=True, during=None, **how):
        """One move: dict of gap_ms (guest), probe_ms (outside), downtime_ms (source), total_ms, and what go() adds."""
        dst = self.target()
        try:
            return self.moved(dst, probe, during, **how)
        except BaseException:
            self.leave(dst)
            raise

    def moved(self, dst, probe, during, **how):
        if probe:
            p = Probe(self.tool, self.hosts)
            time.sleep(0.05)
        self.get("/tsc?reset")
        sent = self.hosts.sent(self.where)
        asked = time.monotonic()
        out = self.go(dst, during, **how)
        out["wire"] = self.hosts.sent(self.where) - sent
        out["gap_ms"] = self.get("/tsc")["gap_ns"] / 1e6
        if probe:
            out["samples"] = [(t - asked, r) for t, r in p.end()]
            out["probe_ms"] = outage_ms(out["samples"])
        self.leave(self.now)
        self.now, self.where = dst, 1 - self.where
        return out

    def close(self):
        self.leave(self.now)


def helper_ms(m):
    """Processor time of the one thread of a monitor that migrates."""
    for task in glob.glob(f"/proc/{m.p.pid}/task/*"):
        with open(task + "/comm") as name, open(task + "/schedstat") as ran:
            if name.read() == "helper\n":
                return int(ran.read().split()[0]) / 1e6
    return 0.0


class Mayfly(Mover):
    name = "mayfly"

    def boot(self):
        m = Monitor("--level", "Warn", netns=self.hosts.hosts[0])
        m.boot(BOOT, netns=self.hosts.hosts[0], mem=self.mem)
        fd, self.arbiter = tempfile.mkstemp(prefix="mayfly-arbiter-")
        os.close(fd)
        return m

    def target(self):
        return Monitor("--level", "Warn", netns=self.hosts.hosts[1 - self.where])

    def hand_over(self, pairs, dst, target, source, **how):
        """Both requests, and our own descriptors closed."""
        own = {"arbiter": self.arbiter} if how else {}
        request(dst, target, [p[1] for p in pairs], **own)
        request(self.now, source, [p[0] for p in pairs], **own, **how)
        for p in pairs:
            p[0].close(), p[1].close()

    def begin(self, dst, **how):
        self.hand_over(self.hosts.dial(1 - self.where), dst, "receive", "send", **how)

    def until(self, m, state, seconds=120, every=0.02, ok=lambda st: True):
        """Seldom asked, since the answer comes from the thread that the migration needs."""
        end = time.monotonic() + seconds
        while True:
            st = m.get("/migration")
            if st["state"] == state and ok(st):
                return st
            if st["state"] in ("failed", "cancelled", "lost") or time.monotonic() > end:
                raise RuntimeError(f"migration: {st}")
            time.sleep(every)

    def pulling(self, dst):
        end = time.monotonic() + 20
        while (st := dst.get("/migration"))["stage"] != "activation":
            if time.monotonic() > end:
                raise RuntimeError(f"no pull: {st}")
            time.sleep(0.001)

    def go(self, dst, during, **how):
        used = helper_ms(self.now)
        self.begin(dst, **how)
        more = during(self, dst) if during else None
        a, b = self.until(self.now, "done"), self.until(dst, "done")
        return {"downtime_ms": a["downtime_us"] / 1e3, "total_ms": a["total_us"] / 1e3, "source": a, "target": b,
                "during": more, "source_cpu_ms": helper_ms(self.now) - used, "target_cpu_ms": helper_ms(dst)}

    def leave(self, m):
        if m.p.poll() is None:
            m.kill(signal.SIGTERM)  # asked, not killed: its tap is free when it is gone
        m.close()

    def close(self):
        super().close()
        if os.path.exists(self.arbiter):
            os.unlink(self.arbiter)


class QemuProcess:
    def __init__(self, hosts, where, mem, incoming=None):
        self.dir = tempfile.mkdtemp(prefix="mayfly-qemu-")
        h, sock = hosts.hosts[where], os.path.join(self.dir, "qmp")
        cmd = ["ip", "netns", "exec", h.name, "qemu-system-x86_64", "-M",
               "microvm,accel=kvm,acpi=off,rtc=off,pic=off,pit=off,ioapic2=off,x-option-roms=off", "-cpu", "qemu64,pni=off",
               "-m", str(mem), "-nodefaults", "-no-user-config", "-nographic",
               "-serial", f"file:{self.dir}/console", "-global", "virtio-mmio.force-legacy=false", "-kernel", guest(),
               "-append", f"ip={h.guest}/24 gw={h.host} {BOOT}",
               "-netdev", f"tap,id=n,ifname={h.tap},script=no,downscript=no", "-device",
               f"virtio-net-device,netdev=n,mac={h.mac}", "-qmp", f"unix:{sock},server=on,wait=off"]
        if incoming:
            cmd += ["-incoming", "defer"]
        self.p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end = time.monotonic() + 10
        while True:
            try:
                self.s.connect(sock)
                break
            except OSError:
                if self.p.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"qemu: {self.p.stderr.read().decode()}") from None
                time.sleep(0.01)
        self.f = self.s.makefile("r")
        try:
            self.f.readline()
        except OSError:
            self.p.kill()
            raise RuntimeError(f"qemu: {self.p.stderr.read().decode()}") from None
        self.ask("qmp_capabilities")
        self.ask("migrate-set-capabilities", capabilities=[{"capability": "postcopy-ram", "state": True}])
        self.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        if incoming:
            self.ask("migrate-incoming", uri=incoming)

    def send(self, what, **arguments):
        return json.dumps({"execute": what, "arguments": arguments}).encode() + b"\n"

    def answer(self):
        while True:
            line = json.loads(self.f.readline())
            if "error" in line:
                raise RuntimeError(f"qemu: {line['error']}")
            if "return" in line:
                return line["return"]

    def ask(self, what, **arguments):
        self.s.sendall(self.send(what, **arguments))
        return self.answer()

    def close(self):
        self.p.kill()
        self.p.wait()
        self.p.stderr.close()
        self.f.close()
        self.s.close()
        shutil.rmtree(self.dir, ignore_errors=True)


class Qemu(Mover):
    """Post-copy as QEMU does it, asked for in the same breath as the migration, bandwidth without a limit."""
    name = "qemu"

    @staticmethod
    def why_not():
        return None if shutil.which("qemu-system-x86_64") else "no qemu-system-x86_64"

    def boot(self):
        return QemuProcess(self.hosts, 0, self.mem)

    def target(self):
        self.port = next(PORTS)
        to = 1 - self.where
        return QemuProcess(self.hosts, to, self.mem, f"tcp:{self.hosts.at(to)}:{self.port}")

    def pulling(self, dst):
        end = time.monotonic() + 20
        while (st := self.now.ask("query-migrate"))["status"] not in ("postcopy-active", "completed"):
            if time.monotonic() > end:
                raise RuntimeError(f"qemu: no pull: {st}")
            time.sleep(0.001)

    def begin(self, mode="postcopy", bandwidth_mib_s=0, **_):
        src = self.now
        src.ask("migrate-set-parameters", **{"max-postcopy-bandwidth": bandwidth_mib_s << 20})
        more = src.send("migrate-start-postcopy") if mode == "postcopy" else b""
        src.s.sendall(src.send("migrate", uri=f"tcp:{self.hosts.at(1 - self.where)}:{self.port}") + more)
        src.answer()
        if more:
            src.answer()

    def go(self, dst, during, **how):
        self.begin(**how)
        src, more = self.now, during(self, dst) if during else None
        end = time.monotonic() + 120
        while True:
            st = src.ask("query-migrate")
            if st["status"] == "completed":
                break
            if st["status"] in ("failed", "cancelled") or time.monotonic() > end:
                raise RuntimeError(f"qemu: migration {st}")
            time.sleep(0.02)
        return {"downtime_ms": st["downtime"], "total_ms": st["total-time"], "source": st, "during": more}

    def leave(self, m):
        m.close()


def floor(tool, hosts, *what):
    """A plain TCP socket over the same veth, host 0 to 1: JSON of `migrate flood|pages`."""
    port = str(next(PORTS))
    sink = subprocess.Popen(["ip", "netns", "exec", hosts.hosts[1].name, tool, "sink", hosts.at(1), port],
                            stdout=subprocess.PIPE)
    try:
        sink.stdout.readline()
        out = subprocess.run(["ip", "netns", "exec", hosts.hosts[0].name, tool, what[0], hosts.at(1), port,
                              *map(str, what[1:])], capture_output=True, check=True)
        return json.loads(out.stdout)
    finally:
        sink.kill()
        sink.wait()
        sink.stdout.close()
