//! From a data service that was found to a connection that a driver can use.

use std::sync::Arc;

use ocopea_protocol::{failure::TaskFailure, names::Namespace, task::Progress};
use tokio_util::sync::CancellationToken;

use crate::{
    application::Located,
    data::{DataService, Reach, ServerReach, Subject, Tools},
    platform::{
        Platform,
        exec::{HostTools, PodTools},
        forward::Forward,
    },
};

/// A reachable data service; the forwarded port lives as long as this.
pub struct Reached {
    /// For the driver.
    pub subject: Subject,
    /// The driver.
    pub driver: Arc<dyn DataService>,
    _forward: Option<Forward>,
}

/// Progress of a task.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// Opens the way to `located`.
pub async fn reach(
    platform: &Platform,
    namespace: &Namespace,
    located: &Located,
    stop: &CancellationToken,
    progress: &ProgressSink,
) -> Result<Reached, TaskFailure> {
    let found = &located.found;
    let what = || format!("can't reach the data service {}", found.name);
    let Some(driver) = located.driver.clone() else {
        return Err(TaskFailure::permanent("data.no-driver", what(), format!("there is no driver for a {}", found.kind))
            .next(format!("leave it out by name: --without {}", found.name)));
    };
    let Some(pod) = &found.pod else {
        let workload = found.workload.as_ref().map_or_else(|| "its workload".to_owned(), ToString::to_string);
        return Err(TaskFailure::retryable("data.no-pod", what(), format!("no pod of {workload} is ready"))
            .next(format!("see why: kubectl --context {} -n {namespace} get pods", platform.context)));
    };
    let forward = platform.forward(namespace.as_str(), pod, found.port, 0).await?;
    let tools: Vec<Arc<dyn Tools>> = vec![
        Arc::new(PodTools {
            platform: platform.clone(),
            namespace: namespace.to_string(),
            pod: pod.clone(),
            container: found.container.clone(),
            port: found.port,
        }),
        Arc::new(HostTools { address: forward.address, seams: platform.seams.clone() }),
    ];
    let server =
        ServerReach { address: forward.address, logins: located.logins.clone(), tools, hosts: found.hosts.clone() };
    let subject = Subject {
        name: found.name.clone(),
        reach: Reach::Server(server),
        seams: platform.seams.clone(),
        stop: stop.clone(),
        progress: Arc::clone(progress),
    };
    Ok(Reached { subject, driver, _forward: Some(forward) })
}
