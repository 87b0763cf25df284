# SPDX-License-Identifier: Apache-2.0
"""What an operator sees: log lines, metrics, FIFOs that nobody reads, the console on standard output."""
import datetime
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import termios
import time
import unittest

import lib
import tiny
from lib import MAYFLY, GuestCase

LINE = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}) \[([^\]]*)\] (.*)$")
# Groups and fields that Firecracker's metrics have for what both have.
GROUPS = {
    "api_server": ("process_startup_time_us", "process_startup_time_cpu_us"),
    "get_api_requests": ("instance_info_count", "machine_cfg_count", "vmm_version_count"),
    "put_api_requests": ("actions_count", "actions_fails", "boot_source_count", "boot_source_fails", "drive_count",
                         "drive_fails", "logger_count", "machine_cfg_count", "metrics_count", "network_count",
                         "network_fails"),
    "patch_api_requests": ("drive_count", "drive_fails", "machine_cfg_count", "network_count"),
    "latencies_us": ("pause_vm", "resume_vm", "vmm_pause_vm", "vmm_resume_vm", "full_create_snapshot", "load_snapshot"),
    "block": ("execute_fails", "flush_count", "queue_event_count", "read_bytes", "read_count", "write_bytes",
              "write_count", "rate_limiter_throttled_events", "update_count"),
    "net": ("no_rx_avail_buffer", "rx_bytes_count", "rx_packets_count", "rx_fails", "tx_bytes_count", "tx_packets_count",
            "tx_fails", "tx_spoofed_mac_count", "tx_rate_limiter_throttled", "rx_rate_limiter_throttled"),
    "i8042": ("error_count", "missed_read_count", "missed_write_count", "read_count", "reset_count", "write_count"),
    "uart": ("error_count", "missed_read_count", "missed_write_count", "read_count", "write_count"),
    "vcpu": ("exit_io_in", "exit_io_out", "exit_mmio_read", "exit_mmio_write", "failures"),
    "logger": ("missed_metrics_count", "metrics_fails", "missed_log_count"),
    "seccomp": ("num_faults",), "vmm": ("panic_count",), "signals": ("sigbus", "sigsegv"), "interrupts": ("triggers",),
}


class Observe(GuestCase):
    def setUp(self):
        self.metrics = self.disk(0)

    def lines(self):
        with open(self.metrics) as f:
            return [json.loads(line) for line in f]

    def flush(self, m):
        n = len(self.lines())
        m.put("/actions", action_type="FlushMetrics")
        m.wait_for(lambda: len(self.lines()) > n, 5, "metrics")
        return self.lines()[-1]


