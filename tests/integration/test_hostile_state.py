# SPDX-License-Identifier: Apache-2.0
"""State files whose every field is an enemy's under the right checksum: refused with a sentence or loaded, never a
crash; and what a refused request leaves behind."""
import ctypes
import os
import random
import struct
import time
import unittest

from lib import ApiError, guest
from test_snapshot import SnapshotCase

M64 = (1 << 64) - 1
P1, P2, P3, P4, P5 = (11400714785074694791, 14029467366897019727, 1609587929392839161,
                      9650029242287828579, 2870177450012600261)
HEAD, SUM = 64, 56
XCRS = 508  # in a vCPU's section: count, then XCR0's number and value
S_MACHINE, S_CPUID, S_SERIAL, S_BLK, S_NET, S_VCPU = 2, 3, 6, 0x100, 0x200, 0x300


def rotl(x, n):
    return (x << n | x >> (64 - n)) & M64


def mix(acc, word):
    return rotl((acc + word * P2) & M64, 31) * P1 & M64


def xxh64(data, seed=0):
    """As docs/snapshot-format.md names it (XXH64)."""
    at, n = 0, len(data)
    if n >= 32:
        acc = [(seed + P1 + P2) & M64, (seed + P2) & M64, seed, (seed - P1) & M64]
        whole = n // 32 * 4
        words = struct.unpack_from(f"<{whole}Q", data)
        for i in range(0, whole, 4):
            for k in range(4):
                acc[k] = mix(acc[k], words[i + k])
        at = whole * 8
        h = sum(rotl(a, r) for a, r in zip(acc, (1, 7, 12, 18))) & M64
        for a in acc:
            h = ((h ^ mix(0, a)) * P1 + P4) & M64
    else:
        h = (seed + P5) & M64
    h = (h + n) & M64
    while n - at >= 8:
        h = (rotl(h ^ mix(0, struct.unpack_from("<Q", data, at)[0]), 27) * P1 + P4) & M64
        at += 8
    if n - at >= 4:
        h = (rotl(h ^ struct.unpack_from("<I", data, at)[0] * P1 & M64, 23) * P2 + P3) & M64
        at += 4
    for b in data[at:]:
        h = rotl(h ^ b * P5 & M64, 11) * P1 & M64
    h = (h ^ h >> 33) * P2 & M64
    h = (h ^ h >> 29) * P3 & M64
    return h ^ h >> 32


class State:
    """A state file as its header and its sections, changed at will and put together again."""

    def __init__(self, data):
        self.head, self.parts, at = bytearray(data[:HEAD]), [], HEAD
        while at < len(data):
            kind, n = struct.unpack_from("<II", data, at)
            self.parts.append([kind, bytearray(data[at + 8:at + 8 + n])])
            at += 8 + n

    def part(self, kind):
        return next(v for k, v in self.parts if k == kind)

    def __bytes__(self):
        body = b"".join(struct.pack("<II", k, len(v)) + v for k, v in self.parts)
        head = bytearray(self.head)
        struct.pack_into("<Q", head, 16, HEAD + len(body))
        struct.pack_into("<Q", head, SUM, xxh64(body, xxh64(bytes(head[:SUM]))))
        return bytes(head) + body


