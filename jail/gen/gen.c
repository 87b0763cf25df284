// SPDX-License-Identifier: Apache-2.0
// Build-time generator: turns the collected #syscalls declarations into BPF (C source) or a table.
#include "jail/gen/rules.h"

#ifdef MAYFLY_DEBUG
#define DENY SCMP_ACT_TRAP
#else
#define DENY SCMP_ACT_KILL_PROCESS
#endif

// What would undo the jail from inside it, whoever declares it.
static const char *const never[] = {
    "execve",
    "execveat",
    "fork",
    "vfork",
    "ptrace",
    "mount",
    "process_vm_readv",
    "pidfd_getfd",
    "umount2",
    "process_vm_writev",
    "pivot_root",
    "chroot",
    "setns",
    "unshare",
    "bpf",
    "init_module",
    "open_by_handle_at",
    "finit_module",
    "keyctl",
    "kexec_load",
    "clone3",
};
// What may build the process but not stay once the microVM is configured.
static const char *const late[] = {"clone", "brk",    "restart_syscall", "socket",
                                   "open",  "openat", "seccomp",         "prctl"};

static bool in_list(const char *name, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(list[i], name))
            return true;
    return false;
}

// Policy that a declaration cannot override. Returns what is wrong, or NULL.
static const char *judge(const struct rule *r)
{
    if (r->nr < 0)
        return "is no system call of this architecture";
    if (r->op != OP_ANY && arg_of(r) < (r->fd.mask ? 1 : 0))
        return "has no telling argument beside the descriptor: write NAME(N:X)";
    if (r->kind == K_boot)
        return NULL;
    if (in_list(r->name, never, ARRAY_SIZE(never)))
        return "may never be allowed";
    if (r->kind != K_config && in_list(r->name, late, ARRAY_SIZE(late)))
        return "may be declared for boot or config only";
    if (!strcmp(r->name, "clone") && !(r->op == OP_EQUAL && r->value == THREAD))
        return "must be clone(THREAD)";
    bool prot = !strcmp(r->name, "mmap") || !strcmp(r->name, "mprotect");
    if (prot && !(r->op == OP_CLEAR && arg_of(r) == 2 && (r->value & PROT_EXEC)))
        return "must be declared with !PROT_EXEC";
    return NULL;
}

static int add_rule(scmp_filter_ctx ctx, const struct rule *r)
{
    struct scmp_arg_cmp c[2];
    unsigned n = 0;
    unsigned a = (unsigned)arg_of(r);
    // The kernel reads these arguments as 32 bits, whatever the upper half of the register holds;
    // the flags of clone are an unsigned long.
    uint64_t mask = !strcmp(r->name, "clone") ? UINT64_MAX : UINT32_MAX;
    if (r->fd.mask)
        c[n++] = SCMP_CMP64(0, SCMP_CMP_MASKED_EQ, r->fd.mask, r->fd.base);
    if (r->op == OP_EQUAL)
        c[n++] = SCMP_CMP64(a, SCMP_CMP_MASKED_EQ, mask, r->value & mask);
    if (r->op == OP_CLEAR)
        c[n++] = SCMP_CMP64(a, SCMP_CMP_MASKED_EQ, r->value, 0);
    int rc = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, r->nr, n, c);
    return rc == -EEXIST ? 0 : rc;
}

static scmp_filter_ctx build(enum jail_filter f)
{
#ifdef MAYFLY_SANITIZE
    // The sanitizers' runtime makes calls nobody declared; x32 and foreign calls stay refused.
    bool enforce = false;
#else
    bool enforce = true;
#endif
    scmp_filter_ctx ctx = seccomp_init(enforce ? DENY : SCMP_ACT_ALLOW);
    int rc = ctx ? seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS) : -ENOMEM;
    // ioctl(KVM_RUN) and io_uring_enter run BPF on each call (the kernel caches the verdict only of
    // calls whose arguments no rule reads), so they are tested first.
    static const int hot[] = {SCMP_SYS(ioctl), SCMP_SYS(io_uring_enter), SCMP_SYS(futex)};
    for (size_t i = 0; enforce && !rc && i < ARRAY_SIZE(hot); i++)
        rc = seccomp_syscall_priority(ctx, hot[i], (uint8_t)(255 - i));
    for (size_t i = 0; enforce && !rc && i < ARRAY_SIZE(rules); i++)
        if (wanted(&rules[i], f))
            rc = add_rule(ctx, &rules[i]);
    // pthread_create tries clone3 first and falls back; its arguments lie in memory, unreadable
    // here.
    if (enforce && !rc && f == JAIL_FILTER_ALL)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    // How the kernel resumes a timed wait after a stop (SIGSTOP, a debugger, a frozen cgroup). The wait
    // then ends with EINTR, which every caller is ready for.
    if (enforce && !rc)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EINTR), SCMP_SYS(restart_syscall), 0);
    // The heap does not grow any more: malloc takes 0 for "no room there" and turns to mmap.
    if (enforce && !rc && f != JAIL_FILTER_ALL)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(0), SCMP_SYS(brk), 0);
