#!/bin/bash
# down.sh [clean]: stops the testbed and removes its processes, mounts, links and cgroups, whatever is left of them;
# with `clean` its state too
. "$(dirname "$0")/lib.sh"
. "$HERE/clean.sh"
need_root "$@"
alone /run/lock/ocopea-testbed.lock "$@"
clean_all
owner=$(cat $OWNER 2>/dev/null || true)
[ -z "$owner" ] || say "the testbed of another checkout goes on running: $owner"
if [ "${1:-}" != clean ]; then say "the testbed is down"; exit 0; fi
# Only what a testbed makes, in case somebody gave a folder that has other things in it.
for part in log registry sites; do rm -rf --one-file-system "${TESTBED:?}/$part"; done
rm -f "$TESTBED/registry.yaml" "$TESTBED/kubeconfig" "$TESTBED/mover-image"
rmdir "$TESTBED" 2>/dev/null || true
say "the testbed and its state are gone"
