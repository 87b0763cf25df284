// SPDX-License-Identifier: Apache-2.0
// main: wires the rooms. Everything is built, privileges are given away in four stages, threads start under
// their filters, and only then is the first byte of configuration, API or guest read.
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "api-socket/api.h"
#include "jail/jail.h"
#include "snapshot/mig.h"
#include "vmm/args.h"
#include "vmm/handover.h"
#include "vmm/log.h"
#include "vmm/version.h"
#include "vmm/vm.h"

#define CONFIG_MAX  (1024 * 1024)
#define FD_HEADROOM 40 // connections, passed descriptors, a drive's swap

struct monitor {
    struct args args;
    struct jail jail;
    struct vm *vm;
    struct api *api;
    char *config;
    size_t config_len;
    int stop_fd; // readable when SIGTERM, SIGINT or SIGHUP asks for an orderly end
    int dir_fd[ARGS_MAX_DIRS];
    struct handed_tap tap[ARGS_MAX_PASSED];
    unsigned ntaps;
};

#ifndef __GLIBC__
// What musl's free() calls where it could give whole pages back. Not doing so costs a few pages; doing so
// would be one more system call of every thread, or the end of the process that asks for it.
int __madvise(void *at, size_t len, int advice);
int __madvise(void *at, size_t len, int advice)
{
    (void)at, (void)len, (void)advice;
    return 0;
}
#endif

static int confine(enum vm_thread kind, struct err *e)
{
    switch (kind) {
    case VM_THREAD_VCPU:
        return jail_filter_install(JAIL_FILTER_VCPU, e);
    case VM_THREAD_DEVICE:
        return jail_filter_install(JAIL_FILTER_DEVICE, e);
    case VM_THREAD_HELPER:
        return jail_filter_install(JAIL_FILTER_HELPER, e);
    case VM_THREAD_CONTROL:
        return jail_configured(FD_HEADROOM, e);
    }
    return -EINVAL;
}

static int pin(int fd, enum vm_fd which, unsigned index, struct err *e)
{
    static const int at[] = {[VM_FD_KVM] = JAIL_FD_KVM,
                             [VM_FD_VM] = JAIL_FD_VM,
                             [VM_FD_RING] = JAIL_FD_RING,
                             [VM_FD_UFFD] = JAIL_FD_UFFD,
                             [VM_FD_VCPU] = JAIL_FD_VCPU};
    return jail_fd_pin(fd, at[which] + (int)index, e);
}

// Read before the filters, parsed under them.
// #syscalls:boot openat read fstat
static int read_config(struct monitor *m, struct err *e)
{
    struct stat st;
    const char *path = m->args.config_file;

    _cleanup_(close_fdp) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st))
        return err_set(e, errno, "--config-file: cannot open %.150s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode) || st.st_size > CONFIG_MAX)
        return err_set(e, EINVAL, "--config-file: %.150s is not a regular file of at most 1 MiB",
                       path);
    m->config = malloc((size_t)st.st_size + 1);
    if (!m->config)
        return err_set(e, ENOMEM, "out of memory");
    while (m->config_len < (size_t)st.st_size) {
        ssize_t n = read(fd, m->config + m->config_len, (size_t)st.st_size - m->config_len);
        if (n <= 0)
            return err_set(e, EIO, "--config-file: cannot read %.150s", path);
        m->config_len += (size_t)n;
    }
    m->config[m->config_len] = 0;
    return 0;
}

// Blocked in every thread, since all are made later, and read from a descriptor: an orderly end gives
// taps, locks and the terminal back.
// #syscalls:boot rt_sigprocmask signalfd4
static int hear_signals(struct monitor *m, struct err *e)
{
    sigset_t s;

    sigemptyset(&s);
    sigaddset(&s, SIGTERM);
    sigaddset(&s, SIGINT);
    sigaddset(&s, SIGHUP);
    sigprocmask(SIG_BLOCK, &s, NULL);
    m->stop_fd = signalfd(-1, &s, SFD_CLOEXEC | SFD_NONBLOCK);
    return m->stop_fd < 0 ? err_set(e, errno, "signalfd: %s", strerror(errno)) : 0;
}

