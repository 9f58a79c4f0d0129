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
say "running them"
(cd "$TOP" && cargo test --workspace)
say "the journey, through the command itself"
"$TOP/tests/journey.sh"
say "the sample's other shape: PostgreSQL and a volume, saved while people write"
"$TOP/tests/lets-chat.sh"
say "an end at every step of every operation, and at five random moments"
"$TOP/tests/faults.py" quick
OCOPEA_MOVER_IMAGE=$("$HERE/mover-image.sh" | tail -1) "$TOP/tests/faults.py" kills 5
