//! What an agent found of an application, before anything is copied.

use serde::{Deserialize, Serialize};

use crate::{
    image::{Consistency, DataKind},
    names::{ComponentName, Digest, Namespace},
};

/// Names one Kubernetes object of the application's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    /// `apps/v1`, `v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind.to_lowercase(), self.name)
    }
}

/// An application as it runs, and how its parts would be saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Where it lives.
    pub namespace: Namespace,
    /// What selects it within the namespace; the whole namespace when absent.
    pub selector: Option<String>,
    /// What it is called: the namespace, or the selector's value.
    pub application: String,
    /// The cluster's version, as `1.36.0`.
    pub kubernetes: String,
    /// `linux/amd64` …
    pub platforms: Vec<String>,
    /// Objects of the configuration, in canonical order.
    pub objects: Vec<ObjectRef>,
    /// Bytes of the configuration.
    pub config_bytes: u64,
    /// Container images by the digest that runs.
    pub containers: Vec<ContainerFound>,
    /// Data services.
    pub data: Vec<DataFound>,
    /// What would not be saved.
    pub gaps: Vec<Gap>,
    /// The environment that this namespace is, with the image it came from, when Ocopea deployed it.
    pub base: Option<DeployedFrom>,
    /// Digest over the set of containers and data services: a copy made later checks that it is still the same.
    pub fingerprint: String,
}

/// Marks that Ocopea left on a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployedFrom {
    /// The environment's id.
    pub environment: String,
    /// Digest of the record it was restored from.
    pub record: String,
}

/// One container image that the application runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFound {
    /// The component's name, from the image's own.
    pub name: ComponentName,
    /// Registry and path without tag: `172.31.0.254:5000/samples/lets-chat`.
    pub repository: String,
    /// The tag that the manifests name, if any.
    pub tag: Option<String>,
    /// The digest that runs (of the manifest or the multi-platform index).
    pub digest: Digest,
    /// What uses it.
    pub used_by: Vec<ObjectRef>,
    /// `imagePullSecrets` that its pods name.
    pub pull_secrets: Vec<String>,
}

/// One data service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFound {
    /// The component's name.
    pub name: ComponentName,
    /// Its kind.
    pub kind: DataKind,
    /// The server's version; absent for volumes and where it could not be found out.
    pub version: Option<String>,
    /// The workload that serves it (`StatefulSet/messages`); absent for volumes.
    pub workload: Option<ObjectRef>,
    /// A pod of it that is ready, or for a volume one that mounts it; absent when none does.
    pub pod: Option<String>,
    /// The container within the pod.
    pub container: Option<String>,
    /// The port it listens on; 0 for volumes.
    pub port: u16,
    /// Names under which the application reaches it: Services, and per-pod names of headless ones.
    pub hosts: Vec<String>,
    /// Persistent volume claims that it owns (its own storage, or the volume itself).
    pub claims: Vec<String>,
    /// Estimated bytes; absent when unknown.
    pub bytes: Option<u64>,
    /// Number of streams, when known.
    pub streams: Option<u64>,
    /// Features used that a target must have: `extension:pg_trgm`, `collation:icu`, `validator` …
    pub features: Vec<String>,
    /// What a copy of it will be.
    pub consistency: Consistency,
    /// Where the application's configuration says how to reach it.
    pub bindings: Vec<Binding>,
    /// What it may not read, with the statements or rules that would mend it; blocks the save.
    pub rights: Vec<Gap>,
}

/// A place in the configuration that names a data service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The object that holds it.
    pub object: ObjectRef,
    /// Where within it: `data.MONGODB_URI`, `spec.template.spec.containers[0].env[DB_HOST]`.
    pub path: String,
    /// What it is: `uri`, `host`, `user`, `password`, `database`.
    pub role: String,
    /// The component that reads it.
    pub consumer: Option<ObjectRef>,
}

/// Something that is not, or can't be, saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The name to give to `--without`.
    pub name: String,
    /// What it is: `persistent volume claim uploads`.
    pub what: String,
    /// Why it would not be saved.
    pub why: String,
    /// Whether the save is refused unless it is left out by name.
    pub blocking: bool,
    /// What would mend it.
    pub next: String,
}
