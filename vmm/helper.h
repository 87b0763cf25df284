// SPDX-License-Identifier: Apache-2.0
// The one helper thread: parked from the start of the microVM, for what must go on while the guest runs and would
// hold the control thread up (migration, a page server's watch, a working set). It exists before the final filter forbids threads.
#ifndef VMM_HELPER_H
#define VMM_HELPER_H

#include <pthread.h>

#include "vmm/base.h"

struct helper {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    void (*job)(void *);
    void *arg;
    int (*started)(void *ctx); // first thing on the thread: its filter
    void *ctx;
    bool made, quit;
};

int helper_start(struct helper *h, int (*started)(void *), void *ctx, struct err *e);
// Control thread: runs job(arg) on the helper; -EBUSY while another runs.
int helper_submit(struct helper *h, void (*job)(void *), void *arg);
void helper_wait(struct helper *h); // until it is parked again
void helper_end(struct helper *h);  // waits for a job under way, then joins

#endif
