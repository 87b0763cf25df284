#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# Jailed monitors on a stock kernel with cgroup v2: what live microVMs hold, hijacked ones, races while a jail is built.
# timeout: 1500
import lib

lib.run_tests("integration", "test_jail_monitor.", "test_jail_live.", "test_jail_hijack.", "test_jail_races.")
