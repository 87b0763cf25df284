#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes what the nested lane boots and what its guests boot, in build/nested; each part once, until its inputs change:
#   lane/{vmlinuz,initrd.gz,root.ext4}   the outer machine: Debian's cloud kernel and a Debian root
#   assets/debian.ext4                   a guest's Debian root, with a Python function
#   assets/cloud-VERSION/{vmlinuz,vmlinux,initrd.gz}  Debian's own cloud kernels as guests
#   assets/microvm-VERSION/{vmlinux,bzImage}  ours, when built;   assets/initrd.gz  busybox and the guests' init
#   assets/peer/firecracker              from PEER_FIRECRACKER, when set
# Packages come through apt from this machine's own sources and are unpacked, not installed: /boot stays as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
work=$top/build/nested
assets=$work/assets
suite=bookworm
die() { echo "build-assets.sh: $*" >&2; exit 1; }

tools="gcc mmdebstrap mke2fs dpkg-deb apt-get python3 lz4 xz zstd"
[ "${1:-}" = --native ] || tools="$tools qemu-system-x86_64"
missing=
for tool in $tools; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || missing="$missing $tool"
done
if [ -n "$missing" ]; then
    install="apt-get install -y --no-install-recommends qemu-system-x86 mmdebstrap e2fsprogs lz4 xz-utils zstd"
    [ "$(id -u)" = 0 ] || die "missing:$missing. As root: $install"
    $install
fi
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C
mkdir -p "$work/lane" "$assets" "$work/debs"
exec 9>"$work/.lock"
flock 9

# Without root, a user namespace makes the unpacked trees root's own.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else unshare --map-root-user "$@"; fi
}

# fresh TARGET INPUT...: is TARGET newer than all its inputs?
fresh() {
    local target=$1 f
    shift
    [ -e "$target" ] || return 1
    for f; do [ ! "$f" -nt "$target" ] || return 1; done
}

# kernel_package 6.1|6.12: the cloud image that the meta package names today.
kernel_package() {
    local meta=linux-image-cloud-amd64
    [ "$1" = 6.1 ] || meta=linux-image-$1-cloud-amd64
    apt-cache depends "$meta" 2>/dev/null | sed -n 's/.*Depends: \(linux-image-\)/\1/p' | head -n 1
}

# unpack_kernel VERSION: into kernel-VERSION/, from a package fetched once.
unpack_kernel() {
    local dir=$work/kernel-$1 package
    [ ! -e "$dir/.done" ] || return 0
    package=$(kernel_package "$1")
    [ -n "$package" ] || die "apt knows no cloud kernel $1 (apt-get update?)"
    (cd "$work/debs" && rm -f "${package}"_*.deb && apt-get -q download "$package" 2>/dev/null) ||
        die "cannot download $package"
    rm -rf "$dir"
    dpkg-deb -x "$work/debs/${package}"_*.deb "$dir"
    rm -f "$work/debs/${package}"_*.deb
    # Newer packages compress their modules, which busybox cannot load.
    find "$dir/lib/modules" -name '*.ko.xz' -exec xz -d {} +
    touch "$dir/.done"
}

