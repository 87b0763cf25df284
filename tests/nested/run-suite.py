#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the suite's files one after the other on this machine's /dev/kvm and counts. LANE_SHARD=I/N: those of the Ith of
N lanes; LANE_DONE: without these (lanes.py).

usage: run-suite.py [--quick] [--results DIR] [PATTERN]...

A test is one file suite/NN-name.{sh,py}: exit status 0 passed, 77 skipped (its last line says why), anything else
failed. Words in its head comment: "lane: quick" puts it into the quick run, "timeout: SECONDS" (default 120) ends it.
"""
import argparse
import fnmatch
import os
import re
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))


def run(path, log, limit):
    interpreter = sys.executable if path.endswith(".py") else "sh"
    env = {k: v for k, v in os.environ.items() if k not in ("LANE_SHARD", "LANE_DONE")}    # tests/run.py has shares, too
    with open(log, "wb") as out:
        p = subprocess.Popen([interpreter, path], cwd=TOP, env=env, stdin=subprocess.DEVNULL, stdout=out,
                             stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return p.wait(limit)
        except subprocess.TimeoutExpired:
            out.write(f"\nno end within {limit} s\n".encode())
            return 124
        finally:
            try:
                os.killpg(p.pid, signal.SIGKILL)    # monitors that a test left behind
            except ProcessLookupError:
                pass
            p.wait()


def wanted(args):
    for name in sorted(os.listdir(os.path.join(HERE, "suite"))):
        if not re.match(r"\d\d-.*\.(sh|py)$", name):
            continue
        if args.pattern and not any(fnmatch.fnmatch(name, f"*{w}*") for w in args.pattern):
            continue
        with open(os.path.join(HERE, "suite", name)) as f:
            head = f.read(2000)
        if not args.quick or re.search(r"^# lane: quick$", head, re.M):
            yield name, head


def share(files):
    """This lane's: the longest first, each to the lane that has least so far (all lanes reckon alike)."""
    i, n = map(int, os.environ.get("LANE_SHARD", "0/1").split("/"))
    done = os.environ.get("LANE_DONE", "").split()
    load, mine = [0] * n, []
    for name, head in sorted(files, key=lambda f: -seconds(f[1])):
        k = load.index(min(load))
        load[k] += seconds(head)
        if k == i and name not in done:
            mine.append((name, head))
    return sorted(mine)


def seconds(head):
    m = re.search(r"^# timeout: (\d+)$", head, re.M)
    return int(m[1]) if m else 120


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--quick", action="store_true")
    p.add_argument("--results", default=os.path.join(TOP, "build", "nested", "results"))
    p.add_argument("pattern", nargs="*")
    args = p.parse_args()
    os.makedirs(args.results, exist_ok=True)
    count = {"passed": 0, "failed": 0, "skipped": 0}
    for name, head in share(wanted(args)):
        path = os.path.join(HERE, "suite", name)
        log = os.path.join(args.results, name + ".log")
        start = time.monotonic()
        status = run(path, log, seconds(head))
        took = time.monotonic() - start
        with open(log, errors="replace") as f:
            lines = f.read().splitlines()
        verdict = {0: "passed", 77: "skipped"}.get(status, "failed")
        count[verdict] += 1
        note = f"  ({lines[-1]})" if verdict == "skipped" and lines else ""
        print(f"{verdict:8}{name}  {took:.1f} s{note}", flush=True)
        shown = lines[-40:] if verdict == "failed" else [x for x in lines if x.startswith("note: ")]
        for line in shown:
            print("        | " + line[:240], flush=True)
    print(", ".join(f"{n} {word}" for word, n in count.items()))
    # A lane may have no share.
    return 1 if count["failed"] or not (count["passed"] or "LANE_SHARD" in os.environ) else 0


if __name__ == "__main__":
    sys.exit(main())
