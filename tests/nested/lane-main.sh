#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Process 1 of the lane's outer machine: brings up stock KVM, runs the command that the exchange disk names, writes
# its exit status and /results back to that disk, ends the machine. Output goes to the second serial port.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
finish() {
    sync
    busybox reboot -f
}
trap finish EXIT

mount -t tmpfs -o mode=1777,size=70% tmpfs /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /dev/pts /dev/shm /run/lane /results
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
stty -F /dev/ttyS1 raw -echo 115200
stty -F /dev/ttyS0 raw -echo 115200
cat /dev/ttyS0 >/dev/null & # takes the host's nudges (lane.py)

# Loading KVM is the lane's reason to be; without it the command would only report skips.
modprobe -a kvm-amd tun loop 2>&1
[ -c /dev/kvm ] || { echo "lane: no /dev/kvm"; exit 1; }
sysctl -q -w kernel.panic=1 vm.overcommit_memory=1
ip link set lo up
hostname lane

tar -xf /dev/vdd -C /run/lane
# shellcheck source=/dev/null
. /run/lane/environment
cd /src || exit 1
# The host ends a machine that gives no sign of life.
while sleep 10; do echo "lane: alive" >/dev/ttyS0; done &
start=$(date +%s.%N)
setsid timeout -k 10 "$LANE_TIMEOUT" bash /run/lane/command </dev/ttyS1 >/dev/ttyS1 2>&1
status=$?
[ $status -ne 124 ] || echo "lane: the command did not end within ${LANE_TIMEOUT} s" >/dev/ttyS1
echo $status >/run/lane/status
echo "$start $(date +%s.%N)" >/run/lane/seconds
dmesg >/run/lane/dmesg
# Status first: it must arrive even when the results do not fit.
tar -C /run/lane -cf - status seconds dmesg -C /results . | dd of=/dev/vdd bs=1M status=none
