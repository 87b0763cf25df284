// SPDX-License-Identifier: Apache-2.0
// Metrics: groups and names, deltas, sums over devices, a full FIFO, the longest line.
#include <check.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "virtio/blk.h"
#include "virtio/net.h"
#include "vmm/dev/dev.h"
#include "vmm/log.h"
#include "vmm/metrics.h"
#include "vmm/vcpu/vcpu.h"

static struct vm_metrics m;
static struct serial serial;
static struct i8042 i8042;
static struct log logger;
static struct vcpu vcpu[2];
static struct blk_metrics blk[2];
static struct net_metrics net;
static struct metrics_sources src;
static char line[METRICS_LINE];

static void setup(void)
{
    memset(&m, 0, sizeof(m));
    memset(vcpu, 0, sizeof(vcpu));
    memset(blk, 0, sizeof(blk));
    memset(&net, 0, sizeof(net));
    serial_init(&serial, NULL, NULL, NULL);
    i8042_init(&i8042, NULL, NULL, NULL);
    log_init(&logger, "x", -1);
    src = (struct metrics_sources){
        .serial = &serial, .i8042 = &i8042, .log = &logger, .vcpu = vcpu, .nvcpus = 2};
}

static void add_devices(void)
{
    src.ndevs = 3;
    src.dev[0] = (struct metrics_device){.id = "rootfs", .blk = &blk[0]};
    src.dev[1] = (struct metrics_device){.id = "data", .blk = &blk[1], .faults = 2};
    src.dev[2] = (struct metrics_device){.id = "eth0", .net = &net, .faults = 1};
}

// The number at "group":{..."name":N, or -1.
static long long at(const char *group, const char *name)
{
    char key[128];
    snprintf(key, sizeof(key), "\"%s\":{", group);
    const char *g = strstr(line, key);
    const char *end = g ? strchr(g, '}') : NULL;
    snprintf(key, sizeof(key), "\"%s\":", name);
    const char *f = g ? strstr(g, key) : NULL;
    return f && f < end ? strtoll(f + strlen(key), NULL, 10) : -1;
}

static void format(void)
{
    int n = metrics_format(&m, &src, line, sizeof(line));
    ck_assert_int_gt(n, 0);
    ck_assert_uint_eq(strlen(line), (size_t)n);
    ck_assert_str_eq(line + n - 2, "}\n");
}

START_TEST(groups_are_firecrackers)
{
    static const char *const group[] = {"api_server",
                                        "block",
                                        "get_api_requests",
                                        "i8042",
                                        "uart",
                                        "latencies_us",
                                        "logger",
                                        "net",
                                        "vcpu",
                                        "put_api_requests",
                                        "vmm",
                                        "seccomp",
                                        "signals",
                                        "interrupts",
                                        "mayfly",
                                        "patch_api_requests"};
    format();
    ck_assert_int_eq(strncmp(line, "{\"utc_timestamp_ms\":", 20), 0);
    for (size_t i = 0; i < ARRAY_SIZE(group); i++) {
        char key[64];
        snprintf(key, sizeof(key), ",\"%s\":{", group[i]);
        ck_assert_msg(strstr(line, key) != NULL, "no group %s in %s", group[i], line);
    }
    static const char *const put[] = {"actions_count", "actions_fails", "boot_source_count",
                                      "drive_fails",   "logger_count",  "machine_cfg_count",
                                      "metrics_count", "network_count", "serial_count"};
    for (size_t i = 0; i < ARRAY_SIZE(put); i++)
        ck_assert_msg(at("put_api_requests", put[i]) == 0, "%s", put[i]);
    ck_assert_int_eq(at("get_api_requests", "vmm_version_count"), 0);
    ck_assert_int_eq(at("get_api_requests", "vmm_version_fails"), -1);
    ck_assert_int_eq(at("get_api_requests", "drive_count"), -1);
    ck_assert_int_eq(at("signals", "sigill"), 0);
    ck_assert_ptr_null(strstr(line, "\"id\""));
    src.id = "vm-1";
    format();
    ck_assert_ptr_nonnull(strstr(line, ",\"id\":\"vm-1\","));
}
END_TEST

