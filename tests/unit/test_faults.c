// SPDX-License-Identifier: Apache-2.0
// Every allocation and every call of the host fails once, at each place in the life of a microVM on real
// KVM: the step says why, the microVM goes on or ends, and nothing is left open behind it.
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/unit/host.h"
#include "vmm/state.h"

// The linker sends these here (tests/unit/faults.mk); the `left`-th call of the control thread fails.
static _Atomic int left;
static const char *failed;
static pthread_t control;

static bool fails(const char *name)
{
    if (left == 0 || !pthread_equal(pthread_self(), control) || --left > 0)
        return false;
    failed = name;
    errno = ENOMEM;
    return true;
}

#define WRAP(type, name, bad, params, args)               \
    type __real_##name params;                            \
    type __wrap_##name params;                            \
    type __wrap_##name params                             \
    {                                                     \
        return fails(#name) ? (bad) : __real_##name args; \
    }
WRAP(void *, malloc, NULL, (size_t n), (n))
WRAP(void *, calloc, NULL, (size_t n, size_t s), (n, s))
WRAP(void *, mmap, MAP_FAILED, (void *a, size_t n, int p, int f, int fd, off_t o),
     (a, n, p, f, fd, o))
WRAP(int, eventfd, -1, (unsigned v, int f), (v, f))
WRAP(int, ioctl, -1, (int fd, unsigned long rq, void *arg), (fd, rq, arg))
WRAP(int, pthread_create, ENOMEM,
     (pthread_t * t, const pthread_attr_t *a, void *(*f)(void *), void *x), (t, a, f, x))
WRAP(long, syscall, -1, (long n, long a, long b, long c, long d, long e, long f),
     (n, a, b, c, d, e, f))

// To give a lock back takes an allocation that is too small to fail. If it did, the disk would stay its drive's for as
// long as the ring holds the file that was replaced: until it ends, before Linux 6.13.
int __real_fcntl(int fd, int cmd, void *arg);
int __wrap_fcntl(int fd, int cmd, void *arg);
int __wrap_fcntl(int fd, int cmd, void *arg)
{
    const struct flock *l = arg;
    if (cmd == F_OFD_SETLK && l->l_type == F_UNLCK)
        return __real_fcntl(fd, cmd, arg);
    return fails("fcntl") ? -1 : __real_fcntl(fd, cmd, arg);
}

static unsigned entries(const char *dir)
{
    unsigned n = 0;
    DIR *d = opendir(dir);
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

// A thread that was joined may show for a moment longer: it clears its number before it is reaped.
static bool threads_left(void)
{
    unsigned n = 0;

    for (unsigned tries = 0; tries < 500 && (n = entries("/proc/self/task")) > 3; tries++)
        usleep(10000);
    return n != 3;
}

static struct vm *vm;
static char disk[2][40];

static int step(unsigned i, struct err *e)
{
    const struct machine_cfg two = {.vcpu_count = 2, .mem_size_mib = 64, .track_dirty_pages = true};
    const struct machine_cfg one = {.vcpu_count = 1, .mem_size_mib = 32};
    const struct logger_cfg quiet = {.has_level = true, .level = LOG_OFF};
    const struct limiter_cfg rl = {.set = true, .ops = {.set = true, .size = 9, .refill_ms = 9}};
    struct drive_cfg d = {.drive_id = "d"};
    struct boot_cfg boot = {.has_args = false};
    struct vm_opts o = {.id = "unit", .serial_out = -1, .serial_in = -1};

    snprintf(d.path_on_host, sizeof(d.path_on_host), "%s", disk[0]);
    snprintf(boot.kernel_image_path, sizeof(boot.kernel_image_path), "build/guests/spin.elf");
    switch (i) {
    case 0:
        return vm_new(&vm, &o, e);
    case 1:
        return vm_arm(vm, e) ? -1 : vm_put_logger(vm, &quiet, NULL, e);
    case 2:
        return vm_put_machine(vm, &two, e);
    case 3:
        return vm_put_machine(vm, &one, e);
    case 4:
        return vm_put_drive(vm, &d, NULL, e);
    case 5:
        return vm_put_boot(vm, &boot, NULL, e);
    case 6:
        return vm_start(vm, e);
    case 7:
        return vm_pause(vm, e);
    case 8:
        return vm_patch_drive(vm, "d", disk[1], &rl, NULL, e);
    case 10:
        return vm_pause(vm, e);
    case 11:
        return vm_patch_drive(vm, "d", disk[0], NULL, NULL, e);
    default:
        return vm_resume(vm, e);
    }
}
#define STEPS 13

// 0: as it must be; else what is wrong.
static const char *life(int n)
{
    struct err e = {0};
    unsigned fds = entries("/proc/self/fd");

    control = pthread_self();
    left = n;
    for (unsigned i = 0; i < STEPS; i++) {
        e.msg[0] = 0;
        int rc = step(i, &e);
        if (rc == 0)
            continue;
        if (!failed)
            return "a step failed by itself";
        if (!e.msg[0])
            return "no word about what failed";
        if (i <= 1) // before the API there is nobody to ask again
            break;
        // What can be asked again works; a start that spent its descriptors ends the microVM instead.
        const char *why;
        if (step(i, &e) && vm_exit_status(vm, &why) == VM_EXIT_OK) {
            fprintf(stderr, "step %u again: %s\n", i, e.msg);
            return "the second time fails, too";
        }
        if (vm_exit_status(vm, &why) != VM_EXIT_OK)
            break;
    }
    left = 0;
    if (vm)
        vm_free(vm);
    if (entries("/proc/self/fd") != fds)
        return "descriptors are left open";
    return threads_left() ? "threads are left" : NULL;
}

static int try_nth(int n)
{
    int status = 0;
    pid_t p = fork();

    if (p == 0) {
        alarm(30);
        const char *bad = life(n);
        if (bad)
            fprintf(stderr, "call %d (%s): %s\n", n, failed ? failed : "none", bad);
        _exit(bad ? 1 : failed ? 0 : 2);
    }
    waitpid(p, &status, 0);
    if (WIFSIGNALED(status))
        fprintf(stderr, "call %d: signal %d\n", n, WTERMSIG(status));
    return WIFSIGNALED(status) ? -1 : WEXITSTATUS(status);
}

START_TEST(every_call_fails_once)
{
    int n = 1, rc = 0;

    for (unsigned i = 0; i < 2; i++) {
        snprintf(disk[i], sizeof(disk[i]), "/tmp/faults-%u-XXXXXX", i);
        int fd = mkstemp(disk[i]);
        ck_assert_int_eq(ftruncate(fd, 1 << 20), 0);
        close(fd);
    }
    unsigned bad = 0;
    for (; (rc = try_nth(n)) != 2 && bad < 20; n++)
        bad += rc != 0;
    unlink(disk[0]);
    unlink(disk[1]);
    ck_assert_uint_eq(bad, 0);
    ck_assert_int_gt(n, 100);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("faults");
    TCase *t = tcase_create("faults");
    tcase_set_timeout(t, 300);
    if (!kvm_is_ours())
        printf("SKIP: every_call_fails_once: no access to /dev/kvm\n");
    else if (access("build/guests/spin.elf", R_OK))
        printf("SKIP: every_call_fails_once: the guests are not built\n");
    else
        tcase_add_test(t, every_call_fails_once);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures != 0;
}
