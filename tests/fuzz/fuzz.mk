# SPDX-License-Identifier: Apache-2.0
# make fuzz builds every tests/fuzz/fuzz_*.c against instrumented rooms; make fuzz-run gives each
# FUZZ_SECS seconds. A crash, hang or sanitizer report fails, and leaves its input in build/fuzz/.
FUZZ_SECS ?= 20
FUZZ_CC   := clang
FUZZ_SAN  := address,undefined
FUZZ_BIN  := $(patsubst tests/fuzz/%.c,build/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_CFLAGS = $(filter-out -fstack-clash-protection -D_FORTIFY_SOURCE=2 -O2,$(BASE_CFLAGS)) -O1 \
              -fno-omit-frame-pointer -fno-sanitize-recover=all

build/fuzz/obj/%.o: %.c
	@mkdir -p $(@D)
	@$(if $(Q),echo "  FUZZ  $<")
	$(Q)$(FUZZ_CC) $(CPPFLAGS) $(FUZZ_CFLAGS) -fsanitize=fuzzer-no-link,$(FUZZ_SAN) -MMD -MP -c $< -o $@

build/fuzz/rooms.a: $(patsubst %.c,build/fuzz/obj/%.o,$(LIB_SRC))
	$(Q)rm -f $@ && ar rcs $@ $^

build/fuzz/fuzz_%: build/fuzz/obj/tests/fuzz/fuzz_%.o build/fuzz/rooms.a
	@$(if $(Q),echo "  LINK  $@")
	$(Q)$(FUZZ_CC) -pthread -fsanitize=fuzzer,$(FUZZ_SAN) -o $@ $^ $(URING)

fuzz: $(FUZZ_BIN)

# Seeds, where a harness has them, lie in tests/fuzz/seeds/NAME/ and are never written to.
.PHONY: fuzz-run
fuzz-run: fuzz
	$(Q)for f in $(FUZZ_BIN); do n=$${f##*/}; mkdir -p build/fuzz/corpus/$$n; \
	    s=tests/fuzz/seeds/$${n#fuzz_}; [ -d $$s ] || s=; echo "  RUN   $$n $(FUZZ_SECS)s"; \
	    $$f -max_total_time=$(FUZZ_SECS) -timeout=5 -rss_limit_mb=1024 -max_len=65536 -len_control=20 \
	        -verbosity=0 -artifact_prefix=build/fuzz/$$n- build/fuzz/corpus/$$n $$s \
	        >build/fuzz/$$n.log 2>&1 || { tail -40 build/fuzz/$$n.log; exit 1; }; done

.SECONDARY: $(patsubst %.c,build/fuzz/obj/%.o,$(wildcard tests/fuzz/fuzz_*.c))
-include $(shell find build/fuzz/obj -name '*.d' 2>/dev/null)
