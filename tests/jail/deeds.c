// SPDX-License-Identifier: Apache-2.0
// What a hijacked thread tries. Each returns what the kernel said; success is for the test to be appalled at.
#include "tests/jail/hijack.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/openat2.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define BOGUS   0xfffffffffffffff1ULL // no descriptor, no address, no length, no flag word
#define X32     0x40000000ULL
#define NUMBERS 512

// For the macro's many readers: a pointer as a system call's argument.
#define P(x) ((uint64_t)(uintptr_t)(x))

static long call(uint64_t n, struct io_uring *ring)
{
    (void)ring;
    return raw((long)n, BOGUS, BOGUS, BOGUS, BOGUS, BOGUS, BOGUS);
}

static long x32(uint64_t n, struct io_uring *ring)
{
    (void)ring;
    return raw((long)(n | X32), BOGUS, BOGUS, BOGUS, BOGUS, BOGUS, BOGUS);
}

static long int80(uint64_t n, struct io_uring *ring)
{
    (void)n, (void)ring;
    long r = 20; // getpid there
    __asm__ volatile("int $0x80" : "+a"(r)::"memory");
    return r;
}

#define DEED(name, expr)                                \
    static long name(uint64_t n, struct io_uring *ring) \
    {                                                   \
        (void)n, (void)ring;                            \
        return (expr);                                  \
    }

static long opened(const char *path, uint64_t flags)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .mode = flags & O_CREAT ? 0600 : 0};
    return raw(SYS_openat2, (uint64_t)AT_FDCWD, P(path), P(&how), sizeof(how), 0, 0);
}

static long mapped(uint64_t prot)
{
    long r = raw(SYS_mmap, 0, 4096, prot, MAP_PRIVATE | MAP_ANONYMOUS, BOGUS, 0);
    return r < 0 && r > -4096 ? r : 0;
}

static char word[64] = "x";
static const struct rlimit more = {4096, 4096};

DEED(map_exec, mapped(PROT_READ | PROT_EXEC))
DEED(map_write_exec, mapped(PROT_READ | PROT_WRITE | PROT_EXEC))
DEED(make_exec, raw(SYS_mprotect, P(word) & ~4095ULL, 4096, PROT_READ | PROT_EXEC, 0, 0, 0))
DEED(make_thread, raw(SYS_clone, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD,
                      0, 0, 0, 0, 0))
DEED(make_process, raw(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0))
DEED(new_namespace, raw(SYS_unshare, CLONE_NEWUSER, 0, 0, 0, 0, 0))
DEED(make_socket, raw(SYS_socket, AF_UNIX, SOCK_STREAM, 0, 0, 0, 0))
DEED(make_inet, raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0))
DEED(exec_self, raw(SYS_execveat, 0, P(""), P(&environ), P(&environ), AT_EMPTY_PATH, 0))
DEED(open_passwd, opened("/etc/passwd", O_RDONLY))
DEED(open_memory, opened("/proc/self/mem", O_RDWR))
DEED(open_init, opened("/proc/1/root", O_RDONLY))
DEED(open_disk, opened("/dev/vda", O_RDWR))
DEED(open_up, opened("/data/../../etc/passwd", O_RDONLY))
DEED(open_old_plainly, raw(SYS_open, P("/"), O_RDONLY, 0, 0, 0, 0))
DEED(open_by_handle, raw(SYS_open_by_handle_at, (uint64_t)AT_FDCWD, P(word), O_RDONLY, 0, 0, 0))
DEED(rename_out, raw(SYS_renameat2, (uint64_t)AT_FDCWD, P("/data/disk"), (uint64_t)AT_FDCWD,
                     P("/etc/disk"), 0, 0))
DEED(rename_in, raw(SYS_renameat2, (uint64_t)AT_FDCWD, P("/etc/passwd"), (uint64_t)AT_FDCWD,
                    P("/data/it"), 0, 0))
DEED(unlink_out, raw(SYS_unlinkat, (uint64_t)AT_FDCWD, P("/etc/passwd"), 0, 0, 0, 0))
DEED(kill_all, raw(SYS_kill, (uint64_t)-1, SIGKILL, 0, 0, 0, 0))
DEED(kill_init, raw(SYS_tgkill, 1, 1, SIGKILL, 0, 0, 0))
DEED(pin_over, raw(SYS_dup3, 0, JAIL_FD_KVM, O_CLOEXEC, 0, 0, 0))
DEED(dup_over, raw(SYS_fcntl, 0, F_DUPFD, JAIL_FD_KVM, 0, 0, 0))
DEED(dup_pinned, raw(SYS_fcntl, 0, F_DUPFD_CLOEXEC, JAIL_FD_VCPU_LAST, 0, 0, 0))
DEED(own_signals, raw(SYS_fcntl, 0, F_SETOWN, 1, 0, 0, 0))
DEED(raise_limit, raw(SYS_prlimit64, 0, RLIMIT_NOFILE, P(&more), 0, 0, 0))
DEED(type_in, raw(SYS_ioctl, 0, TIOCSTI, P(word), 0, 0, 0))
DEED(second_vm, raw(SYS_ioctl, JAIL_FD_KVM, KVM_CREATE_VM, 0, 0, 0, 0))
DEED(another_vcpu, raw(SYS_ioctl, JAIL_FD_VM, KVM_CREATE_VCPU, 9, 0, 0, 0))
DEED(kvm_device, raw(SYS_ioctl, JAIL_FD_VM, KVM_CREATE_DEVICE, P(word), 0, 0, 0))
DEED(set_registers, raw(SYS_ioctl, JAIL_FD_VCPU, KVM_SET_SREGS, P(word), 0, 0, 0))
DEED(second_ring, raw(SYS_io_uring_setup, 4, P(word), 0, 0, 0, 0))
DEED(ring_buffers,
     raw(SYS_io_uring_register, JAIL_FD_RING, IORING_REGISTER_BUFFERS, P(word), 1, 0, 0))
