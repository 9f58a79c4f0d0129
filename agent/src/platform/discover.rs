//! The objects of an application: every namespaced kind that the API server lists, custom resources included, minus
//! what controllers own and what clusters make by themselves.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use kube::{
    Api,
    api::{DynamicObject, ListParams},
    core::ApiResource,
    discovery::{ApiGroup, Discovery, Scope, verbs},
};
use ocopea_protocol::failure::TaskFailure;
use serde_json::Value;

use super::{Platform, hold::HeldWorkload};
use crate::{
    configs::object_ref,
    failures::{chain, kubernetes},
};

/// Objects per page.
const PAGE: u32 = 250;
/// Objects of one application, all kinds together.
const MOST: usize = 20_000;
/// Kinds that are listed at the same time.
const LISTS: usize = 8;
/// How long an answer about kinds is good.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// Kinds that say what happens, not what is wanted; or that clusters make from others.
const TRANSIENT: &[(&str, &str)] = &[
    ("", "Event"),
    ("events.k8s.io", "Event"),
    ("apps", "ControllerRevision"),
    ("coordination.k8s.io", "Lease"),
    ("metrics.k8s.io", "PodMetrics"),
    ("", "Binding"),
    ("cilium.io", "CiliumEndpoint"),
    ("networking.k8s.io", "IPAddress"),
];

/// What an API server can list within namespaces.
#[derive(Clone, Debug, Default)]
pub(super) struct Kinds {
    resources: Vec<ApiResource>,
    /// API groups that did not answer, with the reason.
    unknown: Vec<String>,
}

/// With the moment at which it was asked.
#[derive(Clone)]
pub(super) struct KnownKinds {
    at: Duration,
    kinds: Arc<Kinds>,
}

impl Kinds {
    fn take(&mut self, group: &ApiGroup) {
        for (resource, capabilities) in group.recommended_resources() {
            if capabilities.scope == Scope::Namespaced && capabilities.supports_operation(verbs::LIST) {
                self.resources.push(resource);
            }
        }
    }
}

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
    /// Workloads that are held at zero for a save.
    pub held: Vec<HeldWorkload>,
}

impl Platform {
    /// All namespaced resources that can be listed, each in the version that the server prefers.
    pub async fn namespaced_resources(&self) -> Result<Vec<ApiResource>, TaskFailure> {
        Ok(self.kinds().await?.resources.clone())
    }

    /// What the server can list; asked anew after a while, because kinds come and go with operators.
    async fn kinds(&self) -> Result<Arc<Kinds>, TaskFailure> {
        let now = self.seams.clock.monotonic();
        let known = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.filter(|known| now.saturating_sub(known.at) < KNOWN_FOR) {
            return Ok(known.kinds);
        }
        let kinds = Arc::new(self.ask_kinds().await?);
        // Kinds that could not be found out now are asked for again at once.
        let fresh = kinds.unknown.is_empty().then(|| KnownKinds { at: now, kinds: Arc::clone(&kinds) });
        *self.kinds.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(kinds)
    }

    async fn ask_kinds(&self) -> Result<Kinds, TaskFailure> {
        let what = format!("can't list the kinds of objects at context {}", self.context);
        let mut kinds = Kinds::default();
        if let Ok(discovery) = Discovery::new(self.client.clone()).run().await {
            discovery.groups().for_each(|group| kinds.take(group));
        } else {
            // One broken extension API makes the whole discovery fail: then group by group, and what can't be had is
            // named instead of being silently absent.
            let groups = self.client.list_api_groups().await.map_err(|error| kubernetes(&what, &error))?;
            for name in std::iter::once(String::new()).chain(groups.groups.into_iter().map(|group| group.name)) {
                match kube::discovery::group(&self.client, &name).await {
                    Ok(group) => kinds.take(&group),
                    Err(error) if name.is_empty() || name == "apps" => return Err(kubernetes(&what, &error)),
                    Err(error) => kinds.unknown.push(format!("kinds of {name}: {}", chain(&error))),
                }
            }
        }
        kinds.resources.sort_by(|a, b| (&a.group, &a.kind).cmp(&(&b.group, &b.kind)));
        Ok(kinds)
    }

    /// Everything of `namespace` that `selector` selects.
    pub async fn contents(&self, namespace: &str, selector: Option<&str>) -> Result<Contents, TaskFailure> {
        let kinds = self.kinds().await?;
        let mut contents = Contents { unlisted: kinds.unknown.clone(), ..Contents::default() };
        let mut count = 0;
        let mut asked = Vec::new();
        for resource in &kinds.resources {
            if !TRANSIENT.contains(&(resource.group.as_str(), resource.kind.as_str())) {
                asked.push(async move { (resource, self.list(resource, namespace, selector).await) });
            }
        }
        let mut lists = stream::iter(asked).buffered(LISTS);
        while let Some((resource, listed)) = lists.next().await {
            let objects = match listed {
                Ok(objects) => objects,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => continue,
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    contents.unlisted.push(format!("{}: {}", resource.plural, status.message));
                    continue;
                }
                // An extension API whose server is away: its objects can't be told, so they are named.
                Err(kube::Error::Api(status)) if status.code == 503 && !resource.group.is_empty() => {
                    contents.unlisted.push(format!("{}: {}", resource.plural, status.message));
                    continue;
                }
                Err(error) => {
                    return Err(kubernetes(
                        &format!("can't list {} in namespace {namespace}", resource.plural),
                        &error,
                    ));
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
                contents.sort(resource, object);
            }
        }
        contents.drop_made_endpoints();
        contents.held = self.held(namespace).await?;
        contents.undo_holds();
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
        if [super::MOVER, super::HELD].iter().any(|helper| object["metadata"]["labels"][*helper].is_string()) {
            return;
        }
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

impl Contents {
    /// What is held counts as it is when it is let go.
    fn undo_holds(&mut self) {
        for found in &mut self.configuration {
            let is = object_ref(&found.object);
            for held in self.held.iter().filter(|held| held.workload == is) {
                found.object["spec"]["replicas"] = Value::from(held.replicas);
            }
        }
    }

    /// Addresses that controllers keep for Services with a selector; those of a Service without one are its owner's.
    fn drop_made_endpoints(&mut self) {
        let by_hand: BTreeSet<String> = self
            .configuration
            .iter()
            .filter(|found| found.resource.kind == "Service" && found.resource.group.is_empty())
            .filter(|found| found.object["spec"]["selector"].as_object().is_none_or(serde_json::Map::is_empty))
            .filter_map(|found| found.object["metadata"]["name"].as_str().map(str::to_owned))
            .collect();
        self.configuration.retain(|found| {
            let metadata = &found.object["metadata"];
            match (found.resource.group.as_str(), found.resource.kind.as_str()) {
                ("", "Endpoints") => metadata["name"].as_str().is_some_and(|name| by_hand.contains(name)),
                ("discovery.k8s.io", "EndpointSlice") => {
                    let made = metadata["labels"]["endpointslice.kubernetes.io/managed-by"].as_str();
                    let service = metadata["labels"]["kubernetes.io/service-name"].as_str();
                    !made.is_some_and(|by| by.ends_with(".k8s.io"))
                        && service.is_some_and(|service| by_hand.contains(service))
                }
                _ => true,
            }
        });
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
