#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the jail costs: spawn until the API accepts, plain and jailed, one and a hundred at once.

Beside them a floor: the same namespaces made by unshare(1) around a monitor. Medians and p99 in
milliseconds, ratios to plain. Needs root.
"""
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

BUILD = os.environ.get("MAYFLY_BUILD", os.path.join(os.path.dirname(__file__), "..", "..", "build"))
MAYFLY, JAIL = (os.path.abspath(os.path.join(BUILD, n)) for n in ("mayfly", "mayfly-jail"))


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


def accept_ms(kind, tmp, name, netns, out):
    argv, path = words(kind, tmp, name, netns)
    start = time.perf_counter()
    p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL, close_fds=False)
    answer = b""
    while p.poll() is None:
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
                # A connection waits in the backlog before anybody serves it: an answer counts.
                s.sendall(b"GET / HTTP/1.1\r\n\r\n")
                answer = s.recv(64)
                break
        except OSError:
            time.sleep(0.0001)
    took = (time.perf_counter() - start) * 1e3
    p.terminate() if kind.startswith("strict") else p.kill()
    p.wait()
    if answer.startswith(b"HTTP/1.1 200"):
        out.append(took)


def measure(kind, tmp, netns, at_once, rounds):
    out = []
    for r in range(rounds):
        ts = [threading.Thread(target=accept_ms, args=(kind, tmp, f"b{r}-{i}", netns, out))
              for i in range(at_once)]
        for t in ts:
            t.start()
        for t in ts:
            t.join()
    out.sort()
    if len(out) < at_once * rounds:
        print(f"  {kind}: {at_once * rounds - len(out)} did not answer", file=sys.stderr)
    return (out[len(out) // 2], out[min(len(out) - 1, int(len(out) * 0.99))]) if out else (0, 0)


def main():
    if os.geteuid():
        sys.exit("needs root")
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE)
    holder.stdout.readline()
    tmp = tempfile.mkdtemp(prefix="mayfly-bench-")
    os.chmod(tmp, 0o755)
    try:
        for at_once, rounds in ((1, 60), (100, 1)):
            base = None
            for kind in ("plain", "unshare", "strict", "strict, --netns", "compat"):
                p50, p99 = measure(kind, tmp, f"/proc/{holder.pid}/ns/net", at_once, rounds)
                base = base or p50
                print(f"{at_once:4} at once  {kind:16} p50 {p50:8.2f} ms  p99 {p99:8.2f} ms  "
                      f"{p50 / base if base else 0:5.2f}x plain", flush=True)
                for name in os.listdir(tmp):
                    path = os.path.join(tmp, name)
                    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    finally:
        holder.kill()
        shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    main()
