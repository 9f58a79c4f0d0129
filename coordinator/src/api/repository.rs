//! The copy repository.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State as Extract},
    http::StatusCode,
};
use futures::StreamExt;
use ocopea_catalog_db::{Catalog, CatalogError, access::Actor, model::Role, repositories as rows};
use ocopea_protocol::ids::RepositoryId;
use ocopea_repository::KeyId;

use super::{
    Accepted, CollectInput, Idempotency, KeyView, NewKey, NotReindexed, OfRepository, Reindexed, State, VerifyInput,
    operations::{Repeatable, Taken},
    problem::{Begins, Body, Caller, Problem, Query},
};
use crate::{
    engine::{Order, image_row},
    plan::{
        Context, Request,
        repository::{CollectRequest, VerifyRequest},
    },
    repositories::Unusable,
};

fn order(request: Request, repository: Option<RepositoryId>, title: String) -> Order {
    Order {
        request,
        title,
        site: None,
        context: Context::default(),
        image: None,
        repository,
        environment: None,
        removing: None,
    }
}

/// Reads everything back and names what is broken, with every image that it affects.
#[utoipa::path(post, path = "/api/v1/repository/verifications", params(Idempotency), request_body = VerifyInput, responses((status = 202, body = Accepted)))]
pub(super) async fn verify(
    Extract(state): Extract<State>,
    caller: Caller,
    key: Begins,
    Body(input): Body<VerifyInput>,
) -> Result<Taken, Problem> {
    let actor = caller.at_least(Role::Operator)?;
    let coordinator = &state.coordinator;
    let catalog = &coordinator.catalog;
    let repeatable = Repeatable::new(coordinator, key, "verify", &input)?;
    if let Some(known) = repeatable.known(coordinator, &actor).await? {
        return Ok(known);
    }
    let (image, repository, title) = match &input.image {
        Some(name) => {
            let image = catalog.image(actor.team, name).await?;
            if let Some(wanted) = &input.repository
                && coordinator.named_repository(Some(wanted)).await?.reference() != image.repository
            {
                return Err(Problem::invalid("repository", format!("the image {} lies in another one", image.name)));
            }
            (Some(image.id), image.repository, format!("verify image {}", image.name))
        }
        None => {
            let row = coordinator.named_repository(input.repository.as_deref()).await?;
            (None, row.reference(), format!("verify repository {}", row.name))
        }
    };
    let order = order(Request::Verify(VerifyRequest { image }), repository, title);
    repeatable.take(coordinator, &actor, order).await
}

/// Deletes what no image needs any more.
#[utoipa::path(post, path = "/api/v1/repository/collections", params(Idempotency), request_body = CollectInput, responses((status = 202, body = Accepted)))]
pub(super) async fn collect(
    Extract(state): Extract<State>,
    caller: Caller,
    key: Begins,
    Body(input): Body<CollectInput>,
) -> Result<Taken, Problem> {
    let actor = caller.at_least(Role::Administrator)?;
    let coordinator = &state.coordinator;
    if input.grace_s > 30 * 24 * 3600 {
        return Err(Problem::invalid("grace_s", "30 days at most"));
    }
    let request = Request::Collect(CollectRequest { grace_s: input.grace_s });
    let repeatable = Repeatable::new(coordinator, key, "collect", &input)?;
    if let Some(known) = repeatable.known(coordinator, &actor).await? {
        return Ok(known);
    }
    let row = coordinator.named_repository(input.repository.as_deref()).await?;
    let order = order(request, row.reference(), format!("collect repository {}", row.name));
    repeatable.take(coordinator, &actor, order).await
}

/// Brings images that the repository has and the catalog lacks back into the catalog, with labels and comments.
#[utoipa::path(post, path = "/api/v1/repository/reindexes", params(OfRepository), responses((status = 200, body = Reindexed)))]
pub(super) async fn reindex(
    Extract(state): Extract<State>,
    caller: Caller,
    Query(query): Query<OfRepository>,
) -> Result<Json<Reindexed>, Problem> {
    let actor = caller.at_least(Role::Administrator)?;
    let coordinator = &state.coordinator;
    let of = coordinator.named_repository(query.repository.as_deref()).await?.reference();
    let repository = coordinator.repository_for_long(of).await?;
    let mut found = repository.reindex();
    let mut answer = Reindexed { images: 0, added: 0, failed: Vec::new() };
    while let Some((object, one)) = found.next().await {
        answer.images += 1;
        // One image that is broken keeps no other from coming back.
        let one = match (object, one) {
            (_, Ok(one)) => one,
            (Some(object), Err(error)) => {
                answer.failed.push(NotReindexed { object, why: error.to_string() });
                continue;
            }
            (None, Err(error)) => return Err(error.into()),
        };
        if coordinator.catalog.image(actor.team, &one.record.image.to_string()).await.is_ok() {
            continue;
        }
        let catalog = &coordinator.catalog;
        if catalog.again(|| bring_back(catalog, &actor, of, &one)).await? {
            answer.added += 1;
        }
    }
    Ok(Json(answer))
}

