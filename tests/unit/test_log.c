// SPDX-License-Identifier: Apache-2.0
// Log: line format, guest budget, no forged lines, a full or replaced destination.
#include <check.h>
#include <fcntl.h>
#include <regex.h>

#include "vmm/log.h"

static struct log l;
static int rd_fd;
static char text[65536];

static int new_pipe(int *reader)
{
    int p[2];
    ck_assert_int_eq(pipe2(p, O_NONBLOCK | O_CLOEXEC), 0);
    *reader = p[0];
    return p[1];
}

static void setup(void)
{
    log_init(&l, "vm-1", new_pipe(&rd_fd));
}

static void teardown(void)
{
    close(atomic_load(&l.fd));
    close(rd_fd);
}

static const char *got(void)
{
    ssize_t n = read(rd_fd, text, sizeof(text) - 1);
    text[MAX(n, 0)] = 0;
    return text;
}

static void match(const char *pattern)
{
    regex_t re;
    ck_assert_int_eq(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB), 0);
    got();
    ck_assert_msg(regexec(&re, text, 0, NULL, 0) == 0, "%s does not match %s", text, pattern);
    regfree(&re);
}

#define STAMP "^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\\.[0-9]{9} "

START_TEST(format_follows_the_flags)
{
    LOG_I(&l, "hello %d", 7);
    match(STAMP "\\[vm-1:-\\] hello 7\n$");
    struct logger_cfg c = {.level = LOG_DEBUG,
                           .has_level = true,
                           .show_level = true,
                           .has_show_level = true,
                           .show_log_origin = true,
                           .has_show_log_origin = true};
    log_configure(&l, &c, -1);
    LOG_D(&l, "x");
    match(STAMP "\\[vm-1:-:DEBUG:tests/unit/test_log.c:[0-9]+\\] x\n$");
    c = (struct logger_cfg){0}; // absent fields keep their value
    log_configure(&l, &c, -1);
    LOG_E(&l, "x");
    match("\\[vm-1:-:ERROR:tests");
}
END_TEST

static void *named(void *arg)
{
    (void)arg;
    log_thread(&l, "vcpu 3");
    LOG_I(&l, "t");
    return NULL;
}

START_TEST(threads_have_names)
{
    log_thread(&l, "main");
    for (int i = 0; i < 3 * LOG_THREADS; i++) { // successors of one name share an entry
        pthread_t t;
        ck_assert_int_eq(pthread_create(&t, NULL, named, NULL), 0);
        pthread_join(t, NULL);
        match("\\[vm-1:vcpu 3\\] t\n$");
    }
    LOG_I(&l, "m");
    match("\\[vm-1:main\\] m\n$");
    ck_assert_str_eq(l.thread[2].name, "");
}
END_TEST

START_TEST(time_is_utc)
{
    char want[32];
    time_t before = time(NULL), after;
    LOG_I(&l, "x");
    after = time(NULL);
    got();
    bool same = false;
    for (time_t t = before; t <= after; t++) {
        struct tm tm;
        gmtime_r(&t, &tm);
        strftime(want, sizeof(want), "%Y-%m-%dT%H:%M:%S", &tm);
        same |= strncmp(text, want, strlen(want)) == 0;
    }
    ck_assert_msg(same, "%s is not %s", text, want);
}
END_TEST

START_TEST(level_and_module_filter)
{
    LOG_D(&l, "no");
    ck_assert_str_eq(got(), "");
    struct logger_cfg c = {.level = LOG_OFF, .has_level = true};
    log_configure(&l, &c, -1);
    LOG_E(&l, "no");
    ck_assert_str_eq(got(), "");
    c = (struct logger_cfg){.level = LOG_INFO, .has_level = true, .module = "vmm/dev"};
    log_configure(&l, &c, -1);
    LOG_I(&l, "no");
    ck_assert_str_eq(got(), "");
    log_line(&l, LOG_INFO, false, "vmm/dev/serial.c", 1, "yes");
    match("yes\n$");
}
END_TEST

