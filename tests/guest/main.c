// SPDX-License-Identifier: Apache-2.0
// The function guest: finds its devices, tells that it is ready, then serves or measures as mode=
// says.
#include "bench.h"
#include "http.h"

#define DEV_MAX 12

static struct vdev devs[DEV_MAX];
static unsigned dev_n;
uint64_t resets;

static void find_devices(void)
{
    uint16_t depth = (uint16_t)arg_u64("blk.queue", 128);
    dev_n = vdev_scan(devs, DEV_MAX);
    for (unsigned i = 0; i < dev_n; i++) {
        bool ok = true;
        if (devs[i].id == VIRTIO_NET && !net.up)
            ok = net_start(&devs[i]);
        else if (devs[i].id == VIRTIO_BLK)
            ok = blk_start(&devs[i], depth);
        if (!ok)
            say("guest: device %u (type %u) refused\n", i, devs[i].id);
    }
}

static void config_changed(struct vdev *d)
{
    bool broken =
        vdev_status(d) & VIRTIO_NEEDS_RESET; // 2.1.2: told by a configuration interrupt, too
    resets += broken;
    if (d == net.dev && broken) {
        tcp_unhold_all(NULL); // their buffers go back to the device
        net_start(d);
    } else if (d == net.dev) {
        net_config_changed();
    }
    for (unsigned i = 0; i < blk_n; i++)
        if (blks[i].dev == d)
            broken ? blk_restart(&blks[i]) : disk_config_changed(&blks[i]);
}

// *due gets the earliest time that a status register must be read.
static void look_at_configs(uint64_t now, bool progress, uint64_t *due)
{
    for (unsigned i = 0; i < dev_n; i++) {
        if (vdev_config_changed(&devs[i], now, progress))
            config_changed(&devs[i]);
        if (devs[i].isr_due && (!*due || devs[i].isr_due < *due))
            *due = devs[i].isr_due;
    }
}

static void set_timer(uint64_t t)
{
    static uint64_t armed;
    static uint32_t fired;
    uint64_t now = rdtsc();
    // Asked of the interrupt count too: a monitor may fire a little before the hour.
    if (irqs[0] != fired || (int64_t)(now - armed) >= 0)
        armed = 0;
    fired = irqs[0];
    // An earlier alarm than needed costs one idle turn, less than setting it anew each time.
    if (!t || (armed && armed <= t))
        return;
    timer_at(t);
    armed = t;
}

static uint64_t earliest(uint64_t a, uint64_t b)
{
    return !a ? b : !b ? a : MIN(a, b);
}

// Everything that may be due is asked; only when nobody has anything does the CPU sleep.
static void serve(void)
{
    bool another = false; // than before: a clone that is not ready yet
    uint64_t poll = us_tsc(arg_u64("poll", 0)), busy_until = 0, last = rdtsc(), wakeups = 0;
    for (;;) {
        wake = 0;
        BARRIER();
        uint64_t now = rdtsc(), due = 0;
        if (now < last)
            tcp_clock_jumped(now);
        last = now;
        if (generation_changed()) {
            ip_announce();
            disk_who_again();
            another = true;
        }
        // A clone learns who it is before it answers anyone.
        bool any = !disk_who_pending() && net_poll();
        any |= blk_poll();
        if (another && !disk_who_pending()) {
            another = false;
            announce_again();
        }
        tcp_timers(now);
        look_at_configs(now, any, &due);
        bool stay = api_tick(now);
        tcp_flush();
        blk_flush_doorbells();
        net_flush();
        if (any)
            busy_until = now + poll;
        if (any || stay || now < busy_until) {
            api_loop_seen(now, 0, false);
            continue;
        }
        bool late = !disk_who_pending() && net_arm(); // its interrupt is the one to sleep for
        if (blk_arm() || late)
            continue;
        due = earliest(due, earliest(tcp_next_timer(), api_next_timer()));
        set_timer(due);
        api_loop_seen(now, 0, false);
        cpu_sleep();
        wakeups++;
        api_loop_seen(rdtsc(), due, true);
    }
}

void guest_main(void)
{
    ip_init();
    find_devices();
    api_init();
    disk_init();
    blk_flush_doorbells();
    if (net.up) {
        ip_announce();
        net_flush();
    }
    announce_ready();
    say("mayfly-guest: ready\n");
    if (arg_is("mode", "hello"))
        power_off();
    bench_main();
    serve();
}
