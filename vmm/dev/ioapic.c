// SPDX-License-Identifier: Apache-2.0
// IOAPIC (Intel 82093AA, version 0x20): redirection table in, MSIs out.
#include "vmm/dev/dev.h"

#define VERSION 0x20u // 0x20 has the EOI register, so that guests need no mask-and-edge trick

enum { WIN_SEL = 0x00, WIN_DATA = 0x10, WIN_EOI = 0x40 };
enum { REG_ID = 0, REG_VERSION = 1, REG_ARB = 2, REG_RTE = 0x10 };

#define RTE_VECTOR 0xffull
#define RTE_MODE   (7ull << 8)
#define RTE_LOGIC  (1ull << 11)
#define RTE_LEVEL  (1ull << 15)
#define RTE_MASK   (1ull << 16)
#define RTE_DEST   (0xffull << 56)
// Delivery status and Remote IRR are read-only and always 0 here.
#define RTE_WRITABLE \
    (RTE_VECTOR | RTE_MODE | RTE_LOGIC | (1ull << 13) | RTE_LEVEL | RTE_MASK | RTE_DEST)
#define ID_MASK 0x0f000000u

struct msi {
    uint64_t addr;
    uint32_t data;
};

// MSI of a redirection entry (SDM vol. 3, 11.11). False for what the 82093AA reserves: delivery
// modes 3 and 6, and vectors below 16, which a local APIC takes and never delivers.
static bool rte_msi(uint64_t rte, struct msi *m)
{
    uint32_t mode = (uint32_t)((rte & RTE_MODE) >> 8);
    uint32_t vector = (uint32_t)(rte & RTE_VECTOR);
    if (mode == 3 || mode == 6 || (mode <= 1 && vector < 16))
        return false;
    m->addr = PLAT_LAPIC | (rte >> 56) << 12 | (rte & RTE_LOGIC ? 1u << 2 : 0);
    m->data = mode << 8 | vector; // always edge: see dev.h
    return true;
}

void ioapic_init(struct ioapic *io, void (*msi)(void *, uint64_t, uint32_t), void *ctx)
{
    memset(io, 0, sizeof(*io));
    pthread_mutex_init(&io->lock, NULL);
    for (unsigned i = 0; i < PLAT_IOAPIC_PINS; i++)
        io->s.rte[i] = RTE_MASK;
    io->msi = msi;
    io->ctx = ctx;
}

void ioapic_pulse(struct ioapic *io, unsigned pin)
{
    struct msi m;
    bool send = false;
    if (pin >= PLAT_IOAPIC_PINS)
        return;
    pthread_mutex_lock(&io->lock);
    if (io->s.rte[pin] & RTE_MASK)
        io->s.pending |= 1u << pin;
    else
        send = rte_msi(io->s.rte[pin], &m);
    pthread_mutex_unlock(&io->lock);
    if (send)
        io->msi(io->ctx, m.addr, m.data);
}

static uint32_t reg_read(const struct ioapic_state *s)
{
    uint32_t i = s->sel - REG_RTE;
    if (s->sel == REG_ID || s->sel == REG_ARB)
        return s->id;
    if (s->sel == REG_VERSION)
        return VERSION | (PLAT_IOAPIC_PINS - 1) << 16;
    if (s->sel < REG_RTE || i >= 2 * PLAT_IOAPIC_PINS)
        return 0;
    return (uint32_t)(s->rte[i / 2] >> (i % 2 ? 32 : 0));
}

uint32_t ioapic_read(struct ioapic *io, uint64_t off, unsigned len)
{
    uint32_t v = 0;
    pthread_mutex_lock(&io->lock);
    if (off == WIN_SEL)
        v = io->s.sel;
    else if (off == WIN_DATA)
        v = reg_read(&io->s);
    pthread_mutex_unlock(&io->lock);
    return len >= 4 ? v : v & ((1u << 8 * len) - 1);
}

// Writes the selected register; true when that unmasked a pin whose pulse waits: *m is due.
static bool reg_write(struct ioapic_state *s, uint32_t v, struct msi *m)
{
    uint32_t i = s->sel - REG_RTE, pin = i / 2;
    if (s->sel == REG_ID)
        s->id = v & ID_MASK;
    if (s->sel < REG_RTE || pin >= PLAT_IOAPIC_PINS)
        return false;
    uint64_t rte = s->rte[pin];
    rte = i % 2 ? (rte & 0xffffffffu) | (uint64_t)v << 32 : (rte & ~0xffffffffull) | v;
    s->rte[pin] = rte & RTE_WRITABLE;
    if (rte & RTE_MASK || !(s->pending & 1u << pin))
        return false;
    s->pending &= ~(1u << pin);
    return rte_msi(rte, m);
}

void ioapic_write(struct ioapic *io, uint64_t off, unsigned len, uint32_t v)
{
    struct msi m;
    bool send = false;
    if (len < 4)
        v &= (1u << 8 * len) - 1;
    pthread_mutex_lock(&io->lock);
    if (off == WIN_SEL)
        io->s.sel = v & 0xff;
    else if (off == WIN_DATA && len >= 4) // the window takes 32-bit accesses alone
        send = reg_write(&io->s, v, &m);
    // WIN_EOI has nothing to do: Remote IRR is never set.
    pthread_mutex_unlock(&io->lock);
    if (send)
        io->msi(io->ctx, m.addr, m.data);
}

void ioapic_save(struct ioapic *io, struct ioapic_state *s)
{
    pthread_mutex_lock(&io->lock);
    *s = io->s;
    pthread_mutex_unlock(&io->lock);
}

int ioapic_load(struct ioapic *io, const struct ioapic_state *s, struct err *e)
{
    if (s->id & ~ID_MASK || s->sel > 0xff)
        return err_set(e, EINVAL, "ioapic: id %#x or selector %#x is out of range", s->id, s->sel);
    if (s->pending >> PLAT_IOAPIC_PINS)
        return err_set(e, EINVAL, "ioapic: pending %#x names pins that do not exist", s->pending);
    for (unsigned i = 0; i < PLAT_IOAPIC_PINS; i++) {
        if (s->rte[i] & ~RTE_WRITABLE)
            return err_set(e, EINVAL, "ioapic: pin %u sets reserved bits", i);
        if (s->pending & 1u << i && !(s->rte[i] & RTE_MASK))
            return err_set(e, EINVAL, "ioapic: pin %u is pending but not masked", i);
    }
    pthread_mutex_lock(&io->lock);
    io->s = *s;
    pthread_mutex_unlock(&io->lock);
    return 0;
}
