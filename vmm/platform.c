// SPDX-License-Identifier: Apache-2.0
// The guest's platform: which device answers which port or address, and the wiring of the legacy
// devices.
#include "vmm/vm_priv.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define SERIAL_LOOK_NS (NSEC_PER_SEC / 1000)

static void boot_timer(struct vm *vm)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    uint64_t us = (now_ns() - vm->t_start) / 1000;
    uint64_t cpu =
        ((uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec - vm->t_start_cpu) / 1000;
    LOG_AT(&vm->log, LOG_INFO, true, "Guest-boot-time = %6llu us %llu ms, %6llu CPU us %llu CPU ms",
           (unsigned long long)us, (unsigned long long)us / 1000, (unsigned long long)cpu,
           (unsigned long long)cpu / 1000);
}

static void guest_ready(struct vm *vm)
{
    uint64_t none = 0, us = MAX((now_ns() - vm->t_start) / 1000, 1UL);

    atomic_store(&vm->ready, true);
    atomic_compare_exchange_strong(&vm->metrics.guest_ready_us, &none, us); // the first counts
}

static void pio_write(struct vm *vm, uint16_t port, uint8_t v)
{
    if (port >= PLAT_COM1 && port < PLAT_COM1 + 8)
        serial_write(&vm->serial, port - PLAT_COM1, v);
    else if (port == PLAT_I8042_DATA || port == PLAT_I8042_CMD)
        i8042_write(&vm->i8042, port, v);
    else if (port == PLAT_ACPI_SLEEP && (v & 0x20) && (v >> 2 & 7) == PLAT_ACPI_S5)
        vm_end(vm, VM_EXIT_OK, "the guest powered off");
    else if (port == PLAT_READY)
        guest_ready(vm);
}

static uint8_t pio_read(struct vm *vm, uint16_t port)
{
    if (port >= PLAT_COM1 && port < PLAT_COM1 + 8)
        return serial_read(&vm->serial, port - PLAT_COM1);
    if (port == PLAT_I8042_DATA || port == PLAT_I8042_CMD)
        return i8042_read(&vm->i8042, port);
    if (port == PLAT_ACPI_SLEEP || port == PLAT_ACPI_SLEEP + 1)
        return 0;
    return 0xff; // nobody drives the bus
}

// Every device on a port is byte-wide; a wider access is as many byte accesses, as on the real bus.
static void pio(void *ctx, uint16_t port, bool write, unsigned len, uint8_t *data)
{
    for (unsigned i = 0; i < len; i++) {
        if (write)
            pio_write(ctx, (uint16_t)(port + i), data[i]);
        else
            data[i] = pio_read(ctx, (uint16_t)(port + i));
    }
}

static void mmio(void *ctx, uint64_t addr, bool write, unsigned len, uint8_t *data)
{
    struct vm *vm = ctx;
    uint64_t v = 0, slot = (addr - PLAT_VIRTIO) / VIO_MMIO_SIZE;

    memcpy(&v, data, MIN(len, sizeof(v)));
    if (addr >= PLAT_VIRTIO && slot < vm->nslots) {
        uint32_t off = (uint32_t)((addr - PLAT_VIRTIO) % VIO_MMIO_SIZE);
        struct vio_dev *d = vm->slot[slot].d;
        if (write)
            vio_mmio_write(d, off, len, v);
        else
            v = vio_mmio_read(d, off, len);
        if (write && off == VIO_STATUS_OFF)
            vio_reset_wait(d);
    } else if (addr >= PLAT_IOAPIC && addr < PLAT_IOAPIC + 0x1000) {
        if (write)
            ioapic_write(&vm->ioapic, addr - PLAT_IOAPIC, len, (uint32_t)v);
        else
            v = ioapic_read(&vm->ioapic, addr - PLAT_IOAPIC, len);
    } else if (addr == PLAT_BOOT_TIMER && write) {
        if (vm->opts.boot_timer && (uint8_t)v == 123)
            boot_timer(vm);
    } else if (mem_at(&vm->mem, addr, 1, MEM_READ)) { // RAM that KVM could not reach
        vm_end(vm, VM_EXIT_MEMORY, MEMORY_GONE);
    } else {
        atomic_fetch_add_explicit(&vm->metrics.unmapped_mmio, 1, memory_order_relaxed);
        LOG_GUEST(&vm->log, "guest %s of unmapped address 0x%llx", write ? "write" : "read",
                  (unsigned long long)addr);
        v = ~0ULL;
    }
    if (!write)
        memcpy(data, &v, MIN(len, sizeof(v)));
}

