//! Takes out what a cluster put in.

use serde_json::{Map, Value};

use super::{at, each, kinds::group_of, workload::template_mut};

/// Fields of `metadata` that describe one object in one cluster.
const METADATA: &[&str] = &[
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
    "namespace",
    "ownerReferences",
];

/// Annotations that clusters, clients and Ocopea itself write.
fn made_annotation(key: &str) -> bool {
    const EXACT: &[&str] = &[
        "kubectl.kubernetes.io/last-applied-configuration",
        "deployment.kubernetes.io/revision",
        "deprecated.daemonset.template.generation",
        "volume.kubernetes.io/selected-node",
        "volume.kubernetes.io/storage-provisioner",
        "volume.beta.kubernetes.io/storage-provisioner",
        "endpoints.kubernetes.io/last-change-trigger-time",
        "control-plane.alpha.kubernetes.io/leader",
        "batch.kubernetes.io/job-tracking",
        "autoscaling.alpha.kubernetes.io/conditions",
        "autoscaling.alpha.kubernetes.io/current-metrics",
        "kubernetes.io/limit-ranger",
        "kubernetes.io/service-account.uid",
        "k8s.v1.cni.cncf.io/network-status",
        "k8s.v1.cni.cncf.io/networks-status",
    ];
    const PREFIXES: &[&str] = &["pv.kubernetes.io/", "cni.projectcalico.org/", "ocopea.dev/"];
    EXACT.contains(&key) || PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// Finalizers that controllers of every cluster put on what they look after.
fn made_finalizer(name: &str) -> bool {
    matches!(
        name,
        "kubernetes.io/pvc-protection"
            | "service.kubernetes.io/load-balancer-cleanup"
            | "batch.kubernetes.io/job-tracking"
            | "foregroundDeletion"
            | "orphan"
    )
}

/// Labels that Ocopea and controllers write.
fn made_label(key: &str) -> bool {
    key.starts_with("ocopea.dev/")
        || matches!(
            key,
            "controller-uid"
                | "batch.kubernetes.io/controller-uid"
                | "batch.kubernetes.io/job-name"
                | "job-name"
                | "kubernetes.io/legacy-token-last-used"
        )
}

/// The object as its owner wants it.
pub fn clean(object: &Value) -> Value {
    let mut object = object.clone();
    remove(&mut object, &["status"]);
    with(&mut object, &["metadata"], metadata);
    let (group, kind) = group_of(&object);
    match (group, kind) {
        ("", "Service") => with(&mut object, &["spec"], service),
        ("", "PersistentVolumeClaim") => with(&mut object, &["spec"], |spec| remove(spec, &["volumeName"])),
        ("", "ServiceAccount") => service_account(&mut object),
        ("", "Pod") => {
            with(&mut object, &["spec"], pod_spec);
            // Left by somebody's debugging; no pod can be made with them.
            with(&mut object, &["spec"], |spec| remove(spec, &["ephemeralContainers"]));
            // What admission computed from the priority class, and would refuse where it computes something else.
            with(&mut object, &["spec"], |spec| remove(spec, &["priority", "preemptionPolicy"]));
        }
        ("", "Secret") if object["type"] == "kubernetes.io/service-account-token" => {
            with(&mut object, &["data"], |data| remove(data, &["token", "ca.crt", "namespace"]));
            if object["data"].as_object().is_some_and(Map::is_empty) {
                remove(&mut object, &["data"]);
            }
        }
        ("batch", "Job") => job(&mut object),
        ("batch", "CronJob") => with(&mut object, &["spec", "jobTemplate", "metadata"], metadata),
        ("apps", "StatefulSet") => {
            for claim in each(&mut object, &["spec", "volumeClaimTemplates"]) {
                remove(claim, &["status"]);
                with(claim, &["metadata"], metadata);
            }
        }
        _ => {}
    }
    if (group_of(&object)) != ("", "Pod")
        && let Some(within) = template_mut(&mut object)
    {
        template(within);
    }
    prune(&mut object);
    object
}

fn with(value: &mut Value, path: &[&str], act: impl FnOnce(&mut Value)) {
    if let Some(value) = at(value, path) {
        act(value);
    }
}

fn remove(value: &mut Value, keys: &[&str]) {
    if let Some(map) = value.as_object_mut() {
        for key in keys {
            map.remove(*key);
        }
    }
}

fn retain(value: &mut Value, key: &str, keep: impl Fn(&str) -> bool) {
    if let Some(entries) = value.get_mut(key).and_then(Value::as_object_mut) {
        entries.retain(|name, _| keep(name));
        if entries.is_empty() {
            remove(value, &[key]);
        }
    }
}

fn metadata(metadata: &mut Value) {
    if !metadata.is_object() {
        return;
    }
    remove(metadata, METADATA);
    retain(metadata, "annotations", |key| !made_annotation(key));
    retain(metadata, "labels", |key| !made_label(key));
    if let Some(finalizers) = metadata.get_mut("finalizers").and_then(Value::as_array_mut) {
        finalizers.retain(|finalizer| !finalizer.as_str().is_some_and(made_finalizer));
        if finalizers.is_empty() {
            remove(metadata, &["finalizers"]);
        }
    }
}

fn service(spec: &mut Value) {
    // "None" is a wish (headless); an address is what the cluster gave.
    if spec["clusterIP"].as_str() != Some("None") {
        remove(spec, &["clusterIP"]);
    }
    remove(spec, &["clusterIPs", "healthCheckNodePort"]);
    // What the API server fills in by itself is taken out; what differs from that, somebody wanted.
    if spec["ipFamilyPolicy"].as_str().is_none_or(|policy| policy == "SingleStack") {
        remove(spec, &["ipFamilies", "ipFamilyPolicy"]);
    }
    if spec["internalTrafficPolicy"].as_str() == Some("Cluster") {
        remove(spec, &["internalTrafficPolicy"]);
    }
    for port in each(spec, &["ports"]) {
        remove(port, &["nodePort"]);
    }
}

fn template(template: &mut Value) {
    with(template, &["metadata"], |within| {
        metadata(within);
        retain(within, "annotations", |key| key != "kubectl.kubernetes.io/restartedAt");
    });
    with(template, &["spec"], pod_spec);
}

/// What admission adds to pods: the node, and the token volume of the service account.
fn pod_spec(spec: &mut Value) {
    remove(spec, &["nodeName"]);
    without(spec, "volumes", token_volume);
    for list in ["containers", "initContainers"] {
        for container in each(spec, &[list]) {
            without(container, "volumeMounts", token_volume);
        }
    }
}

/// Takes entries out of a list, and the list itself when none is left.
fn without(value: &mut Value, list: &str, out: impl Fn(&Value) -> bool) {
    let Some(entries) = value.get_mut(list).and_then(Value::as_array_mut) else { return };
    entries.retain(|entry| !out(entry));
    if entries.is_empty() {
        remove(value, &[list]);
    }
}

fn token_volume(volume: &Value) -> bool {
    volume["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access-"))
}

