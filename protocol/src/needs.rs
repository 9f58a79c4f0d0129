//! What an image asks of a site, noted when it is saved, and what an agent found of it at a site.
//!
//! Both are plain data; [`crate::verdict`] compares them. Unknown is said, never guessed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of the list of [`Need`]s that this release writes. Images of version 1 have none.
pub const NEEDS_VERSION: u32 = 2;

/// One thing that a site must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// A node that can run its pods.
    Pod(PodNeed),
    /// A storage class.
    StorageClass {
        /// Claims that name it.
        claims: Vec<String>,
        /// Its name; `None`: the cluster's default one.
        class: Option<String>,
        /// Bytes that they ask for together.
        bytes: u64,
        /// Pods of several nodes write to one of them (`ReadWriteMany`).
        shared: bool,
    },
    /// A priority class.
    PriorityClass {
        /// Its name.
        name: String,
        /// What names it.
        by: Vec<String>,
    },
    /// A runtime class.
    RuntimeClass {
        /// Its name.
        name: String,
        /// What names it.
        by: Vec<String>,
    },
    /// An ingress class.
    IngressClass {
        /// Its name.
        name: String,
        /// What names it.
        by: Vec<String>,
    },
    /// A host name that no other ingress answers for.
    Host {
        /// `shop.example`.
        host: String,
        /// What answers for it.
        by: String,
    },
}

/// What the pods of one workload ask of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodNeed {
    /// `deployment/web`.
    pub by: String,
    /// How many run.
    pub replicas: u32,
    /// Thousandths of a core that each asks for.
    pub cpu_m: u64,
    /// Bytes of memory that each asks for.
    pub memory: u64,
    /// What else each asks for: `nvidia.com/gpu`.
    pub extended: BTreeMap<String, u64>,
    /// Labels that the node must have.
    pub node: BTreeMap<String, String>,
    /// Required node affinity: one of these terms, in which all expressions hold. Empty: none is asked for.
    pub affinity: Vec<Vec<NodeExpression>>,
    /// Taints that they bear.
    pub tolerations: Vec<Toleration>,
    /// Ports of the node that they take.
    pub host_ports: Vec<u16>,
}

/// One expression of a node affinity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeExpression {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt`, `Lt`.
    pub operator: String,
    /// What it is compared with.
    pub values: Vec<String>,
}

/// A taint that a pod bears.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Toleration {
    /// The taint's key; empty: every one.
    pub key: String,
    /// The taint's value; `None`: whatever it is.
    pub value: Option<String>,
    /// `NoSchedule`, `NoExecute` …; empty: every one.
    pub effect: String,
}

/// What was found out, or why it wasn't.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Known<T> {
    /// This was found.
    Found(T),
    /// Why it is not known, and how it could be.
    Unknown(String),
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self::Unknown("its agent is of a release that doesn't look for it: upgrade the agent".to_owned())
    }
}

/// What an agent found at its site, in detail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Kinds that the cluster serves in namespaces: `apps/v1 Deployment`.
    pub kinds: Known<Vec<String>>,
    /// Storage classes.
    pub storage: Known<Vec<StorageFound>>,
    /// Names of priority classes.
    pub priority_classes: Known<Vec<String>>,
    /// Names of runtime classes.
    pub runtime_classes: Known<Vec<String>>,
    /// Names of ingress classes.
    pub ingress_classes: Known<Vec<String>>,
    /// Host names that ingresses answer for.
    pub hosts: Known<Vec<String>>,
    /// Nodes that are ready.
    pub nodes: Known<NodesFound>,
    /// Volumes can be read and written: an image for movers is configured.
    pub movers: bool,
}

/// A storage class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageFound {
    /// Its name.
    pub name: String,
    /// Taken where a claim names none.
    pub default: bool,
    /// Pods of several nodes may write to its volumes; `None`: its provisioner doesn't tell.
    pub shared: Option<bool>,
    /// Bytes that can still be claimed, where its provisioner tells (`CSIStorageCapacity`).
    pub free: Option<u64>,
}

/// The nodes of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesFound {
    /// Some of them: the roomiest.
    pub nodes: Vec<NodeFound>,
    /// How many there are beside these.
    pub more: u32,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFound {
    /// Its name.
    pub name: String,
    /// `linux/amd64`.
    pub platform: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints that keep pods away.
    pub taints: Vec<TaintFound>,
    /// Thousandths of a core for pods.
    pub cpu_m: u64,
    /// Bytes of memory for pods.
    pub memory: u64,
    /// What else it has for pods.
    pub extended: BTreeMap<String, u64>,
    /// What its pods have asked for already; `None` where not all pods may be seen.
    pub taken: Option<Taken>,
}

/// A taint that keeps pods away from a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaintFound {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// `NoSchedule` or `NoExecute`.
    pub effect: String,
}

/// What the pods of a node have asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Thousandths of a core.
    pub cpu_m: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// What else.
    pub extended: BTreeMap<String, u64>,
    /// Ports of the node.
    pub host_ports: Vec<u16>,
}
