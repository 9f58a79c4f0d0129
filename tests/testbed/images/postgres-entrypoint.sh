#!/bin/bash
# Starts PostgreSQL; makes the data directory first where there is none, from POSTGRES_USER, POSTGRES_PASSWORD,
# POSTGRES_DB and the scripts in /docker-entrypoint-initdb.d.
set -euo pipefail
[ "${1:-postgres}" = postgres ] || exec "$@"
shift || true
: "${PGDATA:=/var/lib/postgresql/data}" "${POSTGRES_USER:=postgres}" "${POSTGRES_DB:=$POSTGRES_USER}"
export PGDATA
mkdir -p "$PGDATA"; chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  [ -n "${POSTGRES_PASSWORD:-}" ] || { echo "POSTGRES_PASSWORD must be set" >&2; exit 1; }
  initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 >/dev/null
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -c unix_socket_directories=/tmp" -w start >/dev/null
  run() { psql -v ON_ERROR_STOP=1 --no-psqlrc -h /tmp -U "$POSTGRES_USER" "$@"; }
  [ "$POSTGRES_DB" = postgres ] || run -d postgres -c "CREATE DATABASE \"$POSTGRES_DB\"" >/dev/null
  for script in /docker-entrypoint-initdb.d/*; do
    case $script in
      *.sh) PGHOST=/tmp bash "$script" ;;
      *.sql) run -d "$POSTGRES_DB" -f "$script" ;;
    esac
  done
  pg_ctl -D "$PGDATA" -m fast -w stop >/dev/null
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp "$@"
