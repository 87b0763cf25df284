// SPDX-License-Identifier: Apache-2.0
// The API socket: drip, pipelining, half-close, flood, slow peers, passed descriptors, stale files.
#include <check.h>

#include "tests/unit/api_fake.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "api-socket/api.h"
#include "api-socket/http.h"

static struct vm vm;
static struct api *api;
static pthread_t thread;
static int stop_fd;
static char dir[] = "/tmp/mayfly-api-XXXXXX", sock[64];

static void *serve(void *arg)
{
    (void)arg;
    ck_assert_int_eq(api_run(api, &vm, stop_fd, -1), 0);
    return NULL;
}

static void start(const uint32_t *uids, unsigned nuids)
{
    struct err e;
    struct api_opts o = {.path = sock, .version = "1", .uids = uids, .nuids = nuids};
    ck_assert_int_eq(api_open(&api, &o, &e), 0);
    stop_fd = eventfd(0, EFD_CLOEXEC);
    ck_assert_int_eq(pthread_create(&thread, NULL, serve, NULL), 0);
}

static void stop(void)
{
    eventfd_write(stop_fd, 1);
    pthread_join(thread, NULL);
    api_close(api);
    close(stop_fd);
}

static void setup(void)
{
    vm = fake_vm();
    memcpy(dir + strlen(dir) - 6, "XXXXXX", 6);
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(sock, sizeof(sock), "%s/sock", dir);
    start(NULL, 0);
}

static void teardown(void)
{
    stop();
    unlink(sock);
    rmdir(dir);
}

static int dial(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    memcpy(sa.sun_path, sock, strlen(sock));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    return fd;
}

static void say(int fd, const char *s)
{
    ck_assert_int_eq(send(fd, s, strlen(s), MSG_NOSIGNAL), (ssize_t)strlen(s));
}

// Reads until `count` responses with bodies as announced have come, or the peer closes.
static char got[1 << 20];
static int hear(int fd, int count)
{
    size_t n = 0, at = 0;
    int seen = 0;
    got[0] = 0;
    for (;;) {
        char *end;
        while (seen < count && (end = strstr(got + at, "\r\n\r\n"))) {
            char *cl = strstr(got + at, "Content-Length: ");
            size_t body = cl && cl < end ? strtoul(cl + 16, NULL, 10) : 0;
            if ((size_t)(end - got) + 4 + body > n)
                break;
            at = (size_t)(end - got) + 4 + body;
            seen++;
        }
        ssize_t r = seen < count ? recv(fd, got + n, sizeof(got) - 1 - n, 0) : 0;
        if (r <= 0)
            return seen;
        n += (size_t)r;
        got[n] = 0;
    }
}

static bool closed(int fd) // waits until the server has closed
{
    char c;
    return recv(fd, &c, 1, 0) <= 0;
}

#define GET "GET / HTTP/1.1\r\n\r\n"

START_TEST(drip)
{
    static const char s[] = "PUT /machine-config HTTP/1.1\r\nContent-Length: "
                            "35\r\n\r\n{\"vcpu_count\":2,\"mem_size_mib\":64 }";
    int fd = dial();
    for (size_t i = 0; i + 1 < sizeof(s); i++)
        ck_assert_int_eq(send(fd, s + i, 1, 0), 1);
    ck_assert_int_eq(hear(fd, 1), 1);
    ck_assert_ptr_nonnull(strstr(got, "HTTP/1.1 204 "));
    ck_assert_uint_eq(vm.cfg.machine.vcpu_count, 2);
    close(fd);
}
END_TEST

// Whoever starts, loads or resumes has the answer before a vCPU takes the processor.
START_TEST(answer_before_vcpus)
{
    static const char *const says[] = {
        "PUT /actions HTTP/1.1\r\nContent-Length: 31\r\n\r\n{\"action_type\":\"InstanceStart\"}",
        "PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}",
        "PATCH /vm HTTP/1.1\r\nContent-Length: 19\r\n\r\n{\"state\":\"Resumed\"}"};
    int fd = dial();
    vm.peer = fd;
    for (size_t i = 0; i < ARRAY_SIZE(says); i++) {
        say(fd, says[i]);
        while (atomic_load(&vm.freed) == i) // nothing is read meanwhile: the answer must lie there
            usleep(1000);
    }
    ck_assert_int_eq(hear(fd, 3), 3);
    ck_assert_ptr_null(strstr(got, " 400 "));
    ck_assert_uint_eq(vm.early, 0);
    vm.peer = 0;
    close(fd);
}
END_TEST

