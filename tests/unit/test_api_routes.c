// SPDX-License-Identifier: Apache-2.0
// Routes: every path, its time, its fields, its words; and that a refusal changes nothing.
#include <check.h>

#include "tests/unit/api_fake.h"

#include "api-socket/api.h"
#include "api-socket/routes.h"

static char answer[65536];

static int ask(struct vm *vm, const char *verb, const char *target, const char *body)
{
    static const char *const verbs[] = {"GET", "PUT", "PATCH", "DELETE", "POST"};
    struct json_out o = {.buf = answer, .cap = sizeof(answer) - 1};
    struct passed_fds fds = {0};
    struct api_call c = {.vm = vm,
                         .version = "9.8.7",
                         .target = target,
                         .target_len = strlen(target),
                         .body = body,
                         .body_len = strlen(body),
                         .fds = &fds,
                         .out = &o};
    while (strcmp(verbs[c.verb], verb) != 0)
        c.verb++;
    int status = api_route(&c);
    answer[o.len] = 0;
    return status;
}

#define BEFORE  "not supported before starting the microVM."
#define AFTER   "not supported after starting the microVM."
#define RL      "{\"bandwidth\":{\"size\":1,\"refill_time\":2},\"ops\":null}"
#define DRIVE_A "{\"drive_id\":\"a\",\"is_root_device\":false,\"path_on_host\":\"/d\"}"
#define NET_N   "{\"iface_id\":\"n\",\"host_dev_name\":\"tap0\"}"

