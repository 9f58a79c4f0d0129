#!/bin/bash
# fuzz.sh [SECONDS] [TARGET…]: every fuzz target, or those named, for so many seconds each (60). What is found lies in
# fuzz/artifacts/TARGET; `fuzz.sh replay FILE TARGET` runs one of these again. Needs no nightly compiler and no
# cargo-fuzz: the counters that libFuzzer goes by are an option of every rustc.
set -euo pipefail
TOP=$(cd "$(dirname "$0")/.." && pwd)
cd "$TOP/fuzz"
"$TOP/tests/testbed/prereqs.sh" rust fuzz
HOST=$(rustc -vV | sed -n 's/^host: //p')
DIR=${CARGO_TARGET_DIR:-$TOP/fuzz/target}
# With --target, build scripts and macros are built without the counters.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
cargo build --quiet --release --target "$HOST" --bins
BIN=$DIR/$HOST/release
if [ "${1:-}" = replay ]; then exec "$BIN/$3" "$TOP/$2"; fi
SECONDS_EACH=${1:-60}
shift || true
[ $# -gt 0 ] || set -- $(sed -n 's/^name = "\([a-z]*\)"$/\1/p' Cargo.toml)
failed=
for target in "$@"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    seeds=(); [ -d "seeds/$target" ] && seeds=("seeds/$target")
    log=artifacts/$target/log
    if "$BIN/$target" "corpus/$target" "${seeds[@]}" -artifact_prefix="artifacts/$target/" -max_total_time="$SECONDS_EACH" \
        -max_len=65536 -rss_limit_mb=1024 -malloc_limit_mb=512 -timeout=10 -print_final_stats=1 > "$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        reached=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
        printf '%-10s %10s inputs, %6s places reached, nothing found\n' "$target" "$runs" "$reached"
    else
        failed=1
        printf '%-10s FOUND SOMETHING: fuzz/%s\n' "$target" "$log"
        grep -m3 -E "panicked|ERROR|SUMMARY" "$log" || tail -3 "$log"
    fi
done
[ -z "$failed" ] || { echo "fuzz.sh: mend what was found, with a test of it first" >&2; exit 1; }
