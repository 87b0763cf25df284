// SPDX-License-Identifier: Apache-2.0
// The helper thread: one job at a time, parked in between.
#include "vmm/helper.h"

#include <limits.h>

#define HELPER_STACK (64 * KIB)

// #syscalls:helper futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE) rt_sigprocmask exit
static void *helper_main(void *arg)
{
    struct helper *h = arg;

    if (h->started(h->ctx))
        thread_end();
    pthread_mutex_lock(&h->lock);
    while (!h->quit) {
        if (!h->job) {
            pthread_cond_wait(&h->cond, &h->lock);
            continue;
        }
        pthread_mutex_unlock(&h->lock);
        h->job(h->arg);
        pthread_mutex_lock(&h->lock);
        h->job = NULL;
        pthread_cond_broadcast(&h->cond);
    }
    pthread_mutex_unlock(&h->lock);
    thread_end();
}

int helper_start(struct helper *h, int (*started)(void *), void *ctx, struct err *e)
{
    pthread_attr_t a;

    memset(h, 0, sizeof(*h));
    h->started = started;
    h->ctx = ctx;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->cond, NULL);
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, MAX(HELPER_STACK, (size_t)PTHREAD_STACK_MIN));
    int rc = pthread_create(&h->thread, &a, helper_main, h);
    pthread_attr_destroy(&a);
    h->made = rc == 0;
    return rc ? err_set(e, rc, "cannot start the helper thread: %s", strerror(rc)) : 0;
}

int helper_submit(struct helper *h, void (*job)(void *), void *arg)
{
    int rc = -EBUSY;

    pthread_mutex_lock(&h->lock);
    if (h->made && !h->job) {
        h->job = job;
        h->arg = arg;
        pthread_cond_broadcast(&h->cond);
        rc = 0;
    }
    pthread_mutex_unlock(&h->lock);
    return rc;
}

void helper_wait(struct helper *h)
{
    if (!h->made)
        return;
    pthread_mutex_lock(&h->lock);
    while (h->job)
        pthread_cond_wait(&h->cond, &h->lock);
    pthread_mutex_unlock(&h->lock);
}

void helper_end(struct helper *h)
{
    if (!h->made)
        return;
    helper_wait(h);
    pthread_mutex_lock(&h->lock);
    h->quit = true;
    pthread_cond_broadcast(&h->cond);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    h->made = false;
}
