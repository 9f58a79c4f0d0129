#!/bin/bash
# site.sh up|control|node|proxy|dns|storage|healthy|exec|k NAME N [ARG...]
# One site = one set of namespaces (mount, net, pid, uts, ipc) with one Kubernetes cluster in it. Every verb that starts
# something starts only what doesn't run yet. State lies under $TESTBED/sites/NAME; programs and the node's first
# images under $CACHE. REGISTRIES: plain-HTTP registries (host:port) that the node may pull from.
. "$(dirname "$0")/lib.sh"
. "$HERE/clean.sh"
act=$1 name=$2 number=$3; shift 3
state=$TESTBED/sites/$name bin=$CACHE/bin pki=$TESTBED/sites/$name/pki
node_ip=172.31.0.$number pods=10.24$number.0.0/24 services=10.9$number.0.0/16

inside() { nsenter -t "$(cat "$state/pid")" -m -n -p -u -i -- "$@"; }
declare -A programs=([etcd]=$bin/etcd [apiserver]=$bin/kube-apiserver [kcm]=$bin/kube-controller-manager
  [scheduler]=$bin/kube-scheduler [containerd]=$(command -v containerd) [kubelet]=$bin/kubelet [proxy]=$bin/kube-proxy
  [coredns]=$bin/coredns [local-path]=$bin/local-path-provisioner)
# running COMPONENT: whether its program runs, by the site's own /proc: a file with a number would be a second truth.
running() { grep -qzFx -- "${programs[$1]}" "/proc/$(cat "$state/pid")/root/proc"/[0-9]*/cmdline 2>/dev/null; }
# start COMPONENT ARG...: a daemon inside the site, unless it runs; it belongs to the site's pid 1
start() {
  local component=$1; shift
  if running "$component"; then return 0; fi
  inside setsid -f "${programs[$component]}" "$@" >>"$state/log/$component.log" 2>&1 </dev/null
}

