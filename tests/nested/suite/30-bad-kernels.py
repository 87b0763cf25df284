#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kernels and initrds that cannot work: a clear error from the API or a clear end, never a hang, and the monitor that
refused is still there to be configured rightly."""
# timeout: 240
import os
import re
import struct
import subprocess

from lib import ARGS, WORK, ApiError, Guest, asset, check, linux, note


def file(name, data, size=None):
    path = os.path.join(WORK, name)
    with open(path, "wb") as f:
        f.write(data)
        if size:
            f.truncate(size)
    return path


with open(linux(), "rb") as f:
    elf = f.read()
with open(linux(form="bzImage"), "rb") as f:
    bz = f.read()


def patched(data, offset, form, value):
    out = bytearray(data)
    struct.pack_into(form, out, offset, value)
    return bytes(out)


initrd = asset("initrd.gz")
REFUSED = {
    "empty kernel": dict(kernel=file("empty", b"")),
    "a text file as kernel": dict(kernel=file("text", b"#!/bin/sh\n" * 100)),
    "a 32-bit ELF": dict(kernel=file("elf32", patched(elf[:4096], 4, "B", 1))),
    "an ELF for arm64": dict(kernel=file("arm64", patched(elf, 18, "<H", 183))),
    "an ELF cut in the middle": dict(kernel=file("cut", elf[:len(elf) // 2])),
    "program headers past the end": dict(kernel=file("phoff", patched(elf, 32, "<Q", 1 << 40))),
    "a bzImage cut in the middle": dict(kernel=file("bzcut", bz[:2000])),
    "a bzImage of an old protocol": dict(kernel=file("bzold", patched(bz, 0x206, "<H", 0x200))),
    "a kernel larger than RAM": dict(kernel=linux(), mem=16),
    "a bzImage that unpacks beyond RAM": dict(kernel=linux(form="bzImage"), mem=24),
    "an initrd larger than RAM": dict(kernel=linux(), initrd=file("big", b"x", 200 << 20), mem=128),
    "a command line of 2,049 bytes": dict(kernel=linux(), base_args="a" * 2049),
}
for name, kw in REFUSED.items():
    try:
        g = Guest(**{"initrd": initrd, "args": "", **kw}).start()
    except ApiError as e:
        note(f"{name}: {str(e)[:170]}")
        g = e.monitor
    else:
        raise AssertionError(f"{name}: was started\n{g.tail()}")
    check(g.process.poll() is None, f"{name}: the monitor ended with {g.process.returncode}")
    check(g.get("/")["state"] == "Not started", f"{name}: what was refused changed the state")
    g.put("/machine-config", vcpu_count=1, mem_size_mib=128)
    g.put("/boot-source", kernel_image_path=linux(), initrd_path=initrd, boot_args=ARGS)
    g.put("/actions", action_type="InstanceStart")
    g.close()

# Garbage that looks like a kernel.
ENDS = {
    "code overwritten with zeros": dict(kernel=file("zeros", elf[:0x200000] + bytes(4 << 20) + elf[0x600000:])),
    "code overwritten with noise": dict(kernel=file("noise", elf[:0x200000] + os.urandom(4 << 20) + elf[0x600000:])),
}
for name, kw in ENDS.items():
    g = Guest(**{"initrd": initrd, **kw}).start()
    try:
        status = g.process.wait(15)
    except subprocess.TimeoutExpired:
        # A guest may loop for ever; its monitor must still answer and be ended.
        check(g.get("/")["state"] == "Running", f"{name}: the API does not answer")
        note(f"{name}: runs on without output, the API answers")
    else:
        check(status in (0, 3), f"{name}: exit status {status}\n{g.tail()}")
        note(f"{name}: exit status {status}, {(g.stderr().splitlines() or ['-'])[-1][:160]}")
    g.close()

# Sound kernels that lack what they need say so, and end by panic=1.
PANICS = {
    "no root, no initrd": dict(kernel=linux(), initrd=None),
    "an initrd of noise": dict(kernel=linux(), initrd=file("noise.gz", os.urandom(100000))),
    # Debian's kernel has its virtio drivers as modules: without them it sees the transport's devices and no disk.
    "a kernel without virtio": dict(kernel=asset("cloud-6.1", "vmlinuz"), initrd=None, root=asset("debian.ext4"), root_ro=True),
}
for name, kw in PANICS.items():
    g = Guest(**{"initrd": initrd, **kw}).start()
    check(g.wait(30) == 0, f"{name}: exit status {g.process.returncode}\n{g.tail()}")
    said = re.search(r"Kernel panic - not syncing: (.*)", g.console())
    check(said and "Unable to mount root fs" in said[1], f"{name}: the kernel does not say what it lacks\n{g.tail()}")
    note(f"{name}: {said[1]}, exit status 0")
    g.close()
