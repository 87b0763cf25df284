// SPDX-License-Identifier: Apache-2.0
// The tour guide of mayflyctl: a client of the monitor, outside the trusted base.
//
// Files: main.c (subcommands), opts.c (command line), client.c (HTTP over a Unix socket, descriptors
// with it), raw.c, snapfile.c (describe, merge) and merge.c, net.c (namespaces, taps), spawn.c (monitors),
// pool.c and poolwire.c (idle shells), clone*.c, ask.c, end.c; mig.h names those of migration. It reaches the monitor by the wire alone; of the
// monitor's code it uses the readers of snapshot files and the numbers of handed-over descriptors.
// Errors: as in the monitor, -errno and a sentence; a subcommand returns the exit status.
#ifndef CTL_CTL_H
#define CTL_CTL_H

#include "vmm/base.h"

#define CTL_PATH 256

// ---- command line

enum opt_kind { OPT_FLAG, OPT_STR, OPT_NUM, OPT_LIST };
struct opt_list {
    unsigned n;
    const char *v[16];
};
struct opt {
    const char *name; // "--name"
    enum opt_kind kind;
    void *at; // bool, const char *, uint64_t, struct opt_list
    const char *help;
};

// Takes the options out of argv and leaves the rest, in order, in rest (at most max of them).
// Returns how many there are, or -1 after saying what is wrong.
int opts_parse(const struct opt *o, size_t n, int argc, char **argv, const char **rest, int max);
void opts_help(FILE *to, const char *usage, const struct opt *o, size_t n);
int ctl_fail(const struct err *e); // says it; 1

int cmd_raw(int argc, char **argv);
int cmd_snapshot(int argc, char **argv);
int cmd_netns(int argc, char **argv);
int cmd_pool(int argc, char **argv);
int cmd_clone(int argc, char **argv);
int cmd_ask(int argc, char **argv);
int cmd_end(int argc, char **argv);

// ---- the API

#define API_FDS_MAX 16

struct api_reply {
    int status;
    char body[64 * KIB + 1];
};

int api_connect(const char *path, struct err *e);
// body NULL: none. The descriptors go with the request's bytes: "fd:0" is the first.
int api_send(int sock, const char *method, const char *path, const char *body, const int *fds,
             unsigned nfds, struct err *e);
int api_receive(int sock, struct api_reply *r, struct err *e);
// The monitor's own sentence as an error.
int api_fault(const char *what, const struct api_reply *r, struct err *e);
// All of the above; an answer of 400 and above is an error with the monitor's own sentence.
int api_call(int sock, const char *method, const char *path, const char *body, struct err *e);
// Length of the whole first message in buf: 0 if it is not complete, -1 if it is no HTTP answer.
// eof: nothing follows, so a body without a length ends here.
long http_complete(const char *buf, size_t len, bool eof, int *status, size_t *body);

// ---- network namespaces

struct net_plan { // the same in every namespace, so that a guest cannot tell them apart
    const char *tap;
    uint32_t host, guest; // IPv4, host order
    unsigned prefix_len;
    uint8_t host_mac[6];
    uint8_t guest_mac[6];
    bool has_guest_mac; // then the host need not ask for it
};

int net_parse(struct net_plan *p, const char *host, const char *guest, struct err *e);
// A namespace under /run/netns with its tap up and addressed; the caller's thread moves into it.
int net_make(const char *name, const struct net_plan *p, struct err *e);
void net_remove(const char *name);
int net_enter(const char *name, struct err *e); // the calling thread alone
// In the caller's namespace: an attached tap, or a connection under way to the guest.
int net_open_tap(const char *tap, struct err *e);
int net_probe(const struct net_plan *p, uint16_t port, struct err *e);

// ---- monitors

struct spawn {
    const char *mayfly; // the monitor's binary
    const char *id;
    const char
        *sock; // its API socket; made here and handed over, so that it can be connected to at once
    const char *log;              // where its messages go, or NULL: to ours
    const struct opt_list *allow; // beneath which it may open files; NULL or none: anywhere
    const struct opt_list *dirs;  // spawn_jailed alone, as those below: what is seen inside
    const char *jail, *uid, *gid;
    const struct opt_list *flags; // FLAG=VALUE for mayfly-jail
};

int spawn_listen(const char *path, struct err *e);
int spawn_monitor(const struct spawn *s, int listener, pid_t *pid, struct err *e);
int spawn_jailed(const struct spawn *s, pid_t *pid, struct err *e); // the jail makes the socket
int make_dirs(const char *path, struct err *e);                     // as mkdir -p
const char *beside_me(const char *name, char buf[CTL_PATH]); // a binary in mayflyctl's own folder
void raise_limits(
    void); // descriptors: all that may be had; the table grown before there are threads

#endif
