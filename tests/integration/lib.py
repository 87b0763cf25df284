# SPDX-License-Identifier: Apache-2.0
"""Drives the real binary on real KVM: monitors, their API, network namespaces with taps, guest HTTP."""
import ctypes
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

BUILD = os.environ.get("MAYFLY_BUILD", os.path.join(os.path.dirname(__file__), "..", "..", "build"))
BUILD = os.path.abspath(BUILD)
MAYFLY = os.path.join(BUILD, "mayfly")
# Guests are the same whatever the monitor was built with.
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
GUESTS = os.path.join(ROOT, "build", "guests")
SANITIZED = re.search(r"address|thread|undefined", os.path.basename(BUILD)) is not None
LIBC = ctypes.CDLL(None, use_errno=True)
COUNT = itertools.count(1)
CLONE_NEWNET = 0x40000000


def need_kvm():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        raise unittest.SkipTest("no access to /dev/kvm") from e


def need_root():
    if os.geteuid() != 0:
        raise unittest.SkipTest("needs root (network namespaces and taps)")


def guest(name="function"):
    return os.path.join(GUESTS, name + ".elf")


class UnixHTTP(http.client.HTTPConnection):
    def __init__(self, path, timeout=30):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class ApiError(Exception):
    def __init__(self, status, body):
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


class Netns:
    """A network namespace with one tap, host side 172.30.N.1/24, guest side .2."""

    def __init__(self, tap="tap0", taps=1):
        self.name = f"mayfly-{os.getpid()}-{next(COUNT)}"
        self.tap = tap
        self.host, self.guest, self.mac = "172.30.0.1", "172.30.0.2", "06:00:AC:1E:00:02"
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        for i in range(taps):
            name = tap if i == 0 else f"tap{i}"
            self.ip("tuntap", "add", name, "mode", "tap", "vnet_hdr")
            self.ip("addr", "add", f"172.30.{i}.1/24", "dev", name)
            self.ip("link", "set", name, "up")

    def ip(self, *args):
        run("ip", "-n", self.name, *args)

    def exec(self, *args, **kw):
        return subprocess.run(["ip", "netns", "exec", self.name, *args], capture_output=True, text=True,
                              **kw)

    def socket(self, *args):
        """A socket made inside the namespace: setns moves one thread for the time it takes."""
        out = []

        def make():
            with open(f"/run/netns/{self.name}") as f:
                if LIBC.setns(f.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            out.append(socket.socket(*args))
        t = threading.Thread(target=make)
        t.start()
        t.join()
        return out[0]

    def connect(self, port=80, timeout=10, host=None):
        s = self.socket(socket.AF_INET, socket.SOCK_STREAM)
        s.settimeout(timeout)
        s.connect((host or self.guest, port))
        return s

    def http(self, method, path, body=None, timeout=10, retry=5.0):
        """One request to the guest; retried while it is not up yet."""
        end = time.monotonic() + retry
        while True:
            c = http.client.HTTPConnection(self.guest, timeout=timeout)
            try:
                c.sock = self.connect(timeout=min(timeout, 2) if retry else timeout)
                c.sock.settimeout(timeout)
                c.request(method, path, body)
                r = c.getresponse()
                return r.status, r.read()
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
            finally:
                c.close()

    def close(self):
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)


def run(*args):
    p = subprocess.run(args, capture_output=True, text=True)
    if p.returncode:
        raise RuntimeError(f"{' '.join(args)}: {p.stderr.strip()}")
    return p.stdout


