// SPDX-License-Identifier: Apache-2.0
// vmm/dev: the legacy devices a microVM still needs: 16550 serial, i8042 for reset, IOAPIC.
//
// vCPU threads call the *_read and *_write functions on port and MMIO exits; the device thread
// moves serial bytes and pulses interrupts. Each device locks itself. State structs are plain data
// for snapshots, taken and put with the VM paused; *_load validates every field. Guests may access
// any register in any order: unknown ones read 0 (or all ones where hardware does) and ignore
// writes.
#ifndef VMM_DEV_DEV_H
#define VMM_DEV_DEV_H

#include <pthread.h>
#include <stdatomic.h>

#include "vmm/base.h"
#include "vmm/dev/platform.h"

// ---- IOAPIC (Intel 82093AA): user-space half of the split irqchip
// Every source in this machine is an edge: a pulse becomes one MSI at once, or is kept pending while
// its entry is masked and sent at unmask, so that no interrupt is lost. Level-triggered entries work
// as edges and never set Remote IRR.

struct ioapic_state {
    uint32_t id, sel;
    uint64_t rte[PLAT_IOAPIC_PINS];
    uint32_t pending; // pulses that arrived while masked
};

struct ioapic {
    pthread_mutex_t lock;
    struct ioapic_state s;
    void (*msi)(void *ctx, uint64_t addr,
                uint32_t data); // called without the lock held, any thread
    void *ctx;
};

void ioapic_init(struct ioapic *io, void (*msi)(void *, uint64_t, uint32_t), void *ctx);
void ioapic_pulse(struct ioapic *io, unsigned pin);
uint32_t ioapic_read(struct ioapic *io, uint64_t off, unsigned len);
void ioapic_write(struct ioapic *io, uint64_t off, unsigned len, uint32_t v);
void ioapic_save(struct ioapic *io, struct ioapic_state *s);
int ioapic_load(struct ioapic *io, const struct ioapic_state *s, struct err *e);

// ---- 16550A serial port
// Guest output goes into a ring that the device thread drains; a full ring loses bytes and counts
// them, and never stops a vCPU. Input waits in a 64-byte FIFO beyond which serial_rx_room says no. A
// token bucket may limit output.

#define SERIAL_TX_RING 4096
#define SERIAL_RX_FIFO 64

struct serial_state {
    uint8_t ier, lcr, mcr, scr, fcr, dll, dlm;
    uint8_t lsr_overrun, thr_pending; // THR-empty interrupt not yet taken
    uint8_t rx_len;
    uint8_t rx[SERIAL_RX_FIFO];
};

struct serial {
    pthread_mutex_t lock;
    struct serial_state s;
    uint8_t tx[SERIAL_TX_RING];
    uint32_t tx_head, tx_tail; // free-running
    bool irq_high;             // last computed INTR line: a pulse is sent on its rise
    bool watched;              // the ring is looked at again without a wake
    bool rx_refused;           // serial_rx_room said 0 and no wake has followed
    void (*irq)(void *ctx);    // pulse COM1's GSI; no lock held
    void (*wake)(void *ctx); // device thread: drain the ring, or input has room again; no lock held
    void *ctx;
    _Atomic uint64_t reads, writes, missed_reads, missed_writes, lost; // kept here
    _Atomic uint64_t written, rate_limited, errors; // kept by whoever drains: bytes out, bytes
                                                    // dropped by the limit, failed writes
};

void serial_init(struct serial *s, void (*irq)(void *), void (*wake)(void *), void *ctx);
uint8_t serial_read(struct serial *s, unsigned off);
void serial_write(struct serial *s, unsigned off, uint8_t v);
// Device thread. Of an empty ring: whether the caller looks again by itself, soon, so that the next byte need not wake it.
size_t serial_tx_take(struct serial *s, uint8_t *buf, size_t n, bool watch);
size_t serial_rx_room(struct serial *s);
size_t serial_rx_put(struct serial *s, const uint8_t *buf, size_t n);
void serial_save(struct serial *s, struct serial_state *out);
int serial_load(struct serial *s, const struct serial_state *in, struct err *e);

// ---- i8042 keyboard controller: reset line and Ctrl-Alt-Del

struct i8042_state {
    uint8_t status, ctrl, outp, cmd; // cmd: a command byte that awaits its data, or 0
    uint8_t len;
    uint8_t buf[16];
};

struct i8042 {
    pthread_mutex_t lock;
    struct i8042_state s;
    void (*irq)(void *ctx);   // pulse GSI 1; no lock held
    void (*reset)(void *ctx); // 0xfe: the guest resets the machine; no lock held
    void *ctx;
    _Atomic uint64_t errors, resets, reads, writes, missed_reads, missed_writes;
};

void i8042_init(struct i8042 *k, void (*irq)(void *), void (*reset)(void *), void *ctx);
uint8_t i8042_read(struct i8042 *k, unsigned port);
void i8042_write(struct i8042 *k, unsigned port, uint8_t v);
// Queues the scan codes. -EBUSY: buffer full; -ENODEV: the guest switched the keyboard off.
int i8042_ctrl_alt_del(struct i8042 *k, struct err *e);
void i8042_save(struct i8042 *k, struct i8042_state *out);
int i8042_load(struct i8042 *k, const struct i8042_state *in, struct err *e);

#endif
