# SPDX-License-Identifier: Apache-2.0
"""What bench-coldstart needs of the host: namespaces, a recorded guest, counters of memory and wake-ups."""
import http.client
import json
import os
import re
import socket
import subprocess
import time

HOST, GUEST, MAC = "172.30.0.1", "172.30.0.2", "06:00:AC:1E:00:02"


def run(*cmd):
    p = subprocess.run(list(map(str, cmd)), capture_output=True, text=True)
    if p.returncode:
        raise RuntimeError(f"{' '.join(map(str, cmd))}: {p.returncode}: {p.stdout[-1500:]}{p.stderr[-1500:]}")
    return p.stdout


class Names:
    """Network namespaces PREFIX0 .. with a tap that knows the guest's MAC."""

    def __init__(self, ctl, n):
        self.ctl, self.n, self.want, self.grown = ctl, 0, n, 0
        self.prefix = f"cold{os.getpid()}-"

    def __enter__(self):
        self.grow(self.want)
        return self

    def grow(self, n):
        self.grown = max(n - self.n, 0)
        # The whole range is made by the tool at once; what is there already is taken away first.
        if not self.grown:
            return
        if self.n:
            self.remove()
        self.grown = n
        run(self.ctl, "netns", "make", "--prefix", self.prefix, "-n", n, "--guest", GUEST + "/24", "--guest-mac", MAC)
        self.n = n

    def remove(self):
        run(self.ctl, "netns", "remove", "--prefix", self.prefix, "-n", self.n)

    def __exit__(self, *exc):
        self.remove()


class UnixHTTP(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def api(sock, method, path, body):
    """Seconds until the answer."""
    c = UnixHTTP(sock)
    c.connect()
    t = time.perf_counter()
    c.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
    r = c.getresponse()
    text = r.read()
    took = time.perf_counter() - t
    c.close()
    if r.status >= 300:
        raise RuntimeError(f"{method} {path}: {r.status} {text!r}")
    return took


def spawned(b, cmd):
    return subprocess.Popen(["ip", "netns", "exec", b.names.prefix + "0", *cmd], stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def asked(b, touch):
    return guest(b, f"touch?mib={touch}" if touch else "counter")


def guest(b, path):
    return run("ip", "netns", "exec", b.names.prefix + "0", "curl", "-sS", "--fail", "--retry", "50",
               "--retry-connrefused", "--retry-delay", "0", "--connect-timeout", "0.2", "--retry-all-errors",
               f"http://{GUEST}/{path}")


def create(sock, path, **more):
    """Seconds that the API took to make a snapshot."""
    for f in (path + ".state", path + ".mem"):
        if os.path.exists(f):
            os.unlink(f)
    return api(sock, "PUT", "/snapshot/create", {"snapshot_path": path + ".state", "mem_file_path": path + ".mem", **more})


class restored:
    """A clone of a snapshot that answered; ends with the block."""

    def __init__(self, b, snap, touch=0, working_set=None):
        self.b, self.snap, self.touch, self.working_set = b, snap, touch, working_set

    def __enter__(self):
        b = self.b
        self.sock, cow = os.path.join(b.fast, "restored.sock"), os.path.join(b.fast, "restored.cow")
        open(cow, "w").close()
        load = {"snapshot_path": self.snap + ".state", "resume_vm": True,
                "mem_backend": {"backend_type": "File", "backend_path": self.snap + ".mem"},
                "drive_overrides": [{"drive_id": "disk", "cow_path": cow}]}
        if self.working_set:
            load["working_set_path"] = self.working_set
        self.p = spawned(b, [b.mayfly, "--api-sock", self.sock, "--level", "Off"])
        while True:
            try:
                api(self.sock, "PUT", "/snapshot/load", load)
                break
            except OSError:
                time.sleep(0.005)
        asked(b, self.touch)
        return self

    def record(self, path):
        api(self.sock, "PATCH", "/vm", {"state": "Paused"})
        api(self.sock, "PUT", "/snapshot/working-set", {"working_set_path": path})

    def __exit__(self, *exc):
        self.p.kill()
        self.p.wait()
        time.sleep(0.1)


class recorded:
    """A booted guest that answered and is paused, of either monitor; ends with the block."""

    def __init__(self, b, peer, binary, mem, touch=0, huge=False, pause=True):
        self.pause = pause
        self.b, self.peer, self.binary, self.mem, self.touch, self.huge = b, peer, binary, mem, touch, huge

    def __enter__(self):
        b = self.b
        self.sock = os.path.join(b.fast, "record.sock")
        self.disk = os.path.join(b.work, f"{self.peer}.img")
        if os.path.exists(self.sock):
            os.unlink(self.sock)
        if not os.path.exists(self.disk):
            with open(self.disk, "wb") as f:
                f.write(os.urandom(16 << 20))
        cmd = [self.binary, "--api-sock", self.sock, "--level", "Off"]
        cmd += ["--no-seccomp", "--log-path", "/dev/null"] if self.peer == "firecracker" else []
        self.p = spawned(b, cmd)
        machine = {"vcpu_count": 1, "mem_size_mib": self.mem}
        if self.huge:
            machine["huge_pages"] = "Transparent"
        while True:
            try:
                api(self.sock, "PUT", "/machine-config", machine)
                break
            except OSError:
                time.sleep(0.005)
        api(self.sock, "PUT", "/boot-source", {"kernel_image_path": b.kernel, "boot_args": f"ip={GUEST}/24 gw={HOST}"})
        api(self.sock, "PUT", "/drives/disk", {"drive_id": "disk", "path_on_host": self.disk, "is_root_device": False})
        api(self.sock, "PUT", "/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "tap0",
                                                            "guest_mac": MAC})
        api(self.sock, "PUT", "/actions", {"action_type": "InstanceStart"})
        asked(b, self.touch)
        if self.pause:
            api(self.sock, "PATCH", "/vm", {"state": "Paused"})
        return self

    def snapshot(self, path):
        return create(self.sock, path)

    def __exit__(self, *exc):
        self.p.kill()
        self.p.wait()
        time.sleep(0.1)  # its ring lets go of the tap and the disk's lock


def drop_cache(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def meminfo():
    with open("/proc/meminfo") as f:
        return {m[1]: int(m[2]) for m in re.finditer(r"^(\w+):\s+(\d+) kB$", f.read(), re.M)}


def pss_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return int(re.search(r"^Pss:\s+(\d+)", f.read(), re.M)[1])


def own_kib(pid):
    """RSS and PSS of the monitor alone: mappings as large as a guest's memory and those of a memory file left out."""
    rss = pss = 0
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            m = re.match(r"([0-9a-f]+)-([0-9a-f]+) .*", line)
            if m:
                mine = int(m[2], 16) - int(m[1], 16) < 16 << 20 and not line.rstrip().endswith(".mem")
            elif mine and line.startswith("Rss:"):
                rss += int(line.split()[1])
            elif mine and line.startswith("Pss:"):
                pss += int(line.split()[1])
    return rss, pss


def switches(pids):
    """How often the monitors' threads gave up a CPU of their own will: each time after a wake-up."""
    n = 0
    for pid in pids:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/status") as f:
                n += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", f.read(), re.M)[1])
    return n


def monitors(pids):
    return [p for p in pids if os.path.exists(f"/proc/{p}")]
