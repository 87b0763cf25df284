# SPDX-License-Identifier: Apache-2.0
"""The migration simulator: thousands of seeded runs with faults end as they must; without a safeguard they do not."""
import glob
import os
import re
import subprocess
import unittest

from lib import BUILD

SIM = os.path.join(BUILD, "sim", "sim")


class Simulator(unittest.TestCase):
    def setUp(self):
        if not os.path.exists(SIM):
            self.skipTest("the simulator is not built (make sim)")

    def test_runs(self):
        p = subprocess.run([SIM, "-n", "20000", "-k"], capture_output=True, text=True, timeout=600)
        self.assertEqual(p.returncode, 0, p.stdout[-2000:])
        m = re.search(r"(\d+) runs, (\d+) with faults, (\d+) moved", p.stdout)
        self.assertGreater(int(m[2]), 10000)
        self.assertGreater(int(m[3]), 5000)

    def test_same_seed_same_run(self):
        a, b = (subprocess.run([SIM, "-v", "-n", "3", "-s", "700"], capture_output=True).stdout for _ in "ab")
        self.assertEqual(a, b)
        self.assertGreater(len(a), 500)

    def test_mutants(self):
        mutants = [m for m in glob.glob(os.path.join(BUILD, "sim", "mutant-*")) if not m.endswith(".log")]
        self.assertGreaterEqual(len(mutants), 6)
        for m in mutants:
            with self.subTest(os.path.basename(m)):
                p = subprocess.run([m, "-n", "20000"], capture_output=True, text=True, timeout=600)
                self.assertEqual(p.returncode, 1, f"{m} was not noticed: {p.stdout[-500:]}")


if __name__ == "__main__":
    unittest.main()
