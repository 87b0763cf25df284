# SPDX-License-Identifier: Apache-2.0
"""Boots one of our own kernels in every form a monitor can be given."""
import os
import struct

from lib import WORK, Guest, asset, check, linux, no_faults, note


def without_pvh(vmlinux):
    """A copy whose Xen PVH note (type 18) has a type nobody knows: the 64-bit entry remains."""
    with open(vmlinux, "rb") as f:
        data = bytearray(f.read())
    phoff, = struct.unpack_from("<Q", data, 32)
    phentsize, phnum = struct.unpack_from("<HH", data, 54)
    found = 0
    for i in range(phnum):
        kind, = struct.unpack_from("<I", data, phoff + i * phentsize)
        offset, = struct.unpack_from("<Q", data, phoff + i * phentsize + 8)
        size, = struct.unpack_from("<Q", data, phoff + i * phentsize + 32)
        if kind != 4:
            continue
        at = offset
        while at + 12 <= offset + size:
            namesz, descsz, ntype = struct.unpack_from("<III", data, at)
            if data[at + 12:at + 15] == b"Xen" and ntype == 18:
                struct.pack_into("<I", data, at + 8, 0x7777)
                found += 1
            at += 12 + (namesz + 3 & ~3) + (descsz + 3 & ~3)
    check(found == 1, "the kernel has no PVH note to hide")
    out = os.path.join(WORK, "elf64")
    with open(out, "wb") as f:
        f.write(data)
    return out


def boot(kernel, name, **kw):
    g = Guest(kernel, **kw).start()
    up = g.up()[0]
    check(g.wait() == 0, f"{name}: exit status {g.process.returncode}")
    no_faults(g.console(), name)
    note(f"{name}: {up[6:]}")
    g.close()


def every_form(version):
    initrd, root = asset("initrd.gz"), asset("debian.ext4")
    for form, kernel in (("PVH", linux(version)), ("ELF64", without_pvh(linux(version))),
                         ("bzImage", linux(version, "bzImage"))):
        boot(kernel, f"{version} {form} initrd", initrd=initrd)
        boot(kernel, f"{version} {form} root drive", root=root, root_ro=True, mem=512)