START_TEST(pipelining)
{
    int fd = dial();
    say(fd, GET "GET /version HTTP/1.1\r\n\r\nGET /nope HTTP/1.1\r\n\r\n" GET "GET /ver");
    ck_assert_int_eq(hear(fd, 4), 4);
    char *a = strstr(got, "fake-1"), *b = strstr(got, "firecracker_version"),
         *c = strstr(got, "GET nope.");
    ck_assert(a && b && c && a < b && b < c && strstr(c, "fake-1"));
    say(fd, "sion HTTP/1.1\r\nConnection: close\r\n\r\n" GET);
    ck_assert_int_eq(hear(fd, 2), 1); // nothing after a close is answered
    ck_assert_ptr_nonnull(strstr(got, "Connection: close"));
    close(fd);
}
END_TEST

START_TEST(half_close)
{
    int fd = dial();
    say(fd, GET GET "GET /ver");
    shutdown(fd, SHUT_WR);
    ck_assert_int_eq(hear(fd, 3), 2);
    ck_assert(closed(fd));
    close(fd);
}
END_TEST

START_TEST(expect_continue)
{
    int fd = dial();
    say(fd, "PUT /actions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 31\r\n\r\n");
    ck_assert_int_eq(hear(fd, 1), 1);
    ck_assert_int_eq(strncmp(got, "HTTP/1.1 100 Continue\r\n", 23), 0);
    say(fd, "{\"action_type\":\"InstanceStart\"}");
    ck_assert_int_eq(hear(fd, 1), 1);
    ck_assert_ptr_nonnull(strstr(got, " 204 "));
    close(fd);
}
END_TEST

START_TEST(faults_answer_and_close)
{
    static const char *const bad[] = {
        "GET / HTTP/1.1\n\n",
        "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n",
        "BREW / HTTP/1.1\r\n\r\n",
    };
    int fd = dial();
    say(fd, bad[_i]);
    ck_assert_int_eq(hear(fd, 2), 1);
    ck_assert_int_eq(strncmp(got, "HTTP/1.1 400 Bad Request\r\n", 26), 0);
    ck_assert_ptr_nonnull(strstr(got, "\r\n\r\n{\"fault_message\":\""));
    close(fd);
}
END_TEST

START_TEST(flood)
{
    int fd[API_CONNECTIONS + 1];
    for (int i = 0; i <= API_CONNECTIONS; i++)
        fd[i] = dial();
    ck_assert_int_eq(hear(fd[API_CONNECTIONS], 2), 1);
    ck_assert_ptr_nonnull(strstr(got, "HTTP/1.1 503 "));
    ck_assert_ptr_nonnull(strstr(got, "{\"fault_message\":\"Too many open connections\"}"));
    for (int i = 0; i < API_CONNECTIONS; i++) {
        say(fd[i], GET);
        ck_assert_int_eq(hear(fd[i], 1), 1);
        ck_assert_ptr_nonnull(strstr(got, " 200 "));
    }
    for (int i = 0; i <= API_CONNECTIONS; i++)
        close(fd[i]);
    for (;;) { // the places come back
        int again = dial();
        say(again, GET);
        hear(again, 1);
        close(again);
        if (strstr(got, " 200 "))
            break;
    }
}
END_TEST

START_TEST(slow_sender)
{
    int slow = dial(), idle = dial(), quick = dial();
    say(slow, "GET / HTTP/1.1\r\nHo");
    say(quick, GET);
    ck_assert_int_eq(hear(quick, 1), 1); // meanwhile others are served
    ck_assert_int_eq(hear(slow, 2), 1);  // blocks until the deadline has passed
    ck_assert_ptr_nonnull(strstr(got, "did not come whole"));
    say(idle, GET); // idleness is no slowness
    ck_assert_int_eq(hear(idle, 1), 1);
    close(slow);
    close(idle);
    close(quick);
}
END_TEST

