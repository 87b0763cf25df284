# SPDX-License-Identifier: Apache-2.0
"""The nested lane's host side with a stand-in for QEMU: statuses and results come back, a deadline is one, and nothing
that the machine inside writes lands outside the folder of results."""
import argparse
import contextlib
import importlib.util
import io
import os
import subprocess
import tempfile
import threading
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


def module(name):
    spec = importlib.util.spec_from_file_location(name, os.path.join(ROOT, "tests", "nested", name + ".py"))
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m


class Lane(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory(prefix="mayfly-lane-")
        self.addCleanup(tmp.cleanup)
        self.tmp = tmp.name
        self.lane = module("lane")
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

    def test_a_silent_machine_is_ended_and_a_nudged_one_lives(self):
        with mock.patch.object(self.lane, "SILENCE", 1):
            status, said = self.run_lane("exec sleep 100")
            self.assertEqual(status, 123)
            self.assertIn("no sign of life", said)
            # This one speaks when it is spoken to.
            status, _ = self.run_lane('for i in 1 2 3 4 5 6 7 8; do read -u $console; echo nudged >&$console; done; exit 1')
            self.assertEqual(status, 125)
        self.assertEqual(self.read("work/console.log").count("nudged"), 8)

    def test_results_stay_in_their_folder(self):
        status, _ = self.run_lane('cd "$OUT" && mkdir -p e && echo 0 >e/status && echo bad >e/bad && ln -s /etc e/link && '
                                  'tar -C e -P --transform "s,^bad,../../bad," -cf "$x" bad status link')
        self.assertEqual(status, 0)
        self.assertEqual(os.listdir(self.path("results")), ["status"])
        self.assertFalse(os.path.exists(os.path.join(self.tmp, "bad")) or os.path.exists(self.path("../bad")))


class Shares(unittest.TestCase):
    """lanes.py with a stand-in for lane.py: what several machines counted, and one that stood still, make one sum."""

    def run_shares(self, script, n=2):
        lanes = module("lanes")
        with tempfile.TemporaryDirectory(prefix="mayfly-lanes-") as tmp:
            machine = os.path.join(tmp, "machine")
            with open(machine, "w") as f:
                f.write('#!/bin/bash\nfor a; do case $a in LANE_SHARD=*) i=${a#*=} ;; LANE_DONE=*) done=${a#*=} ;; esac; done\n'
                        f'cd {tmp} || exit 1\n' + script)
            os.chmod(machine, 0o755)
            args = argparse.Namespace(deadline=100, icount=False, env=[], command=["true"])
            shares = [lanes.Share(i, n, args, [machine]) for i in range(n)]
            with contextlib.redirect_stdout(io.StringIO()) as said:
                for s in shares:
                    s.run()
            return [sum(s.counts[k] for s in shares) for k in range(3)], said.getvalue()

    def test_sums(self):
        counts, said = self.run_shares('[ $i = 0/2 ] && echo "  ok   test_a: 7 checks (0.1 s)" && echo "7 passed, 0 failed, 1 skipped"\n'
                                       '[ $i = 1/2 ] && printf "  FAIL test_b.C.d (0.1 s)\\n why\\n1 passed, 1 failed, 0 skipped\\n" && exit 1\n'
                                       'exit 0')
        self.assertEqual(counts, [8, 1, 1])
        self.assertIn("FAIL test_b.C.d (0.1 s)\n why\n", said)
        self.assertNotIn("passed,", said)

    def test_one_that_stood_still(self):
        counts, said = self.run_shares('if [ -z "$done" ]; then echo "  ok   test_a: 7 checks (0.1 s)"; echo "passed  10-b.py  3 s"; exit 123; fi\n'
                                       'echo "$done" >done; [ "$done" = "10-b.py test_a" ] || exit 1\n'
                                       'echo "failed  11-c.py  3 s"; echo "0 passed, 1 failed, 0 skipped"; exit 1', n=1)
        self.assertEqual(counts, [8, 1, 0])
        self.assertIn("machine 2 takes over", said)

    def test_no_success_without_a_sum(self):
        for script in ("exit 0", "exit 125", "exit 123", 'echo "passed  10-b.py"; exit 0'):
            counts, said = self.run_shares(script, n=1)
            self.assertEqual(counts[1], 1, script)
            self.assertIn("FAIL the nested lane 0", said)

    def test_told_to_end_it_ends_its_machine(self):
        lanes = module("lanes")
        args = argparse.Namespace(deadline=100, icount=False, env=[], command=["true"])
        share = lanes.Share(0, 1, args, ["/bin/sh", "-c", "echo '  ok   test_a: 1 checks (0.1 s)'; exec sleep 100"])
        with contextlib.redirect_stdout(io.StringIO()):
            t = threading.Thread(target=share.run)
            t.start()
            end = time.monotonic() + 10
            while not share.done and time.monotonic() < end:
                time.sleep(0.01)
            share.end()
            t.join(10)
        self.assertFalse(t.is_alive())
        self.assertIsNotNone(share.process.poll())
        self.assertEqual(share.counts, [1, 1, 0])


if __name__ == "__main__":
    unittest.main()
