//! Restore: plan → namespace → images ∥ foundation → each data service's server and its load → consumers → ready.

use ocopea_catalog_db::{operations::Operation, tasks::NewTask};
use ocopea_protocol::{
    failure::TaskFailure,
    image::StreamInfo,
    names::{ComponentName, Digest, EnvironmentName},
    plan::{ApplyPhase, RestorePlan, VersionChoice},
    task::{EnvironmentMark, RestoreTarget, TaskOutput, TaskSpec},
};
use serde::{Deserialize, Serialize};

use super::{Context, Next, OwnTask, Tasks, as_undo, encode, own_task, save::no_access, site_of, site_task};

/// How long workloads may take to become ready, in seconds.
const READY_S: u32 = 600;

/// What to restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    /// The image's record.
    pub record: Digest,
    /// The environment's name.
    pub name: EnvironmentName,
    /// Other versions.
    pub versions: Vec<VersionChoice>,
    /// Plans only.
    pub dry_run: bool,
    /// The digest of the plan that was approved.
    pub approve: Option<String>,
    /// Streams of each data component, for the check on arrival.
    pub streams: Vec<(ComponentName, Vec<StreamInfo>)>,
}

/// The plan, once it was made.
pub fn plan(tasks: &Tasks<'_>) -> Result<Option<RestorePlan>, TaskFailure> {
    match tasks.output("plan")? {
        Some(TaskOutput::Planned(plan)) => Ok(Some(*plan)),
        _ => Ok(None),
    }
}

fn target(operation: &Operation, request: &RestoreRequest, context: &Context) -> Result<RestoreTarget, TaskFailure> {
    let environment = context.environment.ok_or_else(|| {
        TaskFailure::permanent("plan.environment", "can't plan the restore", "it names no environment")
    })?;
    Ok(RestoreTarget {
        mark: EnvironmentMark {
            environment,
            name: request.name.clone(),
            operation: operation.id,
            record: request.record,
        },
        access: no_access(),
        record: request.record,
        versions: request.versions.clone(),
        containers: Vec::new(),
    })
}

/// What happens next.
pub fn next(
    operation: &Operation,
    request: &RestoreRequest,
    context: &Context,
    tasks: &Tasks<'_>,
) -> Result<Next, TaskFailure> {
    tasks.check(|_| true)?;
    let site = site_of(operation)?;
    let mut target = target(operation, request, context)?;
    let mut next = Next::default();
    next.add.push(own_task("pin", &[], &OwnTask::Pin { records: vec![request.record] })?);
    next.add.push(site_task("plan", site, &["pin"], &TaskSpec::PlanRestore(target.clone()))?);
    let Some(plan) = plan(tasks)? else { return Ok(next) };
    if request.dry_run {
        next.add.push(own_task("unpin", &[], &OwnTask::Unpin)?);
        if tasks.succeeded("unpin") {
            next.done = Some(encode(&plan)?);
        }
        return Ok(next);
    }
    refuse(request, &plan)?;
    target.containers = plan.containers.clone();
    next.add.push(site_task("namespace", site, &[], &TaskSpec::CreateNamespace(target.mark.clone()))?);
    let mut before_consumers: Vec<String> = vec!["foundation".to_owned()];
    for placement in plan.containers.iter().filter(|placement| placement.push) {
        let label = format!("push:{}", placement.component);
        let spec = TaskSpec::PushContainer {
            placement: placement.clone(),
            access: no_access(),
            environment: target.mark.environment,
        };
        next.add.push(site_task(label.clone(), site, &["namespace"], &spec)?);
        before_consumers.push(label);
    }
    let apply = |phase: ApplyPhase| TaskSpec::ApplyObjects {
        target: target.clone(),
        phase,
        objects_digest: plan.objects_digest.clone(),
    };
    next.add.push(site_task("foundation", site, &["namespace"], &apply(ApplyPhase::Foundation))?);
    let pushes: Vec<String> = before_consumers.clone();
    for placement in &plan.data {
        let name = &placement.component;
        let (server, load) = (format!("server:{name}"), format!("load:{name}"));
        let needs: Vec<&str> = pushes.iter().map(String::as_str).collect();
        if placement.server.is_empty() {
            next.add.push(load_task(&load, site, &needs, &target, placement, request)?);
        } else {
            next.add.push(site_task(server.clone(), site, &needs, &apply(ApplyPhase::Server(name.clone())))?);
            next.add.push(load_task(&load, site, &[&server], &target, placement, request)?);
        }
        before_consumers.push(load);
    }
    let needs: Vec<&str> = before_consumers.iter().map(String::as_str).collect();
    next.add.push(site_task("consumers", site, &needs, &apply(ApplyPhase::Consumers))?);
    let ready = TaskSpec::AwaitReady { target: target.clone(), deadline_s: READY_S };
    next.add.push(site_task("ready", site, &["consumers"], &ready)?);
    next.add.push(own_task("unpin", &["ready"], &OwnTask::Unpin)?);
    if tasks.succeeded("unpin") {
        next.done = tasks.get("ready").and_then(|task| task.output.clone());
    }
    Ok(next)
}