// A call that takes longer than the deadline is no slowness of whoever else sends meanwhile.
START_TEST(long_call)
{
    int other = dial(), caller = dial();
    say(other, GET); // others come first in the server's table, then later
    ck_assert_int_eq(hear(other, 1), 1);
    vm.state = VM_RUNNING;
    vm.pause_ms = 2500;
    say(caller, "PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Pau");
    int later = dial();
    say(later, "GET / HTTP/1.1\r\nHo");
    say(other, "GET / HTTP/1.1\r\nHo");
    usleep(200 * 1000);
    say(caller, "sed\"}");
    usleep(200 * 1000); // the call is under way
    say(later, "st: x\r\n\r\n");
    say(other, "st: x\r\n\r\n");
    ck_assert_int_eq(hear(caller, 1), 1);
    ck_assert_ptr_nonnull(strstr(got, " 204 "));
    ck_assert_int_eq(hear(later, 1), 1);
    ck_assert_ptr_nonnull(strstr(got, " 200 "));
    ck_assert_int_eq(hear(other, 1), 1);
    ck_assert_ptr_nonnull(strstr(got, " 200 "));
    vm.pause_ms = 0;
    close(caller);
    close(later);
    close(other);
}
END_TEST

START_TEST(slow_taker)
{
    int slow = dial(), quick = dial();
    bool asked = false;
    struct pollfd p = {.fd = slow, .events = POLLOUT};
    // It asks without ever listening, until the server gives it up.
    while (send(slow, GET, strlen(GET), MSG_DONTWAIT | MSG_NOSIGNAL) > 0 || errno == EAGAIN) {
        if (poll(&p, 1, 100) == 0 && !asked) { // both sockets are full; others are served
            say(quick, GET);
            ck_assert_int_eq(hear(quick, 1), 1);
            asked = true;
        }
    }
    ck_assert(asked);
    close(slow);
    close(quick);
}
END_TEST

static void say_with(int fd, const char *s, const int *fds, unsigned n)
{
    union {
        char buf[CMSG_SPACE(64 * sizeof(int))];
        struct cmsghdr align;
    } ctl = {0};
    struct iovec iov = {.iov_base = (char *)(uintptr_t)s, .iov_len = strlen(s)};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    if (n) {
        m.msg_control = ctl.buf;
        m.msg_controllen = CMSG_SPACE(n * sizeof(int));
        struct cmsghdr *h = CMSG_FIRSTHDR(&m);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(h), fds, n * sizeof(int));
    }
    ck_assert_int_eq(sendmsg(fd, &m, MSG_NOSIGNAL), (ssize_t)strlen(s));
}

#define DRIVE                                              \
    "PUT /drives/a HTTP/1.1\r\nContent-Length: 60\r\n\r\n" \
    "{\"drive_id\":\"a\",\"is_root_device\":true,\"path_on_host\":\"fd:0\"}"

START_TEST(descriptors)
{
    int fd = dial(), a[2], b[2];
    char c;
    ck_assert_int_eq(pipe(a) | pipe(b), 0);
    // Between two requests without any, in one burst: they belong to the one whose bytes they rode.
    say_with(fd, GET, NULL, 0);
    say_with(fd, DRIVE, (int[]){a[1], b[1]}, 2);
    say_with(fd, DRIVE, NULL, 0);
    close(a[1]);
    close(b[1]);
    ck_assert_int_eq(hear(fd, 3), 3);
    char *ok = strstr(got, "204 No Content"), *no = strstr(got, "no such descriptor");
    ck_assert(ok && no && ok < no);
    ck_assert_int_eq(vm.taken >= 0, 1);
    ck_assert_int_eq(fcntl(vm.taken, F_GETFD), FD_CLOEXEC);
    ck_assert_int_eq(read(b[0], &c, 1), 0); // the second was not used, hence closed
    ck_assert_int_eq(write(vm.taken, "x", 1), 1);
    ck_assert_int_eq(read(a[0], &c, 1), 1);
    close(vm.taken);
    close(a[0]);
    close(b[0]);
    close(fd);
}
END_TEST

START_TEST(descriptors_split) // on the first of two parts, and on the last
{
    int a[2];
    for (size_t cut = 1; cut < sizeof(DRIVE) - 1; cut += sizeof(DRIVE) - 3) {
        char head[sizeof(DRIVE)];
        int fd = dial();
        ck_assert_int_eq(pipe(a), 0);
        memcpy(head, DRIVE, cut);
        head[cut] = 0;
        say_with(fd, head, &a[1], cut == 1);
        say_with(fd, &DRIVE[cut], &a[1], cut != 1);
        ck_assert_int_eq(hear(fd, 1), 1);
        ck_assert_ptr_nonnull(strstr(got, " 204 "));
        close(vm.taken);
        close(a[0]);
        close(a[1]);
        close(fd);
    }
}
END_TEST