static void vcpu_end(void *ctx, struct vcpu *v, enum vcpu_end why, const char *text)
{
    struct vm *vm = ctx;
    char line[200];

    if (why == VCPU_END_RESET) {
        snprintf(line, sizeof(line), "the guest reset itself (%s)", text);
        vm_end(vm, VM_EXIT_OK, line);
        return;
    }
    snprintf(
        line, sizeof(line), "vCPU %u: %s%s", v->id, text,
        why == VCPU_END_INTERNAL && atomic_load(&vm->pvm)
            ? " (this host's KVM is PVM: it runs kernels built for PVM guests, not ordinary ones)"
            : "");
    vm_end(vm,
           why == VCPU_END_INTERNAL ? VM_EXIT_GUEST
           : why == VCPU_END_MEMORY ? VM_EXIT_MEMORY
                                    : VM_EXIT_HOST,
           line);
}

static void vcpu_stalled(void *ctx, struct vcpu *v, uint64_t rip)
{
    struct vm *vm = ctx;

    atomic_fetch_add(&vm->metrics.stalled_vcpus, 1);
    LOG_GUEST(&vm->log, "vCPU %u makes no progress: no exit and RIP 0x%llx for 10 s of CPU time",
              v->id, (unsigned long long)rip);
}

static int vcpu_started(void *ctx, struct vcpu *v)
{
    struct vm *vm = ctx;
    struct err e = {0};
    char name[16];

    snprintf(name, sizeof(name), "vcpu %u", v->id);
    log_thread(&vm->log, name);
    int rc = vm->opts.confine ? vm->opts.confine(VM_THREAD_VCPU, &e) : 0;
    if (rc)
        LOG_E(&vm->log, "%s", e.msg);
    return rc;
}

const struct vcpu_ops platform_vcpu_ops = {
    .pio = pio,
    .mmio = mmio,
    .end = vcpu_end,
    .stalled = vcpu_stalled,
    .started = vcpu_started,
};

static void serial_irq(void *ctx)
{
    ioapic_pulse(&((struct vm *)ctx)->ioapic, PLAT_COM1_GSI);
}

static void serial_wake(void *ctx)
{
    loop_serial(&((struct vm *)ctx)->loop);
}

static void i8042_irq(void *ctx)
{
    ioapic_pulse(&((struct vm *)ctx)->ioapic, PLAT_I8042_GSI);
}

static void i8042_reset(void *ctx)
{
    vm_end(ctx, VM_EXIT_OK, "the guest reset itself (i8042)");
}

void platform_reset(struct vm *vm)
{
    ioapic_init(&vm->ioapic, kvm_msi, vm);
    serial_init(&vm->serial, serial_irq, serial_wake, vm);
    i8042_init(&vm->i8042, i8042_irq, i8042_reset, vm);
}

void platform_init(struct vm *vm)
{
    struct limiter_cfg none = {0};

    vcpu_gate_init(&vm->gate);
    platform_reset(vm);
    limiter_init(&vm->serial_limit, &none, 0);
}

// ---- serial port to its host descriptors

// An own description with O_NONBLOCK, since setting the flag on an inherited one would change the
// terminal for everyone who shares it. Sockets cannot be reopened; for them the flag is set.
// #syscalls:boot openat fcntl
static int own_nonblock(int fd, int flags)
{
    char self[40];
    struct stat st;

    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        return fcntl(fd, F_DUPFD_CLOEXEC, 3);
    snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
    int mine = open(self, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (mine < 0) {
        mine = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (mine >= 0)
            fcntl(mine, F_SETFL, fcntl(mine, F_GETFL) | O_NONBLOCK);
    }
    return mine;
}

int platform_log_fd(void)
{
    struct stat st;
    bool blocks = fstat(STDOUT_FILENO, &st) == 0 &&
                  (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode) || isatty(STDOUT_FILENO));
    int own = blocks ? own_nonblock(STDOUT_FILENO, O_WRONLY) : -1;
    return own < 0 ? STDOUT_FILENO : own;
}

struct out_call {
    struct vm *vm;
    int fd;
};

// (D) Where the file has no place on the ring, a full FIFO is tried again ten times a second.
static int take_out(void *arg)
{
    struct out_call *c = arg;

    loop_file_del(&c->vm->loop, c->vm->serial_out_file);
    close_fdp(&c->vm->serial_out);
    c->vm->serial_out = c->fd;
    c->vm->serial_out_file = loop_file_add(&c->vm->loop, c->fd);
    return 0;
}

// Of another session's terminal nobody is.
static bool in_background(int tty)
{
    const pid_t front = tcgetpgrp(tty);
    return front >= 0 && front != getpgrp();
}

