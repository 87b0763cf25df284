# SPDX-License-Identifier: Apache-2.0
"""The nested lane's host side with a stand-in for QEMU: statuses and results come back, a deadline is one, and nothing
that the machine inside writes lands outside the folder of results."""
import argparse
import importlib.util
import os
import subprocess
import tempfile
import time
import unittest
from unittest import mock

from lib import ROOT

FINDS = '''#!/bin/bash
for a; do case $a in
    file=*/exchange,*) x=${a#file=}; x=${x%%,*} ;;
    socket,id=console,fd=*) console=${a##*=} ;;
esac; done
echo "its last words" >&$console
echo $$ >"$OUT/pid"
tar -tf "$x" >"$OUT/given"; tar -xf "$x" -C "$OUT"
'''


class Lane(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory(prefix="mayfly-lane-")
        self.addCleanup(tmp.cleanup)
        self.tmp = tmp.name
        spec = importlib.util.spec_from_file_location("lane", os.path.join(ROOT, "tests", "nested", "lane.py"))
        self.lane = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.lane)
        self.lane.WORK = self.path("work")
        for folder in ("work", "bin", "out", "machine"):
            os.makedirs(self.path(folder))
        self.lane.stage = os.makedirs
        self.lane.mke2fs = lambda *_: None

    def path(self, name):
        return os.path.join(self.tmp, name)

    def run_lane(self, script, deadline=20, **env):
        """lane.boot's status with a machine that is this shell script; what it said on standard error."""
        with open(self.path("bin/qemu-system-x86_64"), "w") as f:
            f.write(FINDS + script)
        os.chmod(f.name, 0o755)
        args = argparse.Namespace(deadline=deadline, memory=100, icount=False, log="console.log", results=self.path("results"),
                                  env=[f"{k}={v}" for k, v in env.items()], command=["echo", "a b", "it's"])
        path = self.path("bin") + ":" + os.environ["PATH"]
        with mock.patch.dict(os.environ, {"PATH": path, "OUT": self.path("out")}), open(self.path("stderr"), "w+") as err, \
                mock.patch("sys.stderr", err):
            status = self.lane.boot(args, self.path("machine"))
            err.seek(0)
            return status, err.read()

    def read(self, name):
        with open(self.path(name)) as f:
            return f.read()

    def test_the_command_goes_in_and_its_status_comes_back(self):
        for status in (0, 7):
            got, _ = self.run_lane(f'cd "$OUT/.." && mkdir -p s && echo {status} >s/status && echo found >s/log && '
                                   'tar -C s -cf "$x" status log', NAME="two words")
            self.assertEqual(got, status)
            self.assertEqual(self.read("results/log"), "found\n")
        said = subprocess.run(["sh", "-c", ". ./environment && echo $NAME && . ./command"], cwd=self.path("out"),
                              capture_output=True, text=True)
        self.assertEqual(said.stdout, "two words\na b it's\n")

    def test_a_deadline_ends_it(self):
        start = time.monotonic()
        status, said = self.run_lane("exec sleep 100", deadline=1)
        self.assertEqual(status, 124)
        self.assertIn("killed at its deadline, 1 s", said)
        self.assertLess(time.monotonic() - start, 15)
        self.assertFalse(os.path.exists("/proc/" + self.read("out/pid").strip()))

    def test_a_machine_that_dies_is_not_a_success(self):
        for script in ("exit 0", "exit 1", 'head -c 100000 /dev/urandom >"$x"', 'tar -C "$OUT" -cf "$x" pid'):
            status, said = self.run_lane(script)
            self.assertEqual(status, 125, script)
            self.assertIn("its last words", said)

    def test_results_stay_in_their_folder(self):
        status, _ = self.run_lane('cd "$OUT" && mkdir -p e && echo 0 >e/status && echo bad >e/bad && ln -s /etc e/link && '
                                  'tar -C e -P --transform "s,^bad,../../bad," -cf "$x" bad status link')
        self.assertEqual(status, 0)
        self.assertEqual(os.listdir(self.path("results")), ["status"])
        self.assertFalse(os.path.exists(os.path.join(self.tmp, "bad")) or os.path.exists(self.path("../bad")))


if __name__ == "__main__":
    unittest.main()
