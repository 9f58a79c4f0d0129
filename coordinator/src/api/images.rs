//! Saved images.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State as Extract},
    http::StatusCode,
};
use ocopea_catalog_db::{
    CatalogError,
    images::{Image, ImageSearch},
    model::Role,
};
use ocopea_protocol::{ids::RepositoryId, names::check_text, time::Timestamp};
use ocopea_repository::Note;

use super::{
    Accepted, CommentView, Idempotency, ImageQuery, ImageView, LabelChanges, NewComment, Page, State,
    operations::{Repeatable, Taken},
    problem::{Begins, Body, Caller, Problem, Query},
};
use crate::{
    Coordinator,
    engine::Order,
    plan::{Context, Request, repository::DeleteRequest},
};

/// Most labels of one image.
const MOST_LABELS: usize = 64;

/// The names of repositories, by what images name them.
type Names = BTreeMap<Option<RepositoryId>, String>;

async fn names(coordinator: &Coordinator) -> Result<Names, CatalogError> {
    Ok(coordinator.all_repositories().await?.into_iter().map(|one| (one.reference(), one.name)).collect())
}

fn view(image: Image, names: &Names) -> ImageView {
    ImageView {
        repository: names.get(&image.repository).cloned().unwrap_or_default(),
        id: image.id.to_string(),
        name: image.name,
        application: image.application,
        site: image.site,
        creator: image.creator,
        comment: image.comment,
        labels: image.labels,
        bytes: image.bytes,
        new_bytes: image.new_bytes,
        created: image.created.rfc3339(),
        record: image.record.to_string(),
        body: None,
        comments: Vec::new(),
    }
}

/// Images of the caller's team, newest first.
#[utoipa::path(get, path = "/api/v1/images", params(ImageQuery), responses((status = 200, body = Page<ImageView>)))]
pub(super) async fn list(
    Extract(state): Extract<State>,
    caller: Caller,
    Query(query): Query<ImageQuery>,
) -> Result<Json<Page<ImageView>>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let limit = query.limit.unwrap_or(100).clamp(1, 1000);
    let labels = query
        .label
        .iter()
        .map(|label| match label.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (label.clone(), None),
        })
        .collect();
    let coordinator = &state.coordinator;
    let repository = match &query.repository {
        Some(name) => Some(coordinator.named_repository(Some(name)).await?.reference()),
        None => None,
    };
    let search = ImageSearch {
        text: query.q.iter().flat_map(|q| q.split_whitespace().map(str::to_owned)).collect(),
        labels,
        application: query.application,
        site: query.site,
        creator: query.by,
        repository,
        since: query.since_ms.map(Timestamp),
        until: query.until_ms.map(Timestamp),
        before: query.cursor.map(|c| c.parse()).transpose().map_err(|error| Problem::invalid("cursor", error))?,
        limit,
    };
    let images = coordinator.catalog.images(actor.team, &search).await?;
    let full = images.len() as u64 == limit;
    let next = images.last().filter(|_| full).map(|image| image.id.to_string());
    let names = names(coordinator).await?;
    Ok(Json(Page { items: images.into_iter().map(|image| view(image, &names)).collect(), next }))
}

/// One image with its record and comments.
#[utoipa::path(get, path = "/api/v1/images/{image}", params(("image" = String, Path, description = "id, or a name that only one image has")),
    responses((status = 200, body = ImageView), (status = 404, body = Problem)))]
pub(super) async fn get(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(image): Path<String>,
) -> Result<Json<ImageView>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let found = state.coordinator.catalog.image(actor.team, &image).await?;
    let comments = state.coordinator.catalog.comments(actor.team, found.id).await?;
    let body = serde_json::from_str(&found.body).ok();
    let mut view = view(found, &names(&state.coordinator).await?);
    view.body = body;
    view.comments =
        comments.into_iter().map(|c| CommentView { author: c.author, at: c.at.rfc3339(), body: c.body }).collect();
    Ok(Json(view))
}

/// Sets and takes away labels. Written to the repository as a note too, so that a reindex brings them back.
#[utoipa::path(patch, path = "/api/v1/images/{image}/labels", params(("image" = String, Path)), request_body = LabelChanges,
    responses((status = 200, body = ImageView)))]
