#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows a real Debian guest: boots it from a virtio-blk root, waits for its Python function, calls it over virtio-net."""
import os
import sys
import time
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "suite"))
from lib import Guest, asset, linux, tap     # noqa: E402


def say(text):
    print(text, flush=True)


tap("demo0", "172.28.0.1/24")
guest = Guest(linux(), args="mayfly.ip=172.28.0.2/24,172.28.0.1 mayfly.function=8080", mem=256, vcpus=2,
              root=asset("debian.ext4"), root_ro=True, nets=["demo0"])
say("Debian guest: 2 processors, 256 MiB, root on virtio-blk, network on virtio-net")
guest.start()
say(f"  init after              {guest.first_line() * 1000:6.0f} ms")
guest.expect(r"^function: listening")
say(f"  function listening after{(time.monotonic() - guest.started) * 1000:6.0f} ms")
for path in ("/", "/again"):
    start = time.monotonic()
    with urllib.request.urlopen("http://172.28.0.2:8080" + path, timeout=30) as r:
        say(f"  {r.read().decode().strip()}   ({(time.monotonic() - start) * 1000:.0f} ms)")
say(f"  monitor's memory beside the guest's: {guest.rss_kib()} KiB")
guest.close()
