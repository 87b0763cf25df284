# SPDX-License-Identifier: Apache-2.0
"""The README's tour, typed as it stands there."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from lib import BUILD, ROOT, GuestCase


class Tour(GuestCase):
    def test_tour(self):
        with open(os.path.join(ROOT, "README.md")) as f:
            text = f.read().split("## A tour")[1].split("\n## ")[0]
        lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
        self.assertEqual(lines.pop(0), "make")
        tmp = tempfile.mkdtemp(prefix="mayfly-tour-")
        self.addCleanup(shutil.rmtree, tmp)
        name = os.path.basename(tmp)
        self.addCleanup(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
        script = "\n".join(lines).replace("/tmp/", tmp + "/").replace("netns add tour", f"netns add {name}")
        script = re.sub(r"(-n|exec|del) tour\b", rf"\1 {name}", script)
        script = script.replace("build/mayfly ", BUILD + "/mayfly ")
        script = re.sub(r"--log-path (\S+) &", r'--log-path \1 & sleep 0.3', script)  # the reader's typing
        p = subprocess.run(["bash", "-c", "trap 'kill $(jobs -p) 2>/dev/null' EXIT\n" + script], cwd=ROOT, capture_output=True,
                           text=True, timeout=60, stdin=subprocess.DEVNULL)
        self.assertEqual((p.returncode, p.stderr), (0, ""), p.stdout)
        self.assertNotIn("fault_message", p.stdout)
        self.assertIn("hello from mayfly", p.stdout)
        self.assertIn("hello\n", p.stdout)
        counters = [int(n) for n in re.findall(r'"counter":(\d+)', p.stdout)]
        self.assertEqual(len(counters), 2)
        self.assertIn("Mayfly ends: the guest powered off", p.stdout)


if __name__ == "__main__":
    unittest.main()
