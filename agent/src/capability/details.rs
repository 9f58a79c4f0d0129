//! What verdicts compare with what an image needs: kinds, classes, storage, nodes and the room on them. What may not be
//! looked at is noted as not known, with the rule that would let the agent look.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{Node, Pod},
        networking::v1::{Ingress, IngressClass},
        storage::v1::{CSIStorageCapacity, StorageClass},
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{Api, ResourceExt, api::ListParams};
use ocopea_protocol::{
    failure::TaskFailure,
    needs::{Capabilities, Known, NodeFound, NodesFound, StorageFound, TaintFound, Taken},
};

use super::Running;
use crate::{
    execute::Site,
    needs::requests,
    quantity::{milli, whole},
};

/// Nodes that are told of in a report, and labels of each.
const MOST_NODES: usize = 100;
const MOST_LABELS: usize = 60;
/// Kinds, hosts and classes that are told of.
const MOST: usize = 3000;
/// Entries per request.
const PAGE: u32 = 1000;

/// Provisioners whose volumes belong to one node or one machine, and such that many may write to.
const OF_ONE_NODE: &[&str] = &[
    "rancher.io/local-path",
    "kubernetes.io/no-provisioner",
    "openebs.io/local",
    "local.csi.openebs.io",
    "topolvm.io",
    "ebs.csi.aws.com",
    "kubernetes.io/aws-ebs",
    "pd.csi.storage.gke.io",
    "kubernetes.io/gce-pd",
    "disk.csi.azure.com",
    "kubernetes.io/azure-disk",
    "dobs.csi.digitalocean.com",
    "csi.hetzner.cloud",
    "cinder.csi.openstack.org",
    "rbd.csi.ceph.com",
];
const SHARED: &[&str] = &[
    "nfs.csi.k8s.io",
    "efs.csi.aws.com",
    "filestore.csi.storage.gke.io",
    "file.csi.azure.com",
    "kubernetes.io/azure-file",
    "cephfs.csi.ceph.com",
    "cluster.local/nfs-subdir-external-provisioner",
    "smb.csi.k8s.io",
];

fn not_allowed(verb: &str, group: &str, resource: &str) -> String {
    format!(
        "let the agent see them: grant {{apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: [\"{verb}\"]}} to its user"
    )
}

/// What a request brought, or why it is not known.
fn known<T>(result: Result<T, kube::Error>, group: &str, resource: &str) -> Known<T> {
    match result {
        Ok(found) => Known::Found(found),
        Err(kube::Error::Api(status)) if status.code == 403 => Known::Unknown(not_allowed("list", group, resource)),
        Err(error) => Known::Unknown(format!("{resource} could not be listed: {}", crate::failures::chain(&error))),
    }
}

impl Site {
    pub(super) async fn look_closely(&self, found: &mut Capabilities, pods: &Running<Pod>) {
        let platform = &self.platform;
        found.kinds = match platform.served_kinds().await {
            Ok((mut kinds, unknown)) if unknown.is_empty() => {
                kinds.truncate(MOST);
                Known::Found(kinds)
            }
            Ok((_, unknown)) => Known::Unknown(format!("some API groups don't answer: {}", unknown.join("; "))),
            Err(failure) => Known::Unknown(failure.cause),
        };
        found.storage = self.storage().await;
        found.priority_classes =
            classes(platform.classes("priority class").await, "scheduling.k8s.io", "priorityclasses");
        found.runtime_classes = classes(platform.classes("runtime class").await, "node.k8s.io", "runtimeclasses");
        let client = &platform.client;
        let ingress_classes: Api<IngressClass> = Api::all(client.clone());
        let listed = ingress_classes.list_metadata(&ListParams::default().limit(PAGE)).await;
        let names = listed.map(|list| list.items.iter().map(ResourceExt::name_any).collect());
        found.ingress_classes = known(names, "networking.k8s.io", "ingressclasses");
        let ingresses: Api<Ingress> = Api::all(client.clone());
        let hosts = ingresses.list(&ListParams::default().limit(PAGE)).await.map(|list| {
            let rules =
                list.items.into_iter().flat_map(|ingress| ingress.spec.unwrap_or_default().rules.unwrap_or_default());
            let mut hosts: Vec<String> = rules.filter_map(|rule| rule.host).take(MOST).collect();
            hosts.sort();
            hosts.dedup();
            hosts
        });
        found.hosts = known(hosts, "networking.k8s.io", "ingresses");
        let nodes: Api<Node> = Api::all(client.clone());
        let nodes = nodes.list(&ListParams::default().limit(PAGE)).await;
        found.nodes = known(nodes.map(|list| nodes_found(list.items, pods)), "", "nodes");
    }

