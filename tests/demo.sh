#!/bin/bash
# demo.sh [stop]: the main job on embedded defaults, with a real application and real data on real Kubernetes.
# SITES=context1,context2 REGISTRY=[http://]HOST/PATH uses clusters of your own instead of the testbed: contexts of your
# kubeconfig, a registry that their nodes pull from and that you may push to (credentials from your Docker
# configuration). DATABASE=IMAGE names the MongoDB image there, by default the well-known one.
. "$(dirname "$0")/testbed/lib.sh"
STATE=$TOP/.ocopea/demo; OCOPEA=${CARGO_TARGET_DIR:-$TOP/target}/debug/ocopea
IFS=, read -r CONTEXT_A CONTEXT_B <<<"${SITES_GIVEN:-a,b}"
own_clusters=${SITES_GIVEN:+yes}
NAMESPACE=lets-chat; COPY=debug-4711; FIXED=fixed-4711
# On the namespace that the demo made: it empties and deletes no other.
OURS=app.kubernetes.io/created-by=ocopea-demo

run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
ocopea() { "$OCOPEA" "$@"; }
k() { kubectl --context "$@"; }
# A context may be called anything, a site is a DNS label.
site_of() { local name; name=$(tr '[:upper:]' '[:lower:]' <<<"$1" | tr -c 'a-z0-9\n' - | cut -c1-50 | sed 's/^-*//; s/-*$//'); echo "${name:-site}"; }
SITE_A=$(site_of "$CONTEXT_A"); SITE_B=$(site_of "$CONTEXT_B")
[ "$SITE_A" != "$SITE_B" ] || [ "$CONTEXT_A" = "$CONTEXT_B" ] || SITE_B=${SITE_B}-2

if [ "${1:-}" = stop ]; then
  if [ -x "$OCOPEA" ] && curl -s -m 2 -o /dev/null http://127.0.0.1:8700/healthz; then
    for e in $COPY $FIXED; do "$OCOPEA" remove "$e" 2>/dev/null || true; done
  fi
  if [ -s "$STATE/pid" ]; then
    kill "$(cat "$STATE/pid")" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$(cat "$STATE/pid")" 2>/dev/null || break; sleep 0.2; done
  fi
  rm -rf "$STATE"
  if [ -z "$own_clusters" ]; then "$HERE/down.sh" clean; else k "$CONTEXT_A" delete namespace -l $OURS; fi
  exit 0
fi

