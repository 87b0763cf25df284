// SPDX-License-Identifier: Apache-2.0
// CPUID: topology, what is hidden, modifiers, hostile tables, comparison by feature name.
#include <check.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "vmm/vcpu/cpuid.h"

static struct cpuid_table host, t;
static struct err e;

static void put(uint32_t leaf, uint32_t sub, bool indexed, uint32_t a, uint32_t b, uint32_t c,
                uint32_t d)
{
    host.e[host.nent++] = (struct kvm_cpuid_entry2){.function = leaf,
                                                    .index = sub,
                                                    .flags = indexed ? 1 : 0,
                                                    .eax = a,
                                                    .ebx = b,
                                                    .ecx = c,
                                                    .edx = d};
}

static void setup(void)
{
    memset(&host, 0, sizeof(host));
    e.msg[0] = 0;
    put(0, 0, false, 0x1f, 0x756e6547, 0x6c65746e, 0x49656e69);
    put(1, 0, false, 0x50654, 0xaa990800, 0xffffffff & ~(1u << 24), 0xffffffff);
    put(4, 0, true, 0xfc01c121, 1, 2, 3); // L1, L2, L3
    put(4, 1, true, 0xfc01c143, 1, 2, 3);
    put(4, 2, true, 0xfc01c163, 1, 2, 3);
    put(4, 3, true, 0, 0, 0, 0);
    put(7, 0, true, 1, 0xffffffff, 0xffffffff, 0xffffffff);
    put(7, 1, true, 0x30, 0, 0, 0);
    put(0xa, 0, false, 0x07300403, 1, 2, 3);
    put(0xb, 0, true, 0, 0, 0, 9);
    put(0xd, 0, true, 0x600e7, 0, 0, 0);
    put(0xd, 1, true, 0x1f, 0, 0x1800, 0);
    put(0x1f, 0, true, 0, 0, 0, 9);
    put(0x40000000, 0, false, 0x40000001, 1, 2, 3);
    put(0x40000001, 0, false, 0x01007efb, 0, 0, 0);
    put(0x80000001, 0, false, 0, 0, 0x04c003f7, 0x2c100800);
    put(0x80000008, 0, false, 0x3030, 0, 0x7001, 0);
    put(0x8000000a, 0, false, 1, 0, 0, 0);
    put(0x8000001e, 0, false, 7, 7, 7, 7);
}

static const struct kvm_cpuid_entry2 *at(uint32_t leaf, uint32_t sub)
{
    const struct kvm_cpuid_entry2 *x = cpuid_get(&t, leaf, sub);
    ck_assert_ptr_nonnull(x);
    return x;
}

static void build(uint32_t vcpus, bool smt)
{
    struct cpuid_topology topo = {vcpus, smt, true, 2500000};
    ck_assert_int_eq(cpuid_build(&host, &topo, &t, &e), 0);
}

START_TEST(one_vcpu)
{
    build(1, true); // one vCPU has no sibling whatever smt says
    ck_assert_uint_eq(at(1, 0)->ebx, 0x00010800);
    ck_assert_uint_eq(at(1, 0)->edx >> 28 & 1, 0);
    ck_assert_uint_eq(at(0xb, 0)->eax, 0);
    ck_assert_uint_eq(at(0xb, 0)->ebx, 1);
    ck_assert_uint_eq(at(0xb, 1)->eax, 0);
    ck_assert_uint_eq(at(0xb, 1)->ebx, 1);
    ck_assert_uint_eq(at(0x80000008, 0)->ecx, 0);
}
END_TEST