pub(super) async fn label(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(image): Path<String>,
    Body(input): Body<LabelChanges>,
) -> Result<Json<ImageView>, Problem> {
    let actor = caller.at_least(Role::Operator)?;
    check_labels(input.labels.iter().map(|(label, value)| (label.as_str(), value.as_deref().unwrap_or_default())))?;
    let coordinator = &state.coordinator;
    let catalog = &coordinator.catalog;
    let found = catalog.image(actor.team, &image).await?;
    let kept = found.labels.keys().filter(|label| !input.labels.contains_key(*label)).count();
    if kept + input.labels.values().flatten().count() > MOST_LABELS {
        return Err(Problem::invalid("labels", format!("an image has {MOST_LABELS} labels at most")));
    }
    let body = serde_json::to_string(&input.labels).map_err(|error| Problem::invalid("labels", error))?;
    let note = Note { kind: "labels".to_owned(), body, by: actor.user_name.clone(), at: coordinator.seams.clock.now() };
    coordinator.repository(found.repository).await?.note(&found.record, &note).await?;
    let change = async || {
        let mut image = found.clone();
        let transaction = catalog.begin().await?;
        transaction.change_labels(&mut image, &input.labels).await?;
        transaction.audit(Some(actor.team), Some(actor.user), "image.label", &image.id.to_string(), &note.body).await?;
        transaction.commit().await?;
        Ok(image)
    };
    let changed = catalog.again(change).await?;
    Ok(Json(view(changed, &names(coordinator).await?)))
}

/// Checks labels as people give them.
pub(super) fn check_labels<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), Problem> {
    for (count, (label, value)) in labels.enumerate() {
        if count >= MOST_LABELS {
            return Err(Problem::invalid("labels", format!("{MOST_LABELS} labels at most")));
        }
        if label.trim().is_empty() {
            return Err(Problem::invalid("labels", "a label needs a name"));
        }
        check_text("label", label, 100, false).map_err(|error| Problem::invalid("labels", error))?;
        check_text("label's value", value, 500, false).map_err(|error| Problem::invalid("labels", error))?;
    }
    Ok(())
}

/// Adds a comment, also as a note in the repository.
#[utoipa::path(post, path = "/api/v1/images/{image}/comments", params(("image" = String, Path), Idempotency), request_body = NewComment,
    responses((status = 204)))]
pub(super) async fn comment(
    Extract(state): Extract<State>,
    caller: Caller,
    key: Begins,
    Path(image): Path<String>,
    Body(input): Body<NewComment>,
) -> Result<StatusCode, Problem> {
    let actor = caller.at_least(Role::Operator)?;
    check_text("comment", &input.body, 10_000, true).map_err(|error| Problem::invalid("body", error))?;
    if input.body.trim().is_empty() {
        return Err(Problem::invalid("body", "a comment says something"));
    }
    let coordinator = &state.coordinator;
    let repeatable = Repeatable::new(coordinator, key, &format!("comment {image}"), &input)?;
    if repeatable.known(coordinator, &actor).await?.is_some() {
        return Ok(StatusCode::NO_CONTENT);
    }
    let found = coordinator.catalog.image(actor.team, &image).await?;
    let note = Note {
        kind: "comment".to_owned(),
        body: input.body.clone(),
        by: actor.user_name.clone(),
        at: coordinator.seams.clock.now(),
    };
    coordinator.repository(found.repository).await?.note(&found.record, &note).await?;
    let add = async || {
        let transaction = coordinator.catalog.begin().await?;
        if !repeatable.remember(&transaction, &actor).await? {
            return Ok(());
        }
        transaction.add_comment(found.id, &actor.user_name, &input.body).await?;
        transaction.audit(Some(actor.team), Some(actor.user), "image.comment", &found.id.to_string(), "").await?;
        transaction.commit().await
    };
    coordinator.catalog.again(add).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes an image: it is gone from the catalog at once; its bytes go with the next collection.
#[utoipa::path(delete, path = "/api/v1/images/{image}", params(("image" = String, Path), Idempotency), responses((status = 202, body = Accepted)))]
pub(super) async fn delete(
    Extract(state): Extract<State>,
    caller: Caller,
    key: Begins,
    Path(image): Path<String>,
) -> Result<Taken, Problem> {
    let actor = caller.at_least(Role::Operator)?;
    let coordinator = &state.coordinator;
    let repeatable = Repeatable::new(coordinator, key, "delete image", &image)?;
    if let Some(known) = repeatable.known(coordinator, &actor).await? {
        return Ok(known);
    }
    let found = coordinator.catalog.image(actor.team, &image).await?;
    let order = Order {
        request: Request::DeleteImage(DeleteRequest { image: found.id }),
        title: format!("delete image {}", found.name),
        site: None,
        context: Context::default(),
        image: Some(found.id),
        repository: found.repository,
        environment: None,
        removing: None,
    };
    repeatable.take(coordinator, &actor, order).await
}
