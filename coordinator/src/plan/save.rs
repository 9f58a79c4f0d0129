//! Save: inspect → pin → open all snapshots at one instant → copy → release → commit.

use std::collections::BTreeMap;

use ocopea_catalog_db::{
    operations::Operation,
    tasks::{NewTask, Task},
};
use ocopea_protocol::{
    failure::TaskFailure,
    image::{DataKind, ImageAccess, Location, StoreLimits},
    inventory::{Gap, Inventory},
    message::HolderOrder,
    secret::Secret32,
    task::{HolderState, Source, TaskOutput, TaskSpec},
};
use serde::{Deserialize, Serialize};

use super::{Context, Next, OwnTask, Tasks, as_undo, own_task, site_of, site_task};

/// How often all snapshots may be opened again because a holder was lost.
const MOST_EPOCHS: u32 = 5;

/// What to save. Credentials stand in it sealed, by `credentials`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveRequest {
    /// Which application; its credentials' passwords are empty here.
    pub source: Source,
    /// The given credentials, sealed by the installation.
    pub sealed_credentials: Option<String>,
    /// The image's name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Comment.
    pub comment: String,
}

/// Stands where the keys will be when the task is claimed.
pub fn no_access() -> ImageAccess {
    ImageAccess {
        location: Location::Directory { path: String::new() },
        image_key: Secret32([0; 32]),
        hash_key: Secret32([0; 32]),
        base: None,
        store_keys: None,
        limits: StoreLimits::default(),
    }
}

/// Looks only.
pub fn inspect(operation: &Operation, request: &SaveRequest, tasks: &Tasks<'_>) -> Result<Next, TaskFailure> {
    tasks.check(|_| true)?;
    let spec = TaskSpec::Inspect { source: request.source.clone() };
    let task = site_task("inspect", site_of(operation)?, &[], &spec)?;
    let done = tasks.get("inspect").and_then(|t| t.output.clone()).filter(|_| tasks.succeeded("inspect"));
    Ok(Next { add: vec![task], epoch: None, done })
}

/// The inventory, once it was taken.
pub fn inventory(tasks: &Tasks<'_>) -> Result<Option<Inventory>, TaskFailure> {
    match tasks.output("inspect")? {
        Some(TaskOutput::Inspected(inventory)) => Ok(Some(*inventory)),
        _ => Ok(None),
    }
}

/// What happens next.
pub fn next(
    operation: &Operation,
    request: &SaveRequest,
    context: &Context,
    tasks: &Tasks<'_>,
) -> Result<Next, TaskFailure> {
    let epoch = context.epoch;
    let current = |task: &Task| epoch_of(task).is_none_or(|of| of == epoch);
    let site = site_of(operation)?;
    let source = &request.source;
    let mut next = Next::default();
    if let Some(lost) = tasks.0.iter().find(|t| is_holder(t) && current(t) && t.attempt > 1) {
        if epoch + 1 >= MOST_EPOCHS {
            return Err(lost.failure.clone().unwrap_or_else(|| {
                TaskFailure::permanent(
                    "save.holder-lost",
                    format!("can't save {}", source.namespace),
                    format!("the snapshots were lost {MOST_EPOCHS} times"),
                )
            }));
        }
        next.epoch = Some(epoch + 1);
        return Ok(next);
    }
    tasks.check(current)?;
    next.add.push(site_task("inspect", site, &[], &TaskSpec::Inspect { source: source.clone() })?);
    let Some(inventory) = inventory(tasks)? else { return Ok(next) };
    refuse_gaps(source, &inventory)?;
    let records = context.base.into_iter().collect();
    next.add.push(own_task("pin", &[], &OwnTask::Pin { records })?);
    for container in &inventory.containers {
        let spec =
            TaskSpec::CopyContainer { source: source.clone(), container: container.clone(), access: no_access() };
        next.add.push(site_task(format!("container:{}", container.name), site, &["pin"], &spec)?);
    }
    let mut open = Vec::new();
    for data in &inventory.data {
        let spec = TaskSpec::OpenSnapshot { source: source.clone(), data: data.clone(), epoch };
        let label = holder_label(data.name.as_str(), epoch);
        next.add.push(site_task(label.clone(), site, &["pin"], &spec)?);
        if let Some(task) = tasks.get(&label)
            && let Some(HolderState::Open { snapshot, .. }) = &task.holder
        {
            open.push((data, task, snapshot));
        }
    }
    if open.len() < inventory.data.len() && !all_copied(&inventory, epoch, tasks) {
        return Ok(next);
    }
    let config = TaskSpec::CopyConfig {
        source: source.clone(),
        access: no_access(),
        fingerprint: inventory.fingerprint.clone(),
    };
    next.add.push(site_task(format!("config:{epoch}"), site, &["pin"], &config)?);
    for (data, task, snapshot) in open {
        let spec = TaskSpec::CopyData {
            source: source.clone(),
            data: data.clone(),
            holder: task.id,
            holder_attempt: task.attempt,
            snapshot: snapshot.clone(),
            access: no_access(),
        };
        next.add.push(site_task(copy_label(data.name.as_str(), epoch), site, &["pin"], &spec)?);
    }
    let mut needs: Vec<String> = vec![format!("config:{epoch}")];
    needs.extend(inventory.containers.iter().map(|c| format!("container:{}", c.name)));
    needs.extend(
        inventory.data.iter().flat_map(|d| [copy_label(d.name.as_str(), epoch), holder_label(d.name.as_str(), epoch)]),
    );
    if needs.iter().all(|need| tasks.succeeded(need)) {
        next.add.push(own_task("commit", &[], &OwnTask::Commit)?);
    }
    if tasks.succeeded("commit") {
        next.add.push(own_task("unpin", &["commit"], &OwnTask::Unpin)?);
    }
    if tasks.succeeded("unpin") {
        next.done = tasks.get("commit").and_then(|task| task.output.clone());
    }
    Ok(next)
}

