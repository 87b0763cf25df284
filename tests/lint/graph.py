#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Walks the #include graph of the rooms and fails on an arrow that points the wrong way.

Also holds the house's sizes: files of at most 400 lines, functions of at most 60, and fewer than 10,000
lines of C in the trusted base. A line of C is one with code in it: blank lines and lines that hold nothing
but a comment do not count there (they do for files and functions); both figures are printed.
"""
import glob
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LEAVES = {"vmm/base.h"}
# room: prefixes (or headers) it may include besides itself
ROOMS = {
    "vmm/mem": [],
    "vmm/vcpu": ["vmm/mem/"],
    "vmm/dev": [],
    "vmm/boot": ["vmm/mem/", "vmm/config.h", "vmm/dev/platform.h"],
    "virtio": ["vmm/mem/"],
    "jail": [],
    "vmm": ["vmm/vcpu/", "vmm/mem/", "vmm/boot/", "vmm/dev/", "virtio/"],
    "snapshot": ["vmm/vm.h", "vmm/handover.h", "vmm/config.h", "vmm/state.h", "vmm/log.h", "vmm/version.h", "vmm/mem/",
                 "vmm/vcpu/state.h", "vmm/vcpu/cpuid.h", "vmm/dev/dev.h", "virtio/virtio.h",
                 "virtio/ratelimit.h"],
    "api-socket": ["vmm/vm.h", "vmm/config.h", "vmm/log.h", "vmm/version.h", "snapshot/snapshot.h", "snapshot/mig.h"],
    "api-socket/ctl": ["snapshot/codec.h", "snapshot/memfile.h", "snapshot/wset.h", "snapshot/mig_priv.h", "snapshot/mig_sock.h",
                       "vmm/version.h",
                       "jail/jail.h"],
}
# A plain-data header that config.h (a leaf of vmm/) stands on.
CONFIG_NEEDS = {"vmm/config.h": ["virtio/ratelimit.h"]}
WIRES_ALL = {"vmm/main.c"}
TRUSTED = ["vmm", "vmm/mem", "vmm/vcpu", "vmm/dev", "vmm/boot", "virtio", "jail", "jail/cmd", "jail/gen",
           "api-socket", "snapshot"]
LIMIT = 10000    # the goal
RATCHET = 18341  # what the base may not outgrow while it misses the goal; lower it with every deletion
# Rooms that know nothing of KVM, not even by way of what they include.
NO_KVM = ["virtio"]
KVM_HEADERS = {"linux/kvm.h", "vmm/vm_priv.h", "vmm/vm.h"}
KVM_WORD = re.compile(r"\bKVM_[A-Z]")


def room_of(path):
    best = ""
    for r in ROOMS:
        if path.startswith(r + "/") and len(r) > len(best):
            best = r
    return best


def allowed(src, inc):
    if inc in LEAVES or src in WIRES_ALL:
        return True
    room, target = room_of(src), room_of(inc)
    if room == target:
        return True
    if inc in CONFIG_NEEDS.get(src, []):
        return True
    return any(inc.startswith(p) for p in ROOMS[room])


def code_lines(text):
    """Lines with code in them: comments and blanks are taken out, literals are left alone."""
    token = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|//[^\n]*|/\*.*?\*/', re.S)
    bare = token.sub(lambda m: re.sub(r"[^\n]", "", m[0]) if m[0][0] == "/" else m[0], text)
    return sum(1 for line in bare.split("\n") if line.strip())


def includes(path):
    """What a file of ours includes, itself and by way of other files of ours."""
    seen, todo = {}, [path]
    while todo:
        rel = todo.pop()
        with open(os.path.join(ROOT, rel)) as h:
            found = re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', h.read(), re.M)
        for inc in found:
            if inc not in seen:
                seen[inc] = rel
                if os.path.exists(os.path.join(ROOT, inc)):
                    todo.append(inc)
    return seen


def knows_kvm(rel, text):
    for header, by in includes(rel).items():
        if header in KVM_HEADERS or header.startswith("vmm/vcpu/"):
            yield f"{rel}: {os.path.dirname(rel)} knows nothing of KVM, but {by} includes {header}"
    if KVM_WORD.search(text):
        yield f"{rel}: {os.path.dirname(rel)} knows nothing of KVM, but names {KVM_WORD.search(text)[0]}..."


def functions(lines):
    """(name line, length) of every function: a brace in column 0 opens, one closes."""
    start = None
    for i, line in enumerate(lines, 1):
        if line.startswith("{"):
            start = i
        elif line.startswith("}") and start is not None:
            if not line.startswith("};") and not line.startswith("} "):
                yield start, i - start + 1
            start = None


def main():
    bad, base, code = [], 0, 0
    files = sorted(f for r in {*ROOMS, *TRUSTED} for f in glob.glob(os.path.join(ROOT, r, "*.[ch]")))
    for f in files:
        rel = os.path.relpath(f, ROOT)
        with open(f) as h:
            text = h.read()
        lines = text.splitlines()
        if os.path.dirname(rel) in TRUSTED:
            base += len(lines)
            code += code_lines(text)
        if len(lines) > 400:
            bad.append(f"{rel}: {len(lines)} lines, 400 allowed")
        for at, n in functions(lines):
            if n > 60:
                bad.append(f"{rel}:{at}: function of {n} lines, 60 allowed")
        if os.path.dirname(rel) in NO_KVM:
            bad += knows_kvm(rel, text)
        if "SPDX-License-Identifier: Apache-2.0" not in lines[0]:
            bad.append(f"{rel}: no SPDX line at its head")
        for i, line in enumerate(lines, 1):
            m = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if m and room_of(m[1]) and not allowed(rel, m[1]):
                bad.append(f"{rel}:{i}: {room_of(rel)} may not include {m[1]}")
    if code > RATCHET:
        bad.append(f"the trusted base has grown to {code} lines of code, over the {RATCHET} written in {os.path.basename(__file__)}")
    if code >= LIMIT:
        text = f"the trusted base has {code} lines of code, fewer than {LIMIT} allowed"
        # A fault, unless the caller asks to be told alone: CI does while the goal is missed.
        if "--size-told" in sys.argv:
            print(f"GOAL MISSED: {text}")
        else:
            bad.append(text)
    for b in bad:
        print(b)
    print(f"include graph and sizes: {len(files)} files; trusted base: {code} lines of code, {base} with comments and "
          f"blanks; {len(bad)} faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
