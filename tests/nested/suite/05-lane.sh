#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The machine the suite runs on is what the suite needs: stock KVM with nested paging, a steady TSC, taps.
# lane: quick
set -eu
kind=$(tests/nested/host-kvm.sh)
echo "note: /dev/kvm is $kind, Linux $(uname -r), clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
case $kind in svm | vmx) ;; *) exit 1 ;; esac
[ "$(cat /sys/module/kvm_*/parameters/npt /sys/module/kvm_*/parameters/ept 2>/dev/null | head -n 1)" = Y ]
[ -c /dev/net/tun ]
