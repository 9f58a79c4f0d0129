//! The configuration of an application: cleaned, canonical, ordered, rewritten. Pure: no cluster, no clock.
//!
//! The principle: what is saved is what the owner wants, not what a cluster made of it; the same wish always gives
//! the same bytes; and what a restore changes, it changes by meaning, in named places, never by searching text.

pub mod clean;
pub mod kinds;
pub mod network;
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
        let mut text = serde_json::to_vec_pretty(&canonical(object)).map_err(|error| {
            TaskFailure::permanent("config.encode", format!("can't save {reference}"), error)
        })?;
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
