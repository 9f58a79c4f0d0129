//! The API as it is served: tokens, roles, teams, and what it does with input that nobody should send.
#![expect(clippy::unwrap_used, reason = "a test's helpers stop at the first surprise")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use ocopea_catalog_db::{Catalog, access::Actor, model::Role};
use ocopea_coordinator::{
    Coordinator,
    api::{self, KeyFile, OpenConnection, SiteAccess, exec},
    tokens,
    vault::Vault,
};
use ocopea_protocol::{
    bus::in_process::InProcessBus, failure::TaskFailure, image::Location, seams::Seams, secret::Secret32,
};
use ocopea_repository::{Keyring, Repository};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// No site is here: what would go to one says so.
struct NoSites;

fn absent() -> TaskFailure {
    TaskFailure::permanent("site.absent", "can't reach the site", "there is none")
}

#[async_trait]
impl SiteAccess for NoSites {
    async fn logs(
        &self,
        _: &str,
        _: &str,
        _: Option<&str>,
        _: bool,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, TaskFailure> {
        Err(absent())
    }

    async fn connect(&self, _: &str, _: &str, _: &str, _: u16) -> Result<OpenConnection, TaskFailure> {
        Err(absent())
    }

    async fn exec(&self, _: &str, _: &str, _: &exec::ExecQuery, _: Vec<String>) -> Result<exec::Started, TaskFailure> {
        Err(absent())
    }
}

impl KeyFile for NoSites {
    fn store(&self, _: &Keyring) -> Result<(), String> {
        Err("no key file here".to_owned())
    }
}

struct Server {
    url: String,
    catalog: Catalog,
    actor: Actor,
    http: reqwest::Client,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    kind: String,
    body: Value,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    async fn start() -> Self {
        // Twice in one process is once too often, and harmless.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let seams = Seams::real(TaskTracker::new());
        let catalog = Catalog::sqlite(&directory.path().join("catalog.sqlite"), seams.clone()).await.unwrap();
        let actor = catalog.ensure_first_user("team", "dana").await.unwrap();
        catalog.ensure_site("desk").await.unwrap();
        let place = directory.path().join("repository");
        let location = Location::Directory { path: place.to_str().unwrap().to_owned() };
        let repository = Repository::create(&location, &Keyring::generate(&seams), &seams).await.unwrap();
        let vault = Vault::new(&Secret32([5; 32])).unwrap();
        let bus = Arc::new(InProcessBus::new(seams.clone()));
        let coordinator = Coordinator::new(catalog.clone(), repository, vault, bus, seams);
        let stop = CancellationToken::new();
        coordinator.start(&stop);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = api::router(api::State { coordinator, access: Arc::new(NoSites), keys: Arc::new(NoSites) });
        let stopped = stop.clone();
        tokio::spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned()).await.unwrap();
        });
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        Self { url, catalog, actor, http, stop, _directory: directory }
    }

    async fn token(&self, actor: &Actor, scope: Role) -> String {
        tokens::issue(&self.catalog, actor, "test", scope).await.unwrap().reveal().to_owned()
    }

    fn request(&self, method: &str, path: &str, token: Option<&str>) -> reqwest::RequestBuilder {
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let request = self.http.request(method, format!("{}{path}", self.url));
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let status = response.status();
        let kind = response.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        // A stream that goes on for ever is not read to its end.
        let body =
            if kind.starts_with("text/event-stream") { Vec::new() } else { response.bytes().await.unwrap().to_vec() };
        let answer = Answer { status, kind, body: serde_json::from_slice(&body).unwrap_or(Value::Null) };
        if status.is_client_error() || status.is_server_error() {
            answer.is_a_problem();
        }
        answer
    }

    async fn post(&self, path: &str, token: &str, body: &Value) -> Answer {
        self.ask(self.request("post", path, Some(token)).json(body)).await
    }
}

