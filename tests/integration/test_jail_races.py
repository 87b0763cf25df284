# SPDX-License-Identifier: Apache-2.0
"""J1, J2: what a former monitor of the same user does to a jail that is being built or was left behind, and ends."""
import os
import shutil
import signal
import socket
import stat
import time
import unittest

import lib
from test_jail import GID, JAIL, UID, Base, pids_group, setUpModule, tearDownModule

__all__ = ["setUpModule", "tearDownModule"]
BAITS = 200


def slowly(calls, words):
    """The same with each of these calls delayed: a race becomes a certainty."""
    return ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e",
            f"inject={calls}:delay_enter=40000", *words]


class Races(Base):
    def attack(self, folder, name, when):
        """A process of the jail's user that renames what it has over `name`, whenever `when` sees its moment."""
        pid = os.fork()
        if pid:
            return pid
        try:
            os.setgroups([])
            os.setresgid(GID, GID, GID)
            os.setresuid(UID, UID, UID)
            used, end = 0, time.monotonic() + 20
            while used < BAITS and time.monotonic() < end:
                try:
                    if when(os.lstat(name)):
                        os.rename(os.path.join(folder, f"bait{used}"), name)
                        used += 1
                except OSError:
                    pass
        finally:
            os._exit(0)

    def end_attack(self, pid):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def lay_out(self, victim, *folders):
        os.makedirs(self.root)
        for folder in folders:
            os.makedirs(os.path.join(self.root, folder))
        for path in (self.root, *(os.path.join(self.root, f) for f in folders)):
            os.chown(path, UID, GID)
        for i in range(BAITS):
            os.link(victim, os.path.join(self.root, f"bait{i}"))

    def test_node_is_swapped(self):
        """A shared image at the place of a device node that root is about to give away."""
        victim = os.path.join(self.dir, "victim")
        with open(victim, "w") as f:
            f.write("precious")
        self.lay_out(victim, "dev", "dev/net")
        tun = os.path.join(self.root, "dev", "net", "tun")
        pid = self.attack(self.root, tun, lambda st: stat.S_ISCHR(st.st_mode))
        try:
            p = self.run_jail(slowly("fchownat", self.compat_words()))
        finally:
            self.end_attack(pid)
        self.assertEqual(os.stat(victim).st_uid, 0)
        self.assertIn("confined", p.stdout, p.stderr)

    def test_executable_is_swapped(self):
        """Another program at the place of the monitor that is about to be executed."""
        evil = os.path.join(self.dir, "evil")
        shutil.copy(JAIL, evil)
        self.lay_out(evil)
        pid = self.attack(self.root, os.path.join(self.root, "misbehave"),
                          lambda st: st.st_size == os.stat(self.exec).st_size)
        try:
            p = self.run_jail(slowly("execve,execveat", self.compat_words()))
        finally:
            self.end_attack(pid)
        self.assertIn("confined", p.stdout, p.stderr)

    def test_socket_is_swapped(self):
        victim, folder = os.path.join(self.dir, "victim"), os.path.join(self.dir, "run")
        with open(victim, "w") as f:
            f.write("precious")
        os.mkdir(folder)
        os.chown(folder, UID, GID)
        for i in range(BAITS):
            os.link(victim, os.path.join(folder, f"bait{i}"))
        self.sock = os.path.join(folder, "api")
        pid = self.attack(folder, self.sock, lambda st: stat.S_ISSOCK(st.st_mode))
        try:
            self.run_jail(slowly("lchown,fchownat,chown", self.strict_words()))
        finally:
            self.end_attack(pid)
        self.assertEqual(os.stat(victim).st_uid, 0)

    def test_full_backlog(self):
        """A wedged monitor still listens: the next start says so, and does not wait for it."""
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(self.sock)
            s.listen(0)
            waiting = []
            while len(waiting) < 50:
                c = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                waiting.append(c)
                if c.connect_ex(self.sock):
                    break
            self.assertLess(len(waiting), 50)
            self.refused(self.strict_words(), "somebody listens")
            p = self.run_jail([lib.MAYFLY, "--api-sock", self.sock])
            self.assertEqual(p.returncode, 1)
            self.assertIn("in use", p.stderr)
            for c in waiting:
                c.close()


class Ends(Base):
    def test_group_of_a_killed_jail(self):
        """The supervisor dies without a word (OOM, SIGKILL): its id can be started again."""
        flags, where = pids_group(50)
        group = os.path.join(where, "misbehave", self.vm_id)
        p = self.hold(self.strict_words(*flags, tail=["hold"]))
        p.kill()
        p.wait()
        end = time.monotonic() + 10
        while open(os.path.join(group, "cgroup.procs")).read() and time.monotonic() < end:
            time.sleep(0.01)
        self.assertTrue(os.path.exists(group))
        p = self.hold(self.strict_words(*flags, tail=["hold"]))
        self.assertEqual(stat.S_IMODE(os.stat(group).st_mode), 0o755)
        p.terminate()
        p.wait(10)
        self.assertFalse(os.path.exists(group))

    def test_group_of_a_failed_start(self):
        flags, where = pids_group(50)
        os.makedirs(self.root)
        with open(os.path.join(self.root, "run"), "w"):
            pass
        self.refused(self.compat_words(*flags), "directory run")
        self.assertFalse(os.path.exists(os.path.join(where, "misbehave", self.vm_id)))
        p = self.run_jail(self.strict_words(*flags, "--dir", "/nonexistent"))
        self.assertIn("/nonexistent", p.stderr)
        self.assertFalse(os.path.exists(os.path.join(where, "misbehave", self.vm_id)))

    def test_other_signals(self):
        """What is not for the monitor neither ends the supervisor nor leaves its work undone."""
        p = self.hold(self.strict_words(tail=["hold"]))
        for sig in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE):
            p.send_signal(sig)
        time.sleep(0.2)
        self.assertIsNone(p.poll())
        p.terminate()
        p.wait(10)
        self.assertFalse(os.path.exists(self.sock))

    def test_root_must_name_a_user(self):
        self.refused(self.strict_words(ids=False), "--uid")
        for half in (["--uid", "1"], ["--gid", "1"]):
            self.refused(self.strict_words(*half, ids=False), "belong together")

    def test_memory_limit_holds(self):
        flags, where = pids_group(50)
        v1 = "--cgroup-version" not in flags
        name = "memory.limit_in_bytes" if v1 else "memory.max"
        for limit, want in ((128 << 20, 4), (24 << 20, 128 + signal.SIGKILL)):
            with self.subTest(limit):
                p = self.run_jail(self.strict_words(*flags, "--cgroup", f"{name}={limit}", tail=["act", "eat"]))
                self.assertEqual(p.returncode, want, p.stdout + p.stderr)

    def test_debug_build_names_the_call(self):
        debug = os.path.join(lib.BUILD, "misbehave-debug")
        if not os.path.exists(debug):
            self.skipTest("stands on musl, as the shipped binaries do")
        shutil.copy(debug, self.exec)
        for deed, name in (("exec", "execve 59"), ("socket", "socket 41"), ("mmap-exec", "mmap 9")):
            for tail in ([], ["final"]):
                with self.subTest(f"{deed} {tail}"):
                    p = self.run_jail(self.strict_words(tail=[*tail, "act", deed]))
                    self.assertEqual(p.stderr, f"mayfly: seccomp denied system call {name}\n")
                    self.assertEqual(p.returncode, 148)


if __name__ == "__main__":
    unittest.main()
