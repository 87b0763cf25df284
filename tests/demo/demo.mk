# SPDX-License-Identifier: Apache-2.0
demo: deps
	$(Q)$(MAKE) --no-print-directory all
	$(Q)tests/demo/demo.sh
