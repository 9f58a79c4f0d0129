#!/bin/bash
# site.sh up|control|node|proxy|dns|storage|exec|k NAME N [ARG...]: one site = one set of namespaces (mount, net, pid, uts, ipc)
# IMAGES: OCI archives of img/ to import; REGISTRIES: plain-HTTP registries (host:port) that the node may pull from.
# State lies under $TESTBED/sites/NAME; programs and the nodes' own images under $CACHE.
set -e
ACT=$1; NAME=$2; N=$3; shift 3 || true
HERE=$(cd "$(dirname "$0")" && pwd); TB=$(realpath -m "${TESTBED:?}"); CACHE=${CACHE:?}
S=$TB/sites/$NAME; B=$CACHE/bin
NODEIP=172.31.0.$N; POD=10.24$N.0.0/24; SVC=10.9$N.0.0/16; SVC1=10.9$N.0.1
CTRD=${CTRD:-/usr/bin/containerd}
ns() { nsenter -t "$(cat $S/pid)" -m -n -p -u -i -- "$@"; }
# start LOG COMMAND...: a daemon inside the site; it belongs to the site's pid 1
start() { local l=$1; shift; ns setsid -f bash -c 'echo $$ > /run/'$l'.pid; exec "$@"' _ "$@" >$S/log/$l.log 2>&1 </dev/null; }
case $ACT in
up)
  mkdir -p $S/{log,etcd,kubelet,containerd,cni,podlogs,containers,cninet}; $HERE/pki.sh $S/pki $NODEIP $SVC1
  mkdir -p /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/log/pods /var/log/containers /etc/cni/net.d
  for c in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do mkdir -p /sys/fs/cgroup/$c/$NAME; done
  unshare --mount --net --pid --uts --ipc --fork --mount-proc --kill-child $HERE/site-init.sh $S $NAME $NODEIP </dev/null >$S/log/init.log 2>&1 &
  U=$!; disown; echo $U > $S/unshare.pid
  for i in $(seq 100); do P=$(pgrep -P $U || true); [ -n "$P" ] && [ -e $S/ready ] && break; sleep 0.05; done
  echo $P > $S/pid;;
control)
  P=$S/pki; A=https://127.0.0.1:6443
  for w in admin kcm sched proxy dns; do $HERE/kubeconfig.sh $A $P/ca.crt $w-token > $S/$w.kubeconfig; done
  $HERE/kubeconfig.sh $A $P/ca.crt cert:$P/kubelet.crt:$P/kubelet.key > $S/kubelet.kubeconfig
  start etcd $B/etcd --name e --data-dir $S/etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster e=http://127.0.0.1:2380 ${ETCD_ARGS}
  start apiserver $B/kube-apiserver --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --bind-address=0.0.0.0 --advertise-address=$NODEIP \
    --tls-cert-file=$P/apiserver.crt --tls-private-key-file=$P/apiserver.key --client-ca-file=$P/ca.crt --token-auth-file=$P/tokens.csv \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=$P/sa.pub --service-account-signing-key-file=$P/sa.key \
    --service-cluster-ip-range=$SVC --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true --kubelet-preferred-address-types=InternalIP \
    --kubelet-certificate-authority=$P/ca.crt --kubelet-client-certificate=$P/apiserver-kubelet-client.crt --kubelet-client-key=$P/apiserver-kubelet-client.key \
    --requestheader-client-ca-file=$P/ca.crt --requestheader-allowed-names=front-proxy-client --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group --requestheader-username-headers=X-Remote-User \
    --proxy-client-cert-file=$P/proxy-client.crt --proxy-client-key-file=$P/proxy-client.key ${API_ARGS}
  start kcm $B/kube-controller-manager --kubeconfig=$S/kcm.kubeconfig --service-account-private-key-file=$P/sa.key --root-ca-file=$P/ca.crt --use-service-account-credentials=true \
    --leader-elect=false --cluster-cidr=$POD --allocate-node-cidrs=false --bind-address=127.0.0.1 --node-monitor-grace-period=12s --node-monitor-period=1s ${KCM_ARGS}
  [ -n "$NOSCHED" ] || start scheduler $B/kube-scheduler --kubeconfig=$S/sched.kubeconfig --leader-elect=false --bind-address=127.0.0.1;;