#if defined(MAYFLY_DEBUG) && !defined(MAYFLY_SANITIZE)
    // What the handler that names the denied call needs (jail/filter.c).
    if (!rc)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(exit_group), 0);
    if (!rc)
        rc = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(write), 1,
                              SCMP_CMP64(0, SCMP_CMP_MASKED_EQ, UINT32_MAX, 2));
    rc = rc == -EEXIST ? 0 : rc;
#endif
    if (rc) {
        fprintf(stderr, "gen: libseccomp: %s\n", strerror(-rc));
        exit(1);
    }
    return ctx;
}

static size_t export(scmp_filter_ctx ctx, uint64_t *insn, size_t max)
{
    FILE *t = tmpfile();
    if (!t || seccomp_export_bpf(ctx, fileno(t)) || fseek(t, 0, SEEK_SET)) {
        fprintf(stderr, "gen: cannot export the filter\n");
        exit(1);
    }
    size_t n = fread(insn, sizeof(*insn), max, t);
    fclose(t);
    return n;
}

static void emit(void)
{
    static uint64_t insn[4096]; // BPF_MAXINSNS
    printf("// Generated from the #syscalls declarations by jail/gen; do not edit.\n"
           "#include \"jail/filter.h\"\n\n");
    for (int f = 0; f < JAIL_FILTER_COUNT; f++) {
        scmp_filter_ctx ctx = build((enum jail_filter)f);
        size_t n = export(ctx, insn, ARRAY_SIZE(insn));
        seccomp_release(ctx);
        printf("static const struct sock_filter prog%d[] = {\n", f);
        for (size_t i = 0; i < n; i++)
            printf("    {0x%x, %u, %u, 0x%x},\n", (unsigned)(insn[i] & 0xffff),
                   (unsigned)(insn[i] >> 16 & 0xff), (unsigned)(insn[i] >> 24 & 0xff),
                   (unsigned)(insn[i] >> 32));
        printf("};\n\n");
    }
    printf("const struct jail_prog jail_progs[JAIL_FILTER_COUNT] = {\n");
    for (int f = 0; f < JAIL_FILTER_COUNT; f++)
        printf("    {prog%d, sizeof(prog%d) / sizeof(prog%d[0])},\n", f, f, f);
    printf("};\n");
#ifdef MAYFLY_DEBUG
    printf("\nconst char *const jail_syscall_names[512] = {\n");
    for (int nr = 0; nr < 512; nr++) {
        char *name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_X86_64, nr);
        if (name)
            printf("    [%d] = \"%s\",\n", nr, name);
        free(name);
    }
    printf("};\n");
#endif
}

// One line per system call: which kinds have it, and whether its arguments are held.
static void table(void)
{
    int count[K_COUNT] = {0}, in_final = 0;
    printf("%-20s vcpu device control helper config  arguments\n", "system call");
    for (int nr = 0; nr < 1024; nr++) {
        bool has[K_COUNT] = {0}, free_args = false;
        const char *name = NULL;
        for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
            if (rules[i].nr == nr && rules[i].kind != K_boot) {
                has[rules[i].kind] = true;
                name = rules[i].name;
                free_args |= rules[i].op == OP_ANY && !rules[i].fd.mask;
            }
        if (!name)
            continue;
        for (int k = 0; k < K_COUNT; k++)
            count[k] += has[k];
        in_final += has[K_vcpu] || has[K_device] || has[K_control] || has[K_helper];
        printf("%-20s %-4s %-6s %-7s %-6s %-6s  %s\n", name, has[K_vcpu] ? "x" : ".",
               has[K_device] ? "x" : ".", has[K_control] ? "x" : ".", has[K_helper] ? "x" : ".",
               has[K_config] ? "x" : ".", free_args ? "any" : "matched");
    }
    printf("%-20s %-4d %-6d %-7d %-6d %-6d\n", "count", count[K_vcpu], count[K_device],
           count[K_control], count[K_helper], count[K_config]);
    printf("union of the final filters: %d\n\n", in_final);
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
        printf("%-8s %s(%s%s%s%s)  %s\n", kind_name[rules[i].kind], rules[i].name,
               rules[i].op == OP_CLEAR ? "!" : "", rules[i].op == OP_ANY ? "" : rules[i].text,
               rules[i].fd.mask ? "@" : "", rules[i].fd.mask ? rules[i].fd_text : "",
               rules[i].where);
}

int main(int argc, char **argv)
{
    int bad = 0;
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
        const char *why = judge(&rules[i]);
        if (why)
            fprintf(stderr, "%s: %s %s\n", rules[i].where, rules[i].name, why);
        bad |= why != NULL;
    }
    if (bad)
        return 1;
    if (argc == 2 && !strcmp(argv[1], "--table"))
        table();
    else
        emit();
    return 0;
}
