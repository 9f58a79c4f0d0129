//! Plans: what an operation still needs, from what its tasks have brought so far.
//!
//! The principle: [`next`] is pure. It sees the operation and all of its tasks, and says what to add, or that it is
//! done, or why it can't go on. It runs inside the transaction that recorded the last outcome, so that a crash can
//! come between any two steps and the same answer comes out again. Adding a task that is there already does nothing.

pub mod remove;
pub mod repository;
pub mod restore;
pub mod save;

use std::collections::BTreeMap;

use ocopea_catalog_db::{
    model::TaskState,
    operations::Operation,
    tasks::{NewTask, Task},
};
use ocopea_protocol::{
    failure::TaskFailure,
    ids::{EnvironmentId, ImageId, SiteId},
    names::Digest,
    task::{TaskOutput, TaskSpec},
    trace::Trace,
};
use ocopea_repository::WrappedKey;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// How often a site's task is tried while its failures pass by themselves.
pub const TRIES: u32 = 4;
/// What is taken back is tried for some two hours: a cluster or a registry may be down for a while, and nothing may be
/// left over.
pub const UNDO_TRIES: u32 = 100;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Request {
    /// Look at an application.
    Inspect(save::SaveRequest),
    /// Save an application.
    Save(save::SaveRequest),
    /// Restore an image.
    Restore(restore::RestoreRequest),
    /// Remove an environment.
    Remove(remove::RemoveRequest),
    /// Delete an image.
    DeleteImage(repository::DeleteRequest),
    /// Collect what nobody needs.
    Collect(repository::CollectRequest),
    /// Verify the repository or one image.
    Verify(repository::VerifyRequest),
}

/// What the plan decided, beside the tasks. Holds no secret: keys are wrapped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The image being made, with its wrapped key.
    pub image: Option<ImageId>,
    /// Its key.
    pub key: Option<WrappedKey>,
    /// The record whose chunks are used again.
    pub base: Option<Digest>,
    /// The round of opening snapshots.
    pub epoch: u32,
    /// Per data service, when it was told to open and when it said that it is open, in µs of the coordinator's clock.
    pub instants: BTreeMap<String, (u64, u64)>,
    /// The environment being made.
    pub environment: Option<EnvironmentId>,
    /// Ties together what is logged for the operation; of older operations there is none.
    #[serde(default)]
    pub trace: Option<Trace>,
}

/// What happens next.
#[derive(Clone, Debug, Default)]
pub struct Next {
    /// Tasks to add.
    pub add: Vec<NewTask>,
    /// The epoch from now on: tasks of older ones are called off.
    pub epoch: Option<u32>,
    /// It is done; the result as JSON.
    pub done: Option<String>,
}

/// Says what happens next, or why nothing can.
pub fn next(operation: &Operation, context: &Context, tasks: &[Task]) -> Result<Next, TaskFailure> {
    let request: Request = parse("request", &operation.request)?;
    let tasks = Tasks(tasks);
    match &request {
        Request::Inspect(request) => save::inspect(operation, request, &tasks),
        Request::Save(request) => save::next(operation, request, context, &tasks),
        Request::Restore(request) => restore::next(operation, request, context, &tasks),
        Request::Remove(request) => remove::next(operation, request, &tasks),
        Request::DeleteImage(request) => repository::delete(request, &tasks),
        Request::Collect(request) => repository::collect(request, &tasks),
        Request::Verify(request) => repository::verify(request, &tasks),
    }
}

/// What takes back what an operation may have made.
pub fn undo(operation: &Operation, context: &Context, tasks: &[Task]) -> Result<Vec<NewTask>, TaskFailure> {
    let request: Request = parse("request", &operation.request)?;
    let tasks = Tasks(tasks);
    match &request {
        Request::Save(request) => save::undo(operation, request, context, &tasks),
        Request::Restore(request) => restore::undo(operation, request, context, &tasks),
        Request::DeleteImage(request) => repository::undo(request, &tasks),
        _ => Ok(Vec::new()),
    }
}

/// The tasks of an operation by label.
pub struct Tasks<'a>(pub &'a [Task]);

