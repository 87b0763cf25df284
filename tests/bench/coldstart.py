#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cold starts: six clocks of a restore, many restores at once, how many fit, what making a snapshot takes.

Mayfly, Firecracker (PEER_FIRECRACKER) and the bare system calls in turns on the same host, with the same guest
(tests/guest, function.elf), one tap and one drive each. Writes docs/benchmarks/coldstart.md, plots beside it, and
build/bench/coldstart.json. Reports; does not judge.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from bench import facts, median, num, p99, progress
from coldstart_host import (GUEST, Names, api, create as create_snapshot, drop_cache, guest, meminfo, monitors, own_kib,
                            pss_kib, recorded, restored, run, switches)
from coldstart_report import write_report

MIB = 1 << 20


class Variant:
    """One way to restore: which monitor, started before the clock or on it."""

    def __init__(self, name, bench, peer, shell, working_set=False):
        self.name, self.bench, self.peer, self.shell, self.working_set = name, bench, peer, shell, working_set

    def lives(self, n, together, mem, touch=0, cold=False, huge=False):
        """n lives, `together` at a time: a list of dicts."""
        b, snap = self.bench, self.bench.snapshot(self.peer, mem, huge)
        work = tempfile.mkdtemp(dir=b.fast)
        load = {"snapshot_path": snap + ".state", "resume_vm": True,
                "mem_backend": {"backend_type": "File", "backend_path": snap + ".mem"}}
        cmd = [b.firecracker, "--api-sock", work + "/@I@.sock", "--no-seccomp", "--level", "Off", "--log-path",
               "/dev/null"]
        args = []
        if self.peer == "mayfly":
            load["drive_overrides"] = [{"drive_id": "disk", "cow_path": work + "/@I@.cow"}]
            if self.working_set:
                load["working_set_path"] = b.working_set(mem, touch)
            for i in range(n):
                open(f"{work}/{i}.cow", "w").close()
            cmd = [b.mayfly, "--api-sock", work + "/@I@.sock", "--passed-fd", "api=214", "--level", "Off",
                   "--allow-dir", b.work, "--allow-dir", work]
            args.append("--handed")
        if self.shell:
            args += ["--shell", json.dumps({"vcpu_count": 1, "mem_size_mib": mem}) if self.peer == "mayfly" else "-"]
        if touch:
            args += ["--touch", str(touch)]
        with open(work + "/load", "w") as f:
            json.dump(load, f)
        if cold:
            drop_cache(snap + ".mem")
        try:
            rt = ["chrt", "-r", "1"] if b.args.rt and together == 1 else []
            out = run(*rt, b.tool, "lives", *args, str(n), b.names.prefix, work, GUEST, work + "/load", str(together), *cmd)
        finally:
            shutil.rmtree(work)
            time.sleep(together / 100)  # the kernel takes so many VMs down for a while
        return [json.loads(line) for line in out.splitlines()]


