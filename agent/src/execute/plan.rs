//! The plan of a restore: what will be made, changed and why, and what stands against it. Nothing is made here.

use std::collections::BTreeSet;

use ocopea_protocol::{
    failure::TaskFailure,
    image::DataKind,
    inventory::ContainerFound,
    plan::{ContainerPlacement, DataPlacement, PlanStep, Refusal, RestorePlan, StepAction, VersionChoice},
    task::{RestoreTarget, TaskOutput},
    words,
};
use ocopea_repository::Body;
use serde_json::Value;

use super::{
    Task,
    restore::{Saved, data_placements, finished, objects_digest, streams_of},
};
use crate::{
    configs::{
        at, kinds, object_ref,
        references::absent,
        rewrite::{Rewritten, unplaced},
        workload::pod_spec,
    },
    containers::{digest_of, target_for},
    platform::apply::resource_of,
};

impl Task {
    pub(super) async fn plan_restore(&self, target: &RestoreTarget) -> Result<TaskOutput, TaskFailure> {
        let saved = self.saved(target).await?;
        let platform = &self.site.platform;
        let name = target.mark.name.as_str();
        let (mut steps, mut refusals, mut notices) = (Vec::new(), Vec::new(), Vec::new());
        let mut step = |action, what: String, detail: String, why: &str| {
            steps.push(PlanStep { action, what, detail, why: why.to_owned() });
        };
        if platform.namespace_exists(name).await? {
            refusals.push(Refusal {
                what: format!("environment {name}"),
                needed: "a namespace of that name that doesn't exist yet".to_owned(),
                found: "it exists".to_owned(),
                next: "choose another name with --as".to_owned(),
            });
        } else if let Err(failure) = platform.try_namespace(&target.mark).await {
            if failure.is_retryable() {
                return Err(failure);
            }
            refusals.push(Refusal {
                what: format!("environment {name}"),
                needed: "the right to make a namespace".to_owned(),
                found: failure.cause,
                next: failure.next,
            });
        }
        step(StepAction::Create, format!("namespace {name}"), String::new(), "");
        let containers = self.place_containers(target, &saved, &mut refusals).await?;
        for placement in &containers {
            let detail = format!("{}@{}", placement.target, placement.digest);
            if placement.push {
                step(
                    StepAction::Push,
                    format!("container {}", placement.component),
                    detail,
                    "from the repository to the site's registry",
                );
            } else {
                step(StepAction::Change, format!("container {}", placement.component), detail, "asked for with --set");
            }
        }
        let Rewritten { objects, changes, doubts } = self.rewrite(target, &saved, &containers);
        for doubt in doubts {
            notices.push(format!(
                "{}: {}: left as it is; where it means the namespace {}, the copy would use what runs there",
                doubt.object, doubt.detail, saved.record.namespace
            ));
        }
        // What had done its work isn't made again.
        for object in saved.objects.iter().filter(|object| !finished(object)) {
            refusals.extend(kinds::refusals(object, &saved.record.namespace));
            notices.extend(outward(object));
            for image in unplaced(object, &saved.containers) {
                notices.push(format!(
                    "{} uses {image}, which is not part of the image: its nodes pull it themselves",
                    object_ref(object)
                ));
            }
        }
        refusals.extend(self.storage_refusals(&objects).await?);
        refusals.extend(self.class_refusals(&objects).await?);
        refusals.extend(self.platform_refusals(target, &saved).await?);
        let data = data_placements(&saved);
        refusals.extend(self.data_refusals(&data));
        refusals.extend(serverless(&objects, &data));
        let (without, incomplete) = missing(&objects);
        refusals.extend(without);
        notices.extend(incomplete);
        notices.extend(mixed_servers(&saved, &data));
        for placement in &data {
            let streams = streams_of(&saved.record, placement);
            let items: u64 = streams.iter().map(|s| s.items).sum();
            let bytes: u64 = streams.iter().map(|s| s.bytes).sum();
            let unit = streams.first().map_or("items", |s| s.unit.as_str());
            let unit = if streams.iter().all(|s| s.unit == unit) { unit } else { "items" };
            let streams = words::count(streams.len() as u64, "stream");
            let detail = format!("as saved, load {streams}, {items} {unit}, {}", words::size(bytes));
            step(
                StepAction::Load,
                format!("{} {}", placement.kind, placement.component),
                detail,
                "before any of its consumers starts",
            );
        }
        for object in &objects {
            let reference = object_ref(object);
            if finished(object) {
                step(
                    StepAction::Leave,
                    reference.to_string(),
                    "it had done its work".to_owned(),
                    "kept in the image, not run again",
                );
                continue;
            }
            let own: Vec<&str> = changes.iter().filter(|c| c.object == reference).map(|c| c.detail.as_str()).collect();
            let action = if own.is_empty() { StepAction::Create } else { StepAction::Change };
            step(action, reference.to_string(), own.join("; "), "");
        }
        if refusals.is_empty() {
            refusals.extend(self.dry_run(&objects).await?);
        }
        step(StepAction::Wait, "workloads".to_owned(), "until all are ready".to_owned(), "");
        for component in &saved.record.components {
            if let Body::Data { notices: of_data, .. } = &component.body {
                notices.extend(of_data.iter().map(|notice| format!("{}: {notice}", component.name)));
            }
        }
        let mut plan = RestorePlan {
            environment: target.mark.name.clone(),
            steps,
            refusals,
            notices,
            containers,
            data,
            objects_digest: objects_digest(&objects),
            digest: String::new(),
        };
        let text = serde_json::to_vec(&plan_for_approval(&plan))
            .map_err(|error| TaskFailure::permanent("plan.encode", "can't digest the plan", error))?;
        plan.digest = digest_of(&text).to_string();
        Ok(TaskOutput::Planned(Box::new(plan)))
    }

