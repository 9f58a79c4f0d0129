#!/bin/bash
# fleet.sh [up|down|start NAME...]: Ocopea as a company runs it, on this machine: RabbitMQ, PostgreSQL and an S3 server, two coordinators
# (TLS), two agents beside each cluster of the testbed. Without an argument it runs the demo's journey on them, with a
# coordinator, agents and the broker killed midway, and ends by itself; `up` leaves it standing, `down` removes it; `start`
# starts parts that do not run (coordinator-1, agent-a2, …). A second fleet beside it is one with another place, other ports
# and another name: FLEET_STATE=DIR FLEET_PORTS="8731 8732" FLEET_NAME=WORD (in its namespaces and its part of the registry).
# FLEET_BUILT=yes takes the programs that are there; with OCOPEA_MOVER_IMAGE, that mover.
. "$(dirname "$0")/testbed/lib.sh"
STATE=$(realpath -m "${FLEET_STATE:-$TOP/.ocopea/fleet}") OCOPEA=${CARGO_TARGET_DIR:-$TOP/target}/debug/ocopea
MESSAGES=${MESSAGES:-100000}
NAME=${FLEET_NAME:-fleet}
NAMESPACE=lets-chat-$NAME COPY=$NAME-4711
read -ra PORTS <<<"${FLEET_PORTS:-8721 8722}"
export XDG_CONFIG_HOME=$STATE/config SSL_CERT_FILE=$STATE/tls/ca.pem KUBECONFIG=$TESTBED/kubeconfig PATH=$CACHE/bin:$PATH
mode=${1:-run}
case $mode in run | up | down | start) ;; *) die "fleet.sh: $mode is not known" "fleet.sh [up|down|start NAME...]" ;; esac

ocopea() { "$OCOPEA" --url "https://127.0.0.1:${PORTS[${THROUGH:-0}]}" "$@"; }
run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
k() { kubectl --context "$@"; }
running() { [ -s "$STATE/$1.pid" ] && kill -0 "$(cat "$STATE/$1.pid")" 2>/dev/null; }
# begin NAME COMMAND...: starts it, apart from this script; its words are in $STATE/NAME.log
begin() {
  local name=$1; shift
  setsid -f bash -c 'echo $$ >"$0"; exec "$@"' "$STATE/$name.pid" "$@" >>"$STATE/$name.log" 2>&1 </dev/null
  until [ -s "$STATE/$name.pid" ]; do sleep 0.02; done
}
# slain NAME: kill -9
slain() { kill -9 "$(cat "$STATE/$1.pid")" 2>/dev/null || true; rm -f "$STATE/$1.pid"; }
ended() { # NAME: in order
  running "$1" || return 0
  kill "$(cat "$STATE/$1.pid")"; tail --pid="$(cat "$STATE/$1.pid")" -f /dev/null; rm -f "$STATE/$1.pid"
}
# until_so SECONDS WHAT COMMAND...
until_so() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "$what did not come about" "see the logs in $STATE"
    sleep 0.2
  done
}

down() {
  local name
  for name in agent-a1 agent-a2 agent-b1 agent-b2 coordinator-1 coordinator-2; do ended $name; done
  [ ! -s "$STATE/rabbitmq/env" ] || "$HERE/rabbitmq.sh" stop "$STATE/rabbitmq"
  [ ! -s "$STATE/postgresql/env" ] || "$HERE/postgresql.sh" stop "$STATE/postgresql"
  [ ! -s "$STATE/s3/env" ] || "$HERE/s3.sh" stop "$STATE/s3"
  if [ -s "$KUBECONFIG" ]; then
    k a delete namespace $NAMESPACE --ignore-not-found --wait=false >/dev/null 2>&1 || true
    k b delete namespace $COPY --ignore-not-found --wait=false >/dev/null 2>&1 || true
  fi
  rm -rf "$STATE"
}

# certificate: what the coordinators are served with, and the CA that people and agents check it against
certificate() {
  mkdir -p "$STATE/tls"; cd "$STATE/tls"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=Ocopea's fleet on this machine" \
    -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout key.pem -out csr.pem 2>/dev/null
  openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -out cert.pem \
    -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n') 2>/dev/null
  cd - >/dev/null
}

