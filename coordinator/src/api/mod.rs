//! REST under `/api/v1`. One file per resource; every endpoint says which role it wants.
//!
//! Errors are `application/problem+json`; lists are paged by cursor (newest first, `next` is the cursor of the next
//! page); creation takes `Idempotency-Key`; an operation is followed by server-sent events. A token always, or a
//! browser's session (`browser.rs`), except for signing in, for enrolling (whose body holds one), and the health checks.

mod body;
mod browser;
pub mod connect;
pub mod enrolment;
mod environments;
pub mod exec;
mod images;
mod operations;
mod pages;
mod problem;
mod repositories;
mod repository;
mod server;
mod session;
mod sites;
mod status;
mod types;
mod upgrade;
mod verdicts;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Router,
    extract::{self, DefaultBodyLimit},
    routing::get,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use ocopea_protocol::{
    failure::TaskFailure,
    seams::BoxFuture,
    session::{BoxedStream, Way},
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use browser::{CSRF, SESSION};
pub use problem::Problem;
pub use server::serve;
pub use status::{CountView, QuarantineView, QuarantinedView, SavedView, StatusView, UpkeepView};
pub use types::*;

use crate::Coordinator;

/// Sites, and what environments offer while they run; given by the program that has agents in its own process.
#[async_trait]
pub trait SiteAccess: Send + Sync {
    /// Asks the agent of a site to look at it now and report; whether there is one here to ask.
    fn look_again(&self, site: &str) -> bool;

    /// Lines of an environment's logs.
    async fn logs(
        &self,
        site: &str,
        namespace: &str,
        component: Option<&str>,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, TaskFailure>;

    /// What leads to a service, for a client that will connect to `address`.
    async fn way(&self, site: &str, namespace: &str, service: &str, address: SocketAddr) -> Result<Way, TaskFailure>;

    /// A connection to a service.
    async fn tunnel(&self, site: &str, namespace: &str, service: &str) -> Result<BoxedStream, TaskFailure>;

    /// Starts a program in a container.
    async fn exec(
        &self,
        site: &str,
        namespace: &str,
        query: &exec::ExecQuery,
        command: Vec<String>,
    ) -> Result<exec::Program, TaskFailure>;
}

/// Where the repository's keys are kept, beside the repository.
pub trait KeyFile: Send + Sync {
    /// Replaces what is kept: whole or not at all.
    fn store(&self, keys: &ocopea_repository::Keyring) -> Result<(), String>;
}

/// What handlers share.
#[derive(Clone)]
pub struct State {
    /// The coordinator.
    pub coordinator: Arc<Coordinator>,
    /// Logs and connections.
    pub access: Arc<dyn SiteAccess>,
    /// The repository's keys.
    pub keys: Arc<dyn KeyFile>,
    /// Lets sites in; `None` where agents run in this process only.
    pub broker: Option<Arc<dyn enrolment::SiteBroker>>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ocopea",
        description = "Copies whole running applications: container images, Kubernetes configuration and all data services.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&Bearer),
    security(("token" = []))
)]
struct Description;

struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let components = openapi.components.get_or_insert_with(Default::default);
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(session::sign_in))
        .routes(routes!(browser::begin, browser::end))
        .routes(routes!(session::me))
        .routes(routes!(session::list_tokens, session::create_token))
        .routes(routes!(session::revoke_token))
        .routes(routes!(sites::list, enrolment::add_site))
        .routes(routes!(enrolment::remove))
        .routes(routes!(enrolment::approve))
        .routes(routes!(enrolment::keys, enrolment::add_key))
        .routes(routes!(enrolment::revoke_key))
        .routes(routes!(enrolment::enrol))
        .routes(routes!(status::status))
        .routes(routes!(status::quarantine))
        .routes(routes!(sites::applications))
        .routes(routes!(verdicts::for_image))
        .routes(routes!(operations::inspect))
        .routes(routes!(operations::save))
        .routes(routes!(operations::restore))
        .routes(routes!(operations::list))
        .routes(routes!(operations::get))
        .routes(routes!(operations::events))
        .routes(routes!(operations::cancel))
        .routes(routes!(images::list))
        .routes(routes!(images::get, images::delete))
        .routes(routes!(images::label))
        .routes(routes!(images::comment))
        .routes(routes!(environments::list))
        .routes(routes!(environments::get, environments::remove))
        .routes(routes!(environments::logs))
        .routes(routes!(connect::describe, connect::connect))
        .routes(routes!(exec::exec))
        .routes(routes!(repositories::list, repositories::add))
        .routes(routes!(repositories::get, repositories::change, repositories::remove))
        .routes(routes!(repositories::make_default))
        .routes(routes!(repository::verify))
        .routes(routes!(repository::collect))
        .routes(routes!(repository::reindex))
        .routes(routes!(repository::keys, repository::add_key))
        .routes(routes!(repository::remove_key))
}

