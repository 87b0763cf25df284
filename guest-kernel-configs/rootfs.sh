#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Turns a root file system's tar (docker export, podman export, mmdebstrap) into an ext4 image, without mounting and
# without root: files get the owners the tar names when run by root, else they all become root's.
# usage: rootfs.sh ROOT.tar OUTPUT.ext4 [--size MIB] [--add FILE:PATH]... [--chroot COMMAND]
#   --size    the image's size; default: the tree's and a quarter more, at least 64 MiB more
#   --add     puts an executable FILE of this machine at PATH (an init, a function); replaces what is there
#   --chroot  runs COMMAND by /bin/sh in the tree before it is packed
set -euo pipefail
die() { echo "rootfs.sh: $*" >&2; exit 1; }
usage() { sed -n 's/^# usage: /usage: /p' "$0" >&2; exit 2; }

[ $# -ge 2 ] || usage
if [ "$(id -u)" != 0 ]; then
    exec unshare --map-root-user "$0" "$@"
fi
export PATH=$PATH:/usr/sbin:/sbin
tar=$1 output=$2 size='' command=''
add=()
shift 2
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case $1 in
    --size) size=$2 ;;
    --add) add+=("$2") ;;
    --chroot) command=$2 ;;
    *) usage ;;
    esac
    shift 2
done
[ -r "$tar" ] || die "cannot read $tar"

tree=$(mktemp -d -p "$(dirname "$output")" rootfs.XXXXXX)
trap 'rm -rf "$tree" "$output.new"' EXIT
chmod 755 "$tree"
# Device nodes are the guest's devtmpfs's affair.
tar -xf "$tar" -C "$tree" --numeric-owner --exclude='./dev/*' --exclude='dev/*'
mkdir -p "$tree"/{dev,proc,sys,run,tmp,mnt}
for pair in ${add[@]+"${add[@]}"}; do
    path=$tree/${pair#*:}
    # A link at the last step would be followed out of the tree.
    rm -f "$path"
    install -D -m 755 "${pair%%:*}" "$path"
done
[ -z "$command" ] || chroot "$tree" /bin/sh -ec "$command"
used=$(du -sm "$tree" | cut -f1)
[ -n "$size" ] || size=$((used + (used / 4 > 64 ? used / 4 : 64)))
mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=1 -d "$tree" "$output.new" "${size}M" >/dev/null
mv "$output.new" "$output"