START_TEST(six_vcpus_with_siblings)
{
    build(6, true);
    cpuid_set_id(&t, 5);
    ck_assert_uint_eq(at(1, 0)->ebx, 0x05080800); // id 5, 8 ids addressable
    ck_assert_uint_eq(at(1, 0)->edx >> 28 & 1, 1);
    for (uint32_t leaf = 0xb; leaf <= 0x1f; leaf += 0x14) {
        ck_assert_uint_eq(at(leaf, 0)->eax, 1);
        ck_assert_uint_eq(at(leaf, 0)->ebx, 2);
        ck_assert_uint_eq(at(leaf, 0)->ecx, 0x100);
        ck_assert_uint_eq(at(leaf, 1)->eax, 3);
        ck_assert_uint_eq(at(leaf, 1)->ebx, 6);
        ck_assert_uint_eq(at(leaf, 1)->ecx, 0x201);
        ck_assert_uint_eq(at(leaf, 2)->ebx, 0);
        ck_assert_uint_eq(at(leaf, 2)->ecx, 2);
        for (uint32_t i = 0; i < 3; i++)
            ck_assert_uint_eq(at(leaf, i)->edx, 5);
    }
    ck_assert_uint_eq(at(4, 0)->eax, 0x0c004121); // L1: two threads share; cores: 8 ids / 2 - 1
    ck_assert_uint_eq(at(4, 1)->eax, 0x0c004143);
    ck_assert_uint_eq(at(4, 2)->eax, 0x0c01c163); // L3: all eight ids
    ck_assert_uint_eq(at(4, 3)->eax, 0);
    ck_assert_uint_eq(at(0x80000008, 0)->ecx, 0x3005);
    ck_assert_uint_eq(at(0x8000001e, 0)->eax, 5);
    ck_assert_uint_eq(at(0x8000001e, 0)->ebx, 0x102); // core 2, two threads
    cpuid_set_id(&t, 0);
    struct cpuid_table fresh = t;
    build(6, true);
    ck_assert_int_eq(memcmp(&fresh, &t, sizeof(t)), 0); // ids leave nothing behind
}
END_TEST

START_TEST(what_is_not_saved_is_hidden)
{
    build(2, false);
    uint32_t c = at(1, 0)->ecx;
    ck_assert_uint_eq(c & (1u << 5 | 1u << 15 | 1u << 2), 0);            // VMX, PDCM
    ck_assert_uint_eq(c & (1u << 21 | 1u << 24 | 1u << 31), 0x81200000); // x2APIC ...
    ck_assert_uint_eq(at(7, 0)->ebx & (1u << 2 | 1u << 25), 0);          // SGX, PT
    ck_assert_uint_eq(at(7, 0)->ecx & (1u << 7), 0);                     // SHSTK
    ck_assert_uint_eq(at(7, 0)->edx & (1u << 20 | 1u << 24), 0);         // IBT, AMX
    ck_assert_uint_eq(at(0x80000001, 0)->ecx & (1u << 2), 0);            // SVM
    ck_assert_uint_eq(at(0xd, 1)->ecx, 0);
    ck_assert_uint_eq(at(0xd, 0)->eax, 0xe7);
    ck_assert_ptr_null(cpuid_get(&t, 0xa, 0));
    ck_assert_ptr_null(cpuid_get(&t, 0x8000000a, 0));
    ck_assert_uint_eq(at(0x40000001, 0)->eax, 0x01007efb);
    ck_assert_uint_eq(at(0x40000000, 0)->eax, 0x40000010);
    ck_assert_uint_eq(at(0x40000010, 0)->eax, 2500000);
    struct cpuid_topology no_deadline = {1, false, false, 0};
    ck_assert_int_eq(cpuid_build(&host, &no_deadline, &t, &e), 0);
    ck_assert_uint_eq(at(1, 0)->ecx >> 24 & 1, 0);
    ck_assert_ptr_null(cpuid_get(&t, 0x40000010, 0));
}
END_TEST

START_TEST(a_full_or_empty_table_is_an_error)
{
    struct cpuid_topology topo = {4, false, true, 1};
    while (host.nent < CPUID_MAX)
        put(0x90000000 + host.nent, 0, false, 0, 0, 0, 0);
    // Five leaves are hidden or replaced, five come back: exactly full. A leaf less to hide is one
    // too many.
    cpuid_find(&host, 0xa, 0)->function = 0x90000000;
    cpuid_find(&host, 0x8000000a, 0)->function = 0x90000001;
    ck_assert_int_eq(cpuid_build(&host, &topo, &t, &e), -E2BIG);
    memset(&host, 0, sizeof(host));
    ck_assert_int_eq(cpuid_build(&host, &topo, &t, &e), -ENOTSUP);
    ck_assert_str_ne(e.msg, "");
}
END_TEST

