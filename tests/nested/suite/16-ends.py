#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every way a guest ends, ends the monitor as documented: power off, reboot by keyboard controller, by ACPI and by
triple fault, panic with panic=1, Ctrl-Alt-Del from the API."""
# timeout: 300
from lib import ARGS, Guest, asset, check, linux, note

KERNELS = [("6.12", linux(), asset("initrd.gz")),
           ("Debian 6.1", asset("cloud-6.1", "vmlinuz"), asset("cloud-6.1", "initrd.gz"))]
NO_REBOOT = ARGS.replace("reboot=k", "")


def ends(name, guest, before=None):
    guest.start()
    if before:
        before(guest)
    status = guest.wait(60)
    check(status == 0, f"{name}: exit status {status}\n{guest.tail()}")
    note(f"{name}: exit status {status}")
    guest.close()


def ctrl_alt_del(g):
    g.up()
    g.put("/actions", action_type="SendCtrlAltDel")


for label, kernel, initrd in KERNELS:
    ends(f"{label} poweroff", Guest(kernel, initrd, "mayfly.then=poweroff"))
    for way in ("k", "a", "t"):
        ends(f"{label} reboot={way}", Guest(kernel, initrd, f"reboot={way} mayfly.then=reboot", base_args=NO_REBOOT))
    ends(f"{label} reboot, kernel's choice", Guest(kernel, initrd, "mayfly.then=reboot", base_args=NO_REBOOT))
    ends(f"{label} panic", Guest(kernel, initrd, "mayfly.then=panic"))
    ends(f"{label} Ctrl-Alt-Del", Guest(kernel, initrd, "mayfly.then=stay"), ctrl_alt_del)