static const struct {
    enum vm_state state;
    const char *verb, *target, *body;
    int status;
    const char *says; // in the answer (200, 400), or the call made (204)
} cases[] = {
    {VM_NOT_STARTED, "GET", "/", "", 200,
     "{\"id\":\"fake-1\",\"state\":\"Not started\",\"vmm_version\":\"9.8.7\","
     "\"app_name\":\"Mayfly\",\"guest_ready\":false,\"guest_ready_here\":false}"},
    {VM_RUNNING, "GET", "/", "", 200, "\"Running\""},
    {VM_PAUSED, "GET", "/", "", 200, "\"Paused\""},
    {VM_PAUSED, "GET", "/version", "", 200, "{\"firecracker_version\":\"9.8.7\"}"},
    {VM_RUNNING, "GET", "/machine-config", "", 200,
     "{\"vcpu_count\":1,\"mem_size_mib\":128,\"smt\":false,\"track_dirty_pages\":false,"
     "\"huge_pages\":\"None\"}"},
    {VM_RUNNING, "GET", "//machine-config/extra", "", 200, "\"vcpu_count\":1"},
    {VM_NOT_STARTED, "GET", "/vm/config", "", 200, "\"kernel_image_path\":\"\""},
    {VM_NOT_STARTED, "GET", "/vm", "", 400, "Invalid request method and/or path: GET vm."},
    {VM_NOT_STARTED, "GET", "/foo/bar", "", 400, "Invalid request method and/or path: GET foo."},
    {VM_NOT_STARTED, "DELETE", "/drives/a", "", 400, "path: DELETE drives."},
    {VM_NOT_STARTED, "POST", "/actions", "{}", 400, "path: POST actions."},
    {VM_NOT_STARTED, "GET", "/version", "{}", 400, "GET request cannot have a body."},
    {VM_NOT_STARTED, "PUT", "/foo", "", 400, "Empty PUT request."},
    {VM_NOT_STARTED, "PATCH", "/vm", "", 400, "Empty PATCH request."},
    {VM_NOT_STARTED, "PUT", "/machine-config", "{\"vcpu_count\":2,\"mem_size_mib\":64}", 204,
     "machine"},
    {VM_RUNNING, "PUT", "/machine-config", "{\"vcpu_count\":2,\"mem_size_mib\":64}", 400, AFTER},
    {VM_NOT_STARTED, "PUT", "/machine-config", "{\"vcpu_count\":2}", 400,
     "An error occurred when deserializing the json body of a request: missing field "
     "`mem_size_mib` at line 1 column 16."},
    {VM_NOT_STARTED, "PUT", "/machine-config", "{\"vcpu_count\":33,\"mem_size_mib\":1}", 400,
     "vcpu_count"},
    {VM_NOT_STARTED, "PUT", "/machine-config",
     "{\"vcpu_count\":1,\"mem_size_mib\":1,\"cpu_template\":\"None\",\"huge_pages\":\"2M\"}", 204,
     "machine"},
    {VM_NOT_STARTED, "PUT", "/machine-config",
     "{\"vcpu_count\":1,\"mem_size_mib\":1,\"cpu_template\":\"T2\"}", 400,
     "Machine config error: cpu_template: Mayfly has no CPU templates"},
    {VM_NOT_STARTED, "PATCH", "/machine-config", "{\"smt\":true}", 204, "machine"},
    {VM_NOT_STARTED, "PATCH", "/machine-config", "{}", 400, "Empty PATCH request."},
    {VM_PAUSED, "PATCH", "/machine-config", "{\"smt\":true}", 400, AFTER},
    {VM_NOT_STARTED, "PUT", "/boot-source",
     "{\"kernel_image_path\":\"/k\",\"initrd_path\":null,\"boot_args\":\"\"}", 204, "boot"},
    {VM_NOT_STARTED, "PUT", "/boot-source", "{\"boot_args\":\"x\"}", 400, "`kernel_image_path`"},
    {VM_NOT_STARTED, "PUT", "/boot-source", "{\"kernel_image_path\":\"\"}", 400,
     "`kernel_image_path`"},
    {VM_RUNNING, "PUT", "/boot-source", "{\"kernel_image_path\":\"/k\"}", 400, AFTER},
    {VM_NOT_STARTED, "PUT", "/drives/a", DRIVE_A, 204, "drive"},
    {VM_NOT_STARTED, "PUT", "/drives/b", DRIVE_A, 400,
     "The id from the path does not match the id from the body!"},
    {VM_NOT_STARTED, "PUT", "/drives", DRIVE_A, 400, "The ID cannot be empty."},
    {VM_NOT_STARTED, "PUT", "/drives/", DRIVE_A, 400, "The ID cannot be empty."},
    {VM_NOT_STARTED, "PUT", "/drives/a-b", DRIVE_A, 400,
     "API Resource IDs can only contain alphanumeric characters and underscores."},
    {VM_NOT_STARTED, "PUT",
     "/drives/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", DRIVE_A, 400,
     "at most 64"},
    {VM_NOT_STARTED, "PUT", "/drives/a",
     "{\"drive_id\":\"a\",\"is_root_device\":true,\"path_on_host\":\"/d\",\"partuuid\":\"x\","
     "\"cache_type\":\"Writeback\",\"is_read_only\":true,\"io_engine\":\"Async\",\"socket\":null,"
     "\"rate_limiter\":" RL "}",
     204, "drive"},
    {VM_NOT_STARTED, "PUT", "/drives/a", "{\"drive_id\":\"a\",\"is_root_device\":true}", 400,
     "Drive config error: path_on_host is missing"},
    {VM_NOT_STARTED, "PUT", "/drives/a",
     "{\"drive_id\":\"a\",\"is_root_device\":true,\"socket\":\"/s\"}", 400, "no vhost-user"},
    {VM_NOT_STARTED, "PUT", "/drives/a", "{\"drive_id\":\"a\",\"path_on_host\":\"/d\"}", 400,
     "missing field `is_root_device`"},
    {VM_NOT_STARTED, "PUT", "/drives/a",
     "{\"drive_id\":\"a\",\"is_root_device\":true,\"path_on_host\":\"/d\",\"colour\":1}", 400,
     "unknown field `colour`"},
    {VM_RUNNING, "PUT", "/drives/a", DRIVE_A, 400, AFTER},
    {VM_RUNNING, "PATCH", "/drives/a", "{\"drive_id\":\"a\",\"path_on_host\":\"/e\"}", 204,
     "patch_drive"},
    {VM_RUNNING, "PATCH", "/drives/a", "{\"drive_id\":\"a\",\"rate_limiter\":" RL "}", 204,
     "patch_drive"},
    {VM_RUNNING, "PATCH", "/drives/a", "{\"drive_id\":\"a\"}", 400,
     "Running method expected different backend."},
    {VM_RUNNING, "PATCH", "/drives/a", "{\"drive_id\":\"b\",\"path_on_host\":\"/e\"}", 400,
     "does not match"},
    {VM_NOT_STARTED, "PATCH", "/drives/a", "{\"drive_id\":\"a\",\"path_on_host\":\"/e\"}", 400,
     BEFORE},
    {VM_NOT_STARTED, "PUT", "/network-interfaces/n", NET_N, 204, "net"},
    {VM_NOT_STARTED, "PUT", "/network-interfaces/n",
     "{\"iface_id\":\"n\",\"host_dev_name\":\"tap0\",\"guest_mac\":\"06:00:AC:10:00:02\","
     "\"mtu\":1500,\"rx_rate_limiter\":" RL ",\"allow_mac_spoofing\":true}",
     204, "net"},
    {VM_NOT_STARTED, "PUT", "/network-interfaces/n",
     "{\"iface_id\":\"n\",\"host_dev_name\":\"tap0\",\"guest_mac\":\"06:00:AC:10:00:0g\"}", 400,
     "Network config error: guest_mac"},
    {VM_NOT_STARTED, "PUT", "/network-interfaces/n",
     "{\"iface_id\":\"n\",\"host_dev_name\":\"tap0\",\"mtu\":67}", 400, "68 to 65535"},
    {VM_RUNNING, "PUT", "/network-interfaces/n", NET_N, 400, AFTER},
    {VM_RUNNING, "PATCH", "/network-interfaces/n",
     "{\"iface_id\":\"n\",\"tx_rate_limiter\":" RL "}", 204, "patch_net"},
    {VM_NOT_STARTED, "PATCH", "/network-interfaces/n", "{\"iface_id\":\"n\"}", 400, BEFORE},
    {VM_NOT_STARTED, "PUT", "/logger",
     "{\"log_path\":\"/l\",\"level\":\"WARNING\",\"show_level\":true,\"show_log_origin\":false,"
     "\"module\":\"m\"}",
     204, "logger"},
    {VM_NOT_STARTED, "PUT", "/logger", "{\"level\":\"loud\"}", 400, "invalid value for `level`"},
    {VM_RUNNING, "PUT", "/logger", "{}", 400, AFTER},
    {VM_NOT_STARTED, "PUT", "/metrics", "{\"metrics_path\":\"/m\",\"emit_id\":true}", 204,
     "metrics"},
    {VM_NOT_STARTED, "PUT", "/metrics", "{}", 400, "missing field `metrics_path`"},
    {VM_RUNNING, "PUT", "/metrics", "{\"metrics_path\":\"/m\"}", 400, AFTER},
    {VM_NOT_STARTED, "PUT", "/serial",
     "{\"serial_out_path\":\"/s\",\"rate_limiter\":{\"size\":1,\"refill_time\":1}}", 204, "serial"},
    {VM_RUNNING, "PUT", "/serial", "{}", 400, AFTER},
    {VM_NOT_STARTED, "PUT", "/actions", "{\"action_type\":\"InstanceStart\"}", 204, "start"},
    {VM_PAUSED, "PUT", "/actions", "{\"action_type\":\"InstanceStart\"}", 400, AFTER},
    {VM_RUNNING, "PUT", "/actions", "{\"action_type\":\"FlushMetrics\"}", 204, "flush"},
    {VM_NOT_STARTED, "PUT", "/actions", "{\"action_type\":\"FlushMetrics\"}", 400, BEFORE},
    {VM_RUNNING, "PUT", "/actions", "{\"action_type\":\"SendCtrlAltDel\"}", 204, "cad"},
    {VM_NOT_STARTED, "PUT", "/actions", "{\"action_type\":\"SendCtrlAltDel\"}", 400, BEFORE},
    {VM_RUNNING, "PUT", "/actions", "{\"action_type\":\"Explode\"}", 400, "`action_type`"},
    {VM_RUNNING, "PATCH", "/vm", "{\"state\":\"Paused\"}", 204, "pause"},
    {VM_PAUSED, "PATCH", "/vm", "{\"state\":\"Resumed\"}", 204, "resume"},
    {VM_NOT_STARTED, "PATCH", "/vm", "{\"state\":\"Paused\"}", 400, BEFORE},
    {VM_RUNNING, "PATCH", "/vm", "{\"state\":\"Stopped\"}", 400, "`state`"},
    {VM_NOT_STARTED, "PUT", "/vsock", "{}", 400, "Mayfly has no vsock device"},
    {VM_NOT_STARTED, "GET", "/balloon/statistics", "", 400, "Mayfly has no balloon device"},
    {VM_NOT_STARTED, "PATCH", "/mmds", "{}", 400, "Mayfly has no metadata service"},
    {VM_NOT_STARTED, "PUT", "/pmem/p", "{}", 400, "Mayfly has no pmem device"},
    {VM_NOT_STARTED, "PUT", "/entropy", "{}", 400, "Mayfly has no entropy device"},
    {VM_NOT_STARTED, "GET", "/hotplug/memory", "", 400, "Mayfly has no memory hotplug"},
#define CPUID(leaf, reg, map)                                                                     \
    "{\"cpuid_modifiers\":[{\"leaf\":\"" leaf "\",\"subleaf\":\"0\",\"flags\":0,\"modifiers\":[{" \
    "\"register\":\"" reg "\",\"bitmap\":\"" map "\"}]}]}"
    {VM_NOT_STARTED, "PUT", "/cpu-config", CPUID("0x1", "ecx", "0b0_x1"), 204, "cpu"},
    {VM_NOT_STARTED, "PUT", "/cpu-config", CPUID("1g", "ecx", "0b0"), 400, "leaf: `1g`"},
    {VM_NOT_STARTED, "PUT", "/cpu-config", CPUID("0x100000000", "ecx", "0b0"), 400, "leaf: "},
    {VM_NOT_STARTED, "PUT", "/cpu-config", CPUID("1", "esp", "0b0"), 400, "register"},
    {VM_NOT_STARTED, "PUT", "/cpu-config", CPUID("1", "eax", "101"), 400, "bitmap: "},
    {VM_NOT_STARTED, "PUT", "/cpu-config", CPUID("1", "eax", "0b2"), 400, "bitmap: "},
    {VM_NOT_STARTED, "PUT", "/cpu-config", CPUID("1", "eax", "0b00000000000000000000000000000000x"),
     400, "more than 32 bits"},
};

