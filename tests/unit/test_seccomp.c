// SPDX-License-Identifier: Apache-2.0
// The generated filters against the kernel: what is declared passes, everything else dies (J5, J6,
// J9).
#include "jail/gen/rules.h"

#include <sched.h>
#include <check.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define BOGUS 0xfffffffffffffff1ULL // no descriptor, no address, no length, no flag word

enum verdict { RAN, DENIED };

// Makes one call under the filter in a process of its own. Whatever the call does (fail, crash, end
// the process, block until the alarm) is "ran"; only the filter kills with SIGSYS (exit 148 in
// DEBUG=1).
static enum verdict try_call(enum jail_filter f, long nr, const uint64_t a[6])
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (!pid) {
        alarm(1);
        if (jail_filter_install(JAIL_FILTER_ALL, NULL))
            _exit(99);
        if (f != JAIL_FILTER_ALL && jail_filter_install(f, NULL))
            _exit(98);
        // Not syscall(): the child must reach the kernel's end of process without a second call.
        register uint64_t r10 __asm__("r10") = a[3];
        register uint64_t r8 __asm__("r8") = a[4];
        register uint64_t r9 __asm__("r9") = a[5];
        long r = nr;
        __asm__ volatile("syscall"
                         : "+a"(r)
                         : "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                         : "rcx", "r11", "memory");
        __builtin_trap();
    }
    int st;
    ck_assert_int_eq(waitpid(pid, &st, 0), pid);
    ck_assert(!(WIFEXITED(st) && (WEXITSTATUS(st) == 98 || WEXITSTATUS(st) == 99)));
    bool denied =
        (WIFSIGNALED(st) && WTERMSIG(st) == SIGSYS) || (WIFEXITED(st) && WEXITSTATUS(st) == 148);
    return denied ? DENIED : RAN;
}

// What the declarations promise, computed without BPF.
static bool declared(enum jail_filter f, long nr, const uint64_t a[6])
{
    if (f == JAIL_FILTER_ALL && nr == SCMP_SYS(clone3))
        return true; // answered with ENOSYS
    if (nr == SCMP_SYS(restart_syscall))
        return true; // answered with EINTR
    if (f != JAIL_FILTER_ALL && nr == SCMP_SYS(brk))
        return true; // answered with 0: the heap cannot grow
#ifdef MAYFLY_DEBUG  // what naming the denied call takes
    if (nr == SCMP_SYS(exit_group) || (nr == SCMP_SYS(write) && (uint32_t)a[0] == 2))
        return true;
#endif
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
        const struct rule *r = &rules[i];
        if (r->nr != nr || !wanted(r, f) || ((uint32_t)a[0] & r->fd.mask) != r->fd.base)
            continue;
        uint64_t v = r->op == OP_ANY ? 0 : a[arg_of(r)];
        bool same = r->nr == SCMP_SYS(clone) ? v == r->value : (uint32_t)v == (uint32_t)r->value;
        if (r->op == OP_ANY || (r->op == OP_EQUAL && same) ||
            (r->op == OP_CLEAR && !(v & r->value)))
            return true;
    }
    return false;
}

// J5: every number there is, and some there are not.
START_TEST(every_number)
{
    enum jail_filter f = (enum jail_filter)_i;
    const uint64_t a[6] = {BOGUS, BOGUS, BOGUS, BOGUS, BOGUS, BOGUS};
    for (long nr = 0; nr < 480; nr++) {
        if (nr == 335 ||
            nr == 336) // uretprobe, uprobe: the kernel exempts them, they end in SIGILL
            continue;
        ck_assert_msg((try_call(f, nr, a) == RAN) == declared(f, nr, a),
                      "filter %d: system call %ld with bogus arguments", f, nr);
    }
}
END_TEST

