# SPDX-License-Identifier: Apache-2.0
# One non-recursive Makefile. Sources are found by folder: a new .c file in a room joins that room.
#   make            build/mayfly, build/mayfly-jail, build/mayflyctl, build/guests/*.elf
#   make demo       the main job, end to end        make check    every test
#   make bench      benchmarks                      make lint     both compilers, format, cppcheck, graph
#   make deps       install what Debian 12 lacks    make fuzz     libFuzzer harnesses
# Variables: CC=gcc|clang  V=1  SANITIZE=address,undefined|thread  DEBUG=1  LIBC=glibc

CC       := gcc
V        ?= 0
SANITIZE ?=
DEBUG    ?=
empty    :=
comma    := ,
space    := $(empty) $(empty)
FLAVOUR  := $(subst $(space),-,$(strip $(if $(filter clang%,$(CC)),clang) $(subst $(comma),-,$(SANITIZE)) $(if $(DEBUG),debug) $(if $(filter command,$(origin LIBC)),$(LIBC))))
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
BASE_CFLAGS := -std=c17 $(OPT) $(WARN) $(HARDEN) -fPIE -pthread $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer)
# gcc's TSan does not see fences (its runtime still works); those here order against the guest, which it does not see either.
BASE_CFLAGS += $(if $(findstring thread,$(SANITIZE)),$(if $(filter gcc%,$(CC)),-Wno-tsan))
# The shipped binaries need nothing at run time. They stand on musl: glibc's start asks the processor some 60
# times what it is, which costs a virtual machine a quarter of a millisecond, and dirties more memory. The
# sanitizers, and Check with the unit tests, stand on glibc.
LIBC := $(if $(SANITIZE),glibc,musl)
URING := -l:liburing.a
MUSL := /usr/lib/x86_64-linux-musl
MUSL_INC := $(B)/gen/musl
ifeq ($(LIBC),musl)
CFLAGS := $(BASE_CFLAGS) -nostdinc -isystem /usr/include/x86_64-linux-musl -isystem $(shell $(CC) -print-file-name=include) \
         -isystem $(MUSL_INC) -include vmm/libc.h -ffunction-sections -fdata-sections
LINK := -static-pie -nostdlib -Wl,-z,relro,-z,now,-z,noexecstack,--gc-sections -L$(MUSL) $(MUSL)/rcrt1.o $(MUSL)/crti.o
LINK_END := -lc -lgcc $(MUSL)/crtn.o
HOST := $(B)/host
else
CFLAGS := $(BASE_CFLAGS)
LINK := $(if $(SANITIZE),-pie -fsanitize=$(SANITIZE),-static-pie) -Wl,-z,relro,-z,now,-z,noexecstack -pthread
LINK_END :=
HOST := $(B)
endif

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

$(B)/obj/%.o: %.c Makefile | $(MUSL_INC)
	@mkdir -p $(@D)
	@$(if $(Q),echo "  CC    $<")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

# The kernel's headers and those of header-only libraries, without the glibc headers beside them.
$(MUSL_INC):
	@[ $(LIBC) != musl ] || [ -e $(MUSL)/rcrt1.o ] || { echo "musl is missing: make deps, or LIBC=glibc"; exit 1; }
	@mkdir -p $@ && ln -sfn $(addprefix /usr/include/,linux asm-generic x86_64-linux-gnu/asm jsmn.h liburing \
	    liburing.h xxhash.h) $@

# What is shipped is a third of what is linked, and compat jails copy it: the debug information stands beside it.
split = $(if $(SANITIZE),,$(Q)objcopy --only-keep-debug $@ $@.debug && objcopy --strip-debug --add-gnu-debuglink=$@.debug $@)

$(B)/libmayfly.a: $(call obj,$(LIB_SRC))
	@$(if $(Q),echo "  AR    $@")
	$(Q)rm -f $@ && ar rcs $@ $^

$(B)/mayfly: $(call obj,vmm/main.c) $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^ $(URING) $(LINK_END)
	$(split)

$(B)/mayfly-jail: $(call obj,$(JAIL_SRC)) $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^ $(LINK_END)
	$(split)

$(B)/mayflyctl: $(call obj,$(CTL_SRC)) $(B)/libmayfly.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) $(LINK) -o $@ $^ $(LINK_END)
	$(split)

# Unit tests link every room but main, so a test reaches any internal header.
ifneq ($(HOST),$(B))
$(HOST)/obj/%.o: %.c Makefile
	@mkdir -p $(@D)
	@$(if $(Q),echo "  HOST  $<")
	$(Q)$(CC) $(CPPFLAGS) $(BASE_CFLAGS) -MMD -MP -c $< -o $@
$(HOST)/obj/gen/filters.o: $(B)/gen/filters.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(BASE_CFLAGS) -c $< -o $@
$(HOST)/libmayfly.a: $(patsubst %.c,$(HOST)/obj/%.o,$(LIB_SRC)) $(HOST)/obj/gen/filters.o
	@$(if $(Q),echo "  AR    $@")
	$(Q)rm -f $@ && ar rcs $@ $^
endif
UNIT_BIN := $(patsubst tests/unit/%.c,$(B)/unit/%,$(UNIT_SRC))
$(B)/unit/%: $(HOST)/obj/tests/unit/%.o $(HOST)/libmayfly.a
	@mkdir -p $(@D)
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(CC) -pie $(if $(SANITIZE),-fsanitize=$(SANITIZE)) -pthread -o $@ $^ $(URING) -lcheck -lsubunit -lm -lrt $(LDLIBS_$*)
.PHONY: unit
unit: $(UNIT_BIN)
.SECONDARY: $(patsubst %.c,$(HOST)/obj/%.o,$(UNIT_SRC))

clean:
	$(Q)rm -rf build

# Each area adds its own rules; the areas do not include one another.
include $(sort $(wildcard tests/*/*.mk jail/*.mk guest-kernel-configs/*.mk))
guests:
-include $(shell find $(B)/obj $(HOST)/obj -name '*.d' 2>/dev/null)
