#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The main job, end to end: a microVM starts through the Unix-socket API, its unikernel answers curl over a tap,
# reads and writes its disk, pauses, resumes and powers off; then clones.sh. Each step is checked; the first that fails ends the
# demo with status 1.
set -euo pipefail
cd "$(dirname "$0")/../.."

NS=mayfly-demo-$$
DIR=$(mktemp -d /tmp/mayfly-demo.XXXXXX)
SOCK=$DIR/api.sock
PID=

bold() { printf '\033[1m%s\033[0m\n' "$*"; }
fail() {
    printf 'demo: %s\n' "$*" >&2
    sed 's/^/  | /' "$DIR/console" >&2 || true
    exit 1
}
finish() {
    [ -z "$PID" ] || kill "$PID" 2>/dev/null || true
    ip netns del "$NS" 2>/dev/null || true
    rm -rf "$DIR"
}
trap finish EXIT

api() { # METHOD PATH [BODY]: shows the call, fails on anything but success
    local out
    printf '  %-5s %s %s\n' "$1" "$2" "${3-}"
    out=$(curl -sS --fail-with-body --unix-socket "$SOCK" -X "$1" "http://localhost$2" \
        ${3:+-H 'Content-Type: application/json' -d "$3"}) || fail "$1 $2: $out"
    [ -z "$out" ] || printf '        %s\n' "$out"
}
guest() { ip netns exec "$NS" curl -sS --fail --max-time 5 --retry 20 --retry-connrefused --retry-delay 0 "$@"; }

if [ "$(tests/nested/host-kvm.sh)" = none ]; then
    echo "demo: /dev/kvm is not here or not ours; running inside the nested lane instead"
    exec tests/nested/in-lane.sh tests/demo/demo.sh
fi
if [ "$(id -u)" != 0 ]; then
    echo "demo: network namespaces and taps need root; please run: sudo make demo"
    exit 1
fi

bold "1. A network namespace with a tap, and a disk image of 16 MiB"
ip netns add "$NS"
ip -n "$NS" link set lo up
ip -n "$NS" tuntap add tap0 mode tap vnet_hdr
ip -n "$NS" addr add 172.30.0.1/24 dev tap0
ip -n "$NS" link set tap0 up
truncate -s 16M "$DIR/disk.img"

bold "2. The monitor, and its configuration through the socket"
ip netns exec "$NS" build/mayfly --api-sock "$SOCK" --id demo --log-path "$DIR/log" \
    </dev/null >"$DIR/console" 2>&1 &
PID=$!
for _ in $(seq 200); do [ -S "$SOCK" ] && break; sleep 0.01; done
api PUT /machine-config '{"vcpu_count": 1, "mem_size_mib": 128}'
api PUT /boot-source '{"kernel_image_path": "build/guests/function.elf", "boot_args": "ip=172.30.0.2/24 gw=172.30.0.1"}'
api PUT /drives/disk "{\"drive_id\": \"disk\", \"path_on_host\": \"$DIR/disk.img\", \"is_root_device\": false}"
api PUT /network-interfaces/eth0 '{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:1E:00:02"}'
api PUT /actions '{"action_type": "InstanceStart"}'

bold "3. The guest answers over virtio-net"
printf '  GET http://172.30.0.2/ -> %s\n' "$(guest http://172.30.0.2/ | head -1)"

bold "4. It stores and reads its disk over virtio-blk"
printf 'hello from the host' | guest -X PUT --data-binary @- http://172.30.0.2/sector/7 >/dev/null
got=$(guest http://172.30.0.2/sector/7 | tr -d '\0')
[ "$got" = "hello from the host" ] || fail "sector 7 reads '$got'"
[ "$(dd if="$DIR/disk.img" bs=512 skip=7 count=1 status=none | tr -d '\0')" = "$got" ] || fail "the image does not hold it"
printf '  PUT, then GET /sector/7 -> %s (and the image on the host holds it)\n' "$got"

bold "5. Pause: its counter stands still; resume: it goes on"
a=$(guest http://172.30.0.2/counter)
api PATCH /vm '{"state": "Paused"}'
if ip netns exec "$NS" curl -s --max-time 1 http://172.30.0.2/ >/dev/null; then fail "a paused guest answered"; fi
api PATCH /vm '{"state": "Resumed"}'
b=$(guest http://172.30.0.2/counter)
printf '  counter before: %s   after: %s\n' "$a" "$b"

bold "6. Power-off from inside"
guest http://172.30.0.2/poweroff >/dev/null || true
for _ in $(seq 500); do kill -0 "$PID" 2>/dev/null || break; sleep 0.01; done
status=0
wait "$PID" || status=$?
PID=
[ "$status" = 0 ] || fail "the monitor ended with status $status"
echo "  the monitor ended with status 0: $(grep -o 'Mayfly ends.*' "$DIR/log" || true)"
tests/demo/clones.sh
bold "demo: everything worked"
