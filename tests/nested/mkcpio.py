#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Packs a folder as a gzip'd newc initramfs, owned by root and the same bytes every time; adds /dev/console.

usage: mkcpio.py FOLDER OUTPUT
"""
import gzip
import os
import stat
import sys


def entry(out, name, mode, data=b"", rdev=(0, 0)):
    entry.ino += 1
    path = name.encode() + b"\0"
    fields = (entry.ino, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(path), 0)
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + path
    out.write(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))


entry.ino = 0


def main():
    top, output = sys.argv[1:]
    with open(output + ".new", "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as out:
        for folder, dirs, files in os.walk(top):
            dirs.sort()
            rel = os.path.relpath(folder, top)
            if rel != ".":
                entry(out, rel, stat.S_IFDIR | 0o755)
            for f in sorted(files + [d for d in dirs if os.path.islink(os.path.join(folder, d))]):
                path, name = os.path.join(folder, f), os.path.normpath(os.path.join(rel, f))
                if os.path.islink(path):
                    entry(out, name, stat.S_IFLNK | 0o777, os.readlink(path).encode())
                else:
                    with open(path, "rb") as src:
                        mode = stat.S_IFREG | (0o755 if os.access(path, os.X_OK) else 0o644)
                        entry(out, name, mode, src.read())
        if not os.path.isdir(os.path.join(top, "dev")):
            entry(out, "dev", stat.S_IFDIR | 0o755)
        entry(out, "dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1))
        entry(out, "TRAILER!!!", 0)
    os.rename(output + ".new", output)


main()
