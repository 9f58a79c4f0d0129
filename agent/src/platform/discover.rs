//! The objects of an application: every namespaced kind that the API server lists, custom resources included, minus
//! what controllers own and what clusters make by themselves.

use kube::{
    Api,
    api::{DynamicObject, ListParams},
    core::ApiResource,
    discovery::{Discovery, Scope, verbs},
};
use ocopea_protocol::failure::TaskFailure;
use serde_json::Value;

use super::Platform;
use crate::failures::kubernetes;

/// Objects per page.
const PAGE: u32 = 250;
/// Objects of one application, all kinds together.
const MOST: usize = 20_000;

/// Kinds that say what happens, not what is wanted; or that clusters make from others.
const TRANSIENT: &[(&str, &str)] = &[
    ("", "Event"),
    ("events.k8s.io", "Event"),
    ("", "Endpoints"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("apps", "ControllerRevision"),
    ("coordination.k8s.io", "Lease"),
    ("metrics.k8s.io", "PodMetrics"),
    ("", "Binding"),
    ("cilium.io", "CiliumEndpoint"),
    ("networking.k8s.io", "IPAddress"),
];

/// One object with the resource that it was listed as.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its API resource.
    pub resource: ApiResource,
    /// It, whole, as the API server gave it.
    pub object: Value,
}

/// What a namespace holds.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// What belongs to the configuration.
    pub configuration: Vec<Found>,
    /// Pods that controllers own: what runs.
    pub pods: Vec<Value>,
    /// ReplicaSets that Deployments own, to find a pod's Deployment.
    pub replica_sets: Vec<Value>,
    /// Kinds that could not be listed, with the reason.
    pub unlisted: Vec<String>,
}

impl Platform {
    /// All namespaced resources that can be listed, each in the version that the server prefers.
    pub async fn namespaced_resources(&self) -> Result<Vec<ApiResource>, TaskFailure> {
        let what = format!("can't list the kinds of objects at context {}", self.context);
        let discovery =
            Discovery::new(self.client.clone()).run().await.map_err(|error| kubernetes(&what, &error))?;
        let mut resources = Vec::new();
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                if capabilities.scope == Scope::Namespaced && capabilities.supports_operation(verbs::LIST) {
                    resources.push(resource);
                }
            }
        }
        resources.sort_by(|a, b| (&a.group, &a.kind).cmp(&(&b.group, &b.kind)));
        Ok(resources)
    }

    /// Everything of `namespace` that `selector` selects.
    pub async fn contents(&self, namespace: &str, selector: Option<&str>) -> Result<Contents, TaskFailure> {
        let mut contents = Contents::default();
        let mut count = 0;
        for resource in self.namespaced_resources().await? {
            if TRANSIENT.contains(&(resource.group.as_str(), resource.kind.as_str())) {
                continue;
            }
            let objects = match self.list(&resource, namespace, selector).await {
                Ok(objects) => objects,
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 405) => {
                    if status.code == 403 {
                        contents.unlisted.push(format!("{}: {}", resource.plural, status.message));
                    }
                    continue;
                }
                Err(error) => {
                    return Err(kubernetes(&format!("can't list {} in namespace {namespace}", resource.plural), &error));
                }
            };
            count += objects.len();
            if count > MOST {
                return Err(TaskFailure::permanent(
                    "application.too-large",
                    format!("can't look at namespace {namespace}"),
                    format!("it holds more than {MOST} objects"),
                )
                .next("select a part of it: SITE/NAMESPACE?app=NAME"));
            }
            for object in objects {
                contents.sort(&resource, object);
            }
        }
        Ok(contents)
    }

    /// Only what runs: pods and replica sets.
    pub async fn running(&self, namespace: &str) -> Result<Contents, TaskFailure> {
        let mut contents = Contents::default();
        for (group, kind, plural) in [("", "Pod", "pods"), ("apps", "ReplicaSet", "replicasets")] {
            let gvk = kube::core::GroupVersionKind::gvk(group, "v1", kind);
            let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
            let objects = self
                .list(&resource, namespace, None)
                .await
                .map_err(|error| kubernetes(&format!("can't list {plural} in namespace {namespace}"), &error))?;
            for object in objects {
                contents.sort(&resource, object);
            }
        }
        contents.configuration.clear();
        Ok(contents)
    }

    async fn list(
        &self,
        resource: &ApiResource,
        namespace: &str,
        selector: Option<&str>,
    ) -> Result<Vec<Value>, kube::Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, resource);
        let mut parameters = ListParams::default().limit(PAGE);
        if let Some(selector) = selector {
            parameters = parameters.labels(selector);
        }
        let mut found = Vec::new();
        loop {
            let page = api.list(&parameters).await?;
            for object in page.items {
                let mut value = serde_json::to_value(&object).map_err(kube::Error::SerdeError)?;
                value["apiVersion"] = Value::from(resource.api_version.clone());
                value["kind"] = Value::from(resource.kind.clone());
                found.push(value);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) if found.len() <= MOST => parameters = parameters.continue_token(&token),
                _ => return Ok(found),
            }
        }
    }
}

impl Contents {
    fn sort(&mut self, resource: &ApiResource, object: Value) {
        let owned = object["metadata"]["ownerReferences"]
            .as_array()
            .is_some_and(|owners| owners.iter().any(|owner| owner["controller"].as_bool() == Some(true)));
        match (resource.group.as_str(), resource.kind.as_str(), owned) {
            ("", "Pod", true) => self.pods.push(object),
            ("", "Pod", false) => {
                self.pods.push(object.clone());
                self.configuration.push(Found { resource: resource.clone(), object });
            }
            ("apps", "ReplicaSet", true) => self.replica_sets.push(object),
            (_, _, true) => {}
            _ if made_by_the_cluster(resource, &object) => {}
            _ => self.configuration.push(Found { resource: resource.clone(), object }),
        }
    }
}

/// What every namespace gets without anybody's doing.
fn made_by_the_cluster(resource: &ApiResource, object: &Value) -> bool {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let plain = |field: &str| object["metadata"][field].as_object().is_none_or(serde_json::Map::is_empty);
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "ConfigMap") => matches!(name, "kube-root-ca.crt" | "openshift-service-ca.crt"),
        ("", "ServiceAccount") => {
            name == "default"
                && plain("annotations")
                && plain("labels")
                && object["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        }
        ("", "Secret") => object["type"].as_str() == Some("kubernetes.io/service-account-token"),
        _ => false,
    }
}