    async fn storage(&self) -> Known<Vec<StorageFound>> {
        let client = &self.platform.client;
        let classes: Api<StorageClass> = Api::all(client.clone());
        let classes =
            match known(classes.list(&ListParams::default().limit(PAGE)).await, "storage.k8s.io", "storageclasses") {
                Known::Found(classes) => classes.items,
                Known::Unknown(why) => return Known::Unknown(why),
            };
        // Few provisioners tell; where it may not be read it is as if they didn't.
        let capacities: Api<CSIStorageCapacity> = Api::all(client.clone());
        let capacities =
            capacities.list(&ListParams::default().limit(PAGE)).await.map(|list| list.items).unwrap_or_default();
        Known::Found(storage_found(&classes, &capacities))
    }
}

fn classes(found: Result<Option<Vec<String>>, TaskFailure>, group: &str, resource: &str) -> Known<Vec<String>> {
    match found {
        Ok(Some(names)) => Known::Found(names),
        Ok(None) => Known::Unknown(not_allowed("list", group, resource)),
        Err(failure) => Known::Unknown(failure.cause),
    }
}

fn storage_found(classes: &[StorageClass], capacities: &[CSIStorageCapacity]) -> Vec<StorageFound> {
    let found = classes.iter().take(MOST).map(|class| {
        let name = class.name_any();
        let provisioner = class.provisioner.as_str();
        let of_class = || capacities.iter().filter(|capacity| capacity.storage_class_name == name);
        StorageFound {
            default: class
                .annotations()
                .get("storageclass.kubernetes.io/is-default-class")
                .is_some_and(|marked| marked == "true"),
            shared: match provisioner {
                one if OF_ONE_NODE.iter().any(|known| one.ends_with(known)) => Some(false),
                many if SHARED.iter().any(|known| many.ends_with(known)) => Some(true),
                _ => None,
            },
            // Segments of the cluster may be different disks: all of them together.
            free: of_class().next().is_some().then(|| {
                of_class()
                    .filter_map(|capacity| capacity.capacity.as_ref())
                    .fold(0u64, |sum, quantity| sum.saturating_add(whole(&quantity.0)))
            }),
            name,
        }
    });
    found.collect()
}

fn nodes_found(nodes: Vec<Node>, pods: &Running<Pod>) -> NodesFound {
    let pods = pods.all.then_some(pods.found.as_slice());
    let mut found: Vec<NodeFound> = nodes.into_iter().filter_map(|node| node_found(node, pods)).collect();
    let free = |node: &NodeFound| node.memory.saturating_sub(node.taken.as_ref().map_or(0, |taken| taken.memory));
    found.sort_by_key(|node| std::cmp::Reverse(free(node)));
    let more = found.len().saturating_sub(MOST_NODES);
    found.truncate(MOST_NODES);
    NodesFound { nodes: found, more: u32::try_from(more).unwrap_or(u32::MAX) }
}

/// A node that is ready and takes pods.
fn node_found(node: Node, pods: Option<&[Pod]>) -> Option<NodeFound> {
    let name = node.metadata.name.unwrap_or_default();
    let spec = node.spec.unwrap_or_default();
    let status = node.status?;
    if spec.unschedulable == Some(true)
        || !status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
    {
        return None;
    }
    let info = status.node_info?;
    let mut has = quantities(status.allocatable.as_ref());
    let mut labels: BTreeMap<String, String> =
        node.metadata.labels.unwrap_or_default().into_iter().take(MOST_LABELS).collect();
    labels.insert("metadata.name".to_owned(), name.clone());
    let taints = spec.taints.unwrap_or_default().into_iter().filter(|taint| taint.effect != "PreferNoSchedule");
    Some(NodeFound {
        platform: format!("{}/{}", info.operating_system, info.architecture),
        labels,
        taints: taints
            .map(|taint| TaintFound { key: taint.key, value: taint.value.unwrap_or_default(), effect: taint.effect })
            .collect(),
        cpu_m: has.remove("cpu").unwrap_or(0),
        memory: has.remove("memory").unwrap_or(0),
        extended: {
            has.retain(|name, _| name.contains('/'));
            has
        },
        taken: pods.map(|pods| taken(&name, pods)),
        name,
    })
}

