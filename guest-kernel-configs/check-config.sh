#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Fails, naming the lost lines, when a merged kernel configuration did not keep every line of a fragment.
# usage: check-config.sh FRAGMENT CONFIG
set -eu
[ $# -eq 2 ] || { echo "usage: $0 FRAGMENT CONFIG" >&2; exit 2; }
awk '
function fail(line) { print "  lost: " line; lost++ }
NR == FNR {                                    # the merged configuration
    if ($0 ~ /^CONFIG_/) { i = index($0, "="); have[substr($0, 1, i - 1)] = substr($0, i + 1) }
    next
}
/^CONFIG_[A-Za-z0-9_]+=/ {
    i = index($0, "="); name = substr($0, 1, i - 1); asked++
    if (!(name in have) || have[name] != substr($0, i + 1)) fail($0)
    next
}
/^# CONFIG_[A-Za-z0-9_]+ is not set$/ { asked++; if ($2 in have) fail($0); next }
/^#/ || /^$/ { next }
{ fail("(not understood) " $0) }
END {
    if (!asked) { print "  the fragment asks for nothing"; exit 1 }
    if (lost) { printf "%d of %d lines lost\n", lost, asked; exit 1 }
    printf "all %d lines of the fragment kept\n", asked
}' "$2" "$1"