impl Answer {
    fn is_a_problem(&self) {
        assert_eq!(self.kind, "application/problem+json", "{} {}", self.status, self.body);
        assert_eq!(self.body["status"], self.status.as_u16(), "{}", self.body);
        for field in ["type", "title", "detail"] {
            assert!(self.body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {}", self.body);
        }
    }
}

const NOBODY: &str = "018f0000-0000-7000-8000-000000000001";

/// Every operation of the API: the role that it needs, and a body that is well-formed.
fn operations() -> BTreeMap<&'static str, (Role, Value)> {
    use Role::{Administrator, Operator, Viewer};
    let save = json!({"site": "desk", "namespace": "shop"});
    BTreeMap::from([
        ("get /api/v1/applications", (Viewer, Value::Null)),
        ("get /api/v1/environments", (Viewer, Value::Null)),
        ("get /api/v1/environments/{environment}", (Viewer, Value::Null)),
        ("delete /api/v1/environments/{environment}", (Operator, Value::Null)),
        ("get /api/v1/environments/{environment}/connections/{service}", (Operator, Value::Null)),
        ("post /api/v1/environments/{environment}/exec", (Operator, Value::Null)),
        ("get /api/v1/environments/{environment}/logs", (Viewer, Value::Null)),
        ("get /api/v1/images", (Viewer, Value::Null)),
        ("get /api/v1/images/{image}", (Viewer, Value::Null)),
        ("delete /api/v1/images/{image}", (Operator, Value::Null)),
        ("post /api/v1/images/{image}/comments", (Operator, json!({"body": "text"}))),
        ("patch /api/v1/images/{image}/labels", (Operator, json!({"labels": {"a": "b"}}))),
        ("post /api/v1/inspections", (Viewer, save.clone())),
        ("get /api/v1/me", (Viewer, Value::Null)),
        ("get /api/v1/operations", (Viewer, Value::Null)),
        ("get /api/v1/operations/{id}", (Viewer, Value::Null)),
        ("post /api/v1/operations/{id}/cancel", (Operator, Value::Null)),
        ("get /api/v1/operations/{id}/events", (Viewer, Value::Null)),
        ("post /api/v1/repository/collections", (Administrator, json!({"grace_s": 3600}))),
        ("get /api/v1/repository/keys", (Administrator, Value::Null)),
        ("post /api/v1/repository/keys", (Administrator, json!({"rotate": false}))),
        ("delete /api/v1/repository/keys/{key}", (Administrator, Value::Null)),
        ("post /api/v1/repository/reindexes", (Administrator, Value::Null)),
        ("post /api/v1/repository/verifications", (Operator, json!({}))),
        ("post /api/v1/restores", (Operator, json!({"image": NOBODY, "site": "desk", "name": "copy"}))),
        ("post /api/v1/saves", (Operator, save)),
        ("get /api/v1/sites", (Viewer, Value::Null)),
        ("get /api/v1/tokens", (Viewer, Value::Null)),
        ("post /api/v1/tokens", (Viewer, json!({"name": "t", "scope": "viewer"}))),
        ("delete /api/v1/tokens/{id}", (Viewer, Value::Null)),
    ])
}

