//! How the installation is doing, for those who look after it.

use std::collections::BTreeMap;

use axum::{Json, extract::State as Extract, http::StatusCode};
use ocopea_catalog_db::model::Role;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    State,
    problem::{Caller, Problem},
};
use crate::status::{Worry, worries};

/// How it is doing.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// The coordinator's program.
    pub version: String,
    /// Whether the coordinator that answered leads.
    pub leads: bool,
    /// Why messages don't go out or come in, if they don't.
    pub bus: Option<String>,
    /// What somebody should look at, the most urgent first; empty when all is well.
    pub worries: Vec<Worry>,
    /// Operations that aren't over, by kind and state.
    pub operations: Vec<CountView>,
    /// Tasks that aren't over, by site (`coordinator`: its own) and state.
    pub tasks: Vec<CountView>,
    /// Collections and verifications of the repository.
    pub upkeep: Vec<UpkeepView>,
    /// When each application was last saved, the newest first; 1000 at most.
    pub saved: Vec<SavedView>,
    /// Messages that nobody could read; absent where there is no broker, or it doesn't say.
    pub quarantined: Option<u64>,
}

/// How many there are.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CountView {
    /// Of what.
    pub of: String,
    /// In which state.
    pub state: String,
    /// How many.
    pub number: u64,
}

/// How the repository is looked after.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UpkeepView {
    /// `collect` or `verify`.
    pub kind: String,
    /// When it last succeeded (RFC 3339).
    pub last: Option<String>,
    /// How often it failed since.
    pub failed_since: u64,
}

/// An application's newest image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SavedView {
    /// Where it ran.
    pub site: String,
    /// The application.
    pub application: String,
    /// When (RFC 3339).
    pub last: String,
}

/// What lies in quarantine.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QuarantineView {
    /// How many messages.
    pub messages: u64,
    /// The oldest of them.
    pub items: Vec<QuarantinedView>,
}

/// A message that nobody could read.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct QuarantinedView {
    /// Since when (RFC 3339), where it is known.
    pub since: Option<String>,
    /// Why.
    pub reason: String,
    /// The site whose agents sent it, or that it was for, where it is known: its name, or its id when it was removed.
    pub site: Option<String>,
    /// Where it was sent to, as its sender said.
    pub routing_key: String,
    /// How long it is, in bytes.
    pub bytes: u64,
}

fn counts(all: &[(String, String, u64)]) -> Vec<CountView> {
    let view = |(of, state, number): &(String, String, u64)| {
        let of = if of.is_empty() { "coordinator".to_owned() } else { of.clone() };
        CountView { of, state: state.clone(), number: *number }
    };
    all.iter().map(view).collect()
}

/// How the installation is doing, and what somebody should look at.
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, body = StatusView)))]
pub(super) async fn status(Extract(state): Extract<State>, caller: Caller) -> Result<Json<StatusView>, Problem> {
    caller.at_least(Role::Administrator)?;
    let coordinator = &state.coordinator;
    let figures = coordinator.catalog.figures().await?;
    let bus = coordinator.bus.trouble().map(|trouble| trouble.to_string());
    let quarantined = match &state.broker {
        // That it can't be counted is told by the bus, or by who looks into it.
        Some(broker) => broker.quarantined(0).await.ok().map(|found| found.messages),
        None => None,
    };
    let now = coordinator.seams.clock.now();
    Ok(Json(StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        leads: coordinator.leading().is_some(),
        worries: worries(&figures, bus.as_deref(), quarantined, now),
        bus,
        operations: counts(&figures.operations),
        tasks: counts(&figures.tasks),
        upkeep: figures
            .upkeep
            .iter()
            .map(|(kind, last, failed)| UpkeepView {
                kind: (*kind).to_owned(),
                last: last.map(|last| last.rfc3339()),
                failed_since: *failed,
            })
            .collect(),
        saved: figures
            .saved
            .iter()
            .map(|(site, application, last)| SavedView {
                site: site.clone(),
                application: application.clone(),
                last: last.rfc3339(),
            })
            .collect(),
        quarantined,
    }))
}

/// Messages that are looked at.
const LOOKED_AT: u32 = 100;

/// Messages that nobody could read, and why. They stay where they are.
#[utoipa::path(get, path = "/api/v1/quarantine",
    responses((status = 200, body = QuarantineView), (status = 409, body = Problem, description = "there is no broker")))]
pub(super) async fn quarantine(
    Extract(state): Extract<State>,
    caller: Caller,
) -> Result<Json<QuarantineView>, Problem> {
    caller.at_least(Role::Administrator)?;
    let Some(broker) = &state.broker else {
        return Err(Problem {
            next: "there is nothing to look at".to_owned(),
            ..Problem::new(
                StatusCode::CONFLICT,
                "no-broker",
                "this installation has no broker: messages go within the coordinator's own process",
            )
        });
    };
    let found = broker.quarantined(LOOKED_AT).await?;
    let sites = state.coordinator.catalog.sites().await?;
    let names: BTreeMap<_, _> = sites.into_iter().map(|site| (site.id, site.name)).collect();
    let items = found.items.into_iter().map(|item| QuarantinedView {
        since: item.since.map(|since| since.rfc3339()),
        reason: item.reason,
        site: item.site.map(|site| names.get(&site).cloned().unwrap_or_else(|| site.to_string())),
        routing_key: item.routing_key,
        bytes: item.bytes,
    });
    Ok(Json(QuarantineView { messages: found.messages, items: items.collect() }))
}
