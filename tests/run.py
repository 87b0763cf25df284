#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs unit test binaries and integration tests; the last line is `N passed, N failed, N skipped`.

usage: tests/run.py [--build DIR] [--skips FILE] [--only SUBSTRING,...] [--but SUBSTRING]... [--units NAME,NAME] [--lane]
                    [unit] [integration]
A unit test that cannot run on this host prints `SKIP: name: reason`. --skips names a file of permitted
reasons (one regular expression a line); any other skip then counts as a failure. --lane: where /dev/kvm is
missing, what needs it runs inside the nested lane, and both sums are one; tests/nested/left-out names what
the lane cannot take.
"""
import argparse
import os
import re
import subprocess
import sys
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NESTED = os.path.join(ROOT, "tests", "nested")
LANE_DONE = os.environ.get("LANE_DONE", "").split()
LANE_DEADLINE = int(os.environ.get("LANE_DEADLINE", 5400))
COUNTS = re.compile(r"(\d+) passed, (\d+) failed, (\d+) skipped")
CHECK = re.compile(r"\d+%: Checks: (\d+), Failures: (\d+), Errors: (\d+)")


class Tally:
    def __init__(self):
        self.passed, self.failed, self.skips = 0, 0, []
        self.unit_passed = {}

    def skip(self, name, reason):
        self.skips.append((name, reason))
        print(f"  SKIP {name}: {reason}", flush=True)


def wanted(name, only, but):
    return any(word in name for word in only.split(",")) and not any(b in name for b in but)


def run_unit(build, only, but, tally, units=None):
    folder = os.path.join(build, "unit")
    names = sorted(n for n in os.listdir(folder) if n.startswith("test_") and wanted(n, only, but))
    if units is not None:
        names = share([n for n in names if n in units])
    for name in names:
        start = time.monotonic()
        try:
            p = subprocess.run([os.path.join(folder, name)], cwd=ROOT, capture_output=True, text=True,
                               errors="replace", timeout=600)
            out, code = p.stdout + p.stderr, p.returncode
        except subprocess.TimeoutExpired as e:
            out, code = f"timed out: {e}", -1
        m = CHECK.search(out)
        skips = re.findall(r"^SKIP: (.*?): (.*)$", out, re.M)
        took = time.monotonic() - start
        if m is None and skips and code == 0:
            print(f"  ok   {name}: nothing for this host ({took:.1f} s)", flush=True)
        elif m is None or code != 0:
            bad = int(m[2]) + int(m[3]) if m else 1
            tally.failed += max(bad, 1)
            tally.passed += int(m[1]) - bad if m else 0
            print(f"  FAIL {name} ({took:.1f} s), exit status {code}\n{out[-6000:]}", flush=True)
        else:
            tally.passed += int(m[1]) - len(skips)
            tally.unit_passed[name] = int(m[1]) - len(skips)
            print(f"  ok   {name}: {m[1]} checks ({took:.1f} s)", flush=True)
        for what, why in skips:
            tally.skip(f"{name}/{what}", why)


def share(names):
    """This lane's (LANE_SHARD=I/N), where several share the work, less what an earlier machine did (LANE_DONE)."""
    i, n = map(int, os.environ.get("LANE_SHARD", "0/1").split("/"))
    return [name for name in names[i::n] if name not in LANE_DONE]


def name_of(test):
    return type(test).id(test)  # a test may have an attribute of that name


class Result(unittest.TestResult):
    def __init__(self, tally):
        super().__init__()
        self.tally, self.start = tally, {}

    def startTest(self, test):
        super().startTest(test)
        self.start[name_of(test)] = time.monotonic()

    def _say(self, word, test, detail=""):
        took = time.monotonic() - self.start.get(name_of(test), time.monotonic())
        print(f"  {word} {name_of(test)} ({took:.1f} s){detail}", flush=True)

    def addSuccess(self, test):
        self.tally.passed += 1
        self._say("ok  ", test)

    def addFailure(self, test, err):
        self.tally.failed += 1
        self._say("FAIL", test, "\n" + self._exc_info_to_string(err, test))

    addError = addFailure

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addFailure(subtest, err)

    def addSkip(self, test, reason):
        self.tally.skip(name_of(test), reason)

    def addExpectedFailure(self, test, err):
        self.addFailure(test, err)


