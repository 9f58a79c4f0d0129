#!/bin/bash
# build.sh: the programs of the testbed into $CACHE/bin, built once per go.sum (about six minutes on two cores, cold)
. "$(dirname "$0")/lib.sh"
export PATH="$CACHE:$PATH"
mkdir -p "$CACHE/bin"
key=$(hash_of "$HERE/hyper")
if [ "$(cat "$CACHE/bin/hyper.key" 2>/dev/null)" != "$key" ] || [ ! -x "$CACHE/bin/hyper" ]; then
  say "building Kubernetes (once; about six minutes on two cores when nothing is cached)"
  (cd "$HERE/hyper" && V=$(go list -m -f '{{.Version}}' k8s.io/kubernetes) && P=k8s.io/component-base/version &&
    CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X $P.gitVersion=$V -X $P.gitMajor=1 -X $P.gitMinor=$(cut -d. -f2 <<<"$V")" -o "$CACHE/bin/hyper.new" .)
  mv "$CACHE/bin/hyper.new" "$CACHE/bin/hyper"
  for c in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl coredns; do ln -sf hyper "$CACHE/bin/$c"; done
  echo "$key" > "$CACHE/bin/hyper.key"
fi
provisioner=v0.0.30
if [ "$(cat "$CACHE/bin/local-path-provisioner.key" 2>/dev/null)" != "$provisioner" ]; then
  say "building local-path-provisioner $provisioner"
  CGO_ENABLED=0 GOBIN="$CACHE/bin" go install -trimpath "github.com/rancher/local-path-provisioner@$provisioner"
  echo "$provisioner" > "$CACHE/bin/local-path-provisioner.key"
fi