// J6: each declared rule as declared, then with its argument and its descriptor perturbed.
START_TEST(every_rule)
{
    enum jail_filter f = (enum jail_filter)_i;
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
        const struct rule *r = &rules[i];
        if (!wanted(r, f) || (r->op == OP_ANY && !r->fd.mask))
            continue;
        uint64_t values[] = {r->op == OP_CLEAR ? 0 : r->value, r->value ^ 1, r->value << 1 | 1};
        uint64_t fds[] = {r->fd.mask ? r->fd.base : BOGUS, r->fd.base - 1, r->fd.base + 32};
        for (size_t v = 0; v < ARRAY_SIZE(values); v++)
            for (size_t d = 0; d < (r->fd.mask ? ARRAY_SIZE(fds) : 1); d++) {
                uint64_t a[6] = {fds[d], BOGUS, BOGUS, BOGUS, BOGUS, BOGUS};
                if (r->op != OP_ANY)
                    a[arg_of(r)] = values[v];
                ck_assert_msg((try_call(f, r->nr, a) == RAN) == declared(f, r->nr, a),
                              "filter %d: %s of %s, value %#llx, descriptor %lld", f, r->name,
                              r->where, (unsigned long long)values[v], (long long)fds[d]);
            }
    }
}
END_TEST

// J9: no declaration anywhere can bring executable memory, a program or a socket back.
START_TEST(never)
{
    enum jail_filter f = (enum jail_filter)_i;
    const uint64_t map[6] = {0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, BOGUS, 0};
    ck_assert_int_eq(try_call(f, SCMP_SYS(mmap), map), DENIED);
    const uint64_t protect[6] = {0, 4096, PROT_EXEC, 0, 0, 0};
    ck_assert_int_eq(try_call(f, SCMP_SYS(mprotect), protect), DENIED);
    const uint64_t bogus[6] = {BOGUS, BOGUS, BOGUS, BOGUS, BOGUS, BOGUS};
    static const int calls[] = {SCMP_SYS(execve), SCMP_SYS(execveat), SCMP_SYS(fork),
                                SCMP_SYS(vfork),  SCMP_SYS(ptrace),   SCMP_SYS(unshare),
                                SCMP_SYS(setns),  SCMP_SYS(bpf),      SCMP_SYS(open)};
    for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
        ck_assert_int_eq(try_call(f, calls[i], bogus), DENIED);
    const uint64_t forked[6] = {SIGCHLD, 0, 0, 0, 0, 0};
    ck_assert_int_eq(try_call(f, SCMP_SYS(clone), forked), DENIED);
    if (f != JAIL_FILTER_ALL) {
        const uint64_t thread[6] = {THREAD, 0, 0, 0, 0, 0};
        ck_assert_int_eq(try_call(f, SCMP_SYS(clone), thread), DENIED);
        const uint64_t sock[6] = {AF_UNIX, SOCK_STREAM, 0, 0, 0, 0};
        ck_assert_int_eq(try_call(f, SCMP_SYS(socket), sock), DENIED);
        // What sets up or restores a vCPU ends when the microVM is configured.
        static const unsigned long sets[] = {
            KVM_SET_REGS,   KVM_SET_SREGS,    KVM_SET_MSRS,        KVM_SET_LAPIC,
            KVM_SET_XSAVE,  KVM_SET_XCRS,     KVM_SET_FPU,         KVM_SET_CPUID,
            KVM_SET_CPUID2, KVM_SET_MP_STATE, KVM_SET_VCPU_EVENTS, KVM_SET_DEBUGREGS};
        for (size_t i = 0; i < ARRAY_SIZE(sets); i++) {
            const uint64_t set[6] = {JAIL_FD_VCPU, sets[i], 0, 0, 0, 0};
            ck_assert_int_eq(try_call(f, SCMP_SYS(ioctl), set), DENIED);
        }
        const uint64_t vcpu[6] = {JAIL_FD_VM, KVM_CREATE_VCPU, 0, 0, 0, 0};
        ck_assert_int_eq(try_call(f, SCMP_SYS(ioctl), vcpu), DENIED);
        const uint64_t vm[6] = {JAIL_FD_KVM, KVM_CREATE_VM, 0, 0, 0, 0};
        ck_assert_int_eq(try_call(f, SCMP_SYS(ioctl), vm), DENIED);
    }
}
END_TEST