/// Amounts by name: cores in thousandths, all else in units.
fn quantities(map: Option<&BTreeMap<String, Quantity>>) -> BTreeMap<String, u64> {
    map.into_iter()
        .flatten()
        .map(|(name, amount)| (name.clone(), if name == "cpu" { milli(&amount.0) } else { whole(&amount.0) }))
        .collect()
}

/// What the pods of a node ask for together.
fn taken(node: &str, pods: &[Pod]) -> Taken {
    let mut sum = Taken::default();
    for pod in pods {
        let Some(spec) = pod.spec.as_ref().filter(|spec| spec.node_name.as_deref() == Some(node)) else { continue };
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            continue;
        }
        for container in &spec.containers {
            let Ok(container) = serde_json::to_value(container) else { continue };
            for (name, amount) in requests(&container) {
                let entry = match name.as_str() {
                    "cpu" => &mut sum.cpu_m,
                    "memory" => &mut sum.memory,
                    name if name.contains('/') => sum.extended.entry(name.to_owned()).or_default(),
                    _ => continue,
                };
                *entry = entry.saturating_add(amount);
            }
            for port in container["ports"].as_array().into_iter().flatten() {
                sum.host_ports.extend(port["hostPort"].as_u64().and_then(|port| u16::try_from(port).ok()));
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn node(name: &str, ready: &str) -> Node {
        parsed(json!({"metadata": {"name": name, "labels": {"disk": "ssd"}},
            "spec": {"taints": [{"key": "a", "effect": "PreferNoSchedule"}, {"key": "b", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "1900m", "memory": "2Gi", "example.com/gpu": "2", "pods": "110"},
                "conditions": [{"type": "Ready", "status": ready}],
                "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "bootID": "", "containerRuntimeVersion": "",
                    "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "osImage": "", "systemUUID": ""}}}))
    }

    #[test]
    fn a_node_is_told_of_with_what_its_pods_take() {
        let pod = |phase: &str| -> Pod {
            parsed(
                json!({"metadata": {"name": "p"}, "status": {"phase": phase}, "spec": {"nodeName": "one", "containers": [
                {"name": "c", "ports": [{"containerPort": 80, "hostPort": 9100}],
                 "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi", "example.com/gpu": "1"}}}]}}),
            )
        };
        let pods = Running { found: vec![pod("Running"), pod("Succeeded")], all: true };
        let found = nodes_found(vec![node("one", "True"), node("two", "False")], &pods);
        assert_eq!((found.nodes.len(), found.more), (1, 0));
        let one = &found.nodes[0];
        assert_eq!((one.cpu_m, one.memory, one.platform.as_str()), (1900, 2 << 30, "linux/amd64"));
        assert_eq!(one.extended, BTreeMap::from([("example.com/gpu".to_owned(), 2)]));
        assert_eq!(one.labels["metadata.name"], "one");
        assert_eq!(one.taints.len(), 1);
        let taken = one.taken.clone().unwrap();
        assert_eq!((taken.cpu_m, taken.memory, taken.host_ports), (100, 1 << 30, vec![9100]));
        let some = Running { all: false, ..pods };
        assert_eq!(nodes_found(vec![node("one", "True")], &some).nodes[0].taken, None);
    }

    #[test]
    fn of_a_hundred_and_more_nodes_the_roomiest_are_told_of() {
        let nodes: Vec<Node> = (0..130).map(|number| node(&format!("n{number}"), "True")).collect();
        let found = nodes_found(nodes, &Running { found: vec![], all: false });
        assert_eq!((found.nodes.len(), found.more), (MOST_NODES, 30));
    }

    #[test]
    fn a_class_says_whether_it_is_shared_and_how_much_is_free_where_that_is_known() {
        let class = |name: &str, provisioner: &str| -> StorageClass {
            parsed(json!({"metadata": {"name": name}, "provisioner": provisioner}))
        };
        let classes =
            [class("a", "rancher.io/local-path"), class("b", "nfs.csi.k8s.io"), class("c", "shop.example/disks")];
        let capacity: CSIStorageCapacity =
            parsed(json!({"metadata": {"name": "x"}, "storageClassName": "c", "capacity": "1Gi"}));
        let found = storage_found(&classes, &[capacity.clone(), capacity]);
        let told: Vec<_> = found.iter().map(|class| (class.shared, class.free)).collect();
        assert_eq!(told, [(Some(false), None), (Some(true), None), (None, Some(2 << 30))]);
    }
}
