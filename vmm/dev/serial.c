// SPDX-License-Identifier: Apache-2.0
// 16550A serial port. The transmitter is always empty: what a slow reader cannot take is lost.
//
// The interrupt line goes to an edge-triggered IOAPIC pin, so a pulse is sent when the computed
// level rises. A driver that handles an interrupt reads IIR until it says "none", which lowers the
// level again.
#include "vmm/dev/dev.h"

// #syscalls:vcpu futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)
// #syscalls:device futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)
// #syscalls:control futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)

enum { R_DATA, R_IER, R_IIR_FCR, R_LCR, R_MCR, R_LSR, R_MSR, R_SCR };
enum { IER_RX = 0x01, IER_THR = 0x02, IER_LINE = 0x04, IER_ALL = 0x0f };
enum { IIR_NONE = 0x01, IIR_THR = 0x02, IIR_RX = 0x04, IIR_LINE = 0x06, IIR_FIFO = 0xc0 };
enum { FCR_ENABLE = 0x01, FCR_CLEAR_RX = 0x02, FCR_KEPT = 0xc9 };
enum { LCR_DLAB = 0x80 };
enum { MCR_DTR = 0x01, MCR_RTS = 0x02, MCR_OUT1 = 0x04, MCR_OUT2 = 0x08, MCR_LOOP = 0x10 };
enum { LSR_DATA = 0x01, LSR_OVERRUN = 0x02, LSR_THR_EMPTY = 0x20, LSR_IDLE = 0x40 };
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RING = 0x40, MSR_DCD = 0x80 };

void serial_init(struct serial *s, void (*irq)(void *), void (*wake)(void *), void *ctx)
{
    memset(s, 0, sizeof(*s));
    pthread_mutex_init(&s->lock, NULL);
    s->s.lcr = 0x03; // 8N1
    s->s.mcr = MCR_OUT2;
    s->s.dll = 0x0c; // 9600 baud
    s->irq = irq;
    s->wake = wake;
    s->ctx = ctx;
}

// Highest pending source that is enabled (16550 priorities), as IIR shows it.
static uint8_t iir(const struct serial_state *r)
{
    if (r->ier & IER_LINE && r->lsr_overrun)
        return IIR_LINE;
    if (r->ier & IER_RX && r->rx_len)
        return IIR_RX;
    if (r->ier & IER_THR && r->thr_pending)
        return IIR_THR;
    return IIR_NONE;
}

// Recomputes the line; true when it rose. Lock held.
static bool line_rose(struct serial *s)
{
    bool was = s->irq_high;
    s->irq_high = iir(&s->s) != IIR_NONE;
    return s->irq_high && !was;
}

static void unlock_and_tell(struct serial *s, bool wake)
{
    bool irq = line_rose(s);
    pthread_mutex_unlock(&s->lock);
    if (irq)
        s->irq(s->ctx);
    if (wake)
        s->wake(s->ctx);
}

// Whether a host that was told "no room" can be told otherwise now. Lock held.
static bool room_again(struct serial *s)
{
    if (!s->rx_refused || s->s.mcr & MCR_LOOP || s->s.rx_len == SERIAL_RX_FIFO)
        return false;
    s->rx_refused = false;
    return true;
}

static uint8_t rx_pop(struct serial_state *r)
{
    uint8_t v = r->rx[0];
    if (!r->rx_len)
        return 0;
    r->rx_len--;
    memmove(r->rx, r->rx + 1, r->rx_len);
    return v;
}

static uint8_t modem(uint8_t mcr)
{
    if (!(mcr & MCR_LOOP))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    return (uint8_t)((mcr & MCR_RTS ? MSR_CTS : 0) | (mcr & MCR_DTR ? MSR_DSR : 0) |
                     (mcr & MCR_OUT1 ? MSR_RING : 0) | (mcr & MCR_OUT2 ? MSR_DCD : 0));
}

uint8_t serial_read(struct serial *s, unsigned off)
{
    struct serial_state *r = &s->s;
    uint8_t v = 0;
    s->reads++;
    pthread_mutex_lock(&s->lock);
    switch (off) {
    case R_DATA:
        v = r->lcr & LCR_DLAB ? r->dll : rx_pop(r);
        break;
    case R_IER:
        v = r->lcr & LCR_DLAB ? r->dlm : r->ier;
        break;
    case R_IIR_FCR:
        v = iir(r);
        if (v == IIR_THR) // taken by being read
            r->thr_pending = 0;
        v |= r->fcr & FCR_ENABLE ? IIR_FIFO : 0;
        break;
    case R_LCR:
        v = r->lcr;
        break;
    case R_MCR:
        v = r->mcr;
        break;
    case R_LSR:
        v = (uint8_t)(LSR_THR_EMPTY | LSR_IDLE | (r->rx_len ? LSR_DATA : 0) |
                      (r->lsr_overrun ? LSR_OVERRUN : 0));
        r->lsr_overrun = 0;
        break;
    case R_MSR:
        v = modem(r->mcr);
        break;
    case R_SCR:
        v = r->scr;
        break;
    default:
        s->missed_reads++;
        break;
    }
    unlock_and_tell(s, room_again(s));
    return v;
}

