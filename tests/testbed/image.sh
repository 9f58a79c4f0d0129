#!/bin/bash
# image.sh REFERENCE PROGRAM|ROOT.tar [PATH=FILE ...] [-- MKIMAGE_OPTION...]
# An image of one program (it becomes /NAME, and the entry point unless the options say another) with the libraries that it
# loads and some files, or of a whole root, pushed unless it is there already. Prints REFERENCE by its digest.
. "$(dirname "$0")/lib.sh"
[ $# -ge 2 ] || die "image.sh needs a reference and a program or a root" "image.sh HOST/PATH/NAME:TAG PROGRAM|ROOT.tar [PATH=FILE ...] [-- MKIMAGE_OPTION...]"
reference=$1 source=$2; shift 2
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
options=()
if [[ $source = *.tar ]]; then
  layer=$source
  [ $# = 0 ] || [ "$1" = -- ] || die "files can't be added to a root that is a tar already"
else
  mkdir -p "$W/root/tmp" "$W/root/etc"; chmod 1777 "$W/root/tmp"
  install -m 755 "$source" "$W/root/$(basename "$source")"
  # Each where the loader looks for it, the loader included; a static program has none.
  for library in $(ldd "$source" 2>/dev/null | sed -nE 's/.*(=> |^[[:space:]]*)(\/[^ ]+) \(0x.*/\2/p' | sort -u); do install -D -m 755 "$library" "$W/root$library"; done
  options=(--entrypoint "[\"/$(basename "$source")\"]")
  while [ $# -gt 0 ] && [ "$1" != -- ]; do install -D -m 644 "${1#*=}" "$W/root/${1%%=*}"; shift; done
  layer=$W/root.tar
  tar -C "$W/root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$layer" .
fi
[ "${1:-}" != -- ] || shift
"$HERE/mkimage.py" "$layer" "$W/image.tar" "${reference##*/}" "${options[@]}" "$@" >/dev/null
"$HERE/push.sh" "$W/image.tar" "$reference"
