#!/bin/bash
# build.sh: the testbed's programs into $CACHE/bin, once per content of hyper/ (about six minutes on two cores, cold)
. "$(dirname "$0")/lib.sh"
key=$(hash_of "$HERE/hyper")
there() { [ -x "$CACHE/hyper/$key/hyper" ] && [ "$(readlink "$CACHE/bin/hyper")" = "../hyper/$key/hyper" ] && [ "$(readlink "$CACHE/bin/local-path-provisioner")" = "../hyper/$key/local-path-provisioner" ]; }
if there; then exit 0; fi
alone "$CACHE/build.lock" "$@"
mkdir -p "$CACHE/bin" "$CACHE/hyper/$key"
if [ ! -x "$CACHE/hyper/$key/hyper" ] || [ ! -x "$CACHE/hyper/$key/local-path-provisioner" ]; then
  say "building Kubernetes (once; about six minutes on two cores when nothing is cached)"
  cd "$HERE/hyper"
  version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
  minor=$(cut -d. -f2 <<<"$version") package=k8s.io/component-base/version
  build() { CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $3" -o "$CACHE/hyper/$key/new" "$2"; mv "$CACHE/hyper/$key/new" "$CACHE/hyper/$key/$1"; }
  build hyper . "-X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
  # A tool of the same module: most of what it consists of is built by now.
  build local-path-provisioner github.com/rancher/local-path-provisioner ""
  say "built Kubernetes $version"
  # Other checkouts may be at another content; more than three were never seen to be worth their space.
  find "$CACHE/hyper" -mindepth 1 -maxdepth 1 -printf '%T@ %p\n' | sort -rn | awk 'NR > 3 {print $2}' | xargs -r rm -rf
fi
ln -sfn "../hyper/$key/hyper" "$CACHE/bin/hyper"
for c in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl coredns; do ln -sfn hyper "$CACHE/bin/$c"; done
ln -sfn "../hyper/$key/local-path-provisioner" "$CACHE/bin/local-path-provisioner"