class Metrics(Observe):
    def test_groups_and_deltas(self):
        ns = self.netns()
        m = self.monitor("--metrics-path", self.metrics, netns=ns)
        m.wait_for(self.lines, 10, "a line at the start")
        first = self.lines()[0]
        m.boot(netns=ns, drives=[self.disk(4)])
        ns.http("PUT", "/sector/1", b"x" * 512)
        ns.http("GET", "/sector/1")
        line = self.flush(m)
        for group, fields in {**GROUPS, "block_disk0": GROUPS["block"], "net_eth0": GROUPS["net"]}.items():
            for f in fields:
                self.assertIsInstance(line[group][f], int, f"{group}.{f}")
        now = time.time() * 1000
        self.assertTrue(now - 600000 < line["utc_timestamp_ms"] < now + 600000)
        self.assertEqual(first["put_api_requests"]["actions_count"], 0)
        self.assertEqual(line["put_api_requests"]["actions_count"], 1)
        self.assertEqual(line["put_api_requests"]["drive_count"], 1)
        self.assertGreaterEqual(line["block"]["write_bytes"], 512)
        self.assertEqual(line["block"], {k: line["block_disk0"][k] for k in line["block"]})
        self.assertGreater(line["net_eth0"]["tx_packets_count"], 0)
        self.assertGreater(line["net_eth0"]["rx_bytes_count"], 0)
        self.assertGreater(line["interrupts"]["triggers"], 0)
        self.assertGreater(line["mayfly"]["guest_ready_us"], 0)
        # Counters are what came since the last line.
        m.patch("/vm", state="Paused")
        self.flush(m)
        still = self.flush(m)
        for group in ("block", "net", "vcpu", "uart", "i8042", "interrupts"):
            self.assertEqual(set(still[group].values()), {0}, group)  # a paused microVM counts nothing
        self.assertEqual(still["put_api_requests"]["actions_count"], 1)
        self.assertGreater(still["latencies_us"]["pause_vm"], 0)
        m.patch("/vm", state="Resumed")
        m.api("PUT", "/drives/x", {"drive_id": "x"}, check=False)
        ns.http("GET", "/poweroff")
        m.wait_exit(10)
        last = self.lines()[-1]  # a line at the end
        self.assertEqual(last["put_api_requests"]["drive_fails"], 1)
        self.assertEqual(last["net_eth0"]["tx_spoofed_mac_count"], 0)

    def test_source_mac_is_enforced(self):
        # net.mask=0x20: the guest does not take the MAC feature and sends from an address of its own.
        for more, passes in (({}, False), ({"allow_mac_spoofing": True}, True), ({"guest_mac": None}, True)):
            with self.subTest(more):
                ns = self.netns()
                open(self.metrics, "w").close()
                m = self.monitor("--metrics-path", self.metrics, netns=ns)
                m.boot("net.mask=0x20", netns=ns, net=more)
                if passes:
                    self.assertEqual(ns.http("GET", "/")[0], 200)
                    self.assertEqual(self.flush(m)["net"]["tx_spoofed_mac_count"], 0)
                    continue
                m.wait_out("mayfly-guest: ready")
                s = ns.socket(socket.AF_INET, socket.SOCK_DGRAM)
                s.sendto(b"x", (ns.guest, 7))  # its ARP answer is dropped
                seen = [0]

                def counted():
                    line = self.flush(m)["net_eth0"]
                    self.assertEqual(line["tx_packets_count"], 0)
                    seen[0] += line["tx_spoofed_mac_count"]
                    return seen[0]
                m.wait_for(counted, 10, "dropped frames in the metrics")
                s.settimeout(0.2)
                with self.assertRaises(OSError):
                    s.recv(100)
                s.close()

    def test_a_fifo_that_nobody_reads_blocks_nothing(self):
        log, metrics = self.metrics + ".log", self.metrics + ".fifo"
        for path in (log, metrics):
            os.mkfifo(path)
            self.addCleanup(os.unlink, path)
        ns = self.netns()
        m = self.monitor("--log-path", log, "--level", "Trace", "--metrics-path", metrics, netns=ns)
        m.boot(netns=ns)
        for _ in range(300):  # far more than a FIFO holds
            m.get("/")
            m.put("/actions", action_type="FlushMetrics")
            m.api("PUT", "/boot-source", {"kernel_image_path": "x" * 500}, check=False)
        self.assertEqual(ns.http("GET", "/")[0], 200)
        # Whoever reads at last gets whole lines, and what was missed is counted.
        with open(metrics, "rb", buffering=0) as f:
            os.set_blocking(f.fileno(), False)
            got = b""

            def drained():
                nonlocal got
                got += f.read(1 << 20) or b""
                m.put("/actions", action_type="FlushMetrics")
                return sum(json.loads(x)["logger"]["missed_metrics_count"] for x in got.split(b"\n")[:-1])
            m.wait_for(drained, 10, "a line that counts the missed ones")
        with open(log, "rb", buffering=0) as f:
            os.set_blocking(f.fileno(), False)
            lines = f.read(1 << 20).decode().split("\n")
        self.assertEqual(lines.pop(), "")
        for line in lines:
            self.assertRegex(line, LINE)


