#!/bin/bash
# reader.sh DIRECTORY KEYFILE [OPTION...]: checks a repository with the independent reader (tests/reader), built on the spot
. "$(dirname "$0")/testbed/lib.sh"
[ $# -ge 2 ] || die "reader.sh needs a repository's directory and its key file" "reader.sh DATA/repository DATA/repository.key"
mkdir -p "$CACHE/bin"
(cd "$TOP/tests/reader" && go build -o "$CACHE/bin/ocopea-reader" .) || die "the reader could not be built" "install Go 1.26 or newer"
"$CACHE/bin/ocopea-reader" check "$1" --key "$2" "${@:3}"
