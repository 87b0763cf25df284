// SPDX-License-Identifier: Apache-2.0
// The version, as `--version`, GET /version and snapshots tell it.
#ifndef VMM_VERSION_H
#define VMM_VERSION_H

#define MAYFLY_VERSION "0.1.0"

#endif
