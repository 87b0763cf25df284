# SPDX-License-Identifier: Apache-2.0
# The stand-in for a hijacked monitor that the jail's tests run: static, as it starts on an empty root.
$(B)/misbehave: $(B)/obj/tests/jail/misbehave.o $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^ $(LINK_END)

# A kernel that lacks something.
$(B)/without: tests/jail/without.c
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) -D_GNU_SOURCE -std=c17 $(WARN) -static -o $@ $<

# The stand-in as a debug build makes it, whose filters name what they deny.
DBG_OBJ := $(patsubst %,$(B)/obj/jail-debug/%.o,misbehave filter stages landlock filters)
$(B)/gen/gen-debug: jail/gen/gen.c jail/gen/rules.h $(B)/gen/decls.h jail/jail.h vmm/base.h
	$(Q)$(CC) $(CPPFLAGS) -DMAYFLY_DEBUG -std=c17 -O1 $(WARN) -o $@ $< -lseccomp
$(B)/gen/filters-debug.c: $(B)/gen/gen-debug
	$(Q)$< >$@
$(B)/obj/jail-debug/%.o: jail/%.c $(B)/gen/decls.h | $(MUSL_INC)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) -DMAYFLY_DEBUG $(CFLAGS) -c $< -o $@
$(B)/obj/jail-debug/misbehave.o: tests/jail/misbehave.c
$(B)/obj/jail-debug/filters.o: $(B)/gen/filters-debug.c
$(B)/obj/jail-debug/misbehave.o $(B)/obj/jail-debug/filters.o: | $(MUSL_INC)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) -DMAYFLY_DEBUG $(CFLAGS) -c $< -o $@
$(B)/misbehave-debug: $(DBG_OBJ) $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^ $(LINK_END)

# The monitor itself, hijacked: what is shipped, with a few calls led through tests/jail/hijack.c.
HIJACK_WRAP := main syscall poll pthread_cond_wait jail_filter_install io_uring_queue_init_params \
               io_uring_submit_and_wait_timeout
$(B)/mayfly-hijacked: $(call obj,vmm/main.c tests/jail/hijack.c tests/jail/deeds.c) $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) $(addprefix -Wl$(comma)--wrap=,$(HIJACK_WRAP)) -o $@ $^ $(URING) $(LINK_END)

# What the kernel's headers call each number, for the test that compares.
$(B)/gen/numbers.h: | $(B)/gen/gen
	$(Q)printf '#include <asm/unistd_64.h>\n' | $(CC) -E -dM - | grep ' __NR_' >$@

all: $(B)/misbehave $(B)/without $(B)/gen/numbers.h $(if $(filter musl,$(LIBC)),$(B)/mayfly-hijacked $(B)/misbehave-debug)

# Nothing allowed that is never used: much of the suite again, every monitor under strace. CI runs it.
.PHONY: check-syscalls
check-syscalls: all
	$(Q)python3 tests/jail/syscall_audit.py --build $(B)

# What the jail costs, and what a hostile neighbour can take. They report, they do not judge.
.PHONY: bench-jail bench-fair
bench-jail: all
	$(Q)MAYFLY_BUILD=$(B) python3 tests/bench/bench_jail.py
bench-fair: all
	$(Q)MAYFLY_BUILD=$(B) python3 tests/bench/bench_fair.py

# Renews the table that docs/threat-model.md quotes, and its sums in the README.
QUOTE = awk '/^<!-- syscalls -->/ {print; print ""; print "```"; while ((getline line <"$(1)") > 0) print line; \
    print "```"; print ""; skip = 1} /^<!-- \/syscalls -->/ {skip = 0} !skip' $(2) >$(1).new && cp $(1).new $(2)
.PHONY: syscalls-doc
syscalls-doc: $(B)/gen/gen
	$(Q)$< --table | sed '/^$$/,$$d' >$(B)/gen/table.txt
	$(Q)grep -E '^(system|count|union)' $(B)/gen/table.txt >$(B)/gen/sums.txt
	$(Q)$(call QUOTE,$(B)/gen/table.txt,docs/threat-model.md)
	$(Q)$(call QUOTE,$(B)/gen/sums.txt,README.md)
