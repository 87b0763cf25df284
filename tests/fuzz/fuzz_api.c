// SPDX-License-Identifier: Apache-2.0
// Fuzz: any request and any configuration file, down to the calls of a microVM that only remembers.
#include "tests/unit/api_fake.h"

#include "api-socket/api.h"
#include "api-socket/routes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// One byte: verb, state, or the file; then the path, a NUL, the body.
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct vm vm;
    static char answer[65536];
    if (size < 2)
        return 0;
    const char *text = (const char *)data + 1;
    const char *nul = memchr(text, 0, size - 1);
    size_t target_len = nul ? (size_t)(nul - text) : size - 1;
    size_t body_len = nul ? size - 2 - target_len : 0;
    char *body = malloc(body_len); // exact, so that a read past the end is seen
    if (body_len)
        memcpy(body, nul + 1, body_len);
    vm = fake_vm();
    if (data[0] & 0x80) {
        struct err e = {0};
        if (api_apply_config(&vm, body, body_len, &e) != 0 && e.msg[0] == 0)
            abort();
    } else {
        struct json_out out = {.buf = answer, .cap = sizeof(answer)};
        struct passed_fds fds = {0};
        struct api_call c = {.vm = &vm,
                             .version = "1",
                             .verb = (enum http_verb)(data[0] % 5),
                             .target = text,
                             .target_len = target_len,
                             .body = body,
                             .body_len = body_len,
                             .fds = &fds,
                             .out = &out};
        vm.state = (enum vm_state)(data[0] / 5 % 3);
        int status = api_route(&c);
        struct json_doc d;
        struct err e;
        if (status == 204 ? out.len != 0
                          : json_parse(&d, answer, out.len, JSON_TOKENS_MAX, &e) != 0)
            abort(); // every answer with a body is JSON that we would read ourselves
    }
    free(body);
    return 0;
}