START_TEST(requests_and_latencies)
{
    metrics_count_api(&m, API_PUT, "drive", false, 7);
    metrics_count_api(&m, API_PUT, "drive", true, 7);
    metrics_count_api(&m, API_PATCH, "drive", false, 7);
    metrics_count_api(&m, API_PATCH, "pause_vm", false, 123);
    metrics_count_api(&m, API_PATCH, "pause_vm", true, 456); // a refusal took no pause
    metrics_count_api(&m, API_GET, "nothing", false, 1);
    format();
    ck_assert_int_eq(at("put_api_requests", "drive_count"), 2);
    ck_assert_int_eq(at("put_api_requests", "drive_fails"), 1);
    ck_assert_int_eq(at("patch_api_requests", "drive_count"), 1);
    ck_assert_int_eq(at("latencies_us", "pause_vm"), 123);
    metrics_shown(&m);
    format();
    ck_assert_int_eq(at("put_api_requests", "drive_count"), 0);
    ck_assert_int_eq(at("latencies_us", "pause_vm"), 123); // stored, not counted
}
END_TEST

START_TEST(counters_tell_what_is_new)
{
    serial.writes = 5;
    vcpu[0].n_pio_out = 3;
    vcpu[1].n_pio_out = 4;
    format();
    ck_assert_int_eq(at("uart", "write_count"), 5);
    ck_assert_int_eq(at("vcpu", "exit_io_out"), 7);
    format(); // never shown: nothing is lost
    ck_assert_int_eq(at("uart", "write_count"), 5);
    metrics_shown(&m);
    serial.writes = 6;
    vcpu[1].n_pio_out = 1; // the vCPUs were made anew
    add_devices();         // appear after the first line
    blk[0].reads = 10;
    format();
    ck_assert_int_eq(at("uart", "write_count"), 1);
    ck_assert_int_eq(at("vcpu", "exit_io_out"), 4);
    ck_assert_int_eq(at("block_rootfs", "read_count"), 10);
}
END_TEST

START_TEST(devices_and_their_sums)
{
    add_devices();
    blk[0].read_bytes = 4096;
    blk[1].read_bytes = 512;
    blk[1].failed = 3;
    net.tx_packets = 9;
    net.rx_bytes = 77;
    format();
    ck_assert_int_eq(at("block_rootfs", "read_bytes"), 4096);
    ck_assert_int_eq(at("block_data", "read_bytes"), 512);
    ck_assert_int_eq(at("block", "read_bytes"), 4608);
    ck_assert_int_eq(at("block", "execute_fails"), 3);
    ck_assert_int_eq(at("net_eth0", "tx_packets_count"), 9);
    ck_assert_int_eq(at("net", "rx_bytes_count"), 77);
    ck_assert_int_eq(at("mayfly", "guest_faults"), 3);
    ck_assert_int_eq(at("block_data", "guest_faults"), 2);
}
END_TEST

START_TEST(the_longest_line_fits)
{
    static struct blk_metrics b[CFG_MAX_DRIVES];
    static struct net_metrics n[CFG_MAX_NETS];
    static char id[CFG_MAX_DEVS][CFG_ID_MAX + 1];
    src.ndevs = CFG_MAX_DEVS;
    for (unsigned i = 0; i < CFG_MAX_DEVS; i++) {
        memset(id[i], 'a' + (int)i, CFG_ID_MAX);
        bool blk_dev = i < CFG_MAX_DRIVES;
        src.dev[i] = (struct metrics_device){.id = id[i], .faults = 1000000000000};
        if (blk_dev)
            src.dev[i].blk = &b[i];
        else
            src.dev[i].net = &n[i - CFG_MAX_DRIVES];
    }
    for (unsigned i = 0; i < CFG_MAX_DRIVES; i++)
        b[i].read_bytes = b[i].write_bytes = b[i].reads = b[i].writes = 1000000000000000;
    for (unsigned i = 0; i < CFG_MAX_NETS; i++)
        n[i].rx_bytes = n[i].tx_bytes = n[i].rx_packets = n[i].tx_packets = 1000000000000000;
    format();
    ck_assert_int_eq(at("block", "read_bytes"), 8000000000000000);
    ck_assert_int_eq(metrics_format(&m, &src, line, 1000), -E2BIG); // and a short buffer is told
}
END_TEST

