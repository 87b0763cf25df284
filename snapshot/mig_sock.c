// SPDX-License-Identifier: Apache-2.0
// Channels of a migration on real sockets.
//
// #syscalls:helper sendmsg(MSG_DONTWAIT|MSG_NOSIGNAL) recvmsg(MSG_DONTWAIT|MSG_CMSG_CLOEXEC) close
#include "snapshot/mig_sock.h"

#include <sys/socket.h>

static const unsigned ready[2][2] = {[MIG_URGENT] = {MIG_EV_URGENT_IN, MIG_EV_URGENT_OUT},
                                     [MIG_BULK] = {MIG_EV_BULK_IN, MIG_EV_BULK_OUT}};

long mig_sock_send(int fd, const struct iovec *v, int n)
{
    struct msghdr h = {.msg_iovlen = (__typeof__(h.msg_iovlen))n}; // size_t, in musl int

    memcpy(&h.msg_iov, &v, sizeof(v)); // sending takes it as const
    ssize_t k = sendmsg(fd, &h, MSG_DONTWAIT | MSG_NOSIGNAL);
    return k >= 0 ? k : errno == EINTR ? -EAGAIN : -errno;
}

long mig_sock_recv(int fd, void *buf, size_t n)
{
    struct iovec v = {.iov_base = buf, .iov_len = n};
    struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1}; // no room for descriptors: they are closed

    ssize_t k = recvmsg(fd, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    return k >= 0 ? k : errno == EINTR ? -EAGAIN : -errno;
}

void mig_sock_close(int fd[2])
{
    for (int i = 0; i < 2; i++) {
        close_fdp(&fd[i]);
        fd[i] = -1;
    }
}

void mig_sock_want(struct pollfd p[2], const int fd[2], unsigned want)
{
    for (int i = 0; i < 2; i++) {
        int events = (want & ready[i][0] ? POLLIN : 0) | (want & ready[i][1] ? POLLOUT : 0);
        p[i] = (struct pollfd){.fd = events ? fd[i] : -1, .events = (short)events};
    }
}

unsigned mig_sock_came(const struct pollfd p[2])
{
    unsigned came = 0;

    for (int i = 0; i < 2; i++) {
        bool broken = p[i].revents & (POLLHUP | POLLERR | POLLNVAL);
        came |= p[i].events & POLLIN && (p[i].revents & POLLIN || broken) ? ready[i][0] : 0;
        came |= p[i].events & POLLOUT && (p[i].revents & POLLOUT || broken) ? ready[i][1] : 0;
    }
    return came;
}
