#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The jail's own tests on a stock kernel: namespaces, cgroup v2, Landlock and the filters as Debian's kernel has them.
# lane: quick
# timeout: 300
exec python3 tests/run.py --only jail integration