static int open_dirs(struct monitor *m, struct err *e)
{
    for (unsigned i = 0; i < m->args.ndirs; i++) {
        m->dir_fd[i] = open(m->args.dirs[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (m->dir_fd[i] < 0)
            return err_set(e, errno, "--allow-dir: cannot open %.150s: %s", m->args.dirs[i],
                           strerror(errno));
    }
    return 0;
}

static void find_taps(struct monitor *m)
{
    for (size_t i = 0; i < m->jail.n_passed; i++)
        if (!strncmp(m->jail.passed[i].name, "tap:", 4))
            m->tap[m->ntaps++] =
                (struct handed_tap){m->jail.passed[i].name + 4, m->jail.passed[i].fd};
}

// Not every kernel has it: who needs it says so.
static int open_uffd(struct monitor *m)
{
    int fd = jail_passed(&m->jail, "userfaultfd");

    if (fd < 0)
        fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (fd >= 0)
        fd = jail_fd_pin(fd, JAIL_FD_UFFD_DEV, NULL);
    return fd < 0 ? 0 : fd;
}

// Everything that later stages forbid: devices, ring, socket, directories, the configuration file's bytes.
static int build(struct monitor *m, struct err *e)
{
    struct args *a = &m->args;
    find_taps(m);
    struct vm_opts o = {.boot_timer = a->boot_timer,
                        .allow_dirs = a->dirs,
                        .allow_fds = m->dir_fd,
                        .nallow = a->ndirs,
                        .uffd_dev = open_uffd(m),
                        .uffd_info = fcntl(JAIL_FD_UFFD_INFO, F_GETFD) < 0 ? 0 : JAIL_FD_UFFD_INFO,
                        .kvm_fd = MAX(jail_passed(&m->jail, "kvm"), 0),
                        .taps = m->tap,
                        .ntaps = m->ntaps,
                        .pagemap_fd = fcntl(JAIL_FD_PAGEMAP, F_GETFD) < 0 ? 0 : JAIL_FD_PAGEMAP,
                        .serial_out = STDOUT_FILENO,
                        .serial_in = STDIN_FILENO,
                        .start_time_us = a->start_time_us,
                        .start_cpu_us = a->start_cpu_us,
                        .parent_cpu_us = a->parent_cpu_us,
                        .confine = confine,
                        .pin = pin};
    struct api_opts ao = {.path = a->api_sock,
                          .mode = a->socket_mode,
                          .body_max = a->max_payload,
                          .version = MAYFLY_VERSION,
                          .pin_fd = JAIL_FD_API,
                          .listen_fd = MAX(jail_passed(&m->jail, "api"), 0),
                          .uids = a->uids,
                          .nuids = a->nuids};

    snprintf(o.id, sizeof(o.id), "%s", a->id);
    int rc = hear_signals(m, e);
    if (rc == 0)
        rc = open_dirs(m, e);
    if (rc == 0 && a->config_file)
        rc = read_config(m, e);
    // The socket listens before the VM is built: a client's connect waits in the backlog meanwhile.
    if (rc == 0 && !a->no_api)
        rc = api_open(&m->api, &ao, e);
    if (rc == 0)
        rc = vm_new(&m->vm, &o, e);
    return rc;
}

static int confine_process(struct monitor *m, struct err *e)
{
    struct jail *j = &m->jail;

    j->allow_dirs = m->args.dirs;
    j->n_allow_dirs = m->args.ndirs;
    j->no_seccomp = m->args.no_seccomp;
    j->allow_no_landlock = m->args.allow_no_landlock;
    int rc = jail_user(e);
    if (rc == 0)
        rc = jail_fs(j, e);
    if (rc == 0)
        rc = jail_syscalls(j, e);
    return rc;
}

// The command line's and the file's configuration, now under filters.
static int configure(struct monitor *m, struct err *e)
{
    struct args *a = &m->args;
    struct metrics_cfg mc = {0};
    struct passed_fds none = {0};
    char text[200];
    int rc = 0;

    if (a->has_logger)
        rc = vm_put_logger(m->vm, &a->logger, &none, e);
    if (rc == 0 && a->metrics_path) {
        if (strlen(a->metrics_path) >= sizeof(mc.metrics_path))
            return err_set(e, ENAMETOOLONG, "--metrics-path: too long");
        snprintf(mc.metrics_path, sizeof(mc.metrics_path), "%s", a->metrics_path);
        rc = vm_put_metrics(m->vm, &mc, &none, e);
    }
    if (rc)
        return rc;
    struct log *l = vm_log(m->vm);
    LOG_I(l, "Running Mayfly v%s", MAYFLY_VERSION);
    jail_describe(&m->jail, text, sizeof(text));
    LOG_I(l, "%s", text);
    if (a->no_seccomp)
        LOG_W(l, "--no-seccomp: the filters stay on (it has effect in debug builds alone)");
    if (m->config)
        rc = api_apply_config(m->vm, m->config, m->config_len, e);
    return rc ? rc : a->config_file ? vm_start(m->vm, e) : 0;
}

// Not stdio, whose write no filter holds.
static void complain(const char *why)
{
    char text[400];
    int n = snprintf(text, sizeof(text), "mayfly: %s\n", why);
    if (fd_write(STDERR_FILENO, text, MIN((size_t)n, sizeof(text) - 1)) < 0)
        return; // nobody listens
}

// #syscalls:control exit_group pwritev2(0)
static int run(struct monitor *m)
{
    struct err e = {0};
    const char *why = "";
    int rc = build(m, &e);

    if (rc == 0)
        rc = confine_process(m, &e);
    if (rc == 0)
        rc = vm_arm(m->vm, &e);
    if (rc) {
        complain(e.msg);
        api_close(m->api);
        return VM_EXIT_FAILURE;
    }
    rc = configure(m, &e);
    free(m->config);
    if (rc) {
        complain(e.msg);
        api_close(m->api);
        vm_free(m->vm);
        return VM_EXIT_CONFIG;
    }
    do {
        rc = api_run(m->api, m->vm, vm_exit_fd(m->vm), m->stop_fd);
        vm_answer(m->vm);
    } while (rc == 0 && !vm_ended(m->vm));
    if (rc > 0)
        vm_stop(m->vm, "a signal asked for it");
    enum vm_exit status = vm_exit_status(m->vm, &why);
    // An orderly end would touch memory that is gone, or wait for pages that do not come.
    bool orderly = status != VM_EXIT_MEMORY;
    if (orderly) {
        api_close(m->api);
        orderly = migration_end(m->vm);
    }
    if (orderly)
        vm_flush_console(m->vm); // before our own last line, which may go to the same place
    if (rc >= 0 && status == VM_EXIT_OK)
        LOG_I(vm_log(m->vm), "Mayfly ends: %s", why);
    else
        complain(rc < 0 ? strerror(-rc) : why);
    if (status == VM_EXIT_MEMORY)
        _exit(VM_EXIT_MEMORY);
    if (orderly)
        vm_free(m->vm);
    return rc < 0 ? VM_EXIT_HOST : (int)status;
}

int main(int argc, char **argv)
{
    struct monitor m = {0};
    struct err e = {0};

#ifdef __GLIBC__
    // One arena: a second one would reserve 128 MiB and make threads call mmap.
    mallopt(M_ARENA_MAX, 1);
#endif
    // A peer that goes away is an error of a write, not the end of the microVM.
    signal(SIGPIPE, SIG_IGN);
    // Nor does a terminal stop it that it is in the background of.
    signal(SIGTTIN, SIG_IGN);
    signal(SIGTTOU, SIG_IGN);
    // Nor is a guest's write beyond RLIMIT_FSIZE.
    signal(SIGXFSZ, SIG_IGN);
    int rc = args_parse(argc, argv, &m.args, &e);
    for (unsigned i = 0; i < m.args.npassed && rc == 0; i++)
        rc = jail_passed_add(&m.jail, m.args.passed[i], &e);
    if (rc) {
        complain(e.msg);
        args_help(stderr);
        return VM_EXIT_ARGS;
    }
    if (m.args.help) {
        args_help(stdout);
        return 0;
    }
    if (m.args.version) {
        printf("Mayfly v%s\n", MAYFLY_VERSION);
        return 0;
    }
    if (jail_early(&m.jail, &e)) {
        complain(e.msg);
        return VM_EXIT_FAILURE;
    }
    return run(&m);
}
