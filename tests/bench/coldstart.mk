# SPDX-License-Identifier: Apache-2.0
# make bench-coldstart [ROUNDS=N] [CLONES=N|N,N,...] [RT=1] [ONLY=clocks,fan,density,create] [ADD=1]: six clocks of a restore, many at
# once, and how many fit. Writes docs/benchmarks/coldstart.md and its plots; ADD keeps the parts of the run before.
CLONES ?=
RT ?=
ADD ?=
.PHONY: bench-coldstart
bench-coldstart: all $(B)/bench/coldstart
	$(Q)python3 tests/bench/coldstart.py --build $(B) $(if $(ONLY),--only $(ONLY)) \
	    $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(CLONES),--clones $(CLONES)) $(if $(RT),--rt) $(if $(ADD),--add)
