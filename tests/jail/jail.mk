# SPDX-License-Identifier: Apache-2.0
# The stand-in for a hijacked monitor that the jail's tests run: static, as it starts on an empty root.
$(B)/misbehave: $(B)/obj/tests/jail/misbehave.o $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^ $(LINK_END)

all: $(B)/misbehave

# Nothing allowed that is never used: the suite again, every monitor under strace.
.PHONY: check-syscalls
check-syscalls: all
	$(Q)python3 tests/jail/syscall_audit.py --build $(B)

# Renews the table that docs/threat-model.md quotes.
.PHONY: syscalls-doc
syscalls-doc: $(B)/gen/gen
	$(Q)awk '/^<!-- syscalls -->/ {print; print ""; print "```"; \
	    while (("$< --table" | getline line) > 0 && line != "") print line; print "```"; print ""; skip = 1} \
	    /^<!-- \/syscalls -->/ {skip = 0} !skip && !/^<!-- syscalls -->/' docs/threat-model.md >$(B)/threat-model.md
	$(Q)cp $(B)/threat-model.md docs/threat-model.md
