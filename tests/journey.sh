#!/bin/bash
# journey.sh: save, restore, compare, refuse, kill -9, remove, through the ocopea command on the testbed, with a small
# application. Prints one line per check and ends with "N passed, N failed".
. "$(dirname "$0")/testbed/lib.sh"
export KUBECONFIG=$TESTBED/kubeconfig PATH=$CACHE/bin:$PATH
OCOPEA=${CARGO_TARGET_DIR:-$TOP/target}/debug/ocopea
W=$(mktemp -d); export XDG_CONFIG_HOME=$W/config
NS=journey-$$; COPY=copy-$$; PORT=8790; passed=0; failed=0
ocopea() { "$OCOPEA" "$@"; }
check() { # NAME COMMAND...: one check
  local name=$1; shift
  if "$@" >"$W/out" 2>&1; then passed=$((passed + 1)); echo "ok      $name"
  else failed=$((failed + 1)); echo "FAILED  $name"; sed 's/^/        /' "$W/out" | tail -15; fi
}
refused() { # STATUS TEXT COMMAND...: must end with STATUS and say TEXT
  local status=$1 text=$2 got=0; shift 2
  "$@" >"$W/refused" 2>&1 || got=$?
  cat "$W/refused"
  [ "$got" = "$status" ] && grep -qF -- "$text" "$W/refused"
}
start() {
  "$OCOPEA" up --data "$W/data" --listen 127.0.0.1:$PORT --mover-image "$MOVER" --site "a=a,registry=http://$REGISTRY/journey" --site "b=b,registry=http://$REGISTRY/journey" >"$W/up.log" 2>&1 &
  UP=$!
  for _ in $(seq 150); do grep -q '^Back up' "$W/up.log" && return; kill -0 $UP 2>/dev/null || break; sleep 0.2; done
  cat "$W/up.log"; return 1
}
finish() {
  kill -9 "${UP:-0}" 2>/dev/null || true
  for c in a b; do kubectl --context $c delete namespace $NS $COPY $COPY-2 --ignore-not-found --wait=false >/dev/null 2>&1 || true; done
  rm -rf "$W"
}
trap finish EXIT

MOVER=$("$HERE/mover-image.sh" | tail -1)
kubectl --context a create namespace $NS >/dev/null
kubectl --context a -n $NS apply -f - >/dev/null <<T
apiVersion: v1
kind: Secret
metadata: {name: db}
stringData: {uri: "mongodb://db.$NS.svc.cluster.local:27017/shop"}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {selector: {app: db}, ports: [{port: 27017}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      securityContext: {fsGroup: 999, fsGroupChangePolicy: OnRootMismatch}
      containers: [{name: db, image: "$REGISTRY/testbed/mongodb:6", ports: [{containerPort: 27017}], volumeMounts: [{name: data, mountPath: /data/db}],
        readinessProbe: {tcpSocket: {port: 27017}, periodSeconds: 1}}]
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: uploads}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: "$REGISTRY/testbed/busybox:1", volumeMounts: [{name: uploads, mountPath: /uploads}],
        command: [sh, -c, "trap exit TERM; [ -e /uploads/a ] || { cd /uploads; mkdir -p b/empty; echo text > 'b/ü \"odd'; seq 50000 > numbers; ln -s b/none link; chown -R 1234:4321 b; chmod 4750 numbers; mkfifo pipe; : > a; cd /; }; while :; do sleep 1; done"],
        env: [{name: MONGODB_URI, valueFrom: {secretKeyRef: {name: db, key: uri}}}]}]
      volumes: [{name: uploads, persistentVolumeClaim: {claimName: uploads}}]
