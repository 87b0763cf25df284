#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The serverless function of the demo guest: answers GET with the guest's own facts, POST with a digest of the body."""
import hashlib
import http.server
import os
import platform
import sys


class Function(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        with open("/proc/uptime") as f:
            up = f.read().split()[0]
        self.answer(f"Hello from Python {platform.python_version()} on Linux {os.uname().release}, "
                    f"{os.cpu_count()} processors, up {up} s: {self.path}\n")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(hashlib.sha256(body).hexdigest() + "\n")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Function)
print("function: listening", flush=True)
server.serve_forever()
