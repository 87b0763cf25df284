// SPDX-License-Identifier: Apache-2.0
// i8042 keyboard controller: the reset line, Ctrl-Alt-Del, and quick answers to a driver's probes.
//
// There is no mouse. Its commands are answered at once all the same, because a silent controller
// costs Linux half a second per probe.
#include "vmm/dev/dev.h"

enum { ST_OUT = 0x01, ST_SYSTEM = 0x04, ST_COMMAND = 0x08, ST_UNLOCKED = 0x10 };
enum { CTRL_IRQ = 0x01, CTRL_SYSTEM = 0x04, CTRL_KBD_OFF = 0x10 };
enum { OUTP_NO_RESET = 0x01, OUTP_A20 = 0x02 };
enum {
    CMD_READ_CTRL = 0x20,
    CMD_WRITE_CTRL = 0x60,
    CMD_AUX_TEST = 0xa9,
    CMD_SELF_TEST = 0xaa,
    CMD_KBD_TEST = 0xab,
    CMD_KBD_OFF = 0xad,
    CMD_KBD_ON = 0xae,
    CMD_READ_OUTP = 0xd0,
    CMD_WRITE_OUTP = 0xd1,
    CMD_AUX_LOOP = 0xd3,
    CMD_AUX_WRITE = 0xd4,
    CMD_PULSE = 0xf0, // 0xf0-0xff: pulses the output bits that are 0; bit 0 is the reset line
};
enum { KBD_ACK = 0xfa, KBD_ECHO = 0xee, KBD_IDENTIFY = 0xf2, KBD_RESET = 0xff };

// Ctrl, Alt, Del pressed and released, scan code set 2.
static const uint8_t ctrl_alt_del[] = {0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0,
                                       0x71, 0xf0, 0x11, 0xf0, 0x14};

void i8042_init(struct i8042 *k, void (*irq)(void *), void (*reset)(void *), void *ctx)
{
    memset(k, 0, sizeof(*k));
    pthread_mutex_init(&k->lock, NULL);
    k->s.status = ST_SYSTEM | ST_UNLOCKED;
    k->s.ctrl = CTRL_SYSTEM | CTRL_IRQ;
    k->s.outp = OUTP_NO_RESET | OUTP_A20;
    k->irq = irq;
    k->reset = reset;
    k->ctx = ctx;
}

static bool takes_data(uint8_t cmd)
{
    return cmd == CMD_WRITE_CTRL || cmd == CMD_WRITE_OUTP || cmd == CMD_AUX_LOOP ||
           cmd == CMD_AUX_WRITE;
}

static bool want_irq(const struct i8042_state *s)
{
    return s->len && s->ctrl & CTRL_IRQ;
}

// A controller's answer goes in front of waiting keys: the driver polls for it next.
static void answer(struct i8042_state *s, uint8_t v)
{
    memmove(s->buf + 1, s->buf, sizeof(s->buf) - 1);
    s->buf[0] = v;
    s->len = (uint8_t)MIN(s->len + 1u, sizeof(s->buf));
}

static bool keys(struct i8042_state *s, const uint8_t *v, size_t n)
{
    if (n > sizeof(s->buf) - s->len)
        return false;
    memcpy(s->buf + s->len, v, n);
    s->len = (uint8_t)(s->len + n);
    return true;
}

uint8_t i8042_read(struct i8042 *k, unsigned port)
{
    uint8_t v = 0;
    bool irq = false;
    if (port != PLAT_I8042_DATA && port != PLAT_I8042_CMD) {
        k->missed_reads++;
        return 0xff;
    }
    k->reads++;
    pthread_mutex_lock(&k->lock);
    if (port == PLAT_I8042_CMD) {
        v = (uint8_t)(k->s.status | (k->s.len ? ST_OUT : 0));
    } else if (k->s.len) {
        v = k->s.buf[0];
        k->s.len--;
        memmove(k->s.buf, k->s.buf + 1, sizeof(k->s.buf) - 1);
        k->s.buf[sizeof(k->s.buf) - 1] = 0;
        irq = want_irq(&k->s);
    }
    pthread_mutex_unlock(&k->lock);
    if (irq)
        k->irq(k->ctx);
    return v;
}

