#!/bin/bash
# deploy.sh --context C --namespace N --registry HOST/PATH [--shape mongodb|postgres] [--version 1.4.1|1.4.2|1.5.0]
#           [--servers HOST/PATH] [--print]
# Deploys Lets-chat with kubectl and waits until it is ready. --servers: where the database's image lies (mongodb:6 or
# postgres:15), by default /testbed of the same registry. --print: only the manifests. KUBECTL names another kubectl.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
context= namespace= registry= shape=mongodb version=1.4.1 servers= print=false
usage() { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --context) context=$2; shift 2 ;;
    --namespace) namespace=$2; shift 2 ;;
    --registry) registry=${2#http://}; shift 2 ;;
    --shape) shape=$2; shift 2 ;;
    --version) version=$2; shift 2 ;;
    --servers) servers=${2#http://}; shift 2 ;;
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
export LETS_CHAT_IMAGE=${registry%/}/lets-chat:$version DATABASE_PASSWORD=$password VERSION=$version VERSION_NAME=${version//./-}
servers=${servers:-${registry%%/*}/testbed}
export DATABASE_IMAGE=${servers%/}/$image
# shellcheck disable=SC2016 # the names are for envsubst, not for the shell
manifests=$(envsubst '$LETS_CHAT_IMAGE $DATABASE_IMAGE $DATABASE_PASSWORD $VERSION $VERSION_NAME' < "$here/kubernetes/$shape.yaml")
if [ $print = true ]; then printf '%s\n' "$manifests"; exit 0; fi

k get namespace "$namespace" >/dev/null 2>&1 || k create namespace "$namespace" >/dev/null
printf '%s\n' "$manifests" | k apply -f -
k rollout status --timeout=180s "statefulset/$database"
k wait --timeout=180s --for=condition=complete "job/lets-chat-migrate-$VERSION_NAME"
k rollout status --timeout=180s deployment/lets-chat
port=$(k get service lets-chat -o jsonpath='{.spec.ports[0].nodePort}')
address=$(k get nodes -o jsonpath='{.items[0].status.addresses[?(@.type=="InternalIP")].address}')
echo "Lets-chat $version ($shape) at http://$address:$port/"
