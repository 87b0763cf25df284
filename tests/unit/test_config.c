// SPDX-License-Identifier: Apache-2.0
// Configuration checks: ids, machine bounds, command line bytes, MAC addresses.
#include <check.h>

#include "vmm/config.h"

static struct err e;

START_TEST(ids)
{
    char id[CFG_ID_MAX + 2];
    memset(id, 'x', sizeof(id));
    id[CFG_ID_MAX + 1] = 0;
    ck_assert_int_eq(cfg_check_id(id, "drive_id", &e), -EINVAL);
    ck_assert_ptr_nonnull(strstr(e.msg, "drive_id"));
    id[CFG_ID_MAX] = 0;
    ck_assert_int_eq(cfg_check_id(id, "drive_id", &e), 0);
    ck_assert_int_eq(cfg_check_id("rootfs_2", "drive_id", &e), 0);
    ck_assert_int_eq(cfg_check_id("", "drive_id", &e), -EINVAL);
    ck_assert_str_eq(e.msg, "The ID cannot be empty.");
    static const char *const bad[] = {"a b", "../x", "a-b", "\xc3\xa9", "a/", ".", "a\n"};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        ck_assert_int_eq(cfg_check_id(bad[i], "drive_id", &e), -EINVAL);
        ck_assert_str_eq(e.msg, "API Resource IDs can only contain alphanumeric characters and "
                                "underscores.");
    }
}
END_TEST

START_TEST(machines)
{
    static const struct {
        struct machine_cfg m;
        const char *field; // NULL: valid
    } t[] = {
        {{.vcpu_count = 1, .mem_size_mib = 1}, NULL},
        {{.vcpu_count = 32, .mem_size_mib = CFG_MEM_MAX_MIB}, NULL},
        {{.vcpu_count = 3, .mem_size_mib = 128}, NULL},
        {{.vcpu_count = 1, .mem_size_mib = 128, .smt = true}, NULL},
        {{.vcpu_count = 4, .mem_size_mib = 128, .smt = true}, NULL},
        {{.vcpu_count = 1, .mem_size_mib = 128, .huge_pages = HUGE_2M}, NULL},
        {{.vcpu_count = 1, .mem_size_mib = 129, .huge_pages = HUGE_TRANSPARENT}, NULL},
        {{.vcpu_count = 0, .mem_size_mib = 128}, "vcpu_count"},
        {{.vcpu_count = 33, .mem_size_mib = 128}, "vcpu_count"},
        {{.vcpu_count = UINT32_MAX, .mem_size_mib = 128}, "vcpu_count"},
        {{.vcpu_count = 3, .mem_size_mib = 128, .smt = true}, "vcpu_count"},
        {{.vcpu_count = 1, .mem_size_mib = 0}, "mem_size_mib"},
        {{.vcpu_count = 1, .mem_size_mib = CFG_MEM_MAX_MIB + 1}, "mem_size_mib"},
        {{.vcpu_count = 1, .mem_size_mib = UINT32_MAX}, "mem_size_mib"},
        {{.vcpu_count = 1, .mem_size_mib = 129, .huge_pages = HUGE_2M}, "mem_size_mib"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
        e.msg[0] = 0;
        ck_assert_int_eq(cfg_check_machine(&t[i].m, &e), t[i].field ? -EINVAL : 0);
        ck_assert(!t[i].field || strncmp(e.msg, t[i].field, strlen(t[i].field)) == 0);
    }
}
END_TEST

START_TEST(cmdlines)
{
    char s[CFG_CMDLINE_MAX + 1];
    memset(s, '~', sizeof(s));
    s[CFG_CMDLINE_MAX] = 0;
    ck_assert_int_eq(cfg_check_cmdline(s, &e), -EINVAL);
    s[CFG_CMDLINE_MAX - 1] = 0;
    ck_assert_int_eq(cfg_check_cmdline(s, &e), 0);
    ck_assert_int_eq(cfg_check_cmdline("", &e), 0);
    ck_assert_int_eq(cfg_check_cmdline(" ~a=\"b c\"", &e), 0);
    ck_assert_int_eq(cfg_check_cmdline("a\tb", &e), -EINVAL);
    ck_assert_int_eq(cfg_check_cmdline("a\x7f", &e), -EINVAL);
    ck_assert_int_eq(cfg_check_cmdline("a\xff", &e), -EINVAL);
}
END_TEST

START_TEST(macs)
{
    uint8_t m[6] = {1, 2, 3, 4, 5, 6};
    static const uint8_t want[6] = {0xAA, 0xfc, 0x00, 0x00, 0x00, 0x01},
                         untouched[6] = {1, 2, 3, 4, 5, 6};
    static const char *const bad[] = {"",
                                      "AA:FC:00:00:00",
                                      "AA:FC:00:00:00:1",
                                      "AA:FC:00:00:00:011",
                                      "AA-FC-00-00-00-01",
                                      "AA:FC:00:00:00:0g",
                                      "01:00:5e:00:00:01",
                                      "ff:ff:ff:ff:ff:ff",
                                      "00:00:00:00:00:00",
                                      "AA:FC:00:00:00: 1",
                                      "AA:FC:00:00:00:+1",
                                      "0x:FC:00:00:00:01"};
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
        ck_assert_int_eq(cfg_parse_mac(bad[i], m), -EINVAL);
    ck_assert_mem_eq(m, untouched, 6);
    ck_assert_int_eq(cfg_parse_mac("AA:fc:00:00:00:01", m), 0);
    ck_assert_mem_eq(m, want, 6);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config");
    TCase *t = tcase_create("config");
    tcase_add_test(t, ids);
    tcase_add_test(t, machines);
    tcase_add_test(t, cmdlines);
    tcase_add_test(t, macs);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
