#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The nested lane, host side: an emulated machine with nested SVM, in which /dev/kvm is stock KVM.

usage: lane.py [--deadline SECONDS] [--memory MIB] [--icount] [--log NAME] [--results DIR] [--env NAME=VALUE]...
               COMMAND [ARGUMENT]...

Copies the checkout in on a disk, runs the command there, passes its output through, brings /results back to
build/nested/results and exits with the command's status; 125 when the lane itself failed, 124 at the deadline, 123 when
the machine gave no sign of life for two minutes (ten with --icount).
"""
import argparse
import contextlib
import io
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
WORK = os.path.join(TOP, "build", "nested")
EXCHANGE = 256 << 20
SILENCE = 120    # seconds
NUDGE = 0.05     # what an interrupt that QEMU forgets costs at most
PULSE = "lane: alive"    # lane-main.sh writes it
# Of build/ these stay out: caches, kernel trees, and most other flavours of the same objects.
LEFT_OUT = {"nested", "kernels", "fuzz", "lint", "clang"}


def stage(folder):
    """Hard-links (or copies) the checkout, without what no test in the lane needs."""
    def take(src, dst):
        if os.path.islink(src) or not os.path.isfile(src):
            if os.path.islink(src):
                os.symlink(os.readlink(src), dst)
            return
        try:
            os.link(src, dst)
        except OSError:
            shutil.copy2(src, dst)

    for path, dirs, files in os.walk(TOP):
        rel = os.path.relpath(path, TOP)
        if rel == ".":
            dirs[:] = [d for d in dirs if d not in (".git", "node_modules")]
            files = [f for f in files if f != ".git"]
        elif rel == "build":
            dirs[:] = [d for d in dirs if d not in LEFT_OUT and "address" not in d and "thread" not in d]
        dirs[:] = [d for d in dirs if d != "__pycache__"]
        os.makedirs(os.path.join(folder, rel), exist_ok=True)
        for f in files:
            try:
                take(os.path.join(path, f), os.path.join(folder, rel, f))
            except FileNotFoundError:
                pass    # a build next door removed it


def mke2fs(image, folder):
    size = sum(os.lstat(os.path.join(p, f)).st_size // 4096 + 1 for p, _, fs in os.walk(folder) for f in fs) * 4096
    mib = size // (1 << 20) * 11 // 10 + 256
    env = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-N", "40000", "-E",
                    "lazy_itable_init=1", "-d", folder, image, f"{mib}M"], check=True, env=env, stdout=subprocess.DEVNULL)


def write_exchange(path, files):
    with open(path, "wb") as raw:
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                data = text.encode()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        raw.truncate(EXCHANGE)


def read_exchange(path, results):
    """The lane's answer: its status (None when it did not write one) and /results unpacked."""
    shutil.rmtree(results, ignore_errors=True)
    os.makedirs(results)
    status = None
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = os.path.normpath(member.name)
                if name.startswith(("/", "..")) or not (member.isfile() or member.isdir()):
                    continue
                if member.isdir():
                    os.makedirs(os.path.join(results, name), exist_ok=True)
                    continue
                os.makedirs(os.path.dirname(os.path.join(results, name)), exist_ok=True)
                with open(os.path.join(results, name), "wb") as out:
                    shutil.copyfileobj(tar.extractfile(member), out)
                if name == "status":
                    with open(os.path.join(results, name)) as f:
                        status = int(f.read())
    except (tarfile.TarError, OSError, ValueError) as e:
        print(f"lane: results are incomplete: {e}", file=sys.stderr)
    return status


class Console(threading.Thread):
    """The machine's first serial port: what it says goes to its log. QEMU 7.2 at times forgets, while a nested guest runs,
    that an interrupt is pending: the outer kernel's timer then waits until another comes. A byte at the port is one."""

    def __init__(self, log):
        super().__init__(daemon=True)
        self.ours, self.theirs = socket.socketpair()
        self.log, self.heard = open(log, "wb", buffering=0), time.monotonic()

    def run(self):
        with contextlib.suppress(OSError):    # the machine is gone
            while data := self.ours.recv(65536):
                self.log.write(data)
                self.heard = time.monotonic()

    def nudge(self):
        with contextlib.suppress(OSError):
            self.ours.send(b"\n", socket.MSG_DONTWAIT)

    def close(self):
        self.ours.shutdown(socket.SHUT_RDWR)
        self.join()
        self.ours.close(), self.log.close()


