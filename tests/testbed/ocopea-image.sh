#!/bin/bash
# ocopea-image.sh [[http://]HOST/PATH]: builds ocopea (PROFILE, by default dev) and pushes it as PATH/ocopea:VERSION: the
# image of coordinators and agents, with the client programs of PostgreSQL that agents run. Prints it by its digest.
. "$(dirname "$0")/lib.sh"
registry=${1:-http://$REGISTRY/ocopea} profile=${PROFILE:-dev}
target=$(realpath -m "${CARGO_TARGET_DIR:-$TOP/target}")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$TOP/Cargo.toml" | head -1)
packages=(-p ocopea-cli)
# The same packages as the demo builds, so that their dependencies are built once.
[ "$profile" != dev ] || packages+=(-p ocopea-mover -p lets-chat)
cargo build --quiet --locked --manifest-path "$TOP/Cargo.toml" --target-dir "$target" --profile "$profile" "${packages[@]}" >&2
clients=$(find /usr/lib/postgresql/*/bin/pg_dump 2>/dev/null | sort -V | tail -1)
[ -n "$clients" ] || die "there is no pg_dump to put into the image" "apt-get install postgresql-client, or tests/testbed/prereqs.sh tests"
[ -s /etc/ssl/certs/ca-certificates.crt ] || die "there are no certificates of authorities to put into the image" "apt-get install ca-certificates"
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
root=$W/root
mkdir -p "$root"/{tmp,run/ocopea,etc/ssl/certs,usr/bin}; chmod 1777 "$root/tmp"
objcopy --strip-all "$target/${profile/#dev/debug}/ocopea" "$root/ocopea"
install -m 755 "$clients" "${clients%dump}restore" "$root/usr/bin/"
# Each library where the loader looks for it, the loader included (docs/decisions/images-of-programs.md).
for program in "$root/ocopea" "$root"/usr/bin/pg_*; do
  for library in $(ldd "$program" | sed -nE 's/.*(=> |^[[:space:]]*)(\/[^ ]+) \(0x.*/\2/p'); do
    [ -e "$root$library" ] || install -D -m 755 "$library" "$root$library"
  done
done
install -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf 'ocopea:x:65532:65532::/tmp:/sbin/nologin\n' >"$root/etc/passwd"
printf 'ocopea:x:65532:\n' >"$root/etc/group"
tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$W/root.tar" .
"$HERE/image.sh" "${registry%/}/ocopea:$version" "$W/root.tar" -- --entrypoint '["/ocopea"]' --user 65532:65532
