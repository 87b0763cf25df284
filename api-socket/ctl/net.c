// SPDX-License-Identifier: Apache-2.0
// Network namespaces that look alike from inside: one tap, the same addresses, the same MAC.
//
// All by ioctl in the calling thread, which setns moves; a child process a namespace would cost more
// than the namespace.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "api-socket/ctl/ctl.h"

#define RUN_NETNS "/run/netns"

static bool parse_ip(const char *s, size_t n, uint32_t *out)
{
    char t[16];
    struct in_addr a;

    if (n >= sizeof(t))
        return false;
    memcpy(t, s, n);
    t[n] = 0;
    if (inet_pton(AF_INET, t, &a) != 1)
        return false;
    *out = ntohl(a.s_addr);
    return true;
}

int net_parse(struct net_plan *p, const char *host, const char *guest, struct err *e)
{
    const char *slash = guest + strcspn(guest, "/");

    p->prefix_len = 24;
    if (*slash)
        p->prefix_len = (unsigned)atoi(slash + 1);
    if (!parse_ip(guest, (size_t)(slash - guest), &p->guest) || p->prefix_len < 8 ||
        p->prefix_len > 30)
        return err_set(e, EINVAL, "--guest: an IPv4 address, /8 to /30, not %.60s", guest);
    p->host = (p->guest & ~0U << (32 - p->prefix_len)) + 1;
    if (host && !parse_ip(host, strlen(host), &p->host))
        return err_set(e, EINVAL, "--host: an IPv4 address, not %.60s", host);
    if (p->host == p->guest)
        return err_set(e, EINVAL, "--host and --guest have the same address");
    static const uint8_t mac[6] = {0x02, 'M', 'a', 'y', 'f', 'l'};
    memcpy(p->host_mac, mac, 6);
    return 0;
}

static void ns_path(const char *name, char path[CTL_PATH])
{
    snprintf(path, CTL_PATH, "%s/%s", RUN_NETNS, name);
}

// As iproute2 does: a mount point of its own whose mounts every namespace sees, so that `ip netns` can
// work with what stands there.
static int prepare_dir(struct err *e)
{
    if (mkdir(RUN_NETNS, 0755) && errno != EEXIST)
        return err_set(e, errno, "cannot make %s: %s", RUN_NETNS, strerror(errno));
    if (mount("", RUN_NETNS, "none", MS_SHARED | MS_REC, NULL) == 0)
        return 0;
    if (errno != EINVAL || mount(RUN_NETNS, RUN_NETNS, "none", MS_BIND | MS_REC, NULL) ||
        mount("", RUN_NETNS, "none", MS_SHARED | MS_REC, NULL))
        return err_set(e, errno, "cannot mount %s: %s", RUN_NETNS, strerror(errno));
    return 0;
}

static void set_addr(struct ifreq *r, uint32_t ip)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(ip)};
    memcpy(&r->ifr_addr, &a, sizeof(a));
}

// Neighbour and multicast chatter would wake guests that sleep.
static void no_ipv6(void)
{
    _cleanup_(close_fdp) int fd =
        open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "1", 1) != 1)
        errno = 0; // a kernel without IPv6 has nothing to switch off
}

static int lift(int s, const char *name, struct err *e)
{
    struct ifreq r = {.ifr_flags = IFF_UP | IFF_RUNNING};

    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
    return ioctl(s, SIOCSIFFLAGS, &r)
               ? err_set(e, errno, "cannot bring %s up: %s", name, strerror(errno))
               : 0;
}

// The guest's MAC is known from its snapshot, so nobody needs to ask.
static void know_guest(int s, const struct net_plan *p)
{
    struct arpreq a = {.arp_flags = ATF_COM | ATF_PERM};
    struct sockaddr_in ip = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(p->guest)};

    if (!p->has_guest_mac)
        return;
    memcpy(&a.arp_pa, &ip, sizeof(ip));
    a.arp_ha.sa_family = ARPHRD_ETHER;
    memcpy(a.arp_ha.sa_data, p->guest_mac, 6);
    snprintf(a.arp_dev, sizeof(a.arp_dev), "%s", p->tap);
    ioctl(s, SIOCSARP, &a); // without it ARP finds out
}