T
say "waiting for the small application"
kubectl --context a -n $NS rollout status statefulset/db deployment/web --timeout=180s >/dev/null
check "ocopea up starts with two sites" start
check "a second process on the same directory is refused by name" refused 5 "another process uses" "$OCOPEA" up --data "$W/data" --listen 127.0.0.1:0 --site a=a
check "the key file is for its owner alone" test "$(stat -c %a "$W/data/repository.key")" = 600
check "the sign-in code works once" bash -c "url=\$(grep -o \"http://[^ ']*code=[^ ']*\" '$W/up.log'); '$OCOPEA' sign-in \"\$url\" && ! '$OCOPEA' sign-in \"\$url\""
check "a wrong token is refused" refused 4 "token" "$OCOPEA" --token ocopea_nonsense sites
check "an application that isn't there is named" refused 3 "nothing-here" "$OCOPEA" inspect a/nothing-here
check "hostile names are refused" refused 2 "namespace" "$OCOPEA" save 'a/../../etc'
check "what runs is found" bash -c "'$OCOPEA' inspect a/$NS -o json | jq -e '([.data[].kind] | sort) == [\"mongodb\", \"volume\"] and ([.data[] | select(.kind == \"mongodb\").bindings[]] | length) == 1 and (.containers | length) == 2'"
check "a typing error in --without is refused" refused 4 "no component of that name" "$OCOPEA" save a/$NS --without typo
check "a save makes an image" bash -c "'$OCOPEA' save a/$NS --name first -o name > '$W/id'"
id=$(cat "$W/id" 2>/dev/null || true)
check "two saves of an unchanged application have the same configuration digest" bash -c "
  '$OCOPEA' save a/$NS --name second -o name > '$W/id2'
  [ \"\$('$OCOPEA' show $id -o json | jq -r .body.config_digest)\" = \"\$('$OCOPEA' show \$(cat '$W/id2') -o json | jq -r .body.config_digest)\" ]"
check "images are found by label and text" bash -c "'$OCOPEA' label $id bug=7 && '$OCOPEA' images --label bug=7 first -o name | grep -q $id && [ -z \"\$('$OCOPEA' images nonsense -o name)\" ]"
check "the repository verifies" ocopea repository verify
check "a dry run changes nothing" bash -c "'$OCOPEA' restore $id --site b --as $COPY --dry-run | grep -q 'create   namespace $COPY' && ! kubectl --context b get namespace $COPY"
check "a plan of another digest is refused" refused 5 "the plan is now" "$OCOPEA" restore $id --site b --as $COPY --approve sha256:0
check "a refused restore leaves nothing" bash -c "! kubectl --context b get namespace $COPY"
check "a restore makes a running copy" ocopea restore "$id" --site b --as $COPY
check "host names are rewritten by meaning" bash -c "kubectl --context b -n $COPY get secret db -o jsonpath='{.data.uri}' | base64 -d | grep -qx 'mongodb://db.$COPY.svc.cluster.local:27017/shop'"
check "the copy runs the same digests" bash -c "
  d() { kubectl --context \$1 -n \$2 get pods -o json | jq -r '.items[].status.containerStatuses[].imageID | split(\"@\")[1]' | sort; }
  [ \"\$(d a $NS)\" = \"\$(d b $COPY)\" ]"
tree() { kubectl --context "$1" -n "$2" exec deploy/web -- sh -c 'cd /uploads; find . | sort | while IFS= read -r f; do stat -c "%n %F %a %u:%g %Y %N" "$f"; [ ! -f "$f" ] || md5sum < "$f"; done'; }
check "the copy's files are those that were saved, owners, modes and times included" bash -c "$(declare -f tree); diff <(tree a $NS) <(tree b $COPY) && tree b $COPY | grep -q 1234:4321"
check "no mover is left" bash -c "[ -z \"\$(kubectl --context a -n $NS get jobs,pods -l ocopea.dev/mover -o name; kubectl --context b -n $COPY get jobs,pods -l ocopea.dev/mover -o name)\" ]"
check "a name that exists is refused" refused 5 "$COPY" "$OCOPEA" restore $id --site b --as $COPY
check "logs and connections work" bash -c "'$OCOPEA' logs $COPY db | grep -q listening && { timeout 5 '$OCOPEA' connect $COPY db > '$W/conn' || true; grep -q mongodb://127.0.0.1 '$W/conn'; }"
check "a program in the copy gets its input, and its status comes back" bash -c "got=0; out=\$(echo in | '$OCOPEA' exec $COPY web -- sh -c 'cat; echo err >&2; exit 7' 2>'$W/err') || got=\$?; [ \"\$out\" = in ] && [ \$got = 7 ] && grep -qx err '$W/err'"
check "exec names the components where several run" refused 2 "db, web" "$OCOPEA" exec $COPY -- true
check "keys are rotated and the old one taken away, and everything is still read" bash -c "
  old=\$('$OCOPEA' repository key list -o name)
  '$OCOPEA' repository key rotate && '$OCOPEA' repository key remove \$old && '$OCOPEA' repository verify
  [ \$(grep -c . '$W/data/repository.key') = 1 ] && ! grep -q \$old '$W/data/repository.key' && [ \$(stat -c %a '$W/data/repository.key') = 600 ]"
check "the last key stays" refused 2 "last repository key" "$OCOPEA" repository key remove "$("$OCOPEA" repository key list -o name)"
check "YAML says what JSON says" bash -c "'$OCOPEA' show $id -o yaml | grep -q 'name: first'"
check "a save of the copy knows where it came from" bash -c "'$OCOPEA' save b/$COPY --name again -o json | jq -e '.body.lineage.restored_from != null'"
# kill -9 at several moments of a save and of a restore; the next start finishes or takes back.
for pause in 0.3 1.2 2.5; do
  "$OCOPEA" save a/$NS --name killed-$pause --detach >"$W/op"; sleep $pause; kill -9 $UP; wait $UP 2>/dev/null || true
  check "starts again after kill -9 (save, $pause s)" start
  check "the killed save ends in one way (save, $pause s)" bash -c "timeout 120 '$OCOPEA' operations watch \$(cat '$W/op'); s=\$('$OCOPEA' operations show \$(cat '$W/op') -o json | jq -r .state); n=\$('$OCOPEA' images killed-$pause -o name | wc -l); echo \$s \$n; [ \$s = succeeded -a \$n = 1 ] || [ \$s = failed -a \$n = 0 ]"
done
for pause in 0.7 2.5; do
  "$OCOPEA" restore $id --site b --as $COPY-2 --detach >"$W/op"; sleep $pause; kill -9 $UP; wait $UP 2>/dev/null || true
  check "starts again after kill -9 (restore, $pause s)" start
  check "the killed restore ends in one way (restore, $pause s)" bash -c "timeout 180 '$OCOPEA' operations watch \$(cat '$W/op'); s=\$('$OCOPEA' operations show \$(cat '$W/op') -o json | jq -r .state); n=\$(kubectl --context b get namespace -o name | grep -cx namespace/$COPY-2); echo \$s \$n; [ \$s = succeeded -a \$n = 1 ] || [ \$s = failed -a \$n = 0 ]"
  check "what the killed restore made can be removed ($pause s)" bash -c "'$OCOPEA' environments -o name | grep -qx $COPY-2 && '$OCOPEA' remove $COPY-2; ! kubectl --context b get namespace $COPY-2"
done
"$OCOPEA" restore $id --site b --as $COPY-2 --detach >"$W/op"; sleep 2
check "a cancelled restore leaves nothing" bash -c "'$OCOPEA' cancel \$(cat '$W/op') && ! kubectl --context b get namespace $COPY-2 && '$OCOPEA' operations show \$(cat '$W/op') -o json | jq -e '.state == \"cancelled\"'"
check "an environment is removed with what was pushed for it" bash -c "'$OCOPEA' remove $COPY && ! kubectl --context b get namespace $COPY && for r in \$(curl -s http://$REGISTRY/v2/_catalog?n=1000 | jq -r '.repositories[]' | grep '^journey/$COPY'); do curl -s http://$REGISTRY/v2/\$r/tags/list | jq -e '(.tags // []) | length == 0' || exit 1; done"
check "the independent reader finds every stream of every image as it should be" "$TOP/tests/reader.sh" "$W/data/repository" "$W/data/repository.key"
for i in $(ocopea images -o name); do ocopea rm "$i" >/dev/null 2>&1; done
check "deleted images give their bytes back" bash -c "'$OCOPEA' repository collect --grace 0s && '$OCOPEA' repository collect --grace 0s && [ \$(find '$W/data/repository/blobs' -type f 2>/dev/null | wc -l) = 0 ]"
check "SIGTERM ends it in order" bash -c "kill $UP; for i in \$(seq 200); do kill -0 $UP 2>/dev/null || exit 0; sleep 0.2; done; exit 1"
echo
echo "journey: $passed passed, $failed failed"
[ $failed = 0 ]
