# SPDX-License-Identifier: Apache-2.0
# Real Linux guests on stock KVM: directly where /dev/kvm is VMX or SVM, else in the nested lane (emulated).
#   make check-nested        the whole suite            make check-nested-quick   what CI runs
#   SUITE=PATTERN            only tests whose name contains it
#   LANE_DEADLINE=SECONDS    when the lane is killed
.PHONY: check-nested check-nested-quick nested-assets
SUITE ?=
LANE_DEADLINE ?= $(if $(filter check-nested-quick,$(MAKECMDGOALS)),600,2700)
NESTED_RUN = case $$(tests/nested/host-kvm.sh) in \
    svm|vmx) tests/nested/build-assets.sh --native && python3 tests/nested/run-suite.py $(1) $(SUITE) ;; \
    *) tests/nested/in-lane.sh --deadline $(LANE_DEADLINE) \
         python3 tests/nested/run-suite.py --results /results $(1) $(SUITE) ;; esac

check-nested: all build/kernels/6.12/bzImage build/kernels/6.1/bzImage
	$(Q)$(call NESTED_RUN,)
check-nested-quick: all build/kernels/6.12/bzImage
	$(Q)$(call NESTED_RUN,--quick)
nested-assets:
	$(Q)tests/nested/build-assets.sh