up() {
  local cgroup dir child
  mkdir -p "$state"/{log,etcd,kubelet,containerd,cni,podlogs,containers,cninet}
  # No container is left of an earlier life, so no pod address is taken.
  rm -rf "$state/cni/networks" "$state/ready" "$state"/log/*.log
  "$HERE/pki.sh" "$pki" "$node_ip" "10.9$number.0.1"
  mkdir -p /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers /etc/cni/net.d
  cgroup=$(cgroup_of "$name")
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p "/sys/fs/cgroup/$cgroup"
  else
    for dir in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
      if [ -d "/sys/fs/cgroup/$dir" ]; then mkdir -p "/sys/fs/cgroup/$dir/$cgroup"; fi
    done
  fi
  setsid unshare --mount --net --pid --uts --ipc --fork --mount-proc --kill-child \
    "$HERE/site-init.sh" "$state" "$name" "$node_ip" </dev/null >"$state/log/init.log" 2>&1 &
  child=$!
  for _ in $(seq 200); do
    if [ -e "$state/ready" ] && pgrep -P $child >"$state/pid"; then return; fi
    sleep 0.05
  done
  cat "$state/log/init.log" >&2
  die "the namespaces of site $name could not be made (see above)"
}

control() {
  local server=https://127.0.0.1:6443 who
  for who in admin kcm sched proxy dns; do "$HERE/kubeconfig.sh" $server "$pki/ca.crt" $who-token >"$state/$who.kubeconfig"; done
  "$HERE/kubeconfig.sh" $server "$pki/ca.crt" "cert:$pki/kubelet.crt:$pki/kubelet.key" >"$state/kubelet.kubeconfig"
  # What a process that is killed had written is there all the same; only the machine's own end would lose it.
  start etcd --name e --data-dir "$state/etcd" --log-level warn --unsafe-no-fsync \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster e=http://127.0.0.1:2380
  start apiserver --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --bind-address=0.0.0.0 --advertise-address="$node_ip" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" --token-auth-file="$pki/tokens.csv" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
    --service-cluster-ip-range="$services" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --kubelet-preferred-address-types=InternalIP --kubelet-certificate-authority="$pki/ca.crt" \
    --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" --kubelet-client-key="$pki/apiserver-kubelet-client.key" \
    --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy-client --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --requestheader-group-headers=X-Remote-Group --requestheader-username-headers=X-Remote-User \
    --proxy-client-cert-file="$pki/proxy-client.crt" --proxy-client-key-file="$pki/proxy-client.key"
  start kcm --kubeconfig="$state/kcm.kubeconfig" --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" \
    --use-service-account-credentials=true --leader-elect=false --cluster-cidr="$pods" --allocate-node-cidrs=false --bind-address=127.0.0.1 \
    --node-monitor-grace-period=12s --node-monitor-period=1s --kube-api-qps=200 --kube-api-burst=400
  start scheduler --kubeconfig="$state/sched.kubeconfig" --leader-elect=false --bind-address=127.0.0.1
}

node_files() {
  cat >"$state/containerd.toml" <<T
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$state/registries"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "$(command -v runc)"
T
  cat >"$state/cninet/10-bridge.conflist" <<T
{"cniVersion": "0.4.0", "name": "$name", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
T
  cat >"$state/kubelet.yaml" <<T
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /$(cgroup_of "$name")
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
tlsCertFile: $pki/kubelet.crt
tlsPrivateKeyFile: $pki/kubelet.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
enforceNodeAllocatable: []
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
imagePullCredentialsVerificationPolicy: NeverVerify
makeIPTablesUtilChains: false
clusterDomain: cluster.local
clusterDNS: [$node_ip]
resolvConf: ""
maxPods: 150
serializeImagePulls: false
nodeStatusUpdateFrequency: 5s
T
  local registry
  for registry in ${REGISTRIES:-$REGISTRY}; do
    mkdir -p "$state/registries/$registry"
    printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$registry" "$registry" >"$state/registries/$registry/hosts.toml"
  done
}

# A kubelet on a full disk throws images away, these, too.
has_images() { [ "$(inside ctr -n k8s.io images ls -q | grep -cxE 'localhost/(pause|busybox):1')" = 2 ]; }

node() {
  local image
  if ! running kubelet; then node_files; fi
  start containerd --config "$state/containerd.toml"
  wait_for "site $name: containerd is ready" 20 inside ctr version || { tail -5 "$state/log/containerd.log" >&2; die "containerd of site $name does not answer (see above)"; }
  if [ "$(cat "$state/imported" 2>/dev/null)" != "$(cat "$CACHE/img/node.key")" ] || ! has_images; then
    for image in pause busybox; do inside ctr -n k8s.io images import "$CACHE/img/$image.tar" >>"$state/log/import.log"; done
    cp "$CACHE/img/node.key" "$state/imported"
  fi
  start kubelet --config="$state/kubelet.yaml" --kubeconfig="$state/kubelet.kubeconfig" --hostname-override=node1 --node-ip="$node_ip" --v=2
}

proxy() {
  start proxy --kubeconfig="$state/proxy.kubeconfig" --proxy-mode=nftables --cluster-cidr="$pods" --hostname-override=node1 \
    --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0
}

kubectl() { inside "$bin/kubectl" --kubeconfig="$state/admin.kubeconfig" "$@"; }

dns() { # on the node's own address, with rights of its own, outside any pod
  if running coredns; then return; fi
  cat >"$state/Corefile" <<T
.:53 {
  bind $node_ip
  errors
  health 127.0.0.1:8080
  ready 127.0.0.1:8181
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $state/dns.kubeconfig c
    pods insecure
  }
  cache 5
}
T
  kubectl apply -f - >/dev/null <<T
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{kind: User, name: coredns, apiGroup: rbac.authorization.k8s.io}]
T
  start coredns -conf "$state/Corefile"
}

storage() { # a default StorageClass with dynamic volumes, by local-path-provisioner beside the control plane
  if running local-path; then return; fi
  mkdir -p "$state/volumes"
  cat >"$state/local-path.json" <<T
{"nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": ["$state/volumes"]}]}
T
  cat >"$state/helper-pod.yaml" <<T
apiVersion: v1
kind: Pod
metadata: {name: helper-pod}
spec:
  priorityClassName: system-node-critical
  tolerations: [{key: node.kubernetes.io/disk-pressure, operator: Exists, effect: NoSchedule}]
  containers: [{name: helper-pod, image: "localhost/busybox:1"}]
T
  kubectl apply -f - >/dev/null <<T
apiVersion: v1
kind: Namespace
metadata: {name: local-path-storage}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: local-path-provisioner-service-account, namespace: local-path-storage}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: local-path-config, namespace: local-path-storage}
data:
  config.json: '$(cat "$state/local-path.json")'
  setup: |
    #!/bin/sh
    set -eu
    mkdir -m 0777 -p "\$VOL_DIR"
  teardown: |
    #!/bin/sh
    set -eu
    rm -rf "\$VOL_DIR"
  helperPod.yaml: |
$(sed 's/^/    /' "$state/helper-pod.yaml")
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local-path, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: rancher.io/local-path
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Delete
T
  start local-path start --config "$state/local-path.json" --kubeconfig "$state/admin.kubeconfig" \
    --helper-image localhost/busybox:1 --helper-pod-file "$state/helper-pod.yaml" --namespace local-path-storage
}

healthy() {
  local component
  alive "$name" || return 1
  for component in "${!programs[@]}"; do running "$component" || return 1; done
  has_images && api_ready "$name"
}

case $act in
up | control | node | proxy | dns | storage | healthy) "$act" ;;
exec) inside "$@" ;;
k) kubectl "$@" ;;
*) die "site.sh: no verb is called $act" ;;
esac
