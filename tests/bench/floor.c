// SPDX-License-Identifier: Apache-2.0
// The floor that no monitor on this host can go below: the bare system calls, nothing parsed, nothing
// confined, no thread but one.
//
//   floor api SOCK       socket, bind, listen, then sleep
//   floor boot MIB       a VM that writes one byte, which is passed on to standard output; then sleep
//   floor blk FILE OP SIZE SECS    pread or pwrite at random offsets, or in a row
//   floor tap NAME SIZE SECS       frames written to a tap as a device would
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static int api(char **v)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", v[0]);
    must(!bind(fd, (struct sockaddr *)&sa, sizeof(sa)) && !listen(fd, 8), v[0]);
    return pause();
}

// Order as docs/architecture.md says: split irqchip, vCPU, memory.
static int boot(char **v)
{
    static const uint8_t code[] = {0xba, 0xf8, 0x03, 0xb0, 'F', 0xee, 0xf4}; // out 0x3f8, 'F'; hlt
    size_t size = strtoul(v[0], NULL, 10) << 20;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = ioctl(kvm, KVM_CREATE_VM, 0UL);
    must(vm >= 0, "KVM_CREATE_VM");
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    must(!ioctl(vm, KVM_ENABLE_CAP, &split), "KVM_CAP_SPLIT_IRQCHIP");
    int cpu = ioctl(vm, KVM_CREATE_VCPU, 0UL);
    must(cpu >= 0, "KVM_CREATE_VCPU");
    uint8_t *m = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct kvm_userspace_memory_region r = {.memory_size = size, .userspace_addr = (uintptr_t)m};
    must(m != MAP_FAILED && !ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r), "memory");
    memcpy(m + 0x1000, code, sizeof(code));
    struct kvm_run *run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0),
                               PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    struct kvm_sregs s;
    struct kvm_regs g = {.rip = 0x1000, .rflags = 2};
    must(!ioctl(cpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
    s.cs.base = s.cs.selector = 0;
    must(!ioctl(cpu, KVM_SET_SREGS, &s) && !ioctl(cpu, KVM_SET_REGS, &g), "registers");
    do
        must(!ioctl(cpu, KVM_RUN, 0), "KVM_RUN");
    while (run->exit_reason != KVM_EXIT_IO);
    must(write(1, (uint8_t *)run + run->io.data_offset, 1) == 1, "stdout");
    return pause();
}

static int blk(char **v)
{
    int wr = strstr(v[1], "write") != NULL, seq = !strncmp(v[1], "seq", 3);
    size_t size = strtoul(v[2], NULL, 10);
    int fd = open(v[0], O_RDWR | O_CLOEXEC);
    off_t end = lseek(fd, 0, SEEK_END), at = 0;
    char *buf = malloc(size);
    must(fd >= 0 && buf, v[0]);
    memset(buf, 'x', size);
    uint64_t n = 0, t0 = now(), t = t0, until = t0 + (uint64_t)(atof(v[3]) * 1e9), x = t0 | 1;
    for (; t < until; t = now()) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        at = seq ? (at + (off_t)size) % end
                 : (off_t)(x % (uint64_t)(end / (off_t)size)) * (off_t)size;
        must((wr ? pwrite(fd, buf, size, at) : pread(fd, buf, size, at)) == (ssize_t)size, v[1]);
        n++;
    }
    printf("{\"iops\":%lu,\"mib_s\":%lu}\n", n * 1000000000u / (t - t0),
           (n * size * 1000 / ((t - t0) / 1000000)) >> 20);
    free(buf);
    return 0;
}

static int tap(char **v)
{
    static uint8_t f[12 + 2048];
    size_t len = 12 + 42 + strtoul(v[1], NULL, 10);
    struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", v[0]);
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC), hdr = 12;
    must(fd >= 0 && !ioctl(fd, TUNSETIFF, &r) && !ioctl(fd, TUNSETVNETHDRSZ, &hdr), v[0]);
    memset(f + 12, 0xff, 12);
    f[24] = 8; // IPv4, and garbage behind it: the host drops it at once
    uint64_t n = 0, t0 = now(), t = t0, until = t0 + (uint64_t)(atof(v[2]) * 1e9);
    for (; t < until; t = n % 32 ? t : now(), n++)
        must(write(fd, f, len) == (ssize_t)len, "write to the tap");
    printf("{\"pps\":%lu}\n", n * 1000000000u / (t - t0));
    return 0;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int args;
        int (*run)(char **);
    } verbs[] = {{"api", 1, api}, {"boot", 1, boot}, {"blk", 4, blk}, {"tap", 3, tap}};
    for (size_t i = 0; argc > 1 && i < sizeof(verbs) / sizeof(verbs[0]); i++)
        if (!strcmp(argv[1], verbs[i].name) && argc - 2 >= verbs[i].args)
            return verbs[i].run(argv + 2);
    fprintf(stderr, "usage: see the head of tests/bench/floor.c\n");
    return 2;
}
