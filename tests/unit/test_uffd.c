// SPDX-License-Identifier: Apache-2.0
// Absent pages on a real userfaultfd: told when touched, by code or inside a system call; placed once.
#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>

#include "vmm/mem/uffd.h"

static struct guest_mem m;
static int uffd = -1, pipe_fd[2];

static void setup(void)
{
    int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

    if (dev < 0)
        return;
    ck_assert_int_ge(uffd = uffd_open(dev, NULL), 0);
    close(dev);
    ck_assert_int_eq(mem_reserve(&m, 4 * MIB, NULL), 0);
    ck_assert_int_eq(mem_back_anon(&m, false, NULL), 0);
    ck_assert_int_eq(uffd_register(uffd, &m), 0);
    ck_assert_int_eq(pipe(pipe_fd), 0);
}

static bool lacking(const char *name)
{
    if (uffd < 0)
        printf("SKIP: %s: this kernel has no /dev/userfaultfd\n", name);
    return uffd < 0;
}

static uint8_t *at(uint64_t page)
{
    return m.r[0].host + page * PAGE_SIZE;
}

static uint64_t told(void)
{
    struct pollfd p = {.fd = uffd, .events = POLLIN};
    uint64_t page = ~0ULL;

    ck_assert_int_eq(poll(&p, 1, 5000), 1);
    ck_assert_int_eq(uffd_next(uffd, &m, &page), 1);
    return page;
}

START_TEST(placed_once)
{
    static uint8_t a[PAGE_SIZE], b[4 * PAGE_SIZE];

    if (lacking("placed_once"))
        return;
    memset(a, 'a', sizeof(a));
    memset(b, 'b', sizeof(b));
    ck_assert_int_eq(uffd_place(uffd, &m, 3, 1, a), 0);
    *at(3) = 'x';                                       // the guest has written it
    ck_assert_int_eq(uffd_place(uffd, &m, 2, 4, b), 0); // over one that is there
    ck_assert_int_eq(uffd_place(uffd, &m, 3, 1, NULL), 0);
    ck_assert_int_eq(uffd_place(uffd, &m, 6, 2, NULL), 0);
    static const char want[] = {'b', 'x', 'b', 'b', 0, 0};
    for (unsigned i = 0; i < sizeof(want); i++)
        ck_assert_msg(*at(2 + i) == (uint8_t)want[i], "page %u", 2 + i);
    ck_assert_uint_eq(at(3)[1], 'a');
}
END_TEST

static void *touch(void *page)
{
    return (void *)(uintptr_t) * (volatile uint8_t *)page;
}

static void *read_into(void *page)
{
    return (void *)read(pipe_fd[0], page, PAGE_SIZE);
}

START_TEST(who_waits_is_woken)
{
    static uint8_t a[PAGE_SIZE];
    pthread_t t;
    void *got;

    if (lacking("who_waits_is_woken"))
        return;
    a[0] = 7;
    pthread_create(&t, NULL, touch, at(9));
    ck_assert_uint_eq(told(), 9);
    ck_assert_int_eq(uffd_place(uffd, &m, 9, 1, a), 0);
    pthread_join(t, &got);
    ck_assert_uint_eq((uintptr_t)got, 7);

    ck_assert_int_eq(write(pipe_fd[1], "data", 4), 4);
    pthread_create(&t, NULL, read_into, at(10));
    ck_assert_uint_eq(told(), 10);
    ck_assert_int_eq(uffd_place(uffd, &m, 10, 1, NULL), 0);
    pthread_join(t, &got);
    ck_assert_uint_eq((uintptr_t)got, 4);
    ck_assert(!memcmp(at(10), "data", 5));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("uffd");
    TCase *t = tcase_create("uffd");

    suite_add_tcase(s, t);
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_test(t, placed_once);
    tcase_add_test(t, who_waits_is_woken);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