coordinator() { # NUMBER
  local log=$STATE/coordinator-$1.log lines
  touch "$log"; lines=$(wc -l <"$log")
  (. "$STATE/s3/env"
    export AWS_ACCESS_KEY_ID=$KEY_ID AWS_SECRET_ACCESS_KEY=$SECRET
    begin "coordinator-$1" "$OCOPEA" coordinator --config "$STATE/coordinator.toml" --listen "127.0.0.1:${PORTS[$1 - 1]}")
  until_so 60 "coordinator $1" curl -sf --cacert "$SSL_CERT_FILE" -o /dev/null "https://127.0.0.1:${PORTS[$1 - 1]}/readyz"
  tail -n "+$((lines + 1))" "$log" | grep -v '^{' || true
}

agent() { # SITE NUMBER [SETTING...]
  local site=$1 number=$2; shift 2
  begin "agent-$site$number" "$OCOPEA" agent --context "$site" --identity "$STATE/site-$site.json" --registry "http://$REGISTRY/$NAME" --mover-image "$MOVER" "$@"
}

settings() {
  . "$STATE/postgresql/env"
  cat <<T
catalog = "postgres://$USER@127.0.0.1:$PORT/$DATABASE"
catalog-password-file = "$PASSWORD_FILE"
T
  . "$STATE/rabbitmq/env"
  (umask 077; printf %s "$PASSWORD" >"$STATE/broker-password")
  cat <<T
broker = "$URL"
broker-user = "$USER"
broker-password-file = "$STATE/broker-password"
broker-management = "$MANAGEMENT"
T
  . "$STATE/s3/env"
  cat <<T
repository = "s3://fleet/ocopea?endpoint=$ENDPOINT&region=$REGION"
repository-key-file = "$STATE/repository.key"
installation-key-file = "$STATE/installation.key"
tls-certificate = "$STATE/tls/cert.pem"
tls-key = "$STATE/tls/key.pem"
T
}

up() {
  mkdir -p "$STATE"; chmod 700 "$STATE"
  if [ "${FLEET_BUILT:-}" = yes ]; then
    [ -x "$OCOPEA" ] || die "there is no $OCOPEA" "cargo build -p ocopea-cli"
    "$HERE/up.sh"; "$HERE/images.sh"
  else
    "$HERE/prereqs.sh" rust go testbed tests
    say "building ocopea and Lets-chat, beside what follows"
    begin_build -p ocopea-cli -p ocopea-mover -p lets-chat
    "$HERE/up.sh"; "$HERE/images.sh"
    finish_build
  fi
  MOVER=${OCOPEA_MOVER_IMAGE:-$("$HERE/mover-image.sh" | tail -1)}
  # What is started again later runs the same.
  printf %s "$MOVER" >"$STATE/mover"
  say "starting PostgreSQL, RabbitMQ and an S3 server"
  # What PostgreSQL's user has to reach lies below.
  chmod 711 "$STATE"
  "$HERE/postgresql.sh" start "$STATE/postgresql" >/dev/null
  [ -n "$(ls -A "$STATE/rabbitmq" 2>/dev/null)" ] || "$HERE/rabbitmq.sh" start "$STATE/rabbitmq" >/dev/null
  [ -s "$STATE/s3/env" ] || { "$HERE/s3.sh" start "$STATE/s3" >/dev/null; "$HERE/s3.sh" bucket "$STATE/s3" fleet; }
  [ -s "$STATE/tls/cert.pem" ] || certificate
  [ -s "$STATE/coordinator.toml" ] || settings >"$STATE/coordinator.toml"
  say "starting two coordinators"
  local number site
  for number in 1 2; do running coordinator-$number || coordinator $number; done
  [ -s "$XDG_CONFIG_HOME/ocopea/account.json" ] ||
    "$OCOPEA" sign-in "$(AWS_ACCESS_KEY_ID=- AWS_SECRET_ACCESS_KEY=- "$OCOPEA" coordinator --config "$STATE/coordinator.toml" --listen "127.0.0.1:${PORTS[0]}" sign-in-code)"
  # Both are the same installation: what the one knows, the other knows.
  token=$(jq -r .token "$XDG_CONFIG_HOME/ocopea/account.json"); export OCOPEA_TOKEN=$token
  say "adding two sites, each with two agents"
  for site in a b; do
    if [ ! -s "$STATE/site-$site.json" ]; then
      agent $site 1 --coordinator "https://127.0.0.1:${PORTS[0]}" --coordinator-certificates "$SSL_CERT_FILE" --join-token "$(ocopea sites add $site -o name)"
      until_so 60 "the enrolment of site $site" test -s "$STATE/site-$site.json"
    fi
    for number in 1 2; do running agent-$site$number || agent $site $number; done
  done
  until_so 60 "the report of both sites" bash -c "'$OCOPEA' --url 'https://127.0.0.1:${PORTS[0]}' sites -o json | jq -e '[.[] | select(.state == \"ready\")] | length == 2'"
  run ocopea sites
}

