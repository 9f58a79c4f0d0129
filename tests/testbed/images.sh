#!/bin/bash
# images.sh: the servers' images for tests and samples, built once and pushed to the testbed's registry
. "$(dirname "$0")/lib.sh"
mkdir -p "$CACHE/img"
export SOURCE_DATE_EPOCH=1767225600

# archive NAME KEY: whether $CACHE/img/NAME.tar was made from the same KEY
fresh() { [ "$(cat "$CACHE/img/$1.key" 2>/dev/null)" = "$2" ] && [ -s "$CACHE/img/$1.tar" ]; }

mongod() {
  local key; key=$( (hash_of "$HERE/mongod/pom.xml" "$HERE/mongod/src" "$HERE/mkimage.py"; echo 2) | sha256sum | cut -c1-16)
  fresh mongodb "$key" && return
  "$HERE/mongod.sh" build
  say "making the image mongodb:6"
  local W; W=$(mktemp -d); trap 'rm -rf "$W"' RETURN
  mmdebstrap --quiet --variant=extract --include=libc6,libgcc-s1,libstdc++6,zlib1g,base-files,base-passwd,netbase,tzdata,dash bookworm "$W/root" >/dev/null 2>"$W/log" || { tail -5 "$W/log" >&2; die "the base of the mongodb image could not be made"; }
  local home; home=$(dirname "$(dirname "$(readlink -f "$(command -v jlink)")")")
  "$home/bin/jlink" --module-path "$home/jmods" --add-modules java.base,java.logging,java.management,java.naming,java.sql,java.xml,java.desktop,jdk.unsupported,jdk.management --strip-debug --no-header-files --no-man-pages --output "$W/root/opt/java"
  mkdir -p "$W/root/opt/mongod" "$W/root/data/db" "$W/root/tmp"; chmod 1777 "$W/root/tmp"
  cp "$CACHE"/mongod/*.jar "$W/root/opt/mongod/"
  chown -R 999:999 "$W/root/data"
  tar -C "$W/root" --sort=name --numeric-owner --mtime=@$SOURCE_DATE_EPOCH --exclude=./usr/share/doc --exclude=./usr/share/locale --exclude=./var/lib/dpkg --exclude=./var/cache --exclude='./dev/*' -cf "$W/root.tar" .
  "$HERE/mkimage.py" "$W/root.tar" "$CACHE/img/mongodb.tar" mongodb:6 --user 999 --entrypoint '["/opt/java/bin/java","-Xmx512m","-XX:+UseSerialGC","-cp","/opt/mongod/*","dev.ocopea.testbed.Mongod","0.0.0.0","27017","/data/db/mongod.h2"]' >/dev/null
  echo "$key" > "$CACHE/img/mongodb.key"
}

postgres() {
  local key; key=$(hash_of "$HERE/images/postgres-entrypoint.sh" "$HERE/mkimage.py" "$0")
  fresh postgres "$key" && return
  say "making the image postgres:15 (about a minute)"
  local W; W=$(mktemp -d); trap 'rm -rf "$W"' RETURN
  mmdebstrap --quiet --variant=minbase --include=postgresql-15,postgresql-client-15,libicu72 --aptopt='APT::Install-Recommends "false"' bookworm "$W/root" >/dev/null 2>"$W/log" || { tail -5 "$W/log" >&2; die "the postgres image could not be made"; }
  install -m 755 "$HERE/images/postgres-entrypoint.sh" "$W/root/usr/local/bin/entrypoint"
  rm -rf "$W/root/var/lib/postgresql/15" "$W/root/var/lib/apt/lists" "$W/root/var/cache/apt"
  mkdir -p "$W/root/docker-entrypoint-initdb.d" "$W/root/var/lib/postgresql" "$W/root/run/postgresql"
  # The well-known image's own numbers, so that volumes made by either fit.
  chroot "$W/root" sh -c 'groupmod -g 999 postgres; usermod -u 999 -g 999 postgres; chown -R 999:999 /var/lib/postgresql /run/postgresql; chmod 775 /run/postgresql'
  tar -C "$W/root" --sort=name --numeric-owner --mtime=@$SOURCE_DATE_EPOCH --exclude=./usr/share/doc --exclude=./usr/share/locale --exclude='./dev/*' -cf "$W/root.tar" .
  "$HERE/mkimage.py" "$W/root.tar" "$CACHE/img/postgres.tar" postgres:15 --user 999 --entrypoint '["/usr/local/bin/entrypoint"]' --cmd '["postgres"]' --env PGDATA=/var/lib/postgresql/data --env PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin >/dev/null
  echo "$key" > "$CACHE/img/postgres.key"
}

mongod
postgres
push() { "$HERE/push.sh" "$CACHE/img/$1.tar" "$REGISTRY/testbed/$2"; }
push mongodb mongodb:6
push postgres postgres:15
push busybox busybox:1
