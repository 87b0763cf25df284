// SPDX-License-Identifier: Apache-2.0
// HTTP/1.1 over the guest's TCP: one request at a time on a connection, kept alive, answers of any
// length.
#ifndef TESTS_GUEST_HTTP_H
#define TESTS_GUEST_HTTP_H

#include "blk.h"
#include "tcp.h"

// Answers the request of c. The text must fit HTTP_OUT with its header.
__attribute__((format(printf, 4, 5))) void http_reply(struct conn *c, int status, const char *type,
                                                      const char *f, ...);
// Header now, then n bytes of a body that http_fill makes: a pattern, or memory that stays until
// api_gone.
void http_reply_body(struct conn *c, enum http_body body, const void *memory, uint64_t n);
bool http_is(const struct conn *c, const char *method, const char *path); // path up to ? or end
const char *http_query(const struct conn *c, const char *key); // value behind key= or key, or NULL
uint64_t http_query_u64(const struct conn *c, const char *key, uint64_t def);

void http_resume(struct conn *c); // the disk has room again for a body

// main.c
extern uint64_t resets; // devices that were started again after NEEDS_RESET

// api.c
extern uint64_t requests;
void api_init(void);
void api_request(struct conn *c); // header and body are here
bool api_tick(uint64_t now);      // background work; true: do not sleep
uint64_t api_next_timer(void);    // 0: none
void api_loop_seen(uint64_t now, uint64_t slept_until, bool slept); // the TSC gap watch

// work.c: memory to touch, dirty and sum; the gap watch
bool work_request(struct conn *c);
bool work_tick(uint64_t now);
uint64_t work_next_timer(void);

// disk.c: requests that the disk must finish
bool disk_begin(struct conn *c); // a body comes: does the disk take it? false: no place for it
bool disk_takes(const struct conn *c);
uint32_t disk_window(const struct conn *c);
uint32_t disk_data(struct conn *c, const uint8_t *p, uint32_t n);
bool disk_request(struct conn *c); // true: it was for the disk
void disk_gone(struct conn *c);
void disk_init(void);
void disk_who_again(void);   // the configuration drive is read once more ...
bool disk_who_pending(void); // ... and has not come yet
void disk_config_changed(struct blk *b);

uint32_t crc32(uint32_t crc, const void *p, size_t n); // as zlib's: start with 0

#endif
