// SPDX-License-Identifier: Apache-2.0
// The kernel command line: the caller's arguments, then what only the monitor knows.
#include "vmm/boot/boot.h"

#define DEFAULT_ARGS                                                                   \
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd " \
    "swiotlb=noforce"

struct line {
    char *p;
    size_t n;
    bool overflow;
};

__attribute__((format(printf, 2, 3))) static void put(struct line *l, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int r = vsnprintf(l->p + l->n, CFG_CMDLINE_MAX - l->n, fmt, ap);
    va_end(ap);
    if (r < 0 || (size_t)r >= CFG_CMDLINE_MAX - l->n)
        l->overflow = true;
    else
        l->n += (size_t)r;
}

// Length of the kernel's own part: up to a bare "--", after which arguments belong to init. Quotes
// protect, as in the kernel's parser (lib/cmdline.c, next_arg).
static size_t kernel_part(const char *args)
{
    bool quoted = false, start = true;
    for (size_t i = 0; args[i]; i++) {
        if (!quoted && start && strncmp(args + i, "--", 2) == 0 &&
            (args[i + 2] == ' ' || args[i + 2] == '\0'))
            return i;
        quoted ^= args[i] == '"';
        start = args[i] == ' ';
    }
    return strlen(args);
}

static int put_root(struct line *l, const struct vm_config *c, struct err *e)
{
    for (unsigned i = 0; i < c->ndrives; i++) {
        const struct drive_cfg *d = &c->drives[i];
        if (!d->is_root_device)
            continue;
        if (d->partuuid[strspn(d->partuuid, "0123456789abcdefABCDEF-")])
            return err_set(e, EINVAL, "partuuid: hexadecimal digits and '-' only");
        if (d->partuuid[0])
            put(l, " root=PARTUUID=%s", d->partuuid);
        else
            put(l, " root=/dev/vd%c", (char)('a' + i));
        put(l, d->is_read_only ? " ro" : " rw");
        return 0;
    }
    return 0;
}

int boot_cmdline(const struct vm_config *c, const struct boot_dev *dev, unsigned ndevs,
                 char out[CFG_CMDLINE_MAX], struct err *e)
{
    const char *args = c->boot.has_args ? c->boot.boot_args : DEFAULT_ARGS;
    const char *init = args + kernel_part(args);
    struct line l = {.p = out};
    int rc = cfg_check_cmdline(args, e);
    if (rc < 0)
        return rc;
    size_t own = (size_t)(init - args);
    while (own > 0 && args[own - 1] == ' ')
        own--;
    put(&l, "%.*s%spci=off", (int)own, args, own ? " " : ""); // there is no PCI bus: do not probe
    rc = put_root(&l, c, e);
    if (rc < 0)
        return rc;
    for (unsigned i = 0; i < ndevs; i++)
        put(&l, " virtio_mmio.device=4K@0x%llx:%u", (unsigned long long)dev[i].mmio, dev[i].gsi);
    if (*init)
        put(&l, " %s", init);
    if (l.overflow)
        return err_set(e, E2BIG,
                       "boot_args: with root and devices the command line exceeds %d bytes",
                       CFG_CMDLINE_MAX - 1);
    return 0;
}
