# SPDX-License-Identifier: Apache-2.0
# Guest kernels from Debian's linux-source packages:  make guest-kernel [KVER=6.12|6.1]  into build/kernels/VERSION/.
KVER ?= 6.12
.PHONY: guest-kernel check-kernel-config
guest-kernel: build/kernels/$(KVER)/bzImage
build/kernels/%/bzImage: guest-kernel-configs/microvm-x86_64-%.config guest-kernel-configs/build.sh
	@echo "  KERNEL $* (minutes, once)"
	$(Q)guest-kernel-configs/build.sh $*
.PRECIOUS: build/kernels/%/bzImage

# Cheap: merges the fragment and looks whether every line survived.
check-kernel-config:
	$(Q)CONFIG_ONLY=1 guest-kernel-configs/build.sh $(KVER)
