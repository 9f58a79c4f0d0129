//! Operations: asking for them, following them, stopping them.

use std::convert::Infallible;

use axum::{
    Json,
    extract::{Path, State as Extract},
    http::StatusCode,
    response::sse::{Event, KeepAlive, Sse},
};
use futures::{Stream, StreamExt};
use ocopea_catalog_db::{
    CatalogError, Transaction,
    access::Actor,
    environments::Environment,
    model::{EnvironmentState, Role},
    operations::Operation,
    sites::Site,
    tasks::Task,
};
use ocopea_protocol::{
    ids::{EnvironmentId, ImageId, OperationId, RepositoryId, TeamId},
    names::{ComponentName, Digest, EnvironmentName, Namespace, check_text},
    plan::VersionChoice,
    secret::Secret,
    task::{GivenCredentials, Source},
    trace::Trace,
};
use ocopea_repository::{Body as RecordBody, Record};

use super::{
    Accepted, Idempotency, KEEP_ALIVE, OperationView, Page, Paging, RestoreInput, SaveInput, State, TaskView,
    images::check_labels,
    problem::{Begins, Body, Caller, Problem, Query},
    sites::attended,
};
use crate::{
    Coordinator,
    engine::{self, Order, accept},
    plan::{Context, Request, restore::RestoreRequest, save::SaveRequest},
};

fn view(operation: Operation, tasks: Vec<Task>) -> OperationView {
    fn json<T: serde::de::DeserializeOwned>(text: Option<String>) -> Option<T> {
        text.and_then(|text| serde_json::from_str(&text).ok())
    }
    OperationView {
        id: operation.id.to_string(),
        kind: operation.kind,
        state: operation.state.as_str().to_owned(),
        title: operation.title,
        creator: operation.creator,
        image: operation.image.map(|id| id.to_string()),
        environment: operation.environment.map(|id| id.to_string()),
        created: operation.created.rfc3339(),
        ended: operation.ended.map(|at| at.rfc3339()),
        version: operation.version,
        trace: json::<Context>(Some(operation.context)).and_then(|context| Some(context.trace?.id())),
        failure: operation.failure.and_then(|failure| serde_json::to_value(failure).ok()),
        result: json(operation.result),
        tasks: tasks
            .into_iter()
            .map(|task| TaskView {
                id: task.id.to_string(),
                label: task.label,
                kind: task.kind,
                state: task.state.as_str().to_owned(),
                undo: task.undo,
                attempt: task.attempt,
                most_attempts: task.most_attempts,
                progress: task.progress.and_then(|progress| serde_json::to_value(progress).ok()),
                failure: task.failure.and_then(|failure| serde_json::to_value(failure).ok()),
                output: json(task.output),
                started: task.started.map(|at| at.rfc3339()),
                ended: task.ended.map(|at| at.rfc3339()),
            })
            .collect(),
    }
}

fn source_of(input: &SaveInput) -> Result<(Source, Vec<GivenCredentials>), Problem> {
    let namespace: Namespace = input.namespace.parse().map_err(|error| Problem::invalid("namespace", error))?;
    if let Some(selector) = &input.selector {
        check_text("selector", selector, 500, false).map_err(|error| Problem::invalid("selector", error))?;
    }
    if input.without.len() > 200 || input.credentials.len() > 200 {
        return Err(Problem::invalid("without", "200 names at most"));
    }
    for name in &input.without {
        check_text("name", name, 300, false).map_err(|error| Problem::invalid("without", error))?;
    }
    let credentials = input
        .credentials
        .iter()
        .map(|given| {
            let service: ComponentName =
                given.service.parse().map_err(|error| Problem::invalid("credentials", error))?;
            Ok(GivenCredentials { service, user: given.user.clone(), password: Secret::new(given.password.clone()) })
        })
        .collect::<Result<Vec<_>, Problem>>()?;
    let source = Source {
        namespace,
        selector: input.selector.clone().filter(|selector| !selector.is_empty()),
        without: input.without.clone(),
        credentials: Vec::new(),
        freeze: input.freeze,
    };
    Ok((source, credentials))
}

