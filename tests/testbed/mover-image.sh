#!/bin/bash
# mover-image.sh [[http://]HOST/PATH]: builds ocopea-mover (PROFILE, by default dev) and pushes it as
# PATH/ocopea-mover:VERSION. Prints what `ocopea up --mover-image` takes.
. "$(dirname "$0")/lib.sh"
registry=${1:-http://$REGISTRY/ocopea} profile=${PROFILE:-dev}
target=$(realpath -m "${CARGO_TARGET_DIR:-$TOP/target}")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$TOP/Cargo.toml" | head -1)
packages=(-p ocopea-mover)
# The same packages as the demo builds, so that their dependencies are built once.
[ "$profile" != dev ] || packages+=(-p ocopea-cli -p lets-chat)
cargo build --quiet --locked --manifest-path "$TOP/Cargo.toml" --target-dir "$target" --profile "$profile" "${packages[@]}" >&2
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
objcopy --strip-debug "$target/${profile/#dev/debug}/ocopea-mover" "$W/ocopea-mover"
"$HERE/image.sh" "${registry%/}/ocopea-mover:$version" "$W/ocopea-mover"
