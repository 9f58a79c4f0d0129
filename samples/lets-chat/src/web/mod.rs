//! The page and its API.
//!
//! The listener is up before the database is: `/healthz` says that the process lives, `/readyz` what it waits for.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
    routing::{get, post},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};

use crate::{
    config::Config,
    model::MAX_UPLOAD,
    store::{Counts, Storage},
    world::{self, Stopwatch},
};

mod accounts;
mod health;
mod input;
mod pages;
mod problem;
mod rooms;
mod uploads;

use health::Health;

/// Largest body but an upload's.
const MAX_REQUEST: usize = 64 * 1024;
/// Longest a request may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest that requests under way may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(10);
/// Passwords hashed at once: each takes 19 MiB.
const HASHING: usize = 4;

/// What requests share.
pub struct App {
    config: Config,
    store: OnceLock<Arc<dyn Storage>>,
    health: std::sync::RwLock<Health>,
    hashing: Semaphore,
    stats: Mutex<Option<(Stopwatch, Counts)>>,
}

impl App {
    fn new(config: Config) -> Arc<Self> {
        Arc::new(Self {
            config,
            store: OnceLock::new(),
            health: std::sync::RwLock::new(Health::Waiting("the database wasn't asked yet".into())),
            hashing: Semaphore::new(HASHING),
            stats: Mutex::new(None),
        })
    }
}

fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/api/about", get(pages::about))
        .route("/api/stats", get(pages::stats))
        .route("/api/me", get(accounts::me))
        .route("/api/sign-up", post(accounts::sign_up))
        .route("/api/sign-in", post(accounts::sign_in))
        .route("/api/sign-out", post(accounts::sign_out))
        .route("/api/rooms", get(rooms::list).post(rooms::add))
        .route("/api/rooms/{room}/messages", get(rooms::messages).post(rooms::post))
        .route("/api/rooms/{room}/search", get(rooms::search))
        .route("/api/rooms/{room}/messages/{n}/reactions", post(rooms::react))
        .layer(DefaultBodyLimit::max(MAX_REQUEST));
    let files = Router::new()
        .route("/api/uploads", post(uploads::add))
        .route("/uploads/{id}", get(uploads::read))
        .layer(DefaultBodyLimit::max(MAX_UPLOAD));
    Router::new()
        .route("/", get(pages::index))
        .route("/app.js", get(pages::script))
        .route("/style.css", get(pages::style))
        .route("/favicon.svg", get(pages::icon))
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .merge(api)
        .merge(files)
        .fallback(problem::no_such_page)
        .layer(axum::middleware::map_response(careful))
        .layer(CatchPanicLayer::new())
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, PATIENCE))
        .with_state(app)
}

/// Nothing that people wrote can become script, frame or style.
async fn careful(mut response: Response) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                          base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = response.headers_mut();
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(HeaderName::from_static("cache-control")).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Serves until SIGTERM or SIGINT, or until the database makes it impossible.
pub async fn serve(config: Config, listen: SocketAddr) -> anyhow::Result<()> {
    let tracker = TaskTracker::new();
    let stop = world::stop_signal(&tracker)?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("can't listen on {listen}"))?;
    serve_on(config, listener, stop, tracker).await
}

/// As [`serve`], on a listener that is there, until `stop`.
pub async fn serve_on(
    config: Config,
    listener: TcpListener,
    stop: CancellationToken,
    tracker: TaskTracker,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(version = %config.version, shape = config.database.shape(), %address, "lets-chat");
    let app = App::new(config);
    let fatal = Arc::new(OnceLock::new());
    {
        let (app, stop, fatal) = (app.clone(), stop.clone(), fatal.clone());
        world::spawn(&tracker, async move {
            if let Err(error) = health::keep(&app, &stop).await {
                // Set once: this task is the only one that does.
                let _ = fatal.set(error);
                stop.cancel();
            }
        });
    }
    let server = axum::serve(listener, router(app)).with_graceful_shutdown(stop.clone().cancelled_owned());
    let too_long = async {
        stop.cancelled().await;
        world::sleep(DRAIN).await;
    };
    tokio::select! {
        served = server => served?,
        () = too_long => tracing::warn!("requests that took longer than {} s after the stop were cut", DRAIN.as_secs()),
    }
    stop.cancel();
    tracker.close();
    if world::within(DRAIN, tracker.wait()).await.is_none() {
        tracing::warn!("background work didn't end in time");
    }
    match Arc::into_inner(fatal).and_then(OnceLock::into_inner) {
        Some(error) => Err(error),
        None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}
