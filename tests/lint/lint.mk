# SPDX-License-Identifier: Apache-2.0
# GRAPH_ARGS=--size-told: that the base misses its goal is told, not a fault; that it grows is one all the same.
# make lint: both compilers, format, cppcheck, include graph, mutable globals.
C_FILES = $(shell git ls-files '*.c' '*.h')
OUR_C = $(LIB_SRC) $(wildcard vmm/main.c) $(CTL_SRC) $(JAIL_SRC)

.PHONY: lint lint-format lint-cppcheck lint-graph lint-shell
lint-format:
	$(Q)clang-format --dry-run -Werror $(C_FILES) && echo "format: $(words $(C_FILES)) files clean"

lint-cppcheck:
	$(Q)cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
	    -j2 -I. -D_GNU_SOURCE --suppressions-list=tests/lint/cppcheck.txt $(OUR_C) && echo "cppcheck: $(words $(OUR_C)) files clean"

lint-graph:
	$(Q)python3 tests/lint/graph.py $(GRAPH_ARGS)

lint-shell:
	$(Q)shellcheck -S warning $$(git ls-files '*.sh') && echo "shellcheck clean"

lint: lint-format lint-graph lint-shell lint-cppcheck
	$(Q)$(MAKE) --no-print-directory CC=gcc all
	$(Q)$(MAKE) --no-print-directory CC=clang all
	$(Q)$(MAKE) --no-print-directory DEBUG=1 all
	$(Q)bash tests/lint/globals.sh build/libmayfly.a build/obj/vmm/main.o
