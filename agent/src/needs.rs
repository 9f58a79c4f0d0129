//! What the configuration of an application asks of a site: read from its objects, noted with the image.

use std::collections::{BTreeMap, BTreeSet};

use ocopea_protocol::needs::{Need, NodeExpression, PodNeed, Toleration};
use serde_json::Value;

use crate::{
    configs::{
        kinds::{FINISHED, is_finished},
        object_ref,
        references::list,
        workload::{pod_spec, string_map},
    },
    quantity::{milli, whole},
};

/// Of anything that is listed, at most so much is noted: what names a class, expressions of an affinity …
const MOST: usize = 200;

/// All that these objects ask of a site.
pub fn needs(objects: &[Value]) -> Vec<Need> {
    let mut needs = BTreeSet::new();
    let mut classes: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
    let mut storage: BTreeMap<Option<String>, (Vec<String>, u64, bool)> = BTreeMap::new();
    // Claims that a set's template makes again are counted there.
    let made: Vec<String> = objects
        .iter()
        .filter(|object| object["kind"] == "StatefulSet")
        .flat_map(|set| {
            let name = set["metadata"]["name"].as_str().unwrap_or_default();
            list(&set["spec"]["volumeClaimTemplates"])
                .map(move |template| format!("{}-{name}-", template["metadata"]["name"].as_str().unwrap_or_default()))
        })
        .collect();
    let is_made = |claim: &str| {
        made.iter().any(|prefix| claim.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.parse::<u32>().is_ok()))
    };
    for object in objects.iter().filter(|object| !is_over(object)) {
        let reference = object_ref(object);
        let by = reference.to_string();
        let mut names_class = |kind: &'static str, name: &Value| {
            if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
                classes.entry((kind, name.to_owned())).or_default().push(by.clone());
            }
        };
        if let Some(spec) = pod_spec(object) {
            names_class("priority", &spec["priorityClassName"]);
            names_class("runtime", &spec["runtimeClassName"]);
            needs.insert(Need::Pod(pod(&by, replicas(object), spec)));
        }
        match reference.kind.as_str() {
            "Ingress" => {
                names_class("ingress", &object["spec"]["ingressClassName"]);
                for host in list(&object["spec"]["rules"]).filter_map(|rule| rule["host"].as_str()).take(MOST) {
                    needs.insert(Need::Host { host: host.to_owned(), by: by.clone() });
                }
            }
            "PersistentVolumeClaim" if is_made(&reference.name) => {}
            "PersistentVolumeClaim" => claim(&mut storage, &reference.name, &object["spec"], 1),
            "StatefulSet" => {
                for template in list(&object["spec"]["volumeClaimTemplates"]) {
                    let name = template["metadata"]["name"].as_str().unwrap_or_default();
                    claim(&mut storage, &format!("{name} of {by}"), &template["spec"], u64::from(replicas(object)));
                }
            }
            _ => {}
        }
    }
    for ((kind, name), mut by) in classes {
        by.truncate(MOST);
        needs.insert(match kind {
            "priority" => Need::PriorityClass { name, by },
            "runtime" => Need::RuntimeClass { name, by },
            _ => Need::IngressClass { name, by },
        });
    }
    for (class, (mut claims, bytes, shared)) in storage {
        claims.truncate(MOST);
        needs.insert(Need::StorageClass { claims, class, bytes, shared });
    }
    needs.into_iter().collect()
}

/// Work that is done, whether its status still says so or only the mark of the cleaning.
fn is_over(object: &Value) -> bool {
    is_finished(object) || object["metadata"]["annotations"][FINISHED] == "true"
}

fn claim(storage: &mut BTreeMap<Option<String>, (Vec<String>, u64, bool)>, name: &str, spec: &Value, times: u64) {
    let class = spec["storageClassName"].as_str().map(str::to_owned);
    let bytes = spec["resources"]["requests"]["storage"].as_str().map_or(0, whole).saturating_mul(times);
    let entry = storage.entry(class).or_default();
    entry.0.push(name.to_owned());
    entry.1 = entry.1.saturating_add(bytes);
    entry.2 |= list(&spec["accessModes"]).any(|mode| mode == "ReadWriteMany");
}

