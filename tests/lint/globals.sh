#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# No mutable globals: our own objects may put nothing into .data or .bss.
# usage: globals.sh LIBRARY OBJECT...
set -u
bad=$(nm -A --defined-only "$@" 2>/dev/null | awk '$2 ~ /^[bBdDsSgGC]$/ || $3 ~ /^[bBdDsSgGC]$/' |
    grep -vE ' [bBdD] (__|_DYNAMIC|completed|\.L)')
if [ -n "$bad" ]; then
    printf 'mutable globals:\n%s\n' "$bad"
    exit 1
fi
echo "no mutable globals"
