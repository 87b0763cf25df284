// SPDX-License-Identifier: Apache-2.0
// Stands in for a monitor that a guest has taken over: goes through the real stages and filters, says what
// it can see, then does what it was told. The tests expect it to be refused or killed.
#include "jail/jail.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

// Outside filter A: what the process holds, as one JSON object on stdout.
static void report(const char *when)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct d[2] = {0};
    struct stat st;
    unsigned bounding = 0, ambient = 0;
    syscall(SYS_capget, &head, d);
    for (unsigned long cap = 0; cap < 64; cap++) {
        bounding += prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1;
        ambient += prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1;
    }
    printf(
        "{\"when\": \"%s\", \"uid\": %u, \"gid\": %u, \"groups\": %d, \"pid\": %d, \"ppid\": %d, "
        "\"leader\": %d, \"eff\": %u, \"perm\": %u, \"inh\": %u, \"bounding\": %u, \"ambient\": "
        "%u, "
        "\"nnp\": %d, \"dumpable\": %d, \"environ\": %d, \"root_writable\": %d, \"fds\": {",
        when, getuid(), getgid(), getgroups(0, NULL), getpid(), getppid(), getsid(0) == getpid(),
        d[0].effective | d[1].effective, d[0].permitted | d[1].permitted,
        d[0].inheritable | d[1].inheritable, bounding, ambient,
        prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_DUMPABLE), environ && *environ,
        !mkdir("/made", 0700));
    const char *sep = "";
    for (int fd = 0; fd < 1024; fd++)
        if (!fstat(fd, &st)) {
            printf("%s\"%d\": \"%o\"", sep, fd, st.st_mode & S_IFMT);
            sep = ", ";
        }
    printf("}, \"root\": [");
    sep = "";
    DIR *dir = opendir("/");
    for (struct dirent *e; dir && (e = readdir(dir));) {
        if (e->d_name[0] != '.')
            printf("%s\"%s\"", sep, e->d_name), sep = ", ";
    }
    if (dir)
        closedir(dir);
    printf("], \"tap\": \"");
    struct ifreq ifr = {0};
    if (!ioctl(4, TUNGETIFF, &ifr))
        printf("%s", ifr.ifr_name);
    printf("\"}\n");
    fflush(stdout);
}

// Every kind of thread may wait on a futex.
static _Noreturn void sleep_on(void)
{
    int word = 0;
    for (;;)
        syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

static void *second_thread(void *arg)
{
    (void)arg;
    sleep_on();
}

// Each of these must end in SIGSYS or an error; the line names what came of it.
static void act(const char *what)
{
    long r = -1;
    char *const argv[] = {NULL};
    if (!strcmp(what, "socket"))
        r = socket(AF_UNIX, SOCK_STREAM, 0);
    else if (!strcmp(what, "exec"))
        r = execve("/bin/true", argv, argv);
    else if (!strcmp(what, "fork"))
        r = syscall(SYS_fork);
    else if (!strcmp(what, "mmap-exec"))
        r = (long)mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    else if (!strcmp(what, "mprotect-exec"))
        r = mprotect(&r, 1, PROT_EXEC);
    else if (!strcmp(what, "open"))
        r = syscall(SYS_open, "/", O_RDONLY);
    else if (!strcmp(what, "mount"))
        r = syscall(SYS_mount, "a", "/", "tmpfs", 0, NULL);
    else if (!strcmp(what, "unshare"))
        r = syscall(SYS_unshare, 0x10000000);
    else if (!strcmp(what, "ptrace"))
        r = syscall(SYS_ptrace, 0, 0, 0, 0);
    else if (!strcmp(what, "io_uring"))
        r = syscall(SYS_io_uring_setup, 1, NULL);
    else if (!strcmp(what, "kill"))
        r = syscall(SYS_kill, -1, 9);
    else if (!strcmp(what, "ioctl"))
        r = ioctl(0, TIOCSTI, "x");  // typing into the terminal it was started from
    else if (!strcmp(what, "eat")) { // 64 MiB, each page of it
        volatile char *at = malloc(64 * MIB);
        for (size_t i = 0; at && (r = 0, i < 64 * MIB); i += 4096)
            at[i] = 1;
    } else if (!strcmp(what, "malloc")) // allowed: what cannot grow the heap is mapped
        for (size_t n = 16; n < 8 * MIB && (r = 0, malloc(n)); n += n / 8)
            r = n > 7 * MIB;
    (void)!fd_write(1, "survived\n", 9);
    syscall(SYS_exit_group, r < 0 ? 3 : 4);
}

int main(int argc, char **argv)
{
    struct jail j = {0};
    struct err e = {0};
    const char *dirs[16], *open_path = NULL, *deed = NULL;
    bool raw = false, final = false, hold = false;
    for (int i = 1; i < argc; i++) {
        const char *v = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--passed-fd") && jail_passed_add(&j, v, &e))
            return 2;
        if (!strcmp(argv[i], "--allow-dir"))
            dirs[j.n_allow_dirs++] = v;
        raw |= !strcmp(argv[i], "raw");     // report as started, before any stage
        final |= !strcmp(argv[i], "final"); // the control thread's last filter, too
        hold |= !strcmp(argv[i], "hold");   // live until killed
        if (!strcmp(argv[i], "open"))
            open_path = v;
        if (!strcmp(argv[i], "act"))
            deed = v;
    }
    j.allow_dirs = dirs;
    if (raw)
        report("raw");
    if (jail_early(&j, &e) || jail_user(&e) || jail_fs(&j, &e)) {
        fprintf(stderr, "misbehave: %s\n", e.msg);
        return 1;
    }
    report("staged");
    if (open_path) {
        int fd = open(open_path, O_RDWR);
        printf("open: %s\n", fd < 0 ? strerror(errno) : "ok");
        fflush(stdout);
    }
    pthread_t t;
    if (jail_syscalls(&j, &e) || (hold && pthread_create(&t, NULL, second_thread, NULL)) ||
        (final && jail_configured(8, &e))) {
        fprintf(stderr, "misbehave: %s\n", e.msg);
        return 1;
    }
    (void)!fd_write(1, "confined\n", 9);
    if (hold)
        sleep_on();
    if (deed)
        act(deed);
    syscall(SYS_exit_group, 0);
}
