//! What the coordinator does with the repository itself.

use ocopea_protocol::{failure::TaskFailure, ids::ImageId};
use serde::{Deserialize, Serialize};

use super::{Next, OwnTask, Tasks, own_task};

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

/// Collects.
pub fn collect(request: &CollectRequest, tasks: &Tasks<'_>) -> Result<Next, TaskFailure> {
    single(OwnTask::Collect { grace_s: request.grace_s }, tasks)
}

/// Verifies.
pub fn verify(request: &VerifyRequest, tasks: &Tasks<'_>) -> Result<Next, TaskFailure> {
    single(OwnTask::Verify { image: request.image }, tasks)
}