impl<'a> Tasks<'a> {
    /// One.
    pub fn get(&self, label: &str) -> Option<&'a Task> {
        self.0.iter().find(|task| task.label == label)
    }

    /// Whether it was done.
    pub fn succeeded(&self, label: &str) -> bool {
        self.get(label).is_some_and(|task| task.state == TaskState::Succeeded)
    }

    /// Whether anybody ever began it.
    pub fn begun(&self, label: &str) -> bool {
        self.get(label).is_some_and(|task| task.attempt > 0)
    }

    /// What it brought, once it was done.
    pub fn output(&self, label: &str) -> Result<Option<TaskOutput>, TaskFailure> {
        match self.get(label) {
            Some(Task { state: TaskState::Succeeded, output: Some(output), .. }) => Ok(Some(parse(label, output)?)),
            _ => Ok(None),
        }
    }

    /// Fails when one of `relevant` has failed.
    pub fn check(&self, relevant: impl Fn(&Task) -> bool) -> Result<(), TaskFailure> {
        for task in self.0.iter().filter(|task| !task.undo && relevant(task)) {
            if matches!(task.state, TaskState::Failed | TaskState::Cancelled) {
                return Err(task
                    .failure
                    .clone()
                    .unwrap_or_else(|| TaskFailure::cancelled(format!("{} was called off", task.label))));
            }
        }
        Ok(())
    }
}

/// A task for a site.
pub fn site_task(
    label: impl Into<String>,
    site: SiteId,
    needs: &[&str],
    spec: &TaskSpec,
) -> Result<NewTask, TaskFailure> {
    Ok(NewTask {
        label: label.into(),
        kind: spec.kind().as_str().to_owned(),
        site: Some(site),
        undo: false,
        most_attempts: TRIES,
        needs: needs.iter().map(|need| (*need).to_owned()).collect(),
        spec: encode(spec)?,
    })
}

/// What the coordinator does itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OwnTask {
    /// Keeps collection away from what the operation reads or uses again.
    Pin {
        /// Records.
        records: Vec<Digest>,
    },
    /// Lets collection at it again.
    Unpin,
    /// Makes the image visible.
    Commit,
    /// Deletes an image's ref.
    DeleteRef {
        /// Which.
        image: ImageId,
    },
    /// Finds out whether an image's ref is there.
    LookForRef {
        /// Which.
        image: ImageId,
    },
    /// Collects.
    Collect {
        /// The grace time in seconds.
        grace_s: u64,
    },
    /// Verifies.
    Verify {
        /// One image, or everything.
        image: Option<ImageId>,
    },
}

impl OwnTask {
    fn kind(&self) -> &'static str {
        match self {
            Self::Pin { .. } => "pin",
            Self::Unpin => "unpin",
            Self::Commit => "commit",
            Self::DeleteRef { .. } => "delete-ref",
            Self::LookForRef { .. } => "look-for-ref",
            Self::Collect { .. } => "collect",
            Self::Verify { .. } => "verify",
        }
    }
}

/// A task of the coordinator's own.
pub fn own_task(label: &str, needs: &[&str], spec: &OwnTask) -> Result<NewTask, TaskFailure> {
    Ok(NewTask {
        label: label.to_owned(),
        kind: spec.kind().to_owned(),
        site: None,
        undo: false,
        most_attempts: TRIES,
        needs: needs.iter().map(|need| (*need).to_owned()).collect(),
        spec: encode(spec)?,
    })
}

/// The same, as part of taking back.
#[must_use]
pub fn as_undo(mut task: NewTask) -> NewTask {
    task.undo = true;
    task.most_attempts = UNDO_TRIES;
    task
}

/// JSON of what the catalog keeps.
pub fn encode(value: &impl Serialize) -> Result<String, TaskFailure> {
    serde_json::to_string(value)
        .map_err(|error| TaskFailure::permanent("plan.encode", "can't write down the plan", error))
}

/// Reads it.
pub fn parse<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, TaskFailure> {
    serde_json::from_str(text)
        .map_err(|error| TaskFailure::permanent("plan.decode", format!("can't read the plan's {what}"), error))
}

/// The site of an operation that needs one.
pub fn site_of(operation: &Operation) -> Result<SiteId, TaskFailure> {
    operation.site.ok_or_else(|| TaskFailure::permanent("plan.site", "can't plan the operation", "it names no site"))
}