int platform_serial_open(struct vm *vm, const char *path, struct passed_fds *fds, struct err *e)
{
    if (path) {
        int fd = path_open_sink(vm, path, "serial_out_path", fds, e);
        struct out_call c = {vm, fd};
        return fd < 0 ? fd : loop_call(&vm->loop, take_out, &c);
    }
    struct stat st;
    vm->serial_out = vm->opts.serial_out >= 0 ? own_nonblock(vm->opts.serial_out, O_WRONLY) : -1;
    int in = vm->opts.serial_in;
    // A terminal that this process is in the background of is its shell's, to read and to set.
    if (in >= 0 &&
        (isatty(in) ? !in_background(in) : (fstat(in, &st) == 0 && S_ISFIFO(st.st_mode)))) {
        vm->serial_in = own_nonblock(in, O_RDONLY);
        if (isatty(in) && tcgetattr(in, &vm->tty) == 0) {
            struct termios raw = vm->tty;
            raw.c_iflag &=
                (tcflag_t) ~(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
            raw.c_lflag &=
                (tcflag_t) ~(ECHO | ECHONL | ICANON | IEXTEN); // ISIG stays: ^C ends the monitor
            vm->tty_raw = tcsetattr(in, TCSANOW, &raw) == 0;
        }
    }
    return 0;
}

void platform_serial_attach(struct vm *vm)
{
    vm->serial_in_file = vm->serial_in >= 0 ? loop_file_add(&vm->loop, vm->serial_in) : -1;
    vm->serial_out_file = vm->serial_out >= 0 ? loop_file_add(&vm->loop, vm->serial_out) : -1;
    if (vm->serial_in_file >= 0)
        loop_poll(&vm->loop, vm->serial_in_file, SLOT_SERIAL, POLLIN);
}

// glibc reads the terminal back after setting it.
// #syscalls:control ioctl(TCSETS, TCGETS)
void platform_serial_close(struct vm *vm)
{
    if (vm->tty_raw)
        tcsetattr(vm->opts.serial_in, TCSANOW, &vm->tty);
    close_fdp(&vm->serial_in);
    close_fdp(&vm->serial_out);
    vm->serial_in = vm->serial_out = -1;
}

// Guest output. What the reader does not take now stays in the ring and waits for POLLOUT; a full
// ring loses bytes, never a vCPU's time. A guest that has written writes on: for as long as it does, this thread
// looks by itself, and the vCPU does not wake it for each byte (half of the bytes' cost to it).
// #syscalls:device pwritev2(0) preadv2(0)
static void drain_out(struct vm *vm)
{
    for (bool wrote = false;; wrote = true) {
        if (vm->serial_held == 0) {
            vm->serial_held =
                serial_tx_take(&vm->serial, vm->serial_buf, sizeof(vm->serial_buf), wrote);
            if (vm->serial_held == 0) {
                if (wrote)
                    loop_timer(&vm->loop, SLOT_SERIAL, now_ns() + SERIAL_LOOK_NS);
                return;
            }
        }
        uint64_t again = limiter_take(&vm->serial_limit, vm->serial_held, now_ns());
        if (again) {
            loop_timer(&vm->loop, SLOT_SERIAL, again);
            return;
        }
        ssize_t n = vm->serial_out < 0 ? (ssize_t)vm->serial_held
                                       : fd_write(vm->serial_out, vm->serial_buf, vm->serial_held);
        const bool full = n < 0 && errno == EAGAIN;
        if (n < 0 && !full) { // reader gone: the bytes are lost and counted, the guest goes on
            atomic_fetch_add(&vm->serial.errors, 1);
            n = (ssize_t)vm->serial_held;
        }
        vm->serial_held -= full ? 0 : (size_t)n;
        limiter_refund(&vm->serial_limit, vm->serial_held); // what stays is paid for when it goes
        if (full) {
            if (vm->serial_out_file >= 0)
                loop_poll(&vm->loop, vm->serial_out_file, SLOT_SERIAL, POLLOUT);
            else
                loop_timer(&vm->loop, SLOT_SERIAL, now_ns() + 100 * SERIAL_LOOK_NS);
            return;
        }
        memmove(vm->serial_buf, vm->serial_buf + n, vm->serial_held);
    }
}

static void drain_in(struct vm *vm)
{
    uint8_t buf[SERIAL_RX_FIFO];
    size_t room = serial_rx_room(&vm->serial);

    if (vm->serial_in_file < 0 || room == 0) // serial_wake tells when the guest has made room
        return;
    ssize_t n = fd_read(vm->serial_in, buf, MIN(room, sizeof(buf)));
    if (n > 0)
        serial_rx_put(&vm->serial, buf, (size_t)n);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        loop_file_del(&vm->loop, vm->serial_in_file); // end of input, for good
        vm->serial_in_file = -1;
        return;
    }
    loop_poll(&vm->loop, vm->serial_in_file, SLOT_SERIAL, POLLIN);
}

void platform_serial_ready(void *ctx)
{
    platform_serial_event(ctx);
}

static int flush_out(void *ctx)
{
    drain_out(ctx);
    return 0;
}

void vm_flush_console(struct vm *vm)
{
    loop_call(&vm->loop, flush_out, vm);
}

void platform_serial_event(struct vm *vm)
{
    drain_in(vm);
    drain_out(vm);
}