START_TEST(each)
{
    struct vm vm = fake_vm(), was = vm;
    vm.state = was.state = cases[_i].state;
    int status = ask(&vm, cases[_i].verb, cases[_i].target, cases[_i].body);
    ck_assert_msg(status == cases[_i].status, "%s %s %s: %d %s", cases[_i].verb, cases[_i].target,
                  cases[_i].body, status, answer);
    if (status == 204) {
        ck_assert_str_eq(answer, "");
        ck_assert_str_eq(vm.last, cases[_i].says);
        return;
    }
    ck_assert_msg(strstr(answer, cases[_i].says), "%s", answer);
    ck_assert_uint_eq(vm.calls, 0);
    ck_assert_mem_eq(&vm.cfg, &was.cfg, sizeof(vm.cfg));
    if (status == 400)
        ck_assert_int_eq(strncmp(answer, "{\"fault_message\":\"", 18), 0);
}
END_TEST

START_TEST(fields_arrive)
{
    struct vm vm = fake_vm();
    ask(&vm, "PATCH", "/machine-config", "{\"mem_size_mib\":256}");
    ck_assert_uint_eq(vm.cfg.machine.mem_size_mib, 256);
    ck_assert_uint_eq(vm.cfg.machine.vcpu_count, 1); // what PATCH leaves out stays
    ask(&vm, "PUT", "/boot-source", "{\"kernel_image_path\":\"/k\",\"boot_args\":\"a=\\\"b\\\"\"}");
    ck_assert(vm.cfg.boot.has_args);
    ck_assert_str_eq(vm.cfg.boot.boot_args, "a=\"b\"");
    ask(&vm, "PUT", "/drives/a",
        "{\"drive_id\":\"a\",\"is_root_device\":true,\"path_on_host\":\"/d\",\"cache_type\":"
        "\"Writeback\",\"rate_limiter\":{\"ops\":{\"size\":7,\"refill_time\":8,\"one_time_burst\":"
        "9}}}");
    const struct drive_cfg *d = &vm.cfg.drives[0];
    ck_assert(d->writeback && d->is_root_device && !d->is_read_only && !d->io_engine_async);
    ck_assert(d->rate_limiter.set && d->rate_limiter.ops.set && !d->rate_limiter.bandwidth.set);
    ck_assert_uint_eq(d->rate_limiter.ops.one_time_burst, 9);
    ask(&vm, "PUT", "/network-interfaces/n",
        "{\"iface_id\":\"n\",\"host_dev_name\":\"t\",\"guest_mac\":\"06:00:AC:10:00:02\"}");
    ck_assert(vm.cfg.nets[0].has_mac);
    ck_assert_mem_eq(vm.cfg.nets[0].guest_mac, "\x06\x00\xac\x10\x00\x02", 6);
    ask(&vm, "PUT", "/logger", "{\"level\":\"Warning\"}");
    ck_assert_int_eq(vm.cfg.logger.level, LOG_WARN);
    ck_assert(vm.cfg.logger.has_level && !vm.cfg.logger.has_show_level);
    ask(&vm, "GET", "/vm/config", "");
    ck_assert_ptr_nonnull(strstr(answer, "\"guest_mac\":\"06:00:ac:10:00:02\",\"mtu\":null"));
    ck_assert_ptr_nonnull(strstr(answer, "\"cache_type\":\"Writeback\",\"is_read_only\":false"));
    ck_assert_ptr_nonnull(strstr(answer, "\"rate_limiter\":{\"bandwidth\":null,\"ops\":{\"size\":7,"
                                         "\"one_time_burst\":9,\"refill_time\":8}}"));
    ck_assert_ptr_null(strstr(answer, "cow_path"));
    vm.state = VM_RUNNING;
    ask(&vm, "PATCH", "/network-interfaces/n", "{\"iface_id\":\"n\",\"tx_rate_limiter\":{}}");
    ck_assert(vm.had_tx && !vm.had_rx);
}
END_TEST

