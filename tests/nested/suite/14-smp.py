#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""1, 2, 4 and 8 processors, our kernel and Debian's: all online, topology as configured, interrupts routed to the one
that was asked for, work done on each, no lock-up; processors go off and on again."""
# lane: quick
# timeout: 400
from lib import Guest, asset, check, linux, no_faults, note


def script(n):
    return f"""
        [ "$(nproc)" = {n} ] || exit 1
        [ "$(cat /sys/devices/system/cpu/online)" = "{'0' if n == 1 else f'0-{n - 1}'}" ] || exit 2
        [ "$(grep -c ^processor /proc/cpuinfo)" = {n} ] || exit 3
        [ "$(grep '^apicid' /proc/cpuinfo | sort -u | wc -l)" = {n} ] || exit 4
        [ "$(grep '^core id' /proc/cpuinfo | sort -u | wc -l)" = {n} ] || exit 5
        [ "$(grep '^siblings' /proc/cpuinfo | sort -u | tr -dc 0-9)" = {n} ] || exit 6
        [ "$(grep '^cpu cores' /proc/cpuinfo | sort -u | tr -dc 0-9)" = {n} ] || exit 7
        for c in $(seq 0 {n - 1}); do
            taskset -p $(printf %x $((1 << c))) $$ >/dev/null || exit 8
            i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done
        done
        # The disk's interrupt goes where it is sent.
        irq=$(grep virtio /proc/interrupts | head -n 1 | cut -d: -f1 | tr -d ' ')
        echo {n - 1} >/proc/irq/$irq/smp_affinity_list || exit 9
        blockdev --flushbufs /dev/vda; dd if=/dev/vda of=/dev/null bs=4096 count=1 2>/dev/null
        before=$(grep "^ *$irq:" /proc/interrupts | tr -s ' ' | cut -d' ' -f{n + 2})
        blockdev --flushbufs /dev/vda; dd if=/dev/vda of=/dev/null bs=4096 count=1 2>/dev/null
        after=$(grep "^ *$irq:" /proc/interrupts | tr -s ' ' | cut -d' ' -f{n + 2})
        echo "interrupts on the last processor: $before then $after"
        [ "$after" -gt "$before" ] || exit 10
        # The last one goes off and comes back, by INIT and SIPI once more.
        if [ {n} -gt 1 ]; then
            last=/sys/devices/system/cpu/cpu{n - 1}/online
            echo 0 >$last && [ "$(nproc)" = {n - 1} ] || exit 11
            echo 1 >$last && [ "$(nproc)" = {n} ] || exit 12
            taskset {1 << n - 1:x} true || exit 13
        fi"""


for name, kernel, initrd in (("6.12", linux(), asset("initrd.gz")),
                             ("Debian 6.1", asset("cloud-6.1", "vmlinuz"), asset("cloud-6.1", "initrd.gz"))):
    for n in (1, 2, 4, 8):
        if name != "6.12" and n not in (2, 8):
            continue
        g = Guest(kernel, initrd, vcpus=n, mem=512, script=script(n)).start()
        console = g.script_passed()
        check(g.wait() == 0, f"exit status {g.process.returncode}")
        no_faults(g.console())    # it has ended: all of it
        note(f"{name}: {g.up()[0][6:]}")
        g.close()
