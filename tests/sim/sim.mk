# SPDX-License-Identifier: Apache-2.0
# The migration simulator links the monitor's own objects. `make sim` builds it and its mutants: copies of one
# source file in which one safeguard is taken away; the simulator must fail with each of them.
SIM_SRC := $(wildcard tests/sim/*.c)
SIM_RUNS ?= 10000
SIM_OBJ = $(call obj,$(SIM_SRC))
.PHONY: sim check-sim

$(B)/sim/sim: $(SIM_OBJ) $(B)/libmayfly.a
	@mkdir -p $(@D)
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^ $(LINK_END)

# mutant NAME, file, sed script
define mutant
$(B)/sim/mutants/$(1)/$(notdir $(2)): $(2)
	@mkdir -p $$(@D)
	$(Q)sed -E $(3) $$< >$$@ && if cmp -s $$< $$@; then echo "mutant $(1): nothing to change in $$<"; rm $$@; exit 1; fi
$(B)/sim/mutants/$(1)/mutant.o: $(B)/sim/mutants/$(1)/$(notdir $(2)) $(wildcard snapshot/mig*.h)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -Wno-unused -Wno-unused-parameter -c $$< -o $$@
$(B)/sim/mutant-$(1): $(B)/sim/mutants/$(1)/mutant.o $(SIM_OBJ) $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $$@")
	$(Q)$(CC) $(LINK) -o $$@ $$^ $(LINK_END)
SIM_MUTANTS += $(B)/sim/mutant-$(1)
endef
$(eval $(call mutant,swap,snapshot/mig_arbiter.c,'s/\(rc == 0 && from && same\(seen, from\)\)/(rc == 0)/'))
$(eval $(call mutant,sync,snapshot/mig_arbiter.c,'s/return rc \? rc : m->io->store\(m->ctx, MIG_SYNC, NULL, 0, 0\);/return rc;/'))
$(eval $(call mutant,bitmap,snapshot/mig_pages.c,'s/rc = mig_take_bits\(m, g, m->todo\);/rc = mig_take_bits(m, g, m->aux);/'))
$(eval $(call mutant,crc,snapshot/mig_wire.c,'s/le32_get\(h \+ AT_SUM\) != payload_crc\(out->type, out->data, out->len\) \|\|//'))
$(eval $(call mutant,seq,snapshot/mig_wire.c,'s/le64_get\(h \+ AT_SEQ\) == m->ch\[ch\]\.rx \+ 1 \&\&//'))
$(eval $(call mutant,stale,snapshot/mig_recv.c,'s/rc = m->io->arm\(m->ctx, m->todo\);/rc = m->io->arm(m->ctx, m->aux);/'))

sim: $(B)/sim/sim $(SIM_MUTANTS)
check-sim: sim
	$(Q)$(B)/sim/sim -n $(SIM_RUNS)
	$(Q)for m in $(SIM_MUTANTS); do if $$m -n $(SIM_RUNS) >$$m.log; then echo "$$m was not noticed"; exit 1; \
	    else echo "$${m##*/}: $$(head -1 $$m.log)"; fi; done
