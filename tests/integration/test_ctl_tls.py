# SPDX-License-Identifier: Apache-2.0
"""A migration behind stunnel, with the commands and the configurations that docs/migrating.md has."""
import json
import os
import re
import shutil
import subprocess
import time
import unittest

from lib import ROOT
from test_ctl_migrate import MoveCase


def block(name):
    """The indented lines behind <!-- name --> in the page."""
    with open(os.path.join(ROOT, "docs", "migrating.md")) as f:
        text = f.read().split(f"<!-- {name} -->\n\n")[1]
    lines = []
    for line in text.splitlines():
        if not line.startswith("    "):
            break
        lines.append(line[4:])
    return "\n".join(lines) + "\n"


class Tls(MoveCase):
    def setUp(self):
        for tool, package in (("stunnel", "stunnel4"), ("openssl", "openssl")):
            if shutil.which(tool) is None:
                self.skipTest(f"{package} is not installed")
        super().setUp()
        self.authority("right")
        for host in ("source.example", "target.example", "other.example"):
            self.certificate("right", host)

    def shell(self, folder, script, **env):
        p = subprocess.run(["bash", "-ec", script], cwd=self.path(folder), capture_output=True, text=True, timeout=60,
                           env={**os.environ, **env})
        self.assertEqual(p.returncode, 0, p.stderr)

    def authority(self, name):
        os.mkdir(self.path(name))
        self.shell(name, block("certificates").split("\nopenssl req -newkey")[0])

    def certificate(self, authority, host):
        self.shell(authority, "openssl req -newkey" + block("certificates").split("\nopenssl req -newkey")[1], HOST=host)

    def stunnel(self, host, side, **change):
        """stunnel on that host, with the page's lines but for addresses and folders; change: other values."""
        text = block(side).replace("/etc/mayfly", self.path("right"))
        text = text.replace("connect = target.example:", "connect = 10.77.0.2:")
        for key, value in change.items():
            text, n = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}" if value else "", text)
            self.assertGreater(n, 0, key)
        conf = self.path(f"{side}.conf")
        with open(conf, "w") as f:
            f.write(text)
        log = self.path(f"{side}.log")
        with open(log, "w") as f:
            p = subprocess.Popen(["ip", "netns", "exec", self.lan.hosts[host].name, "stunnel", conf],
                                 stdin=subprocess.DEVNULL, stdout=f, stderr=f)

        def stop():
            p.kill()
            p.wait()
        self.addCleanup(stop)
        port = int(re.search(r"accept = \S*?(\d+)$", text, re.M)[1])
        end = time.monotonic() + 10
        while not re.search(rf":{port}\b", self.lan.hosts[host].exec("ss", "-Hltn").stdout):
            self.assertLess(time.monotonic(), end, open(log).read())
            self.assertIsNone(p.poll(), open(log).read())
            time.sleep(0.02)
        return stop, log

    def listen(self):
        r = self.ctl(1, "receive", "--listen", "127.0.0.1:7000", "--api-sock", self.path("b.sock"), "--spawn",
                     "--arbiter", self.record, "--json")
        r.wait_for("listening")
        return r

    def send(self, src, to="127.0.0.1:7001"):
        return self.ctl(0, "migrate", to, "--api-sock", src.sock, "--name", "vm", "--mode", "hybrid", "--verify", "ram",
                        "--arbiter", self.record, "--json")

    def test_moves(self):
        src = self.boot()
        total = self.touch(16)
        r = self.listen()
        self.stunnel(1, "target")
        self.stunnel(0, "source")
        got = json.loads(self.ended(self.send(src))[0])
        self.assertEqual(got["result"], "moved")
        self.assertGreater(got["source"]["bytes"], 16 << 20)
        self.arrived(r)
        self.assertEqual(self.get("/sum?mib=16")["sum"], total)

    def test_a_snapshot_is_served(self):
        """The puller connects, so its host has the source's lines and the server's the target's."""
        src = self.boot()
        total = self.touch(16)
        src.patch("/vm", state="Paused")
        src.put("/snapshot/create", snapshot_path=self.path("state"), mem_file_path=self.path("mem"))
        src.close()
        s = self.ctl(1, "serve", "--listen", "127.0.0.1:7000", "--snapshot", self.path("state"), "--mem", self.path("mem"),
                     "--verify")
        s.wait_for("listening")
        self.stunnel(1, "target")
        self.ended(self.ctl(0, "pull", "127.0.0.1:7001", "--api-sock", self.path("b.sock"), "--spawn"), 1)  # no proxy yet
        self.stunnel(0, "source")
        self.ended(self.ctl(0, "pull", "127.0.0.1:7001", "--api-sock", self.path("b.sock"), "--spawn"))
        self.assertEqual(self.get("/sum?mib=16")["sum"], total)
        self.ended(self.ctl(0, "pull", "10.77.0.2:7443", "--api-sock", self.path("c.sock"), "--spawn"), 1)  # no TLS at all

    def test_wrong_certificates(self):
        """Another authority's, another host's, or none, at either end: nothing reaches the receiver."""
        self.authority("wrong")
        for host in ("source.example", "target.example"):
            self.certificate("wrong", host)
        src = self.boot()
        r = self.listen()
        wrong = self.path("wrong") + "/"
        cases = (("source", {"cert": wrong + "source.example.pem"}, "unable to get local issuer certificate"),
                 ("source", {"cert": self.path("right/other.example.pem")}, "Subject checks failed"),
                 ("source", {"cert": None}, "peer did not return a certificate"),
                 ("target", {"cert": wrong + "target.example.pem"}, "unable to get local issuer certificate"),
                 ("target", {"cert": self.path("right/other.example.pem")}, "Subject checks failed"))
        for side, change, word in cases:
            stops = [self.stunnel(i, s, **(change if s == side else {})) for i, s in ((1, "target"), (0, "source"))]
            out, err = self.ended(self.send(src), 1)
            for stop, _ in stops:
                stop()
            self.assertEqual(json.loads(out)["result"], "stayed")
            self.assertIn("does a proxy between accept this certificate?", err)
            logs = "".join(open(log).read() for _, log in stops)
            self.assertIn(word, logs, change)
            self.assertEqual((src.state(), r.p.poll(), r.out), ("Running", None, ""), change)
        self.stunnel(1, "target")
        self.ended(self.send(src, "10.77.0.2:7443"), 1)  # no TLS at all
        self.assertEqual((src.state(), r.out), ("Running", ""))
        self.stunnel(0, "source")  # and the right one gets through
        self.ended(self.send(src))
        self.arrived(r)
        self.get("/counter")


if __name__ == "__main__":
    unittest.main()
