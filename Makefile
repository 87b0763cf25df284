# SPDX-License-Identifier: Apache-2.0
# One non-recursive Makefile. Sources are found by folder: a new .c file in a room joins that room.
#   make            build/mayfly, build/mayfly-jail, build/mayflyctl, build/guests/*.elf
#   make demo       the main job, end to end        make check    every test
#   make bench      benchmarks                      make lint     both compilers, format, cppcheck, graph
#   make deps       install what Debian 12 lacks    make fuzz     libFuzzer harnesses
# Variables: CC=gcc|clang  V=1  SANITIZE=address,undefined|thread  DEBUG=1

CC       := gcc
V        ?= 0
SANITIZE ?=
DEBUG    ?=
empty    :=
comma    := ,
space    := $(empty) $(empty)
FLAVOUR  := $(subst $(space),-,$(strip $(if $(filter clang%,$(CC)),clang) $(subst $(comma),-,$(SANITIZE)) $(if $(DEBUG),debug)))
B        := build$(if $(FLAVOUR),/$(FLAVOUR))
Q        := $(if $(filter 1,$(V)),,@)

WARN := -Wall -Wextra -Wshadow -Wpointer-arith -Wcast-qual -Wsign-compare -Wwrite-strings \
        -Wstrict-prototypes -Wmissing-prototypes -Wmissing-declarations -Wold-style-definition \
        -Wredundant-decls -Wundef -Wvla -Wformat=2 -Wswitch-enum -Wimplicit-fallthrough \
        -Wconversion -Werror
HARDEN := -fstack-protector-strong -fcf-protection -fno-strict-aliasing
HARDEN += $(if $(SANITIZE),,-fstack-clash-protection -D_FORTIFY_SOURCE=2)
OPT  := $(if $(SANITIZE),-O1,-O2) -g
CPPFLAGS := -D_GNU_SOURCE -I. -I$(B)/gen $(if $(DEBUG),-DMAYFLY_DEBUG)
CFLAGS := -std=c17 $(OPT) $(WARN) $(HARDEN) -fPIE -pthread $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer)
# gcc's TSan does not see fences (its runtime still works); those here order against the guest, which it does not see either.
CFLAGS += $(if $(findstring thread,$(SANITIZE)),$(if $(filter gcc%,$(CC)),-Wno-tsan))
# A sanitizer needs the dynamic loader; the shipped binary needs nothing at run time.
LINK := $(if $(SANITIZE),-pie -fsanitize=$(SANITIZE),-static-pie) -Wl,-z,relro,-z,now,-z,noexecstack -pthread
URING := -l:liburing.a

ROOMS := vmm vmm/vcpu vmm/mem vmm/boot vmm/dev virtio snapshot api-socket jail
LIB_SRC := $(filter-out vmm/main.c,$(wildcard $(addsuffix /*.c,$(ROOMS))))
CTL_SRC := $(wildcard api-socket/ctl/*.c)
JAIL_SRC := $(wildcard jail/cmd/*.c)
UNIT_SRC := $(wildcard tests/unit/test_*.c)
obj = $(patsubst %.c,$(B)/obj/%.o,$(1))

.DEFAULT_GOAL := all
.PHONY: all guests demo check bench lint deps fuzz clean syscalls
.DELETE_ON_ERROR:
.SECONDARY:

BINARIES := $(if $(wildcard vmm/main.c),$(B)/mayfly) $(if $(JAIL_SRC),$(B)/mayfly-jail) $(if $(CTL_SRC),$(B)/mayflyctl)
all: $(BINARIES) guests

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	@$(if $(Q),echo "  CC    $<")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

$(B)/libmayfly.a: $(call obj,$(LIB_SRC))
	@$(if $(Q),echo "  AR    $@")
	$(Q)rm -f $@ && ar rcs $@ $^

$(B)/mayfly: $(call obj,vmm/main.c) $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^ $(URING)

$(B)/mayfly-jail: $(call obj,$(JAIL_SRC)) $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^

$(B)/mayflyctl: $(call obj,$(CTL_SRC)) $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^

# Unit tests link every room but main, so a test reaches any internal header.
UNIT_BIN := $(patsubst tests/unit/%.c,$(B)/unit/%,$(UNIT_SRC))
$(B)/unit/%: $(B)/obj/tests/unit/%.o $(B)/libmayfly.a
	@mkdir -p $(@D)
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) -pie $(if $(SANITIZE),-fsanitize=$(SANITIZE)) -pthread -o $@ $^ $(URING) -lcheck -lsubunit -lm -lrt $(LDLIBS_$*)
.PHONY: unit
unit: $(UNIT_BIN)

clean:
	$(Q)rm -rf build

# Each area adds its own rules; the areas do not include one another.
include $(sort $(wildcard tests/*/*.mk jail/*.mk guest-kernel-configs/*.mk))
guests:
-include $(shell find $(B)/obj -name '*.d' 2>/dev/null)