class Log(Observe):
    def test_nobody_reads_standard_output(self):
        """A full pipe loses lines; it stops no thread, and not the end."""
        r, w = os.pipe()
        self.addCleanup(os.close, r)
        os.set_blocking(w, False)
        try:
            while True:
                os.write(w, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(w, True)
        net = self.netns()
        m = self.monitor("--level", "Debug", netns=net, log=False, stdout=w)
        os.close(w)
        m.boot(netns=net)
        self.assertEqual(net.http("GET", "/counter")[0], 200)
        for state in ("Paused", "Resumed"):
            m.patch("/vm", state=state)
        self.assertEqual(m.kill(signal.SIGTERM), 0)

    def test_background_of_a_terminal(self):
        """Started with & from an interactive shell it serves, and leaves the shell's terminal alone."""
        path = os.path.join(tempfile.mkdtemp(prefix="mayfly-tty-"), "sock")
        self.addCleanup(shutil.rmtree, os.path.dirname(path))
        pid, tty = pty.fork()
        if not pid:
            os.execv("/bin/sh", ["sh", "-c", f"set -m; {lib.MAYFLY} --api-sock {path} & wait"])
        self.addCleanup(os.close, tty)
        echo = termios.tcgetattr(tty)[3]
        try:
            end = time.monotonic() + 10
            while True:
                c = lib.UnixHTTP(path, timeout=10)
                try:
                    c.request("GET", "/")
                    self.assertEqual(c.getresponse().status, 200)
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    self.assertLess(time.monotonic(), end)
                    time.sleep(0.02)
            self.assertEqual(termios.tcgetattr(tty)[3], echo)
        finally:
            subprocess.run(["pkill", "-f", path])
            os.kill(pid, signal.SIGHUP)
            os.waitpid(pid, 0)

    def test_format_and_levels(self):
        m = self.monitor("--id", "vm-7", "--level", "Warning", "--show-level", "--show-log-origin")
        m.put("/machine-config", vcpu_count=1, mem_size_mib=64)
        self.assertNotIn("INFO", m.log())
        m.put("/logger", level="Debug")
        m.get("/version")
        m.put("/logger", level="Off")
        m.get("/vm/config")
        lines = [LINE.match(line) for line in m.log().splitlines()]
        self.assertTrue(all(lines), m.log())
        debug = [x for x in lines if x[3].startswith("GET /version")]
        self.assertEqual(len(debug), 1)
        self.assertRegex(debug[0][2], r"^vm-7:mayfly:DEBUG:api-socket/routes\.c:\d+$")
        self.assertNotIn("/vm/config", m.log())
        stamp = datetime.datetime.fromisoformat(debug[0][1][:26]).replace(tzinfo=datetime.timezone.utc)
        self.assertLess(abs((datetime.datetime.now(datetime.timezone.utc) - stamp).total_seconds()), 600)
        m.put("/logger", level="Info", show_level=False, show_log_origin=False)
        m.put("/logger", level="Info", module="nothing/of/this")
        n = len(m.log())
        m.api("PUT", "/boot-source", {"kernel_image_path": "/none"}, check=False)
        self.assertEqual(len(m.log()), n)

    def test_a_client_cannot_forge_a_line(self):
        m = self.monitor()
        m.api("PUT", "/boot-source", {"kernel_image_path": "/x\n2026-01-01T00:00:00.000000000 [a:b] forged\x1b[2J"},
              check=False)
        self.assertIn("forged?[2J", m.log())
        for line in m.log().splitlines():
            self.assertRegex(line, LINE)
            self.assertFalse(line.startswith("2026-01-01"))

    def test_guest_lines_are_limited(self):
        m = self.monitor("--metrics-path", self.metrics)
        image = self.disk(0)
        with open(image, "wb") as f:  # next: mov eax, [rbx]; jmp next, at an address past the end of RAM
            f.write(tiny.elf(bytes.fromhex("bb00000010 8b03 ebfc")))
        m.boot(kernel=image)

        def stamps():
            times = [LINE.match(x)[1] for x in m.log().splitlines() if "unmapped" in x]
            return [datetime.datetime.fromisoformat(t[:26]).timestamp() for t in times]
        m.wait_for(lambda: len(stamps()) > 10, 60, "lines of two windows")
        m.patch("/vm", state="Paused")
        got = stamps()
        for i in range(len(got) - 10):  # the eleventh line after any line of a window's begin is 5 s later
            if i % 10 == 0:
                self.assertGreaterEqual(got[i + 10] - got[i], 4.99)
        self.assertRegex(m.log(), r"\(\d+ lines like this were left out\)")
        line = self.flush(m)
        self.assertGreater(line["logger"]["rate_limited_log_count"], 100)
        self.assertGreater(line["mayfly"]["unmapped_mmio"], len(got))

    def test_boot_timer(self):
        for args, lines in ((["--boot-timer"], 1), ([], 0)):
            m = self.monitor(*args)
            m.boot("mode=hello")
            m.wait_exit(10)
            self.assertEqual(len(re.findall(r"Guest-boot-time =\s+\d+ us \d+ ms,\s+\d+ CPU us \d+ CPU ms", m.log())), lines)

    def test_what_is_said_at_the_start(self):
        with open("/proc/cpuinfo") as f:
            hardware = re.search(r"^flags.*\b(vmx|svm)\b", f.read(), re.M)
        m = self.monitor("--no-seccomp")
        m.boot("mode=hello")
        m.wait_exit(10)
        self.assertEqual(m.log().count("Running Mayfly v"), 1)
        self.assertEqual(m.log().count("this host's KVM is PVM"), 0 if hardware else 1)
        if "debug" not in os.path.basename(os.path.dirname(MAYFLY)):
            self.assertEqual(m.log().count("--no-seccomp: the filters stay on"), 1)
        self.assertIn("Landlock", m.log())
        self.assertEqual(m.err(), "")

    def test_log_and_console_share_standard_output(self):
        m = self.monitor(log=False)
        image = self.disk(0)
        with open(image, "wb") as f:
            f.write(tiny.elf(tiny.say("hello\n") + tiny.POWER_OFF))
        m.boot(kernel=image)
        self.assertEqual(m.wait_exit(10), 0)
        self.assertIn("Running Mayfly", m.console())
        self.assertIn("Mayfly ends: the guest powered off", m.console())


if __name__ == "__main__":
    unittest.main()
