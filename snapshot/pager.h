// SPDX-License-Identifier: Apache-2.0
// Memory from a page server by Firecracker's handshake: we connect and send one message, the userfaultfd and a
// JSON array of regions; the server then places pages as they are touched, and never answers.
//
// The helper thread watches over it for the microVM's life: a thread that touches an absent page sleeps in the
// kernel until the page comes, so a server that does not bring it ends this microVM (VM_EXIT_MEMORY) instead.
#ifndef SNAPSHOT_PAGER_H
#define SNAPSHOT_PAGER_H

#include "vmm/state.h"

// Control thread, between vm_restore_shape and vm_restore.
int pager_back(struct vm *vm, const char *path, struct passed_fds *fds, struct err *e);
void pager_end(struct vm *vm); // after a failed load

#endif
