#!/bin/bash
# postgresql.sh: a PostgreSQL server of one's own on loopback, in a directory of its own; every commit is on the disk.
#
#   postgresql.sh start DIR      makes it at the first time; prints what tools need of it; fine when it runs
#   postgresql.sh stop DIR       ends it in order; postgresql.sh kill DIR ends it at once
#   postgresql.sh env DIR        prints again: PORT, USER, DATABASE, PASSWORD_FILE
#
# OCOPEA_LISTEN=ADDRESS: at another address of this machine, when DIR is made (pods reach 172.31.0.254).
. "$(dirname "$0")/lib.sh"

DIR=$(realpath -m "${2:?usage: postgresql.sh start|stop|kill|env DIR}")
newest() { find /usr/lib/postgresql/*/bin -maxdepth 0 2>/dev/null | sort -V | tail -1; }
BIN=$(newest); [ -n "$BIN" ] || die "there is no PostgreSQL server here" "apt-get install postgresql, or tests/testbed/prereqs.sh tests"
# The server refuses to be root.
as_server() { if [ "$(id -u)" = 0 ]; then setpriv --reuid postgres --regid postgres --clear-groups "$@"; else "$@"; fi; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
runs() { as_server "$BIN/pg_ctl" -D "$DIR/data" status >/dev/null 2>&1; }

make() {
  mkdir -p "$DIR"
  chmod 755 "$DIR"
  (umask 077; openssl rand -hex 16 >"$DIR/password")
  [ "$(id -u)" != 0 ] || { install -d -o postgres -g postgres "$DIR/data" "$DIR/run"; cp "$DIR/password" "$DIR/run/password"; chown postgres "$DIR/run/password"; }
  mkdir -p "$DIR/data" "$DIR/run"; [ -s "$DIR/run/password" ] || cp "$DIR/password" "$DIR/run/password"
  as_server "$BIN/initdb" --username=ocopea --pwfile="$DIR/run/password" --auth=scram-sha-256 --locale=C.UTF-8 -D "$DIR/data" >"$DIR/log" 2>&1 || die "initdb failed" "see $DIR/log"
  rm "$DIR/run/password"
  # Who comes from elsewhere shows the password, too.
  [ -z "${OCOPEA_LISTEN:-}" ] || echo 'host all all all scram-sha-256' >>"$DIR/data/pg_hba.conf"
  echo "${OCOPEA_LISTEN:-127.0.0.1}" >"$DIR/listen"
  printf 'PORT=%s\nUSER=ocopea\nDATABASE=postgres\nPASSWORD_FILE=%s\n' "$(free_port)" "$DIR/password" >"$DIR/env"
}

case $1 in
start)
  [ -s "$DIR/env" ] || make
  . "$DIR/env"
  touch "$DIR/log"; [ "$(id -u)" != 0 ] || chown postgres "$DIR/log"
  runs || as_server "$BIN/pg_ctl" -D "$DIR/data" -l "$DIR/log" -w -t 60 \
    -o "-c listen_addresses=$(cat "$DIR/listen") -c port=$PORT -c unix_socket_directories='$DIR/run'" start >/dev/null ||
    die "PostgreSQL did not start" "see $DIR/log"
  cat "$DIR/env"
  ;;
stop) ! runs || as_server "$BIN/pg_ctl" -D "$DIR/data" -m fast -w stop >/dev/null ;;
kill) ! runs || as_server "$BIN/pg_ctl" -D "$DIR/data" -m immediate -w stop >/dev/null ;;
env) cat "$DIR/env" ;;
*) die "postgresql.sh: $1 is not known" ;;
esac
