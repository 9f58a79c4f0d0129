//! From a data service that was found to a connection that a driver can use.

use std::sync::Arc;

use ocopea_protocol::{failure::TaskFailure, image::DataKind, names::Namespace, task::Progress};

use crate::{
    application::Located,
    data::{DataService, Reach, ServerReach, Subject, Tools},
    execute::Task,
    platform::{
        exec::{HostTools, PodTools},
        forward::Forward,
        mover::PodVolume,
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
pub async fn reach(task: &Task, namespace: &Namespace, located: &Located) -> Result<Reached, TaskFailure> {
    reach_in(task, namespace, located, 0).await
}

/// As [`reach`], for a holder of the given opening of all snapshots.
pub async fn reach_in(
    task: &Task,
    namespace: &Namespace,
    located: &Located,
    epoch: u32,
) -> Result<Reached, TaskFailure> {
    let platform = &task.site.platform;
    let found = &located.found;
    let what = || format!("can't reach the data service {}", found.name);
    let Some(driver) = located.driver.clone() else {
        return Err(TaskFailure::permanent(
            "data.no-driver",
            what(),
            format!("there is no driver for a {}", found.kind),
        )
        .next(format!("leave it out by name: --without {}", found.name)));
    };
    if found.kind == DataKind::Volume {
        let subject = Subject {
            name: found.name.clone(),
            reach: Reach::Volume(Arc::new(volume(task, namespace, located, epoch)?)),
            seams: platform.seams.clone(),
            stop: task.stop.clone(),
            progress: Arc::clone(&task.progress),
        };
        return Ok(Reached { subject, driver, _forward: None });
    }
    let Some(pod) = &found.pod else {
        let workload = found.workload.as_ref().map_or_else(|| "its workload".to_owned(), ToString::to_string);
        return Err(TaskFailure::retryable("data.no-pod", what(), format!("no pod of {workload} is ready"))
            .next(format!("see why: {} -n {namespace} get pods", platform.kubectl())));
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
        stop: task.stop.clone(),
        progress: Arc::clone(&task.progress),
    };
    Ok(Reached { subject, driver, _forward: Some(forward) })
}

fn volume(task: &Task, namespace: &Namespace, located: &Located, epoch: u32) -> Result<PodVolume, TaskFailure> {
    let name = &located.found.name;
    let what = || format!("can't reach volume {name}");
    let Some(image) = task.site.mover_image.clone() else {
        return Err(TaskFailure::permanent(
            "volume.no-mover",
            what(),
            "no image for the pod that reads its files is configured",
        )
        .next(format!("start with --mover-image HOST/PATH/ocopea-mover@sha256:…, or leave it out: --without {name}")));
    };
    let Some(claim) = located.found.claims.first().cloned() else {
        return Err(TaskFailure::permanent("volume.no-claim", what(), "no claim is named for it"));
    };
    Ok(PodVolume {
        platform: task.site.platform.clone(),
        namespace: namespace.to_string(),
        claim,
        operation: task.claimed.operation,
        round: (epoch, task.claimed.attempt),
        image,
        placement: located.placement.clone(),
        stop: task.stop.clone(),
    })
}
