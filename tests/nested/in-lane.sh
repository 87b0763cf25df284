#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command from the checkout on stock hardware-style KVM, in an emulated machine (the nested lane): the
# checkout is copied in with what was built, output comes out live, files left in /results land in
# build/nested/results, and the exit status is the command's.
# usage: in-lane.sh [--deadline SECONDS] [--memory MIB] [--env NAME=VALUE]... COMMAND [ARGUMENT]...
exec python3 "$(dirname "$0")/lane.py" "$@"
