// SPDX-License-Identifier: Apache-2.0
// Log lines: composed on the stack, cleaned of control bytes, sent with one write.
#include <fcntl.h>
#include <sys/prctl.h>

#include "vmm/log.h"

// #syscalls:vcpu pwritev2(0) clock_gettime futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)
// #syscalls:device pwritev2(0) clock_gettime futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)
// #syscalls:control pwritev2(0) clock_gettime futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)
// #syscalls:helper pwritev2(0) clock_gettime futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)
// #syscalls:config dup3 close prctl(PR_SET_NAME)

#define LINE_MAX_BYTES 1024 // below PIPE_BUF: a FIFO takes a line whole or not at all
#define GUEST_LINES    10   // per site and window
#define GUEST_WINDOW   (5 * NSEC_PER_SEC)

void log_init(struct log *l, const char *id, int fd)
{
    memset(l, 0, sizeof(*l));
    pthread_mutex_init(&l->lock, NULL);
    atomic_init(&l->fd, fd);
    atomic_init(&l->level, LOG_INFO);
    snprintf(l->id, sizeof(l->id), "%s", id);
}

void log_thread(struct log *l, const char *name)
{
    prctl(PR_SET_NAME, name);
    pthread_mutex_lock(&l->lock);
    for (size_t i = 0; i < LOG_THREADS; i++) // a dead thread's handle may be ours now
        if (pthread_equal(l->thread[i].self, pthread_self()))
            l->thread[i].name[0] = 0;
    for (size_t i = 0; i < LOG_THREADS; i++) {
        struct log_thread *t = &l->thread[i];
        if (t->name[0] && strncmp(t->name, name, sizeof(t->name) - 1) != 0)
            continue;
        snprintf(t->name, sizeof(t->name), "%s", name);
        t->self = pthread_self();
        break;
    }
    pthread_mutex_unlock(&l->lock);
}

// Another thread may be about to write to the old number, so the new file takes its place there:
// were the old descriptor closed, a line could land in whatever is opened next.
static void replace_fd(struct log *l, int fd)
{
    int old = atomic_load(&l->fd);
    if (old < 0 || old == STDOUT_FILENO) {
        atomic_store(&l->fd, fd);
        return;
    }
    if (dup3(fd, old, O_CLOEXEC) < 0)
        atomic_fetch_add(&l->missed, 1);
    close(fd);
}

void log_configure(struct log *l, const struct logger_cfg *c, int fd)
{
    pthread_mutex_lock(&l->lock);
    if (c->has_level)
        atomic_store(&l->level, (int)c->level);
    if (c->has_show_level)
        l->show_level = c->show_level;
    if (c->has_show_log_origin)
        l->show_origin = c->show_log_origin;
    if (c->module[0])
        snprintf(l->module, sizeof(l->module), "%s", c->module);
    if (fd >= 0)
        replace_fd(l, fd);
    pthread_mutex_unlock(&l->lock);
}

// A guest-triggered line passes while its site has budget; *held tells how many did not since the
// last one that passed. A full table makes sites share the slot they hash to. Lock held.
static bool site_allows(struct log *l, const char *file, int line, uint64_t now, uint64_t *held)
{
    size_t start = ((uintptr_t)file ^ (size_t)line * 31u) % LOG_SITES;
    struct log_site *s = &l->site[start];
    for (size_t i = 0; i < LOG_SITES; i++) {
        struct log_site *at = &l->site[(start + i) % LOG_SITES];
        if (!at->file || (at->file == file && at->line == line)) {
            s = at;
            break;
        }
    }
    if (!s->file || now - s->window_ns >= GUEST_WINDOW) {
        s->file = file;
        s->line = line;
        s->window_ns = now;
        s->passed = 0;
    }
    if (s->passed >= GUEST_LINES) {
        s->held++;
        return false;
    }
    s->passed++;
    *held = s->held;
    s->held = 0;
    return true;
}

// UTC from the seconds since 1970 (days-from-civil inverted); gmtime_r would read a time zone file.
static void civil(uint64_t sec, unsigned out[6])
{
    uint64_t day = sec / 86400 + 719468; // days since 0000-03-01
    unsigned rest = (unsigned)(sec % 86400);
    uint64_t era = day / 146097;
    unsigned doe = (unsigned)(day % 146097);
    unsigned yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    unsigned doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    unsigned mp = (5 * doy + 2) / 153;
    out[2] = doy - (153 * mp + 2) / 5 + 1;
    out[1] = mp < 10 ? mp + 3 : mp - 9;
    out[0] = yoe + (unsigned)era * 400 + (out[1] <= 2);
    out[3] = rest / 3600;
    out[4] = rest / 60 % 60;
    out[5] = rest % 60;
}

static size_t append(char *buf, size_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static size_t append(char *buf, size_t at, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(buf + at, LINE_MAX_BYTES - at, fmt, ap);
    va_end(ap);
    return MIN(at + (size_t)MAX(n, 0), (size_t)LINE_MAX_BYTES - 1);
}

// "TS [id:thread:LEVEL:file:line] ". Lock held.
static size_t prefix(const struct log *l, char *buf, enum log_level lv, const char *file, int line)
{
    static const char *const name[] = {"OFF", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"};
    const char *thread = "-";
    struct timespec t;
    unsigned c[6];
    clock_gettime(CLOCK_REALTIME, &t);
    for (size_t i = 0; i < LOG_THREADS; i++)
        if (l->thread[i].name[0] && pthread_equal(l->thread[i].self, pthread_self()))
            thread = l->thread[i].name;
    civil((uint64_t)t.tv_sec, c);
    size_t n = append(buf, 0, "%04u-%02u-%02uT%02u:%02u:%02u.%09ld [%s:%s", c[0], c[1], c[2], c[3],
                      c[4], c[5], t.tv_nsec, l->id, thread);
    if (l->show_level && (unsigned)lv < ARRAY_SIZE(name))
        n = append(buf, n, ":%s", name[lv]);
    if (l->show_origin)
        n = append(buf, n, ":%s:%d", file, line);
    return append(buf, n, "] ");
}

void log_line(struct log *l, enum log_level lv, bool guest, const char *file, int line,
              const char *fmt, ...)
{
    char buf[LINE_MAX_BYTES];
    uint64_t held = 0;
    int saved = errno, fd = atomic_load(&l->fd);
    if (fd < 0)
        return;
    pthread_mutex_lock(&l->lock);
    bool pass = strncmp(file, l->module, strlen(l->module)) == 0 &&
                (!guest || site_allows(l, file, line, now_ns(), &held));
    size_t n = pass ? prefix(l, buf, lv, file, line) : 0;
    pthread_mutex_unlock(&l->lock);
    if (!pass) {
        l->limited += guest;
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    int m = vsnprintf(buf + n, sizeof(buf) - n, fmt, ap);
    va_end(ap);
    n = MIN(n + (size_t)MAX(m, 0), sizeof(buf) - 1);
    if (held)
        n = append(buf, n, " (%llu lines like this were left out)", (unsigned long long)held);
    for (size_t i = 0; i < n; i++) // a guest's or client's bytes must not forge a line
        if ((unsigned char)buf[i] < 0x20 || buf[i] == 0x7f)
            buf[i] = '?';
    buf[n++] = '\n'; // takes the terminator's place
    if (fd_write(fd, buf, n) != (ssize_t)n)
        l->missed++;
    errno = saved;
}