START_TEST(failures_carry_their_prefix)
{
    struct vm vm = fake_vm();
    vm.fail = "the \"cause\"";
    ck_assert_int_eq(ask(&vm, "PUT", "/drives/a", DRIVE_A), 400);
    ck_assert_str_eq(answer, "{\"fault_message\":\"Drive config error: the \\u0022cause\\u0022\"}");
    ck_assert_str_eq(vm.counted, "1 drive 1");
    ck_assert_int_eq(ask(&vm, "PUT", "/actions", "{\"action_type\":\"InstanceStart\"}"), 400);
    ck_assert_ptr_nonnull(strstr(answer, ":\"Start microvm error: the "));
    vm.fail = NULL;
    ask(&vm, "GET", "/", "");
    ck_assert_str_eq(vm.counted, "0 instance_info 0");
}
END_TEST

static const struct {
    const char *text, *error; // NULL: it applies
} files[] = {
    {"{\"boot-source\":{\"kernel_image_path\":\"/k\"},\"drives\":[" DRIVE_A "],"
     "\"machine-config\":{\"vcpu_count\":2,\"mem_size_mib\":64},\"network-interfaces\":[" NET_N "],"
     "\"logger\":{\"level\":\"Info\"},\"metrics\":{\"metrics_path\":\"m\"},\"serial\":{},"
     "\"vsock\":null,\"balloon\":null,\"entropy\":null,\"pmem\":[],\"cpu-config\":null,"
     "\"mmds-config\":null,\"memory-hotplug\":null}",
     NULL},
    {"{\"drives\":[]}", "missing field `boot-source`"},
    {"{\"boot-source\":{\"kernel_image_path\":\"/k\"},\"vsock\":{}}", "Mayfly has no vsock device"},
    {"{\"boot-source\":{\"kernel_image_path\":\"/k\"},\"drives\":{}}", "expected an array"},
    {"{\"boot-source\":{\"kernel_image_path\":\"/k\"},\"actions\":{\"action_type\":"
     "\"InstanceStart\"}}",
     "unknown section `actions`"},
    {"{\"boot-source\":{\"kernel_image_path\":\"/k\"},\"vm\":{}}", "unknown section `vm`"},
    {"{\"boot-source\":{\"kernel_image_path\":\"/k\"},\"drives\":[{\"drive_id\":\"a-b\","
     "\"is_root_device\":false,\"path_on_host\":\"/d\"}]}",
     "API Resource IDs"},
    {"{\"boot-source\":{\"kernel_image_path\":\"/k\"},\"drives\":[{\"drive_id\":\"a\","
     "\"is_root_device\":false,\"path_on_host\":\"fd:0\"}]}",
     "no descriptor in a file"},
    {"{\"boot-source\":{\"kernel_image_path\":3}}", "`kernel_image_path`"},
    {"[]", "expected an object"},
};

