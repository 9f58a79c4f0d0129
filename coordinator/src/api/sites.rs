//! Sites, and what runs there.

use std::time::Duration;

use axum::{Json, extract::State as Extract, http::StatusCode};
use ocopea_catalog_db::{
    access::Actor,
    images::ImageSearch,
    model::{Role, Standing},
    sites::Site,
};
use ocopea_protocol::{
    ids::SiteId,
    message::{SiteReport, SiteState},
    time::Timestamp,
};

use super::{
    ApplicationView, SiteView, State,
    problem::{Caller, Problem},
};
use crate::Coordinator;

/// How long the word of a site's agents counts; they report every minute.
const SILENT: Duration = Duration::from_secs(300);

pub(super) fn is_silent(site: &Site, now: Timestamp) -> bool {
    site.reported.is_none_or(|at| at.plus(SILENT) < now)
}

pub(super) fn silence(site: &Site) -> String {
    match site.reported {
        Some(at) => format!("no agent of site {:?} was heard of since {}", site.name, at.rfc3339()),
        None => format!("no agent of site {:?} was heard of yet", site.name),
    }
}

/// The site of that name, if anybody is there who would do something: an operation must not wait for nobody.
pub(super) async fn attended(coordinator: &Coordinator, actor: &Actor, name: &str) -> Result<Site, Problem> {
    let site = coordinator.catalog.site_of(actor, name).await?;
    if site.standing == Standing::Removed {
        return Err(super::enrolment::removed());
    }
    if !is_silent(&site, coordinator.seams.clock.now()) {
        return Ok(site);
    }
    Err(Problem {
        next: format!("start its agent: ocopea up --site {}=CONTEXT …", site.name),
        ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, "site-silent", silence(&site))
    })
}

/// A report that is younger needs no new look.
const FRESH: Duration = Duration::from_secs(3);
/// How long an answer waits for agents that look again, and how often it sees whether they have.
const PATIENCE: u32 = 20;
const INTERVAL: Duration = Duration::from_millis(100);

/// Whether the look that a site's report tells of began at this time or later.
fn looked_since(site: &Site, time: Timestamp) -> bool {
    site.report.as_ref().is_some_and(|report| report.at >= time)
}

/// The sites as they are now: agents of this process look again, and are waited for a little; of others, and of
/// clusters that don't answer, the last word counts.
async fn sites_now(state: &State, actor: &Actor) -> Result<Vec<Site>, Problem> {
    let (catalog, clock) = (&state.coordinator.catalog, &state.coordinator.seams.clock);
    let asked = clock.now();
    let mut sites = catalog.sites_of(actor).await?;
    let looking: Vec<SiteId> = sites
        .iter()
        .filter(|site| !looked_since(site, asked.minus(FRESH)) && state.access.look_again(&site.name))
        .filter(|site| {
            let answers = |report: &SiteReport| !matches!(report.state, SiteState::Unreachable(_));
            site.report.as_ref().is_some_and(answers)
        })
        .map(|site| site.id)
        .collect();
    for _ in 0..PATIENCE {
        if !sites.iter().any(|site| looking.contains(&site.id) && !looked_since(site, asked)) {
            break;
        }
        clock.sleep(INTERVAL).await;
        sites = catalog.sites_of(actor).await?;
    }
    Ok(sites)
}

/// All sites with their last report and its age.
#[utoipa::path(get, path = "/api/v1/sites", responses((status = 200, body = Vec<SiteView>)))]
pub(super) async fn list(Extract(state): Extract<State>, caller: Caller) -> Result<Json<Vec<SiteView>>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let sites = sites_now(&state, &actor).await?;
    let now = state.coordinator.seams.clock.now();
    let views = sites.into_iter().map(|site| {
        let (word, why) = match &site.report {
            _ if site.standing == Standing::Pending => {
                ("pending", "it enrolled itself and waits to be accepted".to_owned())
            }
            None if site.key.is_none() => ("unknown", "no agent has joined it yet".to_owned()),
            Some(_) if is_silent(&site, now) => ("unknown", silence(&site)),
            None => ("unknown", "its agent has not reported yet".to_owned()),
            Some(report) => match &report.state {
                SiteState::Ready => ("ready", String::new()),
                SiteState::Limited => ("limited", report.missing.join("; ")),
                SiteState::Unreachable(why) => ("unreachable", why.clone()),
            },
        };
        SiteView {
            id: site.id.to_string(),
            name: site.name,
            private: site.owner.is_some(),
            state: word.to_owned(),
            why,
            reported: site.reported.map(|at| at.rfc3339()),
            age_s: site.reported.map(|at| u64::try_from((now.0 - at.0) / 1000).unwrap_or(0)),
            report: site.report.and_then(|report| serde_json::to_value(report).ok()),
        }
    });
    Ok(Json(views.collect()))
}

/// What runs at the sites, deployed by Ocopea or not.
#[utoipa::path(get, path = "/api/v1/applications", responses((status = 200, body = Vec<ApplicationView>)))]
pub(super) async fn applications(
    Extract(state): Extract<State>,
    caller: Caller,
) -> Result<Json<Vec<ApplicationView>>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let catalog = &state.coordinator.catalog;
    let mut views = Vec::new();
    for site in sites_now(&state, &actor).await? {
        for application in site.report.map(|report| report.applications).unwrap_or_default() {
            let search = ImageSearch {
                application: Some(application.namespace.clone()),
                site: Some(site.name.clone()),
                limit: 1,
                ..ImageSearch::default()
            };
            let last = catalog.images(actor.team, &search).await?.pop();
            views.push(ApplicationView {
                site: site.name.clone(),
                application: application.namespace,
                containers: application.containers,
                workloads: application.workloads,
                data: application.data,
                claimed_bytes: application.claimed_bytes,
                saved_bytes: last.as_ref().map(|image| image.bytes),
                saved: last.map(|image| image.created.rfc3339()),
            });
        }
    }
    Ok(Json(views))
}
