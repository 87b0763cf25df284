# SPDX-License-Identifier: Apache-2.0
"""Real monitors, a real guest, and one fault a run at a byte drawn by lot: whatever happens, never two that run the
guest, always an end or a state that says why, and the memory of whoever has it is right. The simulator does the same
many thousand times with the same engine; here are the processes, sockets, userfaultfd and the guest besides.

MAYFLY_MIG_RUNS=N runs (100), MAYFLY_MIG_SEED=S the first one's lot (1): a failure names its own."""
import collections
import os
import random
import signal
import socket
import threading
import time
import unittest

from lib import ApiError
from miglib import Wire, begin, request
from test_migration import MigrationCase

RUNS, SEED = int(os.environ.get("MAYFLY_MIG_RUNS", 100)), int(os.environ.get("MAYFLY_MIG_SEED", 1))
KINDS = ("cut", "flip", "drop", "repeat", "swap", "stall", "kill source", "kill target", "freeze source", "freeze target")
OVER = ("done", "failed", "cancelled", "lost", "paused", "unknown", "idle")
MIB = 6
PIECE = 40  # a message's head: what is repeated, swapped and left out


class FaultyWire(Wire):
    """A wire with one fault: at byte `at` of one channel in one direction."""

    def __init__(self, kind=None, flow=None, at=0):
        self.kind, self.flow, self.at, self.hit = kind, flow, at, False
        self.procs = {}
        self.flows, self.started = {}, threading.Event()
        super().__init__()
        # Wire made, for each channel, a pump of the source's bytes and then one of the target's.
        for i, inner in enumerate(self.inner):
            self.flows[inner.fileno()] = (i // 2, i % 2)
        self.started.set()

    def pump(self, x, y):
        self.started.wait()
        mine, seen = self.flows[x.fileno()] == self.flow, 0
        try:
            while data := x.recv(65536):
                if mine and not self.hit and seen + len(data) > self.at:
                    data = self.strike(data, self.at - seen, y)
                seen += len(data)
                y.sendall(data)
        except OSError:
            pass
        for s in (x, y):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def strike(self, data, k, y):
        self.hit = True
        what, _, who = self.kind.partition(" ")
        if what == "flip":
            return data[:k] + bytes([data[k] ^ 16]) + data[k + 1:]
        if what == "drop":
            return data[:k] + data[k + PIECE:]
        if what == "repeat":
            return data[:k] + data[max(0, k - PIECE):]
        if what == "swap":
            return data[:k] + data[k + PIECE:k + 2 * PIECE] + data[k:k + PIECE] + data[k + 2 * PIECE:]
        y.sendall(data[:k])
        if what == "cut":
            self.cut()
        elif what == "kill":
            self.procs[who].p.kill()
        elif what == "freeze":
            self.procs[who].p.send_signal(signal.SIGSTOP)
            time.sleep(0.3)
            self.procs[who].p.send_signal(signal.SIGCONT)
        elif what == "stall":
            time.sleep(6)  # longer than a silence is borne
        return data[k:]


class Faults(MigrationCase):
    def setUp(self):
        super().setUp()
        self.src, self.dst, self.total = None, None, 0
        self.tally = collections.Counter()

    def fresh(self):
        """A guest on host 0, with a record of its own."""
        for m in (self.src, self.dst):
            if m:
                m.close()
        self.where = 0
        with open(self.arbiter, "wb"):
            pass
        self.src = self.boot(mem=64)
        self.total = self.touch(MIB, seed=SEED)

    def status(self, m):
        """What a monitor says, or how it ended."""
        try:
            return m.get("/migration")["state"], m.state()
        except (OSError, ApiError, AttributeError):
            m.wait_exit(10)
            return "ended", "-"

    def watch(self, dst):
        """Until both have an end or wait for somebody. The target is asked before the source: a guest that runs there
        may not run here at any time after."""
        end = time.monotonic() + 40
        while True:
            (b, b_vm), (a, a_vm) = self.status(dst), self.status(self.src)
            self.assertFalse(a_vm == b_vm == "Running", "two run it")
            if a in OVER + ("ended",) and b in OVER + ("ended",) and "unknown" not in (a, b):
                if (a, b) == (self.status(self.src)[0], self.status(dst)[0]):
                    return a, b
            self.assertLess(time.monotonic(), end, f"no end: {a} {b}")
            time.sleep(0.003)

    def settle(self, dst, a, b):
        """What an operator would do. Which of the two has the guest now, or None."""
        if (a, b) in (("paused", "paused"), ("paused", "done")):
            w = FaultyWire()
            self.addCleanup(w.close)
            request(dst, "recover", [p[1] for p in w.pairs])
            request(self.src, "recover", [p[0] for p in w.pairs])
            for p in w.pairs:
                p[0].close(), p[1].close()
            end = time.monotonic() + 30
            while (a, b) != ("done", "done"):
                (b, _), (a, _) = self.status(dst), self.status(self.src)
                self.assertLess(time.monotonic(), end, f"not recovered: {a} {b}")
                self.assertIn(a, ("active", "paused", "done"))
                time.sleep(0.003)
            self.tally["recovered"] += 1
        if b == "done":
            self.assertIn(a, ("done", "ended"))
            return dst
        if b == "paused":
            self.assertEqual(a, "ended")
            dst.put("/migration/finalize")
            self.assertEqual(dst.wait_exit(), 5)
            self.assertIn("LOST", dst.err())
            return None
        if a in ("paused", "done"):
            self.assertEqual(b, "ended")
            self.assertEqual(self.src.state(), "Paused")
            return None
        self.assertIn(a, ("failed", "ended"))
        self.assertIn(b, ("failed", "ended"))
        return None if a == "ended" else self.src

    def one(self, lot):
        r = random.Random(lot)
        kind = KINDS[lot % len(KINDS)] if lot % 40 or r.random() < 0.2 else "cut"
        if kind == "stall" and r.random() < 0.7:
            kind = "cut"  # each stall is six seconds
        mode = r.choice(("precopy", "postcopy", "hybrid"))
        flow = r.choice(((0, 0), (0, 1), (1, 0), (1, 0)))
        # Heads and state come first, then pages: both are to be met.
        top = 2.6 if flow[0] == 0 else 6.8
        at = r.uniform(0, MIB << 20) if flow == (1, 0) and r.random() < 0.6 else 10 ** r.uniform(1, top)
        w = FaultyWire(kind, flow, int(at))
        self.addCleanup(w.close)
        self.dst = dst = self.target()
        w.procs = {"source": self.src, "target": dst}
        begin(self.src, dst, w.pairs, arbiter=self.arbiter, mode=mode, receive={"lease_ms": 1000})
        a, b = self.watch(dst)
        owner = self.settle(dst, a, b)
        self.tally[kind if w.hit else "no fault"] += 1
        self.tally["lost" if not owner else "moved" if owner is dst else "stayed"] += 1
        w.close()
        if owner is dst:
            self.src.close()
            self.src, self.where = dst, 1 - self.where
        else:
            dst.close()
        if not owner:
            self.fresh()
            return
        self.assertEqual(owner.state(), "Running")
        self.assertEqual(self.get(f"/sum?mib={MIB}", timeout=30)["sum"], self.total)

    def test_one_owner_and_right_memory(self):
        self.fresh()
        for lot in range(SEED, SEED + RUNS):
            with self.subTest(lot=lot):
                try:
                    self.one(lot)
                except BaseException:
                    self.fresh()
                    raise
        print("   ", ", ".join(f"{k}: {n}" for k, n in sorted(self.tally.items())))
        self.assertGreater(RUNS, 4 * self.tally["no fault"] / 3, self.tally)


if __name__ == "__main__":
    unittest.main()
