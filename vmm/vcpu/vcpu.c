// SPDX-License-Identifier: Apache-2.0
// vCPU threads: creation, the gate they park at, and the KVM_RUN loop with its exits.
#include "vmm/vcpu/vcpu.h"

#include <limits.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef sigev_notify_thread_id // glibc keeps its documented name to itself
#define sigev_notify_thread_id _sigev_un._tid
#endif
#define TICK_SECONDS 5
#define VCPU_STACK   (64 * KIB)

// Effect only: KVM_RUN and futex waits return EINTR.
static void on_kick(int sig)
{
    (void)sig;
}

int vcpu_signals(struct err *e)
{
    struct sigaction kick = {.sa_handler = on_kick};

    if (sigaction(VCPU_KICK_SIG, &kick, NULL) || sigaction(VCPU_TICK_SIG, &kick, NULL))
        return err_set(e, errno, "cannot set signal handlers: %s", strerror(errno));
    return 0;
}

void vcpu_gate_init(struct vcpu_gate *g)
{
    memset(g, 0, sizeof(*g));
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->move, NULL);
    pthread_cond_init(&g->idle, NULL);
}

int vcpu_create(struct vcpu *v, int vm_fd, unsigned id, size_t run_size, struct vcpu_gate *g,
                const struct vcpu_ops *ops, void *ctx, struct err *e)
{
    memset(v, 0, sizeof(*v));
    v->id = id;
    v->gate = g;
    v->ops = ops;
    v->ctx = ctx;
    v->run_size = run_size;
    v->fd = ioctl(vm_fd, KVM_CREATE_VCPU, (unsigned long)id);
    if (v->fd < 0)
        return err_set(e, errno, "KVM cannot create vCPU %u: %s", id, strerror(errno));
    void *p = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
    if (p == MAP_FAILED) {
        int rc = err_set(e, errno, "cannot map vCPU %u: %s", id, strerror(errno));
        close_fdp(&v->fd);
        v->fd = -1;
        return rc;
    }
    v->run = p;
    return 0;
}

void vcpu_destroy(struct vcpu *v)
{
    if (v->run)
        munmap(v->run, v->run_size);
    v->run = NULL;
    close_fdp(&v->fd);
    v->fd = -1;
}

// A guest that makes no exit and stands at one instruction for two ticks of its own CPU time is
// reported once per stall. A sleeping guest uses no CPU time, so it neither ticks nor wakes the
// monitor.
// Whether a tick has come is read off the clock that drives it: whoever runs as the same user can send
// the signal too, with any value in it, so nothing that comes with it is believed.
static void check_stall(struct vcpu *v)
{
    struct kvm_regs r;
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    if (t.tv_sec < v->tick_due)
        return;
    v->tick_due = t.tv_sec + TICK_SECONDS;
    // #syscalls:vcpu ioctl(KVM_GET_REGS@VCPU)
    if (ioctl(v->fd, KVM_GET_REGS, &r))
        return;
    if (v->tick_exits == v->exits && v->tick_rip == r.rip) {
        v->ops->stalled(v->ctx, v, r.rip);
        v->tick_rip = 0;
    } else {
        v->tick_rip = r.rip;
    }
    v->tick_exits = v->exits;
}

static void exit_io(struct vcpu *v)
{
    struct kvm_run *run = v->run;
    bool out = run->io.direction == KVM_EXIT_IO_OUT;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;

    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size)
        v->ops->pio(v->ctx, run->io.port, out, run->io.size, data);
    atomic_fetch_add_explicit(out ? &v->n_pio_out : &v->n_pio_in, 1, memory_order_relaxed);
}

static void exit_mmio(struct vcpu *v)
{
    struct kvm_run *run = v->run;
    bool write = run->mmio.is_write;

    v->ops->mmio(v->ctx, run->mmio.phys_addr, write, run->mmio.len, run->mmio.data);
    atomic_fetch_add_explicit(write ? &v->n_mmio_write : &v->n_mmio_read, 1, memory_order_relaxed);
}

static void finish(struct vcpu *v, enum vcpu_end why, const char *text)
{
    v->done = true;
    if (why != VCPU_END_RESET)
        atomic_fetch_add_explicit(&v->n_failures, 1, memory_order_relaxed);
    v->ops->end(v->ctx, v, why, text);
}

static void exit_internal(struct vcpu *v)
{
    char text[160];
    const struct kvm_run *run = v->run;

    if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION) {
        struct kvm_regs r = {0};
        ioctl(v->fd, KVM_GET_REGS, &r);
        snprintf(text, sizeof(text), "KVM could not emulate an instruction at RIP 0x%llx",
                 (unsigned long long)r.rip);
    } else {
        snprintf(text, sizeof(text), "KVM internal error, suberror %u", run->internal.suberror);
    }
    finish(v, VCPU_END_INTERNAL, text);
}

