#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A running Debian guest moves between two hosts (network namespaces, each an NFS client of its own) while it is pinged,
fetches over HTTP and writes to its disk: before the switch, and by pulling. Its disks and the arbiter's record lie on
NFS; the channels are TCP under kernel TLS, set up before the monitors get them."""
# timeout: 600
import array
import ctypes
import http.server
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

from lib import MAYFLY, WORK, Guest, Monitor, asset, check, linux, no_faults, note, run, skip

SHARED, EXPORT = "/mnt/shared", "/srv/shared"
SERVER, GUEST = "172.30.0.1", "172.30.0.2"
CHANNELS = {"urgent": "fd:0", "bulk": "fd:1"}
LIBC = ctypes.CDLL(None, use_errno=True)

if not os.environ.get("MAYFLY_LANE"):
    skip("loads modules, serves NFS and mounts it: in the lane only")
if not os.path.exists("/dev/userfaultfd"):
    skip("this kernel has no /dev/userfaultfd")


# ---- two hosts and the server that they share ----

class Host:
    """A namespace whose bridge reaches the server, the other host, and by tap0 its guest."""

    def __init__(self, name, address):
        self.name, self.address = name, address
        for line in (f"netns add {name}", f"-n {name} link set lo up",
                     f"-n {name} link add br0 type bridge forward_delay 0",
                     f"-n {name} addr add {address}/24 dev br0", f"-n {name} tuntap add tap0 mode tap vnet_hdr",
                     f"-n {name} link add up0 type veth peer name {name} netns 1",
                     f"-n {name} link set tap0 master br0", f"-n {name} link set up0 master br0",
                     f"-n {name} link set tap0 up", f"-n {name} link set up0 up", f"-n {name} link set br0 up",
                     f"link set {name} master lan0", f"link set {name} up"):
            run("ip", *line.split())
        # A name of its own for each client: else the server takes the second for a reboot of the first.
        self.monitor = os.path.join(WORK, "mayfly-" + name)
        with open(self.monitor, "w") as f:
            f.write(f"""#!/bin/sh
exec ip netns exec {name} sh -c '
    echo {name} >/sys/fs/nfs/net/nfs_client/identifier &&
    mount -t nfs -o vers=4.2,lookupcache=none,noac {SERVER}:{EXPORT} {SHARED} && exec {MAYFLY} "$@"' sh "$@"
