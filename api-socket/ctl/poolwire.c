// SPDX-License-Identifier: Apache-2.0
// The pool's clients: take, release, status, over its Unix socket. A request is lines and a half-close;
// the answer is lines until the end, an error a line that begins with "error ".
#include <sys/socket.h>

#include "api-socket/ctl/clone.h"

static int ask(const char *dir, const char *request, size_t len, FILE **answer, struct err *e)
{
    char path[CTL_PATH];

    snprintf(path, sizeof(path), "%.240s/pool.sock", dir);
    _cleanup_(close_fdp) int s = api_connect(path, e);
    if (s < 0)
        return s;
    while (len) {
        ssize_t n = send(s, request, len, MSG_NOSIGNAL);
        if (n <= 0)
            return err_set(e, EIO, "the pool does not listen: %s", strerror(errno));
        request += n;
        len -= (size_t)n;
    }
    shutdown(s, SHUT_WR);
    *answer = fdopen(s, "r");
    if (!*answer)
        return err_set(e, errno, "%s", strerror(errno));
    steal_fd(&s);
    return 0;
}

int pool_take(const char *dir, struct clone *c, uint64_t n, struct err *e)
{
    char line[CTL_PATH + 32];
    FILE *f;
    int rc = 0;
    int len = snprintf(line, sizeof(line), "take %llu\n", (unsigned long long)n);

    if ((rc = ask(dir, line, (size_t)len, &f, e)))
        return rc;
    for (uint64_t i = 0; i < n && rc == 0; i++) {
        if (!fgets(line, sizeof(line), f))
            rc = err_set(e, EIO, "the pool ended before it gave what was asked for");
        else if (sscanf(line, "%d %255s", &c[i].pid, c[i].sock) != 2)
            rc = err_set(e, EIO, "the pool says: %.200s", line);
        else
            c[i].pooled = true;
    }
    fclose(f);
    return rc;
}

int pool_release(const char *dir, const struct clone *c, uint64_t n, struct err *e)
{
    char *text = NULL, line[CTL_PATH];
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    if (!f)
        return err_set(e, ENOMEM, "out of memory");
    for (uint64_t i = 0; i < n; i++)
        if (c[i].pooled)
            fprintf(f, "release %d\n", c[i].pid);
    fclose(f);
    int rc = ask(dir, text, len, &f, e);
    free(text);
    if (rc)
        return rc;
    if (fgets(line, sizeof(line), f) && !strncmp(line, "error ", 6))
        rc = err_set(e, EIO, "the pool says: %.200s", line);
    fclose(f);
    return rc;
}

int pool_status(const char *dir, struct err *e)
{
    char line[CTL_PATH];
    FILE *f;

    int rc = ask(dir, "status\n", 7, &f, e);
    if (rc)
        return rc;
    while (fgets(line, sizeof(line), f))
        fputs(line, stdout);
    fclose(f);
    return 0;
}
