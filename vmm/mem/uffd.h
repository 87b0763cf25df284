// SPDX-License-Identifier: Apache-2.0
// Guest memory whose absent pages somebody else brings: userfaultfd in MISSING mode, kernel's faults included.
//
// Source: Documentation/admin-guide/mm/userfaultfd.rst. Pages are numbered as in pages.h. uffd_open and
// uffd_register for the control thread or the helper, the rest for the one thread that serves.
#ifndef VMM_MEM_UFFD_H
#define VMM_MEM_UFFD_H

#include "vmm/mem/pages.h"

int uffd_open(int dev, struct err *e); // dev: /dev/userfaultfd. A descriptor that does not block
// Traps the touch of pages that are not there, in all of memory. 0 or -errno.
int uffd_register(int fd, const struct guest_mem *m);
void uffd_unregister(int fd,
                     const struct guest_mem *m); // what is absent reads as zeros from now on
// Puts pages in place (data NULL: zeros) and wakes who waits. A page that is there already stays as it is.
int uffd_place(int fd, const struct guest_mem *m, uint64_t page, uint64_t n, const void *data);
// The next page that a thread waits for: 1; 0: none; -errno.
int uffd_next(int fd, const struct guest_mem *m, uint64_t *page);

#endif
