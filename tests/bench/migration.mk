# SPDX-License-Identifier: Apache-2.0
# make bench-migration [ONLY=raw,downtime,totals,precopy,faults,recover,timeline] [ROUNDS=N] [RT=1]: between two namespaces,
# beside QEMU's post-copy and a plain socket. Writes docs/benchmarks/migration.md and its plots. RT=1: a nice value of -20.
.PHONY: bench-migration
bench-migration: all $(B)/bench/migrate
	$(Q)$(if $(RT),nice -n -20) python3 tests/bench/bench_migration.py --build $(B) $(if $(ONLY),--only $(ONLY)) \
	    $(if $(ROUNDS),--rounds $(ROUNDS))

# make bench-serve [ROUNDS=N] [RT=1] [PARTS=waits,started,bare,many]: remote cold start, one puller and twenty. Writes docs/benchmarks/serve.md.
.PHONY: bench-serve
bench-serve: all $(B)/bench/ask
	$(Q)$(if $(RT),nice -n -20) python3 tests/bench/bench_serve.py --build $(B) $(if $(PARTS),--only $(PARTS)) $(if $(ROUNDS),--rounds $(ROUNDS))
