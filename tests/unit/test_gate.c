// SPDX-License-Identifier: Apache-2.0
// The gate of vCPU threads without KVM: what has been halted stays halted.
#include <check.h>
#include <linux/kvm.h>

#include "vmm/vcpu/vcpu.h"

START_TEST(halted_for_good)
{
    static struct kvm_run run[2];
    struct vcpu_gate g;
    struct vcpu v[2] = {{.gate = &g, .run = &run[0]}, {.gate = &g, .run = &run[1]}};

    vcpu_gate_init(&g);
    vcpu_go(v, 2);
    ck_assert_int_eq(g.mode, VCPU_RUN);
    vcpu_halt(v, 2);
    ck_assert_int_eq(g.mode, VCPU_PARK);
    ck_assert_uint_eq(run[0].immediate_exit + run[1].immediate_exit, 2);
    vcpu_go(v, 2); // a resume that was on its way when the guest powered off
    ck_assert_int_eq(g.mode, VCPU_PARK);
    vcpu_stop(v, 2, true);
    ck_assert_int_eq(g.mode, VCPU_QUIT);
    vcpu_gate_init(&g); // a machine that is built anew
    vcpu_go(v, 2);
    ck_assert_int_eq(g.mode, VCPU_RUN);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gate");
    TCase *t = tcase_create("gate");
    tcase_add_test(t, halted_for_good);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
