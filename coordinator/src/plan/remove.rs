//! Remove an environment: its namespace, then what was pushed for it. Every step may be repeated.

use ocopea_catalog_db::operations::Operation;
use ocopea_protocol::{
    failure::TaskFailure,
    plan::ContainerPlacement,
    task::{EnvironmentMark, TaskSpec},
};
use serde::{Deserialize, Serialize};

use super::{Next, Tasks, site_of, site_task};

/// What to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveRequest {
    /// The environment's mark.
    pub mark: EnvironmentMark,
    /// What was pushed for it.
    pub placements: Vec<ContainerPlacement>,
}

/// What happens next.
pub fn next(operation: &Operation, request: &RemoveRequest, tasks: &Tasks<'_>) -> Result<Next, TaskFailure> {
    tasks.check(|_| true)?;
    let site = site_of(operation)?;
    let mut next = Next::default();
    next.add.push(site_task("namespace", site, &[], &TaskSpec::RemoveNamespace(request.mark.clone()))?);
    for placement in request.placements.iter().filter(|placement| placement.push) {
        let spec = TaskSpec::RemoveContainer { placement: placement.clone(), environment: request.mark.environment };
        next.add.push(site_task(format!("push:{}", placement.component), site, &["namespace"], &spec)?);
    }
    if next.add.iter().all(|task| tasks.succeeded(&task.label)) {
        next.done = Some("{}".to_owned());
    }
    Ok(next)
}