class Monitor:
    """One mayfly process. Use as a context manager; output is collected."""
    log_path = ""

    def __init__(self, *args, netns=None, stdin=subprocess.DEVNULL, binary=None, api=True, env=None,
                 pass_fds=(), preexec_fn=None, log=True, stdout=None):
        self.dir = tempfile.mkdtemp(prefix="mayfly-test-")
        self.sock = os.path.join(self.dir, "api.sock")
        cmd = ([] if netns is None else ["ip", "netns", "exec", netns.name])
        cmd += [binary or MAYFLY] + (["--api-sock", self.sock] if api else [])
        # The log beside the console, so that lines of the two do not mix; where paths are restricted they share.
        self.log_path = os.path.join(self.dir, "log")
        if log and binary is None and not {"--log-path", "--allow-dir"} & set(args):
            cmd += ["--log-path", self.log_path]
        cmd += args
        self.out_path = os.path.join(self.dir, "out")
        self.err_path = os.path.join(self.dir, "err")
        with open(self.out_path, "wb") as o, open(self.err_path, "wb") as e:
            self.p = subprocess.Popen(cmd, stdin=stdin, stdout=stdout or o, stderr=e, env=env, pass_fds=pass_fds,
                                      preexec_fn=preexec_fn)
        if api:
            self.wait_for(lambda: os.path.exists(self.sock) and self.try_connect(), 10, "API socket")

    def try_connect(self):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            s.connect(self.sock)
            return True
        except OSError:
            return False
        finally:
            s.close()

    def wait_for(self, cond, seconds, what):
        end = time.monotonic() + seconds
        while not cond():
            if self.p.poll() is not None and not cond():
                raise AssertionError(f"monitor ended ({self.p.returncode}) while waiting for {what}: "
                                     f"{self.err()} {self.out()[-500:]}")
            if time.monotonic() > end:
                raise AssertionError(f"no {what} within {seconds} s: {self.out()[-2000:]} {self.err()}")
            time.sleep(0.005)

    def console(self):
        with open(self.out_path, errors="replace") as f:
            return f.read()

    def log(self):
        if not os.path.exists(self.log_path):
            return ""
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def out(self):
        return self.console() + self.log()

    def err(self):
        with open(self.err_path, errors="replace") as f:
            return f.read()

    def wait_out(self, text, seconds=10):
        self.wait_for(lambda: text in self.out(), seconds, f"output {text!r}")

    def api(self, method, path, body=None, check=True):
        """(status, parsed body). Raises ApiError on 4xx unless check is False."""
        c = UnixHTTP(self.sock)
        try:
            c.request(method, path, None if body is None else json.dumps(body),
                      {"Content-Type": "application/json"} if body is not None else {})
            r = c.getresponse()
            raw = r.read()
        finally:
            c.close()
        data = json.loads(raw) if raw else None
        if check and r.status >= 400:
            raise ApiError(r.status, data)
        return r.status, data

    def put(self, path, **body):
        return self.api("PUT", path, body)

    def patch(self, path, **body):
        return self.api("PATCH", path, body)

    def get(self, path):
        return self.api("GET", path)[1]

    def state(self):
        return self.get("/")["state"]

    def boot(self, args="", kernel=None, netns=None, drives=(), vcpus=1, mem=128, mac=None, net=None,
             start=True):
        """Configures the in-tree guest and starts it."""
        if (vcpus, mem) != (1, 128):
            self.put("/machine-config", vcpu_count=vcpus, mem_size_mib=mem)
        if netns is not None:
            args = f"ip={netns.guest}/24 gw={netns.host} {args}"
        self.put("/boot-source", kernel_image_path=kernel or guest(), boot_args=args)
        for i, d in enumerate(drives):
            d = {"path_on_host": d} if isinstance(d, str) else dict(d)
            d.setdefault("drive_id", f"disk{i}")
            d.setdefault("is_root_device", False)
            self.api("PUT", f"/drives/{d['drive_id']}", d)
        if netns is not None:
            n = {"iface_id": "eth0", "host_dev_name": netns.tap, "guest_mac": mac or netns.mac}
            n.update(net or {})
            self.api("PUT", "/network-interfaces/eth0", n)
        if start:
            self.put("/actions", action_type="InstanceStart")

    def wait_exit(self, seconds=10):
        try:
            return self.p.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"monitor did not end within {seconds} s: {self.out()[-1000:]}") from None

    def kill(self, sig=signal.SIGKILL):
        self.p.send_signal(sig)
        return self.p.wait(10)

    def close(self):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait(10)
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class GuestCase(unittest.TestCase):
    """A test that boots guests: skipped, with the reason, where the host cannot."""

    @classmethod
    def setUpClass(cls):
        need_kvm()
        need_root()

    def netns(self, **kw):
        ns = Netns(**kw)
        self.addCleanup(ns.close)
        return ns

    def monitor(self, *args, **kw):
        m = Monitor(*args, **kw)
        self.addCleanup(m.close)
        return m

    def disk(self, mib=16, fill=None):
        f = tempfile.NamedTemporaryFile(prefix="mayfly-disk-", delete=False)
        self.addCleanup(lambda: os.path.exists(f.name) and os.unlink(f.name))
        with f:
            if fill:
                f.write(fill)
            f.truncate(int(mib * 1024 * 1024))
        return f.name
