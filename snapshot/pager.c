// SPDX-License-Identifier: Apache-2.0
// The page server's handshake, and the watch over it.
#include "snapshot/pager.h"

#include <poll.h>
#include <sys/socket.h>

#include "vmm/handover.h"
#include "vmm/mem/pages.h"
#include "vmm/mem/uffd.h"

#define LOOK_MS  250
#define PATIENCE (5 * NSEC_PER_SEC) // for one page, from a server that is connected
#define GRACE    (NSEC_PER_SEC / 2) // from one that hung up: it may serve on without its connection

// ---- handshake ------------------------------------------------------------------------------------------

static int send_regions(int sock, int uffd, const struct guest_mem *m, struct err *e)
{
    char text[512] = "[";
    int n = 1;
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } c = {.head = {.cmsg_len = CMSG_LEN(sizeof(int)),
                    .cmsg_level = SOL_SOCKET,
                    .cmsg_type = SCM_RIGHTS}};

    for (unsigned i = 0; i < m->n; i++)
        n += snprintf(text + n, sizeof(text) - (size_t)n,
                      "%s{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu,"
                      "\"page_size\":4096,\"page_size_kib\":4096}",
                      i ? "," : "", (unsigned long long)(uintptr_t)m->r[i].host,
                      (unsigned long long)m->r[i].size, (unsigned long long)m->r[i].file_off);
    text[n++] = ']';
    memcpy(CMSG_DATA(&c.head), &uffd, sizeof(uffd));
    struct iovec v = {text, (size_t)n};
    struct msghdr msg = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = c.room, .msg_controllen = sizeof(c.room)};
    if (sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) != n)
        return err_set(e, errno, "backend_path: cannot reach the page server: %s", strerror(errno));
    return 0;
}

// ---- watch ----------------------------------------------------------------------------------------------

// How many threads wait for a page, whether the server has read of their fault or not; -1: cannot be told.
// #syscalls:helper preadv2(0) ioctl(PAGEMAP_SCAN@PAGEMAP) poll
static long waiting(struct vm *vm)
{
    char text[128];
    struct iovec v = {text, sizeof(text) - 1};
    ssize_t n = preadv2(vm_uffd_info(vm), &v, 1, 0, 0);

    text[MAX(n, 0)] = 0;
    const char *total = strstr(text, "total:");
    return total ? strtol(total + strlen("total:"), NULL, 10) : -1;
}

static uint64_t pages_here(struct vm *vm)
{
    const struct guest_mem *m = vm_mem(vm);
    uint64_t sum = 0, *bits = vm_lineage(vm)->seen;

    memset(bits, 0, pages_words(m) * sizeof(*bits));
    if (pages_own(m, vm_pagemap_fd(vm), bits, NULL) == 0)
        for (uint64_t w = 0; w < pages_words(m); w++)
            sum += (uint64_t)__builtin_popcountll(bits[w]);
    return sum;
}

static _Noreturn void give_up(bool gone)
{
    static const char dead[] =
        "mayfly: guest memory is gone: the page server hung up and left a page owing\n";
    static const char mute[] =
        "mayfly: guest memory is gone: the page server owes a page for 5 s\n";

    // Threads sleep in the kernel for that page: no orderly end would come to one.
    fd_write(STDERR_FILENO, gone ? dead : mute, gone ? sizeof(dead) - 1 : sizeof(mute) - 1);
    _exit(VM_EXIT_MEMORY);
}

// A server that brings pages is alive, however long the queue is.
static void watch(void *arg)
{
    struct vm *vm = arg;
    struct vm_lineage *l = vm_lineage(vm);
    struct pollfd p[2] = {{l->server, POLLIN | POLLRDHUP, 0}, {vm_helper_fd(vm), POLLIN, 0}};
    uint64_t since = 0, had = 0;

    while (!atomic_load(&l->ending)) {
        poll(p, 2, LOOK_MS);
        if (p[1].revents)
            vm_helper_awake(vm);
        if (p[0].fd >= 0 && p[0].revents) // it has nothing to say: whatever comes means the end
            p[0].fd = -1;
        if (waiting(vm) <= 0) {
            since = 0;
            continue;
        }
        uint64_t now = now_ns(), here = pages_here(vm);
        if (!since || here != had) {
            since = now;
            had = here;
        } else if (now - since > (p[0].fd < 0 ? GRACE : PATIENCE)) {
            give_up(p[0].fd < 0);
        }
    }
}

int pager_back(struct vm *vm, const char *path, struct passed_fds *fds, struct err *e)
{
    struct vm_lineage *l = vm_lineage(vm);

    if (vm_uffd_info(vm) < 0 || vm_pagemap_fd(vm) < 0)
        return err_set(e, ENOTSUP,
                       "mem_backend: Uffd needs /proc at the start, to watch over the page server");
    l->seen = calloc(pages_words(vm_mem(vm)), sizeof(*l->seen));
    int rc = l->seen ? mem_back_anon(vm_mem(vm), MEM_PAGES_SMALL, e)
                     : err_set(e, ENOMEM, "no memory for a bitmap");
    int uffd = rc ? rc : vm_uffd(vm, e);
    if (uffd < 0)
        return uffd;
    if ((rc = uffd_register(uffd, vm_mem(vm))))
        return err_set(e, -rc, "mem_backend: UFFDIO_REGISTER: %s", strerror(-rc));
    l->server = path_connect(vm, path, "backend_path", fds, e);
    if (l->server < 0)
        return l->server;
    if ((rc = send_regions(l->server, uffd, vm_mem(vm), e)))
        return rc;
    atomic_store(&l->ending, false);
    return vm_job(vm, watch, vm) ? err_set(e, EBUSY, "mem_backend: the helper thread is busy") : 0;
}

void pager_end(struct vm *vm)
{
    struct vm_lineage *l = vm_lineage(vm);

    if (l->server >= 0) {
        atomic_store(&l->ending, true);
        vm_wake_helper(vm);
        vm_job_wait(vm);
        close_fdp(&l->server);
        l->server = -1;
    }
    free(l->seen);
    l->seen = NULL;
}
