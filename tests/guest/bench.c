// SPDX-License-Identifier: Apache-2.0
// Load generators.
#include "bench.h"
#include "http.h"

void bench_main(void)
{
}
