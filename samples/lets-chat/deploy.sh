#!/bin/bash
# deploy.sh --context C --namespace N --registry HOST/PATH [--shape mongodb|postgres] [--version 1.4.1|1.4.2|1.5.0]
#           [--database IMAGE] [--pull-auth FILE] [--print]
# Deploys Lets-chat with kubectl and waits until it is ready. --database: the database server's image, by default
# testbed/mongodb:6 or testbed/postgres:15 of the same registry. --pull-auth: a Docker configuration with the registry's
# password, for the nodes. --print: only the manifests. KUBECTL names another kubectl.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
context= namespace= registry= shape=mongodb version=1.4.1 database_image= pull_auth= print=false
usage() { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --context) context=$2; shift 2 ;;
    --namespace) namespace=$2; shift 2 ;;
    --registry) registry=${2#http://}; shift 2 ;;
    --shape) shape=$2; shift 2 ;;
    --version) version=$2; shift 2 ;;
    --database) database_image=${2#http://}; shift 2 ;;
    --pull-auth) pull_auth=$2; shift 2 ;;
    --print) print=true; shift ;;
    *) usage ;;
  esac
done
[ -n "$context" ] && [ -n "$namespace" ] && [ -n "$registry" ] || usage
case $shape in mongodb) image=mongodb:6 database=mongo ;; postgres) image=postgres:15 database=postgres ;; *) usage ;; esac
case $version in 1.4.1 | 1.4.2 | 1.5.0) ;; *) usage ;; esac
k() { "${KUBECTL:-kubectl}" --context "$context" -n "$namespace" "$@"; }

# A password is made once, with the first deployment; later ones keep it.
password=$(k get secret lets-chat-db -o jsonpath='{.data.password}' 2>/dev/null | base64 -d || true)
[ -n "$password" ] || password=$(od -An -N18 -tx1 /dev/urandom | tr -d ' \n')
manifests=$(cat "$here/kubernetes/$shape.yaml")
# fill NAME VALUE: puts VALUE in the place of ${NAME}
fill() { manifests=${manifests//"\${$1}"/"$2"}; }
fill LETS_CHAT_IMAGE "${registry%/}/lets-chat:$version"
fill DATABASE_IMAGE "${database_image:-${registry%%/*}/testbed/$image}"
fill DATABASE_PASSWORD "$password"
fill VERSION_NAME "${version//./-}"
fill VERSION "$version"
if [ $print = true ]; then printf '%s\n' "$manifests"; exit 0; fi

k get namespace "$namespace" >/dev/null 2>&1 || k create namespace "$namespace" >/dev/null
if [ -n "$pull_auth" ]; then
  k create secret generic registry --type=kubernetes.io/dockerconfigjson --from-file=.dockerconfigjson="$pull_auth" \
    --dry-run=client -o yaml | k apply -f - >/dev/null
  # The cluster makes the account a moment after the namespace.
  for _ in $(seq 100); do ! k get serviceaccount default >/dev/null 2>&1 || break; sleep 0.2; done
  k patch serviceaccount default -p '{"imagePullSecrets": [{"name": "registry"}]}' >/dev/null
fi
printf '%s\n' "$manifests" | k apply -f -
k rollout status --timeout=180s "statefulset/$database"
k wait --timeout=180s --for=condition=complete "job/lets-chat-migrate-${version//./-}"
k rollout status --timeout=180s deployment/lets-chat
port=$(k get service lets-chat -o jsonpath='{.spec.ports[0].nodePort}')
address=$(k get nodes -o jsonpath='{.items[0].status.addresses[?(@.type=="InternalIP")].address}')
echo "Lets-chat $version ($shape) at http://$address:$port/"
