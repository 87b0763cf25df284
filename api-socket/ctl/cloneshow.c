// SPDX-License-Identifier: Apache-2.0
// The progress bar, the table, the summary, the same as JSON.
#include "api-socket/ctl/clone.h"

#define BAR 40

void show_progress(const struct job *j, bool last)
{
    char bar[BAR + 1];
    unsigned full = (unsigned)(j->done * BAR / j->n);

    if (!isatty(STDERR_FILENO))
        return;
    for (unsigned i = 0; i < BAR; i++)
        bar[i] = i < full ? '#' : '.';
    bar[BAR] = 0;
    fprintf(stderr, "\r[%s] %llu/%llu%s", bar, (unsigned long long)j->done,
            (unsigned long long)j->n, last ? "\n" : "");
}

static int by_size(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return (x > y) - (x < y);
}

struct stats {
    double p50, p99, max;
};

// Of one time since another, over the clones that got that far, in milliseconds.
static struct stats stats(const struct job *j, size_t to)
{
    struct stats s = {0};
    double *v = calloc(j->n, sizeof(*v));
    uint64_t n = 0;

    for (uint64_t i = 0; v && i < j->n; i++) {
        uint64_t t;
        memcpy(&t, (const char *)&j->c[i] + to, sizeof(t));
        if (t && !j->c[i].e.msg[0])
            v[n++] = (double)(t - j->c[i].t_spawn) / 1e6;
    }
    if (n) {
        qsort(v, n, sizeof(*v), by_size);
        s = (struct stats){v[n / 2], v[(n * 99 + 99) / 100 - 1], v[n - 1]};
    }
    free(v);
    return s;
}

static void json_text(const char *s, size_t n)
{
    putchar('"');
    for (size_t i = 0; i < n && s[i]; i++) {
        unsigned char ch = (unsigned char)s[i];
        if (ch == '"' || ch == '\\')
            printf("\\%c", ch);
        else if (ch < 0x20 || ch >= 0x7f)
            printf("\\u%04x", ch);
        else
            putchar(ch);
    }
    putchar('"');
}

static const char *body_of(const struct clone *c)
{
    const char *p = strstr(c->answer, "\r\n\r\n");
    return p ? p + 4 : "";
}

static void json_stats(const char *name, struct stats s)
{
    printf("\"%s\":{\"p50\":%.3f,\"p99\":%.3f,\"max\":%.3f},", name, s.p50, s.p99, s.max);
}

static void json(const struct job *j)
{
    printf("{\"clones\":%llu,\"answered\":%llu,\"failed\":%llu,\"total_ms\":%.3f,\"namespaces_ms\":"
           "%.3f,"
           "\"namespaces_made\":%llu,\"end_ms\":%.3f,",
           (unsigned long long)j->n, (unsigned long long)(j->done - j->failed),
           (unsigned long long)j->failed, (double)(j->t_end - j->t_start) / 1e6,
           (double)j->t_ns / 1e6, (unsigned long long)j->made, (double)j->t_gone / 1e6);
    json_stats("loaded_ms", stats(j, offsetof(struct clone, t_loaded)));
    json_stats("answered_ms", stats(j, offsetof(struct clone, t_last)));
    printf("\"each\":[");
    for (uint64_t i = 0; i < j->n; i++) {
        const struct clone *c = &j->c[i];
        printf("%s{\"name\":\"%s\",\"socket\":", i ? "," : "", c->name);
        json_text(c->sock, sizeof(c->sock));
        printf(",\"pid\":%d,\"started_ms\":%.3f,\"loaded_ms\":%.3f,\"answered_ms\":%.3f,\"status\":"
               "%d,",
               c->pid, (double)(c->t_spawn - j->t_start) / 1e6,
               c->t_loaded ? (double)(c->t_loaded - c->t_spawn) / 1e6 : -1.0,
               c->t_last ? (double)(c->t_last - c->t_spawn) / 1e6 : -1.0, c->status);
        printf("\"error\":");
        json_text(c->e.msg, sizeof(c->e.msg));
        printf(",\"answer\":");
        json_text(body_of(c), CLONE_ANSWER);
        putchar('}');
    }
    printf("]}\n");
}

static void row(const struct job *j, const struct clone *c)
{
    const char *what = c->e.msg[0] ? c->e.msg : body_of(c);

    printf("%-16s %9.2f %9.2f ", c->name, (double)(c->t_spawn - j->t_start) / 1e6,
           c->t_loaded ? (double)(c->t_loaded - c->t_spawn) / 1e6 : 0.0);
    if (c->t_last)
        printf("%9.2f  ", (double)(c->t_last - c->t_spawn) / 1e6);
    else
        printf("%9s  ", "-");
    // A guest does not get to steer the terminal.
    for (size_t i = 0; i < (c->e.msg[0] ? 200 : 60) && what[i] && what[i] != '\n'; i++)
        putchar((unsigned char)what[i] < 0x20 || (unsigned char)what[i] >= 0x7f ? '?' : what[i]);
    putchar('\n');
}

void show_result(const struct job *j)
{
    if (j->json) {
        json(j);
        return;
    }
    bool rows = j->table || j->n <= 40;
    if (rows || j->failed)
        printf("%-16s %9s %9s %9s  %s\n", "clone", "start ms", "load ms", "answer ms", "answer");
    uint64_t shown = 0;
    for (uint64_t i = 0; i < j->n; i++)
        if (rows || (j->c[i].e.msg[0] && shown++ < 20))
            row(j, &j->c[i]);
    struct stats l = stats(j, offsetof(struct clone, t_loaded));
    struct stats a = stats(j, offsetof(struct clone, t_last));
    printf("%llu of %llu clones %s; first start to last byte %.1f ms\n",
           (unsigned long long)(j->done - j->failed), (unsigned long long)j->n,
           j->no_get ? "loaded" : "answered", (double)(j->t_end - j->t_start) / 1e6);
    printf("  since its own start, median / p99 / most: loaded %.2f / %.2f / %.2f ms", l.p50, l.p99,
           l.max);
    if (!j->no_get)
        printf(", answered %.2f / %.2f / %.2f ms", a.p50, a.p99, a.max);
    if (j->again) {
        putchar('\n');
        return;
    }
    printf("\n  %llu namespaces were made before, in %.1f ms", (unsigned long long)j->made,
           (double)j->t_ns / 1e6);
    if (j->keep)
        printf("; the clones stay (mayflyctl end %s)\n", j->dir);
    else
        printf("; ended in %.1f ms\n", (double)j->t_gone / 1e6);
}
