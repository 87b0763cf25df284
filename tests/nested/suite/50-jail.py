#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# The jail as a stock kernel has it, cgroup v2 included: the filters, the stages and the ring from within, then both
# modes of mayfly-jail, and kernels that lack something. 60-jail.py has the monitors.
# lane: quick
# timeout: 300
import lib

lib.run_tests("unit", "test_jail", "test_seccomp", "test_loop")
lib.run_tests("integration", "test_jail.", "test_jail_strict.", "test_jail_kernel.")
