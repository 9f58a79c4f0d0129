//! Whether the service can do its work, and the loop that finds out.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{FromRequestParts, State},
    http::{StatusCode, request::Parts},
};
use tokio_util::sync::CancellationToken;

use super::{App, problem::Problem};
use crate::{
    store::{self, Storage, StoreError},
    world::{self, Stopwatch},
};

/// How long the database may take to come up.
const DATABASE: Duration = Duration::from_secs(180);
/// How long a migration that is expected may take to come.
const MIGRATION: Duration = Duration::from_secs(60);
/// How often it is looked whether database and schema are still there.
const LOOK: Duration = Duration::from_secs(2);
/// How often expired sessions are removed and summaries made.
const TIDY: Duration = Duration::from_secs(300);

/// What `/readyz` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// Requests are served.
    Ready,
    /// They aren't, because of this.
    Waiting(String),
}

impl App {
    fn set(&self, health: Health) {
        if let Ok(mut now) = self.health.write()
            && *now != health
        {
            match &health {
                Health::Ready => tracing::info!("ready"),
                Health::Waiting(reason) => tracing::warn!(reason, "not ready"),
            }
            *now = health;
        }
    }

    fn health(&self) -> Health {
        self.health.read().map_or_else(|_| Health::Waiting("a thread died".into()), |now| now.clone())
    }
}

/// Connects, waits for the schema, then keeps looking. An error: this version can't work on this database.
pub(super) async fn keep(app: &Arc<App>, stop: &CancellationToken) -> anyhow::Result<()> {
    let connected = tokio::select! {
        connected = store::connect(&app.config, DATABASE) => connected?,
        () = stop.cancelled() => return Ok(()),
    };
    let waiting = Stopwatch::start();
    loop {
        match check(app, connected.as_ref()).await {
            Ok(()) => break,
            Err(StoreError::Schema(reason)) => {
                let schema = connected.schema().await?;
                if !schema.may_become(app.config.version) || waiting.elapsed() > MIGRATION {
                    return Err(StoreError::Schema(reason).into());
                }
                app.set(Health::Waiting(reason));
            }
            Err(error @ StoreError::Unreachable(_)) => app.set(Health::Waiting(error.to_string())),
            Err(error) => return Err(error.into()),
        }
        if !pause(stop, Duration::from_millis(500)).await {
            return Ok(());
        }
    }
    // Set once: this is the only place.
    let _ = app.store.set(connected.clone());
    app.set(Health::Ready);
    let mut tidied = Stopwatch::start();
    while pause(stop, LOOK).await {
        match check(app, connected.as_ref()).await {
            Ok(()) => app.set(Health::Ready),
            Err(error) => app.set(Health::Waiting(error.to_string())),
        }
        if tidied.elapsed() > TIDY {
            tidied = Stopwatch::start();
            if let Err(error) = connected.tidy(world::now()).await {
                tracing::warn!(%error, "couldn't tidy up, the next time will do");
            }
        }
    }
    Ok(())
}

async fn check(app: &App, store: &dyn Storage) -> Result<(), StoreError> {
    store.schema().await?.suits(app.config.version)
}

async fn pause(stop: &CancellationToken, span: Duration) -> bool {
    tokio::select! {
        () = world::sleep(span) => true,
        () = stop.cancelled() => false,
    }
}

/// The process runs.
pub(super) async fn live() -> &'static str {
    "alive\n"
}

/// The database is reachable and its schema is right.
pub(super) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, String) {
    match app.health() {
        Health::Ready => (StatusCode::OK, "ready\n".into()),
        Health::Waiting(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

/// The store, for requests: 503 with the reason while it can't be used.
pub(super) struct Ready(pub(super) Arc<dyn Storage>);

impl FromRequestParts<Arc<App>> for Ready {
    type Rejection = Problem;

    async fn from_request_parts(_parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        match (app.health(), app.store.get()) {
            (Health::Ready, Some(store)) => Ok(Self(store.clone())),
            (Health::Waiting(reason), _) => Err(Problem::unavailable(reason)),
            (Health::Ready, None) => Err(Problem::unavailable("the database isn't connected".into())),
        }
    }
}
