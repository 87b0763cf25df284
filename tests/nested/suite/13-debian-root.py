#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A Debian root file system: an HTTP function in Python answers over virtio-net, the guest reaches out too, and data
that was fsync'd is intact after the guest was reset without warning."""
# lane: quick
# timeout: 300
import hashlib
import http.server
import os
import threading
import time
import urllib.request

from lib import Guest, asset, check, copy_of, disk, linux, no_faults, note, run, tap

tap("tapd0", "172.30.0.1/24")
BODY = os.urandom(1 << 20)


class Outside(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("172.30.0.1", 0), Outside)
threading.Thread(target=server.serve_forever, daemon=True).start()
root = copy_of(asset("debian.ext4"))
IP = "mayfly.ip=172.30.0.2/24,172.30.0.1"

# The function answers, both ways.
g = Guest(linux(), args=f"{IP} mayfly.function=8080", root=root, mem=512, nets=["tapd0"], script=f"""
    curl -sS -o /tmp/body http://172.30.0.1:{server.server_port}/ || exit 1
    echo "body: $(sha256sum /tmp/body)" """).start()
g.expect(r"^function: listening")
start = time.monotonic()
answer = run("curl", "-sS", "--fail", "--max-time", "30", "http://172.30.0.2:8080/hello")
note(f"answered after {time.monotonic() - g.started:.1f} s: {answer.strip()}")
check("Hello from Python" in answer and "/hello" in answer, answer)
with urllib.request.urlopen("http://172.30.0.2:8080/", data=BODY, timeout=60) as r:
    check(r.read().decode().strip() == hashlib.sha256(BODY).hexdigest(), "a posted body arrived changed")
g.script_passed()
got = g.expect(r"^body: ([0-9a-f]{64})")[1]
check(got == hashlib.sha256(BODY).hexdigest(), "a fetched body arrived changed")
no_faults(g.console())
g.close()

# Data that was fsync'd survives a reset; the file system replays its journal.
data = disk(64)
for round_, script in enumerate(("""
        mke2fs -q -t ext4 /dev/vdb && mount /dev/vdb /mnt || exit 1
        dd if=/dev/urandom of=/mnt/data bs=64k count=200 conv=fsync 2>/dev/null || exit 2
        sha256sum /mnt/data >/mnt/sum; sync /mnt/sum /mnt
        echo wrote; busybox reboot -f""", """
        mount /dev/vdb /mnt && sha256sum -c /mnt/sum || exit 1
        umount /mnt; e2fsck -fn /dev/vdb || exit 2""")):
    g = Guest(linux(), root=root, mem=512, drives=[data], script=script).start()
    if round_ == 0:
        g.expect(r"^wrote", 120)
    else:
        g.script_passed()
    check(g.wait() == 0, f"exit status {g.process.returncode}")
    g.close()