async fn save_request(coordinator: &Coordinator, input: &SaveInput) -> Result<SaveRequest, Problem> {
    let (source, credentials) = source_of(input)?;
    let name = match &input.name {
        Some(name) => name.clone(),
        None => format!("{} {}", source.namespace, coordinator.seams.clock.now().rfc3339()),
    };
    if name.trim().is_empty() {
        return Err(Problem::invalid("name", "a name is needed"));
    }
    check_text("name", &name, 200, false).map_err(|error| Problem::invalid("name", error))?;
    check_text("comment", &input.comment, 10_000, true).map_err(|error| Problem::invalid("comment", error))?;
    check_labels(input.labels.iter().map(|(label, value)| (label.as_str(), value.as_str())))?;
    let sealed_credentials = if credentials.is_empty() {
        None
    } else {
        let plain = serde_json::to_vec(&credentials).map_err(|error| Problem::invalid("credentials", error))?;
        let sealed = coordinator.vault.seal(&plain);
        Some(sealed.map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "vault", error))?)
    };
    Ok(SaveRequest { source, sealed_credentials, name, labels: input.labels.clone(), comment: input.comment.clone() })
}

/// A request that may be a repetition. What it stands for is looked up first: what it asked for may be gone since.
pub(super) struct Repeatable {
    key: Option<(String, String)>,
    trace: Option<Trace>,
}

impl Repeatable {
    /// `what` tells requests apart that look alike.
    pub(super) fn new(
        coordinator: &Coordinator,
        key: Begins,
        what: &str,
        input: &impl serde::Serialize,
    ) -> Result<Self, Problem> {
        let Begins { key, trace } = key;
        let Some(key) = key else { return Ok(Self { key: None, trace }) };
        let input = serde_json::to_string(input).map_err(|error| Problem::invalid("body", error))?;
        // It may hold passwords.
        let fingerprint = coordinator.vault.fingerprint(format!("{what}\n{input}").as_bytes());
        Ok(Self { key: Some((key, fingerprint)), trace })
    }

    /// The answer to it, where it was given before.
    pub(super) async fn known(&self, coordinator: &Coordinator, actor: &Actor) -> Result<Option<Taken>, Problem> {
        let Some((key, fingerprint)) = &self.key else { return Ok(None) };
        let known = coordinator.catalog.known_request(actor.team, key, fingerprint).await?;
        Ok(known.map(taken))
    }

    /// Accepts it, once.
    pub(super) async fn take(
        self,
        coordinator: &Coordinator,
        actor: &Actor,
        mut order: Order,
    ) -> Result<Taken, Problem> {
        let key = self.key.as_ref().map(|(key, fingerprint)| (key.as_str(), fingerprint.as_str()));
        order.context.trace = self.trace;
        let operation = accept(&coordinator.catalog, actor, order, key).await?;
        coordinator.ring();
        Ok(taken(operation))
    }

    /// Remembers it as part of a transaction that makes no operation; `false`: it was done before.
    pub(super) async fn remember(&self, transaction: &Transaction, actor: &Actor) -> Result<bool, CatalogError> {
        let Some((key, fingerprint)) = &self.key else { return Ok(true) };
        let none = OperationId::generate(&transaction.seams);
        Ok(transaction.remember_request(actor.team, key, fingerprint, none).await?.is_none())
    }
}

pub(super) type Taken = (StatusCode, Json<Accepted>);

fn taken(operation: OperationId) -> Taken {
    (StatusCode::ACCEPTED, Json(Accepted { operation: operation.to_string() }))
}

/// Looks at an application: what a save would find, and what it would leave out and why. Copies nothing.
#[utoipa::path(post, path = "/api/v1/inspections", params(Idempotency), request_body = SaveInput, responses((status = 202, body = Accepted), (status = 422, body = Problem)))]
pub(super) async fn inspect(
    Extract(state): Extract<State>,
    caller: Caller,
    key: Begins,
    Body(input): Body<SaveInput>,
) -> Result<Taken, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let coordinator = &state.coordinator;
    let repeatable = Repeatable::new(coordinator, key, "inspect", &input)?;
    if let Some(known) = repeatable.known(coordinator, &actor).await? {
        return Ok(known);
    }
    let site = attended(coordinator, &actor, &input.site).await?;
    let request = save_request(coordinator, &input).await?;
    let order = Order {
        title: format!("inspect {}/{}", site.name, request.source.namespace),
        request: Request::Inspect(request),
        site: Some(site.id),
        context: Context::default(),
        image: None,
        repository: None,
        environment: None,
        removing: None,
    };
    repeatable.take(coordinator, &actor, order).await
}

