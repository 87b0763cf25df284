#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every way a guest ends, ends the monitor as documented, with the status and the reason: power off, reboot by keyboard
controller, by ACPI and by triple fault, panic with panic=1, Ctrl-Alt-Del from the API."""
# timeout: 300
import re

from lib import ARGS, Guest, asset, check, linux, note

KERNELS = [("6.12", linux(), asset("initrd.gz")),
           ("Debian 6.1", asset("cloud-6.1", "vmlinuz"), asset("cloud-6.1", "initrd.gz"))]
NO_REBOOT = ARGS.replace("reboot=k", "")


RESET = r"the guest reset itself \(.+\)"
KEYBOARD, TRIPLE = r"the guest reset itself \(i8042\)", r"the guest reset itself \(triple fault\)"


def ends(name, guest, reason, before=None, says=None):
    guest.start()
    if before:
        before(guest)
    status = guest.wait(60)
    check(status == 0, f"{name}: exit status {status}\n{guest.tail()}")
    told = re.search(r"Mayfly ends: (.*)", guest.console())
    check(told and re.fullmatch(reason, told[1]), f"{name}: the reason is not {reason!r}\n{guest.tail()}")
    check(not says or re.search(says, guest.console()), f"{name}: the guest did not say {says!r}\n{guest.tail()}")
    note(f"{name}: exit status {status}, {told[1]}")
    guest.close()


def ctrl_alt_del(g):
    g.up()
    g.put("/actions", action_type="SendCtrlAltDel")


for label, kernel, initrd in KERNELS:
    ends(f"{label} poweroff", Guest(kernel, initrd, "mayfly.then=poweroff"), "the guest powered off")
    # Where ACPI names no reset register, the kernel falls back to the keyboard controller.
    for way, reason in (("k", KEYBOARD), ("a", RESET), ("t", TRIPLE)):
        ends(f"{label} reboot={way}", Guest(kernel, initrd, f"reboot={way} mayfly.then=reboot", base_args=NO_REBOOT), reason)
    ends(f"{label} reboot, kernel's choice", Guest(kernel, initrd, "mayfly.then=reboot", base_args=NO_REBOOT), RESET)
    ends(f"{label} panic", Guest(kernel, initrd, "mayfly.then=panic"), KEYBOARD,
         says="Kernel panic - not syncing: Attempted to kill init")
    ends(f"{label} Ctrl-Alt-Del", Guest(kernel, initrd, "mayfly.then=stay"), KEYBOARD, ctrl_alt_del)
