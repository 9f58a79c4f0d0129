//! Environments: what Ocopea deployed, and working in it.

use std::collections::BTreeMap;

use axum::{
    Json,
    body::Body as HttpBody,
    extract::{Path, State as Extract},
    http::header,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use ocopea_catalog_db::{Catalog, CatalogError, access::Actor, environments::Environment, model::Role, sites::Site};
use ocopea_protocol::{
    ids::{EnvironmentId, OperationId, SiteId},
    names::EnvironmentName,
    task::EnvironmentMark,
};

use super::{
    Accepted, EnvironmentView, Idempotency, LogQuery, Page, Paging, State,
    operations::{Repeatable, Taken},
    problem::{Begins, Caller, Problem, Query},
    sites::attended,
};
use crate::{
    engine::Order,
    plan::{Context, Request, remove::RemoveRequest},
};

async fn sites(state: &State) -> Result<BTreeMap<SiteId, Site>, Problem> {
    let sites = state.coordinator.catalog.sites().await?;
    Ok(sites.into_iter().map(|site| (site.id, site)).collect())
}

/// The team's environment of that name or id, and its site, which may have been removed. What somebody has at a private
/// site is there for them alone.
pub(super) async fn found(catalog: &Catalog, actor: &Actor, name: &str) -> Result<(Environment, Site), Problem> {
    let environment = catalog.environment(actor.team, name).await?;
    let site = catalog.site(&environment.site.to_string()).await?;
    if site.is_seen_by(actor) {
        return Ok((environment, site));
    }
    let name = name.chars().take(80).collect();
    Err(CatalogError::NotFound { what: "environment", name }.into())
}

fn view(environment: Environment, site: Option<&Site>) -> EnvironmentView {
    EnvironmentView {
        id: environment.id.to_string(),
        name: environment.name,
        site: site.map(|site| site.name.clone()).unwrap_or_default(),
        state: environment.state.as_str().to_owned(),
        image: environment.image.to_string(),
        url: environment.url,
        owner: environment.owner,
        created: environment.created.rfc3339(),
    }
}

/// The team's environments, newest first.
#[utoipa::path(get, path = "/api/v1/environments", params(Paging), responses((status = 200, body = Page<EnvironmentView>)))]
pub(super) async fn list(
    Extract(state): Extract<State>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<EnvironmentView>>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let limit = paging.limit.unwrap_or(100).clamp(1, 1000);
    let before = paging.cursor.map(|c| c.parse()).transpose().map_err(|error| Problem::invalid("cursor", error))?;
    let sites = sites(&state).await?;
    let environments = state.coordinator.catalog.environments(actor.team, before, limit).await?;
    let full = environments.len() as u64 == limit;
    let next = environments.last().filter(|_| full).map(|environment| environment.id.to_string());
    let items = environments.into_iter().filter_map(|environment| {
        let site = sites.get(&environment.site);
        site.is_none_or(|site| site.is_seen_by(&actor)).then(|| view(environment, site))
    });
    let items = items.collect();
    Ok(Json(Page { items, next }))
}

/// One environment.
#[utoipa::path(get, path = "/api/v1/environments/{environment}", params(("environment" = String, Path, description = "name or id")),
    responses((status = 200, body = EnvironmentView), (status = 404, body = Problem)))]
pub(super) async fn get(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(environment): Path<String>,
) -> Result<Json<EnvironmentView>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let (found, site) = found(&state.coordinator.catalog, &actor, &environment).await?;
    Ok(Json(view(found, Some(&site))))
}

/// Removes an environment: exactly what was made for it.
#[utoipa::path(delete, path = "/api/v1/environments/{environment}", params(("environment" = String, Path), Idempotency), responses((status = 202, body = Accepted)))]
pub(super) async fn remove(
    Extract(state): Extract<State>,
    caller: Caller,
    key: Begins,
    Path(environment): Path<String>,
) -> Result<Taken, Problem> {
    let actor = caller.at_least(Role::Operator)?;
    let coordinator = &state.coordinator;
    let repeatable = Repeatable::new(coordinator, key, "remove environment", &environment)?;
    if let Some(known) = repeatable.known(coordinator, &actor).await? {
        return Ok(known);
    }
    let (found, site) = found(&coordinator.catalog, &actor, &environment).await?;
    attended(coordinator, &actor, &site.id.to_string()).await?;
    let name: EnvironmentName = found.name.parse().map_err(|error| Problem::invalid("environment", error))?;
    let order = Order {
        title: format!("remove {name}"),
        request: Request::Remove(RemoveRequest {
            mark: EnvironmentMark {
                environment: found.id,
                name,
                operation: OperationId::generate(&coordinator.seams),
                record: found.record,
            },
            placements: found.placements.clone(),
        }),
        site: Some(found.site),
        context: Context::default(),
        image: Some(found.image),
        repository: None,
        environment: None,
        removing: Some(found.id),
    };
    repeatable.take(coordinator, &actor, order).await
}

/// Log lines as plain text, one stream.
#[utoipa::path(get, path = "/api/v1/environments/{environment}/logs", params(("environment" = String, Path), LogQuery),
    responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn logs(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(environment): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Problem> {
    let (actor, ended) = caller.while_at_least(Role::Viewer, &state)?;
    let (found, site) = found(&state.coordinator.catalog, &actor, &environment).await?;
    let lines = state.access.logs(&site.name, &found.name, query.component.as_deref(), query.follow).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], HttpBody::from_stream(lines.take_until(ended)))
        .into_response())
}

/// Writes down who used an environment how.
pub(super) async fn note_use(
    state: &State,
    actor: &Actor,
    action: &str,
    environment: EnvironmentId,
    detail: &str,
) -> Result<(), CatalogError> {
    let (catalog, subject) = (&state.coordinator.catalog, environment.to_string());
    let note = async || {
        let transaction = catalog.begin().await?;
        transaction.audit(Some(actor.team), Some(actor.user), action, &subject, detail).await?;
        transaction.commit().await
    };
    catalog.again(note).await
}
