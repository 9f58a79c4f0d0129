#!/bin/bash
# mongod.sh build | run HOST PORT FILE|memory: the MongoDB-wire server on this host (for tests without clusters)
. "$(dirname "$0")/lib.sh"
key=$(hash_of "$HERE/mongod/pom.xml" "$HERE/mongod/src")
if [ "$(cat "$CACHE/mongod/key" 2>/dev/null)" != "$key" ]; then
  "$HERE/prereqs.sh" java >&2
  say "building the MongoDB-wire server" >&2
  W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
  cp -r "$HERE/mongod/pom.xml" "$HERE/mongod/src" "$W/"
  (cd "$W" && mvn -q -B package) >&2
  mkdir -p "$CACHE/mongod"; rm -f "$CACHE"/mongod/*.jar
  cp "$W"/target/*.jar "$W"/target/jars/*.jar "$CACHE/mongod/"
  echo "$key" > "$CACHE/mongod/key"
fi
[ "$1" = build ] || { shift; exec java -Xmx512m -XX:+UseSerialGC -cp "$CACHE/mongod/*" dev.ocopea.testbed.Mongod "$@"; }