/// The OpenAPI 3.1 document, as it is checked in.
pub fn openapi() -> String {
    let (_, mut document) = routes().split_for_parts();
    name_operations(&mut document);
    describe_problems(&mut document);
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Each operation gets a name of its own, as the standard wants, from its method and path: `get_images_image`.
fn name_operations(document: &mut utoipa::openapi::OpenApi) {
    use utoipa::openapi::path::PathItem;
    for (path, item) in &mut document.paths.paths {
        let parts = path.trim_start_matches("/api/v1/").replace(['{', '}'], "").replace(['/', '-'], "_");
        let PathItem { get, put, post, delete, patch, .. } = item;
        let methods = [("get", get), ("put", put), ("post", post), ("delete", delete), ("patch", patch)];
        for (method, operation) in methods {
            if let Some(operation) = operation {
                operation.operation_id = Some(format!("{method}_{parts}"));
            }
        }
    }
}

/// Every operation may be refused, always in the same shape.
fn describe_problems(document: &mut utoipa::openapi::OpenApi) {
    use utoipa::openapi::{Content, Ref, RefOr, Response, path::PathItem};
    let content = || Content::new(Some(RefOr::<utoipa::openapi::Schema>::Ref(Ref::from_schema_name("Problem"))));
    for item in document.paths.paths.values_mut() {
        let PathItem { get, put, post, delete, patch, .. } = item;
        for operation in [get, put, post, delete, patch].into_iter().flatten() {
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response
                    && status.starts_with(['4', '5'])
                {
                    response.content = [(PROBLEM.to_owned(), RefOr::T(content()))].into_iter().collect();
                }
            }
            let mut refused = Response::new("It was refused: why, and what to do");
            refused.content = [(PROBLEM.to_owned(), RefOr::T(content()))].into_iter().collect();
            operation.responses.responses.insert("default".to_owned(), RefOr::T(refused));
        }
    }
}

/// The media type of everything that is refused.
const PROBLEM: &str = "application/problem+json";

/// Everything that is served.
pub fn router(state: State) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .route_layer(axum::middleware::from_fn_with_state(state.clone(), measured))
        .route("/readyz", get(ready))
        .with_state(state.clone())
        .route("/healthz", get(|| async { "ok" }))
        .route("/api/v1/openapi.json", get(|| async { ([("content-type", "application/json")], openapi()) }))
        .fallback(pages::serve)
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(state.clone(), body::read_whole))
        .layer(CatchPanicLayer::new())
        .layer(axum::middleware::map_response(problem::in_our_shape))
        .layer(axum::middleware::map_response(pages::guarded))
}

/// How long answers take, by route.
async fn measured(
    extract::State(state): extract::State<State>,
    route: extract::MatchedPath,
    request: extract::Request,
    next: axum::middleware::Next,
) -> axum::response::Response {
    let (coordinator, method) = (&state.coordinator, request.method().clone());
    let begun = coordinator.seams.clock.monotonic();
    let response = next.run(request).await;
    let took = coordinator.seams.clock.monotonic().saturating_sub(begun);
    coordinator.measure(|m| m.answered(method.as_str(), route.as_str(), response.status().as_u16(), took));
    response
}

/// Serves what is measured at `/metrics`, and nothing else. It wants no token: let only those reach it who may know.
pub fn metrics(measured: Arc<dyn Fn() -> BoxFuture<String> + Send + Sync>) -> Router {
    let text = move || {
        let measured = Arc::clone(&measured);
        async move { ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], measured().await) }
    };
    Router::new().route("/metrics", get(text)).layer(CatchPanicLayer::new())
}

/// How long the catalog may take to say that it is there.
const PROMPT: Duration = Duration::from_secs(3);

/// 200 while requests can be served and tasks handed out, else 503 with what is missing.
async fn ready(extract::State(state): extract::State<State>) -> Result<&'static str, Problem> {
    let coordinator = &state.coordinator;
    let mut missing = Vec::new();
    match coordinator.seams.timeout(PROMPT, coordinator.catalog.is_new()).await {
        Some(Ok(_)) => {}
        Some(Err(error)) => missing.push(format!("the catalog: {error}")),
        None => missing.push(format!("the catalog: no answer within {} s", PROMPT.as_secs())),
    }
    if let Some(trouble) = coordinator.bus.trouble() {
        missing.push(format!("the bus: {trouble}"));
    }
    if missing.is_empty() {
        return Ok("ready");
    }
    Err(Problem {
        next: "see its log; it goes on by itself when what is missing is back".to_owned(),
        ..Problem::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "not-ready", missing.join("; "))
    })
}

/// How often a silent stream of events says that it lives.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);
