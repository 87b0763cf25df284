# SPDX-License-Identifier: Apache-2.0
# make bench [ONLY=start,net,blk] [ROUNDS=N] [SECS=S] [RT=1]: side by side with Firecracker (PEER_FIRECRACKER), QEMU and the
# bare system calls. Never part of a test: it reports, it does not judge.
$(B)/bench/%: $(B)/obj/tests/bench/%.o
	@mkdir -p $(@D)
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^ $(LINK_END)

ONLY ?=
RT ?=
ROUNDS ?=
SECS ?=
bench: all $(B)/bench/probe $(B)/bench/floor
	$(Q)python3 tests/bench/bench.py --build $(B) $(if $(ONLY),--only $(ONLY)) \
	    $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECS),--secs $(SECS)) $(if $(RT),--rt)
