//! The repositories: which there are, and how they come and go.

use axum::{
    Json,
    extract::{Path, State as Extract},
    http::StatusCode,
};
use ocopea_catalog_db::{CatalogError, access::Actor, model::Role, repositories as rows};
use ocopea_protocol::{
    ids::RepositoryId,
    image::{Location, StoreLimits},
    names::{RepositoryName, check_text},
    secret::Secret,
};
use ocopea_repository::{Error, backend::s3::parse_location};

use super::{
    ChangedRepository, Idempotency, NewRepository, RepositoryKeys, RepositoryView, State, StoreLimitsInput,
    operations::Repeatable,
    problem::{Begins, Body, Caller, Problem},
};
use crate::{
    Coordinator,
    repositories::{Access, Found, Keys, SecretKeys, Unusable, checked, overlap},
};

/// Most repositories of an installation.
const MOST: usize = 100;

impl From<Unusable> for Problem {
    fn from(error: Unusable) -> Self {
        let told = error.to_string();
        match error {
            Unusable::Catalog(error) => error.into(),
            Unusable::Repository { error, .. } => Self { detail: told, ..error.into() },
            Unusable::Sealed { .. } => Self {
                next: "start with the installation's key file, or remove the repository and add it again".to_owned(),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "sealed", told)
            },
        }
    }
}

fn view(row: rows::Repository, held: &rows::Held) -> RepositoryView {
    let access: Access = serde_json::from_str(&row.access).unwrap_or_default();
    let found = row.found.as_deref().and_then(|found| serde_json::from_str::<Found>(found).ok());
    let (state, found, why) = match found {
        Some(Found::Abilities(abilities)) => ("ready", abilities.told(), String::new()),
        Some(Found::Trouble(why)) => ("unusable", vec![], why),
        None => ("unknown", vec![], String::new()),
    };
    let keys = match access.keys {
        Keys::Environment => "environment".to_owned(),
        Keys::Profile { profile } => format!("profile {profile}"),
        Keys::WebIdentity { role, .. } => format!("web identity {role}"),
        Keys::Static { id } => format!("static {id}"),
    };
    let (kind, keys) = match &row.location {
        Location::Directory { .. } => ("directory", String::new()),
        Location::S3 { .. } => ("s3", keys),
    };
    RepositoryView {
        id: row.id.to_string(),
        kind: kind.to_owned(),
        location: ocopea_repository::place(&row.location),
        keys,
        agents_have_keys: access.agents_have_keys,
        limits: StoreLimitsInput {
            requests: row.limits.requests,
            upload: row.limits.upload,
            download: row.limits.download,
        },
        state: state.to_owned(),
        found,
        why,
        found_at: row.found_at.map(|at| at.rfc3339()),
        images: held.images,
        new_bytes: held.new_bytes,
        is_default: row.is_default,
        given_at_start: row.is_given,
        created: row.created.rfc3339(),
        name: row.name,
    }
}

async fn seen(coordinator: &Coordinator, row: rows::Repository) -> Result<RepositoryView, Problem> {
    let held = coordinator.catalog.held_by_repositories().await?;
    let own = held.get(&row.reference()).copied().unwrap_or_default();
    Ok(view(row, &own))
}

/// All of them, by name.
#[utoipa::path(get, path = "/api/v1/repositories", responses((status = 200, body = Vec<RepositoryView>)))]
pub(super) async fn list(Extract(state): Extract<State>, caller: Caller) -> Result<Json<Vec<RepositoryView>>, Problem> {
    caller.at_least(Role::Viewer)?;
    let coordinator = &state.coordinator;
    let rows = coordinator.all_repositories().await?;
    let held = coordinator.catalog.held_by_repositories().await?;
    let views = rows.into_iter().map(|row| {
        let own = held.get(&row.reference()).copied().unwrap_or_default();
        view(row, &own)
    });
    Ok(Json(views.collect()))
}

/// One.
#[utoipa::path(get, path = "/api/v1/repositories/{repository}", params(("repository" = String, Path, description = "name or id")),
    responses((status = 200, body = RepositoryView), (status = 404, body = Problem)))]
