// SPDX-License-Identifier: Apache-2.0
// The four stages, each seen from inside the process that went through it (J3, J4, J10).
#include "jail/jail.h"

#include <check.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

// In the child of a test: the failing line is the exit status, for Check's own reports need
// descriptors.
#define MUST(cond)                     \
    do {                               \
        if (!(cond))                   \
            _exit(__LINE__ % 250 + 1); \
    } while (0)

static void in_child(void (*body)(void))
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (!pid) {
        body();
        _exit(0);
    }
    int st;
    ck_assert_int_eq(waitpid(pid, &st, 0), pid);
    ck_assert_msg(WIFEXITED(st) && !WEXITSTATUS(st), "status %#x: line %d or 250 more", st,
                  WEXITSTATUS(st) - 1);
}

static bool opens(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static void early(void)
{
    struct jail j = {.passed = {{"kvm", 100}}, .n_passed = 1};
    setenv("SECRET", "value", 1);
    char *secret = getenv("SECRET");
    MUST(dup2(0, 50) == 50 && dup2(0, 100) == 100 && dup2(0, 200) == 200);
    close(0);
    struct rlimit rl = {RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_CORE, &rl);
    umask(0);
    MUST(!jail_early(&j, NULL));
    for (int fd = 0; fd < 1024; fd++)
        MUST((fcntl(fd, F_GETFD) >= 0) ==
             (fd < 3 || fd == 100 || fd == JAIL_FD_PAGEMAP || fd == JAIL_FD_UFFD_INFO));
    MUST(!getenv("SECRET") && !secret[0]);
    MUST(umask(0) == 077);
    MUST(!getrlimit(RLIMIT_CORE, &rl) && !rl.rlim_cur && !rl.rlim_max);
    MUST(!getrlimit(RLIMIT_NOFILE, &rl) && rl.rlim_max == JAIL_FD_END);
#ifndef MAYFLY_SANITIZE
    MUST(prctl(PR_GET_DUMPABLE) == 0);
#endif
}

static void early_without_room(void)
{
    struct jail j = {0};
    struct err e = {0};
    struct rlimit rl = {100, 100};
    MUST(!setrlimit(RLIMIT_NOFILE, &rl));
    MUST(jail_early(&j, &e) == -EMFILE && strstr(e.msg, "100"));
}

#ifndef MAYFLY_SANITIZE // the sanitizers bring threads of their own
static void *sleeper(void *arg)
{
    pause();
    return arg;
}

static void early_with_threads(void)
{
    struct jail j = {0};
    pthread_t t;
    MUST(!pthread_create(&t, NULL, sleeper, NULL));
    MUST(jail_early(&j, NULL) == -EINVAL);
}

#endif

static void user(void)
{
    MUST(!jail_user(NULL));
    MUST(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct d[2];
    MUST(!syscall(SYS_capget, &head, d));
    for (int i = 0; i < 2; i++)
        MUST(!d[i].effective && !d[i].permitted && !d[i].inheritable);
    for (unsigned long cap = 0; cap < 64; cap++) {
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) != 1);
        if (!geteuid()) // dropping needs CAP_SETPCAP
            MUST(prctl(PR_CAPBSET_READ, cap, 0, 0, 0) != 1);
    }
}

static char dir[] = "/tmp/test_jail.XXXXXX";

static void fs_open(void)
{
    struct jail j = {0};
    char text[200];
    bool tun = opens("/dev/net/tun", O_RDWR);
    MUST(opens("/dev/null", O_RDWR) && opens("/etc/passwd", O_RDONLY));
    MUST(!jail_fs(&j, NULL) && j.landlock_abi > 0);
    jail_describe(&j, text, sizeof(text));
    MUST(strstr(text, "no --allow-dir"));
    MUST(chdir(dir) == 0 && opens("new", O_RDWR | O_CREAT) && !rename("new", "data"));
    MUST(opens("/etc/passwd", O_RDONLY));
    MUST(opens("/dev/null", O_RDWR)); // where a log that nobody wants goes
    MUST(!opens("/dev/zero", O_RDWR) && errno == EACCES);
    MUST(!opens("/dev/kvm", O_RDWR));
#ifndef MAYFLY_SANITIZE
    MUST(!opens("/proc/self/status", O_RDONLY) && errno == EACCES);
#endif
    MUST(!opens("/sys/kernel/uevent_seqnum", O_RDONLY) && errno == EACCES);
    MUST(opens("/dev/net/tun", O_RDWR) == tun);
    MUST(mknod("node", S_IFCHR | 0600, 0x103) && errno == EACCES);
    MUST(execl("/bin/true", "true", NULL) && errno == EACCES);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(9)};
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (j.landlock_abi >= 4)
        MUST(connect(s, (struct sockaddr *)&a, sizeof(a)) && errno == EACCES);
}