def watch(qemu, deadline, console, silence):
    """Waits for the machine's end: 0, 124 at the deadline, or 123 when it, which writes every ten seconds, said nothing
    for `silence` seconds."""
    begun = time.monotonic()
    while qemu.poll() is None:
        console.nudge()
        try:
            qemu.wait(NUDGE)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if now - begun >= deadline or now - console.heard >= silence:
                return 124 if now - begun >= deadline else 123
    return 0


def boot(args, tmp):
    image = os.path.join(tmp, "src.ext4")
    tree = os.path.join(WORK, f"stage.{os.getpid()}")     # beside build/, so that hard links work
    shutil.rmtree(tree, ignore_errors=True)
    try:
        stage(tree)
        mke2fs(image, tree)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    exchange = os.path.join(tmp, "exchange")
    env = {"LANE_TIMEOUT": str(max(args.deadline - 30, 5)), "GUEST_ASSETS": "/assets", "MAYFLY_LANE": "1"}
    if os.path.exists(os.path.join(WORK, "assets", "peer", "firecracker")):
        env["PEER_FIRECRACKER"] = "/assets/peer/firecracker"
    if args.icount:
        env["LANE_ICOUNT"] = "1"    # see tests/nested/suite/lib.py
    env.update(e.split("=", 1) for e in args.env)
    write_exchange(exchange, {
        "environment": "".join(f"export {k}={shlex.quote(v)}\n" for k, v in env.items()),
        "command": " ".join(shlex.quote(w) for w in args.command) + "\n"})

    def drive(path, more=""):
        return ["-drive", f"file={path},format=raw,if=virtio{more}"]
    log = os.path.join(WORK, args.log)
    console = Console(log)
    lane = os.path.join(WORK, "lane")
    # One processor: with two, the kernel dies in code it patches.
    argv = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,tb-size=512", "-smp", "1", "-cpu", "max,+svm,+npt", *(["-icount", "shift=1,align=off,sleep=on"] if args.icount else []),
            "-m", str(args.memory), "-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none",
            "-chardev", f"socket,id=console,fd={console.theirs.fileno()}", "-serial", "chardev:console", "-serial", "stdio",
            "-kernel", os.path.join(lane, "vmlinuz"), "-initrd", os.path.join(lane, "initrd.gz"),
            "-append", "console=ttyS0 panic=1 quiet loglevel=4 mitigations=off nokaslr tsc=reliable",
            *drive(os.path.join(lane, "root.ext4"), ",snapshot=on,cache=unsafe"),
            *drive(image, ",cache=unsafe"),
            *drive(os.path.join(lane, "assets.ext4"), ",readonly=on"),
            *drive(exchange, ",cache=unsafe")]
    # With a terminal on standard input the command in the lane can be talked to; else it reads end of file.
    stdin = None if sys.stdin and sys.stdin.isatty() else subprocess.DEVNULL
    started = time.monotonic()
    qemu = subprocess.Popen(argv, stdin=stdin, env=dict(os.environ, TMPDIR=tmp), pass_fds=[console.theirs.fileno()])
    console.theirs.close()
    console.start()
    late = 0
    try:
        late = watch(qemu, args.deadline, console, SILENCE * (5 if args.icount else 1))
    finally:
        if qemu.poll() is None:
            qemu.kill()
            qemu.wait()
        console.close()
    status = read_exchange(exchange, args.results)
    if late == 124:
        print(f"lane: killed at its deadline, {args.deadline} s; the machine's own log: {log}", file=sys.stderr)
    if late == 123:
        print(f"lane: killed, it gave no sign of life; the machine's own log: {log}", file=sys.stderr)
    if late:
        return late
    if status is None:
        print(f"lane: ended without a status; the machine's own log: {log}", file=sys.stderr)
        with open(log, errors="replace") as f:
            sys.stderr.write("".join([x for x in f if not x.startswith(PULSE)][-15:]))
        return 125
    print(f"lane: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return status


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--deadline", type=int, default=1200, metavar="SECONDS")
    p.add_argument("--memory", type=int, default=3000, metavar="MIB")
    p.add_argument("--icount", action="store_true", help="time counts instructions (2 ns each): benchmarks on a busy host")
    p.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    p.add_argument("--log", default="console.log", help="the name in build/nested of the machine's own log")
    p.add_argument("--results", default=os.path.join(WORK, "results"))
    p.add_argument("command", nargs=argparse.REMAINDER)
    args = p.parse_args()
    if not args.command:
        p.error("no command")
    made = subprocess.run([os.path.join(HERE, "build-assets.sh")], stdout=sys.stderr)
    if made.returncode:
        return 125
    # Killed from outside, the lane must not outlive us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="run.", dir=WORK) as tmp:
        return boot(args, tmp)


if __name__ == "__main__":
    sys.exit(main())