# own_clusters: what is needed where no testbed is brought up, all of it named at once
prepare_own() {
  local missing=() tool c
  [ -n "$CONTEXT_B" ] && [ "$CONTEXT_A" != "$CONTEXT_B" ] ||
    die "SITES needs two contexts of your kubeconfig, found \"$SITES_GIVEN\"" "make demo SITES=context1,context2 REGISTRY=[http://]HOST/PATH"
  [ -n "${REGISTRY_GIVEN:-}" ] || die "SITES was given, but no registry" "make demo SITES=$SITES_GIVEN REGISTRY=[http://]HOST/PATH"
  [[ ${REGISTRY_GIVEN#http://} = */* ]] || die "REGISTRY=$REGISTRY_GIVEN names no path below the host" "REGISTRY=${REGISTRY_GIVEN%/}/ocopea, say"
  # Where packages can be installed, prereqs.sh brings what builds need.
  local builds=(); command -v apt-get >/dev/null || builds=(cargo cc make cmake go)
  for tool in kubectl skopeo jq curl python3 objcopy "${builds[@]}"; do command -v $tool >/dev/null || missing+=("$tool"); done
  [ ${#missing[@]} = 0 ] || die "these programs are needed: ${missing[*]}" "install them (Debian: apt-get install skopeo jq curl python3 binutils; kubectl: kubernetes.io/docs/tasks/tools) and run again"
  for c in "$CONTEXT_A" "$CONTEXT_B"; do
    k "$c" get --raw /readyz >/dev/null || die "the cluster of context $c doesn't answer" "check it with: kubectl --context $c get nodes"
  done
  if k "$CONTEXT_A" get namespace $NAMESPACE >/dev/null 2>&1 && [ -z "$(k "$CONTEXT_A" get namespace -l $OURS -o name)" ]; then
    die "there is a namespace $NAMESPACE at $CONTEXT_A, and no demo made it" "remove it, or choose another cluster: the demo fills and damages what it deploys there"
  fi
  # skopeo looks elsewhere unless told.
  if [ -s "${DOCKER_CONFIG:-}/config.json" ]; then export REGISTRY_AUTH_FILE=${REGISTRY_AUTH_FILE:-$DOCKER_CONFIG/config.json}; fi
}

# pull_auth HOST: a Docker configuration with HOST's password alone, where the user's has one; the nodes pull with it
pull_auth() {
  local config=${DOCKER_CONFIG:-${HOME:-/root}/.docker}/config.json auth helper
  [ -s "$config" ] || return 0
  auth=$(jq -r --arg h "$1" '.auths[$h].auth // .auths["https://" + $h].auth // ""' "$config")
  helper=$(jq -r --arg h "$1" '.credHelpers[$h] // .credsStore // ""' "$config")
  if [ -z "$auth" ] && [ -n "$helper" ] && command -v "docker-credential-$helper" >/dev/null; then
    auth=$(printf %s "$1" | "docker-credential-$helper" get 2>/dev/null | jq -r '"\(.Username):\(.Secret)" | @base64') || auth=
  fi
  [ -n "$auth" ] || return 0
  (umask 077; jq -n --arg h "$1" --arg a "$auth" '{auths: {($h): {auth: $a}}}' >"$STATE/pull.json")
  echo "$STATE/pull.json"
}

mkdir -p "$STATE"; chmod 700 "$STATE"
deploying=()
if [ -n "$own_clusters" ]; then
  prepare_own
  registry=${REGISTRY_GIVEN%/} samples=${REGISTRY_GIVEN%/}/samples host=${REGISTRY_GIVEN#http://} plain=
  host=${host%%/*}; case $REGISTRY_GIVEN in http://*) plain=--tls-verify=false ;; esac
  database=${DATABASE:-${registry#http://}/testbed/mongodb:6}
  # Nothing is built for clusters of other people: their nodes reach the registry where MongoDB's own image is.
  if [ -z "${DATABASE:-}" ] && ! skopeo inspect --raw $plain "docker://$database" >/dev/null 2>&1; then database=docker.io/library/mongo:6; fi
  auth=$(pull_auth "$host"); [ -z "$auth" ] || deploying+=(--pull-auth "$auth")
else
  registry=http://$REGISTRY/ocopea samples=http://$REGISTRY/samples database=$REGISTRY/testbed/mongodb:6
fi
[ -n "$own_clusters" ] && ! command -v apt-get >/dev/null || "$HERE/prereqs.sh" rust go
# The pages need npm; a demo on somebody's own machine without it goes on without them.
if command -v apt-get >/dev/null || command -v npm >/dev/null; then "$HERE/web.sh"; fi
say "building ocopea and Lets-chat, beside what follows (some minutes when nothing is built yet)"
begin_build -p ocopea-cli -p ocopea-mover -p lets-chat
if [ -z "$own_clusters" ]; then
  "$HERE/up.sh"; "$HERE/images.sh"
  export KUBECONFIG=$TESTBED/kubeconfig PATH=$CACHE/bin:$PATH
fi
finish_build
# What goes on beside the rest ends with it.
# shellcheck disable=SC2046 # one process each
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
# beside NAME COMMAND...: starts it, and keeps what it says; joined NAME: waits for it, and says it
declare -A started=()
beside() { local name=$1; shift; "$@" >"$STATE/$name.out" 2>&1 & started[$name]=$!; }
joined() { wait "${started[$1]}" || { cat "$STATE/$1.out" >&2; die "$2 failed (see above)"; }; cat "$STATE/$1.out"; }

say "Lets-chat's images, and the mover's"
beside mover "$HERE/mover-image.sh" "$registry"
"$TOP/samples/lets-chat/images.sh" "$samples"

deploy() {
  k "$CONTEXT_A" get namespace $NAMESPACE >/dev/null 2>&1 || k "$CONTEXT_A" create namespace $NAMESPACE >/dev/null
  k "$CONTEXT_A" label --overwrite namespace $NAMESPACE $OURS >/dev/null
  "$TOP/samples/lets-chat/deploy.sh" --context "$CONTEXT_A" --namespace $NAMESPACE --registry "$samples" --database "$database" --shape mongodb --version 1.4.1 "${deploying[@]}"
}
say "deploying Lets-chat at $SITE_A, as its users would"
beside deployment deploy

joined mover "the mover's image"
mover=$(tail -1 "$STATE/mover.out")
if ! { [ -s "$STATE/pid" ] && kill -0 "$(cat "$STATE/pid")" 2>/dev/null; }; then
  say "starting ocopea up with both sites"
  setsid -f bash -c 'echo $$ > "$0/pid"; exec "$@"' "$STATE" "$OCOPEA" up --data "$STATE/data" --mover-image "$mover" --site "$SITE_A=$CONTEXT_A,registry=$registry" --site "$SITE_B=$CONTEXT_B,registry=$registry" >"$STATE/up.log" 2>&1 </dev/null
fi
for i in $(seq 150); do
  grep -q '^Back up' "$STATE/up.log" && curl -s -m 2 -o /dev/null http://127.0.0.1:8700/healthz && break
  [ "$i" = 150 ] && { cat "$STATE/up.log"; die "ocopea up did not start" "see $STATE/up.log and $STATE/data/ocopea.log"; }
  sleep 0.2
done
cat "$STATE/up.log"

joined deployment "the deployment of Lets-chat"
chat() { k "$1" -n "$2" exec deploy/lets-chat -- /lets-chat "${@:3}"; }
say "filling it with 100 000 messages"
clear_away() {
  "$OCOPEA" remove "$1" >/dev/null 2>&1 || true
  # Left by a demo whose data directory is gone: on the testbed it can be nobody else's.
  [ -n "$own_clusters" ] || k "$CONTEXT_B" delete namespace "$1" --ignore-not-found >/dev/null
}
clear_away $COPY & clear_away $FIXED &
chat "$CONTEXT_A" $NAMESPACE load --messages 100000 --replace
wait

run ocopea applications
run ocopea inspect "$SITE_A/$NAMESPACE"
before=$(chat "$CONTEXT_A" $NAMESPACE count)
run ocopea save "$SITE_A/$NAMESPACE" --name "messages in wrong order" --label bug=4711 --comment "seen by accident, can't reproduce"
# An earlier demo may have left an image of the same name: the newest is meant.
image=$(ocopea images --label bug=4711 --application $NAMESPACE -o name | head -1)
say "vandalising the running application"
chat "$CONTEXT_A" $NAMESPACE damage --yes
damaged=$(chat "$CONTEXT_A" $NAMESPACE count)
[ "$before" != "$damaged" ] || die "the damage is not to be seen: the demo proves nothing"
run ocopea restore "$image" --site "$SITE_B" --as $COPY --dry-run
run ocopea restore "$image" --site "$SITE_B" --as $COPY
say "meanwhile it is restored with the fixed version, too; and is the restored data what was saved?"
beside fixed run ocopea restore "$image" --site "$SITE_B" --as $FIXED --set lets-chat=1.4.2
chat "$CONTEXT_B" $COPY check
after=$(chat "$CONTEXT_B" $COPY count)
[ "$before" = "$after" ] || die "the restored copy differs from what was saved" "before: $before" "after: $after"
say "yes: the same counts and newest message as before the damage, every document's content hash equal"
run ocopea save "$SITE_B/$COPY" --name "the same, saved again" --label bug=4711
again=$(ocopea images --application $COPY -o name | head -1)
content() { ocopea show "$1" -o json | jq -c '[.body.components[].body.data.streams // empty | .[] | [.name, .items, .content]] | sort'; }
# A copy's own sessions come and go; everything else must be equal, document by document.
stable() { content "$1" | jq -c 'map(select(.[0] | endswith(".sessions") | not))'; }
[ "$(stable "$image")" = "$(stable "$again")" ] || die "the content hashes of the image and of its restored copy differ"
say "the image and a new save of its restored copy have the same content hash per collection"
say "the same by a reader that shares no code with Ocopea (tests/reader, written from docs/repository-format.md)"
"$TOP/tests/reader.sh" "$STATE/data/repository" "$STATE/data/repository.key" | tail -1
joined fixed "the restore with the fixed version"
run ocopea images
run ocopea environments
url() { ocopea environments -o json | jq -r --arg e "$1" '.[] | select(.name == $e) | .url // "ocopea connect \($e) lets-chat"'; }
sign_in=$(grep -o 'http://[^ ]*/sign-in?code=[^ ]*' "$STATE/up.log" | tail -1)
cat <<T

What happened: Lets-chat with 100 000 messages was saved at $SITE_A while it ran, vandalised there, and restored at
$SITE_B exactly as it had been ($COPY), and once more with the fixed version 1.4.2 ($FIXED).

  the copy            $(url $COPY)
  with the fix        $(url $FIXED)   (room incident-4711 is in order)
  the pages           ${sign_in%/sign-in*}/   (once, until ten minutes after its start: $sign_in)
  go on               alias ocopea=$OCOPEA; ocopea show $image; ocopea logs $COPY -f
  data, log           $STATE/data
  stop and remove     make demo-stop
T