class HostileState(SnapshotCase):
    def recorded(self, ns, name="a", **boot):
        self.saved(ns, name, boot=boot)
        with open(self.path(name + ".state"), "rb") as f:
            return f.read()

    def try_load(self, m, state, **kw):
        with open(self.path("bad"), "wb") as f:
            f.write(bytes(state))
        status, body = self.load(m, check=False, snapshot_path=self.path("bad"), **kw)
        return body["fault_message"] if status == 400 else ""

    def test_nothing_changed_is_accepted(self):
        """The checksum here is the monitor's, so whatever is refused below is refused for its meaning."""
        ns = self.netns()
        good = self.recorded(ns)
        self.assertEqual(bytes(State(good)), good)

    def test_interface_recorded_twice(self):
        """Two interfaces of one name: the second takes the first one's place, and a slot has no device."""
        ns = self.netns(taps=2)
        m = self.monitor(netns=ns)
        m.boot(netns=ns, start=False)
        m.put("/network-interfaces/eth1", iface_id="eth1", host_dev_name="tap1")
        m.put("/actions", action_type="InstanceStart")
        m.patch("/vm", state="Paused")
        self.create(m)
        m.kill()
        with open(self.path("a.state"), "rb") as f:
            s = State(f.read())
        second = s.part(S_NET + 1)
        at = second.index(b"eth1")
        second[at:at + 4] = b"eth0"
        m = self.monitor(netns=ns)
        self.assertIn("recorded twice", self.try_load(m, s))
        self.load(m)

    def test_layer_of_a_descriptor(self):
        """A layer that was passed as a descriptor must be named anew: its number is of another request."""
        ns, disk, layer = self.netns(), self.disk(), self.path("layer")
        open(layer, "w").close()
        s = State(self.recorded(ns, drives=[{"path_on_host": disk, "cow_path": layer}]))
        drive = s.part(S_BLK)
        at = drive.index(layer.encode())
        drive[at:at + len(layer)] = b"fd:".ljust(len(layer), b"0")
        m = self.monitor(netns=ns)
        self.assertIn("must be named", self.try_load(m, s))
        self.assertEqual("", self.try_load(m, s, drive_overrides=[{"drive_id": "disk0", "cow_path": layer}]))

    def test_refused_load_leaves_the_machine(self):
        """The microVM is as it was before the request: also its number of vCPUs and its memory."""
        ns, disk = self.netns(), self.disk()
        self.saved(ns, boot={"drives": [disk], "vcpus": 2, "mem": 64})
        os.unlink(disk)
        m = self.monitor(netns=ns)
        m.put("/machine-config", vcpu_count=3, mem_size_mib=96)
        before = m.get("/vm/config")
        self.assertEqual(self.load(m, check=False)[0], 400)
        self.assertEqual(m.get("/vm/config"), before)
        m.boot(kernel=guest("smp"), args="cpus=3", vcpus=3, mem=96)
        self.assertEqual(m.wait_exit(30), 0)

    def test_each_vcpu_is_compared(self):
        """XCR0 and TSC frequency of every vCPU, not of the first alone."""
        ns = self.netns()
        s = State(self.recorded(ns, vcpus=2))
        m = self.monitor(netns=ns)
        second = s.part(S_VCPU + 1)
        self.assertEqual(struct.unpack_from("<II", second, XCRS), (1, 0))
        xcr0, khz = struct.unpack_from("<Q", second, XCRS + 8)[0], struct.unpack_from("<I", second, 4)[0]
        struct.pack_into("<Q", second, XCRS + 8, xcr0 | 1 << 61)
        self.assertRegex(self.try_load(m, s), "XCR0 0x2.* has bits this host lacks")
        self.assertRegex(self.try_load(m, s, any_cpu=True), "KVM_SET_XCRS")
        struct.pack_into("<Q", second, XCRS + 8, xcr0)
        struct.pack_into("<I", second, 4, khz + 1)
        self.assertIn("vCPU 1: another TSC frequency", self.try_load(m, s))
        struct.pack_into("<I", second, 4, khz)
        self.assertEqual("", self.try_load(m, s))

    def test_msr_that_this_host_lacks(self):
        """Refused by its number, unless the comparison is overridden: then it is left out."""
        ns = self.netns()
        s = State(self.recorded(ns))
        vcpu = s.part(S_VCPU)
        at = XCRS + 16 + 4
        at += 4 + struct.unpack_from("<I", vcpu, at)[0]  # the local APIC's registers
        index = vcpu.index(struct.pack("<IQI", 0x10, struct.unpack_from("<Q", vcpu, vcpu.index(
            struct.pack("<I", 0x10), at) + 4)[0], 0x3b), at) - 4
        n = struct.unpack_from("<I", vcpu, index)[0]
        have = {struct.unpack_from("<I", vcpu, index + 4 + 12 * i)[0] for i in range(n)}
        lacking = next((x for x in (0xc001011f, 0xda0, 0x1d9, 0xe1, 0x122, 0xc0010015, 0x26f) if x not in have), None)
        if lacking is None:
            self.skipTest("this host's KVM has every MSR that a snapshot may set")
        vcpu[index + 4 + 12 * n:index + 4 + 12 * n] = struct.pack("<IQ", lacking, 1)
        struct.pack_into("<I", vcpu, index, n + 1)
        m = self.monitor(netns=ns)
        self.assertIn(f"no MSR {lacking:#x}", self.try_load(m, s))
        self.assertEqual("", self.try_load(m, s, any_cpu=True))
        self.get(ns, "/counter")

    def values(self, rng, n):
        width = rng.choice((1, 2, 4, 8))
        return min(width, n), rng.choice((0, 1, 0x7f, 0x80, 0xff, 0x8000, 0xffff, 1 << 31, (1 << 32) - 1, 1 << 63,
                                          M64, M64 - 4095, rng.getrandbits(64)))

    def mutate(self, rng, good):
        s = State(good)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            what = rng.random()
            kind, value = part = rng.choice(s.parts)
            if what < 0.8 and value:
                # Half of the time where the device's registers, lists and names stand.
                end = len(value) if rng.random() < 0.5 else min(len(value), 300)
                at = rng.randrange(end)
                n, v = self.values(rng, len(value) - at)
                value[at:at + n] = (v & (1 << 8 * n) - 1).to_bytes(n, "little")
            elif what < 0.85:
                s.parts.remove(part)
            elif what < 0.9:
                s.parts.insert(rng.randrange(len(s.parts)), [kind + rng.choice((0, 1)), bytearray(value)])
            elif what < 0.95:
                part[0] = rng.choice((0, kind + 1, kind ^ 0x40000000, rng.getrandbits(32)))
            else:
                del value[rng.randrange(len(value) + 1):]
        return s

    def test_every_field_hostile(self):
        """Random fields of a right checksum: the monitor answers, lives, and the guest that runs on it can be ended."""
        seconds = float(os.environ.get("MAYFLY_MUTATE_SECONDS", "12"))
        seed = int(os.environ.get("MAYFLY_SEED", random.randrange(1 << 32)))
        rng = random.Random(seed)
        ns = self.netns()
        disk, layer = self.disk(), self.path("layer")
        open(layer, "w").close()
        good = self.recorded(ns, vcpus=2, drives=[disk, {"path_on_host": self.disk(), "cow_path": layer}])
        m, end, loaded, refused = None, time.monotonic() + seconds, 0, 0
        while time.monotonic() < end:
            m = m or self.monitor(netns=ns)
            with self.subTest(seed=seed, n=loaded + refused):
                why = self.try_load(m, self.mutate(rng, good), any_cpu=rng.random() < 0.5)
            if why:
                refused += 1
                self.assertEqual(m.state(), "Not started")
                continue
            loaded += 1
            time.sleep(0.01)
            if m.p.poll() is None:
                m.p.terminate()
            # A guest with wild registers may end itself or be given up by KVM; the monitor alone may not fail.
            self.assertIn(m.wait_exit(), (0, 3, 4), f"seed {seed}: {m.err()}")
            m.close()
            m = None
        self.assertGreater(refused, 5)
        self.assertGreater(loaded, 2)


