#!/bin/bash
# demo.sh [stop]: the main job on embedded defaults, with a real application and real data on real Kubernetes.
# SITES=context1,context2 REGISTRY=[http://]HOST/PATH uses clusters of your own instead of the testbed.
. "$(dirname "$0")/testbed/lib.sh"
STATE=$TOP/.ocopea/demo; OCOPEA=${CARGO_TARGET_DIR:-$TOP/target}/debug/ocopea
IFS=, read -r SITE_A SITE_B <<<"${SITES_GIVEN:-a,b}"
own_clusters=${SITES_GIVEN:+yes}; registry=${REGISTRY_GIVEN:-http://$REGISTRY/ocopea}
samples=${registry%/*}/samples; servers=${registry%/*}/testbed
NAMESPACE=lets-chat; COPY=debug-4711; FIXED=fixed-4711

run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
ocopea() { "$OCOPEA" "$@"; }
k() { kubectl --context "$@"; }

if [ "${1:-}" = stop ]; then
  if [ -x "$OCOPEA" ] && curl -s -m 2 -o /dev/null http://127.0.0.1:8700/healthz; then
    for e in $COPY $FIXED; do "$OCOPEA" remove "$e" 2>/dev/null || true; done
  fi
  if [ -s "$STATE/pid" ]; then
    kill "$(cat "$STATE/pid")" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$(cat "$STATE/pid")" 2>/dev/null || break; sleep 0.2; done
  fi
  rm -rf "$STATE"
  if [ -z "$own_clusters" ]; then "$HERE/down.sh" clean; else k "$SITE_A" delete namespace $NAMESPACE --ignore-not-found; fi
  exit 0
fi

"$TOP/tests/testbed/prereqs.sh" rust go
say "building ocopea and Lets-chat, beside what follows (some minutes when nothing is built yet)"
begin_build -p ocopea-cli -p ocopea-mover -p lets-chat
if [ -n "$own_clusters" ]; then
  command -v kubectl >/dev/null || die "kubectl is needed for clusters of your own" "install it and run again"
  [ -n "${REGISTRY_GIVEN:-}" ] || die "SITES was given, but no registry" "make demo SITES=$SITES_GIVEN REGISTRY=[http://]HOST/PATH"
else
  "$HERE/up.sh"; "$HERE/images.sh"
  export KUBECONFIG=$TESTBED/kubeconfig PATH=$CACHE/bin:$PATH
fi
finish_build
say "Lets-chat's images"
"$TOP/samples/lets-chat/images.sh" "$samples"

mover=$("$HERE/mover-image.sh" "$registry" | tail -1)

mkdir -p "$STATE"; chmod 700 "$STATE"
if ! { [ -s "$STATE/pid" ] && kill -0 "$(cat "$STATE/pid")" 2>/dev/null; }; then
  say "starting ocopea up with both sites"
  setsid -f bash -c 'echo $$ > "$0/pid"; exec "$@"' "$STATE" "$OCOPEA" up --data "$STATE/data" --mover-image "$mover" --site "$SITE_A=$SITE_A,registry=$registry" --site "$SITE_B=$SITE_B,registry=$registry" >"$STATE/up.log" 2>&1 </dev/null
fi
for i in $(seq 150); do
  grep -q '^Back up' "$STATE/up.log" && curl -s -m 2 -o /dev/null http://127.0.0.1:8700/healthz && break
  [ "$i" = 150 ] && { cat "$STATE/up.log"; die "ocopea up did not start" "see $STATE/up.log and $STATE/data/ocopea.log"; }
  sleep 0.2
done
cat "$STATE/up.log"

say "deploying Lets-chat at $SITE_A, as its users would"
"$TOP/samples/lets-chat/deploy.sh" --context "$SITE_A" --namespace $NAMESPACE --registry "${samples#http://}" --servers "${servers#http://}" --shape mongodb --version 1.4.1
chat() { k "$1" -n "$2" exec deploy/lets-chat -- /lets-chat "${@:3}"; }
say "filling it with 100 000 messages"
chat "$SITE_A" $NAMESPACE load --messages 100000 --replace
for e in $COPY $FIXED; do
  "$OCOPEA" remove "$e" >/dev/null 2>&1 || true
  # Left by a demo whose data directory is gone: on the testbed it can be nobody else's.
  [ -n "$own_clusters" ] || k "$SITE_B" delete namespace "$e" --ignore-not-found >/dev/null
done

run ocopea applications
run ocopea inspect "$SITE_A/$NAMESPACE"
before=$(chat "$SITE_A" $NAMESPACE count)
run ocopea save "$SITE_A/$NAMESPACE" --name "messages in wrong order" --label bug=4711 --comment "seen by accident, can't reproduce"
say "vandalising the running application"
chat "$SITE_A" $NAMESPACE damage --yes
damaged=$(chat "$SITE_A" $NAMESPACE count)
[ "$before" != "$damaged" ] || die "the damage is not to be seen: the demo proves nothing"
run ocopea restore "messages in wrong order" --site "$SITE_B" --as $COPY --dry-run
run ocopea restore "messages in wrong order" --site "$SITE_B" --as $COPY
say "is the restored data what was saved?"
chat "$SITE_B" $COPY check
after=$(chat "$SITE_B" $COPY count)
[ "$before" = "$after" ] || die "the restored copy differs from what was saved" "before: $before" "after: $after"
say "yes: the same counts and newest message as before the damage, every document's content hash equal"
run ocopea restore "messages in wrong order" --site "$SITE_B" --as $FIXED --set lets-chat=1.4.2
run ocopea save "$SITE_B/$COPY" --name "the same, saved again" --label bug=4711
content() { ocopea show "$1" -o json | jq -c '[.body.components[].body.data.streams // empty | .[] | [.name, .items, .content]] | sort'; }
# A copy's own sessions come and go; everything else must be equal, document by document.
stable() { content "$1" | jq -c 'map(select(.[0] | endswith(".sessions") | not))'; }
[ "$(stable 'messages in wrong order')" = "$(stable 'the same, saved again')" ] || die "the content hashes of the image and of its restored copy differ"
say "the image and a new save of its restored copy have the same content hash per collection"
say "the same by a reader that shares no code with Ocopea (tests/reader, written from docs/repository-format.md)"
"$TOP/tests/reader.sh" "$STATE/data/repository" "$STATE/data/repository.key" | tail -1
run ocopea images
run ocopea environments
cat <<T

What happened: Lets-chat with 100 000 messages was saved at $SITE_A while it ran, vandalised there, and restored at
$SITE_B exactly as it had been ($COPY), and once more with the fixed version 1.4.2 ($FIXED).

  the copy            $("$OCOPEA" environments -o json | jq -r ".[] | select(.name == \"$COPY\") | .url")
  with the fix        $("$OCOPEA" environments -o json | jq -r ".[] | select(.name == \"$FIXED\") | .url")   (room incident-4711 is in order)
  go on               alias ocopea=$OCOPEA; ocopea show "messages in wrong order"; ocopea logs $COPY -f
  data, log           $STATE/data
  stop and remove     make demo-stop
T
