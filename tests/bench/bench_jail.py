#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the jail costs: spawn until the API answers, plain and jailed, one and a hundred at once.

Beside them a floor: the same namespaces made by unshare(1) around a monitor. Medians and p99 in milliseconds,
ratios to plain. The kinds take turns, so that what else runs on the host meets all alike; each round ends before the
next begins. Needs root. BENCH_ROUNDS=60: rounds of one; a twelfth as many of a hundred.
"""
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

BUILD = os.environ.get("MAYFLY_BUILD", os.path.join(os.path.dirname(__file__), "..", "..", "build"))
MAYFLY, JAIL = (os.path.abspath(os.path.join(BUILD, n)) for n in ("mayfly", "mayfly-jail"))
KINDS = ("plain", "unshare", "strict", "strict, --netns", "compat")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "60"))


def words(kind, tmp, name, netns):
    sock = os.path.join(tmp, name)
    common = ["--id", name, "--exec-file", MAYFLY, "--uid", "54321", "--gid", "54321"]
    if kind == "plain":
        return [MAYFLY, "--api-sock", sock], sock
    if kind == "unshare":
        return ["unshare", "-m", "-p", "-n", "-i", "-u", "-C", "-f", "--kill-child", MAYFLY, "--api-sock",
                sock], sock
    if kind == "strict":
        return [JAIL, "--strict", *common, "--api-sock", sock], sock
    if kind == "strict, --netns":
        return [JAIL, "--strict", *common, "--api-sock", sock, "--netns", netns], sock
    root = os.path.join(tmp, "mayfly", name, "root")
    return [JAIL, *common, "--chroot-base-dir", tmp, "--", "--api-sock", "/run/s"], root + "/run/s"


class Start:
    """One monitor on its way up: connects as soon as there is something to connect to, then asks."""

    def __init__(self, kind, tmp, name, netns):
        argv, self.path = words(kind, tmp, name, netns)
        self.sock, self.took = None, None
        self.begin = time.perf_counter()
        self.pid = os.posix_spawn(shutil.which(argv[0]), argv, {}, file_actions=[
            (os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)])

    def connect(self):
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(self.path)
            # A connection waits in the backlog before anybody serves it: an answer counts.
            s.sendall(b"GET / HTTP/1.1\r\n\r\n")
            self.sock = s
        except OSError:
            s.close()

    def answer(self):
        self.took = (time.perf_counter() - self.begin) * 1e3
        if not self.sock.recv(64).startswith(b"HTTP/1.1 200"):
            sys.exit("the API's answer is not 200")
        self.sock.close()

    def end(self, kind):
        os.kill(self.pid, signal.SIGTERM if kind.startswith("strict") else signal.SIGKILL)
        os.waitpid(self.pid, 0)


def measure(kind, tmp, tag, netns, at_once):
    starts = [Start(kind, tmp, f"{tag}-{i}", netns) for i in range(at_once)]
    waiting, poll, deadline = list(starts), select.poll(), time.perf_counter() + 60
    while waiting:
        for s in waiting:
            if not s.sock:
                s.connect()
                if s.sock:
                    poll.register(s.sock, select.POLLIN)
        all_there = all(s.sock for s in waiting)
        for fd, _ in poll.poll(1000 if all_there else 0.1 if at_once > 1 else 0):
            s = next(s for s in waiting if s.sock and s.sock.fileno() == fd)
            poll.unregister(fd)
            s.answer()
            waiting.remove(s)
        if not all_there:
            time.sleep(0.00005)
        if time.perf_counter() > deadline:
            sys.exit(f"{kind}: {len(waiting)} of {at_once} did not answer within a minute")
    for s in starts:
        s.end(kind)
    time.sleep(0.02 if at_once == 1 else 0.5)  # namespaces end in the background
    return [s.took for s in starts]


def main():
    if os.geteuid():
        sys.exit("needs root")
    if not (os.path.exists(MAYFLY) and os.path.exists(JAIL)):
        sys.exit(f"{BUILD}: build the monitor first")
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 3600"], stdout=subprocess.PIPE)
    holder.stdout.readline()
    tmp = tempfile.mkdtemp(prefix="mayfly-bench-")
    os.chmod(tmp, 0o755)
    try:
        for at_once, rounds in ((1, ROUNDS), (100, max(1, ROUNDS // 12))):
            took = {k: [] for k in KINDS}
            for r in range(rounds):
                for kind in KINDS:
                    took[kind] += measure(kind, tmp, f"b{at_once}-{r}", f"/proc/{holder.pid}/ns/net", at_once)
                    for name in os.listdir(tmp):
                        path = os.path.join(tmp, name)
                        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
            p = {k: (sorted(v)[len(v) // 2], sorted(v)[int(len(v) * 0.99)]) for k, v in took.items()}
            for kind in KINDS:
                print(f"{at_once:4} at once  {kind:16} p50 {p[kind][0]:8.2f} ms {p[kind][0] / p['plain'][0]:5.2f}x  "
                      f"p99 {p[kind][1]:8.2f} ms {p[kind][1] / p['plain'][1]:5.2f}x plain", flush=True)
    finally:
        holder.kill()
        holder.wait()
        shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    main()
