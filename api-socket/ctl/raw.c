// SPDX-License-Identifier: Apache-2.0
// get, put, patch, delete: one request as it is written.
#include <ctype.h>
#include <fcntl.h>

#include "api-socket/ctl/ctl.h"

static int open_files(const struct opt_list *ro, const struct opt_list *rw, int *fds, unsigned *n,
                      struct err *e)
{
    for (unsigned i = 0; i < ro->n + rw->n; i++) {
        const char *path = i < ro->n ? ro->v[i] : rw->v[i - ro->n];
        if (*n == API_FDS_MAX)
            return err_set(e, EINVAL, "no more than %d descriptors", API_FDS_MAX);
        int fd = open(path, i < ro->n ? O_RDONLY | O_CLOEXEC : O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
            return err_set(e, errno, "cannot open %s: %s", path, strerror(errno));
        fds[(*n)++] = fd;
    }
    return 0;
}

int cmd_raw(int argc, char **argv)
{
    const char *socket = "/run/mayfly.socket", *rest[2] = {NULL, NULL};
    struct opt_list ro = {0}, rw = {0};
    bool help = false;
    const struct opt o[] = {
        {"--socket", OPT_STR, &socket, "the monitor's API socket (/run/mayfly.socket)"},
        {"--fd", OPT_LIST, &ro, "a file to hand over, open for reading: the first is fd:0"},
        {"--fd-rw", OPT_LIST, &rw, "the same, for reading and writing; counted behind those"},
        {"--help", OPT_FLAG, &help, "this"}};
    char method[8] = "";
    int fds[API_FDS_MAX];
    unsigned nfds = 0;
    struct err e = {0};
    struct api_reply r;

    int n = opts_parse(o, ARRAY_SIZE(o), argc - 1, argv + 1, rest, 2);
    if (n < 1 || help) {
        opts_help(help ? stdout : stderr, "[--socket S] get|put|patch|delete PATH [JSON]", o,
                  ARRAY_SIZE(o));
        return help ? 0 : 2;
    }
    for (size_t i = 0; argv[0][i] && i < sizeof(method) - 1; i++)
        method[i] = (char)toupper((unsigned char)argv[0][i]);
    if (open_files(&ro, &rw, fds, &nfds, &e))
        return ctl_fail(&e);
    _cleanup_(close_fdp) int s = api_connect(socket, &e);
    if (s < 0 || api_send(s, method, rest[0], rest[1], fds, nfds, &e) || api_receive(s, &r, &e))
        return ctl_fail(&e);
    if (r.status >= 400) {
        fprintf(stderr, "%d %s\n", r.status, r.body);
        return 1;
    }
    if (r.body[0])
        printf("%s\n", r.body);
    return 0;
}
