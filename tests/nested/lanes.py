#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a command in nested lanes at once, as many as there are processors and memory for, each with its share of the
items (LANE_SHARD=I/N), and adds up their counts. A machine that stood still is begun anew, without the items of which it
had told (LANE_DONE).

usage: lanes.py [--deadline SECONDS] [--icount] [--env NAME=VALUE]... COMMAND [ARGUMENT]...
Items are told of by lines as run-suite.py and tests/run.py write them, the counts by a last line
`N passed, N failed, N skipped`. Files left in /results land in build/nested/results/I.
"""
import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = os.path.join(os.path.dirname(os.path.dirname(HERE)), "build", "nested")
ITEM = re.compile(r"(?:  (ok  |FAIL|SKIP) |(passed|failed|skipped) +)([\w.-]+)(?:: (\d+) checks)?")
COUNTS = re.compile(r"(\d+) passed, (\d+) failed, (\d+) skipped")
WORDS = {"ok  ": 0, "passed": 0, "FAIL": 1, "failed": 1, "SKIP": 2, "skipped": 2}
STOOD_STILL, TRIES = 123, 3
LANE_MIB = 4096


def lanes_at_once():
    with open("/proc/meminfo") as f:
        free = int(re.search(r"^MemAvailable: +(\d+)", f.read(), re.M)[1]) // 1024
    return max(1, min(len(os.sched_getaffinity(0)), free // LANE_MIB, 4))


class Share:
    """One lane's part, over all the machines that it takes. Lines are shown item by item, so that two lanes' do not mix."""
    shown = threading.Lock()

    def __init__(self, i, n, args, argv=(sys.executable, os.path.join(HERE, "lane.py"))):
        self.i, self.n, self.args, self.argv = i, n, args, list(argv)
        self.counts, self.done, self.block, self.status = [0, 0, 0], set(), [], 125
        self.process = None

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()

    def show(self):
        with self.shown:
            print("".join(self.block), end="", flush=True)
        self.block = []

    def machine(self, seconds):
        """One machine's life: its status; what it counted, by its last line or, without one, item by item."""
        argv = [*self.argv, "--deadline", str(seconds), "--log", f"console.{self.i}.log",
                "--results", os.path.join(WORK, "results", str(self.i)), "--env", f"LANE_SHARD={self.i}/{self.n}",
                "--env", "LANE_DONE=" + " ".join(sorted(self.done)), *(["--icount"] if self.args.icount else []),
                *(f"--env={e}" for e in self.args.env), *self.args.command]
        p = self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, errors="replace")
        told, counts = [0, 0, 0], None
        for line in p.stdout:
            counts = COUNTS.fullmatch(line.strip())
            m = ITEM.match(line)
            if m:
                self.show()
                told[WORDS[m[1] or m[2]]] += int(m[4] or 1)
                self.done.add(m[3])
            if not counts:
                self.block.append(line)
        self.show()
        status = p.wait()
        for k in range(3):
            self.counts[k] += int(counts[k + 1]) if counts else told[k]
        return status if status or counts else 125

    def run(self):
        end = time.monotonic() + self.args.deadline
        for attempt in range(TRIES):
            self.status = self.machine(max(int(end - time.monotonic()), 10))
            if self.status != STOOD_STILL or end - time.monotonic() < 60:
                break
            self.block = [f"lane {self.i}: the emulated machine stood still, machine {attempt + 2} takes over\n"]
            self.show()
        if self.status and not self.counts[1]:
            self.block = [f"  FAIL the nested lane {self.i}: it ended with status {self.status}\n"]
            self.counts[1] = 1
            self.show()


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--deadline", type=int, default=1200)
    p.add_argument("--icount", action="store_true")
    p.add_argument("--env", action="append", default=[])
    p.add_argument("command", nargs=argparse.REMAINDER)
    args = p.parse_args()
    made = subprocess.run([os.path.join(HERE, "build-assets.sh")], stdout=sys.stderr)
    if made.returncode:
        return 125
    n = 1 if args.icount else lanes_at_once()    # a benchmark is one run
    shares = [Share(i, n, args) for i in range(n)]
    threads = [threading.Thread(target=s.run) for s in shares]
    # Killed from outside, the lanes must not outlive us.
    signal.signal(signal.SIGTERM, lambda *_: [s.end() for s in shares])
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    passed, failed, skipped = (sum(s.counts[k] for s in shares) for k in range(3))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
