// SPDX-License-Identifier: Apache-2.0
// Moving microVMs between hosts, outside the monitor, which never makes a connection itself. docs/migrating.md tells
// how it is used, docs/migration.md what the monitors say to each other.
//
// Files: miglink.c the two TCP connections and the line that opens each; migview.c GET /migration, progress;
// migmove.c one microVM, at its source; migrate.c and drain.c its commands; pull.c the target that connects itself; receive.c the listener and its command;
// arrive.c the connections of one microVM, at its target, arrival.c its monitor there and its end.
//
// Each connection begins with one line of text:
//     mayfly-move 1 VERB SESSION CHANNEL NAME\n
// open and again bring channel urgent or bulk, and are answered on bulk ("ok\n" or "no WHY\n"), where a target sends
// nothing afterwards; then both connections are the monitors'. pull is open from the other side: the target connects,
// and again is its own then. end (channel "-") is answered "ok STATUS\n" once the
// target has everything. SESSION, 32 hexadecimal digits by chance, is what lets a source come back.
#ifndef CTL_MIG_H
#define CTL_MIG_H

#include <sys/socket.h>

#include "api-socket/ctl/ctl.h"

// Exit statuses: 1 is "it is where it was", 2 wrong usage.
enum { MOVE_OK = 0, MOVE_STAYED = 1, MOVE_BETWEEN = 3 };

#define MOVE_SESSION 33
#define MOVE_NAME    65
#define MOVE_LINE    400

enum { LINK_URGENT, LINK_BULK, LINK_NONE };

struct link_addr {
    struct sockaddr_storage a;
    socklen_t len;
};

struct link_line {
    char verb[8], session[MOVE_SESSION], name[MOVE_NAME];
    int channel;
};

// HOST:PORT, [ADDRESS]:PORT, or :PORT to listen everywhere.
int link_resolve(const char *text, bool listener, struct link_addr *to, struct err *e);
int link_listen(const char *text, struct err *e);
// Source: both connections, agreed with the receiver. buffer: SO_SNDBUF of bulk, in KiB.
int link_open(const struct link_addr *to, const char *verb, const char *session, const char *name,
              uint64_t buffer, int fd[2], struct err *e);
int link_end(const struct link_addr *to, const char *session, char *status, size_t size,
             struct err *e);
// Target: the line of a connection just accepted; and its answer (why NULL: ok).
int link_hear(int fd, struct link_line *l, struct err *e);
void link_answer(int fd, const char *why, const char *status);
bool link_name_ok(const char *name);
void link_session(char session[MOVE_SESSION]);

// ---- what a monitor says of a migration

struct mig_view {
    char role[8], stage[16], state[12], mode[12], error[200];
    uint64_t rounds, bytes, pages, total, remaining, requests, faults, recoveries, downtime_us,
        total_us;
    char json[4096];
};

int view_get(const char *sock, struct mig_view *v, struct err *e);
int view_vm_state(const char *sock, char state[16], struct err *e); // of GET /
int view_put(const char *sock, const char *what, const char *body, const int *fds, unsigned n,
             struct err *e); // PUT /migration/what
bool view_is(const struct mig_view *v, const char *state);

struct show { // on standard error: a bar on a terminal, else a line for each change
    bool quiet, lines, drawn;
    char last[40];
};

void show_move(struct show *s, const char *name, const struct mig_view *v);
void show_bar(uint64_t part, uint64_t whole, const char *text); // redraws it, on a terminal alone
void show_line(struct show *s, const char *name, const char *text);
void print_text(FILE *to, const char *text);   // what a peer said, without control characters
void print_string(FILE *to, const char *text); // as JSON

bool stop_asked(int signals); // SIGINT or SIGTERM is pending
int stop_watch(void);         // blocks both for all threads, returns their signalfd
int move_thread(void *(*run)(void *), void *arg, pthread_t *t); // t NULL: detached
void move_nap(unsigned ms);

// ---- one move

struct move_how {
    const char *mode, *late, *verify, *arbiter, *arbiters; // a file; a directory of NAME.arbiter
    bool unarbitrated, keep;
    uint64_t downtime_ms, bandwidth, timeout_ms, retry_s, buffer;
};

struct move {
    const struct move_how *how;
    struct link_addr to;
    const char *sock;
    char name[MOVE_NAME], session[MOVE_SESSION];
    bool again; // it is under way already: session is that of its beginning
    int signals;
    struct show show;
    int status; // MOVE_*
    uint64_t total_ns;
    struct mig_view v;
    struct err e;
};

#define MOVE_OPTS 10
void move_defaults(struct move_how *h);
void move_options(struct move_how *h, struct opt o[MOVE_OPTS]);
int move_check(const struct move_how *h);               // 0, or -1 after saying what is wrong
void move_run(struct move *m);                          // to its end; the result stands in m
void move_name(const char *sock, char name[MOVE_NAME]); // the socket's, without its ending
void move_json(const struct move *m);
// Opens NAME's record, made if it is missing; -1 without one. arbiter or a directory of them.
int move_arbiter(const char *arbiter, const char *dir, const char *name, struct err *e);

// ---- arrivals

enum arrival_state { ARRIVAL_NONE, ARRIVAL_HALF, ARRIVAL_HERE, ARRIVAL_OVER };

struct arrival {
    enum arrival_state state;
    char session[MOVE_SESSION], name[MOVE_NAME], sock[CTL_PATH];
    int fd[2]; // of an open or again whose other connection is awaited
    uint64_t since;
    pid_t pid;      // of a monitor started for it, or 0
    bool told, got; // the source was told that all is here; a first answer of the monitor came
    int status;     // MOVE_*, once it is over
    struct show show;
    struct mig_view v;
    struct err e;
};

#define ARRIVALS_MAX 64

struct receiver {
    const char *sock, *dir, *arbiter, *arbiters, *mayfly, *session;
    bool spawn, unarbitrated, any_cpu, json, quiet;
    uint64_t lease_ms, retry_s;
    const struct link_addr
        *from; // where pull came from, and comes back to; NULL: the source does that
    const char *from_text;
    struct opt_list allow, taps, drives, layers; // layers: of pull alone
    int listener, signals, wake;                 // wake: an eventfd, written when one is over
    pthread_mutex_t lock; // for what follows, but what an arrival's own thread alone uses
    unsigned hearing;
    struct arrival a[ARRIVALS_MAX];
};

bool receiver_lists_ok(
    const struct receiver *r); // --tap and --drive; else it has said what is wrong

// Own their descriptor. A thread of its own calls them; an arrival is watched in that of its second connection.
void arrive_channel(struct receiver *r, const struct link_line *l, int fd);
void arrive_end(struct receiver *r, const struct link_line *l, int fd);
void arrive_resume(struct receiver *r); // the one of --session: its monitor has begun before

// Thread of the arrival; they take r->lock themselves.
int arrival_start(struct receiver *r, struct arrival *a,
                  struct err *e);                         // its monitor, when there is none yet
void arrival_stop(struct receiver *r, struct arrival *a); // that was started for nothing
int arrival_tell(struct receiver *r, struct arrival *a, const int fd[2],
                 struct err *e);                                               // to receive
void arrival_path(const char *text, const char *name, char *out, size_t size); // %n is the name
int arrival_watch(struct receiver *r, struct arrival *a);                      // to its end: MOVE_*
void arrival_over(struct receiver *r, struct arrival *a, int status);          // says how it ended

int cmd_migrate(int argc, char **argv);
int cmd_receive(int argc, char **argv);
int cmd_drain(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_pull(int argc, char **argv);

#endif