fn job(object: &mut Value) {
    // The selector is the cluster's own unless the owner asked for it by hand.
    if object["spec"]["manualSelector"].as_bool() != Some(true) {
        with(object, &["spec"], |spec| remove(spec, &["selector", "manualSelector"]));
    }
}

/// Token secrets that clusters make for service accounts are not the owner's wish.
fn service_account(object: &mut Value) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let (tokens, pulls) = (format!("{name}-token-"), format!("{name}-dockercfg-"));
    let made =
        |secret: &Value| secret["name"].as_str().is_some_and(|s| s.starts_with(&tokens) || s.starts_with(&pulls));
    without(object, "secrets", made);
}

/// Nulls mean nothing in Kubernetes, and come and go with versions.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let kept: Map<String, Value> = std::mem::take(map).into_iter().filter(|(_, v)| !v.is_null()).collect();
            *map = kept;
            map.values_mut().for_each(prune);
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_cluster_gave_is_gone_and_what_the_owner_wants_stays() {
        let seen = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "db", "namespace": "shop", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{}], "labels": {"app": "db", "ocopea.dev/environment": "e"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "team": "x"}},
            "spec": {"clusterIP": "10.91.3.4", "clusterIPs": ["10.91.3.4"], "ipFamilies": ["IPv4"],
                "ports": [{"port": 80, "nodePort": 31000}], "selector": {"app": "db"}},
            "status": {"loadBalancer": {}}
        });
        assert_eq!(
            clean(&seen),
            json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "db", "labels": {"app": "db"}, "annotations": {"team": "x"}},
                "spec": {"ports": [{"port": 80}], "selector": {"app": "db"}}})
        );
        let headless = json!({"kind": "Service", "metadata": {"name": "x"}, "spec": {"clusterIP": "None"}});
        assert_eq!(clean(&headless)["spec"]["clusterIP"], "None");
    }

    #[test]
    fn wishes_that_differ_from_defaults_stay() {
        let dual = json!({"kind": "Service", "metadata": {"name": "x", "finalizers": ["service.kubernetes.io/load-balancer-cleanup", "a.example/b"]},
            "spec": {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"], "internalTrafficPolicy": "Local"}});
        let cleaned = clean(&dual);
        assert_eq!(cleaned["spec"], dual["spec"]);
        assert_eq!(cleaned["metadata"]["finalizers"], json!(["a.example/b"]));
        let claim = json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "c", "finalizers": ["kubernetes.io/pvc-protection"],
            "annotations": {"pv.kubernetes.io/bind-completed": "yes", "ocopea.dev/finished": "true"}}, "spec": {"volumeName": "pvc-1", "storageClassName": "fast"}});
        assert_eq!(
            clean(&claim),
            json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {"storageClassName": "fast"}})
        );
    }

    #[test]
    fn tokens_that_somebody_asked_for_are_asked_for_again() {
        let seen = json!({"kind": "Secret", "type": "kubernetes.io/service-account-token", "data": {"token": "x", "ca.crt": "x", "namespace": "x"},
            "metadata": {"name": "t", "labels": {"kubernetes.io/legacy-token-last-used": "2026-01-01"},
                "annotations": {"kubernetes.io/service-account.name": "web", "kubernetes.io/service-account.uid": "u"}}});
        assert_eq!(
            clean(&seen),
            json!({"kind": "Secret", "type": "kubernetes.io/service-account-token",
                "metadata": {"name": "t", "annotations": {"kubernetes.io/service-account.name": "web"}}})
        );
    }

    #[test]
    fn cleaning_twice_changes_nothing_more() {
        let pod = json!({"kind": "Pod", "metadata": {"name": "p", "labels": {}}, "spec": {"nodeName": "n", "volumes":
            [{"name": "kube-api-access-x"}], "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "kube-api-access-x"}]}]}});
        let once = clean(&pod);
        assert_eq!(clean(&once), once);
        assert_eq!(once["spec"], json!({"containers": [{"name": "c", "image": "i"}]}));
    }
}