static void serve_exit(struct vcpu *v)
{
    struct kvm_run *run = v->run;
    char text[120];

    v->exits++;
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        exit_io(v);
        break;
    case KVM_EXIT_MMIO:
        exit_mmio(v);
        break;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_IOAPIC_EOI: // every source is an edge: nothing waits for an EOI
    case KVM_EXIT_HLT:
        break;
    case KVM_EXIT_SHUTDOWN:
        finish(v, VCPU_END_RESET, "triple fault");
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        finish(v, VCPU_END_RESET, "system event");
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        exit_internal(v);
        break;
    case KVM_EXIT_FAIL_ENTRY:
        snprintf(text, sizeof(text), "KVM could not enter the guest, reason 0x%llx",
                 (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
        finish(v, VCPU_END_INTERNAL, text);
        break;
    default:
        snprintf(text, sizeof(text), "unexpected KVM exit %u", run->exit_reason);
        finish(v, VCPU_END_INTERNAL, text);
        break;
    }
}

// Waits while the gate is shut. False: the thread must end.
static bool at_gate(struct vcpu *v)
{
    struct vcpu_gate *g = v->gate;

    pthread_mutex_lock(&g->lock);
    if (g->mode == VCPU_PARK || (v->done && g->mode != VCPU_QUIT)) {
        g->parked++;
        pthread_cond_signal(&g->idle);
        while (g->mode == VCPU_PARK || (v->done && g->mode != VCPU_QUIT))
            pthread_cond_wait(&g->move, &g->lock);
        g->parked--;
    }
    bool go_on = g->mode == VCPU_RUN;
    if (go_on)
        v->run->immediate_exit = 0;
    pthread_mutex_unlock(&g->lock);
    return go_on;
}

// CPU-time timer, directed at this thread: fires only while the guest executes. Without one (an odd
// host) stalls go unreported, which is no reason not to run.
// #syscalls:config timer_create timer_settime
static void start_timer(struct vcpu *v)
{
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = VCPU_TICK_SIG};
    struct itimerspec every = {.it_interval = {.tv_sec = TICK_SECONDS},
                               .it_value = {.tv_sec = TICK_SECONDS}};

    ev.sigev_notify_thread_id = v->tid;
    v->tick_due = TICK_SECONDS;
    v->has_timer = timer_create(CLOCK_THREAD_CPUTIME_ID, &ev, &v->timer) == 0;
    if (v->has_timer)
        timer_settime(v->timer, 0, &every, NULL);
}

// #syscalls:config gettid getpid
// #syscalls:vcpu ioctl(KVM_RUN@VCPU) futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE) rt_sigreturn rt_sigprocmask exit
static void *vcpu_main(void *arg)
{
    struct vcpu *v = arg;

    v->pid = getpid();
    v->tid = gettid();
    start_timer(v);
    if (v->ops->started(v->ctx, v)) {
        finish(v, VCPU_END_HOST, "cannot confine the vCPU thread");
    }
    while (at_gate(v)) {
        // Until an immediate exit says that the last access is complete, the thread does not park.
        for (;;) {
            if (ioctl(v->fd, KVM_RUN, 0) == 0) {
                serve_exit(v);
                if (v->done)
                    break;
            } else if (errno == EINTR || errno == EAGAIN) {
                check_stall(v);
                break;
            } else if (errno == EFAULT) {
                finish(v, VCPU_END_MEMORY,
                       "guest memory is gone: its file was cut short, or its page server ended");
                break;
            } else {
                char text[120];
                snprintf(text, sizeof(text), "KVM_RUN failed: %s", strerror(errno));
                finish(v, VCPU_END_HOST, text);
                break;
            }
        }
    }
    thread_end();
}

// #syscalls:config clone(THREAD) mmap(!PROT_EXEC) mprotect(!PROT_EXEC) rt_sigprocmask
int vcpu_thread(struct vcpu *v, struct err *e)
{
    pthread_attr_t a;

    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, MAX(VCPU_STACK, (size_t)PTHREAD_STACK_MIN));
    int rc = pthread_create(&v->thread, &a, vcpu_main, v);
    pthread_attr_destroy(&a);
    if (rc)
        return err_set(e, rc, "cannot start the thread of vCPU %u: %s", v->id, strerror(rc));
    v->has_thread = true;
    return 0;
}

static void move_gate(struct vcpu *all, enum vcpu_mode mode)
{
    pthread_mutex_lock(&all->gate->lock);
    if (mode != VCPU_RUN || !all->gate->halted)
        all->gate->mode = mode;
    pthread_cond_broadcast(&all->gate->move);
    pthread_mutex_unlock(&all->gate->lock);
}

void vcpu_go(struct vcpu *all, unsigned n)
{
    if (n)
        move_gate(all, VCPU_RUN);
}

