#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Saved and loaded processor state on stock KVM, whose TSC obeys what is written to it: nothing may be skipped here.
# lane: quick
# timeout: 120
exec python3 tests/run.py --skips /dev/null --units test_cpuid,test_vcpu_state unit