START_TEST(too_many_descriptors)
{
    int fd = dial(), a[2], many[CFG_MAX_FDS + 1];
    char c;
    ck_assert_int_eq(pipe(a), 0);
    for (int i = 0; i <= CFG_MAX_FDS; i++)
        many[i] = a[1];
    say_with(fd, DRIVE, many, CFG_MAX_FDS + 1);
    close(a[1]);
    ck_assert_int_eq(hear(fd, 2), 1);
    ck_assert_ptr_nonnull(strstr(got, "Too many descriptors"));
    ck_assert_int_eq(read(a[0], &c, 1), 0); // none leaked
    ck_assert_uint_eq(vm.calls, 0);
    close(a[0]);
    close(fd);
}
END_TEST

START_TEST(largest_body)
{
    static char s[HTTP_BODY_MAX + 256];
    int fd = dial(),
        n = sprintf(s, "PUT /drives/a HTTP/1.1\r\nContent-Length: %d\r\n\r\n{", HTTP_BODY_MAX);
    memset(s + n, ' ', HTTP_BODY_MAX - 2);
    s[n + HTTP_BODY_MAX - 2] = '}';
    say(fd, s);
    ck_assert_int_eq(hear(fd, 1), 1);
    ck_assert_ptr_nonnull(strstr(got, "missing field `drive_id`"));
    say(fd, GET); // an error in the body is no error of the stream
    ck_assert_int_eq(hear(fd, 1), 1);
    close(fd);
}
END_TEST

START_TEST(socket_file)
{
    struct api *second;
    struct err e;
    struct stat st;
    char path[80];
    struct api_opts o = {.path = sock, .version = "1"};
    ck_assert_int_eq(api_open(&second, &o, &e), -EADDRINUSE); // alive
    ck_assert_ptr_nonnull(strstr(e.msg, "in use"));

    snprintf(path, sizeof(path), "%s/other", dir);
    o = (struct api_opts){.path = path, .version = "1", .mode = 0600};
    ck_assert_int_eq(api_open(&second, &o, &e), 0);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 07777, 0600);
    api_close(second);
    ck_assert_int_eq(api_open(&second, &o, &e), 0); // stale
    api_close(second);
    unlink(path);

    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    ck_assert_int_eq(api_open(&second, &o, &e), -EEXIST);
    unlink(path);
    ck_assert_int_eq(symlink(sock, path), 0);
    ck_assert_int_eq(api_open(&second, &o, &e), -EEXIST);
    unlink(path);
    char longer[120];
    memset(longer, 'a', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = 0;
    o.path = longer;
    ck_assert_int_eq(api_open(&second, &o, &e), -ENAMETOOLONG);
}
END_TEST

START_TEST(allowed_users)
{
    uint32_t uids[] = {getuid() + 1, getuid()};
    for (unsigned n = 1; n <= 2; n++) { // first without us
        stop();
        start(uids, n);
        int fd = dial();
        if (n == 2)
            say(fd, GET);
        ck_assert_int_eq(hear(fd, 1), 1);
        ck_assert_ptr_nonnull(strstr(got, n == 1 ? "may not use the API" : " 200 "));
        close(fd);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("api_server");
    TCase *t = tcase_create("server");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, answer_before_vcpus);
    tcase_add_test(t, drip);
    tcase_add_test(t, pipelining);
    tcase_add_test(t, half_close);
    tcase_add_test(t, expect_continue);
    tcase_add_loop_test(t, faults_answer_and_close, 0, 4);
    tcase_add_test(t, flood);
    tcase_add_test(t, slow_sender);
    tcase_add_test(t, long_call);
    tcase_add_test(t, slow_taker);
    tcase_add_test(t, descriptors);
    tcase_add_test(t, descriptors_split);
    tcase_add_test(t, too_many_descriptors);
    tcase_add_test(t, largest_body);
    tcase_add_test(t, socket_file);
    tcase_add_test(t, allowed_users);
    suite_add_tcase(s, t);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
