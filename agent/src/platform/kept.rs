//! A Secret of this pod's namespace that keeps something between restarts, shared by all pods that may read it.
//!
//! Whoever installs the agent makes it, empty: rules can name an object that is there, and nobody can be let make one of a
//! certain name only.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, api::PostParams};
use ocopea_protocol::failure::TaskFailure;

use crate::failures::kubernetes;

/// What it holds, and as of which version of it.
#[derive(Default)]
pub struct Held {
    entries: BTreeMap<String, ByteString>,
    secret: Secret,
}

impl Held {
    /// One entry.
    pub fn get(&self, entry: &str) -> Option<&[u8]> {
        self.entries.get(entry).map(|bytes| bytes.0.as_slice()).filter(|bytes| !bytes.is_empty())
    }
}

/// The Secret.
pub struct KeptSecret {
    api: Api<Secret>,
    namespace: String,
    name: String,
}

impl std::fmt::Display for KeptSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "secret {}/{}", self.namespace, self.name)
    }
}

impl KeptSecret {
    /// One that should be there.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn failure(&self, verb: &str, error: &kube::Error) -> TaskFailure {
        let failure = kubernetes(&format!("can't {verb} {self}"), error);
        let name = &self.name;
        match failure.code.as_str() {
            "site.forbidden" => failure.next(format!(
                "grant {{apiGroups: [\"\"], resources: [\"secrets\"], resourceNames: [{name:?}], verbs: [\"get\", \"update\"]}} in \
                 namespace {} to this pod's service account",
                self.namespace
            )),
            "site.not-found" => {
                let make = format!("kubectl create secret generic {name} --namespace={}", self.namespace);
                failure.next(format!("make it, empty: {make}"))
            }
            _ => failure,
        }
    }

    /// All of it.
    pub async fn read(&self) -> Result<Held, TaskFailure> {
        let mut secret = self.api.get(&self.name).await.map_err(|error| self.failure("read", &error))?;
        Ok(Held { entries: secret.data.take().unwrap_or_default(), secret })
    }

    /// Sets one entry of what was read; `None` removes it. Answers whether it did: not when somebody else wrote since.
    pub async fn write(&self, read: &Held, entries: &[(&str, Option<&str>)]) -> Result<bool, TaskFailure> {
        let mut data = read.entries.clone();
        for (entry, text) in entries {
            match text {
                Some(text) => drop(data.insert((*entry).to_owned(), ByteString(text.as_bytes().to_vec()))),
                None => drop(data.remove(*entry)),
            }
        }
        let secret = Secret { data: Some(data), ..read.secret.clone() };
        match self.api.replace(&self.name, &PostParams::default(), &secret).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(self.failure("write", &error)),
        }
    }
}