pub(super) async fn get(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<RepositoryView>, Problem> {
    caller.at_least(Role::Viewer)?;
    let row = state.coordinator.named_repository(Some(&name)).await?;
    Ok(Json(seen(&state.coordinator, row).await?))
}

fn location(coordinator: &Coordinator, text: &str) -> Result<Location, Problem> {
    if text.starts_with("s3://") {
        let parsed = parse_location(text, |name| std::env::var(name).ok());
        return parsed.map_err(|error| Problem::invalid("location", error));
    }
    if coordinator.catalog.is_shared() {
        let why = "s3://BUCKET/PREFIX is expected: agents elsewhere reach no directory";
        return Err(Problem::invalid("location", why));
    }
    check_text("location", text, 1000, false).map_err(|error| Problem::invalid("location", error))?;
    let path = std::path::Path::new(text);
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if !path.is_absolute() || !plain {
        let why = "s3://BUCKET/PREFIX or the absolute path of a directory is expected";
        return Err(Problem::invalid("location", why));
    }
    Ok(Location::Directory { path: text.to_owned() })
}

/// Where keys come from, without and with what is secret of it.
fn keys_of(input: &RepositoryKeys) -> Result<(Keys, Option<SecretKeys>), Problem> {
    let word = |field: &'static str, text: &str| {
        check_text(field, text, 2000, false).map_err(|error| Problem::invalid(field, error))?;
        if text.trim().is_empty() { Err(Problem::invalid(field, "it is empty")) } else { Ok(text.to_owned()) }
    };
    let mut sealed = None;
    let keys = match input {
        RepositoryKeys::Environment => Keys::Environment,
        RepositoryKeys::Profile { profile } => Keys::Profile { profile: word("profile", profile)? },
        RepositoryKeys::WebIdentity { role, session } => Keys::WebIdentity {
            role: word("role", role)?,
            session: session.as_deref().map_or(Ok("ocopea".to_owned()), |session| word("session", session))?,
        },
        RepositoryKeys::Static { id, secret, token } => {
            word("secret", secret)?;
            sealed = Some(SecretKeys { secret: Secret::new(secret.clone()), token: token.clone().map(Secret::new) });
            Keys::Static { id: word("id", id)? }
        }
    };
    Ok((keys, sealed))
}

fn sealed(coordinator: &Coordinator, secret: Option<SecretKeys>) -> Result<Option<String>, Problem> {
    let Some(secret) = secret else { return Ok(None) };
    let plain = serde_json::to_vec(&secret).map_err(unreadable)?;
    let sealed = coordinator.vault.seal(&plain);
    sealed.map(Some).map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "vault", error))
}

fn limits_of(input: &StoreLimitsInput) -> Result<StoreLimits, Problem> {
    let StoreLimitsInput { requests, upload, download } = input.clone();
    checked(StoreLimits { requests, upload, download }).map_err(|error| Problem::invalid("limits", error))
}

fn unreadable(error: serde_json::Error) -> Problem {
    Problem::invalid("keys", error)
}

fn check_access(location: &Location, access: &Access) -> Result<(), Problem> {
    if matches!(location, Location::Directory { .. }) && *access != Access::default() {
        return Err(Problem::invalid("keys", "a directory has no keys"));
    }
    Ok(())
}

fn new_row(coordinator: &Coordinator, input: &NewRepository) -> Result<rows::Repository, Problem> {
    let name: RepositoryName = input.name.parse().map_err(|error| Problem::invalid("name", error))?;
    let location = location(coordinator, &input.location)?;
    let (keys, secret) = keys_of(&input.keys)?;
    let access = Access { keys, agents_have_keys: input.agents_have_keys };
    check_access(&location, &access)?;
    Ok(rows::Repository {
        id: RepositoryId::generate(&coordinator.seams),
        name: name.to_string(),
        location,
        access: serde_json::to_string(&access).map_err(unreadable)?,
        sealed: sealed(coordinator, secret)?,
        limits: limits_of(&input.limits)?,
        found: None,
        found_at: None,
        own_id: None,
        is_given: false,
        is_default: false,
        created: coordinator.seams.clock.now(),
    })
}

fn not_added(error: Unusable) -> Problem {
    let next = match &error {
        Unusable::Repository { error: Error::WrongKey { .. }, .. } => {
            "it belongs to another installation, whose key file opens it: choose another place"
        }
        Unusable::Repository { error: Error::Occupied { .. }, .. } => {
            "choose an empty place, or one with a repository of this installation"
        }
        _ => return error.into(),
    };
    Problem { next: next.to_owned(), ..Problem::new(StatusCode::CONFLICT, "conflict", error) }
}

