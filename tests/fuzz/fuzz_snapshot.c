// SPDX-License-Identifier: Apache-2.0
// State blobs: first as they come, then under a right checksum, so that the sections are reached. What is
// decoded must encode to something that decodes to the same.
#include "tests/unit/snap_blob.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t buf[SNAP_STATE_MAX], again[SNAP_STATE_MAX];

static struct vm_saved *decode(const uint8_t *p, size_t len, struct snap_blob *b)
{
    struct vm_saved *s = NULL;
    struct err e = {0};
    int rc = codec_decode(p, len, b, &s, &e);
    if (rc && !e.msg[0])
        abort();
    return rc ? NULL : s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct snap_blob b, c;
    struct err e;
    size_t len = MIN(size, sizeof(buf)), n = 0, k = 0;

    vm_saved_free(decode(data, size, &b));
    memcpy(buf, data, len);
    if (len < SNAP_HEAD)
        return 0;
    memcpy(buf, "MAYFLYST\1\0\0\0\0\0\0\0", 16);
    blob_seal(buf, len);
    struct vm_saved *s = decode(buf, len, &b);
    if (!s)
        return 0;
    if (codec_encode(&b, s, again, sizeof(again), &n, &e))
        abort();
    struct vm_saved *t = decode(again, n, &c);
    if (!t || codec_encode(&c, t, buf, sizeof(buf), &k, &e) || n != k || memcmp(again, buf, n))
        abort();
    vm_saved_free(s);
    vm_saved_free(t);
    return 0;
}
