# SPDX-License-Identifier: Apache-2.0
# What lies outside of the monitor but is tested with it.
$(B)/unit/test_snapshot: $(HOST)/obj/api-socket/ctl/merge.o
