# SPDX-License-Identifier: Apache-2.0
"""Two hosts for migration: network namespaces on one bridge, a tap of the same name in each; channels by descriptor."""
import array
import itertools
import json
import os
import re
import socket
import subprocess
import threading
import time

from lib import COUNT, Monitor, Netns, run

FAULTS = itertools.count()


def api_fds(sock_path, method, path, body, fds):
    """One request whose bytes carry descriptors. (status, body)"""
    raw = json.dumps(body).encode()
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.settimeout(30)
    s.connect(sock_path)
    head = f"{method} {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    s.sendmsg([head.encode() + raw], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    data = b""
    while b"\r\n\r\n" not in data:
        d = s.recv(65536)
        if not d:
            raise AssertionError(f"no answer: {data!r}")
        data += d
    h, _, rest = data.partition(b"\r\n\r\n")
    status = int(h.split()[1])
    m = re.search(rb"content-length: *(\d+)", h, re.I)
    want = int(m[1]) if m else 0
    while len(rest) < want:
        rest += s.recv(65536)
    s.close()
    return status, json.loads(rest) if rest else None


class Host(Netns):
    """A namespace whose tap is a port of a bridge that reaches the other host and the outside probe."""

    def __init__(self, lan, index):
        self.name = f"mayfly-{os.getpid()}-{next(COUNT)}"
        self.tap = "tap0"
        self.host, self.guest, self.mac = lan.addr, "172.30.0.2", "06:00:AC:1E:00:02"
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        self.ip("tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
        self.ip("link", "add", "br0", "type", "bridge", "forward_delay", "0")
        self.ip("link", "add", "up0", "type", "veth", "peer", "name", f"h{index}", "netns", lan.name)
        for dev in ("tap0", "up0"):
            self.ip("link", "set", dev, "master", "br0")
            self.ip("link", "set", dev, "up")
        self.ip("link", "set", "br0", "up")
        lan.ip("link", "set", f"h{index}", "master", "lan")
        lan.ip("link", "set", f"h{index}", "up")


class Lan(Netns):
    """The network between the hosts; clients of the guest live here."""

    def __init__(self, hosts=2):
        self.name = f"mayfly-{os.getpid()}-{next(COUNT)}"
        self.addr = self.host = "172.30.0.1"
        self.guest = "172.30.0.2"
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "lan", "type", "bridge", "forward_delay", "0")
        self.ip("addr", "add", "172.30.0.1/24", "dev", "lan")
        self.ip("link", "set", "lan", "up")
        self.hosts = [Host(self, i) for i in range(hosts)]

    def close(self):
        for h in self.hosts:
            h.close()
        super().close()


def channels(kind=socket.AF_UNIX):
    """Two connected pairs: [(source's, target's) urgent, bulk]."""
    if kind == socket.AF_UNIX:
        return [socket.socketpair() for _ in range(2)]
    out = []
    for _ in range(2):
        srv = socket.create_server(("127.0.0.1", 0))
        a = socket.create_connection(srv.getsockname())
        b = srv.accept()[0]
        srv.close()
        for s in (a, b):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        out.append((a, b))
    return out


CH = {"urgent": "fd:0", "bulk": "fd:1"}


def request(m, what, fds, **body):
    status, out = api_fds(m.sock, "PUT", "/migration/" + what, {"channels": CH, **body},
                          [s.fileno() for s in fds])
    if status >= 400:
        raise AssertionError(f"{what}: {out}")


def begin(src, dst, pairs=None, arbiter=None, receive=None, **send):
    pairs = pairs or channels()
    own = {"arbiter": arbiter} if arbiter else {"allow_unarbitrated": True}
    request(dst, "receive", [p[1] for p in pairs], **own, **(receive or {}))
    send.setdefault("mode", "precopy")
    request(src, "send", [p[0] for p in pairs], **own, **send)
    for p in pairs:
        p[0].close(), p[1].close()


def wait(m, states=("done",), seconds=20, stage=None):
    end = time.monotonic() + seconds
    while True:
        st = m.get("/migration")
        if st["state"] in states and (stage is None or st["stage"] == stage):
            return st
        if st["state"] in ("failed", "cancelled", "lost") or time.monotonic() > end:
            raise AssertionError(f"migration: {st}\n{m.err()} {m.out()[-2000:]}")
        time.sleep(0.002)


class Wire:
    """Channels through our hands: bytes are pumped between two pairs, and can be damaged, stopped or cut."""

    def __init__(self):
        self.pairs, self.inner = [], []
        self.flip_at = self.count = 0
        self.stalled = threading.Event()
        self.cutting = False
        for _ in range(2):
            (s, a), (b, t) = socket.socketpair(), socket.socketpair()
            self.pairs.append((s, t))
            self.inner += [a, b]
            for x, y in ((a, b), (b, a)):
                threading.Thread(target=self.pump, args=(x, y), daemon=True).start()

    def pump(self, x, y):
        try:
            while data := x.recv(65536):
                while self.stalled.is_set():
                    time.sleep(0.01)
                if self.flip_at and self.count < self.flip_at <= self.count + len(data):
                    data = bytearray(data)
                    data[self.flip_at - self.count - 1] ^= 4
                self.count += len(data)
                self.forward(y, data)
        except OSError:
            pass
        for s in (x, y):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def forward(self, y, data):
        y.sendall(data)

    def cut(self):
        for s in self.inner:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.cut()
        for s in self.inner:
            s.close()
