#!/bin/bash
# kubernetes.sh [up|try|down]: Ocopea inside Kubernetes, as its charts install it: two coordinators in cluster a, an agent in a and
# one in b, in restricted namespaces, on a RabbitMQ (TLS), a PostgreSQL and an S3 server of this machine. An application with
# a database and a volume is saved in a and restored in b by their service accounts; what these may not do is tried, too.
# Without an argument it ends by itself and removes all; `up` leaves it standing, `try` saves and restores there, `down` removes it.
# KUBERNETES_NAME=WORD, KUBERNETES_PORT=N: another one beside it.
. "$(dirname "$0")/testbed/lib.sh"
NAME=${KUBERNETES_NAME:-inside} NODE_PORT=${KUBERNETES_PORT:-30870}
STATE=$TOP/.ocopea/kubernetes-$NAME OCOPEA=${CARGO_TARGET_DIR:-$TOP/target}/debug/ocopea
HOME_NS=$NAME-ocopea SHOP=$NAME-shop CLOSED=$NAME-closed COPY=$NAME-copy
AGENT=$NAME-ocopea-agent AT=https://172.31.0.1:$NODE_PORT
export XDG_CONFIG_HOME=$STATE/config SSL_CERT_FILE=$STATE/tls/ca.pem KUBECONFIG=$TESTBED/kubeconfig PATH=$CACHE/bin:$PATH
# What pods reach of this machine.
export OCOPEA_LISTEN=172.31.0.254
mode=${1:-run}
case $mode in run | up | try | down) ;; *) die "kubernetes.sh: $mode is not known" "kubernetes.sh [up|try|down]" ;; esac

