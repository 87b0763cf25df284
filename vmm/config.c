// SPDX-License-Identifier: Apache-2.0
// Validity of configuration that needs no host: ids, bounds, combinations. Pure functions.
#include "vmm/config.h"

int cfg_check_id(const char *id, const char *field, struct err *e)
{
    const size_t n = strnlen(id, CFG_ID_MAX + 1);
    if (n == 0)
        return err_set(e, EINVAL, "The ID cannot be empty.");
    if (n > CFG_ID_MAX)
        return err_set(e, EINVAL, "%s: an ID has at most %d characters", field, CFG_ID_MAX);
    for (size_t i = 0; i < n; i++) { // not isalnum(): that asks the locale
        const char c = id[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '_'))
            return err_set(e, EINVAL,
                           "API Resource IDs can only contain alphanumeric characters "
                           "and underscores.");
    }
    return 0;
}

int cfg_check_machine(const struct machine_cfg *m, struct err *e)
{
    if (m->vcpu_count == 0 || m->vcpu_count > CFG_MAX_VCPUS)
        return err_set(e, EINVAL, "vcpu_count must be 1 to %d, not %u", CFG_MAX_VCPUS,
                       m->vcpu_count);
    if (m->smt && m->vcpu_count != 1 && m->vcpu_count % 2)
        return err_set(e, EINVAL, "vcpu_count must be 1 or even with smt, not %u", m->vcpu_count);
    if (m->mem_size_mib == 0 || m->mem_size_mib > CFG_MEM_MAX_MIB)
        return err_set(e, EINVAL, "mem_size_mib must be 1 to %d, not %u", CFG_MEM_MAX_MIB,
                       m->mem_size_mib);
    if ((unsigned)m->huge_pages > HUGE_2M)
        return err_set(e, EINVAL, "huge_pages must be None, Transparent or 2M");
    if (m->huge_pages == HUGE_2M && m->mem_size_mib % 2)
        return err_set(e, EINVAL, "mem_size_mib must be even with huge_pages 2M, not %u",
                       m->mem_size_mib);
    return 0;
}

int cfg_check_cmdline(const char *args, struct err *e)
{
    const size_t n = strnlen(args, CFG_CMDLINE_MAX);
    if (n == CFG_CMDLINE_MAX)
        return err_set(e, EINVAL, "boot_args: longer than %d bytes", CFG_CMDLINE_MAX - 1);
    for (size_t i = 0; i < n; i++)
        if (args[i] < 0x20 || args[i] > 0x7e)
            return err_set(e, EINVAL, "boot_args: byte %zu is not printable ASCII", i);
    return 0;
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int cfg_parse_mac(const char *s, uint8_t mac[6])
{
    uint8_t out[6], any = 0;
    if (strnlen(s, 18) != 17)
        return -EINVAL;
    for (unsigned i = 0; i < 6; i++) {
        const int hi = hex(s[3 * i]), lo = hex(s[3 * i + 1]);
        if (hi < 0 || lo < 0 || (i < 5 && s[3 * i + 2] != ':'))
            return -EINVAL;
        out[i] = (uint8_t)(hi << 4 | lo);
        any |= out[i];
    }
    if (!any || out[0] & 1) // all zero, or the group bit: no station may have it
        return -EINVAL;
    memcpy(mac, out, sizeof(out));
    return 0;
}
