# SPDX-License-Identifier: Apache-2.0
demo: deps
	$(Q)$(MAKE) --no-print-directory all
	$(Q)tests/demo/demo.sh
.PHONY: demo-migration
demo-migration: deps
	$(Q)$(MAKE) --no-print-directory all
	$(Q)tests/demo/migration.sh
