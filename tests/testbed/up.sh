#!/bin/bash
# up.sh: two clusters, joined, with volumes, a registry, and this host on their network. Starts what doesn't run, and
# only that: doing it again does nothing, and after a kill of anything it mends what is missing.
# OCOPEA_TESTBED_TAKE=yes (or CI=true): stops another checkout's testbed first.
. "$(dirname "$0")/lib.sh"
. "$HERE/clean.sh"

joined() { ip link show whost >/dev/null 2>&1 && nsenter -t "$(cat "$TESTBED/sites/a/pid")" -n ip link show w2 >/dev/null 2>&1; }
healthy() {
  local s pids=()
  [ "$(cat $OWNER 2>/dev/null)" = "$TESTBED" ] && [ -s "$TESTBED/kubeconfig" ] || return 1
  for s in "${SITES[@]}"; do site healthy "$s" & pids+=($!); done
  for s in "${pids[@]}"; do wait "$s" || return 1; done
  joined && curl -sf -m 2 -o /dev/null "http://$REGISTRY/v2/"
}
summary() {
  cat <<T

  kubeconfig  $TESTBED/kubeconfig   (contexts: ${SITES[*]})
  registry    http://$REGISTRY
  try         KUBECONFIG=$TESTBED/kubeconfig $CACHE/bin/kubectl --context a get pods -A
  next        make testbed-images, make demo or make test; make testbed-down stops it
T
}

if [ "$(id -u)" = 0 ] && healthy; then say "the testbed is up"; summary; exit 0; fi
# Built by the one who asks, so that their caches stay theirs; then on as root.
if [ -z "${OCOPEA_ALONE:-}" ]; then "$HERE/prereqs.sh" go testbed; "$HERE/build.sh"; "$HERE/node-images.sh"; fi
need_root "$@"
alone /run/lock/ocopea-testbed.lock "$@"
if healthy; then say "the testbed is up"; summary; exit 0; fi

# One testbed a machine: its addresses are fixed.
owner=$(cat $OWNER 2>/dev/null || true)
if [ -n "$owner" ] && [ "$owner" != "$TESTBED" ]; then
  if [ -d "$owner" ] && (TESTBED=$owner somebody_runs) && [ "${OCOPEA_TESTBED_TAKE:-}" != yes ] && [ "${CI:-}" != true ]; then
    die "another checkout runs its testbed here: $owner" "stop it: TESTBED=$owner $HERE/down.sh" "or take its place: OCOPEA_TESTBED_TAKE=yes make testbed"
  fi
  say "taking over from $owner"
  (TESTBED=$owner; clean_all)
fi
foreign=$(ip -4 route show match 172.31.0.1 | grep -v -e '^default' -e 'dev whost' || true)
[ -z "$foreign" ] || die "this machine's network already has a route to 172.31.0.0/24, which the testbed uses: $foreign" "use clusters of your own: make demo SITES=context1,context2 REGISTRY=HOST/PATH"

mkdir -p "$TESTBED/log" "$TESTBED/registry"; echo "$TESTBED" >$OWNER
say "starting what does not run"

# both FUNCTION: for both sites at once; fails when one does
both() {
  local s pids=()
  for s in "${SITES[@]}"; do "$1" "$s" & pids+=($!); done
  for s in "${pids[@]}"; do wait "$s" || die "the testbed did not come up (see above)" "look into $TESTBED/sites/*/log/, then make testbed-clean testbed"; done
}
begin() {
  if ! alive "$1"; then clean_site "$1"; site up "$1"; fi
  site control "$1"
  site node "$1" & site proxy "$1"; wait $!
}
finish() {
  local s=$1 log=$TESTBED/sites/$1/log
  needs() { wait_for "cluster $s: $1" 120 "${@:3}" || { tail -5 "$log/$2.log" >&2; die "cluster $s: not $1 within 120 s" "look into $log/"; }; }
  node_ready() { api "$1" /api/v1/nodes/node1 | jq -e '.status.conditions[] | select(.type == "Ready") | .status == "True"'; }
  needs "API server ready" apiserver api_ready "$s"
  site dns "$s" & site storage "$s"; wait $!
  needs "node ready" kubelet node_ready "$s"
  needs "DNS ready" coredns site exec "$s" curl -sf -m 1 http://127.0.0.1:8181/ready
  needs "service accounts ready" kcm api "$s" /api/v1/namespaces/default/serviceaccounts/default
}
# The WAN: one veth pair joins the two sites' bridges; this host joins at 172.31.0.254, with routes to pods and services.
join() {
  local a b n
  a=$(cat "$TESTBED/sites/a/pid") b=$(cat "$TESTBED/sites/b/pid")
  nsenter -t "$a" -n ip link del w2 2>/dev/null || true
  nsenter -t "$a" -n ip link add w2 type veth peer name w1 netns "$b"
  nsenter -t "$a" -n ip link set w2 master wan0 up
  nsenter -t "$b" -n ip link set w1 master wan0 up
  for n in "$a 2" "$b 1"; do
    nsenter -t "${n% *}" -n ip route replace "10.24${n#* }.0.0/24" via "172.31.0.${n#* }"
    nsenter -t "${n% *}" -n ip route replace "10.9${n#* }.0.0/16" via "172.31.0.${n#* }"
  done
  ip link del whost 2>/dev/null || true
  ip link add whost type veth peer name whost0 netns "$a"
  nsenter -t "$a" -n ip link set whost0 master wan0 up
  ip addr add 172.31.0.254/24 dev whost; ip link set whost up
  for n in 1 2; do ip route replace "10.24$n.0.0/24" via "172.31.0.$n"; ip route replace "10.9$n.0.0/16" via "172.31.0.$n"; done
}
registry() {
  [ -z "$(registry_pids)" ] || return 0
  cat >"$TESTBED/registry.yaml" <<T
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $TESTBED/registry}, delete: {enabled: true}}
http: {addr: "$REGISTRY"}
T
  setsid -f docker-registry serve "$TESTBED/registry.yaml" >"$TESTBED/log/registry.log" 2>&1 </dev/null
}

both begin
joined || join
registry
both finish
wait_for "registry ready" 20 curl -sf -m 2 "http://$REGISTRY/v2/" || { tail -5 "$TESTBED/log/registry.log" >&2; die "the registry did not come up (see above)"; }
"$HERE/kubeconfigs.py" "a=https://172.31.0.1:6443=$TESTBED/sites/a/pki/ca.crt" "b=https://172.31.0.2:6443=$TESTBED/sites/b/pki/ca.crt" >"$TESTBED/kubeconfig.new"
chmod 600 "$TESTBED/kubeconfig.new"; give_back "$TESTBED/kubeconfig.new"; mv "$TESTBED/kubeconfig.new" "$TESTBED/kubeconfig"
say "the testbed is up"
summary
