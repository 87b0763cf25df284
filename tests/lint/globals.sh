#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# No mutable globals: our own objects may put nothing into .data, .bss or thread-local storage. Constants with
# addresses in them lie in .data.rel.ro, which is read-only once the process is relocated.
# usage: globals.sh LIBRARY OBJECT...
set -euo pipefail
bad=$(objdump -t "$@" | awk -F'\t' '
    /: +file format/ { sub(/:.*/, ""); file = $0 }
    NF == 2 { n = split($1, w, " "); sec = w[n]; split($2, v, " ")
              if ((sec ~ /^\.t?(data|bss)/ && sec !~ /^\.data\.rel\.ro/ || sec == "*COM*") && v[2] !~ /^\./)
                  print "  " file ": " v[2] " in " sec }')
if [ -n "$bad" ]; then
    printf 'mutable globals:\n%s\n' "$bad"
    exit 1
fi
echo "no mutable globals"
