//! What a restore changes in saved objects: image references, namespace, marks. By meaning, in named places.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use ocopea_protocol::{
    inventory::{ContainerFound, ObjectRef},
    names::ComponentName,
    plan::ContainerPlacement,
};
use serde_json::{Value, json};

use super::{
    at, each,
    network::{Service, rename_hosts, services},
    object_ref,
    workload::{pod_spec, pod_spec_mut, template_mut},
};
use crate::platform::{ENVIRONMENT, OPERATION};

/// The label that every namespace carries with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// What a restore changes.
pub struct Rewrite<'a> {
    /// The namespace that was saved.
    pub from: &'a str,
    /// The environment's.
    pub to: &'a str,
    /// Container components as they were saved.
    pub containers: &'a [ContainerFound],
    /// Where each will be pulled from.
    pub placements: &'a [ContainerPlacement],
    /// Marks for every object.
    pub environment: String,
    /// The operation that makes them.
    pub operation: String,
}

/// A change that was made, for the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The object.
    pub object: ObjectRef,
    /// What changed. Never a secret's value.
    pub detail: String,
}

/// `HOST/PATH/NAME:TAG@DIGEST` in parts, with the defaults that runtimes add.
pub fn split_image(image: &str) -> (String, Option<String>, Option<String>) {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest.to_owned())),
        None => (image, None),
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
        _ => (name, None),
    };
    let repository = match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    };
    (repository, tag, digest)
}

/// The component that a workload's image reference stands for.
pub fn component_of<'a>(image: &str, user: &ObjectRef, containers: &'a [ContainerFound]) -> Option<&'a ContainerFound> {
    let (repository, tag, digest) = split_image(image);
    let same = || containers.iter().filter(|c| c.repository == repository && c.used_by.contains(user));
    if let Some(digest) = digest {
        return same().find(|c| c.digest.to_string() == digest);
    }
    same().find(|c| c.tag == tag).or_else(|| same().next())
}

/// What a restore applies, and what it changed for that.
#[derive(Clone, Debug, Default)]
pub struct Rewritten {
    /// The objects as they will be applied.
    pub objects: Vec<Value>,
    /// What was changed.
    pub changes: Vec<Change>,
    /// What may mean the namespace that was saved, and was left as it is.
    pub doubts: Vec<Change>,
}

/// Where an object's changes and doubts are noted.
struct Notes<'a> {
    object: &'a ObjectRef,
    changes: &'a mut Vec<Change>,
    doubts: &'a mut Vec<Change>,
}

impl Notes<'_> {
    fn change(&mut self, detail: String) {
        self.changes.push(Change { object: self.object.clone(), detail });
    }

    fn doubt(&mut self, detail: String) {
        self.doubts.push(Change { object: self.object.clone(), detail });
    }
}