START_TEST(modifiers)
{
    build(2, false);
    struct cpuid_mod m[] = {{7, 0, CPUID_EBX, 0x000000f0, 0xffffff50},
                            {0x80000001, 0, CPUID_EDX, 0xffffffff, 0x12}};
    uint32_t before = at(7, 0)->ebx;
    ck_assert_int_eq(cpuid_apply_modifiers(&t, m, 2, &e), 0);
    ck_assert_uint_eq(at(7, 0)->ebx, (before & ~0xf0u) | 0x50);
    ck_assert_uint_eq(at(0x80000001, 0)->edx, 0x12);
    struct cpuid_table was = t;
    m[0].filter = 0xffffffff;
    m[1].leaf = 0x77;
    ck_assert_int_eq(cpuid_apply_modifiers(&t, m, 2, &e), -EINVAL);
    ck_assert_ptr_nonnull(strstr(e.msg, "0x77"));
    ck_assert_int_eq(memcmp(&was, &t, sizeof(t)), 0); // the first was not applied either
}
END_TEST

START_TEST(hostile_tables)
{
    build(1, false);
    ck_assert_int_eq(cpuid_check(&t, &e), 0);
    t.nent = CPUID_MAX + 1;
    ck_assert_int_eq(cpuid_check(&t, &e), -EINVAL);
    t.nent = 0;
    ck_assert_int_eq(cpuid_check(&t, &e), -EINVAL);
    build(1, false);
    t.e[3].flags = 2;
    ck_assert_int_eq(cpuid_check(&t, &e), -EINVAL);
}
END_TEST

static void lacks(const char *name, uint32_t *reg, uint32_t bit)
{
    uint32_t keep = *reg;
    *reg &= ~(1u << bit);
    ck_assert_int_eq(vcpu_host_compare(&t, 0xe7, 0, &host, 0, false, &e), -ENOTSUP);
    ck_assert_msg(strstr(e.msg, name), "%s does not name %s", e.msg, name);
    *reg = keep;
}

START_TEST(missing_features_are_named)
{
    build(4, true);
    ck_assert_int_eq(vcpu_host_compare(&t, 0xe7, 2500000, &host, 2500500, false, &e), 0);
    lacks("\"sse3\"", &cpuid_find(&host, 1, 0)->ecx, 0);
    lacks("\"rdrand\"", &cpuid_find(&host, 1, 0)->ecx, 30);
    lacks("\"fpu\"", &cpuid_find(&host, 1, 0)->edx, 0);
    lacks("\"pbe\"", &cpuid_find(&host, 1, 0)->edx, 31);
    lacks("\"avx512vl\"", &cpuid_find(&host, 7, 0)->ebx, 31);
    lacks("\"sha_ni\"", &cpuid_find(&host, 7, 0)->ebx, 29);
    lacks("\"movdiri\"", &cpuid_find(&host, 7, 0)->ecx, 27);
    lacks("\"ssbd\"", &cpuid_find(&host, 7, 0)->edx, 31);
    lacks("\"avx512_bf16\"", &cpuid_find(&host, 7, 1)->eax, 5);
    lacks("\"xsaves\"", &cpuid_find(&host, 0xd, 1)->eax, 3);
    lacks("\"xcr0_hi16_zmm\"", &cpuid_find(&host, 0xd, 0)->eax, 7);
    lacks("\"kvm_steal_time\"", &cpuid_find(&host, 0x40000001, 0)->eax, 5);
    lacks("\"kvm_clocksource_stable\"", &cpuid_find(&host, 0x40000001, 0)->eax, 24);
    lacks("\"lm\"", &cpuid_find(&host, 0x80000001, 0)->edx, 29);
    lacks("0x7.0 EDX bit 0", &cpuid_find(&host, 7, 0)->edx, 0); // nameless
    struct kvm_cpuid_entry2 *x = cpuid_find(&host, 0, 0);
    x->ecx ^= 1;
    ck_assert_int_eq(vcpu_host_compare(&t, 0, 0, &host, 0, false, &e), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(e.msg, "vendor"));
    x->ecx ^= 1;
    cpuid_find(&host, 0x80000008, 0)->eax = 0x3027;
    ck_assert_int_eq(vcpu_host_compare(&t, 0, 0, &host, 0, false, &e), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(e.msg, "39"));
}
END_TEST

