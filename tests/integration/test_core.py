# SPDX-License-Identifier: Apache-2.0
"""The main job on real KVM: boot, network, disk, pause, ends, live changes, locks, hostile guests."""
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import time
import unittest

import tiny
from lib import ROOT, ApiError, GuestCase, guest


class Boot(GuestCase):
    def test_guest_answers_http_over_its_tap(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        status, body = ns.http("GET", "/")
        self.assertEqual(status, 200)
        self.assertIn(b"mayfly", body)
        self.assertEqual(m.state(), "Running")
        self.assertEqual(ns.exec("ping", "-c", "2", "-W", "2", ns.guest).returncode, 0)

    def test_udp_echo(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        ns.http("GET", "/")
        s = ns.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.settimeout(2)
        for i in range(50):
            s.sendto(b"x" * (i * 29 + 1), (ns.guest, 7))
            self.assertEqual(s.recv(2048), b"x" * (i * 29 + 1))
        s.close()

    def test_download_is_intact(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        one = ns.http("GET", "/download?mib=8", timeout=30)[1]
        two = ns.http("GET", "/download?mib=8", timeout=30)[1]
        self.assertEqual(len(one), 8 << 20)
        self.assertEqual(hashlib.sha256(one).digest(), hashlib.sha256(two).digest())

    def test_console_is_captured(self):
        m = self.monitor()
        m.boot("mode=http")
        m.wait_out("mayfly-guest: ready")

    def test_ready_port(self):
        m = self.monitor()
        m.boot("mode=http")
        m.wait_out("mayfly-guest: ready")
        end = time.monotonic() + 10
        while not m.get("/")["guest_ready"]:
            self.assertLess(time.monotonic(), end)
            time.sleep(0.005)
        silent = self.monitor()
        silent.boot(kernel=self.disk(1, tiny.elf(tiny.say("up\n") + tiny.HALT)))  # the guests of tests/guest all tell it
        silent.wait_out("up\n")
        self.assertEqual((silent.get("/")["state"], silent.get("/")["guest_ready"]), ("Running", False))

    def test_memory_across_the_gap(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns, mem=6 * 1024, vcpus=2)
        self.assertEqual(ns.http("GET", "/")[0], 200)

    def test_all_processors_come_up(self):
        for n in (1, 2, 4, 32):
            with self.subTest(vcpus=n):
                m = self.monitor()
                m.boot(f"cpus={n}", kernel=guest("smp"), vcpus=n)
                self.assertEqual(m.wait_exit(60), 0)
                self.assertIn(f"smp: {n} of {n} vCPUs online", m.console())

    def test_fewer_processors_after_more(self):
        m = self.monitor()
        m.put("/machine-config", vcpu_count=4, mem_size_mib=64)
        m.put("/machine-config", vcpu_count=2, mem_size_mib=256)
        m.boot("cpus=2", kernel=guest("smp"), vcpus=2, mem=256)
        self.assertEqual(m.wait_exit(60), 0)
        self.assertIn("smp: 2 of 2 vCPUs online", m.console())


class Disk(GuestCase):
    def test_sectors_written_reach_the_image(self):
        ns, disk = self.netns(), self.disk(16)
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[disk])
        for n in (0, 1, 77, 32767):
            data = f"sector {n}".encode().ljust(512, b".")
            self.assertIn(ns.http("PUT", f"/sector/{n}", data)[0], (200, 201, 204))
            self.assertEqual(ns.http("GET", f"/sector/{n}")[1], data)
            with open(disk, "rb") as f:
                f.seek(n * 512)
                self.assertEqual(f.read(512), data)
        self.assertGreaterEqual(ns.http("GET", "/sector/32768")[0], 400)

    def test_read_only_drive_refuses_writes(self):
        ns, disk = self.netns(), self.disk(1, b"A" * 512)
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[{"path_on_host": disk, "is_read_only": True}])
        self.assertEqual(ns.http("GET", "/sector/0")[1], b"A" * 512)
        self.assertGreaterEqual(ns.http("PUT", "/sector/0", b"B" * 512)[0], 400)
        with open(disk, "rb") as f:
            self.assertEqual(f.read(512), b"A" * 512)

    def test_live_swap_of_the_image(self):
        ns, one, two = self.netns(), self.disk(1, b"1" * 512), self.disk(2, b"2" * 512)
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[one])
        self.assertEqual(ns.http("GET", "/sector/0")[1], b"1" * 512)
        m.patch("/drives/disk0", drive_id="disk0", path_on_host=two)
        self.assertEqual(ns.http("GET", "/sector/0")[1], b"2" * 512)
        self.assertEqual(ns.http("GET", "/sector/4095")[0], 200)
        # The first image is free again: another microVM may have it, or this one.
        m2 = self.monitor()
        m2.boot(drives=[one], start=False)
        m2.close()
        m.patch("/drives/disk0", drive_id="disk0", path_on_host=one)
        self.assertEqual(ns.http("GET", "/sector/0")[1], b"1" * 512)

    def test_an_image_that_grew_is_patched_onto_itself(self):
        ns, disk = self.netns(), self.disk(1)
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[disk])
        self.assertGreaterEqual(ns.http("GET", "/sector/4000")[0], 400)
        for mib in (2, 3):
            os.truncate(disk, mib << 20)
            m.patch("/drives/disk0", drive_id="disk0", path_on_host=disk)
            m.wait_for(lambda: ns.http("GET", f"/sector/{mib * 2048 - 1}")[0] == 200, 5, "the new capacity")
        with self.assertRaises(ApiError):  # the lock was never given up
            self.monitor().boot(drives=[disk], start=False)

    def test_one_owner_per_disk(self):
        disk = self.disk(1)
        a, b = self.monitor(), self.monitor()
        a.boot(drives=[disk], start=False)
        with self.assertRaises(ApiError) as c:
            b.boot(drives=[disk], start=False)
        self.assertIn("in use", str(c.exception))
        a.close()
        b.boot(drives=[disk], start=False)

    def test_readers_share_an_image(self):
        disk = self.disk(1)
        ro = {"path_on_host": disk, "is_read_only": True}
        a, b = self.monitor(), self.monitor()
        a.boot(drives=[ro], start=False)
        b.boot(drives=[ro], start=False)

    def test_copy_on_write_layer_leaves_the_base_alone(self):
        base = self.disk(1, b"B" * 512)
        layer = self.disk(0)
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[{"path_on_host": base, "cow_path": layer}])
        ns.http("PUT", "/sector/0", b"C" * 512)
        self.assertEqual(ns.http("GET", "/sector/0")[1], b"C" * 512)
        m.kill()
        with open(base, "rb") as f:
            self.assertEqual(f.read(512), b"B" * 512)
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[{"path_on_host": base, "cow_path": layer}])
        self.assertEqual(ns.http("GET", "/sector/0")[1], b"C" * 512)