/// Adds one: what its store can is found out with real objects, and the repository is made where there is none yet. One
/// that the installation's keys don't open is another's, and refused.
#[utoipa::path(post, path = "/api/v1/repositories", params(Idempotency), request_body = NewRepository,
    responses((status = 201, body = RepositoryView), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn add(
    Extract(state): Extract<State>,
    caller: Caller,
    key: Begins,
    Body(input): Body<NewRepository>,
) -> Result<(StatusCode, Json<RepositoryView>), Problem> {
    let actor = caller.at_least(Role::Administrator)?;
    let coordinator = &state.coordinator;
    let repeatable = Repeatable::new(coordinator, key, "add repository", &input)?;
    if repeatable.known(coordinator, &actor).await?.is_some() {
        let row = coordinator.named_repository(Some(&input.name)).await?;
        return Ok((StatusCode::CREATED, Json(seen(coordinator, row).await?)));
    }
    let mut row = new_row(coordinator, &input)?;
    let known = coordinator.all_repositories().await?;
    if known.len() >= MOST {
        return Err(Problem::new(StatusCode::CONFLICT, "conflict", format!("there are {MOST} repositories already")));
    }
    // Before anything is written there.
    if known.iter().any(|known| known.name == row.name) {
        return Err(CatalogError::Conflict(format!("there is a repository {} already", row.name)).into());
    }
    if let Some(same) = known.iter().find(|known| overlap(&known.location, &row.location)) {
        let why = format!("the repository {} lies there already, or one lies within the other", same.name);
        return Err(Problem {
            field: Some("location".to_owned()),
            next: "choose a place of its own: another bucket, another prefix".to_owned(),
            ..Problem::new(StatusCode::CONFLICT, "conflict", why)
        });
    }
    coordinator.try_repository(&mut row).await.map_err(not_added)?;
    let detail = ocopea_repository::place(&row.location);
    let write = async || {
        let transaction = coordinator.catalog.begin().await?;
        if repeatable.remember(&transaction, &actor).await? {
            transaction.add_repository(&row).await?;
            transaction.audit(Some(actor.team), Some(actor.user), "repository.add", &row.name, &detail).await?;
            transaction.commit().await?;
        }
        Ok(())
    };
    coordinator.catalog.again(write).await?;
    Ok((StatusCode::CREATED, Json(seen(coordinator, row).await?)))
}

/// Changes how an added one is got at: other keys, other limits. They are tried with real objects first; every coordinator
/// uses them from then on.
#[utoipa::path(patch, path = "/api/v1/repositories/{repository}", params(("repository" = String, Path, description = "name or id")),
    request_body = ChangedRepository, responses((status = 200, body = RepositoryView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn change(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(name): Path<String>,
    Body(input): Body<ChangedRepository>,
) -> Result<Json<RepositoryView>, Problem> {
    let (actor, mut row) = administered(&state, caller, &name).await?;
    let coordinator = &state.coordinator;
    if row.is_given {
        return Err(Problem {
            next: "set them where the coordinator is started".to_owned(),
            ..Problem::new(
                StatusCode::CONFLICT,
                "conflict",
                format!("keys and limits of the repository {} are given at start", row.name),
            )
        });
    }
    let mut access: Access = serde_json::from_str(&row.access).map_err(CatalogError::from)?;
    if let Some(keys) = &input.keys {
        let (keys, secret) = keys_of(keys)?;
        access.keys = keys;
        row.sealed = sealed(coordinator, secret)?;
    }
    access.agents_have_keys = input.agents_have_keys.unwrap_or(access.agents_have_keys);
    check_access(&row.location, &access)?;
    row.access = serde_json::to_string(&access).map_err(unreadable)?;
    if let Some(limits) = &input.limits {
        row.limits = limits_of(limits)?;
    }
    coordinator.try_repository(&mut row).await.map_err(not_added)?;
    let write = async || {
        let transaction = coordinator.catalog.begin().await?;
        transaction.change_repository(&row).await?;
        noted(transaction, &actor, "repository.change", &row).await
    };
    coordinator.catalog.again(write).await?;
    Ok(Json(seen(coordinator, row).await?))
}

/// Forgets one, and how it is got at; nothing in it is touched. Refused while images lie in it.
#[utoipa::path(delete, path = "/api/v1/repositories/{repository}", params(("repository" = String, Path, description = "name or id")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn remove(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let (actor, row) = administered(&state, caller, &name).await?;
    let coordinator = &state.coordinator;
    let remove = async || {
        let transaction = coordinator.catalog.begin().await?;
        transaction.remove_repository(row.id).await?;
        noted(transaction, &actor, "repository.remove", &row).await
    };
    match coordinator.catalog.again(remove).await {
        Ok(()) => {}
        Err(error @ CatalogError::Conflict(_)) => {
            return Err(Problem {
                next: format!("see what lies in it: ocopea images --repository {}", row.name),
                ..error.into()
            });
        }
        Err(error) => return Err(error.into()),
    }
    coordinator.repositories.forget(row.id);
    Ok(StatusCode::NO_CONTENT)
}

/// From now on, saves that name none go there.
#[utoipa::path(put, path = "/api/v1/repositories/{repository}/default", params(("repository" = String, Path, description = "name or id")),
    responses((status = 204), (status = 404, body = Problem)))]
pub(super) async fn make_default(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let (actor, row) = administered(&state, caller, &name).await?;
    let coordinator = &state.coordinator;
    let change = async || {
        let transaction = coordinator.catalog.begin().await?;
        transaction.set_default_repository(row.id).await?;
        noted(transaction, &actor, "repository.default", &row).await
    };
    coordinator.catalog.again(change).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The one of that name, for an administrator.
async fn administered(state: &State, caller: Caller, name: &str) -> Result<(Actor, rows::Repository), Problem> {
    let actor = caller.at_least(Role::Administrator)?;
    Ok((actor, state.coordinator.named_repository(Some(name)).await?))
}

async fn noted(
    transaction: ocopea_catalog_db::Transaction,
    actor: &Actor,
    action: &str,
    row: &rows::Repository,
) -> Result<(), CatalogError> {
    let detail = ocopea_repository::place(&row.location);
    transaction.audit(Some(actor.team), Some(actor.user), action, &row.name, &detail).await?;
    transaction.commit().await
}
