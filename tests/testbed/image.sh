#!/bin/bash
# image.sh REFERENCE BINARY [PATH=FILE ...] -- [mkimage options]: an image of one static binary and some files, pushed
. "$(dirname "$0")/lib.sh"
reference=$1 binary=$2; shift 2
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
mkdir -p "$W/root/tmp" "$W/root/etc"; chmod 1777 "$W/root/tmp"
install -m 755 "$binary" "$W/root/$(basename "$binary")"
while [ $# -gt 0 ] && [ "$1" != -- ]; do install -D -m 644 "${1#*=}" "$W/root/${1%%=*}"; shift; done
shift || true
tar -C "$W/root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$W/root.tar" .
"$HERE/mkimage.py" "$W/root.tar" "$W/image.tar" "${reference##*/}" "$@" >/dev/null
"$HERE/push.sh" "$W/image.tar" "$reference"
