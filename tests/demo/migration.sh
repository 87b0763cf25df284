#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A microVM moves to and fro between two hosts (network namespaces on one bridge) while a client downloads from it.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "$(tests/nested/host-kvm.sh)" = none ]; then
    echo "demo-migration: /dev/kvm is not here or not ours; running inside the nested lane instead"
    exec tests/nested/in-lane.sh tests/demo/migration.sh
fi
if [ "$(id -u)" != 0 ]; then
    echo "demo-migration: network namespaces and taps need root; please run: sudo make demo-migration"
    exit 1
fi
exec python3 tests/demo/migration.py
