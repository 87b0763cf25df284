// SPDX-License-Identifier: Apache-2.0
// Taps: attaching, checking, offloads. Source: the kernel's Documentation/networking/tuntap.rst.
#include "virtio/net_priv.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#define BUSY_STEP_MS 5
#define BUSY_MAX_MS  200

static int name_error(int code, const char *name, struct err *e)
{
    switch (code) {
    case EBUSY:
        return err_set(e, code, "tap %s is in use", name);
    case EPERM:
        return err_set(e, code, "tap %s does not exist, or is not ours to attach to", name);
    default:
        return err_set(e, code, "tap %s: %s", name, strerror(code));
    }
}

// #syscalls:config ioctl(TUNSETIFF) clock_nanosleep
static int attach(int fd, const char *name, struct err *e)
{
    const size_t len = strlen(name);
    // The kernel would take "%d" for a wish to choose a free number.
    if (len == 0 || len >= IFNAMSIZ || strchr(name, '%') || strchr(name, '/'))
        return err_set(e, EINVAL, "tap name must be 1 to %d bytes without %% and /", IFNAMSIZ - 1);
    struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    memcpy(r.ifr_name, name, len);
    for (int waited = 0;; waited += BUSY_STEP_MS) {
        if (ioctl(fd, TUNSETIFF, &r) == 0)
            return 0;
        if (errno != EBUSY || waited >= BUSY_MAX_MS)
            return name_error(errno, name, e);
        const struct timespec t = {.tv_nsec = BUSY_STEP_MS * 1000000};
        clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
    }
}

// #syscalls:config ioctl(TUNGETIFF) ioctl(TUNSETVNETHDRSZ) fcntl(F_GETFL, F_SETFL)
int net_tap_setup(int tun_fd, const char *name, struct err *e)
{
    if (name) {
        int rc = attach(tun_fd, name, e);
        if (rc < 0)
            return rc;
    }
    struct ifreq r = {.ifr_flags = 0};
    if (ioctl(tun_fd, TUNGETIFF, &r) < 0)
        return err_set(e, EINVAL, "the descriptor is not attached to a tap");
    const int need = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if ((r.ifr_flags & need) != need)
        return err_set(e, EINVAL,
                       "the tap must be of type TAP, without packet information, with "
                       "virtio header");
    const int hdr = NET_HDR_LEN;
    if (ioctl(tun_fd, TUNSETVNETHDRSZ, &hdr) < 0)
        return err_set(e, errno, "cannot set the tap's header size: %s", strerror(errno));
    const int fl = fcntl(tun_fd, F_GETFL);
    if (fl < 0 || fcntl(tun_fd, F_SETFL, fl | O_NONBLOCK) < 0)
        return err_set(e, errno, "cannot make the tap non-blocking: %s", strerror(errno));
    return 0;
}

static const struct {
    unsigned tun;
    uint64_t guest, host;
} offload[] = {
    {TUN_F_CSUM, NET_F_GUEST_CSUM, NET_F_CSUM},
    {TUN_F_TSO4, NET_F_GUEST_TSO4, NET_F_HOST_TSO4},
    {TUN_F_TSO6, NET_F_GUEST_TSO6, NET_F_HOST_TSO6},
    {TUN_F_UFO, NET_F_GUEST_UFO, NET_F_HOST_UFO},
};

// #syscalls:device ioctl(TUNSETOFFLOAD)
// #syscalls:config ioctl(TUNSETOFFLOAD)
int net_tap_set_offloads(int fd, uint64_t features)
{
    unsigned long flags = 0;
    for (size_t i = 0; i < ARRAY_SIZE(offload); i++)
        if (features & offload[i].guest)
            flags |= offload[i].tun;
    if (!(flags & TUN_F_CSUM)) // segmentation stands on checksums (5.1.3.1)
        flags = 0;
    return ioctl(fd, TUNSETOFFLOAD, flags) < 0 ? -errno : 0;
}

uint64_t net_tap_offloads(int fd)
{
    const uint64_t all = NET_F_GUEST_CSUM | NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_UFO;
    const bool every = net_tap_set_offloads(fd, all) == 0; // one call where the kernel has them all
    uint64_t can = 0;
    for (size_t i = 0; i < ARRAY_SIZE(offload); i++)
        if (every || net_tap_set_offloads(fd, offload[i].guest | NET_F_GUEST_CSUM) == 0)
            can |= offload[i].guest | offload[i].host;
    net_tap_set_offloads(fd, 0);
    return can;
}