fn load_task(
    label: &str,
    site: ocopea_protocol::ids::SiteId,
    needs: &[&str],
    target: &RestoreTarget,
    placement: &ocopea_protocol::plan::DataPlacement,
    request: &RestoreRequest,
) -> Result<NewTask, TaskFailure> {
    let streams = request
        .streams
        .iter()
        .find(|(name, _)| *name == placement.component)
        .map(|(_, s)| s.clone())
        .unwrap_or_default();
    let spec = TaskSpec::LoadData { target: target.clone(), placement: placement.clone(), streams };
    site_task(label, site, needs, &spec)
}

fn refuse(request: &RestoreRequest, plan: &RestorePlan) -> Result<(), TaskFailure> {
    let what = format!("can't restore as \"{}\"", request.name);
    if !plan.refusals.is_empty() {
        let cause: Vec<String> =
            plan.refusals.iter().map(|r| format!("{} needs {}, found: {}", r.what, r.needed, r.found)).collect();
        let mut next: Vec<String> = plan.refusals.iter().map(|r| r.next.clone()).filter(|n| !n.is_empty()).collect();
        next.sort();
        next.dedup();
        return Err(TaskFailure::permanent("restore.refused", what, cause.join("; ")).next(next.join("; ")));
    }
    if let Some(approved) = request.approve.as_ref().filter(|approved| **approved != plan.digest) {
        return Err(TaskFailure::conflict(
            "restore.plan-changed",
            what,
            format!("the plan is now {}, approved was {approved}", plan.digest),
        )
        .next("look at the plan again with --dry-run"));
    }
    Ok(())
}

/// Takes back all that may have been made, and nothing else: each by this environment's own mark.
pub fn undo(
    operation: &Operation,
    request: &RestoreRequest,
    context: &Context,
    tasks: &Tasks<'_>,
) -> Result<Vec<NewTask>, TaskFailure> {
    let site = site_of(operation)?;
    let mut undo = Vec::new();
    if tasks.begun("pin") {
        undo.push(as_undo(own_task("undo:unpin", &[], &OwnTask::Unpin)?));
    }
    if !tasks.begun("namespace") {
        return Ok(undo);
    }
    let mark = target(operation, request, context)?.mark;
    let environment = mark.environment;
    undo.push(as_undo(site_task("undo:namespace", site, &[], &TaskSpec::RemoveNamespace(mark))?));
    if let Some(plan) = plan(tasks)? {
        for placement in plan.containers.into_iter().filter(|placement| placement.push) {
            let label = format!("push:{}", placement.component);
            if tasks.begun(&label) {
                let spec = TaskSpec::RemoveContainer { placement, environment };
                // Nodes may still pull what the namespace's pods name.
                undo.push(as_undo(site_task(format!("undo:{label}"), site, &["undo:namespace"], &spec)?));
            }
        }
    }
    Ok(undo)
}
