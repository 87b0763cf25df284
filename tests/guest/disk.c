// SPDX-License-Identifier: Apache-2.0
// Requests that the disk must finish.
#include "http.h"

bool disk_begin(struct conn *c)
{
    (void)c;
    return true;
}
bool disk_takes(const struct conn *c)
{
    (void)c;
    return false;
}
uint32_t disk_window(const struct conn *c)
{
    (void)c;
    return 0;
}
uint32_t disk_data(struct conn *c, const uint8_t *p, uint32_t n)
{
    (void)c;
    (void)p;
    return n;
}
bool disk_request(struct conn *c)
{
    (void)c;
    return false;
}
void disk_gone(struct conn *c)
{
    (void)c;
}
void disk_config_changed(struct blk *b)
{
    blk_read_config(b);
}
