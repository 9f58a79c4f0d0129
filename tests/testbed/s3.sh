#!/bin/bash
# s3.sh: an S3 server of one's own (versitygw) on loopback, in a directory of its own; as many side by side as you like.
#
#   s3.sh build                                  builds the server and prints where it is
#   s3.sh run DIR [versioning] [tls]             runs one until its standard input ends, then removes DIR; prints what tools need
#   s3.sh start DIR [versioning] [tls]           the same, and comes back; s3.sh stop DIR ends it
#   s3.sh bucket DIR BUCKET [versioned|locked]   makes a bucket
#   s3.sh user DIR ID SECRET | s3.sh no-user DIR ID   makes an account, ends it at once
#   s3.sh policy DIR BUCKET FILE                 sets a bucket's policy
#   s3.sh env DIR                                prints it again
#
# OCOPEA_LISTEN=ADDRESS: at another address of this machine (pods reach 172.31.0.254).
. "$(dirname "$0")/lib.sh"

VERSION=v1.8.0
SERVER=$CACHE/bin/versitygw
REGION=us-east-1
LISTEN=${OCOPEA_LISTEN:-127.0.0.1}

build() {
  [ "$(cat "$SERVER.key" 2>/dev/null)" != "$VERSION" ] || return 0
  mkdir -p "$CACHE/bin"
  # One builds, others wait for it.
  exec 9>"$SERVER.lock"; flock 9
  [ "$(cat "$SERVER.key" 2>/dev/null)" != "$VERSION" ] || return 0
  say "building versitygw $VERSION" >&2
  CGO_ENABLED=0 GOBIN="$CACHE/bin" go install -trimpath "github.com/versity/versitygw/cmd/versitygw@$VERSION" >&2 ||
    die "versitygw could not be built" "check that the Go module proxy can be reached"
  echo "$VERSION" >"$SERVER.key"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# certificate: a CA of its own, and what it says of the server
certificate() {
  [ -s "$DIR/ca.pem" ] && return 0
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3 -subj "/CN=S3 of a test" \
    -addext basicConstraints=critical,CA:TRUE -keyout "$DIR/ca.key" -out "$DIR/ca.pem" 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout "$DIR/key.pem" -out "$DIR/csr.pem" 2>/dev/null
  openssl x509 -req -in "$DIR/csr.pem" -CA "$DIR/ca.pem" -CAkey "$DIR/ca.key" -CAcreateserial -days 3 -out "$DIR/cert.pem" \
    -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:%s\nbasicConstraints=CA:FALSE\n' "$LISTEN") 2>/dev/null
}

# launch DIR OPTION...: starts the server; its process id is in $DIR/pid
launch() {
  DIR=$(realpath -m "$1"); shift
  build
  mkdir -p "$DIR/data" "$DIR/iam"
  local scheme=http port flags=(--region "$REGION" --keep-alive --quiet --health /health --iam-dir "$DIR/iam" --iam-cache-disable) store=()
  for option in "$@"; do case $option in
  versioning) mkdir -p "$DIR/versions"; store+=(--versioning-dir "$DIR/versions");;
  tls) scheme=https; certificate; flags+=(--cert "$DIR/cert.pem" --key "$DIR/key.pem");;
  *) die "s3.sh: $option is not known";;
  esac; done
  # A port that was free may be taken by the time the server wants it.
  local try secret; secret=$(openssl rand -hex 16)
  for try in 1 2 3 4 5; do
    port=$(free_port)
    printf 'ENDPOINT=%s\nREGION=%s\nKEY_ID=root\nSECRET=%s\nCA=%s\n' "$scheme://$LISTEN:$port" "$REGION" "$secret" "$([ $scheme = http ] || echo "$DIR/ca.pem")" >"$DIR/env"
    ROOT_ACCESS_KEY=root ROOT_SECRET_KEY=$secret "$SERVER" --port "$LISTEN:$port" "${flags[@]}" posix "${store[@]}" "$DIR/data" >"$DIR/log" 2>&1 9>&- &
    echo $! >"$DIR/pid"
    for _ in $(seq 200); do
      kill -0 "$(cat "$DIR/pid")" 2>/dev/null || break
      curl -skf -o /dev/null --noproxy '*' "$scheme://$LISTEN:$port/health" && return 0
      sleep 0.05
    done
    kill "$(cat "$DIR/pid")" 2>/dev/null || true
  done
  die "the S3 server doesn't start: $(tail -3 "$DIR/log")" "see $DIR/log"
}

# signed METHOD PATH [CURL_ARGUMENT...]: a request by the server's first account
signed() {
  local method=$1 path=$2; shift 2
  # shellcheck disable=SC1091 # written by launch
  . "$DIR/env"
  curl -sSf --noproxy '*' ${CA:+--cacert "$CA"} -X "$method" --aws-sigv4 "aws:amz:$REGION:s3" -u "$KEY_ID:$SECRET" "$@" "$ENDPOINT$path"
}
sha256() { printf 'x-amz-content-sha256: %s' "$(sha256sum "$1" | cut -d' ' -f1)"; }
admin() {
  # shellcheck disable=SC1091
  . "$DIR/env"
  "$SERVER" admin --access "$KEY_ID" --secret "$SECRET" --region "$REGION" --endpoint-url "$ENDPOINT" --allow-insecure "$@" >/dev/null
}

command=${1:-}; [ $# -gt 0 ] && shift
[ "$command" = build ] || DIR=$(realpath -m "${1:?which directory?}")
empty=$(mktemp); trap 'rm -f "$empty"' EXIT
case $command in
build) build; echo "$SERVER";;
run)
  launch "$@"
  # Its directory may be gone by then.
  pid=$(cat "$DIR/pid")
  trap 'rm -f "$empty"; kill "$pid" 2>/dev/null || true; rm -rf "$DIR"' EXIT
  cat "$DIR/env"; echo READY
  # Whoever started this holds the other end.
  cat >/dev/null;;
start) launch "$@"; cat "$DIR/env";;
stop)
  pid=$(cat "$DIR/pid" 2>/dev/null) || exit 0
  # Its number may be another process's by now.
  if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$DIR/data"; then kill "$pid"; tail --pid="$pid" -f /dev/null; fi
  rm -f "$DIR/pid";;
env) cat "$DIR/env";;
bucket)
  lock=(); [ "${3:-}" != locked ] || lock=(-H 'x-amz-bucket-object-lock-enabled: true')
  signed PUT "/$2" -H "$(sha256 "$empty")" "${lock[@]}" >/dev/null
  case ${3:-} in
  versioned)
    echo '<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status></VersioningConfiguration>' >"$empty"
    signed PUT "/$2?versioning=" -H "$(sha256 "$empty")" -H 'content-type: application/xml' --data-binary "@$empty" >/dev/null;;
  locked)
    echo '<ObjectLockConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>' >"$empty"
    signed PUT "/$2?object-lock=" -H "$(sha256 "$empty")" -H "content-md5: $(openssl md5 -binary "$empty" | base64)" -H 'content-type: application/xml' --data-binary "@$empty" >/dev/null;;
  esac;;
user) admin create-user --access "$2" --secret "$3" --role user;;
no-user) admin delete-user --access "$2";;
policy) signed PUT "/$2?policy=" -H "$(sha256 "$3")" -H 'content-type: application/json' --data-binary "@$3" >/dev/null;;
*) die "s3.sh: no command is called $command" "see the head of $0";;
esac
