# SPDX-License-Identifier: Apache-2.0
# The stand-in for a hijacked monitor that the jail's tests run: static, as it starts on an empty root.
$(B)/misbehave: $(B)/obj/tests/jail/misbehave.o $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^

all: $(B)/misbehave