static void fs_dirs(void)
{
    const char *dirs[] = {dir};
    struct jail j = {.allow_dirs = dirs, .n_allow_dirs = 1};
    MUST(!chdir(dir) && !symlink("/etc/passwd", "out"));
    MUST(!jail_fs(&j, NULL));
    MUST(opens("made", O_RDWR | O_CREAT) && opens("made", O_RDWR | O_TRUNC) && !unlink("made"));
    MUST(!opens("/etc/passwd", O_RDONLY) && errno == EACCES);
    MUST(!opens("out", O_RDONLY) && errno == EACCES);
    MUST(!opens("/tmp/test_jail.outside", O_RDWR | O_CREAT) && errno == EACCES);
    MUST(!opens("/dev/zero", O_RDONLY) && errno == EACCES);
    MUST(execl("/bin/true", "true", NULL) && errno == EACCES);
    MUST(link("/etc/passwd", "linked"));
}

static void fs_missing_dir(void)
{
    const char *dirs[] = {"/nonexistent"};
    struct jail j = {.allow_dirs = dirs, .n_allow_dirs = 1};
    struct err e = {0};
    MUST(jail_fs(&j, &e) == -ENOENT && strstr(e.msg, "/nonexistent"));
}

// J10: a kernel that lacks a feature, played by a filter that answers ENOSYS to one call.
static void without(int nr)
{
    struct sock_filter insn[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {.len = ARRAY_SIZE(insn), .filter = insn};
    MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog));
}

static void no_landlock(void)
{
    struct jail j = {0};
    struct err e = {0};
    char text[200];
    without(SYS_landlock_create_ruleset);
    MUST(jail_fs(&j, &e) == -ENOSYS && strstr(e.msg, "Landlock"));
    j.allow_no_landlock = true;
    MUST(!jail_fs(&j, &e) && !j.landlock_abi);
    jail_describe(&j, text, sizeof(text));
    MUST(strstr(text, "no Landlock"));
}

static void no_close_range(void)
{
    struct jail j = {0};
    struct err e = {0};
    without(SYS_close_range);
    MUST(jail_early(&j, &e) == -ENOSYS && strstr(e.msg, "close_range"));
}

static void no_seccomp(void)
{
    struct err e = {0};
    without(SYS_seccomp);
    MUST(jail_filter_install(JAIL_FILTER_ALL, &e) == -ENOSYS && strstr(e.msg, "seccomp"));
}

START_TEST(stages)
{
    static void (*const body[])(void) = {
        early,
        early_without_room,
        user,
        fs_open,
        fs_dirs,
        fs_missing_dir,
        no_landlock,
        no_close_range,
        no_seccomp,
#ifndef MAYFLY_SANITIZE
        early_with_threads,
#endif
    };
    if ((size_t)_i < ARRAY_SIZE(body))
        in_child(body[_i]);
}
END_TEST

START_TEST(passed)
{
    struct jail j = {0};
    static const char *const bad[] = {"kvm",    "kvm=",   "=5",    "kvm=2",   "kvm=256",
                                      "kvm=-1", "kvm=5x", "kvm=x", "kvm=0x5", "kvm=99999999999"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        ck_assert_int_eq(jail_passed_add(&j, bad[i], NULL), -EINVAL);
    ck_assert_int_eq(jail_passed_add(&j, "name-that-is-longer-than-the-field=5", NULL), -EINVAL);
    ck_assert_int_eq(jail_passed_add(&j, "kvm=208", NULL), 0);
    ck_assert_int_eq(jail_passed_add(&j, "tap:tap0=3", NULL), 0);
    ck_assert_int_eq(jail_passed(&j, "kvm"), 208);
    ck_assert_int_eq(jail_passed(&j, "tap:tap0"), 3);
    ck_assert_int_eq(jail_passed(&j, "tap:tap"), -1);
    for (int i = 0; i < 22; i++)
        ck_assert_int_eq(jail_passed_add(&j, "x=4", NULL), 0);
    ck_assert_int_eq(jail_passed_add(&j, "x=4", NULL), -EINVAL);
}
END_TEST

START_TEST(pin)
{
    int fd = open("/dev/null", O_RDONLY);
    ck_assert_int_eq(jail_fd_pin(fd, JAIL_FD_VM, NULL), JAIL_FD_VM);
    ck_assert_int_eq(fcntl(fd, F_GETFD), -1);
    ck_assert_int_eq(fcntl(JAIL_FD_VM, F_GETFD), FD_CLOEXEC);
    ck_assert_int_eq(fcntl(JAIL_FD_VM, F_SETFD, 0), 0);
    ck_assert_int_eq(jail_fd_pin(JAIL_FD_VM, JAIL_FD_VM, NULL), JAIL_FD_VM);
    ck_assert_int_eq(fcntl(JAIL_FD_VM, F_GETFD), FD_CLOEXEC);
    ck_assert_int_eq(jail_fd_pin(-1, JAIL_FD_VM, NULL), -EBADF);
    ck_assert_int_eq(fcntl(JAIL_FD_VM, F_GETFD), FD_CLOEXEC);
}
END_TEST

int main(void)
{
    if (!mkdtemp(dir))
        return 1;
    Suite *s = suite_create("jail");
    TCase *t = tcase_create("stages");
    tcase_add_loop_test(t, stages, 0, 10);
    tcase_add_test(t, passed);
    tcase_add_test(t, pin);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    char path[64];
    static const char *const left[] = {"data", "out", "made"};
    for (size_t i = 0; i < ARRAY_SIZE(left); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, left[i]);
        unlink(path);
    }
    rmdir(dir);
    return failed != 0;
}
