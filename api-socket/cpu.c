// SPDX-License-Identifier: Apache-2.0
// PUT /cpu-config: Firecracker's CPUID and MSR modifiers, from strings to masks.
#include "api-socket/schema.h"

static int number(const char *s, const char *field, uint32_t *out, struct err *e)
{
    char *end;
    bool hex = s[0] == '0' && (s[1] == 'x' || s[1] == 'X');
    const char *digits = hex ? s + 2 : s;

    errno = 0;
    unsigned long long v = strtoull(digits, &end, hex ? 16 : 10);
    if (strspn(digits, hex ? "0123456789abcdefABCDEF" : "0123456789") != strlen(digits) ||
        !*digits || errno || *end || v > UINT32_MAX)
        return err_set(e, EINVAL, "%s: `%s` is not a 32-bit number (0x.. or decimal)", field, s);
    *out = (uint32_t)v;
    return 0;
}

// "0b" and up to `bits` of 0, 1 or x, most significant first, `_` in between: x leaves a bit as it is.
static int bitmap(const char *s, unsigned bits, uint64_t *filter, uint64_t *value, struct err *e)
{
    unsigned n = 0;

    *filter = *value = 0;
    if (strncmp(s, "0b", 2))
        return err_set(e, EINVAL, "bitmap: `%s` does not begin with 0b", s);
    for (const char *p = s + 2; *p; p++) {
        if (*p == '_')
            continue;
        if (*p != '0' && *p != '1' && *p != 'x')
            return err_set(e, EINVAL, "bitmap: `%c` is none of 0, 1, x", *p);
        if (++n > bits)
            return err_set(e, EINVAL, "bitmap: more than %u bits", bits);
        *filter = *filter << 1 | (*p != 'x');
        *value = *value << 1 | (*p == '1');
    }
    return n ? 0 : err_set(e, EINVAL, "bitmap: no bits");
}

static int leaf_from_wire(const struct cpu_leaf_wire *l, struct cpu_mods *out, struct err *e)
{
    struct cpuid_mod m;
    uint64_t filter, value;

    int rc = number(l->leaf, "leaf", &m.leaf, e);
    if (rc == 0)
        rc = number(l->subleaf, "subleaf", &m.subleaf, e);
    for (unsigned i = 0; i < l->nmods && rc == 0; i++) {
        if ((rc = bitmap(l->mod[i].bitmap, 32, &filter, &value, e)))
            break;
        m.reg = (enum cpuid_reg)l->mod[i].reg;
        m.filter = (uint32_t)filter;
        m.value = (uint32_t)value;
        out->cpuid[out->ncpuid++] = m;
    }
    return rc;
}

_Static_assert(ARRAY_SIZE(((struct cpu_wire *)0)->leaf) * 4 <= CPUID_MAX_MOD,
               "every modifier fits");
_Static_assert(ARRAY_SIZE(((struct cpu_wire *)0)->msr) <= CPUID_MAX_MOD, "every modifier fits");

int cpu_from_wire(const struct cpu_wire *w, struct cpu_mods *out, struct err *e)
{
    int rc = 0;

    memset(out, 0, sizeof(*out));
    for (unsigned i = 0; i < w->nleaves && rc == 0; i++)
        rc = leaf_from_wire(&w->leaf[i], out, e);
    for (unsigned i = 0; i < w->nmsrs && rc == 0; i++) {
        struct msr_mod *m = &out->msr[out->nmsr++];
        rc = number(w->msr[i].addr, "addr", &m->index, e);
        if (rc == 0)
            rc = bitmap(w->msr[i].bitmap, 64, &m->filter, &m->value, e);
    }
    return rc;
}