START_TEST(a_full_fifo_drops_a_line_whole)
{
    int p[2];
    static char got[1 << 17], fill[4096];
    ck_assert_int_eq(pipe2(p, O_NONBLOCK), 0);
    serial.writes = 5;
    while (write(p[1], fill, sizeof(fill)) > 0)
        ;
    ck_assert_int_eq(metrics_write(&m, &src, p[1]), -EAGAIN);
    ck_assert_uint_eq(m.dropped, 1);
    while (read(p[0], got, sizeof(got)) > 0)
        ;
    ck_assert_int_eq(metrics_write(&m, &src, p[1]), 0);
    ssize_t n = read(p[0], line, sizeof(line) - 1);
    ck_assert_int_gt(n, 0);
    line[n] = 0;
    ck_assert_int_eq(at("uart", "write_count"), 5); // the dropped line took no count along
    ck_assert_int_eq(at("logger", "missed_metrics_count"), 1);
    close(p[0]);
    close(p[1]);
}
END_TEST

START_TEST(a_line_in_two_parts_is_finished_first)
{
    int p[2], pages = 0;
    static char got[1 << 18], page[4096];
    add_devices();
    for (src.ndevs = 3; src.ndevs < 12; src.ndevs++) // longer than a page
        src.dev[src.ndevs] = src.dev[2];
    ck_assert_int_eq(pipe2(p, O_NONBLOCK), 0);
    while (write(p[1], page, sizeof(page)) > 0)
        pages++;
    ck_assert_int_eq(read(p[0], page, sizeof(page)), sizeof(page)); // room for one page
    serial.writes = 1;
    ck_assert_int_eq(metrics_write(&m, &src, p[1]), 0);
    ck_assert_uint_gt(m.line_sent, 0);
    ck_assert_uint_lt(m.line_sent, m.line_len);
    ck_assert_int_eq(metrics_write(&m, &src, p[1]), -EAGAIN);
    for (int i = 0; i < pages - 1; i++)
        ck_assert_int_eq(read(p[0], page, sizeof(page)), sizeof(page));
    serial.writes = 3;
    ck_assert_int_eq(metrics_write(&m, &src, p[1]), 0);
    ssize_t n = read(p[0], got, sizeof(got) - 1);
    ck_assert_int_gt(n, 0);
    got[n] = 0;
    char *second = strchr(got, '\n');
    ck_assert_ptr_nonnull(second);
    ck_assert_int_eq(strncmp(second + 1, "{\"utc", 5), 0); // a whole line follows a whole line
    snprintf(line, sizeof(line), "%s", second + 1);
    ck_assert_int_eq(at("uart", "write_count"), 2);
    ck_assert_int_eq(at("logger", "missed_metrics_count"), 1);
    close(p[0]);
    close(p[1]);
}
END_TEST

int main(void)
{
    Suite *su = suite_create("metrics");
    TCase *t = tcase_create("metrics");
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_test(t, groups_are_firecrackers);
    tcase_add_test(t, requests_and_latencies);
    tcase_add_test(t, counters_tell_what_is_new);
    tcase_add_test(t, devices_and_their_sums);
    tcase_add_test(t, the_longest_line_fits);
    tcase_add_test(t, a_full_fifo_drops_a_line_whole);
    tcase_add_test(t, a_line_in_two_parts_is_finished_first);
    suite_add_tcase(su, t);
    SRunner *r = srunner_create(su);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