ocopea() { "$OCOPEA" --url "$AT" "$@"; }
k() { kubectl --context "$@"; }
h() { local context=$1; shift; helm --kube-context "$context" -n $HOME_NS "$@"; }
until_so() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "$what did not come about" "kubectl --context a|b -n $HOME_NS get pods; kubectl … logs deployment/$AGENT"
    sleep 0.2
  done
}
now() { date +%s%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN {printf "%.1f s", (b - a) / 1e9}'; }
# site NAME FILTER: what the coordinators know of a site
known() { ocopea sites -o json | jq -e --arg name "$1" ".[] | select(.name == \$name) | $2"; }
chat() { k "$1" -n "$2" exec deploy/lets-chat -- /lets-chat "${@:3}"; }
# Sessions come and go by themselves.
counts() { jq -c 'del(.entries[] | select(.[0] == "sessions"))'; }

down() {
  local c
  if [ -s "$KUBECONFIG" ]; then
    for c in a b; do
      h $c uninstall $AGENT --ignore-not-found >/dev/null 2>&1 || true
      h $c uninstall $NAME-ocopea --ignore-not-found >/dev/null 2>&1 || true
    done
    k a delete namespace $HOME_NS $SHOP $CLOSED --ignore-not-found >/dev/null &
    k b delete namespace $HOME_NS $COPY --ignore-not-found >/dev/null; wait $!
  fi
  [ ! -s "$STATE/rabbitmq/env" ] || "$HERE/rabbitmq.sh" stop "$STATE/rabbitmq"
  [ ! -s "$STATE/postgresql/env" ] || "$HERE/postgresql.sh" stop "$STATE/postgresql"
  [ ! -s "$STATE/s3/env" ] || "$HERE/s3.sh" stop "$STATE/s3"
  rm -rf "$STATE"
}

# certificate: what the coordinators are served with
certificate() {
  mkdir -p "$STATE/tls"; cd "$STATE/tls"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3 -subj "/CN=Ocopea in a test's clusters" \
    -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=ocopea -keyout key.pem -out csr.pem 2>/dev/null
  openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 3 -out cert.pem \
    -extfile <(printf 'subjectAltName=IP:172.31.0.1\nbasicConstraints=CA:FALSE\n') 2>/dev/null
  cd - >/dev/null
}

# home CLUSTER: where Ocopea's own pods run, and what is let run there
home() {
  k "$1" create namespace $HOME_NS >/dev/null
  k "$1" label namespace $HOME_NS pod-security.kubernetes.io/enforce=restricted pod-security.kubernetes.io/enforce-version=latest >/dev/null
}
secret() { k a -n $HOME_NS create secret generic "$@" >/dev/null; }

coordinators() {
  # shellcheck disable=SC1091 # written by what started them
  . "$STATE/rabbitmq/env"
  local broker=$URL management=$MANAGEMENT user=$USER
  "$OCOPEA" coordinator make-keys "$STATE/keys" >/dev/null
  secret keys --from-file="$STATE/keys"
  secret broker --from-literal=password="$PASSWORD"
  secret broker-ca --from-file=ca.crt="$CA"
  k a -n $HOME_NS create secret tls tls --cert="$STATE/tls/cert.pem" --key="$STATE/tls/key.pem" >/dev/null
  . "$STATE/s3/env"
  secret bucket --from-literal=AWS_ACCESS_KEY_ID="$KEY_ID" --from-literal=AWS_SECRET_ACCESS_KEY="$SECRET"
  . "$STATE/postgresql/env"
  secret catalog --from-literal=password="$(cat "$PASSWORD_FILE")"
  cat >"$STATE/coordinator.yaml" <<T
image: {repository: "${IMAGE%@*}", digest: "${IMAGE#*@}"}
publicUrl: $AT
service: {type: NodePort, nodePort: $NODE_PORT}
tls: {existingSecret: tls}
catalog: {url: "postgres://$USER@$OCOPEA_LISTEN:$PORT/$DATABASE?sslmode=disable", existingSecret: catalog}
repository: {url: "s3://kubernetes/ocopea?endpoint=$ENDPOINT&region=$REGION", existingSecret: bucket}
keys: {existingSecret: keys}
broker: {url: "$broker", user: $user, existingSecret: broker, management: "$management", caSecret: broker-ca}
T
  h a install $NAME-ocopea "$TOP/charts/ocopea" -f "$STATE/coordinator.yaml" --wait --timeout 3m >/dev/null
  # Both begin on an empty catalog and an empty bucket.
  [ "$(k a -n $HOME_NS get pods -l app.kubernetes.io/name=ocopea -o jsonpath='{.items[*].status.containerStatuses[0].restartCount}')" = "0 0" ] ||
    die "a coordinator ended at the first start" "kubectl --context a -n $HOME_NS logs --previous POD"
}

# agent CLUSTER VALUE...: an agent by its chart; says how long its site took to show up
agent() {
  local c=$1 begun; shift
  k "$c" -n $HOME_NS create secret generic coordinator-ca --from-file=ca.crt="$STATE/tls/ca.pem" >/dev/null
  k "$c" -n $HOME_NS create secret generic join --from-literal=token="$(ocopea sites add "$c" -o name)" >/dev/null
  cat >"$STATE/agent-$c.yaml" <<T
image: {repository: "${IMAGE%@*}", digest: "${IMAGE#*@}"}
coordinator: {url: $AT, caSecret: coordinator-ca}
registry: {address: "http://$REGISTRY/$NAME"}
moverImage: "$MOVER"
T
  begun=$(now)
  h "$c" install $AGENT "$TOP/charts/ocopea-agent" -f "$STATE/agent-$c.yaml" --set join.existingSecret=join "$@" >/dev/null
  until_so 60 "site $c" known "$c" '.state == "ready"'
  say "site $c shows up with its capabilities $(since "$begun") after helm install"
}

up() {
  "$HERE/prereqs.sh" rust go testbed tests helm
  say "building ocopea, the mover and Lets-chat, beside what follows"
  begin_build -p ocopea-cli -p ocopea-mover -p lets-chat
  "$HERE/up.sh" >/dev/null; "$HERE/images.sh" >/dev/null
  finish_build
  mkdir -p "$STATE"; chmod 711 "$STATE"
  IMAGE=$("$HERE/ocopea-image.sh" | tail -1)
  MOVER=$("$HERE/mover-image.sh" | tail -1)
  say "starting PostgreSQL, RabbitMQ and an S3 server"
  "$HERE/postgresql.sh" start "$STATE/postgresql" >/dev/null
  "$HERE/rabbitmq.sh" start "$STATE/rabbitmq" tls >/dev/null
  "$HERE/s3.sh" start "$STATE/s3" >/dev/null; "$HERE/s3.sh" bucket "$STATE/s3" kubernetes
  certificate
  say "installing two coordinators in a"
  home a; home b
  coordinators
  "$OCOPEA" sign-in "$(k a -n $HOME_NS exec deploy/$NAME-ocopea -- /ocopea coordinator sign-in-code)" >/dev/null
  say "deploying Lets-chat in a: PostgreSQL, and a volume of uploads"
  "$TOP/samples/lets-chat/images.sh" "http://$REGISTRY/samples" >/dev/null
  k a create namespace $SHOP >/dev/null
  "$TOP/samples/lets-chat/deploy.sh" --context a --namespace $SHOP --registry "http://$REGISTRY/samples" --database "$REGISTRY/testbed/postgres:15" --shape postgres >/dev/null
  say "installing agents in a and b"
  agent a --set "save.namespaces={$SHOP}"
  # Both of these begin with one token and no identity: the first key that is written down is the site's.
  agent b --set replicas=2
  k b -n $HOME_NS rollout status deployment/$AGENT --timeout=60s >/dev/null
  ocopea sites
}

# ended OPERATION: whether it has come to an end
ended() { ocopea operations show "$1" -o json | jq -e '.state | . != "running" and . != "undoing"'; }
# refused WHAT WORDS COMMAND...: it must fail, and say so
refused() {
  local what=$1 words=$2 said; shift 2
  if said=$("$@" 2>&1); then die "$what is not refused"; fi
  grep -qF -- "$words" <<<"$said" || die "$what is refused in other words" "$said"
}

journey() {
  local before image begun id said operation
  chat a $SHOP load --messages 10000 --uploads 60 --replace >/dev/null
  before=$(chat a $SHOP count | counts)
  ocopea applications --site a
  [ "$(ocopea applications --site a -o name)" = a/$SHOP ] || die "other namespaces than the one that is opted in are shown"

  say "what isn't opted in is refused, with the command that opts it in; and that command does"
  k a create namespace $CLOSED >/dev/null
  k a -n $CLOSED create configmap words --from-literal=one=two >/dev/null
  if said=$(ocopea save a/$CLOSED 2>&1); then die "a namespace that nobody opted in is saved"; fi
  printf '%s\n' "$said"
  local command; command=$(grep -o "kubectl create rolebinding [^,]*" <<<"$said") || die "it isn't said how to opt in"
  [ "$command" = "kubectl create rolebinding $AGENT-save --clusterrole=$AGENT-save --serviceaccount=$HOME_NS:$AGENT-save --namespace=$CLOSED" ] || die "it is said wrongly how to opt in: $command"
  # shellcheck disable=SC2086 # words, as a person types them
  $command --context=a >/dev/null
  ocopea save a/$CLOSED --name "opted in by hand" >/dev/null

  say "a save in a, by the save account"
  begun=$(now)
  ocopea save a/$SHOP --name "the shop" --label kubernetes=yes
  say "saved: $(since "$begun")"
  image=$(ocopea images --label kubernetes=yes -o name | head -1)
  say "a save whose agent's pod is killed in its midst"
  operation=$(ocopea save a/$SHOP --name "while the agent dies" --detach)
  sleep 1
  k a -n $HOME_NS delete pod -l app.kubernetes.io/name=ocopea-agent --grace-period=0 --force >/dev/null 2>&1
  begun=$(now)
  until_so 180 "the end of that save" ended "$operation"
  ocopea operations show "$operation" -o json | jq -e '.state == "succeeded"' >/dev/null || die "the save didn't outlive its agent" "$(ocopea operations show "$operation")"
  say "it succeeded $(since "$begun") after the kill"
  chat a $SHOP damage --yes >/dev/null
  say "a restore in b, by the restore account, in a namespace that it makes"
  begun=$(now)
  ocopea restore "$image" --site b --as $COPY
  say "restored: $(since "$begun")"
  [ "$(chat b $COPY count | counts)" = "$before" ] || die "the restored copy differs from what was saved" "before: $before" "after: $(chat b $COPY count)"
  chat b $COPY check >/dev/null || die "files or rows of the restored copy don't hold together"
  [ "$(ocopea exec $COPY lets-chat -- /lets-chat count | counts)" = "$before" ] || die "exec through the agent in b doesn't say what the program said"

  say "what the accounts may not do"
  local save=system:serviceaccount:$HOME_NS:$AGENT-save restore=system:serviceaccount:$HOME_NS:$AGENT-restore own=system:serviceaccount:$HOME_NS:$AGENT
  refused "a secret of another namespace, to the save account" "cannot get resource" k a --as=$save -n kube-system get secret x
  refused "a secret made by the save account" "cannot create resource" k a --as=$save -n $SHOP create secret generic x
  refused "a secret of the source, to the restore account" "cannot get resource" k a --as=$restore -n $SHOP get secret lets-chat-db
  refused "a namespace that isn't the agent's, removed by the restore account" "cannot delete resource" k b --as=$restore delete namespace default
  refused "a binding of another role" "attempting to grant RBAC permissions not currently held" k b --as=$restore -n $COPY create rolebinding x --clusterrole=cluster-admin --serviceaccount=$HOME_NS:$AGENT-restore
  refused "a binding outside of what restores made" "only in namespaces that restores made" k b --as=$restore -n kube-system create rolebinding x --clusterrole=$AGENT-restore --serviceaccount=$HOME_NS:$AGENT-restore
  refused "a token of another account" "cannot create resource" k a --as=$own -n $HOME_NS create token default
  refused "the coordinators' keys, to the agent" "cannot get resource" k a --as=$own -n $HOME_NS get secret keys

  say "a right that is taken away is a gap of the site, with its rule; helm upgrade gives it back and keeps the site"
  id=$(known a '.id')
  k a get clusterrole $AGENT-save -o json | jq '(.rules[] | select(.resources | index("limitranges")) | .resources) -= ["limitranges"]' | k a apply -f - >/dev/null 2>&1
  k a -n $HOME_NS rollout restart deployment/$AGENT >/dev/null
  until_so 90 "the gap" known a '.state == "limited" and (.why + (.report.missing | join(" ")) | contains("may not list limitranges in namespace '"$CLOSED, $SHOP"': add {apiGroups: [\"\"], resources: [\"limitranges\"], verbs: [\"list\"]} to cluster role '"$AGENT-save"'"))'
  known a '.report.missing[]'
  # No token is given any more, and the agents are two.
  k a -n $HOME_NS delete secret join >/dev/null
  h a upgrade $AGENT "$TOP/charts/ocopea-agent" -f "$STATE/agent-a.yaml" --set "save.namespaces={$SHOP}" --set replicas=2 --wait --timeout 2m >/dev/null
  until_so 90 "the site without a gap" known a '.state == "ready"'
  [ "$(known a '.id')" = "$id" ] || die "the upgrade made another site of it"
  [ "$(k a -n $HOME_NS get deployment $AGENT -o jsonpath='{.status.readyReplicas}')" = 2 ] || die "there are not two agents"
  ocopea save a/$SHOP --name "after the upgrade" >/dev/null
  said=$(ocopea images -o name | sort)
  h a upgrade $NAME-ocopea "$TOP/charts/ocopea" -f "$STATE/coordinator.yaml" --set log=debug --wait --timeout 2m >/dev/null
  [ "$(ocopea images -o name | sort)" = "$said" ] || die "after the coordinators' upgrade there are other images than before"

  ocopea remove $COPY
  ! k b get namespace $COPY >/dev/null 2>&1 || die "namespace $COPY is still there"
  ocopea repository verify
}

case $mode in
down) down ;;
try) journey ;;
up)
  up
  cat <<T

It stands.
  use it       export XDG_CONFIG_HOME=$XDG_CONFIG_HOME SSL_CERT_FILE=$SSL_CERT_FILE; alias ocopea="$OCOPEA --url $AT"; ocopea sites
  clusters     export KUBECONFIG=$KUBECONFIG; kubectl --context a -n $HOME_NS get pods
  remove it    tests/kubernetes.sh down
T
  ;;
run)
  [ ! -d "$STATE" ] || down
  trap 'status=$?; [ $status = 0 ] || say "it is left standing; tests/kubernetes.sh down removes it"; exit $status' EXIT
  up
  journey
  down
  left=$(for c in a b; do k $c get clusterroles,clusterrolebindings,namespaces,validatingadmissionpolicies -o name | grep "/$NAME-" || true; done)
  [ -z "$left" ] || die "something is left: $left"
  say "nothing is left"
  ;;
esac
