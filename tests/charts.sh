#!/bin/bash
# charts.sh [write]: what can be said of the charts without a cluster: they pass helm's lint, their schemas refuse what is wrong,
# and the rights that they give are those of charts/ocopea-agent/rbac.golden.yaml (`write` writes that file: read the
# difference before you commit it).
. "$(dirname "$0")/testbed/lib.sh"
PATH=$CACHE/bin:$PATH
"$HERE/prereqs.sh" helm
cd "$TOP/charts"
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
cat >"$W/ocopea.yaml" <<'T'
image: {repository: registry.example/ocopea/ocopea}
publicUrl: https://ocopea.example
tls: {existingSecret: tls}
catalog: {url: "postgres://ocopea@db.example/ocopea", existingSecret: catalog}
repository: {url: "s3://copies/team?region=eu-west-1", existingSecret: bucket}
keys: {existingSecret: keys}
broker: {url: "amqps://rabbit.example/ocopea", existingSecret: broker, management: "https://rabbit.example:15671"}
T
cat >"$W/ocopea-agent.yaml" <<'T'
image: {repository: registry.example/ocopea/ocopea}
coordinator: {url: "https://ocopea.example"}
join: {existingSecret: join}
save: {namespaces: [shop, books]}
T
render() { local chart=$1; shift; helm template ocopea-agent "$chart" --namespace ocopea --kube-version 1.33.0 -f "$W/$chart.yaml" "$@"; }
for chart in ocopea ocopea-agent; do
  helm lint --strict --quiet "$chart" -f "$W/$chart.yaml"
  render "$chart" >"$W/$chart.out"
done

# refused CHART VALUE WORDS: a value that helm must not take
refused() {
  local said
  if said=$(render "$1" --set "$2" 2>&1); then die "chart $1 takes $2"; fi
  grep -qF -- "$3" <<<"$said" || die "chart $1 refuses $2 in other words" "$said"
}
refused ocopea-agent save.namespaces={Shop} pattern
refused ocopea-agent 'save.namespaces={*}' pattern
refused ocopea-agent restore.namespaces=everywhere "must be one of"
refused ocopea-agent copies=0 minimum
refused ocopea-agent unknown=1 "not allowed"
refused ocopea-agent 'save.extraRules[0].apiGroups={*},save.extraRules[0].resources={things},save.extraRules[0].verbs={list}' pattern
refused ocopea-agent 'restore.extraRules[0].apiGroups={x.dev},restore.extraRules[0].resources={things},restore.extraRules[0].verbs={escalate}' "must be one of"
refused ocopea-agent image.repository= "image.repository is missing"
refused ocopea-agent image.digest=sha256:1 pattern
refused ocopea catalog.url=postgres://user:password@db/ocopea pattern
refused ocopea broker.url=amqps://user:password@rabbit/ocopea pattern
refused ocopea tls.existingSecret= "tls.existingSecret is missing"
refused ocopea keys.existingSecret= "keys.existingSecret is missing"

# Pods as restricted namespaces take them.
for chart in ocopea ocopea-agent; do
  for line in 'runAsNonRoot: true' 'seccompProfile: {type: RuntimeDefault}' 'allowPrivilegeEscalation: false' 'readOnlyRootFilesystem: true' 'capabilities: {drop: \[ALL\]}'; do
    grep -q -- "$line" "$W/$chart.out" || die "chart $chart lost $line"
  done
done

render ocopea-agent -s templates/accounts.yaml -s templates/roles.yaml -s templates/namespaces.yaml >"$W/rbac"
golden=ocopea-agent/rbac.golden.yaml
if [ "${1:-}" = write ]; then cp "$W/rbac" $golden; fi
diff -u $golden "$W/rbac" || die "the charts give other rights than $golden says" "when that is meant: tests/charts.sh write, and read the difference"
if grep -nE '^ *(apiGroups|resources|verbs):.*("\*"|[[ ]\*)' $golden; then die "there is a wildcard among the rights"; fi
if grep -nE '\b(escalate|impersonate)\b' $golden; then die "nobody may escalate or impersonate"; fi
[ "$(grep -c '\[bind\]' $golden)" = 1 ] || die "bind is there more than once"
helm template x ocopea-agent --namespace ocopea --kube-version 1.33.0 -f "$W/ocopea-agent.yaml" --set restore.namespaces=none >"$W/none"
if grep -q '\[bind\]' "$W/none"; then die "a site that makes no namespaces may bind"; fi
say "the charts are sound"