/// Makes the catalog's row of an image. The images of a lost catalog belong to teams that it took along: the caller's takes
/// them over. `false`: it is another team's, or being deleted, and not the caller's to change.
async fn bring_back(
    catalog: &Catalog,
    actor: &Actor,
    repository: Option<RepositoryId>,
    one: &ocopea_repository::Reindexed,
) -> Result<bool, CatalogError> {
    let mut image = image_row(one.reference.record, &one.record, actor.team, repository)?;
    let transaction = catalog.begin().await?;
    transaction.hold_repository(repository).await?;
    if !transaction.add_image(&image).await? {
        return Ok(false);
    }
    for note in &one.notes {
        match note.kind.as_str() {
            "labels" => {
                let changes: BTreeMap<String, Option<String>> = serde_json::from_str(&note.body).unwrap_or_default();
                transaction.change_labels(&mut image, &changes).await?;
            }
            "comment" => transaction.add_comment(image.id, &note.by, &note.body).await?,
            _ => {}
        }
    }
    transaction.audit(Some(actor.team), Some(actor.user), "image.reindex", &image.id.to_string(), &image.name).await?;
    transaction.commit().await?;
    Ok(true)
}

/// The installation's keys of its repositories: their ids. The first is the one that new keys are wrapped with.
#[utoipa::path(get, path = "/api/v1/repository/keys", responses((status = 200, body = Vec<KeyView>)))]
pub(super) async fn keys(Extract(state): Extract<State>, caller: Caller) -> Result<Json<Vec<KeyView>>, Problem> {
    caller.at_least(Role::Administrator)?;
    Ok(Json(views(&state)))
}

fn views(state: &State) -> Vec<KeyView> {
    let ids = state.coordinator.repositories.keyring().ids();
    let view = |(at, id): (usize, KeyId)| KeyView { id: id.to_string(), current: at == 0 };
    ids.into_iter().enumerate().map(view).collect()
}

fn of_repository(name: &str) -> impl Fn(ocopea_repository::Error) -> Problem {
    let name = name.to_owned();
    move |error| Unusable::Repository { name: name.clone(), error }.into()
}

/// Adds a new key that opens everything in every repository, beside the others; with `rotate`, images that are saved from
/// now on get team keys of their own, too. The key file is written first: a key that was used is never lost.
#[utoipa::path(post, path = "/api/v1/repository/keys", request_body = NewKey, responses((status = 200, body = Vec<KeyView>)))]
pub(super) async fn add_key(
    Extract(state): Extract<State>,
    caller: Caller,
    Body(input): Body<NewKey>,
) -> Result<Json<Vec<KeyView>>, Problem> {
    let actor = caller.at_least(Role::Administrator)?;
    let coordinator = &state.coordinator;
    // Alone: nothing is saved or read while keys change.
    let (alone, all) = coordinator.to_change_keys().await?;
    let mut ring = coordinator.repositories.keyring();
    let id = ring.add_generated(&coordinator.seams);
    store(&state, &ring)?;
    for (name, repository) in &all {
        let changed = if input.rotate { repository.key_rotate(&ring).await } else { repository.key_add(&ring).await };
        changed.map_err(of_repository(name))?;
    }
    drop(alone);
    let action = if input.rotate { "repository.key-rotate" } else { "repository.key-add" };
    audit(&state, &actor, action, id.as_str()).await?;
    Ok(Json(views(&state)))
}

/// Takes a key away: it opens nothing any more, in no repository. Refused for the last one.
#[utoipa::path(delete, path = "/api/v1/repository/keys/{key}", params(("key" = String, Path)),
    responses((status = 200, body = Vec<KeyView>), (status = 404, body = Problem)))]
pub(super) async fn remove_key(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(key): Path<String>,
) -> Result<Json<Vec<KeyView>>, Problem> {
    let actor = caller.at_least(Role::Administrator)?;
    let (alone, all) = state.coordinator.to_change_keys().await?;
    let before = state.coordinator.repositories.keyring();
    let id = before.ids().into_iter().find(|id| id.as_str() == key);
    let id = id.ok_or_else(|| Problem::not_found("that key", "see the keys: ocopea repository key list"))?;
    let mut ring = before.clone();
    ring.remove(&id)?;
    // A kill in between leaves wraps by a key that nobody keeps; removing it again takes them away. The first one's come
    // last: as long as it has the key, this can be asked again.
    for (name, repository) in all.iter().rev() {
        if repository.keyring().ids().contains(&id) {
            if name != rows::GIVEN {
                // Whatever else the file holds opens it, before this one no longer does.
                repository.key_add(&before).await.map_err(of_repository(name))?;
            }
            repository.key_remove(&id).await.map_err(of_repository(name))?;
        }
    }
    store(&state, &ring).map_err(|problem| Problem {
        next: "the key opens nothing any more, but its line is still in the key file, and would be used again at the \
               next start: make room or mend the file's rights, restart, then remove the key again"
            .to_owned(),
        ..problem
    })?;
    drop(alone);
    audit(&state, &actor, "repository.key-remove", id.as_str()).await?;
    Ok(Json(views(&state)))
}

fn store(state: &State, ring: &ocopea_repository::Keyring) -> Result<(), Problem> {
    state.keys.store(ring).map_err(|error| Problem {
        next: "make room or mend the file's rights, then try again: nothing was changed".to_owned(),
        ..Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "key-file", error)
    })
}

async fn audit(state: &State, actor: &Actor, action: &str, key: &str) -> Result<(), Problem> {
    let catalog = &state.coordinator.catalog;
    let note = async || {
        let transaction = catalog.begin().await?;
        transaction.audit(Some(actor.team), Some(actor.user), action, key, "").await?;
        transaction.commit().await
    };
    Ok(catalog.again(note).await?)
}
