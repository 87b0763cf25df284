#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Side by side, in turns (A B C A B C ...): Mayfly, Firecracker, QEMU microvm and the bare system calls.

Turns, because this is for machines that do other work too: only ratios of what ran next to each other hold.
The same guest (tests/guest, function.elf) runs on all of them. Prints a table, and leaves build/bench/bench.json
and bench.md. A peer that is not there is skipped with a line that says so.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import peers as peers_module
from peers import Firecracker, Floor, Mayfly, Net, Qemu

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NS = 1e-3  # of a microsecond
PEER = "firecracker"  # whom the goals name
# metric -> (most that our median may be, most that its ratio to PEER's may be); rates and latencies are in goal().
GOALS = {"spawn to API accepts": (None, 0.5), "InstanceStart answered": (1000, 0.2),
         "memory outside the guest, RSS": (1024, None)}
RATE, LATENCY = 1.2, 0.8  # of net and blk, against PEER


def median(values):
    v = sorted(values)
    n = len(v)
    return (v[(n - 1) // 2] + v[n // 2]) / 2


def p99(values):
    v = sorted(values)
    return v[min(len(v) - 1, int(len(v) * 0.99))]


class Results:
    """metric -> peer -> samples, in the order in which metrics came."""

    def __init__(self):
        self.data, self.unit = {}, {}

    def add(self, metric, unit, peer, value):
        self.data.setdefault(metric, {}).setdefault(peer, []).append(value)
        self.unit[metric] = unit

    def rows(self, peers):
        for metric, by_peer in self.data.items():
            us, unit = by_peer.get("mayfly"), self.unit[metric]
            row = {"metric": metric, "unit": unit}
            for p in peers:
                if p in by_peer:
                    row[p] = {"median": median(by_peer[p]), "p99": p99(by_peer[p]), "n": len(by_peer[p])}
                    if p != "mayfly" and us:
                        row[p]["ratio"] = median(us) / max(median(by_peer[p]), 1e-9)
            yield row


def goal(row):
    """(the goal in words, whether it is met) of a row; ("-", None) where none was set or PEER was not there."""
    if "mayfly" not in row:
        return "-", None
    ours, ratio = row["mayfly"]["median"], row.get(PEER, {}).get("ratio")
    if row["metric"] in GOALS:
        most, share = GOALS[row["metric"]]
        words = " and ".join(([f"<= {num(most)}"] if most else []) + ([f"<= {share}x"] if share else []))
        if share and ratio is None:
            return words, None
        return words, (not most or ours <= most) and (not share or ratio <= share)
    if not row["metric"].startswith(("net ", "blk ")) or ratio is None:
        return "-", None
    if row["unit"] == "us":
        return f"<= {LATENCY}x", ratio <= LATENCY
    return f">= {RATE}x", ratio >= RATE


def table(rows, peers):
    head = ["", "unit", "goal", ""] + [c for p in peers for c in ([p, "p99"] if p == "mayfly" else [p, "p99", "ratio"])]
    out = [head]
    for r in rows:
        words, met = goal(r)
        line = [r["metric"], r["unit"], words, "-" if met is None else "met" if met else "MISSED"]
        for p in peers:
            cell = r.get(p)
            line += ([num(cell["median"]), num(cell["p99"])] if cell else ["-", "-"])
            if p != "mayfly":
                line.append(f"{cell['ratio']:.2f}" if cell and "ratio" in cell else "-")
        out.append(line)
    return out


def num(v):
    return f"{v:,.0f}" if v >= 100 else f"{v:.1f}" if v >= 10 else f"{v:.2f}"


def plain(lines):
    w = [max(len(x[i]) for x in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(c.ljust(n) if i < 4 else c.rjust(n) for i, (c, n) in enumerate(zip(x, w)))
                     for x in lines)


def markdown(lines):
    rule = ["---"] * 4 + ["--:"] * (len(lines[0]) - 4)
    return "\n".join("| " + " | ".join(x) + " |" for x in [lines[0], rule] + lines[1:])


def facts(args):
    cpu = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    hw = bool(re.search(r"\b(vmx|svm)\b", open("/proc/cpuinfo").read()))
    rev = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {"date": time.strftime("%Y-%m-%d"), "kernel": os.uname().release, "cpus": os.cpu_count(),
            "cpu": cpu[1] if cpu else "?", "kvm": "VMX or SVM" if hw else "PVM (no VMX or SVM)",
            "load": os.getloadavg()[0], "mayfly": rev.stdout.strip(), "rounds": args.rounds, "secs": args.secs, "priority": "real time" if args.rt else "normal"}


# ---- the three suites ----

def bench_start(peers, args, res):
    """Spawn, API, start, pause, memory: with one tap and one drive."""
    rounds = 10 * args.rounds or 60  # each is short
    for i in range(rounds + 2):
        for p in peers:
            with Net(p.name) as net:
                t = p.life(net)
            if i < 2:  # page cache and the like are warm after two
                continue
            for key, text in (("accepts", "spawn to API accepts"), ("answers", "spawn to first answer"),
                              ("puts", "configuration requests"), ("start", "InstanceStart answered"),
                              ("byte", "InstanceStart to guest ready"), ("spawn_byte", "spawn to guest ready"),
                              ("pause", "pause"), ("resume", "resume")):
                if key in t:
                    res.add(text, "us", p.name, t[key] * NS)
            if "rss" in t:
                res.add("memory outside the guest, RSS", "KiB", p.name, t["rss"])
                res.add("memory outside the guest, PSS", "KiB", p.name, t["pss"])
                res.add("of it private", "KiB", p.name, t["private"])
        progress("start", i + 1, rounds + 2)


def bench_net(peers, args, res):
    for i in range(args.rounds or 5):
        for size in (64, 1460):
            for p in peers:
                v = p.net_tx(size, args.secs)
                if v:
                    res.add(f"net guest to host, {size} B", "kpps", p.name, v / 1000)
            for p in peers:
                v = p.net_rx(size, args.secs)
                if v:
                    res.add(f"net host to guest, {size} B", "kpps", p.name, v / 1000)
        for wait, what in (("irq", "sleeping"), ("poll", "polling")):
            for p in peers:
                v = p.net_pingpong(wait, args.secs)
                if v:
                    res.add(f"net round trip from a {what} guest, p50", "us", p.name, v["p50_ns"] * NS)
                    res.add(f"net round trip from a {what} guest, p99", "us", p.name, v["p99_ns"] * NS)
        for p in peers:
            v = p.net_ping()
            if v:
                res.add("net round trip from the host, p50", "us", p.name, v["p50_ns"] * NS)
                res.add("net round trip from the host, p99", "us", p.name, v["p99_ns"] * NS)
        progress("net", i + 1, args.rounds or 5)


def bench_blk(peers, args, res):
    loads = [(op, size, depth) for op in ("randread", "randwrite") for size, depth in ((4096, 1), (4096, 32))]
    loads += [("seqread", 131072, 4), ("seqwrite", 131072, 4)]
    for i in range(args.rounds or 5):
        for wait in ("irq", "poll"):
            for op, size, depth in loads:
                for p in peers:
                    v = p.blk(op, size, depth, wait, args.secs)
                    if not v:
                        continue
                    name = f"blk {op} {size // 1024} KiB x{depth}, guest {'sleeps' if wait == 'irq' else 'polls'}"
                    if size > 4096:
                        res.add(name, "MiB/s", p.name, v["mib_s"])
                    else:
                        res.add(name, "kIOPS", p.name, v["iops"] / 1000)
                    if "p50_ns" in v:
                        res.add(name + ", p50", "us", p.name, v["p50_ns"] * NS)
                        res.add(name + ", p99", "us", p.name, v["p99_ns"] * NS)
        progress("blk", i + 1, args.rounds or 5)


def progress(what, i, n):
    if sys.stderr.isatty() or i == n:
        print(f"\r{what}: {i} of {n}", end="\n" if i == n else "", file=sys.stderr, flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--build", default="build")
    ap.add_argument("--only", default="start,net,blk")
    ap.add_argument("--rounds", type=int, default=0)
    ap.add_argument("--secs", type=float, default=1)
    ap.add_argument("--mayfly", default=None, help="another binary, to compare two of our own: name=path,...")
    ap.add_argument("--rt", action="store_true", help="real-time priority for all that is measured")
    args = ap.parse_args()
    if args.rt:
        peers_module.RT.extend(["chrt", "-r", "10"])
    args.secs = int(args.secs) or 1
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or os.geteuid():
        print("bench: needs /dev/kvm and root (taps in network namespaces): skipped")
        return
    work = tempfile.mkdtemp(prefix="mayfly-bench-")
    build = os.path.abspath(args.build)
    out = os.path.join(build, "bench")
    try:
        peers = [Mayfly(work, build, os.path.join(build, "mayfly"))]
        for extra in filter(None, (args.mayfly or "").split(",")):
            name, path = extra.split("=")
            peers.append(Mayfly(work, build, path, name))
        for kind in (Firecracker, Qemu, Floor):
            p = kind(work, build)
            if p.why_not():
                print(f"bench: {p.name} skipped: {p.why_not()}")
            else:
                peers.append(p)
        res = Results()
        info = facts(args)
        for name, run in (("start", bench_start), ("net", bench_net), ("blk", bench_blk)):
            if name in args.only.split(","):
                run(peers, args, res)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    names = [p.name for p in peers]
    rows = list(res.rows(names))
    lines = table(rows, names)
    judged = [met for _, met in map(goal, rows) if met is not None]
    text = "; ".join(f"{k} {v}" for k, v in info.items())
    print(f"\n{text}\nratio = Mayfly divided by the peer\n\n{plain(lines)}\n\n"
          f"{judged.count(True)} goals met, {judged.count(False)} missed")
    with open(os.path.join(out, "bench.json"), "w") as f:
        json.dump({"facts": info, "rows": rows, "samples": res.data}, f, indent=1)
    with open(os.path.join(out, "bench.md"), "w") as f:
        f.write(f"`make bench`: {text}. Ratio = Mayfly divided by the peer.\n\n{markdown(lines)}\n")


if __name__ == "__main__":
    main()
