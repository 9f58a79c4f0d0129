//! The tasks of a restore.

use std::{collections::BTreeSet, time::Duration};

use kube::core::ApiResource;
use ocopea_protocol::{
    failure::TaskFailure,
    image::{DataKind, StreamInfo},
    inventory::ContainerFound,
    names::Namespace,
    plan::{ApplyPhase, ContainerPlacement, DataPlacement, PlanStep, Refusal, RestorePlan, StepAction, VersionChoice},
    task::{RestoreTarget, Source, TaskOutput},
};
use ocopea_repository::{Body, Record};
use serde_json::Value;

use super::Task;
use crate::{
    application::Application,
    configs::{
        at, canonical, each, from_files,
        kinds::{self, FINISHED},
        object_ref,
        rewrite::{Rewrite, unplaced},
        workload::pod_spec,
    },
    containers::{digest_of, target_for},
    failures::repository,
    platform::apply::resource_of,
    reach::reach,
};

/// An image as it was saved, as far as a restore needs it.
struct Saved {
    record: Record,
    objects: Vec<Value>,
    containers: Vec<ContainerFound>,
}

impl Task {
    async fn saved(&self, target: &RestoreTarget) -> Result<Saved, TaskFailure> {
        let session = self.session(&target.access).await?;
        let what = "can't read the image";
        let record = session.read_record(&target.record).await.map_err(|error| repository(what, &error))?;
        let mut containers = Vec::new();
        let mut objects = Vec::new();
        for component in &record.components {
            match &component.body {
                Body::Config { .. } => {
                    let files =
                        session.read_config(&component.manifest).await.map_err(|error| repository(what, &error))?;
                    objects = from_files(&files)?;
                }
                Body::Container { found, .. } => containers.push(found.clone()),
                Body::Data { .. } => {}
            }
        }
        objects.sort_by_key(|o| (kinds::rank(o).unwrap_or(usize::MAX), object_ref(o)));
        Ok(Saved { record, objects, containers })
    }

