//! The page itself, and what it says about the service.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde_json::{Value, json};

use super::{App, health::Ready, problem::Problem};
use crate::{
    model::{Emoji, MAX_BODY, MAX_UPLOAD},
    world::Stopwatch,
};

/// Counting takes the database some work: at most so often.
const STATS: Duration = Duration::from_secs(3);

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text)
}

pub(super) async fn index() -> impl IntoResponse {
    asset("text/html; charset=utf-8", include_str!("../../page/index.html"))
}

pub(super) async fn script() -> impl IntoResponse {
    asset("text/javascript; charset=utf-8", include_str!("../../page/app.js"))
}

pub(super) async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", include_str!("../../page/style.css"))
}

pub(super) async fn icon() -> impl IntoResponse {
    asset("image/svg+xml", include_str!("../../page/favicon.svg"))
}

/// `GET /api/about`
pub(super) async fn about(State(app): State<Arc<App>>) -> Json<Value> {
    let config = &app.config;
    Json(json!({
        "title": config.title, "version": config.version.to_string(), "shape": config.database.shape(),
        "schema": config.version.schema(), "reactions": if config.version.reactions() { &Emoji::ALL[..] } else { &[] },
        "maxBody": MAX_BODY, "maxUpload": MAX_UPLOAD,
    }))
}

/// `GET /api/stats`
pub(super) async fn stats(State(app): State<Arc<App>>, Ready(store): Ready) -> Result<Json<Value>, Problem> {
    let mut known = app.stats.lock().await;
    let counts = match known.take() {
        Some((since, counts)) if since.elapsed() < STATS => known.insert((since, counts)),
        _ => {
            let counts = store.counts().await?;
            known.insert((Stopwatch::start(), counts))
        }
    };
    let entries: serde_json::Map<String, Value> =
        counts.1.entries.iter().map(|(name, count)| (name.clone(), json!(count))).collect();
    Ok(Json(json!({ "entries": entries, "uploadBytes": counts.1.upload_bytes, "newest": counts.1.newest })))
}
