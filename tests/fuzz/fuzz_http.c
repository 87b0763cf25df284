// SPDX-License-Identifier: Apache-2.0
// Fuzz: the HTTP parser gives one verdict however its bytes are cut, and stays inside them.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "api-socket/http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void judge(const char *p, size_t n, size_t step)
{
    struct http_request whole = {.body_max = HTTP_BODY_MAX}, cut = whole;
    enum http_state w = http_parse(&whole, p, n), c = HTTP_MORE;
    if (w == HTTP_CONTINUE)
        w = http_parse(&whole, p, n);
    for (size_t i = 0; c == HTTP_MORE || c == HTTP_CONTINUE; i += step) {
        c = http_parse(&cut, p, i < n ? i : n);
        if (i >= n)
            break;
    }
    if (c == HTTP_CONTINUE)
        c = http_parse(&cut, p, n);
    if (c != w || (w == HTTP_DONE && (whole.head_len + whole.body_len > n ||
                                      whole.target + whole.target_len >= whole.head_len ||
                                      cut.head_len != whole.head_len)))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    char *p = malloc(size - 1); // exact, so that a read past the end is seen
    if (size > 1)
        memcpy(p, data + 1, size - 1);
    judge(p, size - 1, (size_t)data[0] % 32 + 1);
    free(p);
    return 0;
}
