//! An agent at work: takes tasks, and looks at its site now and then.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ocopea_agent::{containers::Credentials, execute::Site, worker::Worker};
use ocopea_protocol::{
    message::{Request, SiteReport, SiteState},
    seams::Seams,
};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{client::Failure, output};

/// How often agents look at their sites.
const REPORT: Duration = Duration::from_secs(60);

/// Starts both; they end with `stop`. Ringing what is given back has the site looked at before its time.
pub(super) fn start(
    site: Arc<Site>,
    worker: Arc<Worker>,
    running: &TaskTracker,
    stop: &CancellationToken,
    seams: &Seams,
) -> Arc<Notify> {
    let (one, token) = (Arc::clone(&worker), stop.clone());
    seams.spawner.spawn("agent", Box::pin(running.track_future(async move { one.run(token).await })));
    let (token, clock) = (stop.clone(), seams.clone());
    let look = Arc::new(Notify::new());
    let rung = Arc::clone(&look);
    seams.spawner.spawn(
        "agent.reports",
        Box::pin(async move {
            loop {
                let goes_on = tokio::select! {
                    slept = clock.sleep_unless(&token, clock.jittered(REPORT)) => slept,
                    () = rung.notified() => true,
                };
                if !goes_on {
                    break;
                }
                let report = site.report(worker.instance()).await;
                worker.tell(&Request::Report(Box::new(report))).await;
            }
        }),
    );
    look
}

/// What the user's Docker configuration holds.
pub(super) async fn docker_credentials() -> Result<Credentials, Failure> {
    let base = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")));
    let Some(base) = base else { return Ok(Credentials::default()) };
    Credentials::read(&base.join("config.json")).await.map_err(|error| Failure::local(error.to_string()))
}

/// What was found at a site, for people.
pub(super) fn print_site(name: &str, report: &SiteReport) {
    let state = match &report.state {
        SiteState::Ready => "ready".to_owned(),
        SiteState::Limited => "limited".to_owned(),
        SiteState::Unreachable(why) => {
            output::line(format!("  site {name:<10} unreachable   {why}"));
            return;
        }
    };
    let namespaces = if report.may_create_namespaces { "namespaces may be created" } else { "no new namespaces" };
    output::line(format!(
        "  site {name:<10} {state}   {}, {} · {} · {namespaces}",
        report.platform,
        output::count(report.nodes.into(), "node"),
        report.data_kinds.join(", ")
    ));
    for missing in &report.missing {
        output::line(format!("       {:<10} missing: {missing}", ""));
    }
}
