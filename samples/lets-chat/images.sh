#!/bin/bash
# images.sh [http://]HOST/PATH: builds Lets-chat and pushes its three versions as PATH/lets-chat:VERSION.
# What is built or pushed already is neither built nor pushed again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); top=$(cd "$here/../.." && pwd)
versions=(1.4.1 1.4.2 1.5.0)
[ $# = 1 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
registry=${1#http://}; registry=${registry%/}
target=$(realpath -m "${CARGO_TARGET_DIR:-$top/target}")

# The same packages as the demo builds, so that their dependencies are built once.
cargo build --quiet --locked --manifest-path "$top/Cargo.toml" --target-dir "$target" -p lets-chat -p ocopea-cli -p ocopea-mover
binary=$target/debug/lets-chat

layout=$target/lets-chat-images
key=$(sha256sum "$binary" "$here/image.py" | cut -d' ' -f1 | sha256sum | cut -c1-16)
if [ "$(cat "$layout/key" 2>/dev/null)" != "$key" ]; then
  rm -rf "$layout"; mkdir -p "$layout"
  objcopy --strip-debug "$binary" "$layout/program"
  "$here/image.py" "$layout/program" "$layout/oci" "${versions[@]}" >/dev/null
  echo "$key" > "$layout/key"
fi

# Without TLS only where that is asked for, or no network lies between.
tls=true
case $1 in http://* | localhost* | 127.*) tls=false ;; esac
for version in "${versions[@]}"; do
  wanted=$(jq -r --arg v "$version" '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == $v) | .digest' "$layout/oci/index.json")
  there=$(skopeo inspect --tls-verify=$tls --format '{{.Digest}}' "docker://$registry/lets-chat:$version" 2>/dev/null || true)
  if [ "$wanted" != "$there" ]; then
    skopeo copy --quiet --dest-tls-verify=$tls "oci:$layout/oci:$version" "docker://$registry/lets-chat:$version"
  fi
  echo "$registry/lets-chat:$version $wanted"
done
