//! Which kinds can be restored, in which order, and what a restored object may not ask for.

use ocopea_protocol::plan::Refusal;
use serde_json::Value;

use super::{
    object_ref,
    workload::{VolumeKind, volume_kind},
};

/// Group and kind, in the order in which they are applied. What isn't here is saved, and refused by name at a restore.
const ORDER: &[(&str, &str)] = &[
    ("", "ResourceQuota"),
    ("", "LimitRange"),
    ("", "ServiceAccount"),
    ("", "Secret"),
    ("", "ConfigMap"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("", "PersistentVolumeClaim"),
    ("policy", "PodDisruptionBudget"),
    ("", "Service"),
    ("", "Endpoints"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("networking.k8s.io", "Ingress"),
    ("apps", "StatefulSet"),
    ("apps", "DaemonSet"),
    ("apps", "Deployment"),
    ("apps", "ReplicaSet"),
    ("", "ReplicationController"),
    ("", "Pod"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("batch", "Job"),
    ("batch", "CronJob"),
];

pub(super) fn group_of(object: &Value) -> (&str, &str) {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    (group, object["kind"].as_str().unwrap_or_default())
}

/// Where in the order; `None` when restoring this kind isn't built.
pub fn rank(object: &Value) -> Option<usize> {
    let wanted = group_of(object);
    ORDER.iter().position(|known| *known == wanted)
}

/// Whether applying it makes something run.
pub fn starts_something(object: &Value) -> bool {
    matches!(group_of(object), ("apps", _) | ("batch", _) | ("", "Pod" | "ReplicationController") | ("autoscaling", _))
}

/// Whether it is a workload whose readiness is waited for.
pub fn is_long_running(object: &Value) -> bool {
    matches!(
        group_of(object),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") | ("", "Pod" | "ReplicationController")
    )
}

/// A Job that has done its work, or a bare pod that has: kept in the image, not run again.
pub fn is_finished(object: &Value) -> bool {
    match group_of(object) {
        ("batch", "Job") => object["status"]["conditions"].as_array().is_some_and(|conditions| {
            conditions.iter().any(|c| {
                matches!(c["type"].as_str(), Some("Complete" | "Failed" | "SuccessCriteriaMet"))
                    && c["status"] == "True"
            })
        }),
        ("", "Pod") => matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")),
        _ => false,
    }
}

/// Annotation on saved objects that had finished: cleaning takes the status away that said so.
pub const FINISHED: &str = "ocopea.dev/finished";

/// What a restored object must not ask for, each with what to do. `namespace` is the one that it was saved in.
pub fn refusals(object: &Value, namespace: &str) -> Vec<Refusal> {
    let reference = object_ref(object).to_string();
    let refuse = |needed: &str, next: &str| Refusal {
        what: reference.clone(),
        needed: needed.to_owned(),
        found: "not allowed for restored copies".to_owned(),
        next: next.to_owned(),
    };
    let mut found = Vec::new();
    if rank(object).is_none() {
        let (group, kind) = group_of(object);
        let full = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        found.push(Refusal {
            what: reference.clone(),
            needed: format!("restoring objects of kind {full}"),
            found: "not built yet".to_owned(),
            next: format!("leave it out at the next save: --without {}", without_name(object)),
        });
    }
    if finalizers(object) {
        found.push(refuse("finalizers of its own", "remove its finalizers and save again"));
    }
    if let Some(others) = foreign_subjects(object, namespace) {
        found.push(refuse(
            &format!("rights for service accounts of other namespaces ({others})"),
            &format!("leave it out at the next save: --without {}", without_name(object)),
        ));
    }
    if object["kind"] == "Service" && object["spec"]["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty()) {
        found.push(refuse("addresses of the cluster's own network (externalIPs)", "remove them and save again"));
    }
    let Some(spec) = super::workload::pod_spec(object) else { return found };
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[field].as_bool() == Some(true) {
            found.push(refuse(field, "remove it from the workload and save again"));
        }
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        match volume_kind(volume) {
            VolumeKind::Other(kind) if kind == "hostPath" => {
                let path = volume["hostPath"]["path"].as_str().unwrap_or_default();
                let needed = format!("the node's own path {path:.100}");
                found.push(refuse(&needed, "use a persistent volume claim instead"));
            }
            // Its nodes pull it, as they do every image that is not a component.
            VolumeKind::Other(kind) if kind == "image" => {}
            VolumeKind::Other(kind) => found.push(refuse(
                &format!("storage that the copy would share with the original ({kind:.50})"),
                "use a persistent volume claim instead",
            )),
            _ => {}
        }
    }
    if spec["securityContext"]["windowsOptions"]["hostProcess"].as_bool() == Some(true) {
        found.push(refuse("a process of the node (hostProcess)", "remove it from the workload and save again"));
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            if container["securityContext"]["privileged"].as_bool() == Some(true) {
                found.push(refuse("a privileged container", "remove it from the workload and save again"));
            }
            if container["securityContext"]["procMount"].as_str().is_some_and(|mount| mount != "Default") {
                found.push(refuse("an unmasked /proc (procMount)", "remove it from the workload and save again"));
            }
            let added = container["securityContext"]["capabilities"]["add"].as_array().into_iter().flatten();
            for capability in
                added.filter_map(Value::as_str).filter(|c| OWNS_THE_NODE.contains(&c.trim_start_matches("CAP_")))
            {
                found.push(refuse(
                    &format!("the capability {capability}"),
                    "remove it from the workload and save again",
                ));
            }
            let host_port = |p: &Value| p["hostPort"].as_i64().is_some_and(|port| port != 0);
            if container["ports"].as_array().is_some_and(|ports| ports.iter().any(host_port)) {
                found.push(refuse("a port of the node (hostPort)", "use a Service instead"));
            }
        }
    }
    found
}

/// Capabilities with which a container reaches out of itself.
const OWNS_THE_NODE: &[&str] =
    &["ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME", "DAC_READ_SEARCH", "BPF"];

fn finalizers(object: &Value) -> bool {
    let has = |metadata: &Value| metadata["finalizers"].as_array().is_some_and(|f| !f.is_empty());
    let claims = object["spec"]["volumeClaimTemplates"].as_array();
    has(&object["metadata"])
        || super::workload::template(object).is_some_and(|template| has(&template["metadata"]))
        || has(&object["spec"]["jobTemplate"]["metadata"])
        || claims.is_some_and(|claims| claims.iter().any(|claim| has(&claim["metadata"])))
}

/// Service accounts of other namespaces that a role binding names.
fn foreign_subjects(object: &Value, namespace: &str) -> Option<String> {
    if object["kind"] != "RoleBinding" {
        return None;
    }
    let foreign: Vec<String> = object["subjects"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|subject| {
            let name = subject["name"].as_str().unwrap_or_default();
            let group = || name.strip_prefix("system:serviceaccounts:").map(|of| (of, "*"));
            let (of, account) = match subject["kind"].as_str() {
                Some("ServiceAccount") => (subject["namespace"].as_str()?, name),
                _ => name.strip_prefix("system:serviceaccount:").and_then(|n| n.split_once(':')).or_else(group)?,
            };
            (of != namespace).then(|| format!("{of}/{account}"))
        })
        .collect();
    (!foreign.is_empty()).then(|| foreign.join(", "))
}

/// The name by which an object is left out: `kind/name`.
pub fn without_name(object: &Value) -> String {
    object_ref(object).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_reach_out_of_the_namespace_is_refused_by_name() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "finalizers": ["x.example/y"]},
            "spec": {"hostNetwork": true, "volumes": [{"hostPath": {"path": "/etc"}}],
                "initContainers": [{"securityContext": {"privileged": true}, "ports": [{"hostPort": 80}]}]}});
        let needed: Vec<String> = refusals(&pod, "shop").into_iter().map(|r| r.needed).collect();
        assert_eq!(needed.len(), 5, "{needed:?}");
        assert!(needed.iter().any(|n| n.contains("/etc")));
        let custom = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}});
        assert!(refusals(&custom, "shop")[0].needed.contains("Widget.example.com"));
        assert!(refusals(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}), "shop").is_empty());
    }

    #[test]
    fn what_a_copy_would_share_with_the_original_is_refused() {
        let job = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c"}, "spec": {"jobTemplate": {"spec": {"template": {
            "metadata": {"finalizers": ["a/b"]}, "spec": {"volumes": [{"name": "files", "nfs": {"server": "10.0.0.9", "path": "/"}},
                {"name": "own", "emptyDir": {}}, {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}}],
            "containers": [{"securityContext": {"procMount": "Unmasked"}}]}}}}}});
        let needed: Vec<String> = refusals(&job, "shop").into_iter().map(|r| r.needed).collect();
        assert_eq!(needed.len(), 3, "{needed:?}");
        assert!(needed.iter().any(|n| n.contains("(nfs)")), "{needed:?}");
    }

    #[test]
    fn rights_for_others_and_other_peoples_addresses_are_refused() {
        let binding = |namespace: &str| {
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
            "subjects": [{"kind": "ServiceAccount", "name": "web", "namespace": namespace}]})
        };
        assert!(refusals(&binding("shop"), "shop").is_empty());
        assert!(refusals(&binding("monitoring"), "shop")[0].needed.contains("monitoring/web"));
        let of_group = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
            "subjects": [{"kind": "Group", "name": "system:serviceaccounts:ci"}, {"kind": "User", "name": "system:serviceaccount:shop:web"}]});
        assert!(refusals(&of_group, "shop")[0].needed.contains("(ci/*)"), "{:?}", refusals(&of_group, "shop"));
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"externalIPs": ["10.0.0.1"]}});
        assert_eq!(refusals(&service, "shop").len(), 1);
        let capable = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "d"}, "spec": {
            "volumeClaimTemplates": [{"metadata": {"finalizers": ["a/b"]}}],
            "template": {"spec": {"containers": [{"securityContext": {"capabilities": {"add": ["NET_BIND_SERVICE", "CAP_SYS_ADMIN"]}}}]}}}});
        let needed: Vec<String> = refusals(&capable, "shop").into_iter().map(|r| r.needed).collect();
        assert_eq!(needed, ["finalizers of its own", "the capability CAP_SYS_ADMIN"]);
    }

    #[test]
    fn configuration_comes_before_what_reads_it() {
        let of = |version: &str, kind: &str| rank(&json!({"apiVersion": version, "kind": kind}));
        assert!(of("v1", "Secret") < of("v1", "Service"));
        assert!(of("v1", "PersistentVolumeClaim") < of("apps/v1", "StatefulSet"));
        assert!(of("apps/v1", "StatefulSet") < of("apps/v1", "Deployment"));
    }
}