class Refusals(SnapshotCase):
    def test_failed_change_keeps_the_lock(self):
        """A drive put again with a layer that cannot be opened keeps its image, and its image's lock."""
        disk = self.disk()
        m, other = self.monitor(), self.monitor()
        m.put("/drives/d", drive_id="d", is_root_device=False, path_on_host=disk)
        before = m.get("/vm/config")
        for layer in ("/nonexistent", disk):
            with self.assertRaises(ApiError):
                m.put("/drives/d", drive_id="d", is_root_device=False, path_on_host=disk, cow_path=layer)
        self.assertEqual(m.get("/vm/config"), before)
        with self.assertRaisesRegex(ApiError, "in use"):
            other.put("/drives/d", drive_id="d", is_root_device=False, path_on_host=disk)

    def test_layer_put_again(self):
        disk, layer = self.disk(), self.path("layer")
        open(layer, "w").close()
        m, other = self.monitor(), self.monitor()
        drive = {"drive_id": "d", "is_root_device": False, "path_on_host": disk, "cow_path": layer}
        m.put("/drives/d", **drive)
        m.put("/drives/d", **drive)
        with self.assertRaises(ApiError):
            m.put("/drives/d", **dict(drive, path_on_host=self.path("none")))
        with self.assertRaisesRegex(ApiError, "in use"):
            other.put("/drives/d", **drive)

    def test_limits_in_force_are_shown(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[self.disk()])
        one, two = {"size": 1000, "refill_time": 100}, {"size": 77, "refill_time": 5}
        m.patch("/drives/disk0", drive_id="disk0", rate_limiter={"bandwidth": one})
        m.patch("/drives/disk0", drive_id="disk0", rate_limiter={"ops": two})
        m.patch("/network-interfaces/eth0", iface_id="eth0", tx_rate_limiter={"ops": two})
        c = m.get("/vm/config")
        limit = c["drives"][0]["rate_limiter"]
        self.assertEqual([limit[k]["size"] for k in ("bandwidth", "ops")], [1000, 77])
        self.assertEqual(c["network-interfaces"][0]["tx_rate_limiter"]["ops"]["size"], 77)

    def test_forged_signal(self):
        """A process of the same user may send the timer's signal with any value in it: nothing happens."""
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        ns.http("GET", "/")
        signo, si_timer, sys_rt_tgsigqueueinfo = 12, -2, 297
        info = struct.pack("<iiiiiiQ", signo, 0, si_timer, 0, 0, 0, 0x123456789000).ljust(128, b"\0")
        libc = ctypes.CDLL(None, use_errno=True)
        for tid in os.listdir(f"/proc/{m.p.pid}/task"):
            with open(f"/proc/{m.p.pid}/task/{tid}/comm") as f:
                if not f.read().startswith("vcpu"):
                    continue
            rc = libc.syscall(sys_rt_tgsigqueueinfo, m.p.pid, int(tid), signo, info)
            self.assertEqual((rc, ctypes.get_errno() if rc else 0), (0, 0))
        self.assertEqual(ns.http("GET", "/")[0], 200)
        self.assertEqual(m.state(), "Running")


if __name__ == "__main__":
    unittest.main()