class Pause(GuestCase):
    def test_counters_stand_still_while_paused(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        before = json.loads(ns.http("GET", "/counter")[1])
        m.patch("/vm", state="Paused")
        m.patch("/vm", state="Paused")
        self.assertEqual(m.state(), "Paused")
        with self.assertRaises(OSError):
            ns.http("GET", "/counter", timeout=1, retry=0)
        ticks = self.cpu_ticks(m)
        time.sleep(0.5)
        self.assertLessEqual(self.cpu_ticks(m) - ticks, 2)
        m.patch("/vm", state="Resumed")
        m.patch("/vm", state="Resumed")
        after = json.loads(ns.http("GET", "/counter")[1])
        self.assertEqual(after["boot"], before["boot"])
        self.assertGreater(after["counter"], before["counter"])

    @staticmethod
    def cpu_ticks(m):
        with open(f"/proc/{m.p.pid}/stat") as f:
            v = f.read().rsplit(")", 1)[1].split()
        return int(v[11]) + int(v[12])

    def test_tcp_survives_a_pause(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        ns.http("GET", "/")
        s = ns.connect()
        s.settimeout(20)
        s.sendall(b"GET /download?mib=16 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = s.recv(65536)
        m.patch("/vm", state="Paused")
        time.sleep(1.5)
        m.patch("/vm", state="Resumed")
        n = len(got)
        while chunk := s.recv(1 << 20):
            n += len(chunk)
        s.close()
        self.assertGreaterEqual(n, 16 << 20)

    def test_a_hundred_pauses_lose_no_interrupt(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns, drives=[self.disk(4)])
        ns.http("GET", "/")
        for i in range(100):
            m.patch("/vm", state="Paused")
            m.patch("/vm", state="Resumed")
            self.assertEqual(ns.http("PUT", f"/sector/{i}", b"x" * 512, timeout=5)[0] // 100, 2)

    def test_a_sleeping_guest_costs_nothing(self):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        ns.http("GET", "/")
        time.sleep(0.5)
        before = self.cpu_ticks(m)
        time.sleep(2)
        self.assertLessEqual(self.cpu_ticks(m) - before, 4)


class Ends(GuestCase):
    def end(self, path):
        ns = self.netns()
        m = self.monitor(netns=ns)
        m.boot(netns=ns)
        ns.http("GET", "/")
        try:
            ns.http("GET", path, timeout=1, retry=0)
        except OSError:
            pass
        status = m.wait_exit(10)
        return status, m.out() + m.err()

    def test_power_off(self):
        status, log = self.end("/poweroff")
        self.assertEqual(status, 0, log)
        self.assertIn("powered off", log)

    def test_reboot(self):
        status, log = self.end("/reboot")
        self.assertEqual(status, 0, log)
        self.assertIn("reset itself", log)

    def test_triple_fault(self):
        m = self.monitor()
        m.boot(kernel=guest("triple"))
        self.assertEqual(m.wait_exit(10), 0)
        self.assertIn("triple fault", m.out())

    def test_ctrl_alt_del_of_a_guest_that_has_no_keyboard(self):
        # test_boot has the guest that reads its scan codes and resets; this one neither hears them nor minds.
        ns, metrics = self.netns(), self.disk(0)
        m = self.monitor("--metrics-path", metrics, netns=ns)
        with self.assertRaises(ApiError):
            m.put("/actions", action_type="SendCtrlAltDel")  # not started yet
        m.boot(netns=ns)
        ns.http("GET", "/")
        self.assertEqual(m.api("PUT", "/actions", {"action_type": "SendCtrlAltDel"})[0], 204)
        with self.assertRaises(ApiError) as c:
            for _ in range(20):  # more than the controller's buffer holds
                m.put("/actions", action_type="SendCtrlAltDel")
        self.assertIn("the guest does not read it", str(c.exception))
        self.assertEqual(ns.http("GET", "/")[0], 200)
        self.assertEqual(m.state(), "Running")
        m.put("/actions", action_type="FlushMetrics")
        with open(metrics) as f:
            i8042 = [json.loads(x)["i8042"] for x in f]
        self.assertEqual(sum(x["reset_count"] + x["read_count"] for x in i8042), 0)

    def test_signals_ask_for_an_orderly_end(self):
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for boot in (False, True):
                ns, disk = self.netns(), self.disk(1)
                m = self.monitor(netns=ns)
                m.boot(netns=ns, drives=[disk], start=boot)
                self.assertEqual(m.kill(sig), 0, m.err())
                self.assertIn("Mayfly ends: a signal asked for it", m.out())
                self.assertEqual(m.err(), "")
                m = self.monitor(netns=ns)  # tap and image are free at once
                m.boot(netns=ns, drives=[disk], start=False)
                m.close()

    def test_a_kill_is_told_by_status_alone(self):
        m = self.monitor()
        m.boot("mode=http")
        m.wait_out("mayfly-guest: ready")
        self.assertEqual(m.kill(signal.SIGKILL), -signal.SIGKILL)
        self.assertEqual(m.err(), "")
        self.assertNotIn("Mayfly ends", m.out())
        self.assertTrue(os.path.exists(m.sock))  # a successor takes the stale socket over
        after = self.monitor("--api-sock", m.sock, api=False)
        after.sock = m.sock
        after.wait_for(after.try_connect, 10, "API socket")
        self.assertEqual(after.state(), "Not started")

    def test_killed_monitor_gives_its_tap_and_disk_back(self):
        ns, disk = self.netns(), self.disk(4)
        for _ in range(10):
            m = self.monitor(netns=ns)
            m.boot(netns=ns, drives=[disk])
            self.assertEqual(ns.http("GET", "/")[0], 200)
            m.kill()

    def test_exit_statuses_of_bad_starts(self):
        for args, status, word in ((["--nonsense"], 153, "unknown option"), (["--id"], 153, "needs a value"),
                                   (["--metadata", "x"], 153, "--metadata: Mayfly has no metadata service"),
                                   (["--enable-pci"], 153, "--enable-pci: Mayfly has no PCI"),
                                   (["--id", "a/b"], 153, "--id"), (["--no-api"], 153, "--config-file"),
                                   (["--level", "loud"], 153, "--level"),
                                   (["--config-file", "/nonexistent"], 1, "--config-file")):
            with self.subTest(args=args):
                m = self.monitor(*args, api=False)
                self.assertEqual(m.wait_exit(10), status)
                self.assertIn(word, m.err())

    def test_help_names_every_option(self):
        m = self.monitor("--help", api=False)
        self.assertEqual(m.wait_exit(10), 0)
        with open(os.path.join(ROOT, "docs", "api.md")) as f:
            doc = f.read()
        for option in re.findall(r"^  (--[a-z-]+)", m.out(), re.M):
            self.assertIn(f"`{option}", doc)

    def test_version(self):
        m = self.monitor("--version", api=False)
        self.assertEqual(m.wait_exit(10), 0)
        self.assertRegex(m.out(), r"^Mayfly v\d+\.\d+\.\d+\n$")


class Limits(GuestCase):
    def test_network_limiter_is_obeyed_and_patched(self):
        ns, metrics = self.netns(), self.disk(0)
        m = self.monitor("--metrics-path", metrics, netns=ns)
        bucket = {"bandwidth": {"size": 1 << 20, "refill_time": 1000}}
        m.boot(netns=ns, net={"tx_rate_limiter": bucket})
        ns.http("GET", "/")

        def throttled():
            with open(metrics) as f:
                n = len(f.readlines())
            m.put("/actions", action_type="FlushMetrics")
            with open(metrics) as f:
                return sum(json.loads(x)["net_eth0"]["tx_rate_limiter_throttled"] for x in f.readlines()[n:])
        start = time.monotonic()
        self.assertEqual(len(ns.http("GET", "/download?mib=3", timeout=60)[1]), 3 << 20)
        self.assertGreater(time.monotonic() - start, 1.2)  # 3 MiB at 1 MiB/s, one of them in the bucket
        self.assertGreater(throttled(), 0)
        m.patch("/network-interfaces/eth0", iface_id="eth0",
                tx_rate_limiter={"bandwidth": {"size": 0, "refill_time": 0}})
        throttled()
        self.assertEqual(len(ns.http("GET", "/download?mib=3", timeout=60)[1]), 3 << 20)
        self.assertEqual(throttled(), 0)

    def test_disk_limiter_is_obeyed_and_patched(self):
        ns, metrics = self.netns(), self.disk(0)
        m = self.monitor("--metrics-path", metrics, netns=ns)
        ops = {"ops": {"size": 4, "refill_time": 1000}}
        m.boot(netns=ns, drives=[{"path_on_host": self.disk(1), "rate_limiter": ops}])
        ns.http("GET", "/")
        start = time.monotonic()
        for i in range(12):
            self.assertEqual(ns.http("GET", f"/sector/{i}", timeout=60)[0], 200)
        self.assertGreater(time.monotonic() - start, 1.2)
        m.patch("/drives/disk0", drive_id="disk0", rate_limiter={"ops": {"size": 0, "refill_time": 0}})
        m.put("/actions", action_type="FlushMetrics")
        for i in range(200):
            ns.http("GET", f"/sector/{i}", timeout=60)
        m.put("/actions", action_type="FlushMetrics")
        with open(metrics) as f:
            first, second = [json.loads(x)["block_disk0"]["rate_limiter_throttled_events"] for x in f.readlines()[-2:]]
        self.assertGreater(first, 0)
        self.assertEqual(second, 0)


    def test_serial_limiter_is_obeyed(self):
        path = self.disk(0)
        m = self.monitor()
        m.put("/serial", serial_out_path=path,
              rate_limiter={"size": 4096, "refill_time": 1000, "one_time_burst": 2048})
        start = time.monotonic()
        m.boot(kernel=guest("serialflood"))
        for want in (6144, 12288):  # the bucket and its burst at once, then 4 KiB a second
            m.wait_for(lambda: os.path.getsize(path) >= want, 30, f"{want} bytes of a limited console")
            size, took = os.path.getsize(path), time.monotonic() - start
            self.assertLessEqual(size, 6144 + 4096 * took)
        self.assertGreater(took, 1.4)


class Platform(GuestCase):
    def test_port_and_mmio_storm_is_survived(self):
        m = self.monitor()
        m.boot("rounds=3 pstep=9", kernel=guest("storm"), drives=[self.disk(1)])
        self.assertEqual(m.wait_exit(120), 0, m.err())
        self.assertLess(m.out().count("unmapped"), 300)

    def test_serial_flood_with_a_reader_that_never_reads(self):
        r, w = os.pipe()
        self.addCleanup(os.close, r)
        self.addCleanup(os.close, w)
        fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 4096)    # soon full, however slow an exit is here
        metrics = self.disk(0)
        m = self.monitor("--metrics-path", metrics, stdout=w)
        m.boot(kernel=guest("serialflood"))

        def lost():
            m.put("/actions", action_type="FlushMetrics")
            with open(metrics) as f:
                return json.loads(f.readlines()[-1])["uart"]["lost_byte_count"]
        for _ in range(3):  # the guest writes on and on
            m.wait_for(lost, 20, "bytes that a full console loses")
        m.patch("/vm", state="Paused")

    def test_the_guests_last_words_come_before_the_monitors(self):
        m = self.monitor(log=False)
        m.boot("bytes=1000", kernel=guest("serialflood"))
        self.assertEqual(m.wait_exit(), 0, m.err())
        self.assertRegex(m.out(), "\nserialflood: done\n[^\n]*Mayfly ends")

    def test_stalled_vcpu_is_reported_and_not_killed(self):
        metrics = self.disk(0)
        m = self.monitor("--metrics-path", metrics)

        def stalled():
            m.put("/actions", action_type="FlushMetrics")
            with open(metrics) as f:
                return sum(json.loads(x)["mayfly"]["stalled_vcpus"] for x in f)
        m.boot(kernel=guest("spin"))
        self.assertEqual(stalled(), 0)
        m.wait_out("makes no progress", 120)  # CPU time, so longer on a busy host
        self.assertGreaterEqual(stalled(), 1)
        self.assertEqual(m.state(), "Running")

    def test_config_file_without_api(self):
        ns, disk = self.netns(), self.disk(4)
        cfg = {"boot-source": {"kernel_image_path": guest(),
                               "boot_args": f"ip={ns.guest}/24 gw={ns.host}"},
               "drives": [{"drive_id": "d", "path_on_host": disk, "is_root_device": False}],
               "machine-config": {"vcpu_count": 2, "mem_size_mib": 256},
               "network-interfaces": [{"iface_id": "eth0", "host_dev_name": ns.tap,
                                       "guest_mac": ns.mac}]}
        path = self.disk(0)
        with open(path, "w") as f:
            json.dump(cfg, f)
        m = self.monitor("--no-api", "--config-file", path, netns=ns, api=False)
        self.assertEqual(ns.http("GET", "/")[0], 200)
        ns.http("PUT", "/sector/3", b"z" * 512)
        self.assertIsNone(m.p.poll())

    def test_paths_must_lie_beneath_allowed_directories(self):
        disk = self.disk(1)
        m = self.monitor("--allow-dir", os.path.dirname(guest()))
        m.put("/boot-source", kernel_image_path=guest())
        for path in (disk, "/etc/../etc/passwd", os.path.dirname(guest()) + "/../../../etc/passwd"):
            with self.assertRaises(ApiError) as c:
                m.put("/drives/d", drive_id="d", path_on_host=path, is_root_device=False)
            self.assertIn("path_on_host", str(c.exception))


if __name__ == "__main__":
    unittest.main()
