#!/bin/bash
# push.sh ARCHIVE REFERENCE: pushes an OCI archive to a registry unless it is there already.
# http:// in front of REFERENCE, or the testbed's own registry: without TLS.
. "$(dirname "$0")/lib.sh"
archive=$1 reference=${2#http://}
tls=(); case $2 in http://*|"$REGISTRY"/*|localhost*|127.*) tls=(--tls-verify=false);; esac
wanted=$(tar -xOf "$archive" index.json | jq -r '.manifests[0].digest')
there=$(skopeo inspect "${tls[@]}" "docker://$reference" 2>/dev/null | jq -r .Digest || true)
[ "$wanted" = "$there" ] && exit 0
say "pushing $reference"
skopeo copy --quiet "${tls[@]/--tls-verify/--dest-tls-verify}" "oci-archive:$archive" "docker://$reference"
