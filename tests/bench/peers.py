# SPDX-License-Identifier: Apache-2.0
"""How each peer is started with the same guest, tap and disk."""
import http.client
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import time

HOST, GUEST, MAC = "172.30.0.1", "172.30.0.2", "06:00:AC:1E:00:02"
OTHER_MAC = "06:00:AC:1E:00:99"
MEM_MIB = 128
DISK_MIB = 64
COUNT = itertools.count(1)
RT = []  # what goes before every measured command: --rt puts them ahead of the machine's other work


def sh(*cmd):
    subprocess.run(cmd, check=True, capture_output=True)


class Net:
    """A network namespace with one tap."""

    def __init__(self, tag):
        self.ns = f"bench-{os.getpid()}-{tag}-{next(COUNT)}"

    def __enter__(self):
        sh("ip", "netns", "add", self.ns)
        sh("ip", "-n", self.ns, "link", "set", "lo", "up")
        sh("ip", "-n", self.ns, "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
        sh("ip", "-n", self.ns, "addr", "add", HOST + "/24", "dev", "tap0")
        sh("ip", "-n", self.ns, "link", "set", "tap0", "up")
        return self

    def __exit__(self, *exc):
        subprocess.run(["ip", "netns", "del", self.ns], capture_output=True)

    def cmd(self, *cmd):
        return RT + ["ip", "netns", "exec", self.ns, *cmd]


def outside_guest(pid):
    """RSS, PSS and private KiB of all mappings but the guest's RAM."""
    rss = pss = private = size = 0
    for line in open(f"/proc/{pid}/smaps"):
        m = re.match(r"(Size|Rss|Pss|Private_Clean|Private_Dirty):\s+(\d+) kB", line)
        if not m:
            continue
        if m[1] == "Size":
            size = int(m[2])
        if size >= MEM_MIB * 1024:  # the guest's RAM; address space reserved around it holds nothing
            continue
        rss += int(m[2]) * (m[1] == "Rss")
        pss += int(m[2]) * (m[1] == "Pss")
        private += int(m[2]) * m[1].startswith("Private")
    return {"rss": rss, "pss": pss, "private": private}


class Peer:
    name = "?"

    def __init__(self, work, build):
        self.dir = os.path.join(work, self.name)
        os.makedirs(self.dir)
        self.probe = os.path.join(build, "bench", "probe")
        self.kernel = os.path.join(build, "guests", "function.elf")
        self.sock = os.path.join(self.dir, "api.sock")
        # One each: a monitor that was killed leaves its lock a moment later. Written, so it is in the page cache.
        self.disk = os.path.join(self.dir, "disk.img")
        if not self.why_not():
            with open(self.disk, "wb") as f:
                for _ in range(DISK_MIB):
                    f.write(os.urandom(1 << 20))

    def why_not(self):
        return None

    def life(self, net):
        raise NotImplementedError

    def bench_line(self, args, net=None, disk=None, beside=None):
        """Runs the guest with these arguments until it prints its result. None: not for this peer."""
        raise NotImplementedError

    # ---- loads that every peer with a guest has

    def net_tx(self, size, secs):
        with Net(self.name) as net:
            # Once the guest knows the tap's address it changes, so that the host drops frames at once: the
            # device is measured, not the host's IP stack.
            return self.bench_line(f"mode=netbench bench.op=tx bench.size={size} bench.secs={secs}", net,
                                   beside=net.cmd("ip", "link", "set", "tap0", "address", OTHER_MAC))["pps"]

    def net_rx(self, size, secs):
        with Net(self.name) as net:
            return self.bench_line(
                f"mode=netbench bench.op=rx bench.size={size} bench.secs={secs}", net,
                beside=net.cmd(self.probe, "send", "tap0", MAC, HOST, GUEST, str(size), str(secs + 1)))["pps"]

    def net_pingpong(self, wait, secs):
        with Net(self.name) as net:
            echo = subprocess.Popen(net.cmd(self.probe, "echo", HOST, str(secs + 1)), stdout=subprocess.PIPE)
            time.sleep(0.05)
            try:
                return self.bench_line(f"mode=netbench bench.op=pingpong bench.secs={secs} bench.wait={wait}", net)
            finally:
                echo.kill()
                echo.wait()

    def net_ping(self):
        with Net(self.name) as net, self.running("", net, None) as r:
            r.wait_ready()
            out = subprocess.run(net.cmd(self.probe, "ping", GUEST, "64", "5000"), capture_output=True, check=True)
            return json.loads(out.stdout)

    def blk(self, op, size, depth, wait, secs):
        return self.bench_line(f"mode=blkbench bench.op={op} bench.size={size} bench.depth={depth} "
                               f"bench.secs={secs} bench.wait={wait}", disk=self.disk)


def request(sock, method, path, body):
    c = http.client.HTTPConnection("localhost", timeout=20)
    for _ in range(5000):  # the socket appears, then it listens
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            s.connect(sock)
            break
        except OSError:
            s.close()
            time.sleep(0.001)
    else:
        raise RuntimeError(f"{sock}: nobody listens")
    c.sock = s
    c.request(method, path, body)
    r = c.getresponse()
    text = r.read()
    c.close()
    if r.status // 100 != 2:
        raise RuntimeError(f"{method} {path}: {text.decode()}")


class Running:
    """A guest under way; its console can be read."""

    def __init__(self, cmd, sock=None, requests=()):
        self.console = b""
        self.p = subprocess.Popen(cmd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL)
        for method, path, body in requests:
            request(sock, method, path, json.dumps(body))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.p.kill()
        self.p.wait()
        self.p.stdout.close()

    def until(self, mark):
        while mark not in self.console:
            more = os.read(self.p.stdout.fileno(), 4096)
            if not more:
                raise RuntimeError(f"{self.p.args}: ended: {self.console[-500:]!r}")
            self.console += more

    def wait_ready(self):
        self.until(b"mayfly-guest: ready")

    def bench(self):
        self.until(b"BENCH ")
        self.until(b"}")
        result = json.loads(re.search(rb"BENCH (\{.*?\})", self.console)[1])
        if "error" in result:
            raise RuntimeError(f"{self.p.args}: {result['error']}: {self.console.decode()}")
        return result


class ApiPeer(Peer):
    def command(self):
        raise NotImplementedError

    def requests(self, args, net, disk):
        boot_args = f"ip={GUEST}/24 gw={HOST} {args}"
        rq = [("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": MEM_MIB}),
              ("PUT", "/boot-source", {"kernel_image_path": self.kernel, "boot_args": boot_args})]
        if disk:
            rq.append(("PUT", "/drives/disk", {"drive_id": "disk", "path_on_host": disk, "is_root_device": False}))
        if net:
            rq.append(("PUT", "/network-interfaces/eth0",
                       {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": MAC}))
        return rq + [("PUT", "/actions", {"action_type": "InstanceStart"})]

    def life(self, net):
        script = os.path.join(self.dir, "requests")
        with open(script, "w") as f:
            f.writelines(f"{m} {p} {json.dumps(b)}\n" for m, p, b in self.requests("", net, self.disk))
        return life(net.cmd(self.probe, "start", self.sock, script, *self.command()))

    def running(self, args, net, disk):
        if os.path.exists(self.sock):
            os.unlink(self.sock)
        cmd = self.command()
        return Running(net.cmd(*cmd) if net else RT + cmd, self.sock, self.requests(args, net, disk))

    def bench_line(self, args, net=None, disk=None, beside=None):
        with self.running(args, net, disk) as r:
            r.wait_ready()
            other = subprocess.Popen(beside, stdout=subprocess.DEVNULL) if beside else None
            try:
                return r.bench()
            finally:
                if other:
                    other.kill()
                    other.wait()


def life(cmd):
    p = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    line = p.stdout.readline()
    if not line:
        raise RuntimeError(f"{cmd}: no result")
    t = json.loads(line)
    t.update(outside_guest(t["pid"]))
    p.stdin.close()
    p.wait()
    p.stdout.close()
    return t


class Mayfly(ApiPeer):
    name = "mayfly"

    def __init__(self, work, build, path, name="mayfly"):
        self.name, self.path = name, path
        super().__init__(work, build)

    def command(self):
        return [self.path, "--api-sock", self.sock, "--level", "Off"]


class Firecracker(ApiPeer):
    name = "firecracker"
    path = os.environ.get("PEER_FIRECRACKER", "")

    def why_not(self):
        if not self.path:
            return "PEER_FIRECRACKER names no binary"
        return None if os.access(self.path, os.X_OK) else f"{self.path} cannot be executed"

    def command(self):
        return [self.path, "--api-sock", self.sock, "--no-seccomp", "--level", "Off", "--log-path", "/dev/null"]


class Qemu(Peer):
    name = "qemu"
    path = shutil.which("qemu-system-x86_64")

    def why_not(self):
        return None if self.path else "no qemu-system-x86_64"

    def command(self, args, net, disk):
        cmd = [self.path, "-M", "microvm,accel=kvm,rtc=off,pic=off,pit=off,ioapic2=off,x-option-roms=off", "-cpu", "qemu64,pni=off",
               "-m", str(MEM_MIB), "-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio",
               "-global", "virtio-mmio.force-legacy=false",
               "-kernel", self.kernel, "-append", f"ip={GUEST}/24 gw={HOST} {args}"]
        if disk:
            cmd += ["-drive", f"id=d,file={disk},format=raw,if=none", "-device", "virtio-blk-device,drive=d"]
        if net:
            cmd += ["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no",
                    "-device", f"virtio-net-device,netdev=n,mac={MAC}"]
        return cmd

    def life(self, net):
        return life(net.cmd(self.probe, "spawn", *self.command("", net, self.disk)))

    def running(self, args, net, disk):
        cmd = self.command(args, net, disk)
        return Running(net.cmd(*cmd) if net else cmd)

    def bench_line(self, args, net=None, disk=None, beside=None):
        return None  # the guest gets no interrupt from microvm's devices on PVM: starts are compared, loads are not

    net_tx = net_rx = net_ping = lambda self, *_: None


class Floor(Peer):
    name = "floor"

    def __init__(self, work, build):
        super().__init__(work, build)
        self.path = os.path.join(build, "bench", "floor")

    def life(self, net):
        if os.path.exists(self.sock):
            os.unlink(self.sock)
        t = life(RT + [self.probe, "listen", self.sock, self.path, "api", self.sock])
        b = life(RT + [self.probe, "spawn", self.path, "boot", str(MEM_MIB)])
        return {"accepts": t["accepts"], "spawn_byte": b["spawn_byte"], "rss": b["rss"], "pss": b["pss"],
                "private": b["private"]}

    def net_tx(self, size, secs):
        with Net(self.name) as net:
            out = subprocess.run(net.cmd(self.path, "tap", "tap0", str(size), str(secs)), capture_output=True,
                                 check=True)
            return json.loads(out.stdout)["pps"]

    def net_rx(self, size, secs):
        return None

    def net_pingpong(self, wait, secs):
        return None

    def net_ping(self):
        return None

    def blk(self, op, size, depth, wait, secs):
        if depth == 32 or wait == "poll":
            return None  # direct calls have no depth and nobody who waits
        out = subprocess.run(RT + [self.path, "blk", self.disk, op, str(size), str(secs)], capture_output=True, check=True)
        return json.loads(out.stdout)