class Bench:
    def __init__(self, args, names, work):
        self.args, self.names, self.work = args, names, work
        self.fast = tempfile.mkdtemp(prefix="mayfly-cold-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.build = os.path.abspath(args.build)
        self.mayfly = os.path.join(self.build, "mayfly")
        self.ctl = os.path.join(self.build, "mayflyctl")
        self.tool = os.path.join(self.build, "bench", "coldstart")
        self.kernel = os.path.join(self.build, "guests", "function.elf")
        self.firecracker = os.environ.get("PEER_FIRECRACKER", "")
        self.snapshots = {}
        self.working_sets = {}
        self.variants = [Variant("mayfly", self, "mayfly", False), Variant("mayfly, shell", self, "mayfly", True),
                         Variant("mayfly, shell, working set", self, "mayfly", True, True)]
        self.skipped = None
        if self.firecracker and os.access(self.firecracker, os.X_OK):
            self.variants += [Variant("firecracker", self, "firecracker", False),
                              Variant("firecracker, shell", self, "firecracker", True)]
        else:
            self.skipped = "Firecracker was skipped: PEER_FIRECRACKER names no binary that can be executed"

    def snapshot(self, peer, mem, huge=False):
        """The path of a snapshot's two files, without their endings; made when first asked for."""
        key = (peer, mem, huge)
        if key not in self.snapshots:
            path = os.path.join(self.work, f"{peer}-{mem}{'-huge' * huge}")
            binary = self.mayfly if peer == "mayfly" else self.firecracker
            with recorded(self, peer, binary, mem, huge=huge) as m:
                m.snapshot(path)
            with open(path + ".mem", "rb") as f:  # page cache warm
                while f.read(16 * MIB):
                    pass
            self.snapshots[key] = path
        return self.snapshots[key]


    def working_set(self, mem, touch):
        """The file of what a clone touched until it had answered (and had written `touch` MiB)."""
        if (mem, touch) not in self.working_sets:
            path = os.path.join(self.work, f"{mem}-{touch}.ws")
            with restored(self, self.snapshot("mayfly", mem), touch) as m:
                m.record(path)
            self.working_sets[mem, touch] = path
        return self.working_sets[mem, touch]


class Samples(dict):
    def add(self, row, variant, value):
        self.setdefault(row, {}).setdefault(variant, []).append(value)


def clocks(b):
    """One restore at a time, by the client's stopwatch."""
    out, rounds = Samples(), b.args.rounds or 40
    for r in range(rounds // 4 + 1):
        for mem in (128, 1024):
            for v in b.variants:
                if mem == 1024 and r % 2:
                    continue
                for x in v.lives(4, 1, mem):
                    if r == 0:
                        continue  # warm-up
                    size = f", {mem} MiB"
                    if v.shell or v.peer != "mayfly":
                        out.add("load asked to answered" + size, v.name, (x["loaded"] - x["asked"]) / 1e6)
                        out.add("load asked to guest's first packet" + size, v.name, (x["echo"] - x["asked"]) / 1e6)
                    if not v.shell:
                        out.add("spawn to load answered" + size, v.name, (x["loaded"] - x["spawn"]) / 1e6)
                        out.add("spawn to guest's first packet" + size, v.name, (x["echo"] - x["spawn"]) / 1e6)
                    if mem == 128 and not v.shell:
                        out.add("killed to gone", v.name, x["end_ns"] / 1e6)
        for v in b.variants:
            for x in v.lives(2, 1, 128, touch=16) if r else ():
                out.add("load asked to 16 MiB written" if v.shell else "spawn to 16 MiB written", v.name,
                        (x["touched"] - (x["asked"] if v.shell else x["spawn"])) / 1e6)
            for x in v.lives(2, 1, 128, touch=16, huge=True) if r and v.peer == "mayfly" and not v.working_set else ():
                out.add(("load asked" if v.shell else "spawn") + " to 16 MiB written, huge_pages Transparent", v.name,
                        (x["touched"] - (x["asked"] if v.shell else x["spawn"])) / 1e6)
            for x in v.lives(1, 1, 128, cold=True) if r else ():
                out.add(("load asked" if v.shell else "spawn") + " to guest's first packet, page cache dropped", v.name,
                        (x["echo"] - (x["asked"] if v.shell else x["spawn"])) / 1e6)
        for _ in range(4 if r else 0):
            out.add("spawn to guest's first packet, 128 MiB", "floor", floor(b, 1)["ns"] / 1e6)
        progress("clocks", r, rounds // 4)
    # What a working set costs: memory that a clone would have shared, or not have had yet.
    for touch in (0, 16):
        for v in b.variants[1:3]:
            ws = b.working_set(128, touch) if v.working_set else None
            with restored(b, b.snapshot("mayfly", 128), 0, ws) as m:
                out.add(f"PSS once answered, working set of {touch} MiB written, KiB", v.name, pss_kib(m.p.pid))
    return out


def floor(b, n):
    return json.loads(run(b.tool, "floor", str(n), b.snapshot("mayfly", 128) + ".mem"))


def fan(b):
    """N restores at once: first spawn (or, with shells, first request) to the last guest's packet."""
    out = Samples()
    for n in [x for x in (1, 10, 20, 50, 100, 200) if x <= b.names.n]:
        for r in range((b.args.rounds or 40) // 8 or 1):
            for v in b.variants:
                if v.peer == "firecracker" and (n > 100 or r > 2):  # minutes, for what is known by then
                    continue
                xs = v.lives(n, n, 128)
                out.add(n, v.name, (max(x["echo"] for x in xs) -
                                    min(x["asked"] if v.shell else x["spawn"] for x in xs)) / 1e6)
            out.add(n, "floor", floor(b, n)["ns"] / 1e6)
            for name, extra in (("mayflyctl clone", ()), ("mayflyctl clone --pool", ("--pool", b.fast + "/pool"))):
                if extra:
                    pool = subprocess.Popen([b.ctl, "pool", "--dir", extra[1], "--size", str(n)])
                    while f"idle {n} of" not in subprocess.run([b.ctl, "pool", "status", "--dir", extra[1]],
                                                               capture_output=True, text=True).stdout:
                        time.sleep(0.05)
                try:
                    x = clone(b, n, *extra)
                    out.add(n, name, x["total_ms"])
                finally:
                    if extra:
                        pool.terminate()
                        pool.wait()
        progress("fan", n, 200)
    return out


def clone(b, n, *extra):
    snap = b.snapshot("mayfly", 128)
    return json.loads(run(b.ctl, "clone", "--snapshot", snap + ".state", "--mem", snap + ".mem", "-n", str(n), "--guest",
                          GUEST + "/24", "--prefix", b.names.prefix, "--dir", b.fast + "/clones", "--json", *extra))


def density(b):
    """N clones alive and answering; what the host has less of."""
    rows, given = [], [int(n) for n in (b.args.clones or "500").split(",")]
    n, most, sizes = 100, given[-1], given[:-1]
    while len(given) == 1 and n < most:
        sizes.append(n)
        n = n * 5 // 2 if len(sizes) % 2 else n * 2
    for n in sizes + [most]:
        time.sleep(3)
        start = meminfo()
        b.names.grow(n)
        time.sleep(1)
        before = meminfo()
        made = (start["MemAvailable"] - before["MemAvailable"]) / b.names.grown if b.names.grown >= 100 else None
        t = clone(b, n, "--keep")
        pids = [x["pid"] for x in t["each"]]
        time.sleep(3)
        after = meminfo()
        s0 = switches(pids)
        time.sleep(5)
        wakes = switches(pids) - s0
        again = json.loads(run(b.ctl, "ask", b.fast + "/clones", "--guest", GUEST + "/24", "--json"))
        sample = pids[:: max(1, n // 20)]
        own = [own_kib(pid) for pid in sample]
        row = {"n": n, "total_ms": t["total_ms"], "answered": t["answered"], "again": again["answered"],
               "again_ms": again["total_ms"], "pss_kib": sum(map(pss_kib, sample)) / len(sample),
               "own_rss_kib": sum(x[0] for x in own) / len(own), "own_pss_kib": sum(x[1] for x in own) / len(own),
               "wakes_per_s": wakes / 5 / n, "netns_kib": made}
        for key, name in (("MemAvailable", "available_kib"), ("Slab", "slab_kib"), ("PageTables", "tables_kib"),
                          ("KernelStack", "stack_kib")):
            row[name] = abs(after[key] - before[key]) / n
        end = time.monotonic()
        run(b.ctl, "end", b.fast + "/clones")
        while monitors(pids):
            time.sleep(0.01)
        row["end_ms"] = (time.monotonic() - end) * 1000
        rows.append(row)
        progress("density", n, most)
    return rows


def create(b):
    """Making snapshots: how long the API answers, and what lies on the disk."""
    out = Samples()
    peers = ["mayfly"] + sorted({v.peer for v in b.variants} - {"mayfly"})
    for r in range((b.args.rounds or 40) // 8 or 1):
        for peer in peers:
            binary = b.mayfly if peer == "mayfly" else b.firecracker
            for mem in (128, 1024):
                if peer == "firecracker" and r > 1:
                    continue
                with recorded(b, peer, binary, mem, touch=16) as m:
                    path = os.path.join(b.work, "made")
                    out.add(f"full, {mem} MiB with 16 MiB touched, ms", peer, m.snapshot(path) * 1000)
                    out.add(f"full, {mem} MiB, MiB on disk", peer, os.stat(path + ".mem").st_blocks * 512 / MIB)
                    for f in (path + ".mem", path + ".state"):
                        os.unlink(f)
        out.add("diff of a clone after 1 MiB written, ms", "mayfly", diff(b, b.work))
        out.add("diff of a clone after 1 MiB written, files on tmpfs, ms", "mayfly", diff(b, b.fast))
        with recorded(b, "mayfly", b.mayfly, 1024, touch=16, pause=False) as m:
            live(b, out, "booted", m.sock)
        with restored(b, b.snapshot("mayfly", 1024), 16) as m:
            live(b, out, "a clone", m.sock)
        progress("create", r + 1, (b.args.rounds or 40) // 8 or 1)
    return out


def live(b, out, what, sock):
    """The guest's own longest stop, by its TSC, while it rewrites 8 MiB at 50 MiB/s; and until the answer."""
    path = os.path.join(b.work, "live")
    for q in ("spin?on", "dirty?mib=8&rate=50"):
        guest(b, q)
    time.sleep(0.3)
    guest(b, "tsc?reset")
    took = create_snapshot(sock, path, live=True)
    out.add(f"live, 1024 MiB with 24 MiB touched, {what}: guest stopped, ms", "mayfly",
            json.loads(guest(b, "tsc"))["gap_ns"] / 1e6)
    out.add(f"live, 1024 MiB with 24 MiB touched, {what}: in all, ms", "mayfly", took * 1000)
    for f in (path + ".mem", path + ".state"):
        os.unlink(f)


def diff(b, where):
    d = b.fast + "/clones"
    clone(b, 1, "--keep", "--allow-dir", where)
    try:
        sock = f"{d}/{b.names.prefix}0.sock"
        run("ip", "netns", "exec", f"{b.names.prefix}0", "curl", "-sS", f"http://{GUEST}/touch?mib=1")
        api(sock, "PATCH", "/vm", {"state": "Paused"})
        path = os.path.join(where, "diff")
        took = api(sock, "PUT", "/snapshot/create", {"snapshot_path": path + ".state", "mem_file_path": path + ".mem",
                                                     "snapshot_type": "Diff"})
        for f in (path + ".mem", path + ".state"):
            os.unlink(f)
        return took * 1000
    finally:
        run(b.ctl, "end", d)


def plain(samples):
    for row, by in samples.items():
        print(f"  {row:<62}" + "   ".join(f"{v} {num(median(x))} (p99 {num(p99(x))})" for v, x in by.items()))


def earlier(args):
    try:
        with open(os.path.join(args.build, "bench", "coldstart.json")) as f:
            return json.load(f)
    except FileNotFoundError:
        return {}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--build", default="build")
    ap.add_argument("--only", default="clocks,fan,density,create")
    ap.add_argument("--rounds", type=int, default=0)
    ap.add_argument("--clones", default="", help="density: up to so many (500), or N,N,...: so many each time")
    ap.add_argument("--out", default=None, help="folder of the report (docs/benchmarks)")
    ap.add_argument("--add", action="store_true", help="take the parts that are not run from the run before")
    ap.add_argument("--rt", action="store_true", help="real-time priority for the clocks of one restore")
    args = ap.parse_args()
    args.secs = 0
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or os.geteuid():
        print("bench-coldstart: needs /dev/kvm and root (taps in network namespaces): skipped")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # clones and namespaces are taken away all the same
    work = tempfile.mkdtemp(prefix="mayfly-cold-", dir="/var/tmp")  # a disk, not memory
    with Names(os.path.join(os.path.abspath(args.build), "mayflyctl"), 200) as names:
        b = Bench(args, names, work)
        result = earlier(args) if args.add else {}
        result |= {"facts": facts(args), "skipped": b.skipped}
        try:
            for name, fn in (("clocks", clocks), ("fan", fan), ("create", create), ("density", density)):
                if name not in args.only.split(","):
                    continue
                before, result[name] = result.get(name, []), fn(b)
                if name == "density" and args.add:
                    new = {row["n"] for row in result[name]}
                    result[name] = sorted([r for r in before if r["n"] not in new] + result[name], key=lambda r: r["n"])
                if name != "density":
                    plain(result[name])
                else:
                    for row in result[name]:
                        print("  " + "  ".join(f"{k} {'-' if v is None else num(v)}" for k, v in row.items()))
        finally:
            subprocess.run([b.ctl, "end", b.fast + "/clones"], capture_output=True)
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(b.fast, ignore_errors=True)
    write_report(result, args)


if __name__ == "__main__":
    main()
