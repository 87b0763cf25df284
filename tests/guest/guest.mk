# SPDX-License-Identifier: Apache-2.0
# Freestanding guests, one ELF each, PVH note and 64-bit entry. They know nothing of SANITIZE.
GUEST_CFLAGS := -std=c17 -O2 -g -ffreestanding -nostdlib -fno-pic -fno-pie -mno-red-zone -mgeneral-regs-only \
        -mcmodel=small -fno-stack-protector -fno-asynchronous-unwind-tables -fcf-protection=none \
        -fno-strict-aliasing $(WARN)
GUEST_LD := -nostdlib -static -Wl,-n,--build-id=none,-z,noexecstack -Wl,-T,tests/guest/guest.ld
GUEST_BASE := boot lib plat rand

guest_obj = $(patsubst %,$(B)/obj/guest/%.o,$(1))

$(B)/obj/guest/%.o: tests/guest/%.c
	@mkdir -p $(@D)
	@$(if $(Q),echo "  GUEST $<")
	$(Q)$(CC) $(GUEST_CFLAGS) -MMD -MP -c $< -o $@

$(B)/obj/guest/%.o: tests/guest/%.S
	@mkdir -p $(@D)
	@$(if $(Q),echo "  GUEST $<")
	$(Q)$(CC) $(GUEST_CFLAGS) -MMD -MP -c $< -o $@

# NAME.elf is made of GUEST_NAME's objects.
GUEST_function := $(GUEST_BASE) virtio net ip tcp tcp_out http api work disk blk bench bench_blk bench_net main
GUEST_triple := $(GUEST_BASE) triple
GUEST_spin := $(GUEST_BASE) spin
GUEST_storm := $(GUEST_BASE) storm
GUEST_serialflood := $(GUEST_BASE) serialflood
GUEST_smp := $(GUEST_BASE) smp
GUEST_hostile := $(GUEST_BASE) virtio hostile hostile_queue hostile_dev

GUESTS := function hostile triple spin storm serialflood smp

define guest_rule
$(B)/guests/$(1).elf: $(call guest_obj,$(GUEST_$(1))) tests/guest/guest.ld
	@mkdir -p $$(@D)
	@$$(if $$(Q),echo "  LINK  $$@")
	$$(Q)$$(CC) $$(GUEST_LD) -o $$@ $$(filter %.o,$$^)
guests: $(B)/guests/$(1).elf
endef
$(foreach g,$(GUESTS),$(eval $(call guest_rule,$(g))))
