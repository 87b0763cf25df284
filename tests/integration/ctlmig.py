# SPDX-License-Identifier: Apache-2.0
"""Two hosts (namespaces) with a network of their own for migrations, and mayflyctl on both."""
import json
import os
import re
import signal
import subprocess
import threading

from lib import BUILD, Monitor, run
from miglib import Lan

CTL = os.path.join(BUILD, "mayflyctl")
PORT = 7000


class Pair(Lan):
    """Hosts 10.77.0.1 and 10.77.0.2, joined by a veth beside the guests' network."""

    def __init__(self, taps=1):
        super().__init__()
        a, b = self.hosts
        run("ip", "-n", a.name, "link", "add", "mig0", "type", "veth", "peer", "name", "mig0", "netns", b.name)
        for i, h in enumerate(self.hosts):
            h.ip("addr", "add", f"10.77.0.{i + 1}/24", "dev", "mig0")
            h.ip("link", "set", "mig0", "up")
            for t in range(1, taps):
                h.ip("tuntap", "add", f"tap{t}", "mode", "tap", "vnet_hdr")
                h.ip("link", "set", f"tap{t}", "master", "br0")
                h.ip("link", "set", f"tap{t}", "up")

    def link(self, up):
        self.hosts[0].ip("link", "set", "mig0", "up" if up else "down")


def address(index, port=PORT):
    return f"10.77.0.{index + 1}:{port}"


class Ctl:
    """mayflyctl in a namespace, at work; what it says is collected."""

    def __init__(self, netns, *args):
        cmd = ["ip", "netns", "exec", netns.name] if netns else []
        self.p = subprocess.Popen([*cmd, CTL, *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True)
        self.err, self.out, self.said = "", "", threading.Condition()
        self.threads = [threading.Thread(target=self.read, args=(f, n), daemon=True)
                        for f, n in ((self.p.stdout, "out"), (self.p.stderr, "err"))]
        for t in self.threads:
            t.start()

    def read(self, f, name):
        for line in f:
            with self.said:
                setattr(self, name, getattr(self, name) + line)
                self.said.notify_all()

    def wait_for(self, text, seconds=20):
        """Until it said that, on either stream."""
        with self.said:
            if not self.said.wait_for(lambda: text in self.out + self.err or self.p.poll() is not None, seconds) or \
                    text not in self.out + self.err:
                raise AssertionError(f"no {text!r}: {self.p.args} {self.p.poll()}: {self.out}{self.err}")

    def end(self, seconds=60):
        """(status, stdout, stderr)"""
        try:
            status = self.p.wait(seconds)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"{self.p.args} does not end: {self.out}{self.err}") from None
        for t in self.threads:
            t.join(5)
        return status, self.out, self.err

    def stop(self, sig=signal.SIGTERM):
        self.p.send_signal(sig)
        return self.end()

    def close(self):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()


class Arrived(Monitor):
    """A monitor that mayflyctl receive started."""

    def __init__(self, sock, pid):
        self.sock, self.pid = sock, pid

    def out(self):
        return ""

    err = out

    def close(self):
        try:
            with open(f"/proc/{self.pid}/cmdline", "rb") as f:
                if self.sock.encode() in f.read():
                    os.kill(self.pid, signal.SIGKILL)
        except OSError:
            pass


def results(out):
    """The lines of JSON that receive --json printed, by name."""
    return {r["name"]: r for r in map(json.loads, filter(None, out.splitlines()))}


def pids_beneath(folder):
    """Monitors whose socket lies there."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                m = re.search(rb"--api-sock\0([^\0]+)", f.read())
        except OSError:
            continue
        if m and m[1].decode().startswith(folder + "/"):
            found[m[1].decode()] = int(pid)
    return found
