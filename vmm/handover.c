// SPDX-License-Identifier: Apache-2.0
// Calls from the helper to the control thread, and disks, interfaces and memory that change hands.
#include "vmm/handover.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "vmm/mem/uffd.h"
#include "vmm/vm_priv.h"

enum { ASK_NONE, ASK_WAITS, ASK_DONE };

int vm_job(struct vm *vm, void (*job)(void *), void *arg)
{
    return helper_submit(&vm->helper, job, arg);
}

bool vm_job_runs(struct vm *vm)
{
    pthread_mutex_lock(&vm->helper.lock);
    bool runs = vm->helper.job;
    pthread_mutex_unlock(&vm->helper.lock);
    return runs;
}

void vm_job_wait(struct vm *vm)
{
    helper_wait(&vm->helper);
}

static void wake(int fd)
{
    uint64_t one = 1;
    while (fd_write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

// #syscalls:helper pwritev2(0) preadv2(0)
// #syscalls:control pwritev2(0) preadv2(0)
void vm_ask(struct vm *vm, int (*fn)(void *), void *arg)
{
    vm->ask.fn = fn;
    vm->ask.arg = arg;
    atomic_store(&vm->ask.state, ASK_WAITS); // releases fn and arg
    wake(vm->exit_fd);
}

int vm_asked(struct vm *vm)
{
    if (atomic_load(&vm->ask.state) != ASK_DONE)
        return -EAGAIN;
    atomic_store(&vm->ask.state, ASK_NONE);
    return vm->ask.rc;
}

void vm_answer(struct vm *vm)
{
    uint64_t n;

    if (fd_read(vm->exit_fd, &n, sizeof(n)) < 0 || atomic_load(&vm->ask.state) != ASK_WAITS)
        return;
    vm->ask.rc = vm->ask.fn(vm->ask.arg);
    atomic_store(&vm->ask.state, ASK_DONE);
    vm_wake_helper(vm);
}

int vm_helper_fd(struct vm *vm)
{
    return vm->helper_fd;
}

void vm_helper_awake(struct vm *vm)
{
    uint64_t n;
    if (fd_read(vm->helper_fd, &n, sizeof(n)) < 0)
        return; // nothing was there
}

void vm_wake_helper(struct vm *vm)
{
    wake(vm->helper_fd);
}

void **vm_migration(struct vm *vm)
{
    return &vm->migration;
}

void vm_over(struct vm *vm, enum vm_exit how, const char *why)
{
    vm_end(vm, how, why);
}

// ---- disks and network ------------------------------------------------------------------------------------

void vm_disks_unlocked(struct vm *vm)
{
    vm->disks_unlocked = true;
}

int vm_disks_lock(struct vm *vm, bool hold, struct err *e)
{
    for (unsigned i = 0; i < vm->nslots; i++) {
        int rc = vm->slot[i].kind == SLOT_BLK ? blk_hold(vm->slot[i].blk, hold, e) : 0;
        if (rc)
            return rc;
    }
    vm->disks_unlocked = !hold;
    return 0;
}

int vm_disks_sync(struct vm *vm, struct err *e)
{
    for (unsigned i = 0; i < vm->nslots; i++) {
        int rc = vm->slot[i].kind == SLOT_BLK ? blk_sync(vm->slot[i].blk) : 0;
        if (rc)
            return err_set(e, -rc, "drive %s: fsync: %s", vm->cfg.drives[vm->slot[i].cfg].drive_id,
                           strerror(-rc));
    }
    return 0;
}

bool vm_disk_is(struct vm *vm, unsigned drive, uint64_t id[2])
{
    struct stat st;

    if (drive >= vm->nslots || vm->slot[drive].kind != SLOT_BLK ||
        fstat(blk_fd(vm->slot[drive].blk), &st))
        return false;
    id[0] = st.st_ino;
    id[1] = blk_bytes(vm->slot[drive].blk);
    return true;
}

void vm_announce(struct vm *vm)
{
    vm->announced = 0;
    // Not waited for: the device thread may hang on a ring's page that only a recovery of the link brings, and that
    // is asked of this thread.
    loop_again(&vm->loop, SLOT_ANNOUNCE);
}

// ---- userfaultfd ----------------------------------------------------------------------------------------

int vm_uffd(struct vm *vm, struct err *e)
{
    int fd = vm->opts.uffd_dev > 0
                 ? uffd_open(vm->opts.uffd_dev, e)
                 : err_set(e, ENODEV, "there is no /dev/userfaultfd here, which a pull needs");
    if (fd >= 0 && vm->opts.pin)
        fd = vm->opts.pin(fd, VM_FD_UFFD, 0, e);
    return fd;
}