// Returns true when the command pulls the reset line.
static bool command(struct i8042 *k, uint8_t v)
{
    struct i8042_state *s = &k->s;
    s->status |= ST_COMMAND;
    s->cmd = takes_data(v) ? v : 0;
    if (v >= CMD_PULSE)
        return !(v & 1);
    if (v == CMD_READ_CTRL)
        answer(s, s->ctrl);
    else if (v == CMD_READ_OUTP)
        answer(s, s->outp);
    else if (v == CMD_SELF_TEST)
        answer(s, 0x55);
    else if (v == CMD_KBD_TEST)
        answer(s, 0x00); // no error
    else if (v == CMD_AUX_TEST)
        answer(s, 0x01); // clock line stuck low: nothing is connected
    else if (v == CMD_KBD_OFF)
        s->ctrl |= CTRL_KBD_OFF;
    else if (v == CMD_KBD_ON)
        s->ctrl &= (uint8_t)~CTRL_KBD_OFF;
    else if (!s->cmd)
        k->missed_writes++;
    return false;
}

// A byte for the keyboard: everything is acknowledged, few things have an answer beyond that.
static void keyboard(struct i8042 *k, uint8_t v)
{
    static const uint8_t identity[] = {KBD_ACK, 0xab, 0x83}, reset[] = {KBD_ACK, 0xaa};
    const uint8_t one = v == KBD_ECHO ? KBD_ECHO : KBD_ACK;
    bool ok = v == KBD_IDENTIFY ? keys(&k->s, identity, sizeof(identity))
              : v == KBD_RESET  ? keys(&k->s, reset, sizeof(reset))
                                : keys(&k->s, &one, 1);
    if (!ok)
        k->errors++;
}

// Returns true when the byte pulls the reset line.
static bool data(struct i8042 *k, uint8_t v, bool *irq)
{
    struct i8042_state *s = &k->s;
    uint8_t cmd = s->cmd;
    s->status &= (uint8_t)~ST_COMMAND;
    s->cmd = 0;
    if (cmd == CMD_WRITE_OUTP) {
        s->outp = v;
        return !(v & OUTP_NO_RESET);
    }
    if (cmd == CMD_WRITE_CTRL) {
        s->ctrl = v;
        s->status = (uint8_t)((s->status & ~ST_SYSTEM) | (v & CTRL_SYSTEM ? ST_SYSTEM : 0));
    } else if (cmd == CMD_AUX_LOOP) {
        answer(s, 0xff); // without the mouse flag in status: the loop failed, there is no mouse
        return false;
    } else if (!cmd) {
        keyboard(k, v);
    }
    *irq = want_irq(s); // a key's answer, or keys that came while interrupts were off
    return false;
}

void i8042_write(struct i8042 *k, unsigned port, uint8_t v)
{
    bool irq = false, reset = false;
    if (port != PLAT_I8042_DATA && port != PLAT_I8042_CMD) {
        k->missed_writes++;
        return;
    }
    k->writes++;
    pthread_mutex_lock(&k->lock);
    reset = port == PLAT_I8042_CMD ? command(k, v) : data(k, v, &irq);
    pthread_mutex_unlock(&k->lock);
    if (irq)
        k->irq(k->ctx);
    if (reset) {
        k->resets++;
        k->reset(k->ctx);
    }
}

int i8042_ctrl_alt_del(struct i8042 *k, struct err *e)
{
    int r = 0;
    pthread_mutex_lock(&k->lock);
    if (!(k->s.ctrl & CTRL_IRQ) || k->s.ctrl & CTRL_KBD_OFF)
        r = err_set(e, ENODEV, "the guest has switched its keyboard off");
    else if (!keys(&k->s, ctrl_alt_del, sizeof(ctrl_alt_del)))
        r = err_set(e, EBUSY, "the keyboard buffer is full: the guest does not read it");
    pthread_mutex_unlock(&k->lock);
    if (r)
        k->errors++;
    else
        k->irq(k->ctx);
    return r;
}

void i8042_save(struct i8042 *k, struct i8042_state *out)
{
    pthread_mutex_lock(&k->lock);
    *out = k->s;
    pthread_mutex_unlock(&k->lock);
}

int i8042_load(struct i8042 *k, const struct i8042_state *in, struct err *e)
{
    if (in->len > sizeof(in->buf))
        return err_set(e, EINVAL, "i8042: %u bytes do not fit in the buffer", in->len);
    if (in->status & ~(ST_SYSTEM | ST_COMMAND | ST_UNLOCKED))
        return err_set(e, EINVAL, "i8042: status %#x sets reserved bits", in->status);
    if (in->cmd && !takes_data(in->cmd))
        return err_set(e, EINVAL, "i8042: command %#x takes no data", in->cmd);
    pthread_mutex_lock(&k->lock);
    k->s = *in;
    pthread_mutex_unlock(&k->lock);
    return 0;
}