# start NAME...: parts that were up before
start() {
  local name
  MOVER=$(cat "$STATE/mover")
  for name in "$@"; do
    ! running "$name" || continue
    case $name in
    coordinator-[12]) coordinator "${name#*-}" ;;
    agent-[ab][12]) agent "${name:6:1}" "${name:7}" ;;
    *) die "the fleet has no $name" ;;
    esac
  done
}

content() { ocopea show "$1" -o json | jq -c '[.body.components[].body.data.streams // empty | .[] | [.name, .items, .content]] | map(select(.[0] | endswith(".sessions") | not)) | sort'; }
state_of() { ocopea operations show "$1" -o json | jq -r .state; }
# finished OPERATION WHAT: waits for its end, through the coordinator that is there; says how long the end took to come
finished() {
  local begun=$SECONDS state=
  until state=$(state_of "$1" 2>/dev/null) && [ "$state" != running ] && [ "$state" != undoing ]; do
    [ $((SECONDS - begun)) -lt 300 ] || die "$2 is stuck: $state" "see ocopea operations show $1, and the logs in $STATE"
    sleep 0.5
  done
  [ "$state" = succeeded ] || { ocopea operations show "$1"; die "$2 has $state"; }
  say "$2: succeeded, $((SECONDS - begun)) s after the fault"
}

# paged URL HOST:PORT: ten requests side by side, and a question to the database as its clients begin
paged() {
  local one ones=()
  for one in 1 2 3 4 5 6 7 8 9 10; do curl -fsS --max-time 30 -o /dev/null "$1readyz" & ones+=($!); done
  for one in "${ones[@]}"; do wait "$one" || return 1; done
  python3 - "$2" <<'P'
import socket, struct, sys
host, port = sys.argv[1].rsplit(":", 1)
# OP_MSG with {isMaster: 1, $db: "admin"} in BSON: servers of every age know it.
body = b"\x10isMaster\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0"
body = struct.pack("<i", len(body) + 4) + body
message = struct.pack("<iiiiiB", 16 + 5 + len(body), 1, 0, 2013, 0, 0) + body
with socket.create_connection((host, int(port)), 30) as connection:
    connection.sendall(message)
    answer = connection.recv(65536)
sys.exit(b"maxBsonObjectSize" not in answer)
P
}

# of_catalog COMMAND...: a tool of PostgreSQL's, at the catalog
of_catalog() {
  . "$STATE/postgresql/env"
  PGPASSWORD=$(cat "$PASSWORD_FILE") "$@" -h 127.0.0.1 -p "$PORT" -U "$USER" "$DATABASE"
}

