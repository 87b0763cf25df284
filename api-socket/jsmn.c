// SPDX-License-Identifier: Apache-2.0
// The one place where the jsmn tokenizer (header-only, libjsmn-dev) is compiled.
#define JSMN_STRICT
#include <jsmn.h>