""")
        os.chmod(self.monitor, 0o755)

    def socket(self):
        """A TCP socket of this namespace: setns moves one thread for the time it takes."""
        out = []

        def make():
            with open(f"/run/netns/{self.name}") as f:
                check(LIBC.setns(f.fileno(), 0x40000000) == 0, "setns")
            out.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        t = threading.Thread(target=make)
        t.start()
        t.join()
        return out[0]

    def tls(self):
        text = run("ip", "netns", "exec", self.name, "cat", "/proc/net/tls_stat")
        return {k: int(v) for k, v in re.findall(r"^(\w+)\s+(\d+)$", text, re.M)}


def serve_nfs():
    for folder in (EXPORT, SHARED):
        os.makedirs(folder, exist_ok=True)
    if not os.path.exists("/proc/fs/nfsd/threads"):
        run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    run("exportfs", "-o", "rw,sync,no_root_squash,no_subtree_check,fsid=7", f"172.30.0.0/24:{EXPORT}")
    run("rpc.mountd", "-N", "3")
    run("rpc.nfsd", "-N", "3", "-U", "--grace-time", "10", "--lease-time", "10", "4")
    with open("/proc/fs/nfsd/v4_end_grace", "w") as f:
        f.write("Y")  # nobody had a lock before


# ---- channels: TCP from host to host, kernel TLS on both ends of both ----

def key():
    """AES-128-GCM of TLS 1.2 as the kernel takes it: nonce, key, salt, number of the first record."""
    return struct.pack("<HH", 0x0303, 51) + os.urandom(8) + os.urandom(16) + os.urandom(4) + bytes(8)


def under_tls(a, b):
    there, back = key(), key()
    for s, tx, rx in ((a, there, back), (b, back, there)):
        s.setsockopt(socket.IPPROTO_TCP, 31, b"tls")     # TCP_ULP
        s.setsockopt(282, 1, tx)                         # SOL_TLS: TLS_TX, TLS_RX
        s.setsockopt(282, 2, rx)


def channels(src, dst):
    out = []
    for _ in range(2):
        srv = dst.socket()
        srv.bind((dst.address, 0))
        srv.listen(1)
        a = src.socket()
        a.connect(srv.getsockname())
        b = srv.accept()[0]
        srv.close()
        for s in (a, b):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        under_tls(a, b)
        out.append((a, b))
    return out


def request(m, what, fds, **body):
    raw = json.dumps({"channels": CHANNELS, "arbiter": f"{SHARED}/arbiter", **body}).encode()
    head = f"PUT /migration/{what} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(m.sock)
        s.sendmsg([head.encode() + raw], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        answer = s.recv(65536).decode()
    check(answer.split()[1].startswith("2"), f"{what}: {answer}")


def done(m, timeout=120):
    deadline = time.monotonic() + timeout
    while (st := m.get("/migration"))["state"] != "done":
        check(st["state"] == "active" and time.monotonic() < deadline, f"migration: {st}\n{m.tail()}")
        time.sleep(0.05)
    return st


# ---- what goes on meanwhile ----

class Outside(http.server.BaseHTTPRequestHandler):
    """Tells the guest whether to go on."""
    word, hits = "go", 0

    def do_GET(self):
        Outside.hits += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(Outside.word.encode())

    def log_message(self, *_):
        pass


class Ping:
    def __init__(self):
        self.out = open(os.path.join(WORK, "ping"), "w+")
        self.p = subprocess.Popen(["ping", "-D", "-i", "0.1", GUEST], stdout=self.out)

    def answers(self):
        self.out.flush()
        with open(self.out.name) as f:
            return [float(x) for x in re.findall(r"^\[([\d.]+)\] .* icmp_seq=\d+ ttl", f.read(), re.M)]

    def more(self, n, timeout=60):
        was, deadline = len(self.answers()), time.monotonic() + timeout
        while len(self.answers()) < was + n:
            check(time.monotonic() < deadline, "ping is not answered any more")
            time.sleep(0.1)

    def gap(self, start, end):
        at = [t for t in self.answers() if start - 1 <= t <= end + 5]
        return max(b - a for a, b in zip(at, at[1:]))

    def end(self):
        self.p.send_signal(signal.SIGINT)
        self.p.wait(10)
        self.out.seek(0)
        m = re.search(r"(\d+) packets transmitted, (\d+) received", self.out.read())
        return int(m[1]), int(m[2])


run("modprobe", "-a", "bridge", "veth", "tls", "nfsd", "nfs", "nfsv4")
for line in ("link add lan0 type bridge forward_delay 0", f"addr add {SERVER}/24 dev lan0", "link set lan0 up"):
    run("ip", *line.split())
hosts = [Host("hosta", "172.30.0.11"), Host("hostb", "172.30.0.12")]
serve_nfs()
shutil.copyfile(asset("debian.ext4"), f"{EXPORT}/root.img")
for name, size in (("data.img", 64 << 20), ("arbiter", 0)):
    with open(f"{EXPORT}/{name}", "w") as f:
        f.truncate(size)
server = http.server.ThreadingHTTPServer((SERVER, 0), Outside)
threading.Thread(target=server.serve_forever, daemon=True).start()

m = Guest(linux(), args=f"mayfly.ip={GUEST}/24,{SERVER}", root=f"{SHARED}/root.img", drives=[f"{SHARED}/data.img"], mem=256,
          nets=["tap0"], binary=hosts[0].monitor, script=f"""
    mke2fs -q -t ext4 /dev/vdb && mount /dev/vdb /mnt || exit 1
    n=0
    while :; do
        n=$((n + 1))
        dd if=/dev/urandom of=/mnt/$((n % 32)) bs=32k count=4 conv=fsync 2>/dev/null || exit 2
        sha256sum /mnt/$((n % 32)) >/mnt/$((n % 32)).sum
        word=$(curl -sS -m 60 http://{SERVER}:{server.server_port}/) || exit 3
        echo "tick $n $(cut -d' ' -f1 /proc/uptime) $(date +%s)"
        [ "$word" = go ] || break
    done
    sync; echo 3 >/proc/sys/vm/drop_caches
    cat /mnt/*.sum | sha256sum -c --quiet || exit 4
    umount /mnt && e2fsck -fn /dev/vdb || exit 5""").start()
m.expect(r"^tick 2 ", 240)
ping = Ping()
ping.more(10)
consoles, where = [], 0
for mode in ("precopy", "postcopy"):
    src, dst = hosts[where], hosts[1 - where]
    target = Monitor(binary=dst.monitor)
    pairs = channels(src, dst)
    before, last = dst.tls(), int(re.findall(r"^tick (\d+)", m.console(), re.M)[-1])
    start = time.time()
    request(target, "receive", [p[1].fileno() for p in pairs])
    request(m, "send", [p[0].fileno() for p in pairs], mode=mode, downtime_ms=500)
    for p in pairs:
        p[0].close(), p[1].close()
    a, b = done(m), done(target)
    end = time.time()
    check(a["mode"] == mode and a["arbitrated"], f"{a}")
    check((b["faults"] > 0) == (mode == "postcopy"), f"{mode}: {b}")
    check(dst.tls()["TlsDecryptError"] == 0 and before["TlsCurrRxSw"] >= 2, f"not under TLS: {before} {dst.tls()}")
    target.expect(r"^tick \d+ ", 120)
    ping.more(10)
    ticks = [int(x) for x in re.findall(r"^tick (\d+)", target.console(), re.M)]
    check(ticks[0] >= last, f"tick {last} then {ticks}")
    note(f"{mode}: downtime {a['downtime_us'] / 1e3:.0f} ms, total {a['total_us'] / 1e3:.0f} ms, {a['pages']} pages, "
         f"{b['faults']} faults; longest without a ping's answer {ping.gap(start, end) * 1e3:.0f} ms (one each 100 ms)")
    consoles.append(m.console())
    m.put("/migration/finalize")
    check(m.wait() == 0, f"the source ended with {m.process.returncode}\n{m.tail()}")
    m, where = target, 1 - where

sent, answered = ping.end()
note(f"ping: {answered} of {sent} answered, over two moves")
check(answered >= sent * 0.8, "too many pings are lost")
Outside.word = "stop"
Guest.script_passed(m, 180)  # the last one is a Monitor that took it over
check(m.wait() == 0, f"exit status {m.process.returncode}")
text = "".join(consoles) + m.console()
no_faults(text)
ticks = [(int(n), float(up)) for n, up in re.findall(r"^tick (\d+) ([\d.]+) \d+$", text, re.M)]
check([n for n, _ in ticks] == list(range(1, len(ticks) + 1)), f"a tick is missing or came twice: {ticks}")
check(all(x[1] <= y[1] for x, y in zip(ticks, ticks[1:])), f"time ran backwards: {ticks}")
check(Outside.hits == len(ticks), f"{Outside.hits} requests for {len(ticks)} ticks")