static void refused(const char *why)
{
    ck_assert_int_eq(vcpu_host_compare(&t, 7, 0, &host, 0, false, &e), -ENOTSUP);
    ck_assert_msg(strstr(e.msg, why), "%s does not say %s", e.msg, why);
}

// A host has more than this monitor shows: a record may not bring it back.
START_TEST(what_is_hidden_is_refused)
{
    put(0xd, 9, true, 8, 0xa80, 0, 0);
    build(2, false);
    struct cpuid_table good = t, all = host;
    cpuid_hide(&host);
    ck_assert_int_eq(vcpu_host_compare(&t, 7, 0, &host, 0, false, &e), 0);
    cpuid_find(&t, 1, 0)->ecx |= 1u << 5;
    ck_assert_int_eq(vcpu_host_compare(&t, 7, 0, &all, 0, false, &e), 0);
    refused("\"vmx\"");
    t = good;
    cpuid_find(&t, 0xd, 1)->ecx = 0x800;
    refused("0xd.1 ECX bit 11");
    t = good;
    cpuid_find(&t, 7, 0)->ebx |= 1u << 25;
    refused("\"intel_pt\"");
    t = good;
    refused((t.e[t.nent++] = *cpuid_get(&all, 0xa, 0), "leaf 0xa"));
    t = good;
    cpuid_find(&t, 0xd, 9)->ebx = 0x980;
    refused("XSAVE component 9");
    t = good;
    cpuid_find(&t, 7, 1)->edx = 1u << 20; // a bit without a name, in a leaf that the host has
    refused("0x7.1 EDX bit 20");
    t = good;
    t.e[t.nent++] = (struct kvm_cpuid_entry2){.function = 0x80000021, .eax = 1u << 8};
    refused("\"autoibrs\"");
}
END_TEST

START_TEST(xcr0_and_tsc)
{
    build(1, false);
    ck_assert_int_eq(vcpu_host_compare(&t, 0x1e7 | 1ull << 40, 0, &host, 0, false, &e), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(e.msg, "XCR0"));
    ck_assert_int_eq(vcpu_host_compare(&t, 1, 2500000, &host, 2600000, false, &e), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(e.msg, "2600000 kHz"));
    ck_assert_int_eq(vcpu_host_compare(&t, 1, 2500000, &host, 2600000, true, &e), 0);
    ck_assert(tsc_khz_close(2500000, 2500625));
    ck_assert(!tsc_khz_close(2500000, 2500640));
    ck_assert(!tsc_khz_close(0xffffffff, 1));
}
END_TEST

START_TEST(this_host)
{
    _cleanup_(close_fdp) int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) {
        printf("SKIP: this_host: no /dev/kvm\n");
        return;
    }
    ck_assert_int_eq(cpuid_supported(kvm, &host, &e), 0);
    build(2, true);
    ck_assert_int_eq(vcpu_host_compare(&t, 1, 0, &host, 0, false, &e), 0); // fits itself
    _cleanup_(close_fdp) int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    ck_assert_int_ge(vm, 0);
    for (uint32_t i = 0; i < 2; i++) {
        _cleanup_(close_fdp) int v = ioctl(vm, KVM_CREATE_VCPU, (unsigned long)i);
        ck_assert_int_ge(v, 0);
        cpuid_set_id(&t, i);
        ck_assert_msg(cpuid_set(v, &t, &e) == 0, "%s", e.msg);
    }
}
END_TEST

int main(void)
{
    Suite *su = suite_create("cpuid");
    TCase *c = tcase_create("cpuid");
    tcase_add_checked_fixture(c, setup, NULL);
    tcase_add_test(c, one_vcpu);
    tcase_add_test(c, six_vcpus_with_siblings);
    tcase_add_test(c, what_is_not_saved_is_hidden);
    tcase_add_test(c, a_full_or_empty_table_is_an_error);
    tcase_add_test(c, modifiers);
    tcase_add_test(c, hostile_tables);
    tcase_add_test(c, missing_features_are_named);
    tcase_add_test(c, what_is_hidden_is_refused);
    tcase_add_test(c, xcr0_and_tsc);
    tcase_add_test(c, this_host);
    suite_add_tcase(su, c);
    SRunner *r = srunner_create(su);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
