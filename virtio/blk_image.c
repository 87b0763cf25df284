// SPDX-License-Identifier: Apache-2.0
// What may be a disk image, and who owns it: size, type and the lock.
//
// #syscalls:control newfstatat lseek fcntl(F_OFD_SETLK) poll
#include "virtio/blk_priv.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#define LOCK_TRIES 41 // at 5 ms: 200 ms
#define LOCK_PAUSE 5  // ms

int blk_check(int fd, uint64_t *bytes, struct err *e)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_set(e, errno, "cannot examine the drive's image: %m");
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return err_set(e, EINVAL, "a drive must be a regular file or a block device");
    // Seeking finds the size of both; nothing else here depends on the file position.
    const off_t end = S_ISREG(st.st_mode) ? st.st_size : lseek(fd, 0, SEEK_END);
    if (end <= 0 || end % 512 != 0)
        return err_set(e, EINVAL,
                       "a drive must hold a whole number of 512-byte sectors, at least "
                       "one; this one has %lld bytes",
                       (long long)end);
    *bytes = (uint64_t)end;
    return 0;
}

// The lock belongs to the open file description: a descriptor that was passed in must be the only
// one of its description, or two holders of it count as one owner. It ends with the last
// descriptor, so a process that was killed holds it until the kernel is done with its ring.
int blk_lock(int fd, bool read_only, struct err *e)
{
    for (int try = 0; try < LOCK_TRIES; try++) {
        struct flock l = {.l_type = read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
        if (fcntl(fd, F_OFD_SETLK, &l) == 0)
            return 0;
        if (errno == EBADF)
            return err_set(e, EINVAL, "the drive's descriptor is not open for %s",
                           read_only ? "reading" : "writing");
        if (errno != EAGAIN && errno != EACCES)
            return err_set(e, errno, "cannot lock the drive: %m");
        poll(NULL, 0, LOCK_PAUSE); // a sleep by a call that this thread may make anyway
    }
    return err_set(e, EBUSY, "the drive is in use by another microVM");
}

void blk_unlock(int fd)
{
    struct flock l = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    if (fd >= 0)
        fcntl(fd, F_OFD_SETLK, &l);
}

// #syscalls:control fsync
int blk_sync(struct blk *b)
{
    return fsync(b->now.top.fd) ? -errno : 0;
}

int blk_hold(struct blk *b, bool hold, struct err *e)
{
    const struct blk_backing *k = &b->now.b;

    if (!hold) {
        blk_unlock(k->fd);
        blk_unlock(k->cow_fd);
        return 0;
    }
    int rc = blk_lock(k->fd, k->read_only || k->cow_fd >= 0, e);
    return rc || k->cow_fd < 0 ? rc : blk_lock(k->cow_fd, false, e);
}
