//! What a label selector takes along: what it selects, and what that can't run without.
//!
//! Labels are put on workloads; their settings, secrets, claims and accounts often have none. A copy without them would
//! never start, so what a selected object names is part of it, and so are the Services that lead to its pods.

use std::collections::BTreeSet;

use serde_json::Value;

use super::volumes::made_by_template;
use crate::configs::{
    network::{self, services_of},
    references::{list, of_pods},
    workload::pod_spec,
};

/// A kind and a name.
type Needed = (&'static str, String);

/// The objects whose uid is in `selected`, and what they need.
pub(super) fn narrow(objects: Vec<Value>, selected: &BTreeSet<String>) -> Vec<Value> {
    let chosen = |object: &Value| object["metadata"]["uid"].as_str().is_some_and(|uid| selected.contains(uid));
    let mut taken: Vec<bool> = objects.iter().map(chosen).collect();
    let mut open: Vec<usize> = (0..objects.len()).filter(|index| taken[*index]).collect();
    while let Some(index) = open.pop() {
        let needed = needs(&objects[index], &objects);
        for (other, object) in objects.iter().enumerate().filter(|(other, _)| !taken[*other]).collect::<Vec<_>>() {
            if needed.iter().any(|(kind, name)| object["kind"] == *kind && object["metadata"]["name"] == name.as_str())
            {
                taken[other] = true;
                open.push(other);
            }
        }
    }
    objects.into_iter().zip(taken).filter_map(|(object, taken)| taken.then_some(object)).collect()
}

fn needs(object: &Value, all: &[Value]) -> Vec<Needed> {
    let mut needed = Vec::new();
    let mut need = |kind: &'static str, name: &Value| {
        if let Some(name) = name.as_str() {
            needed.push((kind, name.to_owned()));
        }
    };
    if let Some(spec) = pod_spec(object) {
        for named in of_pods(spec) {
            need(named.kind, &Value::from(named.name));
        }
        for service in services_of(object, &network::services(all)) {
            need("Service", &Value::from(service));
        }
    }
    match object["kind"].as_str() {
        Some("StatefulSet") => {
            need("Service", &object["spec"]["serviceName"]);
            for claim in all.iter().filter(|claim| made_by_template(claim, object)) {
                need("PersistentVolumeClaim", &claim["metadata"]["name"]);
            }
        }
        Some("ServiceAccount") => {
            for secret in list(&object["imagePullSecrets"]).chain(list(&object["secrets"])) {
                need("Secret", &secret["name"]);
            }
            let account = &object["metadata"]["name"];
            let binds = |s: &Value| s["kind"] == "ServiceAccount" && s["name"] == *account;
            for binding in all.iter().filter(|o| o["kind"] == "RoleBinding" && list(&o["subjects"]).any(binds)) {
                need("RoleBinding", &binding["metadata"]["name"]);
            }
        }
        Some("RoleBinding") if object["roleRef"]["kind"] == "Role" => need("Role", &object["roleRef"]["name"]),
        Some("Ingress") => {
            for tls in list(&object["spec"]["tls"]) {
                need("Secret", &tls["secretName"]);
            }
            need("Service", &object["spec"]["defaultBackend"]["service"]["name"]);
            for path in list(&object["spec"]["rules"]).flat_map(|rule| list(&rule["http"]["paths"])) {
                need("Service", &path["backend"]["service"]["name"]);
            }
        }
        _ => {}
    }
    needed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_takes_along_what_its_workloads_cannot_run_without() {
        let named =
            |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name, "uid": format!("{kind}/{name}")}});
        let with = |mut object: Value, field: &str, value: Value| {
            object[field] = value;
            object
        };
        let pods = json!({"metadata": {"labels": {"app": "web"}}, "spec": {
            "serviceAccountName": "web", "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "a", "projected": {"sources": [{"configMap": {"name": "files"}}]}}, {"name": "b", "persistentVolumeClaim": {"claimName": "uploads"}}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "env"}}], "env": [{"valueFrom": {"configMapKeyRef": {"name": "one", "key": "k"}}}]}]}});
        let mut objects = vec![
            with(
                with(named("StatefulSet", "web"), "apiVersion", json!("apps/v1")),
                "spec",
                json!({"template": pods, "serviceName": "heads", "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}),
            ),
            with(with(named("Service", "web"), "apiVersion", json!("v1")), "spec", json!({"selector": {"app": "web"}})),
            with(
                with(named("Service", "other"), "apiVersion", json!("v1")),
                "spec",
                json!({"selector": {"app": "other"}}),
            ),
            with(with(named("Service", "heads"), "apiVersion", json!("v1")), "spec", json!({})),
            with(
                with(named("RoleBinding", "web"), "roleRef", json!({"kind": "Role", "name": "reader"})),
                "subjects",
                json!([{"kind": "ServiceAccount", "name": "web"}]),
            ),
        ];
        let wanted = [
            ("ServiceAccount", "web"),
            ("Role", "reader"),
            ("Secret", "pull"),
            ("Secret", "env"),
            ("ConfigMap", "files"),
            ("ConfigMap", "one"),
            ("PersistentVolumeClaim", "uploads"),
            ("PersistentVolumeClaim", "data-web-0"),
        ];
        objects.extend(wanted.iter().map(|(kind, name)| named(kind, name)));
        let unwanted = [("Secret", "theirs"), ("ConfigMap", "web"), ("PersistentVolumeClaim", "data-web-x")];
        objects.extend(unwanted.iter().map(|(kind, name)| named(kind, name)));
        let narrowed = narrow(objects, &BTreeSet::from(["StatefulSet/web".to_owned()]));
        let names: BTreeSet<String> =
            narrowed.iter().filter_map(|o| o["metadata"]["uid"].as_str().map(str::to_owned)).collect();
        let mut expected: BTreeSet<String> = wanted.iter().map(|(kind, name)| format!("{kind}/{name}")).collect();
        expected.extend(["StatefulSet/web", "Service/web", "Service/heads", "RoleBinding/web"].map(str::to_owned));
        assert_eq!(names, expected);
    }
}