// immediate_exit stays set until the thread passes the gate again, so a kick that comes between an
// exit and the next KVM_RUN is not lost.
static void kick_all(struct vcpu *all, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        all[i].run->immediate_exit = 1;
        atomic_thread_fence(memory_order_seq_cst);
        // Without an id the thread has not reached its gate, where it finds the new mode.
        pid_t tid = all[i].tid;
        if (all[i].has_thread && tid)
            syscall(SYS_tgkill, all[i].pid, tid, VCPU_KICK_SIG);
    }
}

// Not pthread_kill, which masks every signal and asks for the process each time.
// #syscalls:control tgkill(2:SIGUSR1) futex(FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE)
void vcpu_park(struct vcpu *all, unsigned n)
{
    if (!n)
        return;
    move_gate(all, VCPU_PARK);
    kick_all(all, n);
    pthread_mutex_lock(&all->gate->lock);
    unsigned want = 0;
    for (unsigned i = 0; i < n; i++)
        want += all[i].has_thread;
    while (all->gate->parked < want)
        pthread_cond_wait(&all->gate->idle, &all->gate->lock);
    pthread_mutex_unlock(&all->gate->lock);
}

void vcpu_halt(struct vcpu *all, unsigned n)
{
    if (!n)
        return;
    pthread_mutex_lock(&all->gate->lock);
    all->gate->halted = true; // a resume that is under way must not undo it
    pthread_mutex_unlock(&all->gate->lock);
    move_gate(all, VCPU_PARK);
    for (unsigned i = 0; i < n; i++)
        all[i].run->immediate_exit = 1;
}

// The end of the process takes the timers with it, so the last stop needs no call for them.
// #syscalls:config timer_delete
void vcpu_stop(struct vcpu *all, unsigned n, bool last)
{
    if (!n)
        return;
    vcpu_park(all, n);
    move_gate(all, VCPU_QUIT);
    for (unsigned i = 0; i < n; i++) {
        if (all[i].has_thread) {
            pthread_join(all[i].thread, NULL);
            if (all[i].has_timer && !last)
                timer_delete(all[i].timer);
        }
        all[i].has_thread = false;
    }
}

static struct kvm_segment flat(uint16_t sel, uint8_t type, bool long_mode)
{
    return (struct kvm_segment){
        .limit = 0xffffffff,
        .selector = sel,
        .type = type,
        .present = 1,
        .s = 1,
        .g = 1,
        .db = !long_mode,
        .l = long_mode,
    };
}

// #syscalls:config ioctl(KVM_GET_SREGS@VCPU, KVM_SET_SREGS@VCPU, KVM_SET_REGS@VCPU, KVM_SET_FPU@VCPU)
int vcpu_set_boot_regs(int fd, bool long_mode, uint64_t rip, uint64_t rsi_or_rbx, uint64_t rsp,
                       uint64_t cr3, uint64_t gdt, uint64_t idt, struct err *e)
{
    struct kvm_sregs s;
    struct kvm_regs r = {.rflags = 2, .rip = rip, .rsp = rsp, .rbp = rsp};

    if (ioctl(fd, KVM_GET_SREGS, &s))
        return err_set(e, errno, "KVM_GET_SREGS: %s", strerror(errno));
    s.cs = flat(0x08, 0xb, long_mode);
    s.ds = s.es = s.fs = s.gs = s.ss = flat(0x10, 3, false);
    s.tr = (struct kvm_segment){
        .limit = 0x67, .selector = 0x18, .type = 0xb, .present = 1, .s = 0, .g = 0};
    s.gdt.base = gdt;
    s.gdt.limit = 4 * 8 - 1;
    s.idt.base = idt;
    s.idt.limit = 7;
    s.cr0 = 0x11; // PE, ET
    s.cr4 = 0;
    s.efer = 0;
    if (long_mode) {
        s.cr3 = cr3;
        s.cr4 = 0x20;        // PAE
        s.cr0 |= 0x80000000; // PG
        s.efer = 0x500;      // LME, LMA
        r.rsi = rsi_or_rbx;
    } else {
        r.rbx = rsi_or_rbx;
        r.rsp = 0;
        r.rbp = 0;
    }
    if (ioctl(fd, KVM_SET_SREGS, &s))
        return err_set(e, errno, "KVM_SET_SREGS: %s", strerror(errno));
    if (ioctl(fd, KVM_SET_REGS, &r))
        return err_set(e, errno, "KVM_SET_REGS: %s", strerror(errno));
    struct kvm_fpu f = {.fcw = 0x37f, .mxcsr = 0x1f80};
    if (ioctl(fd, KVM_SET_FPU, &f))
        return err_set(e, errno, "KVM_SET_FPU: %s", strerror(errno));
    return 0;
}