DEED(ring_files, raw(SYS_io_uring_register, JAIL_FD_RING, IORING_REGISTER_FILES, P(word), 1, 0, 0))
DEED(ring_freed, raw(SYS_io_uring_register, JAIL_FD_RING, IORING_REGISTER_ENABLE_RINGS, 0, 0, 0, 0))
DEED(ring_credentials,
     raw(SYS_io_uring_register, JAIL_FD_RING, IORING_REGISTER_PERSONALITY, 0, 0, 0, 0))
DEED(ring_entered, raw(SYS_io_uring_enter, JAIL_FD_RING, 0, 0, 0, 0, 0))
DEED(own_filter, raw(SYS_seccomp, 1, 0, P(word), 0, 0, 0))
DEED(debug_parent, raw(SYS_ptrace, 16, 1, 0, 0, 0, 0))

// Puts one request on the device thread's own ring, past every seccomp filter, and returns what came of it.
static long ask_ring(struct io_uring *ring, const struct io_uring_sqe *what)
{
    struct io_uring_sqe *s;
    struct io_uring_cqe *c;
    while (!(s = io_uring_get_sqe(ring)))
        io_uring_submit(ring);
    *s = *what;
    s->user_data = BOGUS;
    for (;;) {
        int rc = io_uring_submit_and_wait(ring, 1);
        if (rc < 0 && rc != -EINTR)
            return rc;
        while (!io_uring_peek_cqe(ring, &c)) {
            bool ours = c->user_data == BOGUS;
            rc = c->res;
            io_uring_cqe_seen(ring, c);
            if (ours)
                return rc;
        }
    }
}

// Every opcode, upon a registered file, so that nothing but the opcode is in the way.
static long ring_op(uint64_t n, struct io_uring *ring)
{
    const struct io_uring_sqe s = {
        .opcode = (uint8_t)n, .flags = IOSQE_FIXED_FILE, .fd = 0, .addr = P(word), .len = 1};
    return ask_ring(ring, &s);
}

static long ring_plain_file(uint64_t n, struct io_uring *ring)
{
    (void)n;
    struct iovec v = {word, 1};
    const struct io_uring_sqe s = {.opcode = IORING_OP_WRITEV, .fd = 2, .addr = P(&v), .len = 1};
    return ask_ring(ring, &s);
}

static long ring_beyond(uint64_t n, struct io_uring *ring)
{
    (void)n;
    struct iovec v = {word, 1};
    const struct io_uring_sqe s = {.opcode = IORING_OP_WRITEV,
                                   .flags = IOSQE_FIXED_FILE,
                                   .fd = 100000,
                                   .addr = P(&v),
                                   .len = 1};
    return ask_ring(ring, &s);
}

static long ring_linked(uint64_t n, struct io_uring *ring)
{
    (void)n;
    const struct io_uring_sqe s = {.opcode = IORING_OP_FSYNC,
                                   .flags = IOSQE_FIXED_FILE | IOSQE_ASYNC};
    return ask_ring(ring, &s);
}

#define DEVICE    (1u << JAIL_FILTER_DEVICE)
#define NO_DEVICE (1u << JAIL_FILTER_VCPU | 1u << JAIL_FILTER_CONTROL | 1u << JAIL_FILTER_HELPER)
#define ONE(name)            \
    {                        \
#name, name, 0, 0, 0 \
    }

const struct deed deeds[] = {
    {"calls", call, 0, NUMBERS, 0},
    {"x32", x32, 0, NUMBERS + 48, 0}, // it has 48 numbers of its own above
    {"ring", ring_op, 0, 72, DEVICE},
    ONE(int80),
    ONE(map_exec),
    ONE(map_write_exec),
    ONE(make_exec),
    ONE(make_thread),
    ONE(make_process),
    ONE(new_namespace),
    ONE(make_socket),
    ONE(make_inet),
    ONE(exec_self),
    ONE(open_passwd),
    ONE(open_memory),
    ONE(open_init),
    ONE(open_disk),
    ONE(open_up),
    ONE(open_old_plainly),
    ONE(open_by_handle),
    ONE(rename_out),
    ONE(rename_in),
    ONE(unlink_out),
    ONE(kill_all),
    ONE(kill_init),
    ONE(pin_over),
    ONE(dup_over),
    ONE(dup_pinned),
    ONE(own_signals),
    ONE(raise_limit),
    ONE(type_in),
    ONE(second_vm),
    ONE(another_vcpu),
    ONE(kvm_device),
    ONE(set_registers),
    ONE(second_ring),
    ONE(ring_buffers),
    ONE(ring_files),
    ONE(ring_freed),
    ONE(ring_credentials),
    {"ring_entered", ring_entered, 0, 0, NO_DEVICE},
    ONE(own_filter),
    ONE(debug_parent),
    {"ring_plain_file", ring_plain_file, 0, 0, DEVICE},
    {"ring_beyond", ring_beyond, 0, 0, DEVICE},
    {"ring_linked", ring_linked, 0, 0, DEVICE},
    {NULL, NULL, 0, 0, 0},
};
