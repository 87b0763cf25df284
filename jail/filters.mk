# SPDX-License-Identifier: Apache-2.0
# The seccomp filters: #syscalls declarations -> decls.h -> generator (libseccomp) -> filters.c.
CPPFLAGS += $(if $(SANITIZE),-DMAYFLY_SANITIZE) $(if $(filter glibc,$(LIBC)),-DMAYFLY_GLIBC)
DECL_SRC := $(LIB_SRC) $(wildcard vmm/main.c)

# decls.h changes only when a declaration does, so that an edit elsewhere rebuilds no filter.
$(B)/gen/decls.stamp: jail/gen/decls.awk $(DECL_SRC)
	@mkdir -p $(@D)
	$(Q)awk -f $< $(DECL_SRC) >$(B)/gen/decls.new
	$(Q)cmp -s $(B)/gen/decls.new $(B)/gen/decls.h || cp $(B)/gen/decls.new $(B)/gen/decls.h
	$(Q)touch $@
$(B)/gen/decls.h: $(B)/gen/decls.stamp ;

$(B)/gen/gen: jail/gen/gen.c jail/gen/rules.h $(B)/gen/decls.h jail/jail.h vmm/base.h
	@$(if $(Q),echo "  GEN   $@")
	$(Q)$(CC) $(CPPFLAGS) -std=c17 -O1 $(WARN) -o $@ $< -lseccomp

$(B)/gen/filters.c: $(B)/gen/gen
	$(Q)$< --table >$(@D)/syscalls.txt && $< >$@

$(B)/obj/gen/filters.o: $(B)/gen/filters.c jail/filter.h jail/jail.h
	@mkdir -p $(@D)
	@$(if $(Q),echo "  CC    $<")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@

$(B)/libmayfly.a: $(B)/obj/gen/filters.o

syscalls: $(B)/gen/gen
	$(Q)$< --table
