#!/bin/bash
# test.sh: all tests. Sets up the testbed and everything else that they need.
. "$(dirname "$0")/testbed/lib.sh"
"$HERE/prereqs.sh" rust go java testbed tests
"$HERE/web.sh"
say "building the tests, beside what follows (some minutes when nothing is built yet)"
begin_build --workspace --tests --bins
"$HERE/mongod.sh" build
"$HERE/up.sh"
"$HERE/images.sh"
say "the independent reader"
(cd "$TOP/tests/reader" && gofmt -l . | (! grep .) && go vet ./...) || die "tests/reader is not formatted, or go vet finds fault with it"
export KUBECONFIG=$TESTBED/kubeconfig OCOPEA_TEST_KUBECONFIG=$TESTBED/kubeconfig PATH=$CACHE/bin:$PATH OCOPEA_TESTBED=$TESTBED OCOPEA_TEST_REGISTRY=$REGISTRY OCOPEA_TEST_TOOLS=all
finish_build
# Most of a test's time is a server's or a cluster's: three lanes side by side, each one after the other.
lanes=$(mktemp -d)
names=() pids=()
lane() { # NAME FUNCTION
  (cd "$TOP"; "$2") >"$lanes/$1" 2>&1 &
  names+=("$1") pids+=($!)
}
# Always the whole workspace: with a part of it, crates would be built once more with other features.
run_tests() { cargo test --no-fail-fast --workspace --locked "$@"; }
named() { printf -- '--test\n%s\n' "$@"; }
of_clusters=(cluster end_to_end volume)
# Whatever is no cluster's is the servers' lane: no test is in none.
all=$(cd "$TOP" && cargo metadata --no-deps --format-version 1 --locked | jq -r '[.packages[].targets[] | select(.kind == ["test"]) | .name] | unique[]')
mapfile -t others < <(grep -vxF -f <(printf '%s\n' "${of_clusters[@]}") <<<"$all")
[ ${#others[@]} = $(($(wc -l <<<"$all") - ${#of_clusters[@]})) ] || die "a test of the clusters' lane is gone: ${of_clusters[*]}"
in_clusters() {
  run_tests $(named "${of_clusters[@]}")
  echo "the sample's other shape: PostgreSQL and a volume, saved while people write"
  tests/lets-chat.sh
  echo "the journey, through the command itself"
  tests/journey.sh
}
beside_clusters() {
  run_tests --lib --bins $(named "${others[@]}")
  run_tests --doc
}
by_command() {
  echo "an end at every step of every operation, and at five random moments"
  tests/faults.py quick
  OCOPEA_MOVER_IMAGE=$("$HERE/mover-image.sh" | tail -1) tests/faults.py kills 5
}
say "running them, in three lanes (some ten minutes)"
lane clusters in_clusters
lane servers beside_clusters
lane command by_command
failed=()
for i in "${!pids[@]}"; do
  if wait "${pids[i]}"; then say "lane ${names[i]}: ok"; else say "lane ${names[i]}: FAILED"; failed+=("${names[i]}"); fi
done
for name in "${names[@]}"; do printf '\n=== lane %s\n' "$name"; cat "$lanes/$name"; done
rm -rf "$lanes"
[ ${#failed[@]} = 0 ] || die "tests failed in: ${failed[*]} (see above)"
say "all tests passed"
