# SPDX-License-Identifier: Apache-2.0
# make coverage: what the unit tests reach of virtio/ and of whatever parses bytes of others. It reports and judges: 90 % of
# the lines and 80 % of the branches of both together, by gcov.
.PHONY: coverage
COVERAGE_MAKE = $(MAKE) --no-print-directory B=build/coverage LIBC=glibc OPT="-Og -g" CC="gcc --coverage -fprofile-update=atomic"
coverage: deps
	$(Q)find build/coverage -name '*.gcda' -delete 2>/dev/null || true
	$(Q)$(COVERAGE_MAKE) unit
	$(Q)python3 tests/run.py --build build/coverage --but test_seccomp --but test_jail --but test_faults unit
	$(Q)python3 tests/unit/coverage.py build/coverage
