//! What pods can't be started without: the objects that their spec names.

use serde_json::Value;

/// An object that a pod spec names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Needed {
    /// `Secret`, `ConfigMap`, `PersistentVolumeClaim`, `ServiceAccount`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The pod starts without it, too.
    pub optional: bool,
}

/// All objects that a pod spec names.
pub fn of_pods(spec: &Value) -> Vec<Needed> {
    let mut needed = Vec::new();
    let mut need = |kind: &'static str, source: &Value, key: &str| {
        if let Some(name) = source[key].as_str() {
            needed.push(Needed { kind, name: name.to_owned(), optional: source["optional"].as_bool() == Some(true) });
        }
    };
    for volume in list(&spec["volumes"]) {
        need("Secret", &volume["secret"], "secretName");
        need("ConfigMap", &volume["configMap"], "name");
        need("PersistentVolumeClaim", &volume["persistentVolumeClaim"], "claimName");
        for source in list(&volume["projected"]["sources"]) {
            need("Secret", &source["secret"], "name");
            need("ConfigMap", &source["configMap"], "name");
        }
    }
    for container in list(&spec["containers"]).chain(list(&spec["initContainers"])) {
        for from in list(&container["envFrom"]) {
            need("Secret", &from["secretRef"], "name");
            need("ConfigMap", &from["configMapRef"], "name");
        }
        for from in list(&container["env"]).map(|env| &env["valueFrom"]) {
            need("Secret", &from["secretKeyRef"], "name");
            need("ConfigMap", &from["configMapKeyRef"], "name");
        }
    }
    need("ServiceAccount", spec, "serviceAccountName");
    for secret in list(&spec["imagePullSecrets"]) {
        if let Some(name) = secret["name"].as_str() {
            needed.push(Needed { kind: "Secret", name: name.to_owned(), optional: true });
        }
    }
    needed.sort();
    needed.dedup();
    needed
}

/// What `spec` can't do without and neither `objects` nor the cluster have.
pub fn absent(spec: &Value, objects: &[Value]) -> Vec<Needed> {
    let made = |needed: &Needed| {
        matches!((needed.kind, needed.name.as_str()), ("ConfigMap", "kube-root-ca.crt") | ("ServiceAccount", "default"))
    };
    let here = |needed: &Needed| {
        objects.iter().any(|object| object["kind"] == needed.kind && object["metadata"]["name"] == needed.name.as_str())
    };
    of_pods(spec).into_iter().filter(|needed| !needed.optional && !made(needed) && !here(needed)).collect()
}

pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_pod_starts_without_is_not_missed() {
        let spec = json!({"serviceAccountName": "default", "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "a", "secret": {"secretName": "gone", "optional": true}}, {"name": "b", "configMap": {"name": "there"}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}, {"secret": {"name": "lost"}}]}}],
            "containers": [{"name": "c", "envFrom": [{"configMapRef": {"name": "env"}}]}]});
        let there = json!({"kind": "ConfigMap", "metadata": {"name": "there"}});
        let names: Vec<String> = absent(&spec, &[there]).into_iter().map(|needed| needed.name).collect();
        assert_eq!(names, ["env", "lost"]);
    }
}
