//! Connections to services of an environment: what a client needs, and the bytes of each connection.
//!
//! The port that people connect to is one of their own machine, wherever coordinator and agents are.

use std::net::SocketAddr;

use axum::{
    Json,
    extract::{Path, Request, State as Extract},
    response::Response,
};
use ocopea_catalog_db::model::Role;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    State,
    environments::{found, note_use},
    problem::{Caller, Problem, Query},
    upgrade,
};

/// The name in `Upgrade:`.
pub const PROTOCOL: &str = "ocopea-connect";

/// For whom.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ConnectQuery {
    /// Where the client's own programs will connect to, as `127.0.0.1:PORT`.
    #[param(value_type = String)]
    pub address: SocketAddr,
}

/// What leads to a service.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// Ready to paste, credentials included.
    pub connection: String,
    /// What it leads to: `mongodb "messages"`, `service web`.
    pub what: String,
}

/// What a client needs to use a service: a connection string with the application's own login. The connections
/// themselves are carried by the same path with `Upgrade: ocopea-connect`.
#[utoipa::path(get, path = "/api/v1/environments/{environment}/connections/{service}",
    params(("environment" = String, Path), ("service" = String, Path), ConnectQuery),
    responses((status = 200, body = Connection), (status = 404, body = Problem)))]
pub(super) async fn describe(
    Extract(state): Extract<State>,
    caller: Caller,
    Path((environment, service)): Path<(String, String)>,
    Query(query): Query<ConnectQuery>,
) -> Result<Json<Connection>, Problem> {
    let actor = caller.at_least(Role::Operator)?;
    let (found, site) = found(&state.coordinator.catalog, &actor, &environment).await?;
    // The answer holds credentials: who got them is written down before.
    let detail = format!("{} {service:.100}", found.name);
    note_use(&state, &actor, "environment.connect", found.id, &detail).await?;
    let way = state.access.way(&site.name, &found.name, &service, query.address).await?;
    Ok(Json(Connection { connection: way.connection, what: way.what }))
}

/// Carries one connection to a service: the connection is upgraded to `ocopea-connect`, and its bytes go both ways.
#[utoipa::path(post, path = "/api/v1/environments/{environment}/connections/{service}",
    params(("environment" = String, Path), ("service" = String, Path)),
    responses((status = 101, description = "the service's own bytes follow"), (status = 404, body = Problem),
        (status = 426, body = Problem, description = "the request asks for no upgrade")))]
pub(super) async fn connect(
    Extract(state): Extract<State>,
    caller: Caller,
    Path((environment, service)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let (actor, no_longer) = caller.while_at_least(Role::Operator, &state)?;
    upgrade::expected(&request, PROTOCOL)?;
    let (found, site) = found(&state.coordinator.catalog, &actor, &environment).await?;
    let detail = format!("{} {service:.100}", found.name);
    note_use(&state, &actor, "environment.connection", found.id, &detail).await?;
    let mut stream = state.access.tunnel(&site.name, &found.name, &service).await?;
    Ok(upgrade::switched(&state, request, PROTOCOL, no_longer, |mut connection| async move {
        tokio::io::copy_bidirectional(&mut connection, &mut stream).await.map(drop)
    }))
}
