#!/bin/bash
# mover-image.sh [[http://]HOST/PATH]: builds ocopea-mover as a static program (PROFILE, by default dev) and pushes it as
# PATH/ocopea-mover:VERSION. Prints what `ocopea up --mover-image` takes.
. "$(dirname "$0")/lib.sh"
registry=${1:-http://$REGISTRY/ocopea} profile=${PROFILE:-dev} triple=x86_64-unknown-linux-gnu
target=$(realpath -m "${CARGO_TARGET_DIR:-$TOP/target}")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$TOP/Cargo.toml" | head -1)
# In the folder of the triple: what runs at build time is shared with ordinary builds.
RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked --manifest-path "$TOP/Cargo.toml" \
  --target-dir "$target" --target $triple --profile "$profile" -p ocopea-mover >&2
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
objcopy --strip-debug "$target/$triple/${profile/#dev/debug}/ocopea-mover" "$W/ocopea-mover"
"$HERE/image.sh" "${registry%/}/ocopea-mover:$version" "$W/ocopea-mover"
