#!/bin/bash
# Starts PostgreSQL; makes the data directory first where there is none, from POSTGRES_USER, POSTGRES_PASSWORD (or
# POSTGRES_PASSWORD_FILE), POSTGRES_DB, POSTGRES_INITDB_ARGS and the scripts in /docker-entrypoint-initdb.d.
# Started as root it takes over the data directory and goes on as postgres; any other user stays who it is.
set -euo pipefail
[ "${1:-postgres}" = postgres ] || [ "${1:0:1}" = - ] || exec "$@"
: "${PGDATA:=/var/lib/postgresql/data}" "${POSTGRES_USER:=postgres}" "${POSTGRES_DB:=$POSTGRES_USER}"
export PGDATA
mkdir -p "$PGDATA"
if [ "$(id -u)" = 0 ]; then
  chown -R postgres: "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$0" "$@"
fi
[ "${1:-}" != postgres ] || shift
# A mounted volume's root may belong to somebody else; the server itself refuses what is too open.
chmod 700 "$PGDATA" 2>/dev/null || true
sockets=/run/postgresql,/tmp
# A first start that was killed midway is begun anew: nothing of it was ever served.
unfinished=$PGDATA/first-start-unfinished
if [ -e "$unfinished" ]; then find "$PGDATA" -mindepth 1 -delete; fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  [ -z "${POSTGRES_PASSWORD_FILE:-}" ] || POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
  [ -n "${POSTGRES_PASSWORD:-}" ] || { echo "POSTGRES_PASSWORD must be set" >&2; exit 1; }
  # shellcheck disable=SC2086 # several arguments in one variable, as everywhere
  initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") --auth-local=trust --auth-host=scram-sha-256 \
    --encoding=UTF8 --locale=C.UTF-8 ${POSTGRES_INITDB_ARGS:-} >/dev/null || { find "$PGDATA" -mindepth 1 -delete; exit 1; }
  touch "$unfinished"
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -c unix_socket_directories=$sockets" -w start >/dev/null
  run() { psql -v ON_ERROR_STOP=1 --no-psqlrc -h /tmp -U "$POSTGRES_USER" "$@"; }
  [ "$POSTGRES_DB" = postgres ] || run -d postgres -v name="$POSTGRES_DB" >/dev/null <<<'CREATE DATABASE :"name"'
  export PGHOST=/tmp POSTGRES_USER POSTGRES_DB
  for script in /docker-entrypoint-initdb.d/*; do
    case $script in
    *.sh) bash "$script" ;;
    *.sql) run -d "$POSTGRES_DB" -f "$script" ;;
    *.sql.gz) gunzip -c "$script" | run -d "$POSTGRES_DB" ;;
    esac
  done
  unset PGHOST
  pg_ctl -D "$PGDATA" -m fast -w stop >/dev/null
  rm "$unfinished"
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=$sockets "$@"