impl Rewrite<'_> {
    /// The objects as they will be applied, with what was changed.
    pub fn apply(&self, objects: &[Value]) -> Rewritten {
        let known = services(objects);
        let placements: BTreeMap<&ComponentName, &ContainerPlacement> =
            self.placements.iter().map(|p| (&p.component, p)).collect();
        let (mut changes, mut doubts) = (Vec::new(), Vec::new());
        let mut rewritten = Vec::with_capacity(objects.len());
        for object in objects {
            let reference = object_ref(object);
            let mut notes = Notes { object: &reference, changes: &mut changes, doubts: &mut doubts };
            rewritten.push(self.one(object, &known, &placements, &mut notes));
        }
        Rewritten { objects: rewritten, changes, doubts }
    }

    fn one(
        &self,
        object: &Value,
        known: &[Service],
        placements: &BTreeMap<&ComponentName, &ContainerPlacement>,
        notes: &mut Notes<'_>,
    ) -> Value {
        let mut object = object.clone();
        self.mark(&mut object);
        self.images(&mut object, placements, notes);
        self.annotations(at(&mut object, &["metadata", "annotations"]), notes);
        match notes.object.kind.as_str() {
            "ConfigMap" => self.texts(at(&mut object, &["data"]), known, notes, false),
            "Secret" => {
                self.texts(at(&mut object, &["data"]), known, notes, true);
                self.texts(at(&mut object, &["stringData"]), known, notes, false);
            }
            "Service" => {
                if let Some(name) = at(&mut object, &["spec", "externalName"])
                    && let Some(renamed) = name.as_str().and_then(|name| self.renamed(name, "host", known, notes))
                {
                    notes.change(format!("external name {} → {renamed}", name.as_str().unwrap_or_default()));
                    *name = Value::from(renamed);
                }
            }
            "NetworkPolicy" => self.peers(&mut object, notes),
            "PersistentVolumeClaim" => {
                if let Some(spec) = at(&mut object, &["spec"]).and_then(Value::as_object_mut)
                    && (spec.remove("dataSource").is_some() | spec.remove("dataSourceRef").is_some())
                {
                    notes.change(
                        "made empty: its contents come from the image, not from what it was once made of".to_owned(),
                    );
                }
            }
            "RoleBinding" => self.subjects(&mut object, notes),
            "Deployment" => {
                if let Some(spec) = at(&mut object, &["spec"]).and_then(Value::as_object_mut)
                    && spec.get("paused") == Some(&Value::Bool(true))
                {
                    spec.remove("paused");
                    notes.change("paused → running: a paused one would never start its pods".to_owned());
                }
            }
            _ => {}
        }
        if let Some(template) = template_mut(&mut object).filter(|_| notes.object.kind != "Pod") {
            self.annotations(at(template, &["metadata", "annotations"]), notes);
        }
        if let Some(spec) = pod_spec_mut(&mut object) {
            for search in each(spec, &["dnsConfig", "searches"]) {
                self.strings(search, "DNS search domains", known, notes);
            }
            for list in ["containers", "initContainers"] {
                for container in each(spec, &[list]) {
                    self.container(container, known, notes);
                }
            }
        }
        object
    }

    /// Subjects of bindings that mean accounts of the namespace that was saved.
    fn subjects(&self, object: &mut Value, notes: &mut Notes<'_>) {
        for subject in each(object, &["subjects"]) {
            if let Some(namespace) = subject.get_mut("namespace").filter(|namespace| **namespace == self.from) {
                *namespace = Value::from(self.to);
                notes.change(format!("subject's namespace {} → {}", self.from, self.to));
            }
            let Some(name) = subject.get_mut("name") else { continue };
            let old = name.as_str().unwrap_or_default();
            let renamed = if old == format!("system:serviceaccounts:{}", self.from) {
                Some(format!("system:serviceaccounts:{}", self.to))
            } else {
                old.strip_prefix(&format!("system:serviceaccount:{}:", self.from))
                    .map(|account| format!("system:serviceaccount:{}:{account}", self.to))
            };
            if let Some(renamed) = renamed {
                notes.change(format!("subject {} → {renamed}", name.as_str().unwrap_or_default()));
                *name = Value::from(renamed);
            }
        }
    }

    /// Host names that stand in annotations: only those that can't be anything else.
    fn annotations(&self, annotations: Option<&mut Value>, notes: &mut Notes<'_>) {
        for (key, value) in annotations.and_then(Value::as_object_mut).into_iter().flatten() {
            if let Some(renamed) = value.as_str().and_then(|text| self.renamed(text, key, &[], notes)) {
                notes.change(format!("annotation {key}: host names of {} → {}", self.from, self.to));
                *value = Value::from(renamed);
            }
        }
    }

    /// All texts within a probe or a hook: commands, hosts, headers.
    fn strings(&self, value: &mut Value, what: &str, known: &[Service], notes: &mut Notes<'_>) {
        match value {
            Value::String(text) => {
                if let Some(renamed) = self.renamed(text, "host", known, notes) {
                    notes.change(format!("{what}: host names of {} → {}", self.from, self.to));
                    *text = renamed;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.strings(item, what, known, notes)),
            Value::Object(map) => map.values_mut().for_each(|item| self.strings(item, what, known, notes)),
            _ => {}
        }
    }

    fn mark(&self, object: &mut Value) {
        let Some(metadata) = at(object, &["metadata"]).and_then(Value::as_object_mut) else { return };
        metadata.insert("namespace".to_owned(), Value::from(self.to));
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(ENVIRONMENT.to_owned(), Value::from(self.environment.as_str()));
            labels.insert(OPERATION.to_owned(), Value::from(self.operation.as_str()));
        }
    }

    fn images(
        &self,
        object: &mut Value,
        placements: &BTreeMap<&ComponentName, &ContainerPlacement>,
        notes: &mut Notes<'_>,
    ) {
        let Some(spec) = pod_spec_mut(object) else { return };
        for list in ["containers", "initContainers"] {
            for container in each(spec, &[list]) {
                let Some(image) = container["image"].as_str() else { continue };
                let Some(component) = component_of(image, notes.object, self.containers) else { continue };
                let Some(placement) = placements.get(&component.name) else { continue };
                let new = format!("{}@{}", placement.target, placement.digest);
                if placement.digest == component.digest {
                    notes.change(format!("image pulled from {}, the same {}", placement.target, placement.digest));
                } else {
                    notes.change(format!("image {image} → {new}"));
                }
                if let Some(policy) = container["imagePullPolicy"].as_str().filter(|policy| *policy != "IfNotPresent") {
                    notes.change(format!("imagePullPolicy {policy} → IfNotPresent: a digest never changes"));
                }
                let Some(container) = container.as_object_mut() else { continue };
                container.insert("image".to_owned(), Value::from(new));
                container.insert("imagePullPolicy".to_owned(), Value::from("IfNotPresent"));
            }
        }
    }

    /// Peers of network policies that mean the application's own namespace mean the copy's.
    fn peers(&self, object: &mut Value, notes: &mut Notes<'_>) {
        for (rules, side) in [("ingress", "from"), ("egress", "to")] {
            for peer in each(object, &["spec", rules]).flat_map(|rule| each(rule, &[side])) {
                let mut renamed = false;
                if let Some(name) = at(peer, &["namespaceSelector", "matchLabels", NAMESPACE_NAME])
                    && *name == self.from
                {
                    *name = Value::from(self.to);
                    renamed = true;
                }
                for expression in each(peer, &["namespaceSelector", "matchExpressions"]) {
                    if expression["key"] == NAMESPACE_NAME {
                        for name in each(expression, &["values"]).filter(|name| **name == self.from) {
                            *name = Value::from(self.to);
                            renamed = true;
                        }
                    }
                }
                if renamed {
                    notes.change(format!("{rules} {side} namespace {} → {}", self.from, self.to));
                }
            }
        }
    }

    fn container(&self, container: &mut Value, known: &[Service], notes: &mut Notes<'_>) {
        for env in each(container, &["env"]) {
            let name = env["name"].as_str().unwrap_or_default().to_owned();
            let value = env["value"].as_str().unwrap_or_default();
            if value == self.from && self.from != self.to && name.to_ascii_uppercase().ends_with("NAMESPACE") {
                notes.doubt(format!("variable {name} is {value}"));
            }
            if let Some(renamed) = self.renamed(value, &name, known, notes) {
                notes.change(format!("variable {name}: host names of {} → {}", self.from, self.to));
                if let Some(value) = env.get_mut("value") {
                    *value = Value::from(renamed);
                }
            }
        }
        for list in ["command", "args"] {
            // `--host`, with its value in the next argument.
            let mut option = String::new();
            for argument in each(container, &[list]) {
                if let Some(renamed) = argument.as_str().and_then(|value| self.renamed(value, &option, known, notes)) {
                    notes.change(format!("{list}: host names of {} → {}", self.from, self.to));
                    *argument = Value::from(renamed);
                }
                option = argument.as_str().filter(|text| text.starts_with('-')).unwrap_or_default().to_owned();
                if option == "-h" {
                    option = "host".to_owned();
                }
            }
        }
        for part in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            if let Some(value) = container.get_mut(part) {
                self.strings(value, part, known, notes);
            }
        }
    }

    fn texts(&self, data: Option<&mut Value>, known: &[Service], notes: &mut Notes<'_>, encoded: bool) {
        for (key, value) in data.and_then(Value::as_object_mut).into_iter().flatten() {
            let Some(text) = value.as_str() else { continue };
            let plain = if encoded {
                let Some(plain) = STANDARD.decode(text.trim()).ok().and_then(|b| String::from_utf8(b).ok()) else {
                    continue;
                };
                plain
            } else {
                text.to_owned()
            };
            if let Some(renamed) = self.renamed(&plain, key, known, notes) {
                notes.change(format!("{key}: host names of {} → {} (value not shown)", self.from, self.to));
                *value = Value::from(if encoded { STANDARD.encode(renamed) } else { renamed });
            }
        }
    }

    /// `text`, the value of `name`, with the old namespace's host names renamed, if it holds any.
    fn renamed(&self, text: &str, name: &str, known: &[Service], notes: &mut Notes<'_>) -> Option<String> {
        if self.from == self.to || !text.contains(self.from) {
            return None;
        }
        let renamed = rename_hosts(text, name, known, self.from, self.to);
        for doubt in &renamed.doubts {
            notes.doubt(format!("{name:.100} holds {doubt}"));
        }
        (renamed.text != text).then_some(renamed.text)
    }
}