journey() {
  local chat_image save image again before damaged after op
  chat() { k "$1" -n "$2" exec deploy/lets-chat -- /lets-chat "${@:3}"; }
  say "deploying Lets-chat at a, with $MESSAGES messages"
  "$TOP/samples/lets-chat/images.sh" "http://$REGISTRY/samples" >/dev/null
  # One that an earlier run left may still be on its way out.
  k a delete namespace $NAMESPACE --ignore-not-found >/dev/null; k b delete namespace $COPY --ignore-not-found >/dev/null
  k a create namespace $NAMESPACE >/dev/null
  "$TOP/samples/lets-chat/deploy.sh" --context a --namespace $NAMESPACE --registry "http://$REGISTRY/samples" --database "$REGISTRY/testbed/mongodb:6" --shape mongodb --version 1.4.1
  chat a $NAMESPACE load --messages "$MESSAGES" --replace
  before=$(chat a $NAMESPACE count)

  say "a save; coordinator 1 is killed in its midst"
  op=$(ocopea save a/$NAMESPACE --name "while a coordinator dies" --detach)
  sleep 1; slain coordinator-1
  THROUGH=1 finished "$op" "the save"
  coordinator 1

  say "a save; one of the two agents at a is killed in its midst"
  op=$(ocopea save a/$NAMESPACE --name "while an agent dies" --label fleet=yes --detach)
  sleep 1; slain agent-a1
  finished "$op" "the save"
  agent a 1
  image=$(ocopea images --label fleet=yes -o name | head -1)

  say "a dump of the catalog, as it is made every night"
  of_catalog pg_dump --clean --if-exists >"$STATE/yesterday.sql"

  say "vandalising the running application"
  chat a $NAMESPACE damage --yes
  damaged=$(chat a $NAMESPACE count)
  [ "$before" != "$damaged" ] || die "the damage is not to be seen: the journey proves nothing"

  say "a restore at b; the broker is killed in its midst, and comes back after five seconds"
  op=$(ocopea restore "$image" --site b --as $COPY --detach)
  sleep 2; "$HERE/rabbitmq.sh" kill "$STATE/rabbitmq"; sleep 5; "$HERE/rabbitmq.sh" restart "$STATE/rabbitmq"
  finished "$op" "the restore"

  say "the copy's logs, and a program in it, through an agent that dials out only"
  run ocopea logs $COPY lets-chat | tail -2
  [ "$(ocopea exec $COPY lets-chat -- /lets-chat count)" = "$before" ] || die "exec doesn't say what the program said"
  status=0; ocopea exec $COPY lets-chat -- /lets-chat no-such-command >/dev/null 2>&1 || status=$?
  [ $status != 0 ] && [ $status != 6 ] || die "exec doesn't end with the program's status: $status"
  say "the copy's page and its database, by ports of this machine"
  ocopea connect $COPY lets-chat >"$STATE/page" 2>/dev/null & local page=$!
  ocopea connect $COPY mongo >"$STATE/database" 2>/dev/null & local database=$!
  until_so 60 "a way to the copy" test -s "$STATE/page" -a -s "$STATE/database"
  local place; place=$(cat "$STATE/database"); place=${place#*://}; place=${place##*@}
  status=0; paged "$(cat "$STATE/page")" "${place%%/*}" || status=$?
  kill -INT $page $database
  [ $status = 0 ] || die "the copy can't be used through ocopea connect"
  after=$(chat b $COPY count)
  [ "$before" = "$after" ] || die "the restored copy differs from what was saved" "before: $before" "after: $after"
  run ocopea save b/$COPY --name "the same, saved again" --label fleet=again
  again=$(ocopea images --label fleet=again -o name | head -1)
  [ "$(content "$image")" = "$(content "$again")" ] || die "the content hashes of the image and of its restored copy differ"
  say "the same counts as before the damage, and the same content hash per collection"
  run ocopea images
  run ocopea remove $COPY
  run ocopea repository verify

  say "disaster: the catalog is lost, and the dump is from before the last save; the agents know nothing of it"
  local known number; known=$(ocopea images -o name | sort)
  for number in 1 2; do slain coordinator-$number; done
  of_catalog psql -q -v ON_ERROR_STOP=1 -1 -f "$STATE/yesterday.sql" >/dev/null
  for number in 1 2; do coordinator $number; done
  [ "$(ocopea images -o name | sort)" != "$known" ] || die "the dump knows all images: the disaster proves nothing"
  run ocopea repository reindex
  [ "$(ocopea images -o name | sort)" = "$known" ] || die "images are lost" "before: $known" "after: $(ocopea images -o name | sort)"
  run ocopea restore "$again" --site b --as $COPY
  [ "$(chat b $COPY count)" = "$before" ] || die "an image that the dump didn't know is restored as something else"
  run ocopea remove $COPY

  say "site b is removed: its agents' credentials die at once"
  run ocopea sites remove b
  until_so 30 "the end of site b's agents" bash -c "! kill -0 \$(cat '$STATE/agent-b1.pid') && ! kill -0 \$(cat '$STATE/agent-b2.pid')" 2>/dev/null
  tail -n 3 "$STATE/agent-b1.log" | grep -v '^{' || true
  cat <<T

What happened: on PostgreSQL, RabbitMQ and S3, with two coordinators and two agents at each of two sites, Lets-chat with
$MESSAGES messages was saved and restored; a coordinator, an agent and the broker were killed with kill -9 in the midst. Each
operation ended well, once; the restored copy has what was saved, document by document. The catalog was then set back to a
dump from before the last save: reindexing found that image again, and agents that never noticed restored it.
T
}

case $mode in
down) down; exit 0 ;;
start) start "${@:2}" ;;
up)
  up
  cat <<T

The fleet stands.
  use it       export XDG_CONFIG_HOME=$XDG_CONFIG_HOME SSL_CERT_FILE=$SSL_CERT_FILE; alias ocopea=$OCOPEA; ocopea sites
  clusters     export KUBECONFIG=$KUBECONFIG
  settings     $STATE/coordinator.toml
  logs         $STATE/*.log
  remove it    ${FLEET_STATE:+FLEET_STATE=$STATE }${FLEET_NAME:+FLEET_NAME=$NAME }make fleet-down
T
  ;;
run)
  [ ! -d "$STATE" ] || down
  trap 'status=$?; [ $status = 0 ] || say "the logs are in $STATE; make fleet-down removes what stands"; exit $status' EXIT
  up
  journey
  down
  ;;
esac
