#!/bin/bash
# test.sh: all tests. Sets up the testbed and everything else that they need.
. "$(dirname "$0")/testbed/lib.sh"
"$HERE/prereqs.sh" rust go java testbed tests
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
in_clusters() {
  cargo test --no-fail-fast -p ocopea-agent --test cluster --test end_to_end --test volume
  echo "the sample's other shape: PostgreSQL and a volume, saved while people write"
  tests/lets-chat.sh
}
beside_clusters() {
  cargo test --no-fail-fast -p ocopea-agent --lib --test mongodb --test mongodb_peer --test postgresql --test postgresql_shapes --test postgresql_surroundings --test registry
  cargo test --no-fail-fast --workspace --exclude ocopea-agent
}
by_command() {
  echo "the journey, through the command itself"
  tests/journey.sh
  echo "an end at every step of every operation, and at five random moments"
  tests/faults.py quick
  OCOPEA_MOVER_IMAGE=$("$HERE/mover-image.sh" | tail -1) tests/faults.py kills 5
}
# Every test of the agent is in one lane.
listed=$(declare -f in_clusters beside_clusters)
for test in "$TOP"/agent/tests/*.rs; do
  grep -q -- "--test $(basename "$test" .rs)\b" <<<"$listed" || die "no lane of tests/test.sh runs $test"
done
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
