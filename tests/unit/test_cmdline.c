// SPDX-License-Identifier: Apache-2.0
// Command line: default and own arguments, root device, virtio devices, "--", and the length limit.
#include <check.h>

#include "vmm/boot/boot.h"

static const struct boot_dev devs[2] = {{0xc0001000, 5}, {0xc0002000, 6}};
static struct vm_config c;
static char out[CFG_CMDLINE_MAX];
static struct err e;

static void setup(void)
{
    memset(&c, 0, sizeof(c));
    memset(out, '?', sizeof(out));
}

static void args(const char *s)
{
    c.boot.has_args = true;
    snprintf(c.boot.boot_args, sizeof(c.boot.boot_args), "%s", s);
}

START_TEST(default_line)
{
    ck_assert_int_eq(boot_cmdline(&c, devs, 0, out, &e), 0);
    ck_assert_str_eq(out, "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux "
                          "i8042.dumbkbd swiotlb=noforce pci=off");
}
END_TEST

START_TEST(own_line)
{
    args("console=ttyS0");
    ck_assert_int_eq(boot_cmdline(&c, devs, 2, out, &e), 0);
    ck_assert_str_eq(out, "console=ttyS0 pci=off virtio_mmio.device=4K@0xc0001000:5 "
                          "virtio_mmio.device=4K@0xc0002000:6");
    args("");
    ck_assert_int_eq(boot_cmdline(&c, devs, 0, out, &e), 0);
    ck_assert_str_eq(out, "pci=off");
}
END_TEST

START_TEST(root_device)
{
    args("quiet");
    c.ndrives = 2;
    c.drives[0].is_root_device = true;
    ck_assert_int_eq(boot_cmdline(&c, devs, 0, out, &e), 0);
    ck_assert_str_eq(out, "quiet pci=off root=/dev/vda rw");
    c.drives[0].is_read_only = true;
    ck_assert_int_eq(boot_cmdline(&c, devs, 0, out, &e), 0);
    ck_assert_str_eq(out, "quiet pci=off root=/dev/vda ro");
    strcpy(c.drives[0].partuuid, "0eaa91a0-01");
    ck_assert_int_eq(boot_cmdline(&c, devs, 0, out, &e), 0);
    ck_assert_str_eq(out, "quiet pci=off root=PARTUUID=0eaa91a0-01 ro");
    strcpy(c.drives[0].partuuid, "1 init=/evil");
    ck_assert_int_eq(boot_cmdline(&c, devs, 0, out, &e), -EINVAL);
    ck_assert_ptr_nonnull(strstr(e.msg, "partuuid"));
    c.drives[0].is_root_device = false;
    ck_assert_int_eq(boot_cmdline(&c, devs, 0, out, &e), 0);
    ck_assert_str_eq(out, "quiet pci=off");
}
END_TEST

START_TEST(init_args_stay_last)
{
    static const struct {
        const char *in, *out;
    } t[] = {
        {"a b -- c d", "a b pci=off virtio_mmio.device=4K@0xc0001000:5 -- c d"},
        {"-- c", "pci=off virtio_mmio.device=4K@0xc0001000:5 -- c"},
        {"a --", "a pci=off virtio_mmio.device=4K@0xc0001000:5 --"},
        {"a   --  -- x", "a pci=off virtio_mmio.device=4K@0xc0001000:5 --  -- x"},
        {"--a b--", "--a b-- pci=off virtio_mmio.device=4K@0xc0001000:5"},
        {"x=\"a -- b\" c", "x=\"a -- b\" c pci=off virtio_mmio.device=4K@0xc0001000:5"},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
        args(t[i].in);
        ck_assert_int_eq(boot_cmdline(&c, devs, 1, out, &e), 0);
        ck_assert_str_eq(out, t[i].out);
    }
}
END_TEST

START_TEST(length_limit)
{
    const size_t room = CFG_CMDLINE_MAX - 1 - strlen(" pci=off");
    c.boot.has_args = true;
    memset(c.boot.boot_args, 'a', room);
    ck_assert_int_eq(boot_cmdline(&c, devs, 0, out, &e), 0);
    ck_assert_uint_eq(strlen(out), CFG_CMDLINE_MAX - 1);
    c.boot.boot_args[room] = 'a';
    ck_assert_int_eq(boot_cmdline(&c, devs, 0, out, &e), -E2BIG);
    ck_assert_ptr_nonnull(strstr(e.msg, "boot_args"));
    c.boot.boot_args[room] = 0;
    ck_assert_int_eq(boot_cmdline(&c, devs, 1, out, &e), -E2BIG);
    memset(c.boot.boot_args, 'a', sizeof(c.boot.boot_args)); // not even terminated
    ck_assert_int_eq(boot_cmdline(&c, devs, 1, out, &e), -EINVAL);
    args("a\nb");
    ck_assert_int_eq(boot_cmdline(&c, devs, 1, out, &e), -EINVAL);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("cmdline");
    TCase *t = tcase_create("cmdline");
    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_test(t, default_line);
    tcase_add_test(t, own_line);
    tcase_add_test(t, root_device);
    tcase_add_test(t, init_args_stay_last);
    tcase_add_test(t, length_limit);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
