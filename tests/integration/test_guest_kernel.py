# SPDX-License-Identifier: Apache-2.0
"""The fragments of guest kernel configurations, and the check that a merge kept every line of one."""
import glob
import os
import re
import subprocess
import tempfile
import unittest

from lib import ROOT

FOLDER = os.path.join(ROOT, "guest-kernel-configs")
FRAGMENTS = sorted(glob.glob(os.path.join(FOLDER, "*.config")))


class Check(unittest.TestCase):
    def judged(self, fragment, config):
        with tempfile.TemporaryDirectory() as tmp:
            paths = [os.path.join(tmp, n) for n in ("fragment", "config")]
            for path, text in zip(paths, (fragment, config)):
                with open(path, "w") as f:
                    f.write(text)
            p = subprocess.run([os.path.join(FOLDER, "check-config.sh"), *paths], capture_output=True, text=True)
        return p.returncode, p.stdout

    def test_all_kept(self):
        fragment = "# why\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x=1\"\n"
        for config in (fragment, 'CONFIG_C="x=1"\nCONFIG_A=y\nCONFIG_D=y\n'):
            self.assertEqual(self.judged(fragment, config), (0, "all 3 lines of the fragment kept\n"))

    def test_every_lost_line_is_named(self):
        fragment = "CONFIG_A=y\nCONFIG_AB=y\n# CONFIG_B is not set\nCONFIG_C=32\nCONFIG_E=y\n"
        status, out = self.judged(fragment, "CONFIG_AB=y\nCONFIG_B=m\nCONFIG_C=8\n# CONFIG_E is not set\n")
        self.assertEqual(status, 1)
        self.assertEqual(re.findall("lost: (.*)", out), ["CONFIG_A=y", "# CONFIG_B is not set", "CONFIG_C=32", "CONFIG_E=y"])
        self.assertIn("4 of 5 lines lost", out)

    def test_what_is_no_configuration(self):
        self.assertEqual(self.judged("# nothing asked\n", "CONFIG_A=y\n")[0], 1)
        status, out = self.judged("CONFIG_A=y\nCONFIG_B y\n", "CONFIG_A=y\n")
        self.assertEqual(status, 1)
        self.assertIn("(not understood) CONFIG_B y", out)

    def test_every_group_has_its_reason(self):
        self.assertEqual(len(FRAGMENTS), 2)
        for path in FRAGMENTS:
            with open(path) as f:
                groups = f.read().strip().split("\n\n")
            self.assertGreater(len(groups), 10, path)
            for group in groups:
                self.assertRegex(group, r"^# (?!CONFIG_)", path)

    def test_a_line_stands_once(self):
        for path in FRAGMENTS:
            with open(path) as f:
                names = re.findall(r"^(?:# )?(CONFIG_\w+)(?:=| is not set)", f.read(), re.M)
            self.assertEqual(sorted(set(names)), sorted(names), path)


if __name__ == "__main__":
    unittest.main()