fn filled(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('/').skip(1) {
        out.push('/');
        out.push_str(match part {
            "{id}" | "{image}" => NOBODY,
            "{environment}" | "{service}" | "{key}" => "nothing",
            other => other,
        });
    }
    if path.ends_with("/exec") {
        out.push_str("?command=[%22ls%22]");
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_wants_a_token_and_the_role_that_is_written_down_for_it() {
    let server = Server::start().await;
    let document: Value = serde_json::from_str(&api::openapi()).unwrap();
    let mut documented: Vec<String> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        documented.extend(methods.as_object().unwrap().keys().map(|method| format!("{method} {path}")));
    }
    documented.retain(|one| one != "post /api/v1/sign-in");
    documented.sort();
    let mut table: Vec<&str> = operations().into_keys().collect();
    table.sort_unstable();
    assert_eq!(documented, table, "an operation without a line in the table, or a line without an operation");
    let mut of_role = BTreeMap::new();
    for role in [Role::Viewer, Role::Operator, Role::Administrator] {
        of_role.insert(role, server.token(&server.actor, role).await);
    }
    for (operation, (wanted, body)) in operations() {
        let (method, path) = operation.split_once(' ').unwrap();
        let path = filled(path);
        for token in [None, Some("ocopea_0000"), Some(""), Some("\u{7f}")] {
            let request = match token {
                Some("\u{7f}") => server.request(method, &path, None).header("Authorization", "Basic dXNlcjpwYXNz"),
                token => server.request(method, &path, token),
            };
            let answer = server.ask(request.json(&body)).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{operation} with {token:?}");
            assert!(answer.body["next"].as_str().unwrap().contains("sign"));
        }
        for (role, token) in &of_role {
            let answer = server.ask(server.request(method, &path, Some(token)).json(&body)).await;
            let forbidden = answer.status == StatusCode::FORBIDDEN;
            assert_eq!(
                forbidden,
                *role < wanted,
                "{operation} as {}: {} {}",
                role.as_str(),
                answer.status,
                answer.body
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_code_is_exchanged_once_and_a_revoked_token_ends_at_once() {
    let server = Server::start().await;
    let expires = server.catalog.seams.clock.now().plus(Duration::from_secs(60));
    server.catalog.add_sign_in_code(server.actor.user, &tokens::hash("code_x"), expires).await.unwrap();
    let both = futures::future::join_all(
        (0..4).map(|_| server.ask(server.request("post", "/api/v1/sign-in", None).json(&json!({"code": "code_x"})))),
    )
    .await;
    let fine: Vec<&Answer> = both.iter().filter(|answer| answer.status == StatusCode::OK).collect();
    assert_eq!(fine.len(), 1);
    let token = fine[0].body["token"].as_str().unwrap().to_owned();
    let me = server.ask(server.request("get", "/api/v1/me", Some(&token))).await;
    assert_eq!((me.body["user"].as_str(), me.body["role"].as_str()), (Some("dana"), Some("administrator")));
    let viewer = server.token(&server.actor, Role::Viewer).await;
    let more = server.post("/api/v1/tokens", &viewer, &json!({"name": "t", "scope": "administrator"})).await;
    assert_eq!(more.status, StatusCode::UNPROCESSABLE_ENTITY, "a token never allows more than its maker");
    let own = server.ask(server.request("get", "/api/v1/tokens", Some(&token))).await;
    assert!(!own.body.to_string().contains(&token), "no secret is shown twice");
    for one in own.body.as_array().unwrap().iter().filter(|one| one["name"] == "test") {
        let path = format!("/api/v1/tokens/{}", one["id"].as_str().unwrap());
        let ended = server.ask(server.request("delete", &path, Some(&token))).await;
        assert_eq!(ended.status, StatusCode::NO_CONTENT);
    }
    let me = server.ask(server.request("get", "/api/v1/me", Some(&viewer))).await;
    assert_eq!(me.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_should_send_is_refused_in_words_and_harms_nothing() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Administrator).await;
    let long = "x".repeat(10_000);
    let names = [
        "../../etc",
        "a/b",
        "nul\0",
        "line\r\nbreak",
        "\"quoted\"",
        "'; drop table images",
        "",
        " ",
        &long,
        "UPPER",
        "-",
    ];
    for name in names {
        for body in [
            json!({"site": "desk", "namespace": name}),
            json!({"site": name, "namespace": "shop"}),
            json!({"site": "desk", "namespace": "shop", "labels": {name: "v\0"}}),
            json!({"site": "desk", "namespace": "shop", "credentials": [{"service": name, "user": "u", "password": "p"}]}),
        ] {
            let answer = server.post("/api/v1/saves", &token, &body).await;
            assert!(answer.status.is_client_error(), "{body:.200}: {} {}", answer.status, answer.body);
        }
        let restore = json!({"image": name, "site": "desk", "name": name});
        let answer = server.post("/api/v1/restores", &token, &restore).await;
        assert!(answer.status.is_client_error(), "{name:.50}: {}", answer.body);
        let escaped: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        for path in ["images", "environments", "operations"] {
            let answer = server.ask(server.request("get", &format!("/api/v1/{path}/{escaped}"), Some(&token))).await;
            assert!(escaped.is_empty() || answer.status.is_client_error(), "{path}/{escaped:.60}: {}", answer.status);
        }
        let answer = server
            .ask(server.request("get", &format!("/api/v1/images?text={escaped}&cursor={escaped}"), Some(&token)))
            .await;
        assert!(answer.status.is_success() || answer.status.is_client_error(), "{escaped:.60}: {}", answer.body);
    }
    for (body, status) in [
        ("{", 400),
        ("", 400),
        ("[]", 422),
        ("null", 422),
        ("{\"site\":1,\"namespace\":\"x\"}", 422),
        ("{\"site\":\"desk\"}", 422),
        ("{\"site\":\"desk\",\"namespace\":\"shop\",\"unknown\":1}", 422),
    ] {
        let request = server.request("post", "/api/v1/saves", Some(&token)).header("Content-Type", "application/json");
        let answer = server.ask(request.body(body)).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.body);
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let request = server.request("post", "/api/v1/saves", Some(&token)).header("Content-Type", "application/json");
    assert!(server.ask(request.body(deep)).await.status.is_client_error());
    // Who sends too much is told so, not cut off in the middle of sending: with a length and without.
    for round in 0..20 {
        let request = server.request("post", "/api/v1/saves", Some(&token)).header("Content-Type", "application/json");
        let piece = bytes::Bytes::from(vec![b' '; 1 << 20]);
        let pieces = futures::stream::iter((0..5).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
        let body: reqwest::Body =
            if round % 2 == 0 { vec![b' '; 5 << 20].into() } else { reqwest::Body::wrap_stream(pieces) };
        let large = server.ask(request.body(body)).await;
        assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE, "{}", large.body);
    }
    let request = server.request("post", "/api/v1/saves", Some(&token)).header("Content-Type", "text/plain");
    assert!(server.ask(request.body("{}")).await.status.is_client_error());
    for (method, path, status) in [
        ("put", "/api/v1/images", 405),
        ("get", "/api/v1/nothing", 404),
        ("get", "/api/v1/images?limit=many", 400),
        ("get", "/api/v1/images?limit=-1", 400),
        ("get", "/api/v1/operations?cursor=no", 422),
        ("get", "/api/v1/operations/no", 422),
        ("get", "/%ff", 404),
    ] {
        let answer = server.ask(server.request(method, path, Some(&token))).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.body);
    }
    assert!(server.catalog.open_operations().await.unwrap().is_empty(), "nothing of that was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_twice_at_once_is_one_operation_and_its_events_go_on_where_they_broke_off() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Operator).await;
    let save = |namespace: &str| {
        let body = json!({"site": "desk", "namespace": namespace});
        server.request("post", "/api/v1/saves", Some(&token)).header("Idempotency-Key", "one").json(&body)
    };
    let all = futures::future::join_all((0..5).map(|_| server.ask(save("shop")))).await;
    let ids: Vec<String> = all.iter().map(|answer| answer.body["operation"].to_string()).collect();
    assert!(all.iter().all(|answer| answer.status == StatusCode::ACCEPTED), "{ids:?}");
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(server.ask(save("other")).await.status, StatusCode::CONFLICT);
    let id = all[0].body["operation"].as_str().unwrap();
    let path = format!("/api/v1/operations/{id}/events");
    let read = async |last: Option<&str>| {
        let mut request = server.request("get", &path, Some(&token));
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut stream = response.bytes_stream();
        let mut text = String::new();
        while !text.contains("\n\n") {
            text.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
        }
        text
    };
    let first = read(None).await;
    assert!(first.contains("data:") && first.contains("id:"), "{first}");
    let last = first.lines().find_map(|line| line.strip_prefix("id:")).unwrap().trim().to_owned();
    // Something new happens; who comes back gets it.
    let cancel = server.ask(server.request("post", &format!("/api/v1/operations/{id}/cancel"), Some(&token))).await;
    assert!(cancel.status.is_success(), "{}", cancel.body);
    let again = read(Some(&last)).await;
    assert!(again.contains("data:") && !again.contains(&format!("id: {last}\n")), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_team_is_not_found() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Operator).await;
    let stranger = server.catalog.ensure_member("other", "eve", Role::Administrator).await.unwrap();
    let theirs = server.token(&stranger, Role::Administrator).await;
    let save = server.post("/api/v1/saves", &token, &json!({"site": "desk", "namespace": "shop"})).await;
    let id = save.body["operation"].as_str().unwrap();
    for (method, path) in [
        ("get", format!("/api/v1/operations/{id}")),
        ("get", format!("/api/v1/operations/{id}/events")),
        ("post", format!("/api/v1/operations/{id}/cancel")),
    ] {
        let ours = server.ask(server.request(method, &path, Some(&theirs))).await;
        assert_eq!(ours.status, StatusCode::NOT_FOUND, "{method} {path}");
    }
    let list = server.ask(server.request("get", "/api/v1/operations", Some(&theirs))).await;
    assert_eq!(list.body["items"].as_array().unwrap().len(), 0);
    let own = server.ask(server.request("get", "/api/v1/operations", Some(&token))).await;
    assert_eq!(own.body["items"].as_array().unwrap().len(), 1);
}