def run_integration(build, only, but, tally, left_out=()):
    os.environ["MAYFLY_BUILD"] = os.path.abspath(build)
    folder = os.path.join(ROOT, "tests", "integration")
    sys.path.insert(0, folder)
    suite = unittest.defaultTestLoader.discover(folder, pattern="test_*.py", top_level_dir=folder)

    def flat(s):
        for t in s:
            if isinstance(t, unittest.TestSuite):
                yield from flat(t)
            else:
                yield t
    chosen = unittest.TestSuite()
    tests = [t for t in flat(suite) if wanted(name_of(t), only, but)]
    mine = share(sorted({name_of(t).rpartition(".")[0] for t in tests}))
    for t in tests:
        if name_of(t).rpartition(".")[0] not in mine or name_of(t) in LANE_DONE:
            continue
        reason = next((why for what, why in left_out if what.fullmatch(name_of(t))), None)
        if reason is None:
            chosen.addTest(t)
        else:
            tally.skip(name_of(t), f"left out in the lane: {reason}")
    chosen.run(Result(tally))


def read_left_out():
    """(regular expression, reason) of each test that the nested lane cannot take."""
    with open(os.path.join(NESTED, "left-out")) as f:
        lines = [x.strip().split(": ", 1) for x in f if x.strip() and not x.startswith("#")]
    return [(re.compile(what), why) for what, why in lines]


def no_kvm():
    """By opening it: a container may show a /dev/kvm that it may not open."""
    p = subprocess.run([os.path.join(NESTED, "host-kvm.sh")], stdout=subprocess.PIPE, text=True)
    return p.stdout.strip() == "none"


def run_in_lane(a, suites, tally):
    """What needs /dev/kvm, in an emulated machine that has one: this same script there, its lines and sums here."""
    left_out = [what for what, _ in read_left_out()]
    units = sorted({n.split("/")[0] for n, why in tally.skips if "/dev/kvm" in why})
    units = [u for u in units if not any(what.fullmatch("unit." + u) for what in left_out)]
    tally.skips = [(n, why) for n, why in tally.skips if n.split("/")[0] not in units]
    wanted = (["unit"] if units else []) + [s for s in suites if s == "integration"]
    if not wanted:
        return
    print(f"== in the nested lane: {' '.join(wanted)} ({a.build})", flush=True)
    keep = [f"--env={k}={v}" for k, v in os.environ.items() if k.startswith("MAYFLY_")]
    # What ran here too counts once: there.
    tally.passed -= sum(tally.unit_passed.get(u, 0) for u in units)
    p = subprocess.Popen([os.path.join(NESTED, "lanes.py"), "--deadline", str(LANE_DEADLINE), *keep,
                          "python3", "tests/run.py", "--build", os.path.relpath(a.build, ROOT), "--only", a.only,
                          "--units", ",".join(units), "--left-out", *wanted], cwd=ROOT, stdout=subprocess.PIPE, text=True, errors="replace")
    last = ""
    for line in p.stdout:
        line = line.rstrip()
        skip = re.match(r"  SKIP (.+?): (.*)", line)
        if skip:
            tally.skips.append((skip[1], skip[2]))
        last = line or last
        print("  lane |" + line, flush=True)
    status = p.wait()
    counts = COUNTS.fullmatch(last)
    if counts:
        tally.passed += int(counts[1])
        tally.failed += int(counts[2])
    if not counts or (status != 0 and counts[2] == "0"):
        tally.failed += 1
        print(f"  FAIL the nested lane: it ended with status {status}", flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--build", default=os.path.join(ROOT, "build"))
    ap.add_argument("--skips")
    ap.add_argument("--only", default="")
    ap.add_argument("--but", action="append", default=[], help="leave out what has this in its name")
    ap.add_argument("--units", help="only these unit test binaries")
    ap.add_argument("--lane", action="store_true")
    ap.add_argument("--left-out", action="store_true", help="without what tests/nested/left-out names")
    ap.add_argument("suites", nargs="*", default=[])
    a = ap.parse_args()
    suites = a.suites or ["unit", "integration"]
    tally = Tally()
    lane = a.lane and no_kvm()
    if lane:
        print("check: /dev/kvm is not here or not ours; what needs it runs inside the nested lane instead", flush=True)
    if "unit" in suites:
        print(f"== unit ({a.build})", flush=True)
        run_unit(a.build, a.only, a.but, tally, None if a.units is None else a.units.split(","))
    if lane:
        run_in_lane(a, suites, tally)
    elif "integration" in suites:
        print(f"== integration ({a.build})", flush=True)
        run_integration(a.build, a.only, a.but, tally, read_left_out() if a.left_out else ())
    if a.skips:
        with open(a.skips) as f:
            allowed = [re.compile(x.strip()) for x in f if x.strip() and not x.startswith("#")]
        for name, reason in tally.skips:
            if not any(r.search(f"{name}: {reason}") for r in allowed):
                tally.failed += 1
                print(f"  FAIL {name}: this skip is not on the list: {reason}")
    print(f"{tally.passed} passed, {tally.failed} failed, {len(tally.skips)} skipped")
    return 1 if tally.failed or not (tally.passed or "LANE_SHARD" in os.environ) else 0    # a lane may have no share


if __name__ == "__main__":
    sys.exit(main())
