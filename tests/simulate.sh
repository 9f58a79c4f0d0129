#!/bin/bash
# Simulated seeds: tests/simulate.sh SEEDS FOR SEED PLANTED PLANT, each of them may be empty. See `make` for what they are.
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=$1 for=$2 seed=$3 planted=$4 plant=$5
[[ $seeds =~ ^[0-9]+$ ]] && seeds=0..$seeds
args=()
[ -n "$seeds" ] && args+=(--seeds "$seeds")
[ -n "$for" ] && args+=(--for "$for")
[ -n "$seed" ] && args+=(--seed "$seed")
[ -n "$planted" ] && args+=(--planted "$planted")
[ -n "$plant" ] && args+=(--plant "$plant")
if [ "${PROFILE:-release}" = dev ]; then
  # What the tests have built anyway: a short run needs no more.
  cargo build -q --workspace --bins --locked
  exec "${CARGO_TARGET_DIR:-target}/debug/simulate" "${args[@]}"
fi
# Optimised, as 10 000 seeds need it. Protections can be broken only where the seams have their debug assertions.
build=(--release --locked -p ocopea-simulation)
[ -n "$planted$plant" ] && build+=(--config 'profile.release.package.ocopea-protocol.debug-assertions=true')
cargo build -q "${build[@]}"
exec "${CARGO_TARGET_DIR:-target}/release/simulate" "${args[@]}"