static int tap_make(const struct net_plan *p, int s, struct err *e)
{
    struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};

    _cleanup_(close_fdp) int tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", p->tap);
    if (tun < 0 || ioctl(tun, TUNSETIFF, &r) || ioctl(tun, TUNSETPERSIST, 1))
        return err_set(e, errno, "cannot make the tap %s: %s", p->tap, strerror(errno));
    memset(&r.ifr_ifru, 0, sizeof(r.ifr_ifru));
    r.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(r.ifr_hwaddr.sa_data, p->host_mac, 6);
    if (ioctl(s, SIOCSIFHWADDR, &r))
        return err_set(e, errno, "%s: cannot set its MAC: %s", p->tap, strerror(errno));
    set_addr(&r, p->host);
    if (ioctl(s, SIOCSIFADDR, &r))
        return err_set(e, errno, "%s: cannot set its address: %s", p->tap, strerror(errno));
    set_addr(&r, ~0U << (32 - p->prefix_len));
    if (ioctl(s, SIOCSIFNETMASK, &r))
        return err_set(e, errno, "%s: cannot set its netmask: %s", p->tap, strerror(errno));
    return lift(s, p->tap, e);
}

int net_make(const char *name, const struct net_plan *p, struct err *e)
{
    char path[CTL_PATH];

    ns_path(name, path);
    if (access(RUN_NETNS "/.", F_OK) || access(path, F_OK)) {
        int rc = prepare_dir(e);
        if (rc)
            return rc;
    }
    _cleanup_(close_fdp) int f = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0);
    if (f < 0)
        return err_set(e, errno, "cannot make the namespace %s: %s", name, strerror(errno));
    if (unshare(CLONE_NEWNET) || mount("/proc/thread-self/ns/net", path, "none", MS_BIND, NULL)) {
        err_set(e, errno, "cannot make the namespace %s: %s", name, strerror(errno));
        unlink(path);
        return -EPERM;
    }
    no_ipv6();
    _cleanup_(close_fdp) int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int rc = s < 0 ? err_set(e, errno, "socket: %s", strerror(errno)) : lift(s, "lo", e);
    if (rc == 0)
        rc = tap_make(p, s, e);
    if (rc == 0)
        know_guest(s, p);
    else
        net_remove(name);
    return rc;
}

void net_remove(const char *name)
{
    char path[CTL_PATH];

    ns_path(name, path);
    umount2(path, MNT_DETACH);
    unlink(path);
}

int net_enter(const char *name, struct err *e)
{
    char path[CTL_PATH];

    ns_path(name, path);
    _cleanup_(close_fdp) int f = open(path, O_RDONLY | O_CLOEXEC);
    if (f < 0 || setns(f, CLONE_NEWNET))
        return err_set(e, errno, "cannot enter the namespace %s: %s", name, strerror(errno));
    return 0;
}

// Attaching brings the carrier up, but a worker of the kernel opens the queue a moment later: what is sent
// before that is dropped, and a lost SYN costs a second. Asking for the link makes the kernel (6.8 and
// later) do that work at once; on older ones the flag is waited for.
static void wait_for_link(int s, const char *tap)
{
    struct ethtool_value v = {.cmd = ETHTOOL_GLINK};
    struct ifreq r = {.ifr_flags = 0};

    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", tap);
    memcpy(&r.ifr_data, &(void *){&v}, sizeof(r.ifr_data));
    ioctl(s, SIOCETHTOOL, &r);
    for (int i = 0; i < 200 && ioctl(s, SIOCGIFFLAGS, &r) == 0 && !(r.ifr_flags & IFF_RUNNING); i++)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

// TUNSETIFF would make a tap that is not there, and one that nobody addressed.
int net_open_tap(const char *tap, struct err *e)
{
    struct ifreq r = {.ifr_flags = 0};

    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", tap);
    _cleanup_(close_fdp) int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0 || ioctl(s, SIOCGIFINDEX, &r))
        return err_set(e, ENODEV, "there is no interface %s in the namespace", tap);
    _cleanup_(close_fdp) int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(e, errno, "cannot open /dev/net/tun: %s", strerror(errno));
    r.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    // A monitor that was killed lets go of its tap when its ring is torn down, which takes a moment.
    for (int tries = 0; ioctl(fd, TUNSETIFF, &r); tries++) {
        if (errno != EBUSY || tries == 40)
            return err_set(e, errno, "cannot attach to %s: %s", tap, strerror(errno));
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    wait_for_link(s, tap);
    return steal_fd(&fd);
}

int net_probe(const struct net_plan *p, uint16_t port, struct err *e)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(p->guest)};

    _cleanup_(close_fdp) int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s < 0 || (connect(s, (struct sockaddr *)&a, sizeof(a)) && errno != EINPROGRESS))
        return err_set(e, errno, "cannot reach the guest: %s", strerror(errno));
    return steal_fd(&s);
}