START_TEST(config_file)
{
    struct vm vm = fake_vm();
    struct err e = {0};
    int r = api_apply_config(&vm, files[_i].text, strlen(files[_i].text), &e);
    ck_assert_msg((r == 0) == (files[_i].error == NULL), "%s: %s", files[_i].text, e.msg);
    if (files[_i].error)
        ck_assert_msg(strstr(e.msg, files[_i].error), "%s", e.msg);
    else
        ck_assert(vm.cfg.has_boot && vm.cfg.ndrives == 1 && vm.cfg.nnets == 1 && vm.calls == 7 &&
                  vm.cfg.machine.vcpu_count == 2);
}
END_TEST

START_TEST(config_reads_back) // what GET /vm/config answers is a configuration file
{
    struct vm vm = fake_vm(), other = fake_vm();
    struct err e = {0};
    ck_assert_int_eq(api_apply_config(&vm, files[0].text, strlen(files[0].text), &e), 0);
    ck_assert_int_eq(ask(&vm, "GET", "/vm/config", ""), 200);
    ck_assert_msg(api_apply_config(&other, answer, strlen(answer), &e) == 0, "%s", e.msg);
    ck_assert_mem_eq(&vm.cfg.drives[0], &other.cfg.drives[0], sizeof(vm.cfg.drives[0]));
    ck_assert_mem_eq(&vm.cfg.nets[0], &other.cfg.nets[0], sizeof(vm.cfg.nets[0]));
    ck_assert_mem_eq(&vm.cfg.machine, &other.cfg.machine, sizeof(vm.cfg.machine));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("api_routes");
    TCase *t = tcase_create("routes");
    tcase_add_loop_test(t, each, 0, (int)ARRAY_SIZE(cases));
    tcase_add_loop_test(t, config_file, 0, (int)ARRAY_SIZE(files));
    tcase_add_test(t, fields_arrive);
    tcase_add_test(t, failures_carry_their_prefix);
    tcase_add_test(t, config_reads_back);
    suite_add_tcase(s, t);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
