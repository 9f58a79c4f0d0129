//! Workloads as drivers and the planner see them: containers with their resolved environment, mounts and ports.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use ocopea_protocol::{inventory::ObjectRef, secret::Secret};
use serde_json::Value;

use super::{at, kinds::group_of, object_ref};
use crate::data::ContainerView;

/// The way to the pod template (for a bare Pod: to itself) of the kinds that run something.
fn template_path(object: &Value) -> Option<&'static [&'static str]> {
    Some(match group_of(object) {
        ("", "Pod") => &[],
        ("batch", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("", "ReplicationController")
        | ("batch", "Job") => &["spec", "template"],
        _ => return None,
    })
}

/// The pod template within a workload; a bare Pod is its own.
pub(super) fn template(object: &Value) -> Option<&Value> {
    template_path(object)?.iter().try_fold(object, |value, key| value.get(*key))
}

/// The pod spec within a workload, if it has one.
pub fn pod_spec(object: &Value) -> Option<&Value> {
    template(object)?.get("spec").filter(|spec| spec.is_object())
}

/// As [`pod_spec`], to change it.
pub fn pod_spec_mut(object: &mut Value) -> Option<&mut Value> {
    let path = template_path(object)?;
    at(object, path)?.get_mut("spec").filter(|spec| spec.is_object())
}

/// As [`pod_spec_mut`], with the metadata beside it.
pub(super) fn template_mut(object: &mut Value) -> Option<&mut Value> {
    let path = template_path(object)?;
    at(object, path)
}

/// Labels of the pods that a workload makes.
pub fn pod_labels(object: &Value) -> BTreeMap<String, String> {
    let Some(labels) = template(object).and_then(|template| template.get("metadata")?.get("labels")) else {
        return BTreeMap::new();
    };
    string_map(labels)
}

/// A map of strings.
pub fn string_map(value: &Value) -> BTreeMap<String, String> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| value.as_str().map(|value| (key.clone(), value.to_owned())))
        .collect()
}

/// A value of the configuration and where it stands.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The variable's or entry's name.
    pub name: String,
    /// Its value.
    pub value: Secret,
    /// The object that holds it.
    pub object: ObjectRef,
    /// Where within it.
    pub path: String,
}

/// A container of a workload.
#[derive(Clone, Debug)]
pub struct Container {
    /// The workload.
    pub workload: ObjectRef,
    /// What drivers look at.
    pub view: ContainerView,
    /// Its settings with their origins, files from mounted configuration included.
    pub settings: Vec<Setting>,
    /// An init container.
    pub init: bool,
}

/// Contents of Secrets and ConfigMaps by kind and name.
#[derive(Default)]
pub struct Sources {
    entries: BTreeMap<(String, String), BTreeMap<String, String>>,
}

impl Sources {
    /// Collects them.
    pub fn of(objects: &[Value]) -> Self {
        let mut sources = Self::default();
        for object in objects {
            let kind = object["kind"].as_str().unwrap_or_default();
            if !matches!(kind, "Secret" | "ConfigMap") {
                continue;
            }
            let mut values = BTreeMap::new();
            for (key, value) in string_map(&object["data"]) {
                let plain = if kind == "Secret" {
                    STANDARD.decode(value.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok())
                } else {
                    Some(value)
                };
                if let Some(plain) = plain {
                    values.insert(key, plain);
                }
            }
            values.extend(string_map(&object["stringData"]));
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            sources.entries.insert((kind.to_owned(), name.to_owned()), values);
        }
        sources
    }

    fn all(&self, kind: &str, name: &str) -> impl Iterator<Item = (&String, &String)> {
        self.entries.get(&(kind.to_owned(), name.to_owned())).into_iter().flatten()
    }

    fn one(&self, kind: &str, name: &str, key: &str) -> Option<&String> {
        self.entries.get(&(kind.to_owned(), name.to_owned()))?.get(key)
    }
}

fn source_ref(kind: &str, name: &str) -> ObjectRef {
    ObjectRef { api_version: "v1".to_owned(), kind: kind.to_owned(), name: name.to_owned() }
}