/// Takes back: what was frozen is released, pins go, and so does the ref that a commit may have made before the
/// operation was called off. What was stored is collected, since no ref names it.
pub fn undo(
    operation: &Operation,
    request: &SaveRequest,
    context: &Context,
    tasks: &Tasks<'_>,
) -> Result<Vec<NewTask>, TaskFailure> {
    let mut undo = Vec::new();
    if let Some(image) = context.image.filter(|_| tasks.begun("commit")) {
        undo.push(as_undo(own_task("undo:ref", &[], &OwnTask::DeleteRef { image })?));
    }
    if let Some(inventory) = inventory(tasks)?
        && (request.source.freeze || inventory.data.iter().any(|data| data.kind == DataKind::Volume))
    {
        let frozen = if request.source.freeze { inventory.data } else { Vec::new() };
        let spec = TaskSpec::CleanUp {
            namespace: request.source.namespace.clone(),
            operation: operation.id,
            frozen,
            source: Some(request.source.clone()),
        };
        undo.push(as_undo(site_task("undo:release", site_of(operation)?, &[], &spec)?));
    }
    if tasks.begun("pin") {
        undo.push(as_undo(own_task("undo:unpin", &[], &OwnTask::Unpin)?));
    }
    Ok(undo)
}

/// What a holder is told with its heartbeat; `None`: it is of an epoch that is over.
pub fn order(holder: &Task, context: &Context, tasks: &Tasks<'_>) -> Option<HolderOrder> {
    let epoch = epoch_of(holder)?;
    if epoch != context.epoch {
        return None;
    }
    let all: Vec<&Task> = tasks.0.iter().filter(|t| is_holder(t) && epoch_of(t) == Some(epoch)).collect();
    Some(match &holder.holder {
        None => HolderOrder::Wait,
        Some(HolderState::Prepared) => {
            if all.iter().all(|t| t.holder.is_some()) {
                HolderOrder::OpenNow
            } else {
                HolderOrder::Wait
            }
        }
        Some(HolderState::Open { .. }) => {
            let copied = all.iter().all(|t| {
                let name = t.label.split(':').nth(1).unwrap_or_default();
                tasks.succeeded(&copy_label(name, epoch))
            });
            if copied { HolderOrder::Release } else { HolderOrder::Hold }
        }
    })
}

/// Whether a task belongs to a round of opening that is over.
pub fn is_stale(task: &Task, context: &Context) -> bool {
    epoch_of(task).is_some_and(|epoch| epoch != context.epoch)
}

/// A holder's label.
pub fn holder_label(name: &str, epoch: u32) -> String {
    format!("open:{name}:{epoch}")
}

/// A copy's label.
pub fn copy_label(name: &str, epoch: u32) -> String {
    format!("data:{name}:{epoch}")
}

/// Whether it holds a snapshot.
pub fn is_holder(task: &Task) -> bool {
    task.label.starts_with("open:")
}

fn epoch_of(task: &Task) -> Option<u32> {
    let (kind, rest) = task.label.split_once(':')?;
    matches!(kind, "open" | "data" | "config").then(|| rest.rsplit(':').next().and_then(|e| e.parse().ok()))?
}

