#!/bin/bash
# push.sh ARCHIVE REFERENCE: pushes an OCI archive to a registry unless it is there already; prints REFERENCE's digest form.
# http:// in front of REFERENCE, or the testbed's own registry: without TLS.
. "$(dirname "$0")/lib.sh"
archive=$1 reference=${2#http://} tls=true
case $2 in http://* | "$REGISTRY"/* | localhost* | 127.*) tls=false ;; esac
wanted=$(tar -xOf "$archive" index.json | jq -r '.manifests[0].digest')
there=$(skopeo inspect --raw --tls-verify=$tls "docker://$reference" 2>/dev/null | sha256sum | cut -d" " -f1) || there=
if [ "$wanted" != "sha256:$there" ]; then
  say "pushing $reference" >&2
  skopeo copy --quiet --preserve-digests --dest-tls-verify=$tls "oci-archive:$archive" "docker://$reference"
fi
echo "${reference%:*}@$wanted"
