// SPDX-License-Identifier: Apache-2.0
// CPUID as KVM offers it, given to each vCPU.
#ifndef SHIM_C
#define SHIM_C
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include "vmm/base.h"
struct cpuid_host { struct { struct kvm_cpuid2 h; struct kvm_cpuid_entry2 e[200]; } t; };
static inline int cpuid_host_read(int kvm, struct cpuid_host *c, struct err *e) { c->t.h.nent = 200; return ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &c->t) ? err_set(e, errno, "cpuid") : 0; }
static inline int cpuid_set(int fd, const struct cpuid_host *c, unsigned i, unsigned n, bool smt, struct err *e) { (void)i;(void)n;(void)smt; return ioctl(fd, KVM_SET_CPUID2, &c->t) ? err_set(e, errno, "cpuid set") : 0; }
#endif