/// All containers of a workload.
pub fn containers(object: &Value, sources: &Sources) -> Vec<Container> {
    let Some(spec) = pod_spec(object) else { return Vec::new() };
    let workload = object_ref(object);
    let mut found = Vec::new();
    for (list, init) in [("containers", false), ("initContainers", true)] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            // One that is always started again is a server beside the others, which start after it.
            let init = init && container["restartPolicy"] != "Always";
            found.push(one(object, spec, container, &workload, sources, init, &format!("{list}[{index}]")));
        }
    }
    found
}

fn one(
    object: &Value,
    spec: &Value,
    container: &Value,
    workload: &ObjectRef,
    sources: &Sources,
    init: bool,
    path: &str,
) -> Container {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut settings = Vec::new();
    for from in container["envFrom"].as_array().into_iter().flatten() {
        let prefix = text(&from["prefix"]);
        for (field, kind) in [("secretRef", "Secret"), ("configMapRef", "ConfigMap")] {
            let name = text(&from[field]["name"]);
            for (key, value) in sources.all(kind, &name) {
                settings.push(Setting {
                    name: format!("{prefix}{key}"),
                    value: Secret::new(value.clone()),
                    object: source_ref(kind, &name),
                    path: format!("data.{key}"),
                });
            }
        }
    }
    for (index, env) in container["env"].as_array().into_iter().flatten().enumerate() {
        let name = text(&env["name"]);
        if let Some(value) = env["value"].as_str() {
            settings.push(Setting {
                name,
                value: Secret::new(value),
                object: workload.clone(),
                path: format!("{path}.env[{index}]"),
            });
            continue;
        }
        for (field, kind) in [("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")] {
            let reference = &env["valueFrom"][field];
            let (source, key) = (text(&reference["name"]), text(&reference["key"]));
            if let Some(value) = sources.one(kind, &source, &key) {
                settings.push(Setting {
                    name: name.clone(),
                    value: Secret::new(value.clone()),
                    object: source_ref(kind, &source),
                    path: format!("data.{key}"),
                });
            }
        }
    }
    expand(&mut settings);
    let env = settings.iter().map(|s| (s.name.clone(), s.value.clone())).collect();
    let claims = volume_claims(object, spec);
    let mut mounts = Vec::new();
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let (volume, at) = (text(&mount["name"]), text(&mount["mountPath"]));
        mounts.push((at.clone(), claims.get(&volume).cloned()));
        settings.extend(mounted_files(spec, &volume, &at, sources));
    }
    let strings = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let mut command = strings(&container["command"]);
    command.extend(strings(&container["args"]));
    for (index, argument) in command.iter().enumerate() {
        settings.push(Setting {
            name: format!("argument {}", index + 1),
            value: Secret::new(argument.clone()),
            object: workload.clone(),
            path: format!("{path}.command[{index}]"),
        });
    }
    let ports = container["ports"].as_array().into_iter().flatten();
    Container {
        workload: workload.clone(),
        view: ContainerView {
            image: text(&container["image"]),
            name: text(&container["name"]),
            ports: ports.filter_map(|p| p["containerPort"].as_u64().and_then(|p| u16::try_from(p).ok())).collect(),
            env,
            command,
            mounts,
        },
        settings,
        init,
    }
}

/// `$(NAME)` in values stands for variables defined before.
fn expand(settings: &mut [Setting]) {
    for index in 0..settings.len() {
        let mut value = settings[index].value.reveal().to_owned();
        if !value.contains("$(") {
            continue;
        }
        for earlier in &settings[..index] {
            value = value.replace(&format!("$({})", earlier.name), earlier.value.reveal());
        }
        settings[index].value = Secret::new(value);
    }
}

/// Volume name → claim name, templates of stateful sets included (for the first replica).
pub fn volume_claims(object: &Value, spec: &Value) -> BTreeMap<String, String> {
    let mut claims = BTreeMap::new();
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        if let (Some(name), Some(claim)) =
            (volume["name"].as_str(), volume["persistentVolumeClaim"]["claimName"].as_str())
        {
            claims.insert(name.to_owned(), claim.to_owned());
        }
    }
    let owner = object["metadata"]["name"].as_str().unwrap_or_default();
    for template in object["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
        if let Some(name) = template["metadata"]["name"].as_str() {
            claims.insert(name.to_owned(), format!("{name}-{owner}-0"));
        }
    }
    claims
}

