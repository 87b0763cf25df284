// SPDX-License-Identifier: Apache-2.0
// Internal to api-socket/: one request in, one answer out.
#ifndef API_ROUTES_H
#define API_ROUTES_H

#include "api-socket/http.h"
#include "api-socket/json.h"
#include "vmm/vm.h"

struct api_call {
    struct vm *vm;
    const char *version;
    enum http_verb verb;
    const char *target; // path of the request line
    size_t target_len;
    const char *body;
    size_t body_len;
    struct passed_fds *fds; // what the call does not take, the caller closes; NULL: none allowed
    struct json_out *out;   // the answer's body, empty for 204
};

// Performs the call and returns the status. On 400 the body is {"fault_message": ...}.
int api_route(struct api_call *c);

void api_migration(struct api_call *c); // GET /migration

// Writes {"fault_message": msg}; also for faults below the routes.
void api_fault(struct json_out *out, const char *msg);

#endif
