//! Rooms and what is said in them.

use axum::{Json, http::StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    accounts::{SignedIn, Viewer},
    health::Ready,
    input::{Body, Params, Place},
    problem::Problem,
};
use crate::{
    model::{self, Emoji, Invalid, MAX_PAGE, MessagePage, NewMessage, NewRoom, Room, RoomKind, Slug, Title},
    store::Storage,
    world,
};

type Answer = Result<Json<Value>, Problem>;

fn shown(room: &Room) -> Value {
    json!({
        "slug": room.slug, "title": room.title, "topic": room.topic, "kind": room.kind, "messages": room.messages,
        "lastAt": (room.last_at != 0).then(|| world::rfc3339(room.last_at)),
    })
}

fn page(page: &MessagePage) -> Json<Value> {
    let messages: Vec<Value> = page.messages.iter().map(model::Message::to_json).collect();
    Json(json!({ "messages": messages, "older": page.older }))
}

async fn find(store: &dyn Storage, slug: &str, viewer: Option<i64>) -> Result<Room, Problem> {
    let slug = Slug::parse(slug)?;
    store.room(&slug, viewer).await?.ok_or_else(|| Problem::absent(format!("room {slug} that you may read")))
}

/// `GET /api/rooms`
pub(super) async fn list(Ready(store): Ready, viewer: Viewer) -> Answer {
    let rooms = store.rooms(viewer.id()).await?;
    Ok(Json(json!({ "rooms": rooms.iter().map(shown).collect::<Vec<_>>() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddRoom {
    room: String,
    title: String,
    #[serde(default)]
    topic: String,
    #[serde(default)]
    private: bool,
}

/// `POST /api/rooms`
pub(super) async fn add(
    Ready(store): Ready,
    SignedIn(by): SignedIn,
    Body(add): Body<AddRoom>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let topic = add.topic.trim().to_owned();
    if topic.chars().count() > 200 || topic.chars().any(char::is_control) {
        return Err(Invalid { field: "topic", reason: "takes at most 200 characters on one line".into() }.into());
    }
    let kind = if add.private { RoomKind::Private } else { RoomKind::Public };
    let (slug, title) = (Slug::parse(&add.room)?, Title::parse("title", &add.title)?);
    let room = store.add_room(&NewRoom { slug, title, topic, kind, at: world::now() }, &by).await?;
    Ok((StatusCode::CREATED, Json(shown(&room))))
}

#[derive(Deserialize)]
pub(super) struct Window {
    before: Option<i64>,
    limit: Option<usize>,
}

/// `GET /api/rooms/{room}/messages?before=CURSOR&limit=N`
pub(super) async fn messages(
    Ready(store): Ready,
    viewer: Viewer,
    Place(slug): Place<String>,
    Params(window): Params<Window>,
) -> Answer {
    let room = find(store.as_ref(), &slug, viewer.id()).await?;
    let limit = window.limit.unwrap_or(50).clamp(1, MAX_PAGE);
    // Beyond the years that databases can hold, a cursor is as good as none.
    let before = window.before.map(|cursor| cursor.clamp(0, 253_402_300_799_999));
    Ok(page(&store.messages(&room, before, limit).await?))
}

#[derive(Deserialize)]
pub(super) struct Needle {
    q: String,
}

/// `GET /api/rooms/{room}/search?q=TEXT`
pub(super) async fn search(
    Ready(store): Ready,
    viewer: Viewer,
    Place(slug): Place<String>,
    Params(needle): Params<Needle>,
) -> Answer {
    let room = find(store.as_ref(), &slug, viewer.id()).await?;
    let text = needle.q.trim();
    if !(2..=100).contains(&text.chars().count()) || text.chars().any(char::is_control) {
        return Err(Invalid { field: "q", reason: "takes 2 to 100 characters".into() }.into());
    }
    Ok(page(&store.search(&room, text).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Post {
    body: String,
    #[serde(default)]
    reply_to: Option<i64>,
    #[serde(default)]
    upload: Option<Uuid>,
}

/// `POST /api/rooms/{room}/messages`
pub(super) async fn post(
    Ready(store): Ready,
    SignedIn(by): SignedIn,
    Place(slug): Place<String>,
    Body(post): Body<Post>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let body = model::Body::parse(&post.body)?;
    let room = find(store.as_ref(), &slug, Some(by.id)).await?;
    let new = NewMessage { at: world::now(), body, reply_to: post.reply_to, upload: post.upload };
    let message = store.post(&room, &by, &new).await?;
    Ok((StatusCode::CREATED, Json(message.to_json())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct React {
    emoji: String,
}

/// `POST /api/rooms/{room}/messages/{n}/reactions`: gives it, or takes it back.
pub(super) async fn react(
    Ready(store): Ready,
    axum::extract::State(app): axum::extract::State<std::sync::Arc<super::App>>,
    SignedIn(by): SignedIn,
    Place((slug, n)): Place<(String, i64)>,
    Body(react): Body<React>,
) -> Answer {
    let version = app.config.version;
    if !version.reactions() {
        return Err(Problem::absent(format!("reaction in version {version}")));
    }
    let emoji = Emoji::parse(&react.emoji)?;
    let room = find(store.as_ref(), &slug, Some(by.id)).await?;
    store.react(&room, n, &by, &emoji).await?;
    Ok(Json(Value::Null))
}