fn all_copied(inventory: &Inventory, epoch: u32, tasks: &Tasks<'_>) -> bool {
    inventory.data.iter().all(|d| tasks.succeeded(&copy_label(d.name.as_str(), epoch)))
}

/// Nothing is silently absent: what can't be saved and wasn't left out by name refuses the save, all of it at once.
fn refuse_gaps(source: &Source, inventory: &Inventory) -> Result<(), TaskFailure> {
    let rights = inventory.data.iter().flat_map(|data| &data.rights);
    let blocking: Vec<&Gap> = inventory.gaps.iter().chain(rights).filter(|gap| gap.blocking).collect();
    if blocking.is_empty() {
        return Ok(());
    }
    let cause: Vec<String> = blocking.iter().map(|gap| format!("{}: {}", gap.what, gap.why)).collect();
    let mut next: Vec<&str> = Vec::new();
    let mut leave_out: Vec<String> = Vec::new();
    for gap in &blocking {
        let without = format!("--without {}", gap.name);
        if !gap.next.is_empty() && !next.contains(&gap.next.as_str()) {
            next.push(&gap.next);
        }
        // What was to be left out and isn't there needs no leaving out.
        let named = |rest: &str| rest.split([' ', ';', ',']).next() == Some(&gap.name);
        let said = gap.what.starts_with("--without") || gap.next.split("--without ").skip(1).any(named);
        if !said && !leave_out.contains(&without) {
            leave_out.push(without);
        }
    }
    let what = if leave_out.len() > 1 { "these" } else { "it" };
    let leave_out = (!leave_out.is_empty()).then(|| format!("or leave {what} out by name: {}", leave_out.join(" ")));
    next.extend(leave_out.as_deref());
    Err(TaskFailure::permanent("save.refused", format!("can't save \"{}\"", source.namespace), cause.join("; "))
        .next(next.join("; ")))
}

#[cfg(test)]
mod tests {
    use ocopea_catalog_db::model::{OperationState, TaskState};
    use ocopea_protocol::{
        ids::{ImageId, OperationId, TaskId, TeamId},
        seams::Seams,
    };

    use super::*;

    fn task(seams: &Seams, label: &str, state: TaskState, attempt: u32) -> Task {
        Task {
            id: TaskId::generate(seams),
            operation: OperationId::generate(seams),
            label: label.to_owned(),
            kind: label.to_owned(),
            site: None,
            undo: false,
            state,
            attempt,
            most_attempts: 4,
            instance: None,
            lease_until: None,
            needs: vec![],
            spec: "{}".to_owned(),
            output: None,
            failure: None,
            progress: None,
            holder: None,
            ready: ocopea_protocol::time::Timestamp::default(),
            started: None,
            ended: None,
        }
    }

    #[test]
    fn a_save_that_is_called_off_while_it_commits_leaves_no_ref() {
        let seams = Seams::real(Default::default());
        let request = SaveRequest {
            source: Source {
                namespace: "shop".parse().unwrap(),
                selector: None,
                without: vec![],
                credentials: vec![],
                freeze: false,
            },
            sealed_credentials: None,
            name: "shop".to_owned(),
            labels: BTreeMap::new(),
            comment: String::new(),
        };
        let operation = Operation {
            id: OperationId::generate(&seams),
            team: TeamId::generate(&seams),
            kind: "save".to_owned(),
            state: OperationState::Undoing,
            title: "save".to_owned(),
            creator: "ann".to_owned(),
            site: None,
            image: None,
            environment: None,
            repository: None,
            request: String::new(),
            context: String::new(),
            result: None,
            failure: None,
            cancel_requested: None,
            stage: 0,
            version: 1,
            created: seams.clock.now(),
            ended: None,
        };
        let context = Context { image: Some(ImageId::generate(&seams)), ..Context::default() };
        // Done, or begun by one that was killed: the ref may be there.
        for (state, attempt, wanted) in
            [(TaskState::Succeeded, 1, true), (TaskState::Cancelled, 2, true), (TaskState::Cancelled, 0, false)]
        {
            let tasks = [task(&seams, "pin", TaskState::Succeeded, 1), task(&seams, "commit", state, attempt)];
            let undo = undo(&operation, &request, &context, &Tasks(&tasks)).unwrap();
            let labels: Vec<&str> = undo.iter().map(|task| task.label.as_str()).collect();
            assert_eq!(labels.contains(&"undo:ref"), wanted, "{state:?} {labels:?}");
            assert!(labels.contains(&"undo:unpin") && undo.iter().all(|task| task.undo));
        }
    }
}
