//! The tasks of a restore.

use std::{collections::BTreeSet, time::Duration};

use kube::core::ApiResource;
use ocopea_protocol::{
    failure::TaskFailure,
    image::{DataKind, StreamInfo},
    inventory::ContainerFound,
    names::Namespace,
    plan::{ApplyPhase, ContainerPlacement, DataPlacement},
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
        rewrite::{Rewrite, Rewritten},
    },
    containers::digest_of,
    failures::repository,
    platform::apply::resource_of,
    reach::reach,
};

/// For how long workloads have to stay ready.
const STEADY: Duration = Duration::from_secs(2);

/// An image as it was saved, as far as a restore needs it.
pub(super) struct Saved {
    pub(super) record: Record,
    pub(super) objects: Vec<Value>,
    pub(super) containers: Vec<ContainerFound>,
}

impl Task {
    pub(super) async fn saved(&self, target: &RestoreTarget) -> Result<Saved, TaskFailure> {
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

    pub(super) fn rewrite(
        &self,
        target: &RestoreTarget,
        saved: &Saved,
        placements: &[ContainerPlacement],
    ) -> Rewritten {
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

    /// The rewritten objects, if they are still what the plan said.
    async fn approved(
        &self,
        target: &RestoreTarget,
        objects_digest_wanted: &str,
    ) -> Result<(Saved, Vec<Value>), TaskFailure> {
        let saved = self.saved(target).await?;
        let objects = self.rewrite(target, &saved, &target.containers).objects;
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
        let objects = self.rewrite(target, &saved, &target.containers).objects;
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
        // What nothing probes counts as ready from its first instant: one that crashes at once is seen at a second look.
        if !self.site.seams.sleep_unless(&self.stop, STEADY).await {
            return Err(TaskFailure::cancelled(format!("stopped waiting for {namespace}")));
        }
        self.site.platform.await_ready(namespace, &workloads, deadline, &self.stop).await?;
        let (url, notes) = self.site.platform.urls(namespace).await?;
        Ok(TaskOutput::Ready { url, notes })
    }
}

pub(super) fn finished(object: &Value) -> bool {
    object["metadata"]["annotations"][FINISHED].as_str() == Some("true")
}

pub(super) fn data_placements(saved: &Saved) -> Vec<DataPlacement> {
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

pub(super) fn streams_of<'a>(record: &'a Record, placement: &DataPlacement) -> &'a [StreamInfo] {
    match record.component(&placement.component).map(|c| &c.body) {
        Some(Body::Data { streams, .. }) => streams,
        _ => &[],
    }
}

pub(super) fn objects_digest(objects: &[Value]) -> String {
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