    /// Where each container image will be pulled from.
    async fn place_containers(
        &self,
        target: &RestoreTarget,
        saved: &Saved,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Vec<ContainerPlacement>, TaskFailure> {
        let Some(registry) = &self.site.registry else {
            if !saved.containers.is_empty() {
                refusals.push(Refusal {
                    what: format!("site {}", self.site.name),
                    needed: "a registry that container images can be pushed to".to_owned(),
                    found: "none is configured".to_owned(),
                    next: "start with --site NAME=CONTEXT,registry=HOST/PATH".to_owned(),
                });
            }
            return Ok(Vec::new());
        };
        if let Err(failure) = self.registries(self.site.credentials.clone()).answers(registry).await {
            refusals.push(Refusal {
                what: format!("registry {}", registry.base()),
                needed: "an answer, and the right to push".to_owned(),
                found: failure.cause,
                next: failure.next,
            });
            return Ok(Vec::new());
        }
        for choice in &target.versions {
            if !saved.containers.iter().any(|c| c.name == choice.component) {
                let names: Vec<&str> = saved.containers.iter().map(|c| c.name.as_str()).collect();
                refusals.push(Refusal {
                    what: format!("--set {}={}", choice.component, choice.version),
                    needed: "a container component of that name".to_owned(),
                    found: format!("the image has {}", names.join(", ")),
                    next: "see the components: ocopea show IMAGE".to_owned(),
                });
            }
        }
        let mut placements = Vec::new();
        for container in &saved.containers {
            match target.versions.iter().find(|v| v.component == container.name) {
                None => placements.push(ContainerPlacement {
                    component: container.name.clone(),
                    digest: container.digest,
                    target: target_for(registry, &target.mark, &container.name),
                    push: true,
                }),
                Some(choice) => {
                    if let Some(placement) =
                        self.resolve_version(container, choice, &registry.base(), &registry.host, refusals).await?
                    {
                        placements.push(placement);
                    }
                }
            }
        }
        Ok(placements)
    }

    async fn resolve_version(
        &self,
        container: &ContainerFound,
        choice: &VersionChoice,
        base: &str,
        host: &str,
        refusals: &mut Vec<Refusal>,
    ) -> Result<Option<ContainerPlacement>, TaskFailure> {
        // The application's own path where the site's registry is the one it came from; else the name below the site's.
        let path = container.repository.split_once('/').map_or("", |(_, path)| path);
        let name = container.repository.rsplit('/').next().unwrap_or_default();
        let mut candidates: Vec<String> = Vec::new();
        for candidate in [format!("{host}/{path}"), format!("{base}/{path}"), format!("{base}/{name}")] {
            if !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
        let context = self.registries(self.site.credentials.clone());
        for candidate in &candidates {
            if let Some(resolved) = context.resolve(candidate, &choice.version).await? {
                return Ok(Some(ContainerPlacement {
                    component: container.name.clone(),
                    digest: resolved.digest,
                    target: candidate.clone(),
                    push: false,
                }));
            }
        }
        refusals.push(Refusal {
            what: format!("--set {}={}", choice.component, choice.version),
            needed: format!("{} in the site's registry", choice.version),
            found: format!("not at {}", candidates.join(", nor at ")),
            next: "push that version to the site's registry, or name one that it has".to_owned(),
        });
        Ok(None)
    }

    /// Container images that no node of the site can run.
    async fn platform_refusals(&self, target: &RestoreTarget, saved: &Saved) -> Result<Vec<Refusal>, TaskFailure> {
        let mut nodes = self.site.platform.architectures().await?;
        nodes.dedup();
        if nodes.is_empty() {
            // Nodes may not be listed: unknown is not a refusal.
            return Ok(Vec::new());
        }
        let fits = |platform: &str| {
            nodes
                .iter()
                .any(|node| platform == node || platform.strip_prefix(node).is_some_and(|rest| rest.starts_with('/')))
        };
        let mut refusals = Vec::new();
        for component in &saved.record.components {
            let Body::Container { platforms, .. } = &component.body else { continue };
            let replaced = target.versions.iter().any(|version| version.component == component.name);
            if replaced || platforms.is_empty() || platforms.iter().any(|p| fits(&p.platform)) {
                continue;
            }
            let has: Vec<&str> = platforms.iter().map(|p| p.platform.as_str()).collect();
            refusals.push(Refusal {
                what: format!("container {}", component.name),
                needed: format!("a node of {}", has.join(" or ")),
                found: nodes.join(", "),
                next: "choose another site".to_owned(),
            });
        }
        Ok(refusals)
    }

    /// Data services that nothing here can load.
    fn data_refusals(&self, data: &[DataPlacement]) -> Vec<Refusal> {
        let drivers = crate::data::all();
        let mut refusals = Vec::new();
        for placement in data {
            if !drivers.iter().any(|driver| driver.kind() == placement.kind) {
                refusals.push(Refusal {
                    what: format!("{} {}", placement.kind, placement.component),
                    needed: format!("a driver for {}", placement.kind),
                    found: "this agent has none".to_owned(),
                    next: "use an agent of the release that saved the image".to_owned(),
                });
            }
            if placement.kind == DataKind::Volume && self.site.mover_image.is_none() {
                refusals.push(Refusal {
                    what: format!("volume {}", placement.component),
                    needed: "an image for the pod that writes its files".to_owned(),
                    found: "none is configured".to_owned(),
                    next: "start with --mover-image HOST/PATH/ocopea-mover@sha256:…".to_owned(),
                });
            }
        }
        refusals
    }

    async fn storage_refusals(&self, objects: &[Value]) -> Result<Vec<Refusal>, TaskFailure> {
        let classes = self.site.platform.storage_classes().await?;
        let mut wanted: BTreeSet<(String, Option<String>)> = BTreeSet::new();
        for object in objects {
            let reference = object_ref(object);
            let class = |spec: &Value| spec["storageClassName"].as_str().map(str::to_owned);
            if reference.kind == "PersistentVolumeClaim" {
                wanted.insert((reference.to_string(), class(&object["spec"])));
            }
            for template in object["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
                wanted.insert((reference.to_string(), class(&template["spec"])));
            }
        }
        Ok(wanted
            .into_iter()
            .filter_map(|(what, class)| {
                let fits = match &class {
                    Some(class) => class.is_empty() || classes.names.contains(class),
                    None => classes.default.is_some(),
                };
                (!fits).then(|| Refusal {
                    what,
                    needed: class
                        .map_or("a default storage class".to_owned(), |class| format!("storage class {class}")),
                    found: if classes.names.is_empty() {
                        "no storage class".to_owned()
                    } else {
                        classes.names.join(", ")
                    },
                    next: "make a storage class of that name at the site".to_owned(),
                })
            })
            .collect())
    }

    /// Classes that pods name and the cluster hasn't got: their pods would never be made.
    async fn class_refusals(&self, objects: &[Value]) -> Result<Vec<Refusal>, TaskFailure> {
        let mut refusals = Vec::new();
        for (field, kind) in [("priorityClassName", "priority class"), ("runtimeClassName", "runtime class")] {
            let users: Vec<(String, &str)> = objects
                .iter()
                .filter(|object| !finished(object))
                .filter_map(|object| Some((object_ref(object).to_string(), pod_spec(object)?[field].as_str()?)))
                .filter(|(_, class)| !class.is_empty())
                .collect();
            if users.is_empty() {
                continue;
            }
            // Where they may not be listed it is unknown, and unknown is not a refusal.
            let Some(known) = self.site.platform.classes(kind).await? else { continue };
            for (what, class) in users.into_iter().filter(|(_, class)| !known.iter().any(|known| known == class)) {
                refusals.push(Refusal {
                    what,
                    needed: format!("{kind} {class}"),
                    found: if known.is_empty() { format!("no {kind}") } else { known.join(", ") },
                    next: format!("make a {kind} of that name at the site"),
                });
            }
        }
        Ok(refusals)
    }

    /// Asks the API server about every object, in a namespace that exists; nothing is made.
    async fn dry_run(&self, objects: &[Value]) -> Result<Vec<Refusal>, TaskFailure> {
        let resources = self.site.platform.namespaced_resources().await?;
        let place = self.site.platform.trial_namespace();
        let mut refusals = Vec::new();
        for object in objects.iter().filter(|object| !finished(object)) {
            let reference = object_ref(object);
            let Some(resource) = resource_of(&resources, object) else {
                refusals.push(Refusal {
                    what: reference.to_string(),
                    needed: format!("{} {}", reference.api_version, reference.kind),
                    found: "the cluster doesn't know that kind".to_owned(),
                    next: "install what defines it".to_owned(),
                });
                continue;
            };
            let mut trial = object.clone();
            trial["metadata"]["namespace"] = Value::from(place);
            // A name of its own: what may be called the same in that namespace has nothing to do with it.
            trial["metadata"]["name"] = Value::from(trial_name(&reference.name));
            if reference.kind == "Pod" {
                // Admission looks for it in the namespace of the trial, where it isn't.
                for field in ["serviceAccountName", "serviceAccount"] {
                    at(&mut trial, &["spec"]).and_then(Value::as_object_mut).and_then(|spec| spec.remove(field));
                }
            }
            match self.site.platform.apply(resource, place, &trial, true).await {
                Ok(_) => {}
                Err(failure) if failure.is_retryable() => return Err(failure),
                // A binding's role is looked for there, too: it comes with the restore.
                Err(failure) if reference.kind == "RoleBinding" && failure.code == "site.not-found" => {}
                Err(failure) if failure.code == "site.not-found" => refusals.push(Refusal {
                    what: reference.to_string(),
                    needed: format!("{} {}", reference.api_version, reference.kind),
                    found: "the cluster doesn't serve that version".to_owned(),
                    next: "choose a site whose cluster does".to_owned(),
                }),
                Err(failure) => refusals.push(Refusal {
                    what: reference.to_string(),
                    needed: "the cluster's consent".to_owned(),
                    found: failure.cause,
                    next: failure.next,
                }),
            }
        }
        Ok(refusals)
    }
}

/// Servers whose pods hold other containers, too: those can't wait for the data.
fn mixed_servers(saved: &Saved, data: &[DataPlacement]) -> Vec<String> {
    let mut notices = Vec::new();
    for placement in data {
        for workload in &placement.server {
            let object = saved.objects.iter().find(|object| object_ref(object) == *workload);
            let containers = object.and_then(pod_spec).and_then(|spec| spec["containers"].as_array());
            if containers.is_some_and(|containers| containers.len() > 1) {
                notices.push(format!(
                    "{workload} holds other containers beside the server of {}: they start before its data is loaded",
                    placement.component
                ));
            }
        }
    }
    notices
}

/// What of an object works outside of the environment, whatever it is called.
fn outward(object: &Value) -> Vec<String> {
    let reference = object_ref(object);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    match reference.kind.as_str() {
        "Ingress" => list(&object["spec"]["rules"])
            .iter()
            .filter_map(|rule| rule["host"].as_str())
            .map(|host| {
                format!("{reference} answers for {host}, as the original does: in one cluster only one of them can")
            })
            .collect(),
        "Endpoints" | "EndpointSlice" => {
            let subsets = list(&object["subsets"]);
            let of_subsets = subsets.iter().flat_map(|subset| list(&subset["addresses"]));
            let mut addresses: Vec<String> =
                of_subsets.filter_map(|address| address["ip"].as_str().map(str::to_owned)).collect();
            for endpoint in list(&object["endpoints"]) {
                addresses.extend(list(&endpoint["addresses"]).iter().filter_map(|a| a.as_str().map(str::to_owned)));
            }
            addresses.truncate(5);
            vec![format!("{reference} leads to {}: the copy uses what is there", addresses.join(", "))]
        }
        _ => Vec::new(),
    }
}

/// What workloads can't start without and the image doesn't hold. What is waited for would never be ready.
fn missing(objects: &[Value]) -> (Vec<Refusal>, Vec<String>) {
    let (mut refusals, mut notices) = (Vec::new(), Vec::new());
    for object in objects.iter().filter(|object| !finished(object)) {
        let Some(spec) = pod_spec(object) else { continue };
        let reference = object_ref(object);
        for needed in absent(spec, objects) {
            let name = format!("{}/{}", needed.kind.to_lowercase(), needed.name);
            if kinds::is_long_running(object) {
                refusals.push(Refusal {
                    what: reference.to_string(),
                    needed: format!("{name}, without which its pods don't start"),
                    found: "the image doesn't hold it".to_owned(),
                    next: format!("save again with it, or without the workload: --without {reference}"),
                });
            } else {
                notices.push(format!("{reference} needs {name}, which the image doesn't hold"));
            }
        }
    }
    (refusals, notices)
}

/// Data services whose own workload is not in the image: nothing would serve them.
fn serverless(objects: &[Value], data: &[DataPlacement]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for placement in data {
        let absent = placement.server.iter().filter(|server| !objects.iter().any(|o| object_ref(o) == **server));
        refusals.extend(absent.map(|server| Refusal {
            what: format!("{} {}", placement.kind, placement.component),
            needed: format!("{server}, which serves it"),
            found: "the image doesn't hold it".to_owned(),
            next: format!("save again with it, or without the data: --without {}", placement.component),
        }));
    }
    refusals
}

/// A name in the shape of `name` that nothing else has: long names are cut, so that limits are kept (52 for cron jobs).
fn trial_name(name: &str) -> String {
    let all: Vec<char> = name.chars().collect();
    let tail: String = all[all.len().saturating_sub(36)..].iter().collect();
    format!("ocopea-trial-{}", tail.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()))
}

/// The plan without what names this very operation.
fn plan_for_approval(plan: &RestorePlan) -> RestorePlan {
    let mut plan = plan.clone();
    for placement in plan.containers.iter_mut().filter(|p| p.push) {
        placement.target = String::new();
    }
    for step in &mut plan.steps {
        step.detail = String::new();
    }
    plan.digest = String::new();
    plan
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_for_trials_are_names_wherever_they_are_cut() {
        assert_eq!(trial_name("web"), "ocopea-trial-web");
        let long = format!("a{}.{}", "b".repeat(20), "c".repeat(35));
        assert_eq!(trial_name(&long), format!("ocopea-trial-{}", "c".repeat(35)));
        assert!(trial_name(&"x".repeat(253)).len() < 52);
    }

    #[test]
    fn what_works_outside_of_the_environment_is_said() {
        let ingress =
            json!({"kind": "Ingress", "metadata": {"name": "web"}, "spec": {"rules": [{"host": "shop.example"}, {}]}});
        assert_eq!(outward(&ingress).len(), 1);
        let slice =
            json!({"kind": "EndpointSlice", "metadata": {"name": "old"}, "endpoints": [{"addresses": ["192.0.2.7"]}]});
        assert!(outward(&slice)[0].contains("192.0.2.7"));
    }
}
