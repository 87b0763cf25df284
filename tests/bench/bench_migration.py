#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Live migration between two network namespaces, beside QEMU's post-copy of the same guest and a plain TCP socket over
the same veth, in turns. Writes docs/benchmarks/migration.md, plots beside it, and build/bench/migration.json.
Reports, with each goal beside what was measured; does not judge by its exit status.
"""
import argparse
import http.client
import json
import os
import time

from bench import facts, median, num, p99, progress
from migration_host import Hosts, Mayfly, Qemu, floor
from migration_report import hist_quantile, write_report

HOPS = 4  # of one guest, before it is the other monitor's turn
BUDGETS = (10, 20, 50)


class Results:
    """row -> who -> samples."""

    def __init__(self):
        self.rows, self.hist, self.timeline = {}, {}, {}

    def add(self, row, who, value):
        self.rows.setdefault(row, {}).setdefault(who, []).append(value)


class Bench:
    def __init__(self, args, hosts):
        self.hosts, self.rounds, self.res = hosts, args.rounds or 10, Results()
        self.tool = os.path.join(os.path.abspath(args.build), "bench", "migrate")
        self.skipped = Qemu.why_not()
        self.kinds = [Mayfly] + ([] if self.skipped else [Qemu])
        self.last = None

    def guest(self, kind, mem, touched):
        self.last = kind(self.hosts, self.tool, mem, touched)
        return self.last

    def hops(self, kind, mem, touched, n, warm=1, sleeps=False, **how):
        """n moves of one guest to and fro; those before, on a guest just booted, are not counted."""
        m = self.guest(kind, mem, touched)
        try:
            if sleeps:
                m.get("/spin?off")
            for i in range(n + warm):
                x = m.move(**how)
                if i >= warm:
                    yield x
        finally:
            m.close()


def raw(b):
    for i in range(b.rounds):
        b.res.add("raw socket, MiB/s", "raw", floor(b.tool, b.hosts, "flood", 937)["mib_s"])
        x = floor(b.tool, b.hosts, "pages", 5000)
        b.res.add("40 bytes there, a page back, p50, us", "raw", x["p50_ns"] / 1e3)
        b.res.add("40 bytes there, a page back, p99, us", "raw", x["p99_ns"] / 1e3)
        progress("raw", i + 1, b.rounds)


def downtime(b):
    """Post-copy of a guest that touched 16 MiB, and what a stop costs that guest without any migration."""
    for i in range(b.rounds):
        for mem in (128, 1024):
            for kind in b.kinds:
                for x in b.hops(kind, mem, 16, HOPS, mode="postcopy"):
                    for key, text in (("gap_ms", "guest's TSC gap"), ("downtime_ms", "source's clock"),
                                      ("probe_ms", "outside probe")):
                        b.res.add(f"post-copy downtime, {mem} MiB, {text}, ms", kind.name, x[key])
                    if mem == 1024:
                        b.res.add("1 GiB, 16 MiB touched, total, ms", kind.name, x["total_ms"])
                    if kind is Mayfly:
                        b.res.add(f"post-copy, {mem} MiB, pages asked for", Mayfly.name, x["source"]["requests"])
                    if kind is Mayfly and mem == 1024:
                        wire(b, "16 MiB", x)
            m = b.guest(Mayfly, mem, 16)
            for _ in range(HOPS):
                m.get("/tsc?reset")
                m.now.patch("/vm", state="Paused")
                m.now.patch("/vm", state="Resumed")
                time.sleep(0.02)
                b.res.add(f"stop and go in place, {mem} MiB, guest's TSC gap, ms", Mayfly.name, m.get("/tsc")["gap_ns"] / 1e6)
            m.close()
        progress("downtime", i + 1, b.rounds)


def wire(b, touched, x):
    nonzero = x["source"]["pages"] * 4096
    b.res.add(f"wire / non-zero bytes, {touched}, messages", Mayfly.name, x["source"]["bytes"] / nonzero)
    b.res.add(f"wire / non-zero bytes, {touched}, on the interface", Mayfly.name, x["wire"] / nonzero)


def totals(b):
    """1 GiB of which 937 MiB are words that nothing compresses, and the plain socket next to it. QEMU's guest polls, so
    ours is measured polling, too; beside the socket, which has the machine for itself, it sleeps."""
    for i in range(b.rounds):
        rate = median([floor(b.tool, b.hosts, "flood", 937)["mib_s"] for _ in range(3)])
        b.res.add("937 MiB over a plain socket, ms", "raw", 937e3 / rate)
        for x in b.hops(Mayfly, 1024, 937, 2, sleeps=True, probe=False, mode="postcopy"):
            b.res.add("1 GiB, 937 MiB touched, guest sleeps, total, ms", Mayfly.name, x["total_ms"])
            b.res.add("throughput / raw socket", Mayfly.name, 937e3 / x["total_ms"] / rate)
            for side in ("source", "target"):
                b.res.add(f"937 MiB, processor time of the {side}'s thread, ms", Mayfly.name, x[f"{side}_cpu_ms"])
            wire(b, "937 MiB", x)
        for kind in b.kinds:
            for x in b.hops(kind, 1024, 937, 2, probe=False, mode="postcopy"):
                b.res.add("1 GiB, 937 MiB touched, total, ms", kind.name, x["total_ms"])
                b.res.add("1 GiB, 937 MiB touched, downtime, guest's TSC gap, ms", kind.name, x["gap_ms"])
                b.res.add("throughput / raw socket, guest polls", kind.name, 937e3 / x["total_ms"] / rate)
        for x in b.hops(Mayfly, 1024, 16, 2, sleeps=True, probe=False, mode="postcopy"):
            b.res.add("1 GiB, 16 MiB touched, guest sleeps, total, ms", Mayfly.name, x["total_ms"])
        progress("totals", i + 1, b.rounds)


def precopy(b):
    for i in range(b.rounds):
        for kind in b.kinds:
            for x in b.hops(kind, 128, 16, HOPS, mode="precopy"):
                for key, text in (("gap_ms", "guest's TSC gap"), ("downtime_ms", "source's clock")):
                    b.res.add(f"pre-copy downtime, idle, {text}, ms", kind.name, x[key])
        m = b.guest(Mayfly, 128, 16)
        m.get("/dirty?mib=8&rate=40")
        for _ in range(2):
            for budget in BUDGETS:
                x = m.move(probe=False, mode="precopy", downtime_ms=budget)
                for key, text in (("gap_ms", "guest's TSC gap"), ("downtime_ms", "source's clock")):
                    b.res.add(f"within the budget, {text}, %", Mayfly.name, 100.0 * (x[key] <= budget))
                    b.res.add(f"of a budget of {budget} ms, {text}, ms", Mayfly.name, x[key])
        m.close()
        progress("precopy", i + 1, b.rounds)


class Walker:
    """A connection made before the move, so that the request that is sent in the pull does not wait for a SYN."""

    def __init__(self, b):
        self.c = http.client.HTTPConnection(b.hosts.guest, timeout=60)
        self.c.sock = b.hosts.connect(timeout=60)

    def get(self, path):
        self.c.request("GET", path)
        return json.loads(self.c.getresponse().read())


def requests(kind, m, dst):
    """How many pages were asked for so far; at Mayfly the histogram of them too."""
    if kind is Mayfly:
        st = dst.get("/migration")
        return st["requests"], st["fault_latency_log2_us"]
    return m.now.ask("query-migrate")["ram"]["postcopy-requests"], []


def walk(b, kind, load, mem, touched, n, **how):
    m = b.guest(kind, mem, touched)
    w, dst = Walker(b), m.target()
    try:
        w.get("/counter")
        m.begin(*([dst] if kind is Mayfly else []), mode="postcopy", **how)
        m.pulling(dst)
        before, first = requests(kind, m, dst)
        w.get(f"/walk?mib={touched}&n={n}")
        asked, last = requests(kind, m, dst)
        x = w.get(f"/walk?top={max(1, min(n, asked - before))}")
    finally:
        w.c.close()
        m.leave(dst)
        m.close()
    hist = [z - a for a, z in zip(first, last)]
    if sum(hist):
        b.res.hist[load] = [s + t for s, t in zip(b.res.hist.get(load, [0] * len(hist)), hist)]
        for q in (50, 99):
            b.res.add(f"fault service, {load}, monitor's clock, p{q}, us", kind.name, hist_quantile(hist, q))
    for q in (50, 99):
        b.res.add(f"fault, {load}, guest's clock, p{q}, us", kind.name, x[f"p{q}_ns"] / 1e3)
    b.res.add(f"faults served, {load}", kind.name, asked - before)


def faults(b):
    """A guest that reads pages in no order while they are absent: idle, the link carries nothing else (its bulk is
    capped at 1 MiB/s; QEMU's answers would be too); under bulk, everything is pushed besides."""
    for i in range(b.rounds):
        m = b.guest(Mayfly, 512, 0)
        x = m.get("/walk?mib=256&n=1000")
        m.close()
        for q in (50, 99):
            b.res.add(f"a page the host itself adds, guest's clock, p{q}, us", Mayfly.name, x[f"p{q}_ns"] / 1e3)
        walk(b, Mayfly, "idle", 512, 256, 1000, bandwidth_mib_s=1)
        for kind in b.kinds:
            walk(b, kind, "bulk", 1024, 937, 4000)
        progress("faults", i + 1, b.rounds)


def recover(b):
    """The link dies in the pull; the clock runs from before the new connections to the first page over them."""
    for i in range(b.rounds):
        m = b.guest(Mayfly, 128, 64)
        dst = m.target()
        try:
            pairs = b.hosts.dial(1)
            cut = [p[0].dup() for p in pairs]
            m.hand_over(pairs, dst, "receive", "send", mode="postcopy", bandwidth_mib_s=32)
            m.pulling(dst)
            time.sleep(0.1)
            for s in cut:
                s.shutdown(2)
                s.close()
            m.until(m.now, "paused")
            left = m.until(dst, "paused")["remaining_pages"]
            start = time.monotonic()
            m.hand_over(b.hosts.dial(1), dst, "recover", "recover")
            m.until(dst, "active", every=0.001, ok=lambda st: st["recoveries"] and st["remaining_pages"] < left)
            b.res.add("reconnect to pull resumed, ms", Mayfly.name, (time.monotonic() - start) * 1e3)
        finally:
            m.leave(dst)
            m.close()
        progress("recover", i + 1, b.rounds)


def timeline(b):
    """What a client sees: one move of each kind, 512 MiB of which 256 were touched."""
    for kind, mode in [(Mayfly, x) for x in ("precopy", "hybrid", "postcopy")] + [(k, "postcopy") for k in b.kinds[1:]]:
        m = b.guest(kind, 512, 256)
        try:
            m.move(mode=mode)
            x = m.move(mode=mode)
            b.res.timeline[f"{kind.name}, {mode}"] = {"samples": x["samples"], "total_ms": x["total_ms"]}
        finally:
            m.close()
    progress("timeline", 1, 1)


SECTIONS = (("raw", raw), ("downtime", downtime), ("totals", totals), ("precopy", precopy), ("faults", faults),
            ("recover", recover), ("timeline", timeline))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--build", default="build")
    ap.add_argument("--only", default=",".join(name for name, _ in SECTIONS))
    ap.add_argument("--rounds", type=int, default=0)
    ap.add_argument("--out", default=None, help="folder of the report (docs/benchmarks)")
    args = ap.parse_args()
    args.rt, args.secs = False, 0
    for path in ("/dev/kvm", "/dev/userfaultfd"):
        if not os.access(path, os.R_OK | os.W_OK) or os.geteuid():
            print(f"bench-migration: needs {path} and root (network namespaces and taps): skipped")
            return
    with Hosts() as hosts:
        b = Bench(args, hosts)
        args.rounds = b.rounds
        info = facts(args)
        info["priority"] = f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"
        try:
            for name, fn in SECTIONS:
                if name in args.only.split(","):
                    fn(b)
        finally:
            if b.last:
                b.last.close()  # closed already, unless something went wrong
    for row, by in b.res.rows.items():
        print(f"  {row:<62}" + "   ".join(f"{who} {num(median(x))} (p99 {num(p99(x))})" for who, x in by.items()))
    write_report({"facts": info, "skipped": b.skipped, "rows": b.res.rows, "hist": b.res.hist,
                  "timeline": b.res.timeline}, args)


if __name__ == "__main__":
    main()
