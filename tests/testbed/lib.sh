#!/bin/bash
# lib.sh: what the testbed's scripts share. Sourced, never run.
# shellcheck disable=SC2034 # what is set here is for those who source it
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOP=$(cd "$HERE/../.." && pwd)
# State of the running testbed (etcd, volumes, logs); goes away with `make testbed-clean`.
TESTBED=$(realpath -m "${TESTBED:-$TOP/.testbed}")
# What takes minutes to build; shared by every checkout of this machine, keyed by content.
CACHE=$(realpath -m "${OCOPEA_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ocopea-testbed}")
# Toolchains that prereqs.sh had to bring along come first; servers and network tools are in sbin.
PATH=$CACHE/tools:$PATH:/usr/sbin:/sbin
export TESTBED CACHE TOP HERE PATH
REGISTRY=172.31.0.254:5000
SITES=(a b)
number_of() { case $1 in a) echo 1 ;; b) echo 2 ;; *) die "no site is called $1" ;; esac; }

# begin_build CARGO_ARGUMENT...: builds beside what follows; finish_build waits for it, and ends the script when it failed
begin_build() {
  BUILD_LOG=$(mktemp)
  (cd "$TOP" && exec cargo build --quiet --locked "$@") >"$BUILD_LOG" 2>&1 &
  BUILD=$!
  trap 'kill $BUILD 2>/dev/null || true; rm -f "$BUILD_LOG"' EXIT
}
finish_build() {
  kill -0 $BUILD 2>/dev/null && say "waiting for the build"
  wait $BUILD || { cat "$BUILD_LOG" >&2; die "the build failed (see above)"; }
  cat "$BUILD_LOG"; rm -f "$BUILD_LOG"
  # Its number may be another process's by the end.
  trap - EXIT
}

# One clock for a script and those that it calls.
export OCOPEA_START_NS=${OCOPEA_START_NS:-$(date +%s%N)}
say() { local ms=$((($(date +%s%N) - OCOPEA_START_NS) / 1000000)); printf '%4d.%03ds  %s\n' $((ms / 1000)) $((ms % 1000)) "$*"; }
die() { printf 'error: %s\n' "$1" >&2; shift; local line; for line in "$@"; do printf '  next:  %s\n' "$line" >&2; done; exit 1; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# need_root ARG...: goes on as root, with the same state, cache and programs
need_root() {
  [ "$(id -u)" != 0 ] || return 0
  command -v sudo >/dev/null || die "the testbed needs root (namespaces, mounts, network), and there is no sudo" \
    "run it as root, or use clusters of your own: make demo SITES=context1,context2 REGISTRY=HOST/PATH"
  exec sudo env TESTBED="$TESTBED" OCOPEA_CACHE="$CACHE" OCOPEA_START_NS="$OCOPEA_START_NS" PATH="$PATH" HOME="$HOME" \
    CI="${CI:-}" OCOPEA_TESTBED_TAKE="${OCOPEA_TESTBED_TAKE:-}" "$0" "$@"
}
# give_back FILE...: what root made for the one who called sudo
give_back() { [ -z "${SUDO_UID:-}" ] || chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$@"; }

# alone LOCKFILE ARG...: this script again, with the lock held for as long as it runs (and not by what it starts)
alone() {
  local lock=$1; shift
  [ "${OCOPEA_ALONE:-}" != "$lock" ] || return 0
  mkdir -p "$(dirname "$lock")"
  flock -n "$lock" true || say "waiting for another process that holds $lock" >&2
  OCOPEA_ALONE=$lock exec flock -o "$lock" "$0" "$@"
}

# hash_of FILE...: one short hash over the contents of files and folders
hash_of() { find "$@" -type f -print0 | sort -z | xargs -0 sha256sum | sed "s# $TOP/# #" | sha256sum | cut -c1-16; }

# wait_for WHAT SECONDS COMMAND...
wait_for() {
  local what=$1 until=$((SECONDS + $2)); shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $until ] || return 1; sleep 0.1; done
  say "$what"
}

site() { local act=$1 name=$2; shift 2; "$HERE/site.sh" "$act" "$name" "$(number_of "$name")" "$@"; }
# The namespaces of a site live as long as its pid 1.
alive() {
  local pid; pid=$(cat "$TESTBED/sites/$1/pid" 2>/dev/null) && [ -n "$pid" ] && grep -qzFx "$TESTBED/sites/$1" "/proc/$pid/cmdline" 2>/dev/null
}
# api SITE PATH: a GET as administrator; prints the answer
api() { curl -sf -m 3 --cacert "$TESTBED/sites/$1/pki/ca.crt" -H 'Authorization: Bearer admin-token' "https://172.31.0.$(number_of "$1"):6443$2"; }
api_ready() { api "$1" /readyz | grep -qx ok; }