node)
  cat > $S/containerd.toml <<T
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$S/registries"
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
        BinaryName = "${RUNC:-/usr/sbin/runc}"
T
  cat > $S/cninet/10-bridge.conflist <<T
{"cniVersion": "0.4.0", "name": "$NAME", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "$POD"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
T
  cat > $S/kubelet.yaml <<T
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /$NAME
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
tlsCertFile: $S/pki/kubelet.crt
tlsPrivateKeyFile: $S/pki/kubelet.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $S/pki/ca.crt}}
authorization: {mode: Webhook}
enforceNodeAllocatable: []
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
imagePullCredentialsVerificationPolicy: NeverVerify
makeIPTablesUtilChains: false
clusterDomain: cluster.local
clusterDNS: [$NODEIP]
resolvConf: ""
maxPods: 150
nodeStatusUpdateFrequency: 5s
T
  for r in ${REGISTRIES}; do mkdir -p "$S/registries/$r"; printf 'server = "http://%s"\n[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$r" "$r" > "$S/registries/$r/hosts.toml"; done
  start containerd $CTRD --config $S/containerd.toml
  for i in $(seq 100); do ns ctr version >/dev/null 2>&1 && break; sleep 0.1; done
  for i in pause ${IMAGES}; do ns ctr -n k8s.io images import $CACHE/img/$i.tar >>$S/log/import.log; done
  start kubelet $B/kubelet --config=$S/kubelet.yaml --kubeconfig=$S/kubelet.kubeconfig --hostname-override=node1 --node-ip=$NODEIP --v=2;;
proxy)
  start proxy $B/kube-proxy --kubeconfig=$S/proxy.kubeconfig --proxy-mode=nftables --cluster-cidr=$POD --hostname-override=node1 --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0;;
dns) # on the node's own address, with its own service account's rights, outside any pod
  cat > $S/Corefile <<T
.:53 {
  bind $NODEIP
  errors
  health 127.0.0.1:8080
  ready 127.0.0.1:8181
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $S/dns.kubeconfig c
    pods insecure
  }
  cache 5
}
T
  $0 k $NAME $N apply -f - >/dev/null <<T
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
  start coredns $B/coredns -conf $S/Corefile;;
exec) ns "$@";;
k) ns $B/kubectl --kubeconfig=$S/admin.kubeconfig "$@";;
storage) # a default StorageClass with dynamic volumes, by local-path-provisioner beside the control plane
  mkdir -p $S/volumes
cat > $S/local-path.json <<T
{"nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": ["$S/volumes"]}]}
T
cat > $S/helper-pod.yaml <<T
apiVersion: v1
kind: Pod
metadata: {name: helper-pod}
spec:
  priorityClassName: system-node-critical
  tolerations: [{key: node.kubernetes.io/disk-pressure, operator: Exists, effect: NoSchedule}]
  containers: [{name: helper-pod, image: "localhost/busybox:1"}]
T
$0 k $NAME $N apply -f - >/dev/null <<T
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
  config.json: '$(cat $S/local-path.json)'
  setup: |
    #!/bin/sh
    set -eu
    mkdir -m 0777 -p "\$VOL_DIR"
  teardown: |
    #!/bin/sh
    set -eu
    rm -rf "\$VOL_DIR"
  helperPod.yaml: |
$(sed 's/^/    /' $S/helper-pod.yaml)
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local-path, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: rancher.io/local-path
volumeBindingMode: WaitForFirstConsumer
reclaimPolicy: Delete
T
start local-path $B/local-path-provisioner start --config $S/local-path.json --kubeconfig $S/admin.kubeconfig --helper-image localhost/busybox:1 --helper-pod-file $S/helper-pod.yaml --namespace local-path-storage;;
esac
