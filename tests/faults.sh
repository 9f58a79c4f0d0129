#!/bin/bash
# faults.sh: `make faults`: every failpoint on the clusters, then 50 kills at random moments (SEED=N repeats a run).
. "$(dirname "$0")/testbed/lib.sh"
export KUBECONFIG=$TESTBED/kubeconfig PATH=$CACHE/bin:$PATH
say "building"
(cd "$TOP" && cargo build -q -p ocopea-cli)
OCOPEA_MOVER_IMAGE=$("$HERE/mover-image.sh" | tail -1); export OCOPEA_MOVER_IMAGE
"$TOP/tests/faults.py" quick
"$TOP/tests/faults.py" full --jobs 4
# shellcheck disable=SC2086 # no seed is no argument
"$TOP/tests/faults.py" kills 50 ${SEED:-}
