# SPDX-License-Identifier: Apache-2.0
# Real Linux guests on stock KVM: directly where /dev/kvm is VMX or SVM, else in the nested lane (emulated).
#   make check-nested        the whole suite            make check-nested-quick   what CI runs
#   SUITE=PATTERN            only tests whose name contains it
#   LANE_DEADLINE=SECONDS    when the lane is killed
#   make bench-linux         start to init, and disk and network of a Linux guest, beside PEER_FIRECRACKER
.PHONY: check-nested check-nested-quick demo-linux bench-linux nested-assets nested-deps
SUITE ?=
LANE_DEADLINE ?= $(if $(filter check-nested-quick,$(MAKECMDGOALS)),900,3600)
# Runs $(1) beside the built tree: here when /dev/kvm runs ordinary guests, else in lanes that share it, which get $(2).
ON_STOCK_KVM = case $$(tests/nested/host-kvm.sh) in \
    svm|vmx) tests/nested/build-assets.sh --native && $(1) ;; \
    *) tests/nested/$(or $(3),lanes.py) --deadline $(LANE_DEADLINE) $(1) $(2) ;; esac

# Also what building a guest kernel takes. Where the machine has real KVM, QEMU is not needed.
DEPS_NESTED := mmdebstrap e2fsprogs flex bison bc lz4 zstd xz-utils libelf-dev \
               $(if $(filter svm vmx,$(shell tests/nested/host-kvm.sh)),,qemu-system-x86)
nested-deps: deps
	$(call install,$(DEPS_NESTED))

# The targets below it are made by a second make, once their packages are there.
check-nested check-nested-quick demo-linux bench-linux: nested-deps
	$(Q)$(MAKE) --no-print-directory all unit build/kernels/6.12/bzImage $(if $(filter check-nested,$@),build/kernels/6.1/bzImage)
	$(Q)$(RUN_$@)
RUN_check-nested = $(call ON_STOCK_KVM,python3 tests/nested/run-suite.py $(SUITE),--results /results)
RUN_check-nested-quick = $(call ON_STOCK_KVM,python3 tests/nested/run-suite.py --quick $(SUITE),--results /results)
# A Debian guest with a Python function, for the eye.
RUN_demo-linux = $(call ON_STOCK_KVM,python3 tests/nested/demo-linux.py,,in-lane.sh)
# In the lane starts are timed by instructions, which a busy host does not disturb; disk and network are not (docs/guests.md).
RUN_bench-linux = $(subst --deadline,--icount --deadline,$(call ON_STOCK_KVM,python3 tests/nested/run-suite.py 90-,--results /results)) && \
    $(call ON_STOCK_KVM,python3 tests/nested/run-suite.py 91-,--results /results,in-lane.sh)
nested-assets: nested-deps
	$(Q)tests/nested/build-assets.sh
