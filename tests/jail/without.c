// SPDX-License-Identifier: Apache-2.0
// Plays a kernel that lacks a feature: without NUMBER PROGRAM ARGUMENT... runs the program where that system call
// answers ENOSYS; NUMBER:ARG0 only with that first argument, NUMBER::ARG1 only with that second one, NUMBER+BITS only
// with one of these bits in the first (EINVAL then).
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    char *end;
    unsigned nr = (unsigned)strtoul(argv[1], &end, 0);
    bool bits = *end == '+', some = bits || *end == ':', second = some && end[1] == ':';
    unsigned arg = some ? (unsigned)strtoul(end + 1 + second, NULL, 0) : 0;
    struct sock_filter insn[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 some ? (unsigned)offsetof(struct seccomp_data, args[second])
                      : (unsigned)offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | (bits ? BPF_JSET : BPF_JEQ) | BPF_K, some ? arg : nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)(some ? EINVAL : ENOSYS)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {.len = sizeof(insn) / sizeof(insn[0]), .filter = insn};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)) {
        perror("without");
        return 2;
    }
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 2;
}