fn replicas(object: &Value) -> u32 {
    match object["kind"].as_str() {
        Some("Deployment" | "StatefulSet" | "ReplicaSet" | "ReplicationController") => {
            object["spec"]["replicas"].as_u64().map_or(1, |count| u32::try_from(count).unwrap_or(u32::MAX))
        }
        Some("Job") => object["spec"]["parallelism"].as_u64().map_or(1, |count| u32::try_from(count).unwrap_or(1)),
        _ => 1,
    }
}

/// What the scheduler counts for one pod: its containers together, or the greediest of those that run before them.
fn pod(by: &str, replicas: u32, spec: &Value) -> PodNeed {
    let mut together: BTreeMap<String, u64> = BTreeMap::new();
    let mut before: BTreeMap<String, u64> = BTreeMap::new();
    for container in list(&spec["initContainers"]) {
        // Those that go on running count as all others do.
        if container["restartPolicy"] == "Always" {
            add(&mut together, &requests(container));
        } else {
            for (name, amount) in requests(container) {
                let least = before.entry(name).or_default();
                *least = (*least).max(amount);
            }
        }
    }
    let mut host_ports = Vec::new();
    for container in list(&spec["containers"]) {
        add(&mut together, &requests(container));
        let ports = list(&container["ports"]).filter_map(|port| {
            let own = if spec["hostNetwork"] == true { &port["containerPort"] } else { &port["hostPort"] };
            own.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
        });
        host_ports.extend(ports.take(MOST));
    }
    for (name, amount) in before {
        let sum = together.entry(name).or_default();
        *sum = (*sum).max(amount);
    }
    add(&mut together, &amounts(&spec["overhead"]));
    let cpu_m = together.remove("cpu").unwrap_or(0);
    let memory = together.remove("memory").unwrap_or(0);
    together.retain(|name, amount| *amount > 0 && name.contains('/'));
    let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    PodNeed {
        by: by.to_owned(),
        replicas,
        cpu_m,
        memory,
        extended: together,
        node: string_map(&spec["nodeSelector"]),
        affinity: list(&terms["nodeSelectorTerms"]).take(MOST).map(term).collect(),
        tolerations: list(&spec["tolerations"]).take(MOST).map(toleration).collect(),
        host_ports,
    }
}

fn add(sum: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>) {
    for (name, amount) in more {
        let entry = sum.entry(name.clone()).or_default();
        *entry = entry.saturating_add(*amount);
    }
}

/// Requests of a container; where only a limit is given, that is the request.
pub(crate) fn requests(container: &Value) -> BTreeMap<String, u64> {
    let mut all = amounts(&container["resources"]["limits"]);
    all.extend(amounts(&container["resources"]["requests"]));
    all
}

/// Amounts by name: cores in thousandths, all else in units.
fn amounts(map: &Value) -> BTreeMap<String, u64> {
    map.as_object()
        .into_iter()
        .flatten()
        .map(|(name, amount)| {
            let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
            (name.clone(), if name == "cpu" { milli(&text) } else { whole(&text) })
        })
        .collect()
}

fn term(term: &Value) -> Vec<NodeExpression> {
    let expression = |expression: &Value| NodeExpression {
        key: expression["key"].as_str().unwrap_or_default().to_owned(),
        operator: expression["operator"].as_str().unwrap_or_default().to_owned(),
        values: list(&expression["values"]).filter_map(Value::as_str).take(MOST).map(str::to_owned).collect(),
    };
    // The one field that there is, `metadata.name`, is a label in what agents find.
    list(&term["matchExpressions"]).chain(list(&term["matchFields"])).map(expression).take(MOST).collect()
}

