// SPDX-License-Identifier: Apache-2.0
// mayflyctl pool, inside: pool.c serves callers and keeps the number, poolshell.c makes and reaps
// shells, poolcmd.c reads the command line. One thread.
#ifndef CTL_POOL_H
#define CTL_POOL_H

#include "api-socket/ctl/clone.h"

#define SHELLS_MAX 8192
#define TAKERS_MAX 32
#define REQUEST    65536
#define QUIET_NS   (20 * 1000000ULL) // after a take: the caller's load needs the CPUs more

enum shell_state { SHELL_NONE, SHELL_CONNECTING, SHELL_STARTING, SHELL_IDLE, SHELL_TAKEN };

struct shell {
    enum shell_state state;
    pid_t pid;
    int api; // while it starts
    uint64_t since;
    char sock[CTL_PATH];
};

struct taker {
    int fd; // -1: free
    size_t len;
    bool asked; // its request is here
    uint64_t want;
    char *text;
};

struct pool {
    const char *dir, *mayfly, *jail, *uid, *gid;
    struct opt_list allow, flags;
    uint64_t size, mem, vcpus;
    bool jailed, own_uids;
    int listener, signals;
    uint64_t serial, last_take;
    unsigned failures; // in a row
    struct shell s[SHELLS_MAX];
    struct taker t[TAKERS_MAX];
};

uint64_t pool_count(const struct pool *p, enum shell_state st);
int pool_serve(struct pool *p, struct err *e); // until SIGTERM or SIGINT

int shell_make(struct pool *p, struct err *e);
void shell_look_for(const struct pool *p,
                    struct shell *s);                  // a jailed one, until its socket is there
void shell_on_answer(struct pool *p, struct shell *s); // of PUT /machine-config
void shell_signal(const struct shell *s, int sig);     // nothing when it has no process
void shell_forget(struct shell *s);
void shell_reap(struct pool *p); // every one that has ended

#endif
