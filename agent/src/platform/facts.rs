//! Single facts about a cluster.

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Secret, Service},
    networking::v1::Ingress,
    node::v1::RuntimeClass,
    scheduling::v1::PriorityClass,
    storage::v1::StorageClass,
};
use kube::{Api, ResourceExt, api::ListParams};
use ocopea_protocol::failure::TaskFailure;

use super::Platform;
use crate::failures::kubernetes;

/// Storage classes of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageClasses {
    /// All, the default one first.
    pub names: Vec<String>,
    /// The default one.
    pub default: Option<String>,
}

fn names_of(objects: Vec<impl ResourceExt>) -> Vec<String> {
    objects.iter().map(ResourceExt::name_any).collect()
}

impl Platform {
    /// What tells this cluster from all others: the uid of its namespace `kube-system`, which lives as long as it does.
    /// Empty where that can't be read.
    pub async fn cluster_uid(&self) -> String {
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.get_opt("kube-system").await {
            Ok(found) => found.and_then(|namespace| namespace.metadata.uid).unwrap_or_default(),
            Err(error) => {
                tracing::debug!(%error, "which cluster this is can't be told");
                String::new()
            }
        }
    }

    /// `linux/amd64` … of the nodes that are ready.
    pub async fn architectures(&self) -> Result<Vec<String>, TaskFailure> {
        let api: Api<Node> = Api::all(self.client.clone());
        let nodes = match api.list(&ListParams::default().limit(1000)).await {
            Ok(nodes) => nodes,
            // Who may not see nodes may still use them.
            Err(kube::Error::Api(status)) if status.code == 403 => return Ok(Vec::new()),
            Err(error) => return Err(kubernetes("can't list the cluster's nodes", &error)),
        };
        let mut found: Vec<String> = nodes
            .into_iter()
            .filter_map(|node| node.status)
            .filter(|status| status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"))
            .filter_map(|status| status.node_info)
            .map(|info| format!("{}/{}", info.operating_system, info.architecture))
            .collect();
        found.sort();
        Ok(found)
    }

    /// Storage classes, the default one first.
    pub async fn storage_classes(&self) -> Result<StorageClasses, TaskFailure> {
        let api: Api<StorageClass> = Api::all(self.client.clone());
        let list = api
            .list(&ListParams::default().limit(500))
            .await
            .map_err(|error| kubernetes("can't list the storage classes", &error))?;
        let mut classes = StorageClasses::default();
        for class in list {
            let name = class.metadata.name.unwrap_or_default();
            let marked = class.metadata.annotations.as_ref().is_some_and(|annotations| {
                annotations.get("storageclass.kubernetes.io/is-default-class").is_some_and(|v| v == "true")
            });
            if marked {
                classes.default = Some(name.clone());
                classes.names.insert(0, name);
            } else {
                classes.names.push(name);
            }
        }
        Ok(classes)
    }

    /// Names of the priority or runtime classes; `None` where they may not be listed.
    pub async fn classes(&self, kind: &str) -> Result<Option<Vec<String>>, TaskFailure> {
        let names = match kind {
            "runtime class" => {
                let api: Api<RuntimeClass> = Api::all(self.client.clone());
                api.list_metadata(&ListParams::default()).await.map(|list| names_of(list.items))
            }
            _ => {
                let api: Api<PriorityClass> = Api::all(self.client.clone());
                api.list_metadata(&ListParams::default()).await.map(|list| names_of(list.items))
            }
        };
        match names {
            Ok(names) => Ok(Some(names)),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
            Err(error) => Err(kubernetes(&format!("can't list what there is of a {kind}"), &error)),
        }
    }

    /// The Docker configuration in a pull secret; `None` when there is no such secret.
    pub async fn docker_config(&self, namespace: &str, name: &str) -> Result<Option<Vec<u8>>, TaskFailure> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = api
            .get_opt(name)
            .await
            .map_err(|error| kubernetes(&format!("can't read the pull secret {name}"), &error))?;
        let Some(mut data) = found.and_then(|secret| secret.data) else { return Ok(None) };
        if let Some(config) = data.remove(".dockerconfigjson") {
            return Ok(Some(config.0));
        }
        // The older shape is the inner part of the newer one.
        Ok(data.remove(".dockercfg").map(|old| [br#"{"auths":"#.as_slice(), &old.0, b"}"].concat()))
    }

    /// The first URL under which a namespace can be reached, and what to do where there is none.
    pub async fn urls(&self, namespace: &str) -> Result<(Option<String>, Vec<String>), TaskFailure> {
        let what = format!("can't find the URL of {namespace}");
        let mut urls = Vec::new();
        let mut notes = Vec::new();
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let list = services.list(&ListParams::default().limit(500)).await.map_err(|e| kubernetes(&what, &e))?;
        for service in list {
            let name = service.metadata.name.unwrap_or_default();
            let Some(spec) = service.spec else { continue };
            let ingress = service.status.and_then(|s| s.load_balancer).and_then(|l| l.ingress).unwrap_or_default();
            for port in spec.ports.iter().flatten() {
                for entry in &ingress {
                    if let Some(host) = entry.hostname.as_ref().or(entry.ip.as_ref()) {
                        urls.push(format!("http://{host}:{}", port.port));
                    }
                }
                if let Some(node_port) = port.node_port {
                    urls.push(format!("http://{}:{node_port}", self.api_host));
                }
            }
            notes.push(format!("ocopea connect {namespace} {name}"));
        }
        let ingresses: Api<Ingress> = Api::namespaced(self.client.clone(), namespace);
        let list = ingresses.list(&ListParams::default().limit(500)).await.map_err(|e| kubernetes(&what, &e))?;
        for ingress in list {
            let secure = ingress.spec.as_ref().and_then(|s| s.tls.as_ref()).is_some_and(|t| !t.is_empty());
            let answered = ingress
                .status
                .and_then(|s| s.load_balancer)
                .and_then(|l| l.ingress)
                .is_some_and(|entries| !entries.is_empty());
            for rule in ingress.spec.and_then(|s| s.rules).unwrap_or_default() {
                if let Some(host) = rule.host.filter(|_| answered) {
                    urls.insert(0, format!("{}://{host}", if secure { "https" } else { "http" }));
                }
            }
        }
        Ok((urls.into_iter().next(), notes))
    }
}
