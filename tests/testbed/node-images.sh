#!/bin/bash
# node-images.sh: the images that a node has before it can reach a registry: pause (catatonit -P) and busybox
. "$(dirname "$0")/lib.sh"
key=$(cat "$HERE/mkimage.py" "$0" /usr/bin/catatonit /bin/busybox | sha256sum | cut -c1-16)
[ "$(cat "$CACHE/img/node.key" 2>/dev/null)" = "$key" ] && exit 0
mkdir -p "$CACHE/img"; W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
say "making the nodes' pause and busybox images"
mkdir -p "$W/p" "$W/b/bin" "$W/b/tmp"; chmod 1777 "$W/b/tmp"
pack() { tar -C "$1" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$2" .; }
cp /usr/bin/catatonit "$W/p/pause"; pack "$W/p" "$W/p.tar"
"$HERE/mkimage.py" "$W/p.tar" "$CACHE/img/pause.tar" localhost/pause:1 --entrypoint '["/pause","-P"]' --user 65535 >/dev/null
cp /bin/busybox "$W/b/bin/"; for a in $(busybox --list); do [ -e "$W/b/bin/$a" ] || ln -s busybox "$W/b/bin/$a"; done
pack "$W/b" "$W/b.tar"
"$HERE/mkimage.py" "$W/b.tar" "$CACHE/img/busybox.tar" localhost/busybox:1 --cmd '["sh"]' >/dev/null
echo "$key" > "$CACHE/img/node.key"
