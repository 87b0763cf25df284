// SPDX-License-Identifier: Apache-2.0
// Room for a microVM as plain data; apart from save.c, so that a reader of state files needs no KVM.
#include <sys/mman.h>

#include "vmm/state.h"

static size_t saved_size(unsigned nvcpus)
{
    return ALIGN_UP(sizeof(struct vm_saved), 64) + nvcpus * sizeof(struct vcpu_state);
}

// The number of vCPUs there is room for stands in front, since nvcpus may be set to fewer.
struct vm_saved *vm_saved_new(unsigned nvcpus)
{
    size_t size = 64 + saved_size(nvcpus);
    uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    le64_put(p, size);
    struct vm_saved *s = (void *)(p + 64);
    s->vcpu = (void *)(p + 64 + saved_size(0));
    s->nvcpus = nvcpus;
    return s;
}

void vm_saved_free(struct vm_saved *s)
{
    if (s)
        munmap((uint8_t *)s - 64, le64_get((uint8_t *)s - 64));
}