// J5: x32 numbers reach the same kernel code by another door.
START_TEST(x32)
{
    const uint64_t a[6] = {BOGUS, BOGUS, BOGUS, BOGUS, BOGUS, BOGUS};
    for (long nr = 0x40000000; nr < 0x40000000 + 560; nr += 7)
        ck_assert_msg(try_call((enum jail_filter)_i, nr, a) == DENIED, "x32 call %ld", nr);
}
END_TEST

// J5: so does the 32-bit entry. 20 is getpid there; a kernel without it answers SIGSEGV.
START_TEST(int80)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (!pid) {
        if (jail_filter_install(JAIL_FILTER_ALL, NULL))
            _exit(99);
        long r = 20;
        __asm__ volatile("int $0x80" : "+a"(r)::"memory");
        _exit(0);
    }
    int st;
    ck_assert_int_eq(waitpid(pid, &st, 0), pid);
    ck_assert(WIFSIGNALED(st) && (WTERMSIG(st) == SIGSYS || WTERMSIG(st) == SIGSEGV));
}
END_TEST

_Noreturn static void spin(void)
{
    for (;;) // ending takes system calls that this kind need not have
        __builtin_ia32_pause();
}

static int under_filter(void *arg)
{
    int *shared = arg;
    __atomic_store_n(shared, jail_filter_install(JAIL_FILTER_VCPU, NULL) ? -1 : 1,
                     __ATOMIC_RELEASE);
    spin();
}

// Filter A leaves room for a thread, made as musl's pthread_create makes it, and for its own filter. This test
// stands on glibc, so it asks the kernel itself, with just enough of thread-local storage.
START_TEST(threads)
{
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(page, MAP_FAILED);
    int *shared = (int *)(void *)page;
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (!pid) {
        alarm(5);
        static _Alignas(64) uint8_t stack[65536], storage[8192];
        void *tls = storage + 4096;
        memcpy(storage + 4096, &tls, sizeof(tls));
        memcpy(storage + 4096 + 16, &tls, sizeof(tls));
        if (jail_filter_install(JAIL_FILTER_ALL, NULL) ||
            clone(under_filter, stack + sizeof(stack), THREAD, shared, &shared[1], tls,
                  &shared[2]) < 0)
            _exit(1);
        while (!__atomic_load_n(shared, __ATOMIC_ACQUIRE))
            __builtin_ia32_pause();
        __builtin_trap();
    }
    int st;
    ck_assert_int_eq(waitpid(pid, &st, 0), pid);
    ck_assert_msg(*shared == 1, "status %#x, thread said %d", st, *shared);
}
END_TEST

// The ceilings that docs/threat-model.md promises: distinct system calls per kind, and of their union.
START_TEST(budget)
{
    static const unsigned max[] = {
        [K_vcpu] = 8, [K_device] = 14, [K_control] = 22, [K_helper] = 22};
    unsigned all = 0, of[K_COUNT] = {0};
    for (int nr = 0; nr < 1024; nr++) {
        bool has[K_COUNT] = {0};
        for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
            has[rules[i].kind] |= rules[i].nr == nr;
        for (int k = 0; k < K_COUNT; k++)
            of[k] += has[k];
        all += has[K_vcpu] || has[K_device] || has[K_control] || has[K_helper];
    }
    for (size_t k = 0; k < ARRAY_SIZE(max); k++)
        ck_assert_msg(of[k] <= max[k], "%s: %u system calls, %u promised", kind_name[k], of[k],
                      max[k]);
    ck_assert_msg(all <= 29, "union: %u system calls, 29 promised", all);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("seccomp");
    TCase *t = tcase_create("filters");
    tcase_set_timeout(t, 120);
#ifdef MAYFLY_SANITIZE
    int native = 0; // those filters allow every native call, so only foreign entries can be judged
    puts(
        "skipped every_number, every_rule, never: SANITIZE= builds allow every native system call");
#else
    int native = JAIL_FILTER_COUNT;
#endif
    tcase_add_loop_test(t, every_number, 0, native);
    tcase_add_loop_test(t, every_rule, 0, native);
    tcase_add_loop_test(t, never, 0, native);
    tcase_add_loop_test(t, x32, 0, JAIL_FILTER_COUNT);
    tcase_add_test(t, int80);
    tcase_add_test(t, budget);
    tcase_add_test(t, threads);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