/// The image that a save most likely shares its bytes with: the newest of the same application at the same site, or,
/// where that is older, the one that a copy was made from; else the newest of an application of that name anywhere. What
/// lies in another repository can't be shared.
async fn base_of(
    coordinator: &Coordinator,
    team: TeamId,
    application: &str,
    namespace: &str,
    site: &Site,
    repository: Option<RepositoryId>,
) -> Result<Option<Digest>, Problem> {
    let catalog = &coordinator.catalog;
    let environment = match catalog.environment(team, namespace).await {
        Ok(found) => Some(found).filter(|found| found.site == site.id),
        Err(CatalogError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let environment = match environment {
        Some(environment) => match catalog.image(team, &environment.image.to_string()).await {
            Ok(image) => (image.repository == repository).then_some(environment),
            Err(CatalogError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        },
        None => None,
    };
    let here = catalog.last_image_of(team, application, Some(&site.name), repository).await?;
    Ok(match (here, environment) {
        (Some(image), Some(environment)) if image.created < environment.created => Some(environment.record),
        (Some(image), _) => Some(image.record),
        (None, Some(environment)) => Some(environment.record),
        (None, None) => catalog.last_image_of(team, application, None, repository).await?.map(|image| image.record),
    })
}

/// Saves an application. The image is there when the operation has succeeded, and not before.
#[utoipa::path(post, path = "/api/v1/saves", params(Idempotency), request_body = SaveInput, responses((status = 202, body = Accepted), (status = 422, body = Problem)))]
pub(super) async fn save(
    Extract(state): Extract<State>,
    caller: Caller,
    key: Begins,
    Body(input): Body<SaveInput>,
) -> Result<Taken, Problem> {
    let actor = caller.at_least(Role::Operator)?;
    let coordinator = &state.coordinator;
    let repeatable = Repeatable::new(coordinator, key, "save", &input)?;
    if let Some(known) = repeatable.known(coordinator, &actor).await? {
        return Ok(known);
    }
    let site = attended(coordinator, &actor, &input.site).await?;
    let request = save_request(coordinator, &input).await?;
    let application = request
        .source
        .selector
        .as_deref()
        .and_then(|s| s.split(['=', ',']).nth(1))
        .unwrap_or(request.source.namespace.as_str());
    let repository = coordinator.named_repository(input.repository.as_deref()).await?.reference();
    let namespace = request.source.namespace.as_str();
    let base = base_of(coordinator, actor.team, application, namespace, &site, repository).await?;
    let key_of_image = coordinator.repository(repository).await?.new_image_key(actor.team).await?;
    let context = Context {
        image: Some(ImageId::generate(&coordinator.seams)),
        key: Some(key_of_image),
        base,
        ..Context::default()
    };
    let order = Order {
        title: format!("save {}/{}", site.name, request.source.namespace),
        request: Request::Save(request),
        site: Some(site.id),
        context,
        image: None,
        repository,
        environment: None,
        removing: None,
    };
    repeatable.take(coordinator, &actor, order).await
}

/// Restores an image, or with `dry_run` only says what would be done.
#[utoipa::path(post, path = "/api/v1/restores", params(Idempotency), request_body = RestoreInput, responses((status = 202, body = Accepted), (status = 422, body = Problem)))]
pub(super) async fn restore(
    Extract(state): Extract<State>,
    caller: Caller,
    key: Begins,
    Body(input): Body<RestoreInput>,
) -> Result<Taken, Problem> {
    let actor = caller.at_least(Role::Operator)?;
    let coordinator = &state.coordinator;
    let repeatable = Repeatable::new(coordinator, key, "restore", &input)?;
    if let Some(known) = repeatable.known(coordinator, &actor).await? {
        return Ok(known);
    }
    let site = attended(coordinator, &actor, &input.site).await?;
    let image = coordinator.catalog.image(actor.team, &input.image).await?;
    let name: EnvironmentName = input.name.parse().map_err(|error| Problem::invalid("name", error))?;
    let record: Record = serde_json::from_str(&image.body)
        .map_err(|_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "catalog", "the image's record can't be read"))?;
    let versions = input
        .versions
        .iter()
        .map(|(component, version)| {
            let component: ComponentName = component.parse().map_err(|error| Problem::invalid("versions", error))?;
            check_text("version", version, 200, false).map_err(|error| Problem::invalid("versions", error))?;
            Ok(VersionChoice { component, version: version.clone() })
        })
        .collect::<Result<Vec<_>, Problem>>()?;
    let streams = record
        .components
        .iter()
        .filter_map(|component| match &component.body {
            RecordBody::Data { streams, .. } => Some((component.name.clone(), streams.clone())),
            _ => None,
        })
        .collect();
    let environment = Environment {
        id: EnvironmentId::generate(&coordinator.seams),
        team: actor.team,
        name: name.to_string(),
        site: site.id,
        image: image.id,
        record: image.record,
        state: EnvironmentState::Creating,
        url: None,
        owner: actor.user_name.clone(),
        placements: Vec::new(),
        created: coordinator.seams.clock.now(),
    };
    let verb = if input.dry_run { "plan restore of" } else { "restore" };
    let order = Order {
        title: format!("{verb} {} at {} as {name}", image.name, site.name),
        request: Request::Restore(RestoreRequest {
            record: image.record,
            name,
            versions,
            dry_run: input.dry_run,
            approve: input.approve.clone(),
            streams,
        }),
        site: Some(site.id),
        context: Context { environment: Some(environment.id), ..Context::default() },
        image: Some(image.id),
        repository: image.repository,
        environment: (!input.dry_run).then_some(environment),
        removing: None,
    };
    repeatable.take(coordinator, &actor, order).await
}

/// The team's operations, newest first.
#[utoipa::path(get, path = "/api/v1/operations", params(Paging), responses((status = 200, body = Page<OperationView>)))]
pub(super) async fn list(
    Extract(state): Extract<State>,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<OperationView>>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let limit = paging.limit.unwrap_or(100).clamp(1, 1000);
    let before = paging.cursor.map(|c| c.parse()).transpose().map_err(|error| Problem::invalid("cursor", error))?;
    let operations = state.coordinator.catalog.operations(actor.team, before, limit).await?;
    let full = operations.len() as u64 == limit;
    let next = operations.last().filter(|_| full).map(|operation| operation.id.to_string());
    let without_result = |mut operation: Operation| {
        operation.result = None;
        view(operation, Vec::new())
    };
    Ok(Json(Page { items: operations.into_iter().map(without_result).collect(), next }))
}

async fn version(state: &State, actor: &Actor, id: &str) -> Result<u64, Problem> {
    let id: OperationId = id.parse().map_err(|error| Problem::invalid("id", error))?;
    Ok(state.coordinator.catalog.operation_version(actor.team, id).await?)
}

async fn one(state: &State, actor: &Actor, id: &str) -> Result<OperationView, Problem> {
    let id: OperationId = id.parse().map_err(|error| Problem::invalid("id", error))?;
    let operation = state.coordinator.catalog.operation(actor.team, id).await?;
    let tasks = state.coordinator.catalog.tasks(actor.team, id).await?;
    Ok(view(operation, tasks))
}

/// One operation with its tasks.
#[utoipa::path(get, path = "/api/v1/operations/{id}", params(("id" = String, Path)), responses((status = 200, body = OperationView), (status = 404, body = Problem)))]
pub(super) async fn get(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<OperationView>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    Ok(Json(one(&state, &actor, &id).await?))
}

/// Server-sent events: the operation, whole, at once and whenever it changed, until it is over. The event's id is
/// the operation's version. Whoever comes back gets the newest state at once: nothing in between is needed.
#[utoipa::path(get, path = "/api/v1/operations/{id}/events", params(("id" = String, Path)),
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub(super) async fn events(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let (actor, ended) = caller.while_at_least(Role::Viewer, &state)?;
    let first = one(&state, &actor, &id).await?;
    let changes = state.coordinator.version.subscribe();
    let stream = futures::stream::unfold(Some((Some(first), 0u64, changes)), move |now| {
        let (state, actor, id) = (state.clone(), actor.clone(), id.clone());
        async move {
            let (first, mut seen, mut changes) = now?;
            let mut next = first;
            loop {
                let current = match next.take() {
                    Some(current) => current,
                    None => {
                        tokio::select! {
                            changed = changes.changed() => changed.ok()?,
                            // Other coordinators on the same catalog don't ring here.
                            () = state.coordinator.seams.clock.sleep(std::time::Duration::from_secs(1)) => {}
                        }
                        // Most of what is rung for concerns others.
                        if version(&state, &actor, &id).await.ok()? == seen {
                            continue;
                        }
                        one(&state, &actor, &id).await.ok()?
                    }
                };
                seen = current.version;
                let over = current.ended.is_some();
                let event = Event::default().id(seen.to_string()).event("operation").json_data(&current).ok()?;
                // At most some ten events a second: progress is for eyes.
                state.coordinator.seams.clock.sleep(std::time::Duration::from_millis(80)).await;
                return Some((event, (!over).then_some((None, seen, changes))));
            }
        }
    });
    Ok(Sse::new(stream.map(Ok).take_until(ended)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Asks an operation to stop: what it made is taken back.
#[utoipa::path(post, path = "/api/v1/operations/{id}/cancel", params(("id" = String, Path)), responses((status = 202), (status = 409, body = Problem)))]
pub(super) async fn cancel(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let actor = caller.at_least(Role::Operator)?;
    let id: OperationId = id.parse().map_err(|error| Problem::invalid("id", error))?;
    engine::cancel(&state.coordinator.catalog, &actor, id).await?;
    state.coordinator.ring();
    Ok(StatusCode::ACCEPTED)
}
