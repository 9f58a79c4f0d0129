//! The configuration of an application: cleaned, canonical, ordered, rewritten. Pure: no cluster, no clock.
//!
//! The principle: what is saved is what the owner wants, not what a cluster made of it; the same wish always gives
//! the same bytes; and what a restore changes, it changes by meaning, in named places, never by searching text.

pub mod clean;
pub mod kinds;
pub mod network;
pub mod references;
pub mod rewrite;
pub mod workload;

use std::collections::BTreeMap;

use bytes::Bytes;
use ocopea_protocol::{failure::TaskFailure, inventory::ObjectRef};
use serde_json::{Map, Value};

/// An object's own name for itself.
pub fn object_ref(object: &Value) -> ObjectRef {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    ObjectRef {
        api_version: text(&object["apiVersion"]),
        kind: text(&object["kind"]),
        name: text(&object["metadata"]["name"]),
    }
}

/// What lies at `path`, to change it. Unlike indexing it makes nothing that wasn't there, and takes any shape.
pub(crate) fn at<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, key| value.get_mut(*key))
}

/// The entries of the list at `path`, to change them; none where there is no list.
pub(crate) fn each<'a>(value: &'a mut Value, path: &[&str]) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    at(value, path).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Sorts the keys of all maps, so that equal objects have equal bytes.
pub fn canonical(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let mut sorted = Map::new();
            for key in keys {
                sorted.insert(key.clone(), canonical(&map[key]));
            }
            Value::Object(sorted)
        }
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        other => other.clone(),
    }
}

/// Cleaned objects as files: `GROUP_VERSION_KIND/NAME.json`, canonical, ending in a line break.
pub fn to_files(objects: &[Value]) -> Result<BTreeMap<String, Bytes>, TaskFailure> {
    let mut files = BTreeMap::new();
    for object in objects {
        let reference = object_ref(object);
        let mut text = serde_json::to_vec_pretty(&canonical(object))
            .map_err(|error| TaskFailure::permanent("config.encode", format!("can't save {reference}"), error))?;
        text.push(b'\n');
        let version = reference.api_version.replace('/', "_");
        files.insert(format!("{version}_{}/{}.json", reference.kind, reference.name), text.into());
    }
    Ok(files)
}

/// Reads what [`to_files`] wrote.
pub fn from_files(files: &BTreeMap<String, Bytes>) -> Result<Vec<Value>, TaskFailure> {
    files
        .iter()
        .map(|(path, bytes)| {
            serde_json::from_slice(bytes).map_err(|error| {
                TaskFailure::permanent("config.malformed", format!("can't read {path:.200} of the image"), error)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[\\PC\"\\\\\u{0}\r\n]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec(("[a-c./]{0,3}", inner), 0..5)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    /// The same value with every map's keys in the opposite order.
    fn turned(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                Value::Object(map.iter().rev().map(|(key, value)| (key.clone(), turned(value))).collect())
            }
            Value::Array(items) => Value::Array(items.iter().map(turned).collect()),
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn equal_objects_have_equal_bytes_and_come_back_the_same(data in json()) {
            let object = |data: Value| serde_json::json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "data": data});
            let (one, other) = (object(data.clone()), turned(&object(data)));
            let files = to_files(std::slice::from_ref(&one)).unwrap();
            prop_assert_eq!(&files, &to_files(&[other]).unwrap());
            prop_assert_eq!(files.keys().next().unwrap(), "apps_v1_Deployment/x.json");
            let back = from_files(&files).unwrap();
            prop_assert_eq!(&back[0], &one);
            prop_assert_eq!(to_files(&back).unwrap(), files);
        }

        #[test]
        fn nothing_that_a_cluster_may_hold_makes_cleaning_or_reading_it_panic(
            (version, kind) in prop::sample::select(vec![("v1", "Service"), ("v1", "Pod"), ("batch/v1", "Job"), ("batch/v1", "CronJob"),
                ("apps/v1", "StatefulSet"), ("apps/v1", "Deployment"), ("v1", "ServiceAccount"), ("v1", "PersistentVolumeClaim"), ("v1", "Secret"),
                ("v1", "ConfigMap"), ("rbac.authorization.k8s.io/v1", "RoleBinding"), ("networking.k8s.io/v1", "NetworkPolicy"), ("x.example/v1", "Pod")]),
            part in json(), data in json(), metadata in json(), depth in 0..7usize,
        ) {
            // The odd part lies somewhere on the way to a container.
            let way = ["jobTemplate", "spec", "template", "spec", "containers", "env"];
            let spec = way[..depth.min(way.len())].iter().rev().fold(part, |inner, key| match *key {
                "containers" | "env" => serde_json::json!({*key: [inner]}),
                key => serde_json::json!({key: inner}),
            });
            let object = serde_json::json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec, "data": data,
                "subjects": data, "secrets": spec});
            let once = clean::clean(&object);
            prop_assert_eq!(clean::clean(&once), once.clone());
            let _ = kinds::refusals(&once, "shop");
            let _ = workload::containers(&once, &workload::Sources::of(&[once.clone()]));
            let rewrite = rewrite::Rewrite { from: "a", to: "b", containers: &[], placements: &[], environment: "e".into(), operation: "o".into() };
            let _ = rewrite.apply(&[once]);
        }
    }
}
