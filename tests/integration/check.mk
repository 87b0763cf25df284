# SPDX-License-Identifier: Apache-2.0
# make deps, make check, make check-san, make check-tsan.
DEPS := gcc libc6-dev musl-dev make pkg-config libseccomp-dev libjsmn-dev liburing-dev libxxhash-dev check libhttp-parser-dev \
        python3 python3-yaml iproute2 iputils-ping curl procps strace ca-certificates acpica-tools stunnel4 openssl
DEPS_LINT := clang clang-format cppcheck shellcheck libclang-rt-14-dev
DEPS_BENCH := qemu-system-x86
need = $(shell dpkg-query -W -f='$${Package} $${db:Status-Status}\n' $(1) 2>/dev/null | \
         awk '$$2 == "installed" {have[$$1] = 1} END {n = split("$(1)", w, " "); for (i = 1; i <= n; i++) if (!have[w[i]]) print w[i]}')

.PHONY: deps deps-lint check check-san check-tsan check-unit check-integration monitor
monitor: $(B)/mayfly
define install
	@missing="$(call need,$(1))"; missing=$$(echo $$missing); \
	if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" = 0 ]; then \
	        echo "installing: $$missing"; \
	        apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing >/dev/null; \
	    else echo "please run: sudo apt-get install --no-install-recommends $$missing"; exit 1; fi; fi
endef
deps:
	$(call install,$(DEPS))
deps-lint: deps
	$(call install,$(DEPS_LINT))
deps-bench: deps
	$(call install,$(DEPS_BENCH))

SKIPS ?=
# The suites are built after their packages are there, so by a second make. Without /dev/kvm the unit tests run here and
# the rest in the nested lane, whose parts are made then (about two minutes, once).
check: deps
	$(Q)$(MAKE) --no-print-directory all unit sim
	$(Q)$(MAKE) --no-print-directory DEBUG=1 monitor
	$(Q)python3 tests/run.py --build $(B) --lane $(if $(SKIPS),--skips $(SKIPS)) unit integration

check-san: deps
	$(Q)$(MAKE) --no-print-directory guests
	$(Q)$(MAKE) --no-print-directory SANITIZE=address,undefined all unit sim
	$(Q)python3 tests/run.py --build build/address-undefined $(if $(SKIPS),--skips $(SKIPS)) unit integration

# Threads alone: the unit tests under TSan, which sees no guest. Its runtime makes calls that the filters deny and has
# a thread of its own, so test_seccomp, test_faults (which counts threads) and the monitor under its filters are not for it.
check-tsan: deps
	$(Q)$(MAKE) --no-print-directory SANITIZE=thread unit
	$(Q)python3 tests/run.py --build build/thread --but test_seccomp --but test_faults $(if $(SKIPS),--skips $(SKIPS)) unit
