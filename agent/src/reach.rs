//! From a data service that was found to a connection that a driver can use.

use std::sync::Arc;

use ocopea_protocol::{failure::TaskFailure, image::DataKind, names::Namespace, task::Progress};

use crate::{
    application::Located,
    data::{DataService, Reach, ServerReach, Subject, Tools},
    execute::Task,
    platform::{
        Platform,
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

/// Opens a loopback port to a service of a namespace; with the text to connect with: for a data service the
/// application's own URI with this address, credentials included.
pub async fn connect(
    platform: &Platform,
    namespace: &str,
    service: &str,
    listen: u16,
    _seams: &ocopea_protocol::seams::Seams,
) -> Result<(Forward, String), TaskFailure> {
    let what = format!("can't connect to {service} of {namespace}");
    let source = ocopea_protocol::task::Source {
        namespace: namespace
            .parse()
            .map_err(|error| TaskFailure::permanent("connect.namespace", what.clone(), error))?,
        selector: None,
        without: Vec::new(),
        credentials: Vec::new(),
        freeze: false,
    };
    let application = crate::application::Application::gather(platform, &source).await?;
    let known = application.data.iter().find(|d| {
        d.found.name.as_str() == service
            || d.found.hosts.iter().any(|host| host == service)
            || d.found.workload.as_ref().is_some_and(|w| w.name == service)
    });
    if let Some(located) = known {
        let pod = located
            .found
            .pod
            .as_ref()
            .ok_or_else(|| TaskFailure::retryable("data.no-pod", what.clone(), "no pod of it is ready"))?;
        let forward = platform.forward(namespace, pod, located.found.port, listen).await?;
        let login = located.logins.first();
        let scheme = match located.found.kind {
            DataKind::MongoDb => "mongodb",
            DataKind::PostgreSql => "postgresql",
            DataKind::Volume => "file",
        };
        let user = login
            .filter(|l| !l.user.is_empty())
            .map_or_else(String::new, |l| format!("{}:{}@", escape(&l.user), escape(l.password.reveal())));
        let database = login.and_then(|l| l.database.clone()).unwrap_or_default();
        let uri = format!("{scheme}://{user}{}/{database}", forward.address);
        return Ok((forward, uri));
    }
    let (pod, port) = platform.behind_service(namespace, service).await?;
    let forward = platform.forward(namespace, &pod, port, listen).await?;
    let text = format!("http://{}", forward.address);
    Ok((forward, text))
}

/// Percent-encodes what may not stand in a URI's user part.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
