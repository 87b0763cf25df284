#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PUT /cpu-config in Firecracker's form: what its modifiers set and clear, every processor of the guest sees, in CPUID, in
what its kernel makes of it, and in an MSR. So that hosts that differ show one processor to the guests of a fleet."""
# timeout: 120
import re

from lib import Guest, asset, check, no_faults, note

N = 2


def text(four):
    return "0b" + format(int.from_bytes(four.encode().ljust(4, b"\0"), "little"), "032b")


def clear(*bits):
    return "0b" + "".join("0" if b in bits else "x" for b in range(31, -1, -1))


def leaf(number, subleaf="0x0", flags=0, **registers):
    return {"leaf": number, "subleaf": subleaf, "flags": flags,
            "modifiers": [{"register": r, "bitmap": b} for r, b in registers.items()]}


MICROCODE = 0x0badcafe00000000      # in its upper half, where Intel's and, whole, AMD's kernels read it
MODEL = 0x00a20f12
g = Guest(asset("cloud-6.1", "vmlinuz"), asset("cloud-6.1", "initrd.gz"), vcpus=N, mem=256, script="""
    probe cpuid || exit 1
    cat /proc/cpuinfo
    probe rdmsr 0x8b || exit 2""")
g.put("/cpu-config", cpuid_modifiers=[
    leaf("0x1", eax="0b" + format(MODEL, "032b"), ecx=clear(20, 30)),               # SSE4.2, RDRAND
    leaf("0x7", flags=1, ebx=clear(3, 5, 8, 18)),                                   # BMI1, AVX2, BMI2, RDSEED
    leaf("0x80000002", eax=text("Flee"), ebx=text("t pr"), ecx=text("oces"), edx=text("sor"))],
    msr_modifiers=[{"addr": "0x8b", "bitmap": "0b" + format(MICROCODE, "064b")}])
console = g.start().script_passed()
check(g.wait() == 0, f"exit status {g.process.returncode}")
# Now that it has ended. One complaint is right: what a Zen 3 that lacks its microcode should worry about.
no_faults(g.console(), but="Speculative Return Stack Overflow: WARNING")
seen = {}
for cpu, num, sub, *regs in re.findall(r"^cpuid (\d+) (\w+) (\w+): (\w+) (\w+) (\w+) (\w+)$", console, re.M):
    seen[int(cpu), int(num, 16), int(sub, 16)] = [int(r, 16) for r in regs]
for cpu in range(N):
    eax, _, ecx, _ = seen[cpu, 1, 0]
    check(eax == MODEL, f"cpu {cpu}: leaf 1 EAX is {eax:#x}")
    check(not ecx & (1 << 20 | 1 << 30) and ecx & 1, f"cpu {cpu}: leaf 1 ECX is {ecx:#x}")
    ebx = seen[cpu, 7, 0][1]
    check(not ebx & (1 << 3 | 1 << 5 | 1 << 8 | 1 << 18), f"cpu {cpu}: leaf 7 EBX is {ebx:#x}")
names = re.findall(r"^model name\s*: (.*)$", console, re.M)
check(len(names) == N and all(x.startswith("Fleet processor") for x in names), f"model name: {names}")
flags = re.findall(r"^flags\s*: (.*)$", console, re.M)
check(len(flags) == N and all("sse4_1" in f.split() for f in flags), f"flags: {flags}")
gone = {"sse4_2", "rdrand", "bmi1", "bmi2", "avx2", "rdseed"}
check(not any(gone & set(f.split()) for f in flags), f"flags that were cleared: {[gone & set(f.split()) for f in flags]}")
found = re.search(r"^msr 0x8b: (\w+)$", console, re.M)
check(found and int(found[1], 16) == MICROCODE, f"MSR 0x8b: {found and found[1]}")
note(f"{names[0]}, {len(flags[0].split())} flags, MSR 0x8b {found[1]}")
g.close()
