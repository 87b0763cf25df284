#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sums what gcov says of virtio/ and of the parsers after the unit tests ran. usage: coverage.py BUILD"""
import glob
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PARSERS = ["api-socket/http.c", "api-socket/json.c", "api-socket/json_bind.c", "api-socket/cpu.c", "api-socket/routes.c",
           "vmm/boot/elf.c", "vmm/boot/bzimage.c", "vmm/boot/cmdline.c", "snapshot/codec.c",
           "snapshot/mig_wire.c"]
LINES, BRANCHES = 90, 80  # percent, of each group


def gcov(build, source):
    """(lines, reached, branches, taken) of one source file alone, not of the headers it includes."""
    out = subprocess.run(["gcov", "-b", "-n", "-o", os.path.join(build, "obj", source[:-2] + ".o"), source],
                         cwd=ROOT, capture_output=True, text=True).stdout
    part = re.search(rf"File '{re.escape(source)}'\n(.*?)(\n\n|\Z)", out, re.S)
    if not part:
        return 0, 0, 0, 0
    n = [0, 0, 0, 0]
    for i, word in ((0, "Lines executed"), (2, "Taken at least once")):
        m = re.search(rf"{word}:([\d.]+)% of (\d+)", part[1])
        if m:
            n[i], n[i + 1] = int(m[2]), round(float(m[1]) / 100 * int(m[2]))
    return tuple(n)


def main():
    build, bad = sys.argv[1], 0
    groups = {"virtio": sorted(os.path.relpath(f, ROOT) for f in glob.glob(os.path.join(ROOT, "virtio", "*.c"))),
              "parsers": PARSERS}
    for group, files in groups.items():
        total = [0, 0, 0, 0]
        for f in files:
            got = gcov(os.path.abspath(build), f)
            if not got[0]:
                print(f"{f}: gcov knows nothing of it")
                bad += 1
                continue
            total = [a + b for a, b in zip(total, got)]
            print(f"  {f}: {100 * got[1] / got[0]:.1f} % of {got[0]} lines, {100 * got[3] / max(got[2], 1):.1f} % of {got[2]} branches")
        lines, branches = 100 * total[1] / max(total[0], 1), 100 * total[3] / max(total[2], 1)
        print(f"{group}: {lines:.1f} % of {total[0]} lines, {branches:.1f} % of {total[2]} branches")
        bad += lines < LINES or branches < BRANCHES
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
