//! What the coordinator does with the repository itself.

use ocopea_catalog_db::tasks::NewTask;
use ocopea_protocol::{failure::TaskFailure, ids::ImageId};
use serde::{Deserialize, Serialize};

use super::{Next, OwnTask, Tasks, as_undo, own_task};

/// Which image to delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRequest {
    /// Its id.
    pub image: ImageId,
}

/// How to collect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectRequest {
    /// Seconds between being found dead first and being deleted.
    pub grace_s: u64,
}

/// What to verify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// One image, or everything.
    pub image: Option<ImageId>,
}

fn single(task: OwnTask, tasks: &Tasks<'_>) -> Result<Next, TaskFailure> {
    tasks.check(|_| true)?;
    let done = tasks.get("do").filter(|_| tasks.succeeded("do")).and_then(|task| task.output.clone());
    Ok(Next { add: vec![own_task("do", &[], &task)?], epoch: None, done })
}

/// Deletes.
pub fn delete(request: &DeleteRequest, tasks: &Tasks<'_>) -> Result<Next, TaskFailure> {
    single(OwnTask::DeleteRef { image: request.image }, tasks)
}

/// A deletion can't be taken back: one that was called off, or failed behind the deed, is looked at.
pub fn undo(request: &DeleteRequest, tasks: &Tasks<'_>) -> Result<Vec<NewTask>, TaskFailure> {
    if !tasks.begun("do") {
        return Ok(Vec::new());
    }
    Ok(vec![as_undo(own_task(LOOK, &[], &OwnTask::LookForRef { image: request.image })?)])
}

/// Whether the image of a deletion that did not succeed is gone all the same.
pub fn is_gone(tasks: &Tasks<'_>) -> bool {
    tasks.get(LOOK).is_some_and(|task| tasks.succeeded(LOOK) && task.output.as_deref() == Some(GONE))
}

const LOOK: &str = "undo:look";
/// What is answered where there is no ref.
pub const GONE: &str = "null";

/// Collects.
pub fn collect(request: &CollectRequest, tasks: &Tasks<'_>) -> Result<Next, TaskFailure> {
    single(OwnTask::Collect { grace_s: request.grace_s }, tasks)
}

/// Verifies.
pub fn verify(request: &VerifyRequest, tasks: &Tasks<'_>) -> Result<Next, TaskFailure> {
    single(OwnTask::Verify { image: request.image }, tasks)
}
