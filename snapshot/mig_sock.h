// SPDX-License-Identifier: Apache-2.0
// The two channels of a migration as stream sockets: what every struct mig_io on real ones has in common. For the thread
// that the engine runs on; the descriptors are the caller's.
#ifndef SNAPSHOT_MIG_SOCK_H
#define SNAPSHOT_MIG_SOCK_H

#include <poll.h>

#include "snapshot/mig_priv.h"

// As send and recv of struct mig_io: they never block. Descriptors that come along are closed.
long mig_sock_send(int fd, const struct iovec *v, int n);
long mig_sock_recv(int fd, void *buf, size_t n);
void mig_sock_close(int fd[2]); // by enum mig_ch; -1 afterwards
// Entries for poll of what is wanted of each (MIG_EV_*), and what of it came; a broken one is ready for all.
void mig_sock_want(struct pollfd p[2], const int fd[2], unsigned want);
unsigned mig_sock_came(const struct pollfd p[2]);

#endif
