#!/bin/bash
# images.sh [[http://]HOST/PATH]: the servers' images for tests and samples, each made once per content, pushed to
# HOST/PATH (by default the testbed's registry, /testbed) unless they are there already
. "$(dirname "$0")/lib.sh"
need_root "$@"
into=${1:-http://$REGISTRY/testbed}
export SOURCE_DATE_EPOCH=1767225600
left_out=(--exclude=./usr/share/doc --exclude=./usr/share/locale --exclude=./usr/share/man --exclude=./usr/share/info
  --exclude=./var/cache --exclude=./var/lib/apt --exclude=./var/log --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*'
  --exclude='./run/mount' --exclude=./etc/hostname --exclude=./etc/resolv.conf --exclude='./etc/*-' --exclude=./etc/machine-id
  --exclude='./etc/ssl/private/*' --exclude=./etc/ssl/certs/ssl-cert-snakeoil.pem --exclude='./etc/ssl/certs/????????.0')

# debian ROOT OPTION...: a root from Debian's packages
debian() {
  local root=$1; shift
  mmdebstrap --quiet --aptopt='APT::Install-Recommends "false"' "$@" bookworm "$root" >"$W/log" 2>&1 || { tail -5 "$W/log" >&2; die "a root from Debian's packages could not be made (see above)" "check the machine's package sources"; }
}
layer() { tar -C "$1" --sort=name --numeric-owner --mtime=@$SOURCE_DATE_EPOCH "${left_out[@]}" -cf "$2" .; }

mongodb() {
  local root=$W/mongodb home
  debian "$root" --variant=extract --include=libc6,libgcc-s1,libstdc++6,zlib1g,base-files,base-passwd,netbase,tzdata,dash
  home=$(dirname "$(dirname "$(readlink -f "$(command -v jlink)")")")
  "$home/bin/jlink" --module-path "$home/jmods" --strip-debug --no-header-files --no-man-pages --output "$root/opt/java" \
    --add-modules java.base,java.logging,java.management,java.naming,java.sql,java.xml,java.desktop,jdk.unsupported,jdk.management
  rm -rf "$root/var/lib/dpkg"
  mkdir -p "$root/opt/mongod" "$root/data/db" "$root/tmp"; chmod 1777 "$root/tmp"
  cp "$CACHE"/mongod/*.jar "$root/opt/mongod/"
  chown -R 999:999 "$root/data"
  layer "$root" "$W/mongodb.tar"
  "$HERE/mkimage.py" "$W/mongodb.tar" "$1" mongodb:6 --user 999 \
    --entrypoint '["/opt/java/bin/java","-Xms512m","-Xmx512m","-XX:+UseSerialGC","-XX:TieredStopAtLevel=1","-cp","/opt/mongod/*","dev.ocopea.testbed.Mongod"]'
}

postgres() {
  local root=$W/postgres programs=/usr/lib/postgresql/15/bin
  debian "$root" --variant=minbase --include=postgresql-15,postgresql-client-15,libicu72
  install -m 755 "$HERE/images/postgres-entrypoint.sh" "$root/usr/local/bin/entrypoint"
  # The just-in-time compiler would be half of the image; the server does without it where it isn't there.
  find "$root/usr/lib" \( -name 'libLLVM*' -o -name 'llvmjit*' -o -name 'libz3.so*' \) -delete
  rm -rf "$root/usr/lib/postgresql/15/lib/bitcode" "$root/var/lib/postgresql" "$root/etc/postgresql"
  mkdir -p "$root/docker-entrypoint-initdb.d" "$root/var/lib/postgresql/data" "$root/run/postgresql"
  # The well-known image's own numbers, so that volumes made by either fit.
  chroot "$root" sh -c 'groupmod -g 999 postgres; usermod -u 999 -g 999 postgres; chown -R 999:999 /var/lib/postgresql /run/postgresql; chmod 3777 /run/postgresql; chmod 777 /var/lib/postgresql/data'
  layer "$root" "$W/postgres.tar"
  "$HERE/mkimage.py" "$W/postgres.tar" "$1" postgres:15 --entrypoint '["/usr/local/bin/entrypoint"]' --cmd '["postgres"]' \
    --env PGDATA=/var/lib/postgresql/data --env LANG=C.UTF-8 --env "PATH=$programs:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

# fresh NAME CONTENT...: makes $CACHE/img/NAME.tar with the function NAME unless it was made from the same CONTENT
fresh() {
  local name=$1 key; shift
  key=$( (hash_of "$HERE/mkimage.py" "$@"; declare -f "$name" debian layer; echo "${left_out[@]}") | sha256sum | cut -c1-16)
  if [ "$(cat "$CACHE/img/$name.key" 2>/dev/null)" = "$key" ] && [ -s "$CACHE/img/$name.tar" ]; then return; fi
  say "making the image $name (once; about a minute)"
  W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
  "$name" "$W/archive" >/dev/null
  mv "$W/archive" "$CACHE/img/$name.tar"; echo "$key" >"$CACHE/img/$name.key"
  rm -rf "$W"
}
make_all() {
  mkdir -p "$CACHE/img"
  "$HERE/mongod.sh" build
  fresh mongodb "$HERE/mongod/pom.xml" "$HERE/mongod/src"
  fresh postgres "$HERE/images/postgres-entrypoint.sh"
}
alone "$CACHE/images.lock" "$@"
make_all
"$HERE/node-images.sh"
for image in busybox:1 mongodb:6 postgres:15; do "$HERE/push.sh" "$CACHE/img/${image%:*}.tar" "${into%/}/$image"; done
give_back "$CACHE"