fn toleration(toleration: &Value) -> Toleration {
    let text = |field: &str| toleration[field].as_str().unwrap_or_default().to_owned();
    Toleration {
        key: text("key"),
        value: (toleration["operator"] != "Exists").then(|| text("value")),
        effect: text("effect"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of_one(object: Value) -> PodNeed {
        let Some(Need::Pod(pod)) = needs(&[object]).into_iter().find(|need| matches!(need, Need::Pod(_))) else {
            panic!("no pod is needed")
        };
        pod
    }

    #[test]
    fn a_pod_asks_for_what_the_scheduler_counts() {
        let pod = of_one(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "replicas": 3,
            "template": {"spec": {
                "nodeSelector": {"disk": "ssd"},
                "tolerations": [{"key": "for", "operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute"}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}],
                     "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}]}}},
                "overhead": {"cpu": "10m"},
                "initContainers": [
                    {"name": "first", "resources": {"requests": {"memory": "1Gi"}}},
                    {"name": "proxy", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}}],
                "containers": [
                    {"name": "web", "ports": [{"containerPort": 80, "hostPort": 8080}],
                     "resources": {"requests": {"cpu": "0.25", "memory": "100Mi"}, "limits": {"cpu": "2", "example.com/gpu": "1"}}},
                    {"name": "log", "resources": {"limits": {"memory": "28Mi", "ephemeral-storage": "1Gi"}}}]}}}}));
        assert_eq!((pod.by.as_str(), pod.replicas, pod.cpu_m, pod.memory), ("deployment/web", 3, 310, 1 << 30));
        assert_eq!(pod.extended, BTreeMap::from([("example.com/gpu".to_owned(), 1)]));
        assert_eq!((pod.node["disk"].as_str(), pod.host_ports), ("ssd", vec![8080]));
        let keys: Vec<&str> = pod.affinity[0].iter().map(|e| e.key.as_str()).collect();
        assert_eq!(keys, ["zone", "metadata.name"]);
        assert_eq!(pod.tolerations[0], Toleration { key: "for".to_owned(), value: None, effect: String::new() });
        assert_eq!(pod.tolerations[1].value.as_deref(), Some("b"));
    }

    #[test]
    fn storage_is_asked_for_by_class() {
        let claim = |name: &str, class: Value, mode: &str| {
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
                "storageClassName": class, "accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}})
        };
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
            "replicas": 2, "template": {"spec": {"containers": []}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": "2Gi"}}}}]}});
        let found = needs(&[
            claim("a", json!("fast"), "ReadWriteOnce"),
            claim("b", json!("fast"), "ReadWriteMany"),
            claim("c", Value::Null, "ReadWriteOnce"),
            claim("data-db-0", Value::Null, "ReadWriteOnce"),
            set,
        ]);
        let classes: Vec<_> = found
            .iter()
            .filter_map(|need| match need {
                Need::StorageClass { claims, class, bytes, shared } => {
                    Some((class.as_deref(), claims.len(), bytes >> 30, *shared))
                }
                _ => None,
            })
            .collect();
        assert_eq!(classes, [(Some("fast"), 2, 2, true), (None, 2, 5, false)]);
    }

    #[test]
    fn classes_hosts_and_nothing_of_what_is_finished() {
        let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "web"}, "spec": {
            "ingressClassName": "nginx", "rules": [{"host": "shop.example"}, {}]}});
        let done = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
            "spec": {"template": {"spec": {"priorityClassName": "low", "containers": []}}},
            "status": {"conditions": [{"type": "Complete", "status": "True"}]}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"},
            "spec": {"priorityClassName": "high", "runtimeClassName": "kata", "containers": []}});
        let found = needs(&[ingress, done, pod]);
        let told: Vec<String> = found.iter().map(|need| format!("{need:?}")).collect();
        let told = told.join("\n");
        for word in ["nginx", "shop.example", "high", "kata"] {
            assert!(told.contains(word), "{word} in {told}");
        }
        assert!(!told.contains("low"), "{told}");
    }
}
