#!/bin/bash
# lib.sh: what the testbed's scripts share. Sourced, never run.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOP=$(cd "$HERE/../.." && pwd)
# State of the running testbed (sockets, etcd, volumes); goes away with `make testbed-clean`.
TESTBED=$(realpath -m "${TESTBED:-$TOP/.testbed}")
# What takes minutes to build; shared by every checkout of this machine, keyed by content.
CACHE=$(realpath -m "${OCOPEA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ocopea-testbed}")
export TESTBED CACHE TOP HERE
REGISTRY=172.31.0.254:5000
SITES=(a b)
number_of() { case $1 in a) echo 1 ;; b) echo 2 ;; *) die "no site is called $1" ;; esac; }

START_NS=$(date +%s%N)
say() { local ms=$((($(date +%s%N) - START_NS) / 1000000)); printf '%4d.%03ds  %s\n' $((ms / 1000)) $((ms % 1000)) "$*"; }
die() { printf 'error: %s\n' "$1" >&2; shift; for line in "$@"; do printf '  next:  %s\n' "$line" >&2; done; exit 1; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# hash_of FILE...: one short hash over the contents of files and folders
hash_of() { find "$@" -type f -print0 | sort -z | xargs -0 sha256sum | sed "s# $TOP/# #" | sha256sum | cut -c1-16; }

site() { local act=$1 name=$2; shift 2; "$HERE/site.sh" "$act" "$name" "$(number_of "$name")" "$@"; }
alive() { [ -s "$TESTBED/sites/$1/pid" ] && kill -0 "$(cat "$TESTBED/sites/$1/pid")" 2>/dev/null && grep -qz "$TESTBED/sites/$1" "/proc/$(cat "$TESTBED/sites/$1/pid")/cmdline" 2>/dev/null; }