START_TEST(a_guest_has_a_budget_per_site)
{
    for (int i = 0; i < 25; i++)
        LOG_GUEST(&l, "guest %d", i);
    LOG_GUEST(&l, "another site");
    got();
    unsigned lines = 0;
    for (const char *p = text; (p = strchr(p, '\n')); p++)
        lines++;
    ck_assert_uint_eq(lines, 11);
    ck_assert_ptr_nonnull(strstr(text, "another site"));
    ck_assert_uint_eq(l.limited, 15);
    for (unsigned i = 0; i < LOG_SITES; i++) // as if the window had passed
        l.site[i].window_ns -= 5 * NSEC_PER_SEC;
    for (unsigned i = 0; i < LOG_SITES; i++)
        if (l.site[i].held == 15)
            log_line(&l, LOG_WARN, true, l.site[i].file, l.site[i].line, "again");
    ck_assert_ptr_nonnull(strstr(got(), "again (15 lines like this were left out)"));
    for (int i = 0; i < 200; i++) // more sites than slots
        log_line(&l, LOG_WARN, true, __FILE__, 1000 + i, "y");
}
END_TEST

START_TEST(no_line_is_forged)
{
    LOG_I(&l, "a\nb\x1b[0m\r\x7f%s", "c\n");
    match("\\] a\\?b\\?\\[0m\\?\\?c\\?\n$");
    char big[3000];
    memset(big, 'z', sizeof(big) - 1);
    big[sizeof(big) - 1] = 0;
    LOG_I(&l, "%s", big);
    got();
    ck_assert_uint_eq(strlen(text), 1024);
    ck_assert_int_eq(text[1023], '\n');
    for (unsigned i = 0; i < LOG_SITES; i++)
        l.site[i] = (struct log_site){.file = __FILE__, .line = 5, .held = 3, .window_ns = 1};
    log_line(&l, LOG_WARN, true, __FILE__, 5, "%s", big); // no room for the count
    ck_assert_uint_eq(strlen(got()), 1024);
}
END_TEST

START_TEST(a_full_fifo_loses_and_counts)
{
    unsigned i = 0;
    while (!l.missed && i++ < 100000)
        LOG_I(&l, "fill");
    ck_assert_uint_eq(l.missed, 1);
    while (read(rd_fd, text, sizeof(text)) > 0)
        ;
    LOG_I(&l, "on again");
    match("on again\n$");
}
END_TEST

START_TEST(destination_is_replaced_in_place)
{
    int second, w = new_pipe(&second), number = atomic_load(&l.fd);
    struct logger_cfg c = {0};
    log_configure(&l, &c, w);
    ck_assert_int_eq(atomic_load(&l.fd), number);
    ck_assert_int_eq(fcntl(w, F_GETFD), -1);
    LOG_I(&l, "moved");
    ck_assert_int_eq(read(rd_fd, text, sizeof(text)), 0); // the old one is closed
    close(rd_fd);
    rd_fd = second;
    match("moved");
    struct log quiet;
    log_init(&quiet, "q", -1);
    LOG_E(&quiet, "nowhere");
    ck_assert_uint_eq(quiet.missed, 0);
    quiet.fd = STDOUT_FILENO;
    log_configure(&quiet, &c, dup(STDERR_FILENO));
    ck_assert_int_ge(fcntl(STDOUT_FILENO, F_GETFD), 0); // standard output stays
    close(quiet.fd);
}
END_TEST

int main(void)
{
    Suite *su = suite_create("log");
    TCase *t = tcase_create("log");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, format_follows_the_flags);
    tcase_add_test(t, threads_have_names);
    tcase_add_test(t, time_is_utc);
    tcase_add_test(t, level_and_module_filter);
    tcase_add_test(t, a_guest_has_a_budget_per_site);
    tcase_add_test(t, no_line_is_forged);
    tcase_add_test(t, a_full_fifo_loses_and_counts);
    tcase_add_test(t, destination_is_replaced_in_place);
    suite_add_tcase(su, t);
    SRunner *r = srunner_create(su);
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
