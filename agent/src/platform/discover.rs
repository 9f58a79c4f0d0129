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
/// How often a list is begun again.
const RELISTS: u32 = 3;
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
    ("", "Binding"),
    ("cilium.io", "CiliumEndpoint"),
    ("networking.k8s.io", "IPAddress"),
    ("storage.k8s.io", "CSIStorageCapacity"),
];
/// API groups that only measure. Their servers may be away: nothing of an application is in them.
const MEASURES: &[&str] = &["metrics.k8s.io", "custom.metrics.k8s.io", "external.metrics.k8s.io"];

/// What an API server can list within namespaces.
#[derive(Clone, Debug, Default)]
pub(super) struct Kinds {
    resources: Vec<ApiResource>,
    /// `apps/v1 Deployment`: every version that is served.
    served: Vec<String>,
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
        // Every kind in its most stable version: one that only an older or younger version has is a kind, too.
        for (resource, capabilities) in group.resources_by_stability() {
            if capabilities.scope == Scope::Namespaced && capabilities.supports_operation(verbs::LIST) {
                self.resources.push(resource);
            }
        }
        for version in group.versions() {
            let kinds = group.versioned_resources(version).into_iter();
            let within = kinds.filter(|(_, capabilities)| capabilities.scope == Scope::Namespaced);
            self.served.extend(within.map(|(resource, _)| format!("{} {}", resource.api_version, resource.kind)));
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
    /// What stands between pods and their workload, ReplicaSets and Jobs say: kind, name and owners only.
    pub owned: Vec<Value>,
    /// Of all this, what the selector selects, by uid; everything when there is none.
    pub selected: Option<BTreeSet<String>>,
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

    /// Every kind within namespaces in every version that is served, `apps/v1 Deployment`; and the API groups that did
    /// not answer, with the reason.
    pub async fn served_kinds(&self) -> Result<(Vec<String>, Vec<String>), TaskFailure> {
        let kinds = self.kinds().await?;
        Ok((kinds.served.clone(), kinds.unknown.clone()))
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
        match Discovery::new(self.client.clone()).exclude(MEASURES).run().await {
            Ok(discovery) => discovery.groups().for_each(|group| kinds.take(group)),
            // One broken extension API makes the whole discovery fail: then group by group, and what can't be had is
            // named instead of being silently absent.
            Err(kube::Error::Api(_) | kube::Error::Discovery(_)) => {
                let groups = self.client.list_api_groups().await.map_err(|error| kubernetes(&what, &error))?;
                for name in std::iter::once(String::new()).chain(groups.groups.into_iter().map(|group| group.name)) {
                    if MEASURES.contains(&name.as_str()) {
                        continue;
                    }
                    match kube::discovery::group(&self.client, &name).await {
                        Ok(group) => kinds.take(&group),
                        Err(error) if name.is_empty() || name == "apps" => return Err(kubernetes(&what, &error)),
                        Err(error) => kinds.unknown.push(format!("{name}: {}", chain(&error))),
                    }
                }
            }
            // Asking again, group by group, would only take as long again.
            Err(error) => return Err(kubernetes(&what, &error)),
        }
        kinds.resources.sort_by(|a, b| (&a.group, &a.kind).cmp(&(&b.group, &b.kind)));
        kinds.served.sort();
        kinds.served.dedup();
        Ok(kinds)
    }

    /// Everything of `namespace`, and what of it `selector` selects.
    pub async fn contents(&self, namespace: &str, selector: Option<&str>) -> Result<Contents, TaskFailure> {
        let kinds = self.kinds().await?;
        let mut contents = Contents { unlisted: kinds.unknown.clone(), ..Contents::default() };
        contents.selected = selector.map(|_| BTreeSet::new());
        let mut count = 0;
        let mut asked = Vec::new();
        for resource in &kinds.resources {
            if !TRANSIENT.contains(&(resource.group.as_str(), resource.kind.as_str())) {
                asked.push(async move { (resource, self.list_selected(resource, namespace, selector).await) });
            }
        }
        let mut lists = stream::iter(asked).buffered(LISTS);
        while let Some((resource, listed)) = lists.next().await {
            let (objects, chosen) = match listed {
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
            if let Some(selected) = &mut contents.selected {
                selected.extend(chosen);
            }
            for object in objects {
                if self.account.as_ref().is_some_and(|account| account.is_opt_in(&object)) {
                    continue;
                }
                contents.sort(resource, object);
            }
        }
        contents.drop_made();
        contents.held = match self.held(namespace).await {
            Ok(held) => held,
            // It is among what could not be listed.
            Err(failure) if failure.code == "site.forbidden" && !contents.unlisted.is_empty() => Vec::new(),
            Err(failure) => return Err(failure),
        };
        contents.undo_holds();
        Ok(contents)
    }

    /// Only what runs: pods, and what stands between them and their workloads.
    pub async fn running(&self, namespace: &str) -> Result<Contents, TaskFailure> {
        let mut contents = Contents::default();
        let kinds = [("", "Pod", "pods"), ("apps", "ReplicaSet", "replicasets"), ("batch", "Job", "jobs")];
        for (group, kind, plural) in kinds {
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

    /// All objects of a kind, and the uids of those that `selector` selects: by the server's own understanding of it.
    async fn list_selected(
        &self,
        resource: &ApiResource,
        namespace: &str,
        selector: Option<&str>,
    ) -> Result<(Vec<Value>, Vec<String>), kube::Error> {
        let objects = self.list(resource, namespace, None).await?;
        if selector.is_none() || objects.is_empty() {
            return Ok((objects, Vec::new()));
        }
        let chosen = self.list(resource, namespace, selector).await?;
        Ok((objects, chosen.iter().filter_map(uid).collect()))
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
        let mut again = 0;
        loop {
            let page = match api.list(&parameters).await {
                // The page's place was forgotten, because much changes: from the beginning, a few times.
                Err(kube::Error::Api(status)) if status.code == 410 && again < RELISTS => {
                    again += 1;
                    found.clear();
                    parameters.continue_token = None;
                    continue;
                }
                page => page?,
            };
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

/// Whether a controller makes an object of this kind again from its owner. What somebody tied to a workload, so that it goes
/// with it, is nobody's but theirs.
fn made_again(group: &str, kind: &str, owner: &Value) -> bool {
    const MADE: &[(&str, &str)] = &[("apps", "ReplicaSet"), ("batch", "Job"), ("discovery.k8s.io", "EndpointSlice")];
    const GROUPS: &[&str] = &["", "apps", "batch", "autoscaling", "policy", "networking.k8s.io"];
    let of = owner["apiVersion"].as_str().and_then(|version| version.split_once('/')).map_or("", |(group, _)| group);
    MADE.contains(&(group, kind)) || kind == "PersistentVolumeClaim" || !GROUPS.contains(&of)
}

fn uid(object: &Value) -> Option<String> {
    object["metadata"]["uid"].as_str().map(str::to_owned)
}

impl Contents {
    fn sort(&mut self, resource: &ApiResource, object: Value) {
        if [super::MOVER, super::HELD].iter().any(|helper| object["metadata"]["labels"][*helper].is_string()) {
            return;
        }
        let owners = object["metadata"]["ownerReferences"].as_array();
        let owner = owners.and_then(|owners| owners.iter().find(|owner| owner["controller"] == true));
        match (resource.group.as_str(), resource.kind.as_str(), owner) {
            ("", "Pod", Some(_)) => self.pods.push(object),
            ("", "Pod", None) => {
                self.pods.push(object.clone());
                self.configuration.push(Found { resource: resource.clone(), object });
            }
            // Whoever made a claim, the files behind it are the application's; but for those that end with their pod.
            ("", "PersistentVolumeClaim", Some(owner)) if owner["kind"] != "Pod" => {
                self.configuration.push(Found { resource: resource.clone(), object });
            }
            (group, kind, Some(owner)) if made_again(group, kind, owner) => self.owned.push(serde_json::json!({
                "apiVersion": object["apiVersion"], "kind": object["kind"],
                "metadata": {"name": object["metadata"]["name"], "ownerReferences": object["metadata"]["ownerReferences"]}})),
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

    /// What controllers keep beside what the owner made: addresses of Services that select pods, tokens of accounts.
    fn drop_made(&mut self) {
        let names = |kind: &'static str, keep: fn(&Value) -> bool| -> BTreeSet<String> {
            let of_kind = self.configuration.iter().filter(|f| f.resource.kind == kind && f.resource.group.is_empty());
            of_kind
                .filter(|f| keep(&f.object))
                .filter_map(|f| f.object["metadata"]["name"].as_str().map(str::to_owned))
                .collect()
        };
        let selecting = names("Service", |service| {
            service["spec"]["selector"].as_object().is_some_and(|labels| !labels.is_empty())
        });
        let mut tokens = BTreeSet::new();
        for account in self.configuration.iter().filter(|f| f.resource.kind == "ServiceAccount") {
            let secrets = account.object["secrets"].as_array().into_iter().flatten();
            tokens.extend(secrets.filter_map(|secret| secret["name"].as_str().map(str::to_owned)));
        }
        self.configuration.retain(|found| {
            let metadata = &found.object["metadata"];
            let name = metadata["name"].as_str().unwrap_or_default();
            match (found.resource.group.as_str(), found.resource.kind.as_str()) {
                ("", "Endpoints") => {
                    !selecting.contains(name)
                        && metadata["labels"]["endpoints.kubernetes.io/managed-by"].is_null()
                        && metadata["annotations"]["control-plane.alpha.kubernetes.io/leader"].is_null()
                }
                ("discovery.k8s.io", "EndpointSlice") => {
                    let made = metadata["labels"]["endpointslice.kubernetes.io/managed-by"].as_str();
                    !made.is_some_and(|by| by.ends_with(".k8s.io"))
                }
                // Those that somebody asked for by hand are filled by the next cluster as they were by this one.
                ("", "Secret") if found.object["type"] == "kubernetes.io/service-account-token" => {
                    !tokens.contains(name)
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
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::GroupVersionKind;
    use serde_json::json;

    use super::*;

    fn sorted(objects: &[Value]) -> Contents {
        let mut contents = Contents::default();
        for object in objects {
            let version = object["apiVersion"].as_str().unwrap();
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let resource =
                ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, object["kind"].as_str().unwrap()));
            contents.sort(&resource, object.clone());
        }
        contents.drop_made();
        contents
    }

    fn names(contents: &Contents) -> Vec<String> {
        contents.configuration.iter().map(|found| object_ref(&found.object).to_string()).collect()
    }

    fn owned(version: &str, kind: &str, name: &str, owner: (&str, &str)) -> Value {
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "ownerReferences":
            [{"apiVersion": owner.0, "kind": owner.1, "name": "o", "uid": "u", "controller": true}]}})
    }

    #[test]
    fn data_and_what_people_tied_to_a_workload_belong_to_it_and_what_controllers_make_again_does_not() {
        let contents = sorted(&[
            owned("v1", "PersistentVolumeClaim", "data-set-0", ("apps/v1", "StatefulSet")),
            owned("v1", "PersistentVolumeClaim", "of-operator", ("db.example/v1", "Cluster")),
            owned("v1", "PersistentVolumeClaim", "scratch", ("v1", "Pod")),
            owned("v1", "ConfigMap", "by-hand", ("apps/v1", "Deployment")),
            owned("v1", "Secret", "of-operator", ("db.example/v1", "Cluster")),
            owned("apps/v1", "ReplicaSet", "web-1", ("apps/v1", "Deployment")),
            owned("batch/v1", "Job", "nightly-1", ("batch/v1", "CronJob")),
        ]);
        assert_eq!(
            names(&contents),
            ["persistentvolumeclaim/data-set-0", "persistentvolumeclaim/of-operator", "configmap/by-hand"]
        );
        assert_eq!(contents.owned.len(), 4);
    }

    #[test]
    fn addresses_and_tokens_by_hand_stay_and_made_ones_go() {
        let named = |version: &str, kind: &str, name: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
        let with = |mut object: Value, pointer: &str, value: Value| {
            object[pointer] = value;
            object
        };
        let slice = |name: &str, by: &str| json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": name, "labels": {"endpointslice.kubernetes.io/managed-by": by}}});
        let token =
            |name: &str| with(named("v1", "Secret", name), "type", json!("kubernetes.io/service-account-token"));
        let contents = sorted(&[
            with(named("v1", "Service", "web"), "spec", json!({"selector": {"app": "web"}})),
            named("v1", "Service", "outside"),
            named("v1", "Endpoints", "web"),
            named("v1", "Endpoints", "outside"),
            slice("made", "endpointslice-controller.k8s.io"),
            slice("by-hand", "somebody"),
            with(named("v1", "ServiceAccount", "web"), "secrets", json!([{"name": "web-token-x"}])),
            token("web-token-x"),
            token("asked-for"),
        ]);
        assert_eq!(
            names(&contents),
            [
                "service/web",
                "service/outside",
                "endpoints/outside",
                "endpointslice/by-hand",
                "serviceaccount/web",
                "secret/asked-for"
            ]
        );
    }
}
