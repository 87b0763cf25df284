#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the jail costs: spawn until the API answers, plain and jailed, one and a hundred at once.

Beside them a floor, the same namespaces made by unshare(1) around a monitor, and what a pool of jailed monitors leaves
of it: from the request to the pool until the API of each that it gave has answered. Medians and p99 in milliseconds,
ratios to plain and to the floor, and the goal with whether it is met, as a table in Markdown. The kinds take turns, so
that what else runs on the host meets all alike; each round ends before the next begins. Needs root. BENCH_ROUNDS=60:
rounds of one; a twelfth as many of a hundred.
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
MAYFLY, JAIL, CTL = (os.path.abspath(os.path.join(BUILD, n)) for n in ("mayfly", "mayfly-jail", "mayflyctl"))
KINDS = ("plain", "unshare", "strict", "strict, --netns", "compat", "pool, strict")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "60"))
GOALS = {"strict": 2, "strict, --netns": 2, "compat": 2, "pool, strict": 1}  # times plain, p50 and p99


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
    try:
        await_all(starts, kind)
    finally:
        for s in starts:
            s.end(kind)
    time.sleep(0.02 if len(starts) == 1 else 0.5)  # namespaces end in the background
    return [s.took for s in starts]


def await_all(starts, kind):
    waiting, poll, deadline = list(starts), select.poll(), time.perf_counter() + 60
    while waiting:
        for s in waiting:
            if not s.sock:
                s.connect()
                if s.sock:
                    poll.register(s.sock, select.POLLIN)
        all_there = all(s.sock for s in waiting)
        for fd, _ in poll.poll(1000 if all_there else 0.1 if len(starts) > 1 else 0):
            s = next(s for s in waiting if s.sock and s.sock.fileno() == fd)
            poll.unregister(fd)
            s.answer()
            waiting.remove(s)
        if not all_there:
            time.sleep(0.00005)
        if time.perf_counter() > deadline:
            sys.exit(f"{kind}: {len(waiting)} of {len(starts)} did not answer within a minute")


def take(path, at_once):
    begin = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        s.sendall(f"take {at_once}\n".encode())
        s.shutdown(socket.SHUT_WR)
        with s.makefile() as f:
            given = [line.split() for line in f]
    took, asked = [], []
    for _, path in given:
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        s.sendall(b"GET / HTTP/1.1\r\n\r\n")
        asked.append(s)
    for s in asked:
        if not s.recv(64).startswith(b"HTTP/1.1 200"):
            sys.exit("the API's answer is not 200")
        took.append((time.perf_counter() - begin) * 1e3)
        s.close()
    for pid, _ in given:
        os.kill(int(pid), signal.SIGTERM)
    return took


def measure_pool(tmp, tag, at_once):
    folder = os.path.join(tmp, tag)
    p = subprocess.Popen([CTL, "pool", "--dir", folder, "--size", str(at_once), "--jail", "--uid", "54321", "--gid",
                          "54321", "--mayfly", MAYFLY])
    try:
        idle = f"idle {at_once} of"
        while idle not in subprocess.run([CTL, "pool", "status", "--dir", folder], capture_output=True,
                                         text=True).stdout:
            time.sleep(0.02)
        return take(os.path.join(folder, "pool.sock"), at_once)
    finally:
        p.terminate()
        p.wait()


def report(at_once, took):
    p = {k: (sorted(v)[len(v) // 2], sorted(v)[int(len(v) * 0.99)]) for k, v in took.items()}
    for kind in KINDS:
        cells = [str(at_once), kind]
        for now, plain, floor in zip(p[kind], p["plain"], p["unshare"]):
            cells += [f"{now:.2f}", f"{now / plain:.2f}", f"{now / floor:.2f}"]
        goal = GOALS.get(kind)
        missed = [n for n, now, plain in zip(("p50", "p99"), p[kind], p["plain"]) if goal and now > goal * plain]
        cells += [f"<= {goal}x" if goal else "-", f"**MISSED** ({', '.join(missed)})" if missed else "met" if goal else "-"]
        print("| " + " | ".join(cells) + " |", flush=True)


def head():
    """The machine and what ran on it, as the first line of a report."""
    rev = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=os.path.dirname(os.path.abspath(__file__)),
                         capture_output=True, text=True).stdout.strip()
    rt = os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
    return (f"date {time.strftime('%Y-%m-%d')}; kernel {os.uname().release}; cpus {os.cpu_count()}; load "
            f"{os.getloadavg()[0]:.1f}; mayfly {rev}; priority {'real time' if rt else 'normal'}")


def main():
    if os.geteuid():
        sys.exit("needs root")
    if not (os.path.exists(MAYFLY) and os.path.exists(JAIL)):
        sys.exit(f"{BUILD}: build the monitor first")
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 3600"], stdout=subprocess.PIPE)
    holder.stdout.readline()
    tmp = tempfile.mkdtemp(prefix="mayfly-bench-")
    os.chmod(tmp, 0o755)
    print(f"{head()}; rounds {ROUNDS}\n\n"
          "| at once | kind | p50, ms | to plain | to unshare | p99, ms | to plain | to unshare | goal | |\n"
          "| --: | --- | --: | --: | --: | --: | --: | --: | --- | --- |", flush=True)
    try:
        for at_once, rounds in ((1, ROUNDS), (100, max(1, ROUNDS // 12))):
            took = {k: [] for k in KINDS}
            for r in range(rounds):
                for kind in KINDS:
                    tag = f"b{at_once}-{r}"
                    took[kind] += measure_pool(tmp, tag, at_once) if kind.startswith("pool") else measure(
                        kind, tmp, tag, f"/proc/{holder.pid}/ns/net", at_once)
                    for name in os.listdir(tmp):
                        path = os.path.join(tmp, name)
                        shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else os.unlink(path)
            report(at_once, took)
    finally:
        holder.kill()
        holder.wait()
        shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    main()