/// What a pod's volume is to a copy.
pub enum VolumeKind {
    /// Made from objects of the configuration, or by the cluster.
    Configuration,
    /// A claim.
    Claim,
    /// Ends with its pod.
    Scratch(&'static str),
    /// Lies outside of the cluster's claims.
    Other(String),
}

/// Which kind a volume of a pod is.
pub fn volume_kind(volume: &Value) -> VolumeKind {
    let source = volume.as_object().into_iter().flatten().find(|(key, value)| *key != "name" && value.is_object());
    match source.map_or("emptyDir", |(key, _)| key.as_str()) {
        "configMap" | "secret" | "projected" | "downwardAPI" => VolumeKind::Configuration,
        "persistentVolumeClaim" => VolumeKind::Claim,
        "emptyDir" => VolumeKind::Scratch("emptyDir"),
        "ephemeral" => VolumeKind::Scratch("ephemeral"),
        other => VolumeKind::Other(other.to_owned()),
    }
}

/// Lines of mounted configuration files are settings too: many programs read their database's address from one.
fn mounted_files(spec: &Value, volume: &str, at: &str, sources: &Sources) -> Vec<Setting> {
    let mut found = Vec::new();
    for candidate in spec["volumes"].as_array().into_iter().flatten().filter(|v| v["name"].as_str() == Some(volume)) {
        for (field, kind, key) in [("secret", "Secret", "secretName"), ("configMap", "ConfigMap", "name")] {
            let Some(name) = candidate[field][key].as_str() else { continue };
            for (file, text) in sources.all(kind, name) {
                for line in text.lines().take(2000) {
                    found.push(Setting {
                        name: format!("{at}/{file}"),
                        value: Secret::new(line.trim()),
                        object: source_ref(kind, name),
                        path: format!("data.{file}"),
                    });
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_environment_is_resolved_with_its_origins() {
        let secret = json!({"kind": "Secret", "metadata": {"name": "db"}, "data": {"uri": STANDARD.encode("mongodb://db/x"), "pw": STANDARD.encode("p")}});
        let map = json!({"kind": "ConfigMap", "metadata": {"name": "cfg"}, "data": {"HOST": "db", "app.ini": "a=1\nurl = mongodb://db/y"}});
        let workload = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": {"spec": {
            "volumes": [{"name": "c", "configMap": {"name": "cfg"}}, {"name": "d", "persistentVolumeClaim": {"claimName": "data"}}],
            "containers": [{"name": "web", "image": "i", "ports": [{"containerPort": 80}],
                "envFrom": [{"prefix": "DB_", "configMapRef": {"name": "cfg"}}],
                "env": [{"name": "URI", "valueFrom": {"secretKeyRef": {"name": "db", "key": "uri"}}},
                    {"name": "PLAIN", "value": "$(URI)?a"}],
                "volumeMounts": [{"name": "c", "mountPath": "/etc/app"}, {"name": "d", "mountPath": "/data"}]}]}}}});
        let all = containers(&workload, &Sources::of(&[secret, map]));
        let one = &all[0];
        assert_eq!(one.view.env["URI"].reveal(), "mongodb://db/x");
        assert_eq!(one.view.env["PLAIN"].reveal(), "mongodb://db/x?a");
        assert_eq!(one.view.env["DB_HOST"].reveal(), "db");
        assert_eq!(one.view.mounts[1], ("/data".to_owned(), Some("data".to_owned())));
        let uri = one.settings.iter().find(|s| s.name == "URI").unwrap();
        assert_eq!((uri.object.kind.as_str(), uri.path.as_str()), ("Secret", "data.uri"));
        assert!(one.settings.iter().any(|s| s.value.reveal() == "url = mongodb://db/y"));
    }
}
