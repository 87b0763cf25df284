# SPDX-License-Identifier: Apache-2.0
# Real Linux guests on stock KVM: directly where /dev/kvm is VMX or SVM, else in the nested lane (emulated).
#   make check-nested        the whole suite            make check-nested-quick   what CI runs
#   SUITE=PATTERN            only tests whose name contains it
#   LANE_DEADLINE=SECONDS    when the lane is killed
.PHONY: check-nested check-nested-quick demo-linux nested-assets
SUITE ?=
LANE_DEADLINE ?= $(if $(filter check-nested-quick,$(MAKECMDGOALS)),600,2700)
# Runs $(1) beside the built tree: here when /dev/kvm runs ordinary guests, else in the lane, which gets $(2).
ON_STOCK_KVM = case $$(tests/nested/host-kvm.sh) in \
    svm|vmx) tests/nested/build-assets.sh --native && $(1) ;; \
    *) tests/nested/in-lane.sh --deadline $(LANE_DEADLINE) $(1) $(2) ;; esac

check-nested: all build/kernels/6.12/bzImage build/kernels/6.1/bzImage
	$(Q)$(call ON_STOCK_KVM,python3 tests/nested/run-suite.py $(SUITE),--results /results)
check-nested-quick: all build/kernels/6.12/bzImage
	$(Q)$(call ON_STOCK_KVM,python3 tests/nested/run-suite.py --quick $(SUITE),--results /results)
# A Debian guest with a Python function, for the eye.
demo-linux: all build/kernels/6.12/bzImage
	$(Q)$(call ON_STOCK_KVM,python3 tests/nested/demo-linux.py,)
nested-assets:
	$(Q)tests/nested/build-assets.sh
