// SPDX-License-Identifier: Apache-2.0
// Idle monitors: started, told their size, reaped.
#include <signal.h>
#include <sys/wait.h>

#include "api-socket/ctl/pool.h"

void shell_forget(struct shell *s)
{
    close_fdp(&s->api);
    unlink(s->sock);
    *s = (struct shell){.api = -1};
}

// No process is 0, and kill(0) would end whoever started the pool.
void shell_signal(const struct shell *s, int sig)
{
    if (s->pid > 0)
        kill(s->pid, sig);
}

static int configure(const struct pool *p, struct shell *s, struct err *e)
{
    char body[128];

    snprintf(body, sizeof(body), "{\"vcpu_count\":%llu,\"mem_size_mib\":%llu}",
             (unsigned long long)p->vcpus, (unsigned long long)p->mem);
    s->state = SHELL_STARTING;
    return api_send(s->api, "PUT", "/machine-config", body, NULL, 0, e);
}

// A jail makes the socket itself, so it is looked for until it is there.
void shell_look_for(const struct pool *p, struct shell *s)
{
    struct err e;

    s->api = api_connect(s->sock, &e);
    if (s->api >= 0 && configure(p, s, &e))
        shell_signal(s, SIGTERM);
    else if (s->api < 0 && now_ns() - s->since > 10 * NSEC_PER_SEC)
        shell_signal(s, SIGKILL);
}

static int make_jailed(const struct pool *p, struct shell *s, struct spawn *sp, struct err *e)
{
    char uid[24];

    // A slot is free only when its shell has ended, so no two share a user.
    snprintf(uid, sizeof(uid), "%llu",
             strtoull(p->uid ? p->uid : "0", NULL, 10) + (unsigned long long)(s - p->s));
    sp->jail = p->jail;
    sp->uid = p->own_uids && p->uid ? uid : p->uid;
    sp->gid = p->gid;
    sp->dirs = &p->allow;
    sp->flags = &p->flags;
    s->state = SHELL_CONNECTING;
    return spawn_jailed(sp, &s->pid, e);
}

static int make_plain(const struct pool *p, struct shell *s, const struct spawn *sp, struct err *e)
{
    s->state = SHELL_STARTING;
    _cleanup_(close_fdp) int l = spawn_listen(s->sock, e);
    int rc = l < 0 ? l : spawn_monitor(sp, l, &s->pid, e);
    if (rc == 0 && (s->api = api_connect(s->sock, e)) < 0)
        rc = s->api;
    return rc ? rc : configure(p, s, e);
}

int shell_make(struct pool *p, struct err *e)
{
    struct shell *s = NULL;
    char id[40];

    for (unsigned i = 0; i < SHELLS_MAX && !s; i++)
        if (p->s[i].state == SHELL_NONE)
            s = &p->s[i];
    if (!s)
        return err_set(e, ENOSPC, "no more than %d shells", SHELLS_MAX);
    snprintf(id, sizeof(id), "shell-%llu", (unsigned long long)p->serial++);
    snprintf(s->sock, sizeof(s->sock), "%.200s/%s.sock", p->dir, id);
    s->since = now_ns();
    struct spawn sp = {.mayfly = p->mayfly, .id = id, .sock = s->sock};
    int rc = p->jailed ? make_jailed(p, s, &sp, e) : make_plain(p, s, &sp, e);
    if (rc && s->pid > 0)
        shell_signal(s, SIGTERM); // its slot is free when it was reaped
    else if (rc)
        shell_forget(s);
    return rc;
}

void shell_on_answer(struct pool *p, struct shell *s)
{
    struct api_reply r;
    struct err e = {0};

    int rc = api_receive(s->api, &r, &e);
    close_fdp(&s->api);
    s->api = -1;
    if (rc == 0 && r.status < 400) {
        s->state = SHELL_IDLE;
        p->failures = 0;
        return;
    }
    fprintf(stderr, "mayflyctl: a shell could not be made: %s\n", rc ? e.msg : r.body);
    p->failures++;
    shell_signal(s, SIGTERM);
}

void shell_reap(struct pool *p)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (unsigned i = 0; i < SHELLS_MAX; i++) {
            struct shell *s = &p->s[i];
            if (s->state == SHELL_NONE || s->pid != pid)
                continue;
            if (s->state != SHELL_TAKEN) {
                fprintf(stderr, "mayflyctl: an idle monitor ended with status %#x\n",
                        (unsigned)status);
                p->failures++;
            }
            shell_forget(s);
        }
}
