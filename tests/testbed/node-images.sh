#!/bin/bash
# node-images.sh: the images that a node has before it can reach a registry: pause (catatonit -P) and busybox
. "$(dirname "$0")/lib.sh"
busybox=$(command -v busybox) catatonit=$(command -v catatonit)
key=$(cat "$HERE/mkimage.py" "$0" "$catatonit" "$busybox" | sha256sum | cut -c1-16)
if [ "$(cat "$CACHE/img/node.key" 2>/dev/null)" = "$key" ]; then exit 0; fi
alone "$CACHE/images.lock" "$@"
mkdir -p "$CACHE/img"; W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
say "making the nodes' pause and busybox images"
mkdir -p "$W/p" "$W/b/bin" "$W/b/tmp"; chmod 1777 "$W/b/tmp"
pack() { tar -C "$1" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$2" .; }
cp "$catatonit" "$W/p/pause"; pack "$W/p" "$W/p.tar"
"$HERE/mkimage.py" "$W/p.tar" "$W/pause" localhost/pause:1 --entrypoint '["/pause","-P"]' --user 65535 >/dev/null
cp "$busybox" "$W/b/bin/busybox"
for a in $("$busybox" --list); do [ -e "$W/b/bin/$a" ] || ln -s busybox "$W/b/bin/$a"; done
pack "$W/b" "$W/b.tar"
"$HERE/mkimage.py" "$W/b.tar" "$W/busybox" localhost/busybox:1 --cmd '["sh"]' >/dev/null
for i in pause busybox; do mv "$W/$i" "$CACHE/img/$i.tar"; done
echo "$key" >"$CACHE/img/node.key"
