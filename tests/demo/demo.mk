# SPDX-License-Identifier: Apache-2.0
# DEMO_GUEST=linux: a real Debian guest with a Python function instead of the unikernel.
ifeq ($(DEMO_GUEST),linux)
demo: demo-linux
else
demo: deps
	$(Q)$(MAKE) --no-print-directory all
	$(Q)tests/demo/demo.sh
endif
.PHONY: demo-migration
demo-migration: deps
	$(Q)$(MAKE) --no-print-directory all
	$(Q)tests/demo/migration.sh
