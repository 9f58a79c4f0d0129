#!/bin/bash
# up.sh: two clusters, joined, with volumes, a registry, and this host on their network. Doing it again does nothing.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || die "the testbed needs root (namespaces, mounts, network)" "run: sudo make testbed, or use clusters of your own: make demo SITES=context1,context2 REGISTRY=HOST/PATH"
exec 9>/run/lock/ocopea-testbed.lock; flock 9
owner=$(cat /run/ocopea-testbed.owner 2>/dev/null || true)
if [ -n "$owner" ] && [ "$owner" != "$TESTBED" ]; then
  for s in "${SITES[@]}"; do
    if [ -s "$owner/sites/$s/pid" ] && kill -0 "$(cat "$owner/sites/$s/pid")" 2>/dev/null; then
      die "another checkout runs its testbed here: $owner" "stop it: TESTBED=$owner $HERE/down.sh"
    fi
  done
  [ -d "$owner" ] && TESTBED=$owner "$HERE/down.sh" 9>&-
fi
healthy() {
  for s in "${SITES[@]}"; do
    alive "$s" && curl -s -m 2 --cacert "$TESTBED/sites/$s/pki/ca.crt" "https://172.31.0.$(number_of "$s"):6443/readyz" 2>/dev/null | grep -q '^ok' || return 1
  done
  curl -s -m 2 -o /dev/null "http://$REGISTRY/v2/"
}
summary() {
  echo
  echo "  kubeconfig  $TESTBED/kubeconfig   (contexts: ${SITES[*]})"
  echo "  registry    http://$REGISTRY"
  echo "  try         KUBECONFIG=$TESTBED/kubeconfig $CACHE/bin/kubectl --context a get pods -A"
  echo "  stop        make testbed-down"
}
if healthy; then echo "the testbed is up"; summary; exit 0; fi
"$HERE/prereqs.sh" go testbed
"$HERE/build.sh"
"$HERE/node-images.sh"
"$HERE/down.sh" quiet 9>&-
mkdir -p "$TESTBED/log" "$TESTBED/registry"; echo "$TESTBED" > /run/ocopea-testbed.owner
say "starting two clusters"
export IMAGES=busybox REGISTRIES=$REGISTRY
for s in "${SITES[@]}"; do site up "$s" 9>&-; done
for s in "${SITES[@]}"; do { site control "$s" && site node "$s" && site proxy "$s"; } 9>&- & done; wait
# The WAN: one veth pair joins the two sites' bridges; this host joins at 172.31.0.254.
pa=$(cat "$TESTBED/sites/a/pid") pb=$(cat "$TESTBED/sites/b/pid")
nsenter -t "$pa" -n ip link add w2 type veth peer name w1 netns "$pb"
nsenter -t "$pa" -n ip link set w2 master wan0 up
nsenter -t "$pb" -n ip link set w1 master wan0 up
for pair in "$pa 2" "$pb 1"; do
  set -- $pair
  nsenter -t "$1" -n ip route replace "10.24$2.0.0/24" via "172.31.0.$2"
  nsenter -t "$1" -n ip route replace "10.9$2.0.0/16" via "172.31.0.$2"
done
ip link add whost type veth peer name whost0 netns "$pa"
nsenter -t "$pa" -n ip link set whost0 master wan0 up
ip addr add 172.31.0.254/24 dev whost; ip link set whost up
for n in 1 2; do ip route replace "10.24$n.0.0/24" via "172.31.0.$n"; ip route replace "10.9$n.0.0/16" via "172.31.0.$n"; done
cat > "$TESTBED/registry.yaml" <<T
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $TESTBED/registry}, delete: {enabled: true}}
http: {addr: "$REGISTRY"}
T
setsid -f docker-registry serve "$TESTBED/registry.yaml" >"$TESTBED/log/registry.log" 2>&1 </dev/null 9>&-
wait_for() { # WHAT SECONDS COMMAND...
  local what=$1 left=$(($2 * 10)); shift 2
  until "$@" >/dev/null 2>&1; do left=$((left - 1)); [ $left -gt 0 ] || die "$what did not come up" "look into $TESTBED/sites/*/log/"; sleep 0.1; done
  say "$what"
}
api_ready() { curl -s -m 2 --cacert "$TESTBED/sites/$1/pki/ca.crt" "https://172.31.0.$(number_of "$1"):6443/readyz" | grep -q '^ok'; }
node_ready() { site k "$1" get node node1 -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}' | grep -q True; }
dns_ready() { site exec "$1" curl -s -m 1 http://127.0.0.1:8181/ready | grep -q OK; }
for s in "${SITES[@]}"; do
  wait_for "cluster $s: API server ready" 120 api_ready "$s"
done
for s in "${SITES[@]}"; do { site dns "$s"; site storage "$s"; } 9>&- & done; wait
for s in "${SITES[@]}"; do
  wait_for "cluster $s: node ready" 120 node_ready "$s"
  wait_for "cluster $s: DNS ready" 60 dns_ready "$s"
  wait_for "cluster $s: service accounts ready" 60 site k "$s" get serviceaccount default
done
wait_for "registry ready" 20 curl -sf -m 2 "http://$REGISTRY/v2/"
python3 - "$TESTBED" > "$TESTBED/kubeconfig.new" <<'T'
import base64, json, sys
top = sys.argv[1]
sites = {"a": 1, "b": 2}
ca = lambda s: base64.b64encode(open(f"{top}/sites/{s}/pki/ca.crt", "rb").read()).decode()
print(json.dumps({
    "apiVersion": "v1", "kind": "Config", "current-context": "a",
    "clusters": [{"name": s, "cluster": {"server": f"https://172.31.0.{n}:6443", "certificate-authority-data": ca(s)}} for s, n in sites.items()],
    "users": [{"name": f"admin-{s}", "user": {"token": "admin-token"}} for s in sites],
    "contexts": [{"name": s, "context": {"cluster": s, "user": f"admin-{s}"}} for s in sites]}, indent=1))
T
chmod 600 "$TESTBED/kubeconfig.new"; mv "$TESTBED/kubeconfig.new" "$TESTBED/kubeconfig"
say "the testbed is up"
summary
