// SPDX-License-Identifier: Apache-2.0
// Text in and out, and the kernel command line.
#include "guest.h"

#define COM1 0x3f8

char cmdline[2048];

size_t str_len(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

bool str_starts(const char *s, const char *prefix)
{
    while (*prefix)
        if (*s++ != *prefix++)
            return false;
    return true;
}

bool str_eq(const char *a, const char *b)
{
    return str_starts(a, b) && str_len(a) == str_len(b);
}

bool mem_eq(const void *a, const void *b, size_t n)
{
    const uint8_t *p = a, *q = b;
    while (n--)
        if (*p++ != *q++)
            return false;
    return true;
}

struct out {
    char *buf;
    size_t n, at;
};

static void put(struct out *o, char c)
{
    if (o->at + 1 < o->n)
        o->buf[o->at++] = c;
}

static void put_num(struct out *o, uint64_t v, unsigned base, unsigned width, char pad)
{
    char t[24];
    unsigned i = 0;
    do {
        t[i++] = "0123456789abcdef"[v % base];
        v /= base;
    } while (v);
    while (i < width && i < sizeof(t))
        t[i++] = pad;
    while (i)
        put(o, t[--i]);
}

// %s %c %d %u %x with l and a width: as much of printf as the guests use.
size_t vfmt(char *buf, size_t n, const char *f, va_list ap)
{
    struct out o = {buf, n, 0};
    for (; *f; f++) {
        if (*f != '%') {
            put(&o, *f);
            continue;
        }
        f++;
        char pad = *f == '0' ? '0' : ' ';
        unsigned width = 0;
        while (*f >= '0' && *f <= '9')
            width = width * 10 + (unsigned)(*f++ - '0');
        bool wide = *f == 'l';
        if (wide)
            f++;
        if (*f == 's') {
            for (const char *s = va_arg(ap, const char *); *s; s++)
                put(&o, *s);
        } else if (*f == 'c') {
            put(&o, (char)va_arg(ap, int));
        } else if (*f == 'd') {
            int64_t v = wide ? va_arg(ap, int64_t) : va_arg(ap, int);
            if (v < 0)
                put(&o, '-');
            put_num(&o, v < 0 ? (uint64_t)-v : (uint64_t)v, 10, width, pad);
        } else if (*f == 'u' || *f == 'x') {
            uint64_t v = wide ? va_arg(ap, uint64_t) : va_arg(ap, unsigned);
            put_num(&o, v, *f == 'x' ? 16 : 10, width, pad);
        } else {
            put(&o, *f);
        }
    }
    if (n)
        buf[o.at] = 0;
    return o.at;
}

size_t fmt(char *buf, size_t n, const char *f, ...)
{
    va_list ap;
    va_start(ap, f);
    size_t r = vfmt(buf, n, f, ap);
    va_end(ap);
    return r;
}

// Byte by byte, without waiting for the transmitter: it is never busy in a monitor, and each exit
// is dear.
void say(const char *f, ...)
{
    static char line[1024];
    va_list ap;
    va_start(ap, f);
    size_t n = vfmt(line, sizeof(line), f, ap);
    va_end(ap);
    for (size_t i = 0; i < n; i++)
        outb(COM1, (uint8_t)line[i]);
}

uint64_t str_u64(const char **p)
{
    const char *s = *p;
    uint64_t v = 0;
    unsigned base = 10;
    if (s[0] == '0' && (s[1] | 32) == 'x') {
        base = 16;
        s += 2;
    }
    for (;; s++) {
        unsigned d;
        char c = (char)(*s | 32);
        if (*s >= '0' && *s <= '9')
            d = (unsigned)(*s - '0');
        else if (base == 16 && c >= 'a' && c <= 'f')
            d = (unsigned)(c - 'a') + 10;
        else
            break;
        v = v * base + d;
    }
    *p = s;
    return v;
}

const char *arg_next(const char *key, const char *after)
{
    size_t k = str_len(key);
    for (const char *s = after ? after : cmdline; *s; s++)
        if ((s == cmdline || s[-1] == ' ') && str_starts(s, key) && s[k] == '=')
            return s + k + 1;
    return NULL;
}

const char *arg(const char *key)
{
    return arg_next(key, NULL);
}

uint64_t arg_u64(const char *key, uint64_t def)
{
    const char *s = arg(key);
    return s ? str_u64(&s) : def;
}

bool arg_is(const char *key, const char *value)
{
    const char *s = arg(key);
    if (!s || !str_starts(s, value))
        return false;
    char end = s[str_len(value)];
    return end == 0 || end == ' ';
}

bool parse_ip(const char **p, uint32_t *ip)
{
    *ip = 0;
    for (int i = 0; i < 4; i++) {
        if (i && *(*p)++ != '.')
            return false;
        const char *was = *p;
        uint64_t v = str_u64(p);
        if (*p == was || v > 255)
            return false;
        *ip = *ip << 8 | (uint32_t)v;
    }
    return true;
}
