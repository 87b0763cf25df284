#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds a guest kernel from Debian's linux-source package: build/kernels/VERSION/{vmlinux,bzImage,config}.
# usage: build.sh [6.12|6.1] [OUTPUT-ROOT]      (OUTPUT-ROOT defaults to build/kernels)
# Environment: JOBS (default: all processors), LINUX_SOURCE (a tarball to use instead of Debian's).
# The same source package and compiler give the same bytes, wherever the checkout lies and whoever builds.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
version=${1:-6.12}
out=$(realpath -m "${2:-$here/../build/kernels}")
fragment=$here/microvm-x86_64-$version.config
package=linux-source-$version
src=$out/src/$package
obj=$out/obj/$version
dest=$out/$version

die() { echo "build.sh: $*" >&2; exit 1; }

[ -r "$fragment" ] || die "no fragment for Linux $version ($fragment)"
missing=
for tool in make gcc ld flex bison bc lz4 xz; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
[ -e /usr/include/libelf.h ] || missing="$missing libelf-dev"
[ -z "$missing" ] || die "missing:$missing (apt-get install build-essential flex bison bc lz4 xz-utils libelf-dev)"

# One build of a version at a time: two would write the same object files.
mkdir -p "$out/src" "$obj" "$dest"
exec 9>"$out/.lock-$version"
flock 9

# The package's tarball: installed, or fetched by apt into our own folder, so that nothing need be installed.
fetch() {
    local tar=${LINUX_SOURCE:-/usr/src/$package.tar.xz}
    if [ ! -e "$tar" ]; then
        tar=$out/src/$package.tar.xz
        (cd "$out/src" && apt-get -q download "$package" 2>/dev/null) ||
            die "cannot fetch $package: apt-get install $package, or set LINUX_SOURCE"
        set -- "$out/src/${package}"_*.deb
        dpkg-deb --fsys-tarfile "$1" | tar -xO "./usr/src/$package.tar.xz" >"$tar"
        rm -f -- "$@"
    fi
    rm -rf "$src" "$src.new"
    mkdir "$src.new"
    tar -xf "$tar" -C "$src.new" --strip-components=1
    touch -r "$tar" "$src.new/.stamp"
    mv "$src.new" "$src"
    rm -f "$out/src/$package.tar.xz"
}
[ -e "$src/Makefile" ] || fetch

cc="gcc"
if command -v ccache >/dev/null; then
    cc="ccache gcc"
fi
# Everything that could differ between two builders: time, names, locale, absolute paths, git's opinion.
stamp=$(stat -c %Y "$src/Makefile")
export KBUILD_BUILD_TIMESTAMP="@$stamp" KBUILD_BUILD_USER=mayfly KBUILD_BUILD_HOST=microvm KBUILD_BUILD_VERSION=1
export SOURCE_DATE_EPOCH="$stamp" LC_ALL=C TZ=UTC LOCALVERSION=
unset MAKEFLAGS MFLAGS MAKELEVEL
run() {
    make -s -C "$src" O="$obj" CC="$cc" HOSTCC="$cc" KCFLAGS="-ffile-prefix-map=$src/= -ffile-prefix-map=$obj/=" \
        KAFLAGS="-ffile-prefix-map=$src/= -ffile-prefix-map=$obj/=" "$@"
}

run tinyconfig >/dev/null
(cd "$obj" && "$src/scripts/kconfig/merge_config.sh" -m -O "$obj" .config "$fragment" >/dev/null 2>&1)
run olddefconfig 2>&1 >/dev/null | grep -v 'changes choice state' >&2 || :
"$here/check-config.sh" "$fragment" "$obj/.config"

if [ -n "${CONFIG_ONLY:-}" ]; then
    exit 0
fi
run -j "${JOBS:-$(nproc)}" vmlinux bzImage
# Debug sections are not built; symbols stay, a panic then names functions.
install -m 644 "$obj/vmlinux" "$dest/vmlinux"
install -m 644 "$obj/arch/x86/boot/bzImage" "$dest/bzImage"
install -m 644 "$obj/.config" "$dest/config"
(cd "$dest" && sha256sum vmlinux bzImage | tee sha256)
