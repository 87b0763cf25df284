# SPDX-License-Identifier: Apache-2.0
"""What the suite's tests share: a small API client, a guest with its console, taps, and the assets' places."""
import atexit
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
ASSETS = os.environ.get("GUEST_ASSETS", os.path.join(TOP, "build", "nested", "assets"))
MAYFLY = os.environ.get("MAYFLY", os.path.join(TOP, "build", "mayfly"))
PEER = os.environ.get("PEER_FIRECRACKER", "")
ARGS = "console=ttyS0 reboot=k panic=1 loglevel=4"
if os.environ.get("MAYFLY_LANE"):
    # QEMU's emulation does not intercept a guest's XSETBV: KVM there would run the guest with an XCR0 other than the one
    # it set, and its first return from a signal handler would fault. On real hardware nothing is taken away.
    ARGS += " noxsave"
WORK = tempfile.mkdtemp(prefix="suite.")
atexit.register(shutil.rmtree, WORK, True)


# Where time counts instructions (lane.py --icount), QEMU 7.2 delivers an interrupt that KVM injects once more if its slice
# ends before the guest leaves for any other reason, whether or not the guest takes interrupts: Debian's 6.1 met itself in its
# timer's handler, with the run queue locked. A guest that ends its interrupts by leaving has not yet
# locked anything then. For every monitor alike.
NO_PV_EOI = {"cpuid_modifiers": [{"leaf": "0x40000001", "subleaf": "0x0", "flags": 0, "modifiers": [
    {"register": "eax", "bitmap": "0b" + "x" * 25 + "0" + "x" * 6}]}]}


def skip(reason):
    print(reason, flush=True)
    sys.exit(77)


def note(text):
    """A measured figure; the runner shows it."""
    print("note: " + text, flush=True)


def goal(what, value, bound):
    """A figure that has a goal: at most bound."""
    note(f"{what}: {value:.2f}, goal at most {bound}: {'met' if value <= bound else 'MISSED'}")


def check(ok, what):
    if not ok:
        raise AssertionError(what)


def run_tests(kind, *only):
    """The unit or integration tests whose names hold one of these words; no skip but those of tests/nested/skips."""
    subprocess.run([sys.executable, "tests/run.py", "--skips", "tests/nested/skips", "--only", ",".join(only), kind],
                   cwd=TOP, check=True)


def asset(*path):
    """A file of the assets; a test that needs one that was not built is skipped."""
    full = os.path.join(ASSETS, *path)
    if not os.path.exists(full):
        skip(f"{os.path.join(*path)} was not built")
    return full


def linux(version="6.12", form="vmlinux"):
    """Our own kernel (make guest-kernel)."""
    return asset(f"microvm-{version}", form)


def script_disk(text):
    """A drive that the guests' init runs as a shell script."""
    fd, path = tempfile.mkstemp(dir=WORK)
    data = ("#!mayfly\n" + text + "\n").encode()
    os.write(fd, data + b"\n" * (-len(data) % 4096))
    os.close(fd)
    return path


def disk(mib):
    fd, path = tempfile.mkstemp(dir=WORK)
    os.truncate(fd, mib << 20)
    os.close(fd)
    return path


def copy_of(path):
    """A writable copy of an asset, on the same disk as the work folder."""
    out = os.path.join(WORK, f"copy{len(os.listdir(WORK))}")
    subprocess.run(["cp", "--sparse=always", path, out], check=True)
    return out


def listen(address, handler):
    """Gives each connection to the handler, one after the other, from a thread of its own. The port."""
    s = socket.create_server((address, 0))

    def loop():
        while True:
            c, _ = s.accept()
            with c:
                handler(c)
    threading.Thread(target=loop, daemon=True).start()
    return s.getsockname()[1]


def tap(name, address=None):
    run("ip", "tuntap", "add", name, "mode", "tap", "vnet_hdr")
    atexit.register(subprocess.run, ["ip", "link", "del", name], stderr=subprocess.DEVNULL)
    if address:
        run("ip", "addr", "add", address, "dev", name)
    run("ip", "link", "set", name, "up")
    return name


def run(*argv, **kw):
    return subprocess.run(argv, check=True, text=True, stdout=subprocess.PIPE, **kw).stdout


class ApiError(Exception):
    monitor = None      # the one that refused


class Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Monitor:
    """One monitor process and its API socket. Its standard output is the guest's console."""

    def __init__(self, binary=None, args=()):
        self.binary = binary or MAYFLY
        if not os.access(self.binary, os.X_OK):
            skip(f"no monitor at {self.binary}")
        self.folder = tempfile.mkdtemp(dir=WORK)
        self.sock = os.path.join(self.folder, "api.sock")
        self.log = os.path.join(self.folder, "log")
        self.console_path = os.path.join(self.folder, "console")
        open(self.log, "w").close()
        self.peer = self.binary == PEER
        argv = [self.binary, "--api-sock", self.sock, *args]
        if self.peer:
            argv += ["--no-seccomp", "--level", "Off", "--log-path", "/dev/null"]
        # The serial port's input is standard input: a pipe kept open and silent.
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=open(self.console_path, "wb"),
                                        stderr=open(self.log, "wb"))
        atexit.register(self.close)
        deadline = time.monotonic() + 10
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(self.sock)
                return
            except OSError:
                check(self.process.poll() is None, f"monitor ended at once: {self.stderr()}")
                check(time.monotonic() < deadline, "no API socket after 10 s")
                time.sleep(0.002)

    def call(self, method, path, body=None, timeout=30):
        c = Connection(self.sock, timeout)
        try:
            c.request(method, path, json.dumps(body) if body is not None else None,
                      {"Content-Type": "application/json"} if body is not None else {})
            r = c.getresponse()
            text = r.read()
        finally:
            c.close()
        answer = json.loads(text) if text else None
        if r.status >= 300:
            e = ApiError(f"{method} {path}: {r.status} {answer}")
            e.monitor = self
            raise e
        return answer

    def put(self, path, **body):
        return self.call("PUT", path, body)

    def patch(self, path, **body):
        return self.call("PATCH", path, body)

    def get(self, path):
        return self.call("GET", path)

    def console(self):
        with open(self.console_path, errors="replace") as f:
            return f.read().replace("\r", "")

    def stderr(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def expect(self, pattern, timeout=60, start=0):
        """Waits until the console matches, returns the match; the monitor's end is a failure."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self.process.poll() is not None
            text = self.console()
            found = re.compile(pattern, re.M).search(text[:text.rfind("\n") + 1], start)    # whole lines only
            if found:
                return found
            check(not ended, f"monitor ended ({self.process.returncode}) before {pattern!r}\n{self.tail()}")
            check(time.monotonic() < deadline, f"no {pattern!r} within {timeout} s\n{self.tail()}")
            time.sleep(0.02)

    def tail(self):
        return f"--- console\n{self.console()[-3000:]}\n--- log\n{self.stderr()[-1500:]}"

    def wait(self, timeout=60):
        """The monitor's exit status once the guest has ended."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the monitor did not end within {timeout} s\n{self.tail()}") from None

    def rss_kib(self, other_than_guest=True):
        """Resident memory, without the guest's own: mappings of 16 MiB and more. What the kernel split, since a part of it was
        advised otherwise (a loaded kernel on huge pages), is one mapping."""
        runs = []   # end, permissions, KiB of address space, KiB resident
        with open(f"/proc/{self.process.pid}/smaps") as f:
            for line in f:
                m = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)", line)
                if m:
                    start, end = int(m[1], 16), int(m[2], 16)
                    if runs and runs[-1][0] == start and runs[-1][1] == m[3] and m[4] == "0":
                        runs[-1][0] = end
                        runs[-1][2] += (end - start) >> 10
                    else:
                        runs.append([end, m[3], (end - start) >> 10, 0])
                elif line.startswith("Rss:"):
                    runs[-1][3] += int(line.split()[1])
        return sum(rss for _, _, size, rss in runs if not (other_than_guest and size >= 16 << 10))

    def close(self):
        # Asked first: a killed process gives its taps and locks back only when the kernel has torn down its ring.
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.process.stdin.close()


class Guest(Monitor):
    """A configured Linux guest. script: shell text its init runs; root: an image to be its root drive."""

    def __init__(self, kernel, initrd=None, args="", vcpus=1, mem=256, root=None, script=None, drives=(), nets=(),
                 base_args=ARGS, binary=None, monitor_args=(), root_ro=False, machine=None):
        super().__init__(binary, monitor_args)
        if self.peer and "mayfly.then" not in args:
            args += " mayfly.then=reboot"       # Firecracker does not end when its guest powers off
        self.put("/machine-config", vcpu_count=vcpus, mem_size_mib=mem, **(machine or {}))
        if os.environ.get("LANE_ICOUNT"):
            self.put("/cpu-config", **NO_PV_EOI)
        boot = {"kernel_image_path": kernel, "boot_args": f"{base_args} {args}".strip()}
        if initrd:
            boot["initrd_path"] = initrd
        self.put("/boot-source", **boot)
        if root:
            self.put("/drives/root", drive_id="root", path_on_host=root, is_root_device=True, is_read_only=root_ro)
        for i, path in enumerate(drives):
            self.put(f"/drives/d{i}", drive_id=f"d{i}", path_on_host=path, is_root_device=False, is_read_only=False)
        if script is not None:
            self.put("/drives/script", drive_id="script", path_on_host=script_disk(script), is_root_device=False,
                     is_read_only=True)
        for i, name in enumerate(nets):
            self.put(f"/network-interfaces/n{i}", iface_id=f"n{i}", host_dev_name=name, guest_mac=f"06:00:00:00:00:{i + 1:02x}")

    def start(self):
        self.started = time.monotonic()
        self.put("/actions", action_type="InstanceStart")
        return self

    def up(self, timeout=60):
        return self.expect(r"^init: up after .*", timeout)

    def first_line(self, asleep=0):
        """Seconds from InstanceStart to the first line of init. To look for it takes a fifth of the only processor's time:
        who knows for how long it will not be there sleeps first. None: it came while we slept."""
        time.sleep(max(self.started + asleep - time.monotonic(), 0))
        if asleep and b"init: first line" in open(self.console_path, "rb").read():
            return None
        while b"init: first line" not in open(self.console_path, "rb").read():
            check(self.process.poll() is None and time.monotonic() < self.started + 60, f"no init\n{self.tail()}")
            time.sleep(0.001)
        return time.monotonic() - self.started

    def script_passed(self, timeout=120):
        found = self.expect(r"^script: exit (\d+)", timeout)
        check(found[1] == "0", f"the guest's script failed\n{self.tail()}")
        return self.console()


def no_faults(text, name="", but=None):
    """Of the kernel's complaints that no healthy run prints. `but`: one that is right."""
    bad = [line for line in text.splitlines()
           if re.search(r"soft lockup|hard LOCKUP|rcu.*stall|BUG:|Oops|WARNING:|^fault: |clocksource.*unstable|hung_task", line)
           and not (but and but in line)]
    check(not bad, f"{name}: {bad}" if name else bad)
