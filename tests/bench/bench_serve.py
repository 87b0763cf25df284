#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Remote cold start: mayflyctl serve on one host (namespace), mayflyctl pull on 1 and on 20 others, of a 1 GiB snapshot whose
request reads 16 MiB. Writes docs/benchmarks/serve.md and build/bench/serve.json. Reports with the goal beside what was
measured; does not judge by its exit status.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from bench import ROOT, facts, markdown, median, num, p99, progress

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
from ctlmig import Arrived, Ctl, pids_beneath  # noqa: E402
from lib import Monitor  # noqa: E402
from servelib import PORT, Fleet, template  # noqa: E402

MEM, TOUCHED, WORK, MANY = 1024, 256, 16, 20
PATH = f"/sum?mib={WORK}"
GOAL = 40


class Bench:
    def __init__(self, args):
        self.args, self.rows = args, {}
        self.build = os.path.abspath(args.build)
        self.ctl, self.ask = os.path.join(self.build, "mayflyctl"), os.path.join(self.build, "bench", "ask")

    def add(self, row, value):
        self.rows.setdefault(row, []).append(value)

    def serve(self, *args):
        f = self.files
        s = Ctl(self.lan, "serve", "--listen", f":{PORT}", "--snapshot", f + "/state", "--mem", f + "/mem", "--json", *args)
        s.wait_for("listening")
        return s

    def pull(self, i, waits):
        """A pull on host i, timed in its namespace; waits: its monitor stands ready."""
        host, sock = self.lan.hosts[i], os.path.join(self.dir, f"{i}.sock")
        m = Monitor("--level", "Warn", netns=host) if waits else None
        return m, subprocess.Popen(
            ["ip", "netns", "exec", host.name, self.ask, "tap0", host.guest, PATH, self.ctl, "pull",
             f"{self.lan.addr}:{PORT}", "--api-sock", m.sock if waits else sock, *([] if waits else ["--spawn"]),
             "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def rounds(self, what, n, rounds, waits, *args):
        for k in range(rounds):
            for h in self.lan.hosts:
                h.free_tap()
            s = self.serve(*args)
            calls = [self.pull(i, waits) for i in range(n)]
            try:
                out = [json.loads(p.communicate(timeout=120)[0]) for _, p in calls]
            finally:
                for m, p in calls:
                    p.kill()
                    if m:
                        m.close()
                for sock, pid in pids_beneath(self.dir).items():
                    Arrived(sock, pid).close()
            lines = [json.loads(x) for x in s.stop()[1].splitlines()]
            first = min(x["start"] for x in out)
            for x in out:
                self.add(f"{what}: request to answer, ms", (x["answered"] - x["start"]) / 1e6)
                self.add(f"{what}: until a tap is attached, ms", (x["attached"] - x["start"]) / 1e6)
                self.add(f"{what}: until it accepts the connection, ms", (x["connected"] - x["start"]) / 1e6)
                self.add(f"{what}: until all memory is there, ms", (x["ended"] - x["start"]) / 1e6)
            if n > 1:
                self.add(f"{what}: first request to last answer, ms", (max(x["answered"] for x in out) - first) / 1e6)
                self.add(f"{what}: sent by the server until all was there, MiB/s",
                         sum(x["bytes"] for x in lines) / (max(x["ended"] for x in out) - first) * 1e9 / 2**20)
            for x in lines:
                self.add(f"{what}: pages asked for", x["requests"])
            progress(what, k + 1, rounds)

    def section(self, name, *args):
        if name in self.args.only.split(","):
            self.rounds(*args)

    def run(self):
        with tempfile.TemporaryDirectory(prefix="mayfly-bench-serve-") as self.files, \
                tempfile.TemporaryDirectory(prefix="mayfly-bench-pull-") as self.dir:
            self.lan = Fleet(MANY)
            try:
                for h in self.lan.hosts:  # as the clients of a switch know each other
                    h.ip("neigh", "replace", h.guest, "lladdr", h.mac, "dev", "tap0", "nud", "permanent")
                template(self.lan.hosts[0], self.files, MEM, TOUCHED, True, work=PATH)
                ws, n = ["--working-set", self.files + "/ws"], self.args.rounds or 10
                self.section("waits", "one, monitor waits", 1, n, True, *ws)
                self.section("started", "one, monitor started", 1, n, False, *ws)
                self.section("bare", "one, monitor waits, no working set", 1, n, True)
                self.section("many", f"{MANY} at once, monitors started", MANY, max(n // 3, 1), False, *ws)
            finally:
                self.lan.close()


INTRO = f"""# Remote cold start

Written by `make bench-serve`: {{facts}}.

`mayflyctl serve` in one network namespace, `mayflyctl pull` in others that reach it over veths and a bridge. The snapshot has {MEM} MiB,
of which {TOUCHED} were written; the request is `GET {PATH}` of `function.elf`, which reads {WORK} MiB of them, and the working
set is that of a clone that was asked once. The clock runs from before `mayflyctl pull` is started until the guest's whole
answer is at a client in its namespace. *Monitor waits*: a fresh one serves its API already, as from a pool; *started*: by
`pull --spawn`. All the hosts, the guests and the clients share this machine's cores. Median (best; p99).

"""


def report(b, args):
    lines = [["what", "goal", "", "median (best; p99)"]]
    for row, x in b.rows.items():
        goal = "answer, ms" in row and row.startswith("one") and "no working" not in row
        lines.append([row, f"<= {GOAL}" if goal else "-", ("met" if median(x) <= GOAL else "**MISSED**") if goal else "-",
                      f"{num(median(x))} ({num(min(x))}; {num(p99(x))})"])
    info = facts(args)
    info["priority"] = f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"
    text = INTRO.format(facts="; ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items()
                                        if k != "secs")) + markdown(lines) + "\n"
    with open(os.path.join(args.out or os.path.join(ROOT, "docs", "benchmarks"), "serve.md"), "w") as f:
        f.write(text)
    with open(os.path.join(args.build, "bench", "serve.json"), "w") as f:
        json.dump({"facts": info, "rows": b.rows}, f, indent=1)
    print(text)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--build", default="build")
    ap.add_argument("--only", default="waits,started,bare,many")
    ap.add_argument("--rounds", type=int, default=0)
    ap.add_argument("--out", default=None, help="folder of the report (docs/benchmarks)")
    args = ap.parse_args()
    args.rt, args.secs = False, 0
    for path in ("/dev/kvm", "/dev/userfaultfd"):
        if not os.access(path, os.R_OK | os.W_OK) or os.geteuid():
            print(f"bench-serve: needs {path} and root (network namespaces and taps): skipped")
            return
    b = Bench(args)
    b.run()
    args.rounds = args.rounds or 10
    report(b, args)


if __name__ == "__main__":
    main()