    fn rewrite(
        &self,
        target: &RestoreTarget,
        saved: &Saved,
        placements: &[ContainerPlacement],
    ) -> (Vec<Value>, Vec<crate::configs::rewrite::Change>) {
        Rewrite {
            from: &saved.record.namespace,
            to: target.mark.name.as_str(),
            containers: &saved.containers,
            placements,
            environment: target.mark.environment.to_string(),
            operation: target.mark.operation.to_string(),
        }
        .apply(&saved.objects)
    }

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
        let (objects, changes) = self.rewrite(target, &saved, &containers);
        for object in &saved.objects {
            refusals.extend(kinds::refusals(object, &saved.record.namespace));
            for image in unplaced(object, &saved.containers) {
                notices.push(format!(
                    "{} uses {image}, which is not part of the image: its nodes pull it themselves",
                    object_ref(object)
                ));
            }
        }
        refusals.extend(self.storage_refusals(&objects).await?);
        refusals.extend(self.platform_refusals(target, &saved).await?);
        let data = data_placements(&saved);
        refusals.extend(self.data_refusals(&data));
        notices.extend(mixed_servers(&saved, &data));
        for placement in &data {
            let streams = streams_of(&saved.record, placement);
            let items: u64 = streams.iter().map(|s| s.items).sum();
            let bytes: u64 = streams.iter().map(|s| s.bytes).sum();
            let detail = format!("as saved, load {} streams, {items} items, {bytes} bytes", streams.len());
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
        let same_host = container.repository.split('/').next() == Some(host);
        let mut candidates =
            vec![format!("{host}/{path}"), format!("{base}/{path}"), format!("{base}/{}", container.name)];
        if same_host {
            candidates.truncate(1);
        }
        candidates.dedup();
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

    /// Asks the API server about every object, in a namespace that exists; nothing is made.
    async fn dry_run(&self, objects: &[Value]) -> Result<Vec<Refusal>, TaskFailure> {
        let resources = self.site.platform.namespaced_resources().await?;
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
            trial["metadata"]["namespace"] = Value::from("default");
            // A name of its own: what may be called the same in that namespace has nothing to do with it.
            trial["metadata"]["name"] = Value::from(trial_name(&reference.name));
            if reference.kind == "Pod" {
                // Admission looks for it in the namespace of the trial, where it isn't.
                for field in ["serviceAccountName", "serviceAccount"] {
                    at(&mut trial, &["spec"]).and_then(Value::as_object_mut).and_then(|spec| spec.remove(field));
                }
            }
            match self.site.platform.apply(resource, "default", &trial, true).await {
                Ok(_) => {}
                Err(failure) if failure.is_retryable() => return Err(failure),
                // A binding's role is looked for there, too: it comes with the restore.
                Err(failure) if reference.kind == "RoleBinding" && failure.code == "site.not-found" => {}
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

    /// The rewritten objects, if they are still what the plan said.
    async fn approved(
        &self,
        target: &RestoreTarget,
        objects_digest_wanted: &str,
    ) -> Result<(Saved, Vec<Value>), TaskFailure> {
        let saved = self.saved(target).await?;
        let (objects, _) = self.rewrite(target, &saved, &target.containers);
        if objects_digest(&objects) != objects_digest_wanted {
            return Err(TaskFailure::permanent(
                "plan.changed",
                format!("can't apply the configuration of {}", target.mark.name),
                "it would not be what the plan said",
            )
            .next("restore again: a new plan is made"));
        }
        Ok((saved, objects))
    }

    pub(super) async fn apply_objects(
        &self,
        target: &RestoreTarget,
        phase: &ApplyPhase,
        digest: &str,
    ) -> Result<TaskOutput, TaskFailure> {
        let (saved, objects) = self.approved(target, digest).await?;
        let data = data_placements(&saved);
        let servers: BTreeSet<_> = data.iter().flat_map(|d| d.server.clone()).collect();
        let resources = self.site.platform.namespaced_resources().await?;
        let namespace = target.mark.name.as_str();
        let mut applied: Vec<(ApiResource, String)> = Vec::new();
        for object in objects.iter().filter(|object| !finished(object)) {
            let reference = object_ref(object);
            let unmarked = servers.contains(&reference);
            let wanted = match phase {
                ApplyPhase::Foundation => !kinds::starts_something(object),
                ApplyPhase::Server(component) => {
                    data.iter().any(|d| d.component == *component && d.server.contains(&reference))
                }
                ApplyPhase::Consumers => kinds::starts_something(object) && !unmarked,
            };
            if !wanted {
                continue;
            }
            if self.stop.is_cancelled() {
                return Err(TaskFailure::cancelled(format!("stopped applying the configuration of {namespace}")));
            }
            let Some(resource) = resource_of(&resources, object) else {
                return Err(TaskFailure::permanent(
                    "site.kind",
                    format!("can't apply {reference}"),
                    format!("the cluster doesn't know {} {}", reference.api_version, reference.kind),
                ));
            };
            self.site.platform.apply(resource, namespace, object, false).await?;
            if kinds::is_long_running(object) {
                applied.push((resource.clone(), reference.name));
            }
        }
        if matches!(phase, ApplyPhase::Server(_)) {
            self.site.platform.await_ready(namespace, &applied, Duration::from_secs(300), &self.stop).await?;
        }
        Ok(TaskOutput::Done)
    }

    pub(super) async fn load_data(
        &self,
        target: &RestoreTarget,
        placement: &DataPlacement,
        wanted: &[StreamInfo],
    ) -> Result<TaskOutput, TaskFailure> {
        let what = format!("can't load {}", placement.component);
        let saved = self.saved(target).await?;
        let (objects, _) = self.rewrite(target, &saved, &target.containers);
        let source = Source {
            namespace: Namespace::from(target.mark.name.clone()),
            selector: None,
            without: Vec::new(),
            credentials: Vec::new(),
            freeze: false,
        };
        let application = Application::planned(&self.site.platform, &source, objects).await?;
        let located = match placement.server.first() {
            Some(workload) => application.serving(workload),
            None => {
                application.data.iter().find(|d| d.found.kind == DataKind::Volume && d.found.claims == placement.claims)
            }
        };
        let Some(located) = located else {
            return Err(TaskFailure::retryable("data.not-there", what, "its server doesn't run at the target"));
        };
        let reached = reach(self, &source.namespace, located).await?;
        let session = self.session(&target.access).await?;
        let reader = session.reader(&placement.manifest).await.map_err(|error| repository(&what, &error))?;
        let loaded = tokio::select! {
            () = self.stop.cancelled() => return Err(TaskFailure::cancelled(what)),
            loaded = reached.driver.load(&reached.subject, &reader, wanted) => loaded?,
        };
        compare(placement, wanted, &loaded.streams)?;
        Ok(TaskOutput::Loaded { streams: loaded.streams, notices: loaded.notices })
    }

    pub(super) async fn await_ready(&self, target: &RestoreTarget, deadline_s: u32) -> Result<TaskOutput, TaskFailure> {
        let saved = self.saved(target).await?;
        let resources = self.site.platform.namespaced_resources().await?;
        let namespace = target.mark.name.as_str();
        let workloads: Vec<(ApiResource, String)> = saved
            .objects
            .iter()
            .filter(|o| kinds::is_long_running(o) && !finished(o))
            .filter_map(|o| resource_of(&resources, o).map(|r| (r.clone(), object_ref(o).name)))
            .collect();
        let deadline = Duration::from_secs(u64::from(deadline_s));
        self.site.platform.await_ready(namespace, &workloads, deadline, &self.stop).await?;
        let (url, notes) = self.site.platform.urls(namespace).await?;
        Ok(TaskOutput::Ready { url, notes })
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

/// A name in the shape of `name` that nothing else has: long names are cut, so that limits are kept (52 for cron jobs).
fn trial_name(name: &str) -> String {
    let mut cut: String = name.chars().take(36).collect();
    cut.push_str("-ocopea-trial");
    cut
}

fn finished(object: &Value) -> bool {
    object["metadata"]["annotations"][FINISHED].as_str() == Some("true")
}

fn data_placements(saved: &Saved) -> Vec<DataPlacement> {
    saved
        .record
        .components
        .iter()
        .filter_map(|component| match &component.body {
            Body::Data { found, .. } => Some(DataPlacement {
                component: component.name.clone(),
                kind: found.kind,
                manifest: component.manifest,
                server: found.workload.iter().cloned().collect(),
                claims: if found.kind == DataKind::Volume { found.claims.clone() } else { Vec::new() },
            }),
            _ => None,
        })
        .collect()
}

fn streams_of<'a>(record: &'a Record, placement: &DataPlacement) -> &'a [StreamInfo] {
    match record.component(&placement.component).map(|c| &c.body) {
        Some(Body::Data { streams, .. }) => streams,
        _ => &[],
    }
}

fn objects_digest(objects: &[Value]) -> String {
    let all = Value::Array(objects.iter().map(without_marks).map(|o| canonical(&o)).collect());
    digest_of(all.to_string().as_bytes()).to_string()
}

/// Ids of this very operation are no part of what is approved: a dry run and the run itself have different ones.
fn without_marks(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(labels) = at(&mut object, &["metadata", "labels"]).and_then(Value::as_object_mut) {
        labels.remove(crate::platform::ENVIRONMENT);
        labels.remove(crate::platform::OPERATION);
    }
    strip_targets(&mut object);
    object
}

/// The registry path of an environment carries its id; the image's digest behind it is what counts.
fn strip_targets(object: &mut Value) {
    let Some(spec) = crate::configs::workload::pod_spec_mut(object) else { return };
    for list in ["containers", "initContainers"] {
        for image in each(spec, &[list]).filter_map(|container| container.get_mut("image")) {
            let digest = image.as_str().and_then(|i| i.split_once('@')).map(|(_, digest)| digest.to_owned());
            if let Some(digest) = digest {
                *image = Value::from(digest);
            }
        }
    }
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

/// What arrived is what was saved, stream by stream.
fn compare(placement: &DataPlacement, wanted: &[StreamInfo], found: &[StreamInfo]) -> Result<(), TaskFailure> {
    let mut differences = Vec::new();
    for stream in wanted {
        match found.iter().find(|f| f.name == stream.name) {
            None => differences.push(format!("{} is missing", stream.name)),
            Some(f) if f.items != stream.items => {
                differences.push(format!("{} has {} {} instead of {}", stream.name, f.items, f.unit, stream.items));
            }
            Some(f) if !f.content.is_empty() && f.content != stream.content => {
                differences.push(format!("{} has other contents", stream.name));
            }
            Some(_) => {}
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let more = differences.len().saturating_sub(10);
    differences.truncate(10);
    if more > 0 {
        differences.push(format!("and {more} more"));
    }
    Err(TaskFailure::permanent(
        "data.arrival",
        format!("what was loaded into {} is not what was saved", placement.component),
        differences.join("; "),
    )
    .next("nothing of it is kept; see whether the target changes data on its way in (triggers, validators, expiry)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swallowed_batch_and_changed_rows_are_found_by_name() {
        let stream = |name: &str, items, content: &str| StreamInfo {
            name: name.to_owned(),
            unit: "rows".to_owned(),
            items,
            bytes: 0,
            content: content.to_owned(),
        };
        let placement = DataPlacement {
            component: "db".parse().unwrap(),
            kind: DataKind::PostgreSql,
            manifest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            server: vec![],
            claims: vec![],
        };
        let wanted = [stream("a", 3, "x"), stream("b", 2, "y"), stream("c", 1, "z")];
        assert!(compare(&placement, &wanted, &wanted).is_ok());
        let found = [stream("a", 2, "x"), stream("b", 2, "other")];
        let failure = compare(&placement, &wanted, &found).unwrap_err();
        for part in ["a has 2 rows instead of 3", "b has other contents", "c is missing"] {
            assert!(failure.cause.contains(part), "{}", failure.cause);
        }
    }
}
