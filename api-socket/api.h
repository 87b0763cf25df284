// SPDX-License-Identifier: Apache-2.0
// The API room: one Unix socket, Firecracker's dialect, served by the control thread.
//
// Call order: api_open (before the filters: socket, bind, listen) -> api_run as often as needed ->
// api_close. api_apply_config needs no socket. The contract on the wire is openapi.yaml.
// Files: server.c connections and deadlines; http.c bytes to requests; routes.c requests to calls
// of vmm/vm.h; schema.c the objects' tables; json*.c the reader, binder and writer.
// Threads: all of it on the control thread.
#ifndef API_API_H
#define API_API_H

#include "vmm/vm.h"

#define API_CONNECTIONS 10
#define API_DEADLINE_NS (2 * NSEC_PER_SEC) // for a request to come whole, for an answer to be taken

struct api;
struct api_opts {
    const char *path;     // of the socket; at most 107 bytes
    unsigned mode;        // of the socket file; 0: 0600
    size_t body_max;      // 0: HTTP_BODY_MAX
    const char *version;  // answered by GET / and GET /version; must outlive the api
    int pin_fd;           // > 0: the descriptor number the listener gets
    int listen_fd;        // > 0: a listening socket that was handed over; path, mode, pin_fd unused
    const uint32_t *uids; // the users that may connect, as this process's user namespace names
    unsigned nuids;       // them (one without a name there is 65534); 0: whoever can open the file
};

// Makes the socket and everything a connection will need. A socket file that nobody listens on is
// replaced; -EADDRINUSE if somebody does, -EEXIST if the path is something else.
int api_open(struct api **out, const struct api_opts *o, struct err *e);
// Serves until wake_fd (0) or stop_fd (1) is readable, or poll itself fails (-errno). Connections
// stay. Without an api (NULL) it only waits. stop_fd -1: none.
int api_run(struct api *a, struct vm *vm, int wake_fd, int stop_fd);
void api_close(struct api *a); // leaves the socket file: removing it is a right given up earlier

// Applies a configuration file (Firecracker's layout). fd:N is refused in it. On error what came
// before the faulty section has been applied: the caller ends the process.
int api_apply_config(struct vm *vm, const char *json, size_t len, struct err *e);

#endif
