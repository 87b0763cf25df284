#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs unit test binaries and integration tests; the last line is `N passed, N failed, N skipped`.

usage: tests/run.py [--build DIR] [--skips FILE] [--only SUBSTRING] [unit] [integration]
A unit test that cannot run on this host prints `SKIP: name: reason`. --skips names a file of permitted
reasons (one regular expression a line); any other skip then counts as a failure.
"""
import argparse
import os
import re
import subprocess
import sys
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHECK = re.compile(r"\d+%: Checks: (\d+), Failures: (\d+), Errors: (\d+)")


class Tally:
    def __init__(self):
        self.passed, self.failed, self.skips = 0, 0, []

    def skip(self, name, reason):
        self.skips.append((name, reason))
        print(f"  SKIP {name}: {reason}", flush=True)


def run_unit(build, only, tally):
    folder = os.path.join(build, "unit")
    names = sorted(n for n in os.listdir(folder) if n.startswith("test_") and only in n)
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
        if m is None or code != 0:
            bad = int(m[2]) + int(m[3]) if m else 1
            tally.failed += max(bad, 1)
            tally.passed += int(m[1]) - bad if m else 0
            print(f"  FAIL {name} ({took:.1f} s), exit status {code}\n{out[-6000:]}", flush=True)
        else:
            tally.passed += int(m[1]) - len(skips)
            print(f"  ok   {name}: {m[1]} checks ({took:.1f} s)", flush=True)
        for what, why in skips:
            tally.skip(f"{name}/{what}", why)


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


def run_integration(build, only, tally):
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
    chosen = unittest.TestSuite(t for t in flat(suite) if only in name_of(t))
    chosen.run(Result(tally))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--build", default=os.path.join(ROOT, "build"))
    ap.add_argument("--skips")
    ap.add_argument("--only", default="")
    ap.add_argument("suites", nargs="*", default=[])
    a = ap.parse_args()
    suites = a.suites or ["unit", "integration"]
    tally = Tally()
    for s in suites:
        print(f"== {s} ({a.build})", flush=True)
        {"unit": run_unit, "integration": run_integration}[s](a.build, a.only, tally)
    if a.skips:
        with open(a.skips) as f:
            allowed = [re.compile(x.strip()) for x in f if x.strip() and not x.startswith("#")]
        for name, reason in tally.skips:
            if not any(r.search(f"{name}: {reason}") for r in allowed):
                tally.failed += 1
                print(f"  FAIL {name}: this skip is not on the list: {reason}")
    print(f"{tally.passed} passed, {tally.failed} failed, {len(tally.skips)} skipped")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())
