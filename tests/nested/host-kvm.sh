#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Says what this host's /dev/kvm is: svm or vmx (hardware, runs any guest), pvm (software KVM: runs no ordinary
# Linux user space), unknown, or none (absent, or this user may not open it).
# The test for a device comes first: <> would make a plain file where there is none.
if ! [ -c /dev/kvm ] || ! (: <>/dev/kvm) 2>/dev/null; then
    echo none
elif [ -d /sys/module/kvm_pvm ]; then
    echo pvm
elif [ -d /sys/module/kvm_amd ] && grep -qw svm /proc/cpuinfo; then
    echo svm
elif [ -d /sys/module/kvm_intel ] && grep -qw vmx /proc/cpuinfo; then
    echo vmx
else
    echo unknown
fi
