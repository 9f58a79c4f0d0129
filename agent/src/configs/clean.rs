//! Takes out what a cluster put in.

use serde_json::{Map, Value};

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
    ];
    EXACT.contains(&key) || key.starts_with("pv.kubernetes.io/")
}

/// Labels that Ocopea and controllers write.
fn made_label(key: &str) -> bool {
    matches!(
        key,
        "ocopea.dev/environment"
            | "ocopea.dev/operation"
            | "controller-uid"
            | "batch.kubernetes.io/controller-uid"
            | "batch.kubernetes.io/job-name"
            | "job-name"
    )
}

/// The object as its owner wants it.
pub fn clean(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    metadata(&mut object["metadata"]);
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    match kind.as_str() {
        "Service" => service(&mut object["spec"]),
        "PersistentVolumeClaim" => remove(&mut object["spec"], &["volumeName"]),
        "Pod" => pod_spec(&mut object["spec"]),
        "Job" => job(&mut object),
        "ServiceAccount" => service_account(&mut object),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" => template(&mut object["spec"]["template"]),
        "CronJob" => {
            metadata(&mut object["spec"]["jobTemplate"]["metadata"]);
            template(&mut object["spec"]["jobTemplate"]["spec"]["template"]);
        }
        _ => {}
    }
    if kind == "StatefulSet"
        && let Some(claims) = object["spec"]["volumeClaimTemplates"].as_array_mut()
    {
        for claim in claims {
            remove(claim, &["status"]);
            metadata(&mut claim["metadata"]);
        }
    }
    prune(&mut object);
    object
}

fn remove(value: &mut Value, keys: &[&str]) {
    if let Some(map) = value.as_object_mut() {
        for key in keys {
            map.remove(*key);
        }
    }
}

fn retain(value: &mut Value, key: &str, keep: impl Fn(&str) -> bool) {
    if let Some(entries) = value[key].as_object_mut() {
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
}

fn service(spec: &mut Value) {
    // "None" is a wish (headless); an address is what the cluster gave.
    if spec["clusterIP"].as_str() != Some("None") {
        remove(spec, &["clusterIP"]);
    }
    remove(spec, &["clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort", "internalTrafficPolicy"]);
    if let Some(ports) = spec["ports"].as_array_mut() {
        for port in ports {
            remove(port, &["nodePort"]);
        }
    }
}

fn template(template: &mut Value) {
    metadata(&mut template["metadata"]);
    if let Some(annotations) = template["metadata"]["annotations"].as_object_mut() {
        annotations.remove("kubectl.kubernetes.io/restartedAt");
    }
    retain(&mut template["metadata"], "annotations", |_| true);
    pod_spec(&mut template["spec"]);
}

/// What admission adds to pods: the node, and the token volume of the service account.
fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    remove(spec, &["nodeName"]);
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.retain(|volume| !token_volume(volume));
        if volumes.is_empty() {
            remove(spec, &["volumes"]);
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.retain(|mount| !mount["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access-")));
                if mounts.is_empty() {
                    remove(container, &["volumeMounts"]);
                }
            }
        }
        if spec[list].is_null() {
            remove(spec, &[list]);
        }
    }
}

fn token_volume(volume: &Value) -> bool {
    volume["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access-"))
}

fn job(object: &mut Value) {
    // The selector is the cluster's own unless the owner asked for it by hand.
    if object["spec"]["manualSelector"].as_bool() != Some(true) {
        remove(&mut object["spec"], &["selector", "manualSelector"]);
    }
    template(&mut object["spec"]["template"]);
}

/// Token secrets that clusters make for service accounts are not the owner's wish.
fn service_account(object: &mut Value) {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let (tokens, pulls) = (format!("{name}-token-"), format!("{name}-dockercfg-"));
    let made = |secret: &Value| secret["name"].as_str().is_some_and(|s| s.starts_with(&tokens) || s.starts_with(&pulls));
    let kept: Vec<Value> = object["secrets"].as_array().into_iter().flatten().filter(|s| !made(s)).cloned().collect();
    if kept.is_empty() {
        remove(object, &["secrets"]);
    } else {
        object["secrets"] = Value::Array(kept);
    }
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
    fn cleaning_twice_changes_nothing_more() {
        let pod = json!({"kind": "Pod", "metadata": {"name": "p", "labels": {}}, "spec": {"nodeName": "n", "volumes":
            [{"name": "kube-api-access-x"}], "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "kube-api-access-x"}]}]}});
        let once = clean(&pod);
        assert_eq!(clean(&once), once);
        assert_eq!(once["spec"], json!({"containers": [{"name": "c", "image": "i"}]}));
    }
}