// A byte leaves the transmitter: to the receiver in loopback, else to the ring. True when whoever
// drains it must be told: of the first byte, or, where it looks again by itself, of a ring half full.
static bool transmit(struct serial *s, uint8_t v)
{
    struct serial_state *r = &s->s;
    r->thr_pending = 1;
    if (r->mcr & MCR_LOOP) {
        if (r->rx_len < SERIAL_RX_FIFO)
            r->rx[r->rx_len++] = v;
        else
            r->lsr_overrun = 1;
        return false;
    }
    if (s->tx_head - s->tx_tail == SERIAL_TX_RING) {
        s->lost++;
        return false;
    }
    s->tx[s->tx_head++ % SERIAL_TX_RING] = v;
    return s->tx_head - s->tx_tail == (s->watched ? SERIAL_TX_RING / 2 : 1);
}

void serial_write(struct serial *s, unsigned off, uint8_t v)
{
    struct serial_state *r = &s->s;
    bool wake = false;
    s->writes++;
    pthread_mutex_lock(&s->lock);
    switch (off) {
    case R_DATA:
        if (r->lcr & LCR_DLAB)
            r->dll = v;
        else
            wake = transmit(s, v);
        break;
    case R_IER:
        if (r->lcr & LCR_DLAB) {
            r->dlm = v;
            break;
        }
        if (v & ~r->ier & IER_THR) // enabling it while the transmitter is empty interrupts at once
            r->thr_pending = 1;
        r->ier = v & IER_ALL;
        break;
    case R_IIR_FCR:
        if (v & FCR_CLEAR_RX || (v ^ r->fcr) & FCR_ENABLE)
            r->rx_len = 0;
        r->fcr = v & FCR_ENABLE ? v & FCR_KEPT : 0;
        break;
    case R_LCR:
        r->lcr = v;
        break;
    case R_MCR:
        r->mcr = v & 0x1f;
        break;
    case R_LSR:
    case R_MSR:
        break; // read-only here
    case R_SCR:
        r->scr = v;
        break;
    default:
        s->missed_writes++;
        break;
    }
    wake |= room_again(s);
    unlock_and_tell(s, wake);
}

size_t serial_tx_take(struct serial *s, uint8_t *buf, size_t n, bool watch)
{
    pthread_mutex_lock(&s->lock);
    n = MIN(n, (size_t)(s->tx_head - s->tx_tail));
    if (n == 0)
        s->watched = watch;
    for (size_t i = 0; i < n; i++)
        buf[i] = s->tx[s->tx_tail++ % SERIAL_TX_RING];
    pthread_mutex_unlock(&s->lock);
    return n;
}

static size_t room(const struct serial *s)
{
    return s->s.mcr & MCR_LOOP ? 0 : SERIAL_RX_FIFO - (size_t)s->s.rx_len;
}

size_t serial_rx_room(struct serial *s)
{
    pthread_mutex_lock(&s->lock);
    size_t n = room(s);
    s->rx_refused |= n == 0;
    pthread_mutex_unlock(&s->lock);
    return n;
}

size_t serial_rx_put(struct serial *s, const uint8_t *buf, size_t n)
{
    pthread_mutex_lock(&s->lock);
    n = MIN(n, room(s));
    memcpy(s->s.rx + s->s.rx_len, buf, n);
    s->s.rx_len = (uint8_t)(s->s.rx_len + n);
    unlock_and_tell(s, false);
    return n;
}

void serial_save(struct serial *s, struct serial_state *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->s;
    pthread_mutex_unlock(&s->lock);
}

// Sends no pulse: one that was due before the save is in the saved IOAPIC or local APIC.
int serial_load(struct serial *s, const struct serial_state *in, struct err *e)
{
    if (in->rx_len > SERIAL_RX_FIFO)
        return err_set(e, EINVAL, "serial: %u bytes do not fit in the FIFO", in->rx_len);
    if (in->ier & ~IER_ALL || in->mcr & ~0x1f || in->fcr & ~FCR_KEPT || in->lsr_overrun > 1 ||
        in->thr_pending > 1)
        return err_set(e, EINVAL, "serial: a register sets reserved bits");
    pthread_mutex_lock(&s->lock);
    s->s = *in;
    s->irq_high = iir(in) != IIR_NONE;
    pthread_mutex_unlock(&s->lock);
    return 0;
}