# initrd OUTPUT VERSION INIT MODULE...: busybox, INIT, and the modules with what they need, in load order.
# VERSION "none": no modules.
initrd() {
    local output=$1 version=$2 init=$3 tree applet
    shift 3
    tree=$(mktemp -d)
    mkdir -p "$tree/bin" "$tree/root" "$tree/proc" "$tree/sys"
    cp "$work/tree-bin/busybox" "$tree/bin/busybox"
    for applet in $("$tree/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -sf busybox "$tree/bin/$applet"
    done
    install -m 755 "$init" "$tree/init"
    [ "$init" = "$here/lane-init" ] || cp "$work/tree-bin/probe" "$tree/bin/probe"
    if [ "$version" != none ]; then
        mkdir "$tree/modules"
        python3 - "$work/kernel-$version/lib/modules" "$tree/modules" "$@" <<'PY'
import os, re, shutil, sys
top, out, wanted = sys.argv[1], sys.argv[2], sys.argv[3:]
where = {f[:-3].replace("-", "_"): os.path.join(d, f) for d, _, fs in os.walk(top) for f in fs if f.endswith(".ko")}
order = []
def need(name):
    if name in order:
        return
    with open(where[name], "rb") as f:
        found = re.search(rb"\0depends=([^\0]*)\0", f.read())
    for dep in filter(None, found[1].decode().split(",") if found else []):
        need(dep.replace("-", "_"))
    order.append(name)
    shutil.copy(where[name], os.path.join(out, name + ".ko"))
for m in wanted:
    if m in where:          # absent: built in
        need(m)
open(os.path.join(out, "order"), "w").write("".join(n + ".ko\n" for n in order))
PY
    fi
    python3 "$here/mkcpio.py" "$tree" "$output"
    rm -rf "$tree"
}

# image OUTPUT MIB FOLDER: an ext4 image of FOLDER, without mounting.
image() {
    rm -f "$1.new"
    mke2fs -q -F -t ext4 -m 0 -O ^has_journal -E lazy_itable_init=1,root_owner=0:0 -d "$3" "$1.new" "${2}M" >/dev/null
    mv "$1.new" "$1"
}

# One Debian tree for both machines.
if ! cmp -s "$here/packages" "$work/root.packages"; then
    echo "nested: making the Debian root (mmdebstrap)"
    sources=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null || :)
    [ -n "$sources" ] || die "no apt sources on this machine"
    mode=auto
    [ "$(id -u)" = 0 ] || mode=unshare
    # shellcheck disable=SC2016
    printf '%s\n' "$sources" | mmdebstrap --quiet --mode=$mode --format=tar --variant=minbase \
        --include="$(grep -v '^#' "$here/packages" | paste -sd,)" \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/*' \
        "$suite" "$work/root.tar.new" -
    mv "$work/root.tar.new" "$work/root.tar"
    cp "$here/packages" "$work/root.packages"
fi
unpack_kernel 6.1
unpack_kernel 6.12
if ! fresh "$work/tree-bin/busybox" "$work/root.tar"; then
    mkdir -p "$work/tree-bin"
    tar -xOf "$work/root.tar" ./bin/busybox >"$work/tree-bin/busybox" 2>/dev/null ||
        tar -xOf "$work/root.tar" ./usr/bin/busybox >"$work/tree-bin/busybox"
    chmod 755 "$work/tree-bin/busybox"
fi

if ! fresh "$work/tree-bin/probe" "$here/guest/probe.c"; then
    gcc -static -O2 -D_GNU_SOURCE -Wall -Wextra -o "$work/tree-bin/probe" "$here/guest/probe.c"
fi

# The outer machine runs Debian 12's own kernel: the stock KVM most hosts have.
if ! fresh "$work/lane/root.ext4" "$work/root.tar" "$here/build-assets.sh"; then
    echo "nested: making the lane's root"
    # shellcheck disable=SC2016
    as_root bash -euc '
        tree=$(mktemp -d -p "$1"); trap "rm -rf \"$tree\"" EXIT; chmod 755 "$tree"
        tar -xf "$1/root.tar" -C "$tree" --exclude="./dev/*"
        cp -a "$1/kernel-6.1/lib/modules" "$tree/usr/lib/"
        chroot "$tree" depmod "$(ls "$1/kernel-6.1/lib/modules")"
        mkdir -p "$tree/src" "$tree/assets"
        echo "127.0.0.1 localhost lane" >"$tree/etc/hosts"
        mke2fs -q -F -t ext4 -m 0 -O ^has_journal -E lazy_itable_init=1 -d "$tree" "$1/lane/root.ext4.new" 3072M >/dev/null
        mv "$1/lane/root.ext4.new" "$1/lane/root.ext4"' build "$work" >/dev/null
fi
if ! fresh "$work/lane/initrd.gz" "$here/lane-init" "$here/build-assets.sh" "$work/tree-bin/busybox"; then
    initrd "$work/lane/initrd.gz" 6.1 "$here/lane-init" virtio_pci virtio_blk ext4
    cp "$work"/kernel-6.1/boot/vmlinuz-* "$work/lane/vmlinuz"
fi

# Guests.
if ! fresh "$assets/debian.ext4" "$work/root.tar" "$here/guest/init" "$here/guest/function.py" \
    "$top/guest-kernel-configs/rootfs.sh"; then
    echo "nested: making the guests' Debian root"
    "$top/guest-kernel-configs/rootfs.sh" "$work/root.tar" "$assets/debian.ext4" --size 448 \
        --add "$here/guest/init:/sbin/init" --add "$here/guest/function.py:/srv/function.py" --chroot '
        ln -sf busybox /bin/poweroff; ln -sf busybox /bin/reboot
        python3 -m compileall -q /usr/lib/python3.11 /srv >/dev/null || :
        echo microvm >/etc/hostname; echo "127.0.0.1 localhost" >/etc/hosts'
fi
if ! fresh "$assets/initrd.gz" "$here/guest/init" "$work/tree-bin/probe"; then
    initrd "$assets/initrd.gz" none "$here/guest/init"
    for v in 6.1 6.12; do
        mkdir -p "$assets/cloud-$v"
        initrd "$assets/cloud-$v/initrd.gz" $v "$here/guest/init" virtio_mmio virtio_blk virtio_net ext4 msr ptp_kvm
        cp "$work"/kernel-$v/boot/vmlinuz-* "$assets/cloud-$v/vmlinuz"
        python3 "$here/unpack-bzimage.py" "$assets/cloud-$v/vmlinuz" "$assets/cloud-$v/vmlinux"
    done
fi
for v in 6.1 6.12; do
    built=$top/build/kernels/$v
    if [ -e "$built/bzImage" ] && ! fresh "$assets/microvm-$v/bzImage" "$built/bzImage"; then
        mkdir -p "$assets/microvm-$v"
        cp "$built/vmlinux" "$built/bzImage" "$assets/microvm-$v/"
    fi
done
if [ -x "${PEER_FIRECRACKER:-}" ] && ! fresh "$assets/peer/firecracker" "$PEER_FIRECRACKER"; then
    mkdir -p "$assets/peer"
    cp -f "$PEER_FIRECRACKER" "$assets/peer/firecracker"
fi

newest=$(find "$assets" -type f -newer "$work/lane/assets.ext4" 2>/dev/null | head -n 1 || :)
if [ "${1:-}" != --native ] && { [ ! -e "$work/lane/assets.ext4" ] || [ -n "$newest" ]; }; then
    image "$work/lane/assets.ext4" $(($(du -sm "$assets" | cut -f1) * 11 / 10 + 64)) "$assets"
fi
