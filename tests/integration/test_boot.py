# SPDX-License-Identifier: Apache-2.0
"""Every kernel format, initrd, command line, serial line and keyboard, each told by a guest of a few instructions."""
import os
import re
import signal
import subprocess
import termios
import unittest

import tiny
from lib import GuestCase, guest


class Tiny(GuestCase):
    def file(self, content):
        return self.disk(len(content) / (1 << 20), content)

    def boot(self, image, *args, **boot):
        m = self.monitor(*args, stdin=boot.pop("stdin", subprocess.DEVNULL))
        m.put("/boot-source", kernel_image_path=self.file(image), **boot)
        m.put("/actions", action_type="InstanceStart")
        return m

    def ended(self, m, status=0):
        self.assertEqual(m.wait_exit(30), status, m.err())
        return m.console()


class Formats(Tiny):
    def test_elf_without_a_pvh_note(self):
        m = self.boot(tiny.elf(tiny.say("64-bit ELF\n") + tiny.POWER_OFF))
        self.assertEqual("64-bit ELF\n", self.ended(m))
        self.assertIn("Mayfly ends: the guest powered off", m.log())

    def test_bzimage(self):
        for change in ({}, {"pref": 16 << 20}, {"version": 0x20c}):
            with self.subTest(change):
                out = self.ended(self.boot(tiny.bzimage(tiny.say("bzImage\n") + tiny.POWER_OFF, **change)))
                self.assertEqual("bzImage\n", out)

    def test_pvh_note_comes_first(self):
        # function.elf has both entries; without its note it must take the other one, to the same end.
        bare = self.disk(0)
        subprocess.run(["objcopy", "--remove-section=.note*", guest(), bare], check=True)
        for kernel in (guest(), bare):
            ns = self.netns()
            m = self.monitor(netns=ns)
            m.boot(netns=ns, kernel=kernel)
            self.assertEqual(ns.http("GET", "/")[0], 200)

    def test_initrd_is_handed_over(self):
        text = b"".join(b"%d bottles\n" % i for i in range(200))
        for wrap in (tiny.elf, tiny.bzimage):
            m = self.boot(wrap(tiny.say_initrd() + tiny.POWER_OFF), initrd_path=self.file(text))
            self.assertEqual(text.decode(), self.ended(m))

    def test_command_line(self):
        code = tiny.say("<") + tiny.say_zero_page_string(0x228) + tiny.say(">\n") + tiny.POWER_OFF
        self.assertIn("<reboot=k panic=1 nomodule ", self.ended(self.boot(tiny.elf(code))))
        m = self.monitor()
        disk = self.disk(1)
        m.put("/drives/a", drive_id="a", is_root_device=False, path_on_host=disk)
        m.put("/drives/r", drive_id="r", is_root_device=True, path_on_host=self.disk(1), is_read_only=True,
              partuuid="0eaa91a0-01")
        m.put("/boot-source", kernel_image_path=self.file(tiny.elf(code)), boot_args="quiet x=\"a b\" -- run me")
        m.put("/actions", action_type="InstanceStart")
        line = re.search(r"<(.*)>", self.ended(m))[1]
        self.assertEqual(line, 'quiet x="a b" pci=off root=PARTUUID=0eaa91a0-01 ro '
                         "virtio_mmio.device=4K@0xc0001000:5 virtio_mmio.device=4K@0xc0002000:6 -- run me")


class Legacy(Tiny):
    def test_serial_input_reaches_the_guest(self):
        m = self.boot(tiny.elf(tiny.echo_until_newline() + tiny.POWER_OFF), stdin=subprocess.PIPE)
        text = "".join(f"{i} " for i in range(300)) + "\n"  # more than the port's buffer
        m.p.stdin.write(text.encode())
        m.p.stdin.flush()
        self.assertIn(text, self.ended(m))

    def test_serial_input_from_a_terminal(self):
        for end in (lambda main, m: os.write(main, b"typed\n"), lambda main, m: m.p.send_signal(signal.SIGTERM)):
            main, other = os.openpty()
            self.addCleanup(os.close, main)
            before = termios.tcgetattr(main)
            m = self.boot(tiny.elf(tiny.say("?") + tiny.echo_until_newline() + tiny.POWER_OFF), stdin=other)
            os.close(other)
            m.wait_out("?")
            self.assertNotEqual(termios.tcgetattr(main), before)  # raw: the guest does the echo
            end(main, m)
            self.assertIn(self.ended(m), ("?typed\n", "?"))
            self.assertEqual(termios.tcgetattr(main), before)

    def test_ctrl_alt_del_is_typed_and_reset_ends(self):
        code = tiny.say("ready\n") + tiny.scancodes_until(0x71) + tiny.HALT
        m = self.boot(tiny.elf(code))
        m.wait_out("ready")
        m.put("/actions", action_type="SendCtrlAltDel")
        self.assertEqual(m.wait_exit(30), 0)
        with open(m.out_path, "rb") as f:
            out = f.read()
        # Ctrl, Alt, Del pressed, in the set that a keyboard speaks whose controller translates nothing.
        self.assertEqual(b"ready\n\x14\x11\xe0\x71", out)
        self.assertIn("reset itself (i8042)", m.log())

    def test_serial_output_to_a_path(self):
        path = self.disk(0)
        m = self.monitor()
        m.put("/serial", serial_out_path=path)
        m.boot(kernel=self.file(tiny.elf(tiny.say("to a file\n") + tiny.POWER_OFF)))
        self.ended(m)
        self.assertNotIn("to a file", m.out())
        with open(path) as f:
            self.assertEqual(f.read(), "to a file\n")
        for sink in ("/dev/null", path):
            m = self.monitor("--log-path", "/dev/null")
            m.put("/serial", serial_out_path=sink)
            m.boot(kernel=self.file(tiny.elf(tiny.say("more\n") + tiny.POWER_OFF)))
            self.assertEqual(self.ended(m), "")
        with open(path) as f:
            self.assertEqual(f.read(), "to a file\nmore\n")  # appended, never truncated

    def test_serial_output_to_a_slow_fifo(self):
        fifo = os.path.join(os.path.dirname(self.disk(0)), f"mayfly-fifo-{os.getpid()}")
        os.mkfifo(fifo)
        self.addCleanup(os.unlink, fifo)
        m = self.monitor()
        m.put("/serial", serial_out_path=fifo)
        m.boot("bytes=200000", kernel=guest("serialflood"))
        m.wait_for(lambda: m.state() == "Running", 5, "start")
        r = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, r)
        # A reader that comes late still gets what the port holds: the ring waits for room in the FIFO.
        got = [0]

        def drained():
            try:
                got[0] += len(os.read(r, 65536))
            except BlockingIOError:
                pass
            return got[0] > 65536
        m.wait_for(drained, 20, "serial output past a full FIFO")

    def test_a_guest_that_kvm_gives_up_on(self):
        # popcnt from an address past the end of RAM: KVM's emulator knows no popcnt.
        m = self.boot(tiny.elf(bytes.fromhex("bb00000010 f30fb803") + tiny.HALT))
        self.assertEqual(m.wait_exit(30), 3)
        self.assertRegex(m.err(), r"^mayfly: vCPU 0: KVM could not emulate an instruction at RIP 0x100005.*\n$")


if __name__ == "__main__":
    unittest.main()
