// SPDX-License-Identifier: Apache-2.0
// What may stand behind a drive, and that it has one owner.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "virtio/blk.h"
#include "tests/unit/vio_fake.h"

static char path[] = "/tmp/blk-image-XXXXXX";
static int fd;

static void setup(void)
{
    strcpy(path + sizeof(path) - 7, "XXXXXX");
    fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, 8192), 0);
}

static void teardown(void)
{
    unlink(path);
    close(fd);
}

START_TEST(sizes_and_types)
{
    uint64_t bytes = 0;
    struct err e = {.msg = ""};
    ck_assert_int_eq(blk_check(fd, &bytes, &e), 0);
    ck_assert_uint_eq(bytes, 8192);
    static const off_t bad[] = {0, 1, 511, 513, 8191};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        ck_assert_int_eq(ftruncate(fd, bad[i]), 0);
        e.msg[0] = 0;
        ck_assert_int_eq(blk_check(fd, &bytes, &e), -EINVAL);
        ck_assert_str_ne(e.msg, "");
    }
    int sp[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, sp), 0);
    ck_assert_int_eq(blk_check(sp[0], &bytes, &e), -EINVAL);
    int dir = open("/tmp", O_RDONLY | O_DIRECTORY);
    ck_assert_int_eq(blk_check(dir, &bytes, &e), -EINVAL);
    ck_assert_int_eq(blk_check(-1, &bytes, &e), -EBADF);
    close(dir);
    close(sp[0]);
    close(sp[1]);
}
END_TEST

START_TEST(one_owner)
{
    struct err e = {.msg = ""};
    int rw = open(path, O_RDWR), ro = open(path, O_RDONLY), ro2 = open(path, O_RDONLY);
    ck_assert_int_eq(blk_lock(fd, false, &e), 0);
    ck_assert_int_eq(blk_lock(fd, false, &e), 0); // its own description: no conflict
    ck_assert_int_eq(blk_lock(rw, false, &e), -EBUSY);
    ck_assert_ptr_nonnull(strstr(e.msg, "in use by another microVM"));
    ck_assert_int_eq(blk_lock(ro, true, &e), -EBUSY);
    close(fd);
    ck_assert_int_eq(blk_lock(ro, true, &e), 0);
    ck_assert_int_eq(blk_lock(ro2, true, &e), 0); // readers share
    ck_assert_int_eq(blk_lock(rw, false, &e), -EBUSY);
    close(ro);
    close(ro2);
    ck_assert_int_eq(blk_lock(rw, false, &e), 0);
    fd = rw;
    int late = open(path, O_RDONLY);
    ck_assert_int_eq(blk_lock(late, false, &e), -EINVAL); // a writer must be able to write
    close(late);
}
END_TEST

// A lock that a dying process still holds is waited for.
START_TEST(lock_of_a_dying_process)
{
    struct err e = {.msg = ""};
    int ready[2];
    ck_assert_int_eq(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        int own = open(path, O_RDWR);
        char c = (char)blk_lock(own, false, NULL);
        if (write(ready[1], &c, 1) != 1)
            _exit(1);
        usleep(20000);
        _exit(0);
    }
    char c = 1;
    ck_assert_int_eq((int)read(ready[0], &c, 1), 1);
    ck_assert_int_eq(c, 0);
    ck_assert_int_eq(blk_lock(fd, false, &e), 0);
    close(ready[0]);
    close(ready[1]);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("blk image");
    TCase *t = tcase_create("image");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, sizes_and_types);
    tcase_add_test(t, one_owner);
    tcase_add_test(t, lock_of_a_dying_process);
    suite_add_tcase(s, t);
    return run_suite(s);
}
