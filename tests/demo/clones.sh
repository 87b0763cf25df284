#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The demo's second half: one guest is saved, and 20 clones of it answer, each over its own tap, under its own name,
# with its own disk layer over one image. Runs from the repository's root, as root.
set -euo pipefail

CTL=build/mayflyctl
DIR=$(mktemp -d /tmp/mayfly-clones.XXXXXX)
NAME=demo$$-
SOCK=$DIR/api.sock
PID=
N=20

bold() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}
finish() {
    [ -z "$PID" ] || kill "$PID" 2>/dev/null || true
    "$CTL" netns remove --prefix "$NAME" -n 1 >/dev/null || true
    rm -rf "$DIR"
}
trap finish EXIT
put() {
    printf '  PUT   %s %s\n' "$1" "$2"
    "$CTL" --socket "$SOCK" put "$1" "$2" || fail "PUT $1"
}

bold "7. A guest with a disk and a configuration drive, ready to be cloned"
truncate -s 16M "$DIR/disk.img"
truncate -s 4K "$DIR/config.img"
"$CTL" netns make --prefix "$NAME" -n 1 --guest 172.30.0.2/24 | sed 's/^/  /'
ip netns exec "${NAME}0" build/mayfly --api-sock "$SOCK" --log-path "$DIR/log" </dev/null >"$DIR/console" 2>&1 &
PID=$!
for _ in $(seq 500); do [ -S "$SOCK" ] && break; sleep 0.01; done
put /boot-source '{"kernel_image_path": "build/guests/function.elf", "boot_args": "ip=172.30.0.2/24 gw=172.30.0.1 mayfly.vmgenid=0xd0000"}'
put /drives/disk "{\"drive_id\": \"disk\", \"path_on_host\": \"$DIR/disk.img\", \"is_root_device\": false}"
put /drives/config "{\"drive_id\": \"config\", \"path_on_host\": \"$DIR/config.img\", \"is_root_device\": false, \"is_read_only\": true}"
put /network-interfaces/eth0 '{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:1E:00:02"}'
put /actions '{"action_type": "InstanceStart"}'
ip netns exec "${NAME}0" curl -sS --fail --max-time 5 --retry 20 --retry-connrefused --retry-delay 0 \
    http://172.30.0.2/counter | sed 's/^/  it counts: /'

bold "8. Paused and saved"
"$CTL" --socket "$SOCK" patch /vm '{"state": "Paused"}'
put /snapshot/create "{\"snapshot_path\": \"$DIR/demo.state\", \"mem_file_path\": \"$DIR/demo.mem\"}"
kill "$PID"
wait "$PID" 2>/dev/null || true
PID=
printf '  memory: %s KiB on disk for 128 MiB\n' "$(du -k "$DIR/demo.mem" | cut -f1)"
"$CTL" snapshot describe "$DIR/demo.state" | head -8

bold "9. $N clones of it, each asked who it is"
printf 'greeting=hello from the host\n' |
    "$CTL" clone --snapshot "$DIR/demo.state" --mem "$DIR/demo.mem" -n "$N" --prefix "$NAME" --dir "$DIR/clones" \
        --guest 172.30.0.2/24 --data - --get /whoami | tee "$DIR/table" | sed 's/^/  /'
for i in $(seq 0 $((N - 1))); do
    grep -q " id=$NAME$i\$" "$DIR/table" || fail "clone $i did not say its own name"
done
printf '  every one of the %s said its own name\n' "$N"
