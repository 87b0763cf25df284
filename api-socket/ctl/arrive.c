// SPDX-License-Identifier: Apache-2.0
// One microVM that arrives: its connections.

#include "api-socket/ctl/mig.h"

#define HALF_NS   (15 * NSEC_PER_SEC) // for the other connection
#define NOTICE_NS (12 * NSEC_PER_SEC) // a monitor finds a silent link in 5 s

// ---- under the lock

static struct arrival *find(struct receiver *r, const char *session)
{
    for (unsigned i = 0; i < ARRIVALS_MAX; i++)
        if (r->a[i].state != ARRIVAL_NONE && !strcmp(r->a[i].session, session))
            return &r->a[i];
    return NULL;
}

static void forget(struct arrival *a)
{
    close_fdp(&a->fd[0]);
    close_fdp(&a->fd[1]);
    *a = (struct arrival){.fd = {-1, -1}};
}

static struct arrival *admit(struct receiver *r, const struct link_line *l, struct err *e)
{
    struct arrival *a = NULL;

    for (unsigned i = 0; i < ARRIVALS_MAX; i++) {
        struct arrival *x = &r->a[i];
        if (x->state == ARRIVAL_HALF && now_ns() - x->since > HALF_NS)
            forget(x);
        bool busy = x->state == ARRIVAL_HALF || x->state == ARRIVAL_HERE;
        if (busy && !r->dir)
            return err_set(e, EBUSY, "another microVM is on its way to this receiver"), NULL;
        if (busy && !strcmp(x->name, l->name))
            return err_set(e, EBUSY, "another %s is on its way", l->name), NULL;
        if (!busy && (!a || (a->state != ARRIVAL_NONE && x->since < a->since)))
            a = x;
    }
    if (!a)
        return err_set(e, EBUSY, "%d microVMs are on their way already", ARRIVALS_MAX), NULL;
    forget(a);
    a->state = ARRIVAL_HALF;
    a->since = now_ns();
    a->show = (struct show){.quiet = r->quiet, .lines = r->dir != NULL};
    snprintf(a->session, sizeof(a->session), "%s", l->session);
    snprintf(a->name, sizeof(a->name), "%s", l->name);
    return a;
}

// The connection is kept; with the other, both are handed out in fd.
static struct arrival *pair_up(struct receiver *r, const struct link_line *l, int conn, int fd[2],
                               struct err *e)
{
    struct arrival *a = find(r, l->session);
    bool again = !strcmp(l->verb, "again");

    if (again && (!a || a->state == ARRIVAL_HALF))
        return err_set(e, ENOENT, "nothing is known of this session"), NULL;
    if (again && a->state == ARRIVAL_OVER && a->status != MOVE_OK)
        return err_set(e, EPERM, "it is over: %.200s", a->e.msg), NULL;
    if (!again && a && a->state != ARRIVAL_HALF)
        return err_set(e, EBUSY, "this session has begun already"), NULL;
    if (!a && !(a = admit(r, l, e)))
        return NULL;
    close_fdp(&a->fd[l->channel]); // of an attempt that did not come to its end
    a->fd[l->channel] = conn;
    fd[0] = fd[1] = -1;
    if (a->fd[0] < 0 || a->fd[1] < 0)
        return a;
    for (int i = 0; i < 2; i++)
        fd[i] = steal_fd(&a->fd[i]);
    if (!again)
        a->state = ARRIVAL_HERE;
    return a;
}

static void begin(struct receiver *r, struct arrival *a, int fd[2])
{
    int rc = arrival_start(r, a, &a->e);

    if (rc == 0) {
        rc = arrival_tell(r, a, fd, &a->e);
        if (rc)
            arrival_stop(r, a);
    }
    link_answer(fd[LINK_BULK], rc ? a->e.msg : NULL, NULL);
    close_fdp(&fd[0]);
    close_fdp(&fd[1]);
    if (rc) { // nothing was moved: the next may come
        fprintf(stderr, "mayflyctl: %s: refused: %s\n", a->name, a->e.msg);
        pthread_mutex_lock(&r->lock);
        forget(a);
        pthread_mutex_unlock(&r->lock);
        return;
    }
    show_line(&a->show, a->name, "arrives");
    arrival_over(r, a, arrival_watch(r, a));
}

// The source may know before this monitor that the link is broken.
static void again(struct receiver *r, struct arrival *a, int fd[2])
{
    struct show show = {.quiet = r->quiet}; // a->show is the other thread's
    struct mig_view v;
    struct err e = {0};
    int rc = -ETIMEDOUT;

    err_set(&e, 0, "its monitor here does not take the link for broken");
    for (uint64_t until = now_ns() + NOTICE_NS; rc && now_ns() < until; move_nap(2)) {
        struct err now = {0};
        if (view_get(a->sock, &v, &now) ||
            ((view_is(&v, "paused") || view_is(&v, "done")) &&
             (rc =
                  view_put(a->sock, "recover",
                           "{\"channels\":{\"urgent\":\"fd:0\",\"bulk\":\"fd:1\"}}", fd, 2, &now))))
            e = now;
    }
    link_answer(fd[LINK_BULK], rc ? e.msg : NULL, NULL);
    show_line(&show, a->name, rc ? e.msg : "the source is back");
    close_fdp(&fd[0]);
    close_fdp(&fd[1]);
}

void arrive_channel(struct receiver *r, const struct link_line *l, int conn)
{
    struct err e = {0};
    int fd[2];

    pthread_mutex_lock(&r->lock);
    struct arrival *a = pair_up(r, l, conn, fd, &e);
    pthread_mutex_unlock(&r->lock);
    if (!a) {
        link_answer(conn, e.msg, NULL);
        close(conn);
    } else if (fd[0] >= 0 && !strcmp(l->verb, "again"))
        again(r, a, fd);
    else if (fd[0] >= 0)
        begin(r, a, fd);
}

// Only a target that says so itself has everything; it may hear of the last page later than the source sent it.
void arrive_end(struct receiver *r, const struct link_line *l, int conn)
{
    uint64_t until = now_ns() + 5 * NSEC_PER_SEC;
    struct err e = {0};
    char status[sizeof(((struct mig_view *)0)->json)];
    bool done = false, wait = true;

    while (wait && !done && now_ns() < until) {
        pthread_mutex_lock(&r->lock);
        struct arrival *a = find(r, l->session);
        done = a && a->got && view_is(&a->v, "done");
        wait = a && a->state == ARRIVAL_HERE;
        if (!done)
            err_set(&e, 0, "%.150s", a ? a->v.state : "nothing is known of this session");
        else
            snprintf(status, sizeof(status), "%s", a->v.json);
        pthread_mutex_unlock(&r->lock);
        if (wait && !done)
            move_nap(2);
    }
    link_answer(conn, done ? NULL : e.msg, done ? status : NULL);
    close(conn);
    pthread_mutex_lock(&r->lock);
    struct arrival *a = find(r, l->session);
    if (a && done)
        a->told = true;
    pthread_mutex_unlock(&r->lock);
}

void arrive_resume(struct receiver *r)
{
    struct arrival *a = &r->a[0];

    pthread_mutex_lock(&r->lock);
    a->state = ARRIVAL_HERE;
    a->show = (struct show){.quiet = r->quiet};
    snprintf(a->session, sizeof(a->session), "%s", r->session);
    snprintf(a->sock, sizeof(a->sock), "%s", r->sock);
    move_name(r->sock, a->name);
    pthread_mutex_unlock(&r->lock);
    arrival_over(r, a, arrival_watch(r, a));
}
