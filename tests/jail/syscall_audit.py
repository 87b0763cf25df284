#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares what the filters allow with what strace saw while integration tests ran.

usage: tests/jail/syscall_audit.py [--build DIR] [test ...]
Every monitor that the tests start plainly runs under strace. A thread's kind is known by the length of the filter that
it installs. Allowed and never seen is a fault, unless UNSEEN says why it must stay. Without names it runs TESTS, which
together do all that a monitor can.
"""
import argparse
import glob
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KINDS = ["all", "vcpu", "device", "control", "helper"]
TESTS = ["test_snapshot_uffd", "test_migration.Modes", "test_snapshot.Refused", "test_snapshot.Diff", "test_snapshot.Full",
         "test_boot", "test_observe.Metrics", "test_jail_monitor.Plain"]
# (kind, call): why it is allowed though no test makes it happen.
UNSEEN = {
    (kind, "clock_gettime"): "only where the clock is not readable from user space (no TSC)"
    for kind in KINDS[1:]
}
UNSEEN.update({
    ("device", "exit"): "ends with the process in most runs",
    ("helper", "exit"): "ends with the process in most runs",
    ("helper", "pwritev2"): "log lines of what seldom happens",
    ("vcpu", "exit_group"): "guest memory that went away (SIGBUS)",
    ("device", "exit_group"): "guest memory that went away (SIGBUS)",
    ("helper", "exit_group"): "guest memory that went away (SIGBUS)",
})


def filter_lengths(build):
    with open(os.path.join(build, "gen", "filters.c")) as f:
        text = f.read()
    lengths = {}
    for i, body in re.findall(r"prog(\d)\[\] = \{\n(.*?)\n\};", text, re.S):
        lengths.setdefault(body.count("\n") + 1, KINDS[int(i)])
    if len(lengths) != len(KINDS):
        sys.exit("two filters have the same length: threads cannot be told apart")
    return lengths


def declared(build):
    out = subprocess.run([os.path.join(build, "gen", "gen"), "--table"], capture_output=True, text=True,
                         check=True).stdout
    allowed = {}
    for kind, name in re.findall(r"^(vcpu|device|control|helper)\s+(\w+)\(", out, re.M):
        allowed.setdefault(kind, set()).add(name)
    return allowed


def read_traces(folder, lengths):
    seen, runs = {}, 0
    for path in glob.glob(os.path.join(folder, "trace.*")):
        kind = None
        with open(path, errors="replace") as f:
            for line in f:
                m = re.match(r"seccomp\(SECCOMP_SET_MODE_FILTER, \S+, \{len=(\d+)", line)
                if m:
                    kind = lengths.get(int(m[1]), kind)
                    runs += kind == "all"
                    continue
                m = re.match(r"(\w+)\(", line)
                if m and kind in KINDS[1:]:
                    seen.setdefault(kind, set()).add(m[1])
    return seen, runs


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--build", default=os.path.join(ROOT, "build"))
    p.add_argument("tests", nargs="*")
    a = p.parse_args()
    build = os.path.abspath(a.build)
    lengths, allowed = filter_lengths(build), declared(build)
    with tempfile.TemporaryDirectory(prefix="mayfly-audit-") as tmp:
        fake = os.path.join(tmp, "build")
        os.mkdir(fake)
        for name in os.listdir(build):
            if name != "mayfly":
                os.symlink(os.path.join(build, name), os.path.join(fake, name))
        with open(os.path.join(fake, "mayfly"), "w") as f:
            # -D: the monitor stays the child of whoever started it, and takes its signals.
            f.write(f"#!/bin/sh\nexec strace -D -ff -qq -s 0 -e signal=none -o {tmp}/trace "
                    f"{build}/mayfly \"$@\"\n")
        os.chmod(os.path.join(fake, "mayfly"), 0o755)

        def run(test):
            subprocess.run([sys.executable, "-m", "unittest", test], cwd=os.path.join(ROOT, "tests", "integration"),
                           env={**os.environ, "MAYFLY_BUILD": fake}, stderr=subprocess.DEVNULL, check=False)

        with ThreadPoolExecutor(4) as pool:  # they mostly wait
            list(pool.map(run, a.tests or TESTS))
        seen, runs = read_traces(tmp, lengths)
    print(f"{runs} monitors traced")
    faults = 0
    for kind in KINDS[1:]:
        unseen = allowed.get(kind, set()) - seen.get(kind, set())
        excused = {c for c in unseen if (kind, c) in UNSEEN}
        faults += len(unseen - excused)
        print(f"{kind}: {len(allowed.get(kind, ()))} allowed, {len(seen.get(kind, ()))} seen; never seen: "
              f"{', '.join(sorted(unseen - excused)) or 'none'}")
        for call in sorted(excused):
            print(f"    {call}: {UNSEEN[kind, call]}")
    return 1 if faults or not runs else 0


if __name__ == "__main__":
    sys.exit(main())