/// Image references of an object that no component stands for.
pub fn unplaced(object: &Value, containers: &[ContainerFound]) -> Vec<String> {
    let reference = object_ref(object);
    let Some(spec) = pod_spec(object) else { return Vec::new() };
    ["containers", "initContainers"]
        .iter()
        .flat_map(|list| spec[*list].as_array().into_iter().flatten())
        .filter_map(|container| container["image"].as_str())
        .filter(|image| component_of(image, &reference, containers).is_none())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_are_split_as_runtimes_do() {
        assert_eq!(split_image("nginx"), ("docker.io/library/nginx".into(), None, None));
        assert_eq!(split_image("bitnami/redis:7"), ("docker.io/bitnami/redis".into(), Some("7".into()), None));
        assert_eq!(split_image("h:5000/a/b"), ("h:5000/a/b".into(), None, None));
        assert_eq!(
            split_image("h:5000/a/b:1@sha256:x"),
            ("h:5000/a/b".into(), Some("1".into()), Some("sha256:x".into()))
        );
    }

    #[test]
    fn what_means_the_old_namespace_means_the_new_one() {
        let rewrite = Rewrite {
            from: "shop",
            to: "copy",
            containers: &[],
            placements: &[],
            environment: "e".into(),
            operation: "o".into(),
        };
        let objects = [
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"}, "spec": {"ports": [{"port": 1}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias"}, "spec": {"type": "ExternalName", "externalName": "db.shop.svc.cluster.local"}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "n"}, "spec": {"podSelector": {}, "ingress": [
                {"from": [{"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: "shop"}}}, {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: "shopping"}}}]}]}}),
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}}),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"shop": "shop", "f": "a=db.shop\nb=/srv/shop/db.shop.txt\n"}}),
        ];
        let Rewritten { objects: out, changes, .. } = rewrite.apply(&objects);
        assert_eq!(out[0]["spec"], objects[0]["spec"]);
        assert_eq!(out[1]["spec"]["externalName"], "db.copy.svc.cluster.local");
        let from = &out[2]["spec"]["ingress"][0]["from"];
        assert_eq!(from[0]["namespaceSelector"]["matchLabels"][NAMESPACE_NAME], "copy");
        assert_eq!(from[1], objects[2]["spec"]["ingress"][0]["from"][1]);
        assert!(out[2]["spec"].get("egress").is_none());
        assert_eq!(out[3]["spec"], json!({}));
        assert_eq!(out[4]["data"], json!({"shop": "shop", "f": "a=db.copy\nb=/srv/shop/db.shop.txt\n"}));
        assert_eq!(changes.len(), 4, "{changes:?}");
    }

    #[test]
    fn a_copy_has_its_own_images_namespace_and_marks() {
        let user = ObjectRef { api_version: "apps/v1".into(), kind: "Deployment".into(), name: "web".into() };
        let digest: ocopea_protocol::names::Digest = format!("sha256:{}", "1".repeat(64)).parse().unwrap();
        let containers = vec![ContainerFound {
            name: "chat".parse().unwrap(),
            repository: "h:5000/chat".into(),
            tag: Some("1".into()),
            digest,
            used_by: vec![user],
            pull_secrets: vec![],
        }];
        let placements = vec![ContainerPlacement {
            component: "chat".parse().unwrap(),
            digest,
            target: "r/x/chat".into(),
            push: true,
        }];
        let rewrite = Rewrite {
            from: "shop",
            to: "copy",
            containers: &containers,
            placements: &placements,
            environment: "e".into(),
            operation: "o".into(),
        };
        let objects = [
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": {"spec": {"containers":
                [{"name": "c", "image": "h:5000/chat:1", "env": [{"name": "U", "value": "db.shop.svc"}]}]}}}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"uri": STANDARD.encode("x://db.shop.svc/shop")}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"}}),
        ];
        let Rewritten { objects: out, changes, .. } = rewrite.apply(&objects);
        let container = &out[0]["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], format!("r/x/chat@{digest}"));
        assert_eq!(container["env"][0]["value"], "db.copy.svc");
        assert_eq!(out[1]["data"]["uri"], STANDARD.encode("x://db.copy.svc/shop"));
        assert!(
            out.iter().all(|o| o["metadata"]["namespace"] == "copy" && o["metadata"]["labels"][ENVIRONMENT] == "e")
        );
        assert_eq!(changes.len(), 3, "{changes:?}");
        assert!(changes.iter().all(|c| !c.detail.contains("x://")));
    }
}
